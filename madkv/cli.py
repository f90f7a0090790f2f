"""The `madkv` command: the shell for people, the line interface for programs."""

import argparse
import sys
from collections.abc import Sequence

from madkv import __version__

DEFAULT_SERVER = "127.0.0.1:3777"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    parser = argparse.ArgumentParser(prog="madkv", description="A client of MadKV, a linearizable key-value store.")
    parser.add_argument("--version", action="version", version=f"MadKV {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in (
        ("shell", "an interactive prompt with history, help and completion"),
        ("client", "the line interface: PUT, SWAP, GET, DELETE, SCAN and STOP on stdin, answers on stdout"),
    ):
        command = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        command.add_argument("--server", default=DEFAULT_SERVER, metavar="HOST:PORT", help="default: %(default)s")
        command.add_argument(
            "server", nargs="?", default=argparse.SUPPRESS, metavar="HOST:PORT", help="the same, without --server"
        )
    options = parser.parse_args(argv)
    if options.command == "shell":
        try:
            from madkv.client.shell import run_shell

            return run_shell(options.server)
        except KeyboardInterrupt:  # while it starts, or takes its leave of the server
            return 130
    from madkv.client.__main__ import main as run_line_client

    return run_line_client(["--server", options.server])


if __name__ == "__main__":
    sys.exit(main())
