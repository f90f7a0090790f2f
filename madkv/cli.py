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
FOR_OPERATORS = ("replace-disk", "backup", "transfer-leader")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    for option, variable in zip(OPTIONS, VARIABLES, strict=True):
        if path := getattr(options, option.replace("-", "_"), None):
            os.environ[variable] = path
    if options.command != "check":
        try:
            tls_files(None, None, None, os.environ)
        except MadKVError as error:
            parser.error(str(error))
    if options.command in ("shell", "client"):
        if options.server is not None and options.managers is not None:
            parser.error("give either a server or the managers")
        if options.server is None and options.managers is None:
            options.server = DEFAULT_SERVER
    try:
        return _run(options)
    except KeyboardInterrupt:  # also while it starts, or takes its leave of the server
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="madkv", description="Clients and tools of MadKV, a linearizable key-value store."
    )
    parser.add_argument("--version", action="version", version=f"MadKV {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, what: str, more: str = "", epilog: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.{more}", epilog=epilog)

    def add_managers(command: argparse.ArgumentParser, which: str = "") -> None:
        command.add_argument("--managers", required=True, metavar="A,B,C", help=f"HOST:PORT of each manager{which}")

    for name, what in (
        ("shell", "an interactive prompt with history, help and completion"),
        ("client", "the line interface: PUT, SWAP, GET, DELETE, SCAN and STOP on stdin, answers on stdout"),
    ):
        command = add(name, what)
        command.add_argument("--server", metavar="HOST:PORT", help=f"a single server; default: {DEFAULT_SERVER}")
        command.add_argument(
            "server", nargs="?", default=argparse.SUPPRESS, metavar="HOST:PORT", help="the same, without --server"
        )
        command.add_argument("--managers", metavar="A,B,C", help="a cluster, by the HOST:PORT of each manager")
    command = add(
        "replace-disk",
        "tell the managers that a node's disk is lost for good, so that a blank one may take its place",
        " Most of those that are named have to answer, and all that do to be of one cluster.",
        "Exit status: 0 it is given up, 1 nothing was changed, and one line that says why, 2 whether it is given up is "
        "not known.",
    )
    command.add_argument("node", metavar="NODE", help="s0.1 for replica 1 of partition 0, m.1 for manager 1")
    add_managers(command)
    command = add(
        "status",
        "show how every node of a cluster is, who owns which keys, and what is wrong",
        " It asks the managers, and the servers that these know.",
        "Exit status: 0 well, 1 something is wrong (a line that begins with `unwell:` for each thing), "
        "2 no manager answers, or these are not all the managers of one cluster.",
    )
    add_managers(command, ", all of them")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command = add(
        "backup",
        "write all that a running cluster holds into a file, each partition as it is at one point",
        " All that was acknowledged before it began is in it. "
        "`madkv check FILE` verifies such a file, `madkv restore FILE` puts it into an empty cluster.",
        "Exit status: 0 written, 1 not written, and one line that says why, 2 no manager answers, or those that do are "
        "of several clusters.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="it has this name as soon as it is whole")
    add_managers(command)
    command.add_argument("--force", action="store_true", help="replace a file of that name")
    command = add(
        "restore",
        "put all pairs of a backup into a running cluster that is empty, whatever its partitions are",
        " The whole file is verified first.",
        "Exit status: 0 restored, 1 begun and not complete, 2 nothing was changed, and one line that says why.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="what `madkv backup` has written")
    add_managers(command)
    command.add_argument(
        "--resume", action="store_true", help="go on with a restore of the same file that was broken off"
    )
    command = add(
        "check",
        "verify a backup, or the directory of a stopped server or manager, and change nothing in it",
        " It reads every record that is in force.",
        "Exit status: 0 sound, 1 damaged (a line for each kind of damage), 2 not checked: it is neither backup "
        "nor a node's directory, or a running process holds it.",
    )
    command.add_argument("path", type=Path, metavar="PATH", help="a backup, or what the node has as --backer")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command = add(
        "transfer-leader",
        "have another replica lead its group, and wait until it does",
        " No call fails by that; writes wait for some milliseconds.",
        "Exit status: 0 it leads, 1 it does not, and one line that says why, 2 no manager answers, those that do are "
        "of several clusters, or no such node can be.",
    )
    command.add_argument("node", metavar="NODE", help="s0.1 or m.1; with --group, its number alone")
    command.add_argument("--group", metavar="G", help="m, s0, s1 and so on; by itself that of NODE")
    add_managers(command)
    for name, command in commands.choices.items():
        mine = "your certificate, which is to be an operator's" if name in FOR_OPERATORS else "your certificate"
        for option, what in zip(OPTIONS, ("the CA that counts", mine, "the key to it"), strict=True):
            if name != "check":
                help_text = f"PEM file with {what}; default: $MADKV_{option.replace('-', '_').upper()}, or no TLS"
                command.add_argument(f"--{option}", metavar="FILE", help=help_text)
    return parser


def _run(options: argparse.Namespace) -> int:
    """Each command imports what it needs, and nothing else."""
    match options.command:
        case "shell":
            from madkv.client.shell import run_shell

            return run_shell(options.server, options.managers)
        case "client":
            from madkv.client.__main__ import main as run_line_client

            if options.managers is not None:
                return run_line_client(["--managers", options.managers])
            return run_line_client(["--server", options.server])
        case "replace-disk":
            from madkv.operate.replace_disk import replace_disk

            return replace_disk(options.node, options.managers)
        case "status":
            from madkv.operate.status import status

            return status(options.managers, as_json=options.json)
        case "backup":
            from madkv.operate.backup import backup

            return backup(options.file, options.managers, force=options.force)
        case "restore":
            from madkv.operate.restore import restore

            return restore(options.file, options.managers, resume=options.resume)
        case "check" if options.path.is_file():
            from madkv.operate.backup import check_backup

            return check_backup(options.path, as_json=options.json)
        case "check":
            from madkv.operate.check import check

            return check(options.path, as_json=options.json)
        case _:
            from madkv.operate.transfer import transfer_leader

            return transfer_leader(options.node, options.group, options.managers)


if __name__ == "__main__":
    sys.exit(main())
