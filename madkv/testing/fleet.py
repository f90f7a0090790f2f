"""Many line-interface clients as separate processes, driven from one loop.

Theory of operation. Each client is started by a command (`just p1::client ADDRESS`, say) in a process group of its own
and knows nothing of us but its stdin and stdout. At most one line is outstanding per client. A reply to SCAN ends with
the line `SCAN END`; every other reply is one line. The clock of a call starts right before its line is written to the
pipe and stops right after the read that completed the reply.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, Self

from madkv.testing.ending import complain
from madkv.testing.lines import show
from madkv.testing.transcript import Progress

CLIENTS_MAX = 100
"""Clients of one run: each is a process of its own, with three pipes to this one."""
STOP_SECONDS = 10.0
"""How long a client may take to answer STOP, and then to end."""
READ_BYTES = 1 << 16
"""What a pipe holds. A longer buffer costs a page fault or more for each read, however little there is."""
STDERR_BYTES_KEPT = 4096
SCAN_END = b"\nSCAN END\n"
WAITING = "waiting for"
"""What a client says on stderr when nothing answers it."""


class Completion(NamedTuple):
    """One finished call; `reply` is the answer without its last newline, or None when the client ended instead."""

    client: int
    called_ns: int
    returned_ns: int
    reply: bytes | None


class ClientProcess:
    """One line client: its process, its pipes and its outstanding call."""

    def __init__(self, number: int, command: Sequence[str]) -> None:
        self.number = number
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin_fd = self.process.stdin.fileno()
        self.stdout_fd = self.process.stdout.fileno()
        self.stderr_fd = self.process.stderr.fileno()
        self.stderr_tail = b""
        self.pending = False
        self.scanning = False
        self.called_ns = 0
        self.received: list[bytes] = []
        self.tail = b""
        self.stray = b""
        """What it last wrote to stdout without being asked."""
        self.ended = False

    @property
    def said(self) -> list[str]:
        """The last lines it wrote to stderr."""
        return self.stderr_tail.decode(errors="backslashreplace").splitlines()

    def last_words(self) -> str:
        """What it said last on stderr, to be put behind what is wrong with it; empty when it said nothing."""
        return "; its last words: " + " / ".join(self.said[-3:]) if self.said else ""

    def kill(self) -> None:
        """End the client and whatever it started: the recipe runs a shell, which runs the client."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


class Fleet:
    """Line clients number 0 to `count` - 1, all started with the same command.

    That one of them waits is told on stderr, once; not so where it is `expected_to_wait`.
    """

    def __init__(self, command: Sequence[str], count: int, expected_to_wait: bool = False) -> None:
        self._poll = select.epoll()
        self._by_fd: dict[int, tuple[ClientProcess, bool]] = {}
        self.clients: list[ClientProcess] = []
        recipe = next((word for word in command if word.endswith("::client")), "")
        self._hint = f" (`./justw {recipe.removesuffix('client')}service` starts a service)" if recipe else ""
        self._waiting_is_told = expected_to_wait
        self._command = command
        try:
            for _ in range(count):
                self.add()
        except BaseException:
            self.stop(grace_seconds=0)
            raise

    def add(self, command: Sequence[str] | None = None) -> ClientProcess:
        """Start one more, by the same command as the others or by another one."""
        client = ClientProcess(len(self.clients), self._command if command is None else command)
        for fd, is_stdout in ((client.stdout_fd, True), (client.stderr_fd, False)):
            self._by_fd[fd] = (client, is_stdout)
            self._poll.register(fd, select.EPOLLIN)
        self.clients.append(client)
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(grace_seconds=STOP_SECONDS if error is None else 0)

    def send(self, number: int, line: bytes) -> None:
        """Write one line (without newline) to a client that has no call outstanding; its clock starts here."""
        client = self.clients[number]
        assert not client.pending, "one call at a time"
        client.pending = True
        client.scanning = line.startswith(b"SCAN ")
        data = line + b"\n"
        client.called_ns = time.monotonic_ns()
        try:
            written = os.write(client.stdin_fd, data)
            while written < len(data):
                written += os.write(client.stdin_fd, data[written:])
        except BrokenPipeError:
            pass  # the client ended: the end of its stdout completes the call

    def wait(self, timeout_seconds: float) -> list[Completion]:
        """The calls that completed; empty when none did within the timeout. A client that ended completes with None."""
        completions: list[Completion] = []
        for fd, _ in self._poll.poll(timeout_seconds):
            client, is_stdout = self._by_fd[fd]
            data = os.read(fd, READ_BYTES)
            if not data:
                self._poll.unregister(fd)
                if is_stdout:
                    client.ended = True
                    if client.pending:
                        client.pending = False
                        completions.append(Completion(client.number, client.called_ns, time.monotonic_ns(), None))
            elif not is_stdout:
                client.stderr_tail = (client.stderr_tail + data)[-STDERR_BYTES_KEPT:]
                if not self._waiting_is_told and data.endswith(b"\n"):
                    self._tell_waiting(client)
            else:
                self._received(client, data, completions)
        return completions

    def _tell_waiting(self, client: ClientProcess) -> None:
        """Pass the first word of waiting on to whoever watches: the clients would wait for ever, and in silence."""
        for line in client.said:
            if WAITING in line:
                self._waiting_is_told = True
                Progress().clear()
                complain(f"{line}{self._hint}")
                return

    def _received(self, client: ClientProcess, data: bytes, completions: list[Completion]) -> None:
        now_ns = time.monotonic_ns()
        if not client.received and data.endswith(b"\n") and not client.scanning and client.pending:
            client.pending = False
            completions.append(Completion(client.number, client.called_ns, now_ns, data[:-1]))
            return
        client.received.append(data)
        if client.scanning and len(client.received) == 1 and b"\n" in data:
            client.scanning = data.partition(b"\n")[0].endswith(b" BEGIN")  # else it is no answer to a SCAN
        if client.scanning:
            # The end marker may be split over reads; what follows it is no answer to a SCAN, and shows in the reply.
            has_ended = SCAN_END in data or SCAN_END in client.tail + data[: len(SCAN_END)]
            client.tail = (client.tail + data[-len(SCAN_END) :])[-len(SCAN_END) :]
        else:
            has_ended = data.endswith(b"\n")
        if not has_ended:
            return
        client.tail = b""
        reply = b"".join(client.received)
        client.received.clear()
        if client.pending:
            client.pending = False
            completions.append(Completion(client.number, client.called_ns, now_ns, reply.removesuffix(b"\n")))
        else:
            client.stray = reply

    def _end(self, client: ClientProcess) -> None:
        client.kill()
        client.process.wait()
        for fd in (client.stdout_fd, client.stderr_fd):
            self._by_fd.pop(fd, None)
        for pipe in (client.process.stdin, client.process.stdout, client.process.stderr):
            assert pipe
            try:
                pipe.close()
            except OSError:
                pass
        client.ended = True

    def dismiss(self, answer_seconds: float = STOP_SECONDS) -> dict[int, str]:
        """End the clients by STOP, which each must answer, and nothing else, before it exits with 0.

        What went wrong, by the client's number; empty when nothing did. Afterwards all have ended, by force if need be.
        """
        faults: dict[int, str] = {}
        for client in self.clients:
            self.send(client.number, b"STOP")
        deadline = time.monotonic() + answer_seconds
        while any(client.pending and not client.ended for client in self.clients) and time.monotonic() < deadline:
            for number, _, _, reply in self.wait(max(0.0, deadline - time.monotonic())):
                if reply != b"STOP":
                    faults[number] = f"answered STOP with {'nothing' if reply is None else show(reply)}"
        for client in self.clients:
            if client.pending:
                when = "it had ended before" if client.ended else f"{answer_seconds:g} s were not enough"
                faults[client.number] = f"did not answer STOP: {when}"
                client.kill()
        for client, status in zip(self.clients, self.stop(), strict=True):
            if status:
                faults.setdefault(client.number, f"exited with status {status} after STOP")
            elif client.stray:
                faults.setdefault(client.number, f"wrote unasked: {show(client.stray)}")
        return {number: fault + self.clients[number].last_words() for number, fault in sorted(faults.items())}

    def stop(self, grace_seconds: float = STOP_SECONDS) -> list[int]:
        """Close every stdin, let the clients finish, kill what is left; the exit statuses (negative for a signal)."""
        for client in self.clients:
            if client.process.stdin and not client.process.stdin.closed:
                try:
                    client.process.stdin.close()
                except OSError:
                    pass
        deadline = time.monotonic() + grace_seconds
        for client in self.clients:
            try:
                client.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                client.kill()
        if not self._poll.closed:
            self.wait(0)  # what they said last
        for client in self.clients:
            self._end(client)
        self._poll.close()
        return [client.process.returncode for client in self.clients]


def interrupt_on_terminate() -> None:
    """Make SIGTERM end this process as Ctrl-C does: by an exception, so that what it started is ended too."""

    def interrupt(number: int, frame: object) -> None:
        # One is enough: a recipe passes on what its process group was sent too, and would break the ending off.
        for each in heard:
            signal.signal(each, lambda number, frame: None)
        raise KeyboardInterrupt

    heard = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        heard.append(signal.SIGINT)
    for each in heard:
        signal.signal(each, interrupt)


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let what is done here come to its end before SIGTERM or Ctrl-C is heard. For the main thread."""
    held: list[int] = []
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each, handler in handlers.items():
        if callable(handler):
            signal.signal(each, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in held:
            signal.raise_signal(number)
