"""The line client as a process, for tests: a whole input at once (`run`), or line by line (`LineClient`)."""

import os
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from tests.processes import ROOT

SECONDS_MAX = 20.0


def command(address: str, option: str = "--server") -> list[str]:
    """The command that runs a line client."""
    return [sys.executable, "-m", "madkv.client", option, address]


def run(address: str, data: bytes, option: str = "--server") -> subprocess.CompletedProcess[bytes]:
    """Give a client all its input, and wait until it has ended."""
    return subprocess.run(command(address, option), input=data, capture_output=True, cwd=ROOT, timeout=SECONDS_MAX)


class LineClient:
    """A client whose pipes the test holds. Use it in a `with` statement."""

    def __init__(self, address: str, option: str = "--server") -> None:
        self.process = subprocess.Popen(
            command(address, option),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._stdin, self._stdout, self._stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self._received = b""
        self._said = b""
        self._has_said_all = False

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
        while self._read_stderr(0):
            pass
        return self._said

    def _read_stderr(self, seconds: float) -> bool:
        """Take in what is there, or comes within that time; whether there was anything, its end included."""
        if self._has_said_all or not select.select([self._stderr], [], [], seconds)[0]:
            return False
        data = os.read(self._stderr.fileno(), 1 << 16)
        self._said += data
        self._has_said_all = not data
        return True

    def wait(self, seconds: float = SECONDS_MAX) -> int:
        """Wait until it has ended; its exit status."""
        return self.process.wait(seconds)

    def wait_for_stderr(self, text: bytes) -> None:
        """Wait until it has said so."""
        deadline = time.monotonic() + SECONDS_MAX
        while text not in self._said:
            came = self._read_stderr(max(0.0, deadline - time.monotonic()))
            assert came, f"it did not say {text!r}, but {self._said!r}"
