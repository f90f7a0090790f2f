"""What asks too much of a cluster: connections that are idle, flood, do not read, hold half a box, or say nothing.

    python -m madkv.testing.flooding --server HOST:PORT --p2p HOST:PORT,… --idle N --half N

It says `ready` and how many idle connections there are, goes on until its stdin is closed, and then says what came of
it as JSON (`Counts`).
"""

import json
import resource
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence

import attrs

from madkv.addresses import Address, parse_address, parse_addresses
from madkv.limits import BOX_BYTES_MAX, KIB, PEER_BOX_BYTES_MAX, VALUE_BYTES_MAX
from madkv.testing.options import Parser, whole
from madkv.wire import codec
from madkv.wire.boxes import blob, field

IDLE_AT_ONCE = 200
"""Idle connections that are made before the first of them has to be answered."""
FLOOD_KEYS = 64
UNREAD_CALLS = 1000
STORM_SECONDS = 0.05
STORM_CONNECTIONS = 5
"""So many more connections are made every STORM_SECONDS, of which none ever says anything."""
RETRY_SECONDS = 5.0
CONNECT_SECONDS_MAX = 30.0
HELLO = codec.request(1, codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
VALUE = blob(b"value", b"v" * VALUE_BYTES_MAX)


@attrs.define
class Counts:
    """What came of it."""

    idle: int = 0
    """Idle connections that were made and answered."""
    idle_closed: int = 0
    puts: int = 0
    """Values that the flood has had stored."""
    puts_refused: int = 0
    closed: int = 0
    """Connections closed by the other side that flooded, did not read or held half a box."""
    storm: int = 0
    storm_closed: int = 0


class Attack:
    """Everything, in one loop."""

    def __init__(self, server: Address, p2p: list[Address], half: int) -> None:
        self._server = server
        self._poll = select.epoll()
        self._by_fd: dict[int, tuple[socket.socket, Callable[[int], None]]] = {}
        self._again: list[tuple[float, Callable[[], None]]] = []
        self._next_storm = 0.0
        self._tag = 0
        self.counts = Counts()
        self._halves = [(server, _half_box(BOX_BYTES_MAX))] * (half - half // 2)
        theirs = _half_box(PEER_BOX_BYTES_MAX)
        self._halves += [(p2p[number % len(p2p)], theirs) for number in range(half // 2)]

    def connect_idle(self, count: int) -> None:
        """Connections that say Hello and nothing more. Raises OSError."""
        while self.counts.idle < count:
            some = [self._connected() for _ in range(min(IDLE_AT_ONCE, count - self.counts.idle))]
            for connection in some:
                if not connection.recv(KIB):
                    raise ConnectionError(f"closed, with {self.counts.idle:,} others there")
                self.counts.idle += 1
                self._add(connection, select.EPOLLIN, self._idle_closed(connection))

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(self._server, CONNECT_SECONDS_MAX)
        connection.sendall(HELLO)
        return connection

    def _idle_closed(self, connection: socket.socket) -> Callable[[int], None]:
        def ready(event: int) -> None:
            self.counts.idle_closed += 1
            self._remove(connection)

        return ready

    def run(self) -> None:
        """Until stdin is closed."""
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._flood()
        self._read_nothing()
        for address, box in self._halves:
            self._hold_half_a_box(address, box)
        while True:
            now = time.monotonic()
            if now >= self._next_storm:
                self._next_storm = now + STORM_SECONDS
                for _ in range(STORM_CONNECTIONS):
                    self._storm()
            due = [start for at, start in self._again if at <= now]
            self._again = [(at, start) for at, start in self._again if at > now]
            for start in due:
                start()
            for fd, event in self._poll.poll(STORM_SECONDS):
                if fd == sys.stdin.fileno():
                    return
                if fd in self._by_fd:
                    self._by_fd[fd][1](event)

    # --- The kinds --------------------------------------------------------------------------------------------------

    def _flood(self) -> None:
        """Store the longest values as fast as they are taken, and read the answers."""
        connection = self._connect(self._server)
        rest = memoryview(b"")

        def ready(event: int) -> None:
            nonlocal rest
            try:
                if event & select.EPOLLIN:
                    data = connection.recv(64 * KIB)
                    if not data:
                        raise ConnectionError
                    self.counts.puts += data.count(b"_answer")
                    self.counts.puts_refused += data.count(b"_error_code")
                if event & select.EPOLLOUT:
                    if not rest:
                        self._tag += 1
                        key = field(b"key", b"flood-%d" % (self._tag % FLOOD_KEYS))
                        rest = memoryview(codec.request(self._tag, codec.PUT, key + VALUE))
                    rest = rest[connection.send(rest) :]
            except BlockingIOError:
                pass
            except OSError:
                self._closed(connection, self._flood)

        self._add(connection, select.EPOLLIN | select.EPOLLOUT, ready)

    def _read_nothing(self) -> None:
        """Ask for the longest values and read none."""
        connection = self._connect(self._server, receive_bytes=4 * KIB)
        put = codec.request(1, codec.PUT, field(b"key", b"unread") + VALUE)
        gets = b"".join(codec.request(tag, codec.GET, field(b"key", b"unread")) for tag in range(2, UNREAD_CALLS))
        self._send_and_hold(connection, put + gets, self._read_nothing)

    def _hold_half_a_box(self, address: Address, box: bytes) -> None:
        """Send what is no whole box, and wait; all over again when it is closed."""
        self._send_and_hold(self._connect(address), box, lambda: self._hold_half_a_box(address, box))

    def _storm(self) -> None:
        """One more connection that says nothing."""
        connection = self._connect(self._server)
        self.counts.storm += 1

        def ready(event: int) -> None:
            self.counts.storm_closed += 1
            self._remove(connection)

        self._add(connection, select.EPOLLIN, ready)

    # --- What they share --------------------------------------------------------------------------------------------

    def _send_and_hold(self, connection: socket.socket, data: bytes, again: Callable[[], None]) -> None:
        rest = memoryview(data)

        def ready(event: int) -> None:
            nonlocal rest
            try:
                if event & (select.EPOLLHUP | select.EPOLLERR):
                    raise ConnectionError
                if event & select.EPOLLRDHUP:
                    raise ConnectionError
                rest = rest[connection.send(rest) :]
                if not rest:
                    self._poll.modify(connection.fileno(), select.EPOLLRDHUP)
            except BlockingIOError:
                pass
            except OSError:
                self._closed(connection, again)

        self._add(connection, select.EPOLLOUT | select.EPOLLRDHUP, ready)

    def _connect(self, address: Address, receive_bytes: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.setblocking(False)
        connection.connect_ex(address)
        return connection

    def _add(self, connection: socket.socket, events: int, ready: Callable[[int], None]) -> None:
        self._by_fd[connection.fileno()] = connection, ready
        self._poll.register(connection.fileno(), events)

    def _remove(self, connection: socket.socket) -> None:
        del self._by_fd[connection.fileno()]
        connection.close()

    def _closed(self, connection: socket.socket, again: Callable[[], None]) -> None:
        self.counts.closed += 1
        self._remove(connection)
        self._again.append((time.monotonic() + RETRY_SECONDS, again))


def _half_box(bytes_max: int) -> bytes:
    """The longest box that a port takes, but for its last byte and what its other fields need."""
    return codec.request(1, codec.PUT, field(b"key", b"half") + blob(b"value", b"v" * (bytes_max - KIB)))[:-1]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="flooding", description=__doc__)
    parser.add_argument("--server", type=parse_address, required=True, help="whom most of it is for")
    parser.add_argument("--p2p", type=parse_addresses, required=True, help="p2p ports, for half of the half boxes")
    parser.add_argument("--idle", type=whole, required=True, help="idle connections")
    parser.add_argument("--half", type=whole, required=True, help="connections with half a box")
    options = parser.parse_args(argv)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    attack = Attack(options.server, options.p2p, options.half)
    attack.connect_idle(options.idle)
    print("ready", attack.counts.idle, flush=True)
    attack.run()
    print(json.dumps(attrs.asdict(attack.counts)), flush=True)


if __name__ == "__main__":
    main()
