"""What a tool says: its results to stdout and into a log, its progress to stderr only."""

import sys
import time
from pathlib import Path
from typing import Self, TextIO

TERMINAL_PAUSE_NS = 10**9
OTHER_PAUSE_NS = 10 * 10**9


def print_result(text: str) -> None:
    """Print to stdout at once. Raises OSError that says it was stdout."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error


class Progress:
    """How far things are, on stderr: on a terminal a line that the next one replaces, elsewhere one now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._pause_ns = TERMINAL_PAUSE_NS if self._terminal else OTHER_PAUSE_NS
        self.due_ns = time.monotonic_ns() + self._pause_ns
        """When, on the monotonic clock, the next line is due; nobody is held to it."""

    def show(self, text: str) -> None:
        """Say where things are."""
        self.due_ns = time.monotonic_ns() + self._pause_ns
        sys.stderr.write(f"\r{text}\x1b[K" if self._terminal else text + "\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave the terminal's line empty, for what stays."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Transcript:
    """What is said to stdout and into the log, and how far things are. Use it in a `with` statement."""

    def __init__(self, log: Path | None) -> None:
        self._log: TextIO | None = None
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log.open("w")
        self._progress = Progress()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log:
            self._log.close()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._progress.clear()
        print_result(text)
        if self._log:
            print(text, file=self._log, flush=True)

    def progress(self, text: str) -> None:
        """How far things are, if it is time to say so."""
        if time.monotonic_ns() >= self._progress.due_ns:
            self._progress.show(text)
