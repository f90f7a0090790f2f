"""Cuts kept open between the pages of a scan: bounded per connection and in all, each for a bounded time."""

from collections import OrderedDict

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from madkv.errors import ScanExpired
from madkv.limits import SCAN_CURSOR_SECONDS_MAX, SCAN_CURSORS_MAX, SCAN_CURSORS_PER_CONNECTION_MAX
from madkv.storage.memory import Cut


@attrs.define
class _Kept:
    cut: Cut
    owner: object
    until: float


class Cuts:
    """Open cuts by cursor. A cursor is a number that is good on the connection it was given to, and for one page."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # in order of `until`, the soonest first
        self._per_owner: dict[object, int] = {}
        self._last_cursor = 0
        self._expiry: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, cut: Cut, owner: object) -> int:
        """A cursor for the rest of `cut`. Beyond the bounds the cut that has waited longest is given up for it."""
        if self._per_owner.get(owner, 0) >= SCAN_CURSORS_PER_CONNECTION_MAX:
            self._forget(next(cursor for cursor, kept in self._kept.items() if kept.owner is owner))
        elif len(self._kept) >= SCAN_CURSORS_MAX:
            self._forget(next(iter(self._kept)))
        self._last_cursor += 1
        self._kept[self._last_cursor] = _Kept(cut, owner, self._clock.seconds() + SCAN_CURSOR_SECONDS_MAX)
        self._per_owner[owner] = self._per_owner.get(owner, 0) + 1
        self._schedule()
        return self._last_cursor

    def take(self, cursor: int, owner: object) -> Cut:
        """The cut behind a cursor, which is used up by this. Raises ScanExpired when it is not kept (any more)."""
        kept = self._kept.get(cursor)
        if kept is None or kept.owner is not owner:
            raise ScanExpired("this scan's point is no longer kept; scan again")
        self._remove(cursor)
        return kept.cut

    def close_all_of(self, owner: object) -> None:
        """The owner's connection is gone."""
        if owner in self._per_owner:
            for cursor in [cursor for cursor, kept in self._kept.items() if kept.owner is owner]:
                self._forget(cursor)

    def _forget(self, cursor: int) -> None:
        self._remove(cursor).cut.close()

    def _remove(self, cursor: int) -> _Kept:
        kept = self._kept.pop(cursor)
        self._per_owner[kept.owner] -= 1
        if not self._per_owner[kept.owner]:
            del self._per_owner[kept.owner]
        if not self._kept and self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        return kept

    def _schedule(self) -> None:
        if self._expiry is None and self._kept:
            soonest = next(iter(self._kept.values())).until
            self._expiry = self._clock.callLater(max(0.0, soonest - self._clock.seconds()), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._clock.seconds()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._forget(next(iter(self._kept)))
        self._schedule()
