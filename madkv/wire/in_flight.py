"""How many calls are in flight: of all connections to one node, and what each of them may have of that."""

from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from madkv.errors import Busy
from madkv.limits import CALL_BYTES_MAX, CALL_BYTES_SHARE, CALLS_MAX, CALLS_SHARE, LARGE_CALL_BYTES
from madkv.wire.large import LargeCalls


class NotNow(Exception):
    """A large call has to wait for its turn: the connection is released when it is there, and the call begins again."""


class Connection(Protocol):
    """How this sees a connection: a `madkv.wire.protocol.BoxProtocol`."""

    is_held: bool

    def hold(self) -> None: ...
    def release(self) -> None: ...


class CallsInFlight:
    """Those of all connections to one node: what was begun and has not ended."""

    def __init__(self, clock: IReactorTime, kind: str) -> None:
        """`kind` is what the node is, in a line for people."""
        self.kind = kind
        self.count = 0
        self.size_bytes = 0
        self.large = LargeCalls(clock)


class Share:
    """Those of one connection. With its share in flight it is held; it goes on when calls have ended."""

    __slots__ = ("_all", "_connection", "_count", "_large", "_size_bytes")

    def __init__(self, in_flight: CallsInFlight, connection: Connection) -> None:
        self._all = in_flight
        self._connection = connection
        self._count = 0
        self._size_bytes = 0
        self._large = 0

    def begin(self, size_bytes: int) -> None:
        """Count a call in. Raises Busy when too much is in flight in all, and NotNow."""
        in_flight = self._all
        calls_left = CALLS_MAX - in_flight.count - 1
        bytes_left = CALL_BYTES_MAX - in_flight.size_bytes - size_bytes
        if calls_left < 0 or bytes_left < 0:
            raise Busy(f"the {in_flight.kind} has as many calls in flight as it takes")
        if size_bytes >= LARGE_CALL_BYTES:
            if not in_flight.large.begins(self._connection, self._others):
                raise NotNow
            self._large += 1
        in_flight.count += 1
        in_flight.size_bytes += size_bytes
        self._count += 1
        self._size_bytes += size_bytes
        if self._count * CALLS_SHARE >= calls_left or self._size_bytes * CALL_BYTES_SHARE >= bytes_left:
            self._connection.hold()

    def end(self, size_bytes: int) -> None:
        """It was answered, or will not be."""
        in_flight = self._all
        if size_bytes >= LARGE_CALL_BYTES:
            in_flight.large.ended(self._others)
            self._large -= 1
        in_flight.count -= 1
        in_flight.size_bytes -= size_bytes
        self._count -= 1
        self._size_bytes -= size_bytes
        if (
            self._connection.is_held
            and self._count * CALLS_SHARE < CALLS_MAX - in_flight.count
            and self._size_bytes * CALL_BYTES_SHARE <= CALL_BYTES_MAX - in_flight.size_bytes
        ):
            self._connection.release()

    def leave(self) -> None:
        """The connection is closed: it waits for no turn any more. Its calls still end, each by itself."""
        self._all.large.left(self._connection)

    @property
    def _others(self) -> int:
        """Calls of other connections in flight that are not large, between calls of this one."""
        in_flight = self._all
        return in_flight.count - self._count - (in_flight.large.in_flight - self._large)
