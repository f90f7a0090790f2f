"""A service of its own for a tool: the processes that recipes start, on ports that were free."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Self

from madkv.testing.ports import free_ports

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
LOOK_SECONDS = 0.02
SERVICE_LINES_SHOWN = 15


class ServiceError(Exception):
    """The service did not start, or ended."""


class Service:
    """The processes of one service, each started by its recipe in a process group of its own."""

    def __init__(self, just: Sequence[str], recipes: Sequence[Sequence[str]], ports: Sequence[int]) -> None:
        self._commands = [[*just, *recipe] for recipe in recipes]
        self._ports = ports
        self._processes: list[subprocess.Popen[bytes]] = []
        self._output: IO[bytes] = tempfile.TemporaryFile(prefix="madkv-service-")  # noqa: SIM115 - `stop` closes it

    def __enter__(self) -> Self:
        try:
            for command in self._commands:
                self._processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=self._output,
                        stderr=self._output,
                        start_new_session=True,
                    )
                )
            self._wait_until_it_listens()
        except OSError as error:
            self.stop()
            raise ServiceError(f"the service cannot be started: {error}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        for port in self._ports:
            while not is_listening(port):
                if any(process.poll() is not None for process in self._processes):
                    raise ServiceError(f"the service ended at once; it said:\n{self.said()}")
                if time.monotonic() > deadline:
                    raise ServiceError(f"nothing listens on port {port}; the service said:\n{self.said()}")
                time.sleep(LOOK_SECONDS)

    @classmethod
    def solo(cls, just: str) -> Self:
        """A server in memory, on a port that is free now."""
        (port,) = free_ports(1)
        return cls([just], [["p1::server", f"127.0.0.1:{port}"]], [port])

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def pids(self) -> list[int]:
        """The process that each recipe was started as; its children do the work."""
        return [process.pid for process in self._processes]

    def said(self) -> str:
        """The last lines that its processes wrote."""
        self._output.seek(0)
        lines = self._output.read().decode(errors="backslashreplace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-SERVICE_LINES_SHOWN:])

    def stop(self) -> None:
        """End every process of it, gently first."""
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for with_signal in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                # The group may outlive the recipe that led it, so it is asked about even when that has ended.
                try:
                    os.killpg(process.pid, with_signal)
                except ProcessLookupError:
                    pass
            for process in self._processes:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
        self._output.close()


def is_listening(port: int) -> bool:
    """Whether something on this machine accepts connections on the port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
