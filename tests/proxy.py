"""A TCP proxy between a client and a server that knows where one box ends, and that breaks connections on purpose."""

import random
import socket
import threading
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Self

from madkv.wire.boxes import COMMAND, Box, parse_boxes


class Fate(Enum):
    """What becomes of a box."""

    PASS = "passed on"
    CUT = "not passed on; the connection is cut"
    HALF = "half of it is passed on, then the connection is cut"
    PASS_AND_CUT = "passed on, then the connection is cut"
    HOLD = "kept, with all that follows it, until the proxy ends"


Decide = Callable[[str, Box], Fate]
"""Called with "request" or "reply" and the box; from several threads, one at a time."""


def always_pass(direction: str, box: Box) -> Fate:
    """A proxy that does nothing."""
    return Fate.PASS


def at_random(seed: int, share: float) -> Decide:
    """Break that share of the boxes, in both directions and in every way that ends the connection."""
    rng = random.Random(seed)

    def decide(direction: str, box: Box) -> Fate:
        if rng.random() >= share:
            return Fate.PASS
        return rng.choice([Fate.CUT, Fate.HALF, Fate.PASS_AND_CUT])

    return decide


class LoseOnce:
    """Break one box of that command and let everything else pass."""

    def __init__(self, command: bytes, direction: str, fate: Fate) -> None:
        self._command = command
        self._direction = direction
        self._fate = fate
        self._asked = b""
        self.lost = False
        self.happened = threading.Event()

    def __call__(self, direction: str, box: Box) -> Fate:
        if direction == "request":
            self._asked = box[COMMAND]
        if self.lost or direction != self._direction or self._asked != self._command:
            return Fate.PASS
        self.lost = True
        self.happened.set()
        return self._fate


class Relay:
    """Listens at `address` and connects whoever comes to a server. Use it in a `with` statement.

    A subclass says in `_pump` how bytes are carried. Its own attributes must be there before this constructor runs.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self.refuse = threading.Event()
        """While set, connections are closed as soon as they are made."""
        self.connections = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        with self._lock:
            for sock in self._sockets:
                _cut(sock)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listening.close()
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.refuse.is_set():
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self.connections += 1
                self._sockets |= {client, server}
                for args in ((client, server, "request"), (server, client, "reply")):
                    thread = threading.Thread(target=self._pump, args=args, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        raise NotImplementedError


class Proxy(Relay):
    """`decide` may be exchanged at any time."""

    def __init__(self, host: str, port: int, decide: Decide = always_pass) -> None:
        self.decide = decide
        self.holds = threading.Event()
        """Set once a box is being held."""
        self.requests: list[bytes] = []
        """Every request that was seen, whatever became of it."""
        self.broken = 0
        super().__init__(host, port)

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        rest = b""
        try:
            while data := source.recv(1 << 18):
                raw_boxes, rest = split_boxes(rest + data)
                for raw, box in raw_boxes:
                    if not self._pass(raw, box, sink, direction):
                        return
        except OSError:
            pass
        finally:
            _cut(source)
            _cut(sink)

    def _pass(self, raw: bytes, box: Box, sink: socket.socket, direction: str) -> bool:
        with self._lock:
            if direction == "request":
                self.requests.append(raw)
            fate = self.decide(direction, box)
            self.broken += fate is not Fate.PASS
        match fate:
            case Fate.HOLD:
                self.holds.set()
                self._ended.wait()
            case Fate.HALF:
                sink.sendall(raw[: len(raw) // 2])
            case Fate.PASS | Fate.PASS_AND_CUT:
                sink.sendall(raw)
        return fate is Fate.PASS


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def split_boxes(data: bytes) -> tuple[list[tuple[bytes, Box]], bytes]:
    """Every whole box, as its bytes and as what they mean, and the rest."""
    found: list[tuple[bytes, Box]] = []
    start = position = 0
    while position + 2 <= len(data):
        length = int.from_bytes(data[position : position + 2], "big")
        if length:
            value_at = position + 2 + length
            position = value_at + 2 + int.from_bytes(data[value_at : value_at + 2], "big")
            continue
        position += 2
        boxes: list[Box] = []
        assert parse_boxes(data[start:position], boxes) == position - start
        found.append((data[start:position], boxes[0]))
        start = position
    return found, data[start:]


def is_write(box: Box) -> bool:
    """Whether this request is a write in a session."""
    return box.get(COMMAND) in (b"Put", b"Swap", b"Delete")


class SlowLink(Relay):
    """A link that carries so many bytes a second towards the server and no more."""

    CHUNK_BYTES = 16 * 1024

    def __init__(self, host: str, port: int, bytes_per_second: int) -> None:
        self._seconds_a_chunk = self.CHUNK_BYTES / bytes_per_second
        super().__init__(host, port)

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        seconds = self._seconds_a_chunk if direction == "request" else 0.0
        try:
            while data := source.recv(self.CHUNK_BYTES):
                self._ended.wait(seconds * len(data) / self.CHUNK_BYTES)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
