"""How a peer's client becomes a line client: MadKV's own line interface, around another store's calls."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from madkv.client.line import EXIT_FAILED, LineInterface, StdoutGone

if TYPE_CHECKING:
    from madkv.client.line import Store


def serve(name: str, connect: "Callable[[str], Store]", failures: tuple[type[Exception], ...]) -> int:
    """Read `ADDRESS` from the command line, connect, serve stdin; the exit status.

    A call that fails is one line on stderr and the end: these clients are measured, and do not retry.
    """
    if len(sys.argv) != 2:
        _complain(f"usage: python -m {name} HOST:PORT")
        return 2
    try:
        return LineInterface(connect(sys.argv[1])).run()
    except StdoutGone:
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except failures as error:
        _complain(f"{name}: {error}")
        return EXIT_FAILED


def _complain(text: str) -> None:
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:
        pass
