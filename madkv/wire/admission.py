"""Which connections a port takes, and which it lets go of, so that what all of them hold here stays bounded.

A connection *holds* what it has made this process keep and nobody has dealt with yet: half a box, boxes that wait, and
answers that its other side does not read. One that calls and reads holds nothing between its calls. So there are no
timers and no counts for each call: connections that hold something report it, and every SWEEP_SECONDS all are looked
at, for those that are silent or do not read. When together they hold too much, those go first that have held something
for longest and got on with nothing meanwhile.
"""

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from madkv.limits import (
    HANDSHAKE_SECONDS_MAX,
    HELD_BYTES_MAX,
    HOLDERS_AT_ANY_PACE,
    IDLE_SECONDS_MAX,
    LONG_BOX_BYTES_PER_SECOND,
    LONG_BOX_SECONDS_AHEAD,
    SWEEP_SECONDS,
    UNREAD_SECONDS_MAX,
)
from madkv.wire.lines import SeldomLine


class Connection(Protocol):
    """How this sees a connection: a `madkv.wire.protocol.BoxProtocol`."""

    was_heard: bool
    """Whether it has sent anything since the last sweep, which takes this back."""

    @property
    def held_bytes(self) -> int: ...
    @property
    def read_bytes(self) -> int | None:
        """How much of what waited for it the other side has read so far; None when nothing waits."""

    @property
    def peer(self) -> str: ...
    def abandon(self) -> None:
        """Close it at once, without a line in the log."""


class _Seen:
    """What the sweeps have found out about one connection."""

    __slots__ = ("heard", "is_known", "read", "read_bytes")

    def __init__(self, now: float) -> None:
        self.is_known = False
        """Whether it has ever sent anything."""
        self.heard = self.read = now
        """When it was last found to have sent something, and to have read something or have nothing to read."""
        self.read_bytes: int | None = None


class Admission:
    """The connections of one port."""

    log = Logger()

    def __init__(self, clock: IReactorTime, connections_max: int, bytes_max: int = HELD_BYTES_MAX) -> None:
        self._clock = clock
        self.connections_max = connections_max
        """May be lowered before the port is opened."""
        self._bytes_max = bytes_max
        self._seen: dict[Connection, _Seen] = {}
        self._held: dict[Connection, int] = {}
        """Bytes, as reported last: those that have held something for longest without getting on come first."""
        self.held_bytes = 0
        self._next_part = 0.0  # when those of long boxes that came so far have had their time
        self._next_sweep: IDelayedCall | None = None
        self._refusals = SeldomLine(clock, self.log)
        self._closings = SeldomLine(clock, self.log)

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self._seen)

    def admits(self) -> bool:
        """Whether there is room for another connection; a line in the log when there is none."""
        if len(self._seen) < self.connections_max:
            return True
        self._refusals.say(f"refused a connection: there are {self.connections_max:,}, and no more are taken")
        return False

    def joined(self, connection: Connection) -> None:
        """It is open."""
        self._seen[connection] = _Seen(self._clock.seconds())
        if self._next_sweep is None:
            self._next_sweep = self._clock.callLater(SWEEP_SECONDS, self._sweep)

    def tell_closed(self, line: str) -> None:
        """Log that a connection was closed, and why; but not each, since whoever sends garbage may open many."""
        self._closings.say(line)

    def left(self, connection: Connection) -> None:
        """It is closed."""
        self._seen.pop(connection, None)
        self.holds_nothing(connection)
        if not self._seen and self._next_sweep is not None:
            self._next_sweep.cancel()
            self._next_sweep = None

    # --- What is held -----------------------------------------------------------------------------------------------

    def holds(self, connection: Connection, held_bytes: int, *, got_on: bool) -> None:
        """It holds so much now; whether it has got on since the last time, by a box that was whole."""
        before = self._held.pop(connection, 0) if got_on else self._held.get(connection, 0)
        self._held[connection] = held_bytes
        self.held_bytes += held_bytes - before
        if self.held_bytes > self._bytes_max:
            self._shed()

    def holds_nothing(self, connection: Connection) -> None:
        """It holds nothing any more."""
        self.held_bytes -= self._held.pop(connection, 0)

    def pace(self, size_bytes: int) -> float:
        """So many bytes of a long box came on a connection: how many seconds nothing more is to be read from it.

        Few connections are left alone: what they send is soon dealt with, and they have a pace by that.
        """
        if len(self._held) <= HOLDERS_AT_ANY_PACE:
            return 0.0
        now = self._clock.seconds()
        self._next_part = max(self._next_part, now) + size_bytes / LONG_BOX_BYTES_PER_SECOND
        return self._next_part - LONG_BOX_SECONDS_AHEAD - now

    def _shed(self) -> None:
        # What was reported may have become less since.
        self._held = {connection: held for connection in self._held if (held := connection.held_bytes)}
        self.held_bytes = sum(self._held.values())
        if self.held_bytes <= self._bytes_max:
            return
        # A little more than is needed now, or the next byte would need it again.
        for connection in list(self._held):
            if self.held_bytes * 8 <= self._bytes_max * 7:
                break
            self.holds_nothing(connection)
            self._close(connection, "all together had too much here, and it had something for longest")

    def _close(self, connection: Connection, why: str) -> None:
        self.tell_closed(f"closed the connection of {connection.peer}: {why}")
        connection.abandon()
        self._seen.pop(connection, None)

    # --- Silence ----------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._next_sweep = self._clock.callLater(SWEEP_SECONDS, self._sweep)
        now = self._clock.seconds()
        for connection, seen in list(self._seen.items()):
            if connection.was_heard:
                connection.was_heard, seen.is_known, seen.heard = False, True, now
            read_bytes = connection.read_bytes
            if read_bytes is None or read_bytes != seen.read_bytes:
                seen.read_bytes, seen.read = read_bytes, now
            if now - seen.read >= UNREAD_SECONDS_MAX:
                self._close(connection, f"it reads nothing for {UNREAD_SECONDS_MAX:g} seconds")
            elif now - seen.heard >= (seconds := IDLE_SECONDS_MAX if seen.is_known else HANDSHAKE_SECONDS_MAX):
                self._close(connection, f"it says nothing for {seconds:g} seconds")
