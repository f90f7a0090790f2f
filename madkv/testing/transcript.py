"""What a tool says: its results to stdout and into a log, its progress to stderr only."""

import sys
import time
from pathlib import Path
from typing import TextIO


class Transcript:
    """What is said to stdout and into the log, and how far things are, to stderr only."""

    def __init__(self, log: Path | None) -> None:
        self._log: TextIO | None = None
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log.open("w")
        self._terminal = sys.stderr.isatty()
        self._pause_seconds = 0.2 if self._terminal else 5.0
        self._due = time.monotonic() + self._pause_seconds

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, flush=True)
        if self._log:
            print(text, file=self._log, flush=True)

    def progress(self, text: str) -> None:
        """A line that the next one replaces on a terminal; elsewhere one every few seconds."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._pause_seconds
        sys.stderr.write(f"\r{text}\x1b[K" if self._terminal else text + "\n")
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def close(self) -> None:
        """End the log."""
        if self._log:
            self._log.close()
