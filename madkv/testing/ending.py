"""How a tool ends: by a status and at most one line, also when it is interrupted or nobody takes its output."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_INTERRUPTED = 130


def run_tool(name: str, main: Callable[[], int | None]) -> NoReturn:
    """Run a tool and end the process with its status; `name` begins the line that says why it broke off."""
    status: str | int | None = None
    try:
        try:
            status = main() or 0
        except SystemExit as ended:  # of argparse, say, after its help
            status = ended.code or 0
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
        complain(f"{name}: interrupted")
    except OSError as error:
        # A status that is a failure comes from a tool that has said what was wrong; a broken pipe says it by itself.
        if not status and not isinstance(error, BrokenPipeError):
            complain(f"{name}: {error}")
        status = status or 1
        forget_output()
    sys.exit(status)


def complain(text: str) -> None:
    """One line on stderr, if anybody takes it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def forget_output() -> None:
    """Drop what stdout did not take: Python would try once more at its end, and show a traceback."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
