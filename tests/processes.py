"""Real processes for tests: started on a free port, waited for by what they say, always ended by their own id.

`Process` is any command. `ServerProcess` is `twistd -n madkv-server`; the fixture `server` in conftest.py shares one
over the whole session, for tests that do not mind the pairs of others (so use keys of your own).
"""

import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from madkv.testing.ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
TWISTD = Path(sys.executable).with_name("twistd")
SAY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
COMMAND_SECONDS_MAX = 120.0


class Process:
    """A process with its output read by threads, so that it never waits for us. Use it in a `with` statement."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        self.lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._said = threading.Condition()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        streams = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        self._readers = [threading.Thread(target=self._read, args=stream, daemon=True) for stream in streams.items()]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _read(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            with self._said:
                self.lines[name].append(line.rstrip("\n"))
                self._said.notify_all()
        stream.close()
        with self._said:
            self._said.notify_all()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """Everything it has written so far, stdout before stderr."""
        with self._said:
            return "\n".join(self.lines["stdout"] + self.lines["stderr"])

    def wait_for(self, pattern: str, seconds: float = SAY_SECONDS_MAX) -> re.Match[str]:
        """Wait until a line of its output matches; the match. An AssertionError with all output when it does not."""
        deadline = time.monotonic() + seconds
        seen = {"stdout": 0, "stderr": 0}
        with self._said:
            while True:
                for name, lines in self.lines.items():
                    for line in lines[seen[name] :]:
                        if match := re.search(pattern, line):
                            return match
                    seen[name] = len(lines)
                seconds_left = deadline - time.monotonic()
                has_ended = not any(reader.is_alive() for reader in self._readers)
                if seconds_left <= 0 or has_ended:
                    raise AssertionError(f"the process did not say {pattern!r}, but:\n{self.output}")
                self._said.wait(min(seconds_left, 1.0))

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS_MAX) -> int:
        """Wait until it has ended by itself and all its output is here; its exit status."""
        status = self._process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        return status

    def stop(self) -> int:
        """Ask it to end (SIGTERM) and wait for it; its exit status."""
        self._process.terminate()
        return self.wait()

    def end(self) -> None:
        """End it, by force if asking does not help."""
        if self.is_running:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.wait()

    def memory_bytes(self) -> int:
        """Its resident memory."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def cpu_seconds(self) -> float:
        """The processor time that it has used, its own and the system's for it."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


class ServerProcess(Process):
    """`twistd -n madkv-server`, listening by the time the constructor returns; `address` is where, as HOST:PORT.

    `files`: how many the system allows it.
    """

    def __init__(
        self,
        *options: str,
        listen: str = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        files: int | None = None,
    ) -> None:
        command = server_command("--listen", listen, *options)
        super().__init__(command if files is None else with_files(files, command), env)
        try:
            self.address = self.wait_for(r"serving clients on (\S+:\d+)")[1]
        except BaseException:
            self.end()
            raise
        host, _, port = self.address.rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)


def madkv_command(*words: str | Path) -> list[str]:
    """The `madkv` command, with this interpreter."""
    return [sys.executable, "-m", "madkv.cli", *map(str, words)]


def madkv(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `madkv` to its end; what it said, and its exit status."""
    return subprocess.run(
        madkv_command(*words), cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False
    )


def madkv_refusal(status: int, *words: str | Path) -> str:
    """Run one that must end with this status; the last line it says on stderr, and nothing on stdout."""
    done = madkv(*words)
    assert (done.returncode, done.stdout) == (status, ""), done
    return done.stderr.splitlines()[-1].removeprefix(f"madkv {words[0]}: ")


def server_command(*options: str) -> list[str]:
    """The command that runs a server in the foreground, with this interpreter."""
    return [sys.executable, str(TWISTD), "-n", "--pidfile=", "madkv-server", *options]


def with_files(files: int, command: Sequence[str]) -> list[str]:
    """The command, allowed so many open files."""
    return ["/bin/sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]


def free_address() -> str:
    """One on this machine at which nothing listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


def just_script(path: Path, *command: str) -> str:
    """Write a program that stands for `just`: it runs this command, with what it is given behind it; its path."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o700)
    return str(path)
