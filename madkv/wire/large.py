"""Large calls leave time for the small ones of others.

A small call shares its commit with whatever is under way; behind a mebibyte that takes dozens of times as long, and one
client that sends nothing else would make everybody's calls so slow. So while others have calls in flight, large calls
go one at a time, whosever they are, and after each there is a rest: for each of those others as long as it took, but
for no more than LARGE_RESTS_MAX of them. Where nobody else is there, nothing waits.
"""

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from madkv.limits import LARGE_REST_SECONDS_MAX, LARGE_RESTS_MAX


class Waiting(Protocol):
    """Whoever has a large call to make."""

    def release(self) -> None:
        """Try again now."""


class LargeCalls:
    """Those of all connections to one node."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.in_flight = 0
        self._began = 0.0  # when the first of those in flight did
        self._others = 0  # the most small calls of others that were seen beside these
        self._rests_until = 0.0
        self._waiting: dict[Waiting, None] = {}  # in order
        self._refusals = 0
        self._next: IDelayedCall | None = None

    def begins(self, connection: Waiting, others: int) -> bool:
        """Count in a large call beside `others`, small calls of others in flight; False when it has to wait.

        Then `connection` is released when it is its turn, and asks again.
        """
        now = self._clock.seconds()
        is_first = not self._waiting or next(iter(self._waiting)) is connection
        if now < self._rests_until or not is_first or (self.in_flight and others):
            self._waiting[connection] = None
            self._refusals += 1
            self._arrange()
            return False
        self._waiting.pop(connection, None)
        if not self.in_flight:
            self._began, self._others = now, 0
        self.in_flight += 1
        self._others = max(self._others, others)
        return True

    def ended(self, others: int) -> None:
        """One of them is through."""
        self.in_flight -= 1
        self._others = max(self._others, others)
        if not self.in_flight:
            now = self._clock.seconds()
            rest = (now - self._began) * min(self._others, LARGE_RESTS_MAX)
            self._rests_until = now + min(rest, LARGE_REST_SECONDS_MAX)
            self._arrange()

    def left(self, connection: Waiting) -> None:
        """It is closed."""
        self._waiting.pop(connection, None)
        if not self._waiting and self._next is not None:
            self._next.cancel()
            self._next = None

    def _arrange(self) -> None:
        if self._waiting and not self.in_flight and self._next is None:
            seconds = max(0.0, self._rests_until - self._clock.seconds())
            self._next = self._clock.callLater(seconds, self._let_in)

    def _let_in(self) -> None:
        self._next = None
        for connection in list(self._waiting):
            refusals = self._refusals
            connection.release()
            if next(iter(self._waiting), None) is connection:
                if self._refusals > refusals:
                    break  # Others have come meanwhile.
                del self._waiting[connection]  # Something else holds it up; it asks when it goes on.
        self._arrange()
