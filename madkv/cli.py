"""The `madkv` command: the shell for people, the line interface for programs, and what operators need."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from madkv import __version__
from madkv.errors import MadKVError
from madkv.tls import OPTIONS, VARIABLES, tls_files

DEFAULT_SERVER = "127.0.0.1:3777"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    parser = argparse.ArgumentParser(
        prog="madkv", description="Clients and tools of MadKV, a linearizable key-value store."
    )
    parser.add_argument("--version", action="version", version=f"MadKV {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in (
        ("shell", "an interactive prompt with history, help and completion"),
        ("client", "the line interface: PUT, SWAP, GET, DELETE, SCAN and STOP on stdin, answers on stdout"),
    ):
        command = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        command.add_argument("--server", metavar="HOST:PORT", help=f"a single server; default: {DEFAULT_SERVER}")
        command.add_argument(
            "server", nargs="?", default=argparse.SUPPRESS, metavar="HOST:PORT", help="the same, without --server"
        )
        command.add_argument("--managers", metavar="A,B,C", help="a cluster, by the HOST:PORT of each manager")
    what = "tell the managers that a node's disk is lost for good, so that a blank one may take its place"
    command = commands.add_parser("replace-disk", help=what, description=what.capitalize() + ".")
    command.add_argument("node", metavar="NODE", help="s0.1 for replica 1 of partition 0, m.1 for manager 1")
    command.add_argument("--managers", required=True, metavar="A,B,C", help="HOST:PORT of each manager")
    what = "show how every node of a cluster is, who owns which keys, and what is wrong"
    command = commands.add_parser(
        "status",
        help=what,
        description=f"{what.capitalize()}. It asks the managers, and the servers that these know.",
        epilog="Exit status: 0 well, 1 something is wrong (a line that begins with `unwell:` for each thing), "
        "2 no manager answers, or these are not all the managers of one cluster.",
    )
    command.add_argument("--managers", required=True, metavar="A,B,C", help="HOST:PORT of each manager, all of them")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    what = "write all that a running cluster holds into a file, each partition as it is at one point"
    command = commands.add_parser(
        "backup",
        help=what,
        description=f"{what.capitalize()}. All that was acknowledged before it began is in it. "
        "`madkv check FILE` verifies such a file, `madkv restore FILE` puts it into an empty cluster.",
        epilog="Exit status: 0 written, 1 not written, and one line that says why, 2 no manager answers.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="it has this name as soon as it is whole")
    command.add_argument("--managers", required=True, metavar="A,B,C", help="HOST:PORT of each manager")
    command.add_argument("--force", action="store_true", help="replace a file of that name")
    what = "put all pairs of a backup into a running cluster that is empty, whatever its partitions are"
    command = commands.add_parser(
        "restore",
        help=what,
        description=f"{what.capitalize()}. The whole file is verified first.",
        epilog="Exit status: 0 restored, 1 begun and not complete, 2 nothing was changed, and one line that says why.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="what `madkv backup` has written")
    command.add_argument("--managers", required=True, metavar="A,B,C", help="HOST:PORT of each manager")
    command.add_argument(
        "--resume", action="store_true", help="go on with a restore of the same file that was broken off"
    )
    what = "verify a backup, or the directory of a stopped server or manager, and change nothing in it"
    command = commands.add_parser(
        "check",
        help=what,
        description=f"{what.capitalize()}. It reads every record that is in force.",
        epilog="Exit status: 0 sound, 1 damaged (a line for each kind of damage), 2 not checked: it is neither backup "
        "nor a node's directory, or a running process holds it.",
    )
    command.add_argument("path", type=Path, metavar="PATH", help="a backup, or what the node has as --backer")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    what = "have another replica lead its group, and wait until it does"
    command = commands.add_parser(
        "transfer-leader",
        help=what,
        description=f"{what.capitalize()}. No call fails by that; writes wait for some milliseconds.",
        epilog="Exit status: 0 it leads, 1 it does not, and one line that says why, 2 no manager answers, or no such "
        "node can be.",
    )
    command.add_argument("node", metavar="NODE", help="s0.1 or m.1; with --group, its number alone")
    command.add_argument("--group", metavar="G", help="m, s0, s1 and so on; by itself that of NODE")
    command.add_argument("--managers", required=True, metavar="A,B,C", help="HOST:PORT of each manager")
    for name in ("shell", "client", "replace-disk", "status", "transfer-leader", "backup", "restore"):
        for option, what in zip(OPTIONS, ("the CA that counts", "your certificate", "the key to it"), strict=True):
            help_text = f"PEM file with {what}; default: $MADKV_{option.replace('-', '_').upper()}, or no TLS"
            commands.choices[name].add_argument(f"--{option}", metavar="FILE", help=help_text)
    options = parser.parse_args(argv)
    for option, variable in zip(OPTIONS, VARIABLES, strict=True):
        if path := getattr(options, option.replace("-", "_"), None):
            os.environ[variable] = path
    if options.command != "check":
        try:
            tls_files(None, None, None, os.environ)
        except MadKVError as error:
            parser.error(str(error))
    if options.command == "replace-disk":
        from madkv.client.replace_disk import replace_disk

        return replace_disk(options.node, options.managers)
    if options.command in ("backup", "restore", "check", "status", "transfer-leader"):
        try:
            return _operate(options)
        except KeyboardInterrupt:
            return 130
    if options.server is not None and options.managers is not None:
        parser.error("give either a server or the managers")
    if options.server is None and options.managers is None:
        options.server = DEFAULT_SERVER
    if options.command == "shell":
        try:
            from madkv.client.shell import run_shell

            return run_shell(options.server, options.managers)
        except KeyboardInterrupt:  # while it starts, or takes its leave of the server
            return 130
    from madkv.client.__main__ import main as run_line_client

    if options.managers is not None:
        return run_line_client(["--managers", options.managers])
    return run_line_client(["--server", options.server])


def _operate(options: argparse.Namespace) -> int:
    if options.command == "backup":
        from madkv.operate.backup import backup

        return backup(options.file, options.managers, force=options.force)
    if options.command == "restore":
        from madkv.operate.restore import restore

        return restore(options.file, options.managers, resume=options.resume)
    if options.command == "check" and options.path.is_file():
        from madkv.operate.backup import check_backup

        return check_backup(options.path, as_json=options.json)
    if options.command == "check":
        from madkv.operate.check import check

        return check(options.path, as_json=options.json)
    if options.command == "transfer-leader":
        from madkv.operate.transfer import transfer_leader

        return transfer_leader(options.node, options.group, options.managers)
    from madkv.operate.status import status

    return status(options.managers, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
