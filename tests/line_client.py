"""The line client as a process, for tests: a whole input at once (`run`), or line by line (`LineClient`)."""

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.processes import ROOT

SECONDS_MAX = 20.0


def command(address: str) -> list[str]:
    """The command that runs a line client."""
    return [sys.executable, "-m", "madkv.client", "--server", address]


def run(address: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    """Give a client all its input, and wait until it has ended."""
    return subprocess.run(command(address), input=data, capture_output=True, cwd=ROOT, timeout=SECONDS_MAX)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = SECONDS_MAX) -> None:
    """Look again and again; an AssertionError when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} seconds for {what}"
        time.sleep(0.005)


class LineClient:
    """A client whose pipes the test holds. Use it in a `with` statement."""

    def __init__(self, address: str) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self.process = subprocess.Popen(
            command(address), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()

    def send(self, *lines: bytes) -> None:
        """Write lines to its stdin."""
        self._stdin.write(b"".join(line + b"\n" for line in lines))

    def read_line(self, seconds: float = SECONDS_MAX) -> bytes:
        """The next line of its stdout, without its end; b"" at the end of the output."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no answer within {seconds:g} seconds; stderr: {self.stderr()!r}"
            data = os.read(self._stdout.fileno(), 1 << 20)
            if not data:
                break
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def ask(self, line: bytes) -> bytes:
        """Send one line; its answer's first line."""
        self.send(line)
        return self.read_line()

    def close_stdin(self) -> None:
        """End its input."""
        self._stdin.close()

    def close_stdout(self) -> None:
        """Be gone as the reader of its answers."""
        self._stdout.close()

    def stderr(self) -> bytes:
        """What it has written to stderr so far."""
        return os.pread(self._stderr.fileno(), 1 << 20, 0)

    def wait(self, seconds: float = SECONDS_MAX) -> int:
        """Wait until it has ended; its exit status."""
        return self.process.wait(seconds)

    def wait_for_stderr(self, text: bytes) -> None:
        """Wait until it has said so."""
        wait_until(lambda: text in self.stderr(), f"{text!r} on stderr")
