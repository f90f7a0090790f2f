"""Backups on their way: cuts of all that a group holds, which whoever keeps them reads page by page.

A cut is of committed state and linearizable: it waits for a read of its own, so that every write that was acknowledged
before is in it, and shows what is applied then, whatever comes later. Each holds one LMDB read transaction, and so the
pages that it speaks of: there are few at once, and none lives for long. A page is read on a thread, which may wait for
the disk, and no page is read before it is asked for.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from madkv.errors import Busy, InternalError, InvalidArgument, MadKVError, ScanExpired
from madkv.limits import BACKUP_IDLE_SECONDS_MAX, BACKUP_SECONDS_MAX, BACKUPS_MAX, SCAN_PAGE_BYTES, SCAN_PAGE_PAIRS
from madkv.ranges import Ownership
from madkv.server.host import ReplicaHost
from madkv.storage.overlay import PairsCut
from madkv.wire import codec
from madkv.wire.boxes import blob, field
from madkv.wire.lines import SeldomLine

Page = tuple[bytes, bool]
"""Pairs as they travel, and whether they are the last."""


class Owner(Protocol):
    """The connection of whoever makes a backup."""

    open: bool


@attrs.define(eq=False)
class _Backup:
    owner: Owner
    cut: PairsCut
    pairs: Iterator[tuple[bytes, bytes]]
    ends: float
    expiry: IDelayedCall | None = None
    is_reading: bool = False
    """Whether a thread reads a page: nobody may close the cut meanwhile."""
    is_over: bool = False


class Backups:
    """Those of one replica. A cursor names one of them, on the connection that it was given to."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        host: ReplicaHost,
        ownership: Callable[[], Ownership],
        in_thread: Callable[[Callable[[], Page]], Deferred[Page]],
    ) -> None:
        """`in_thread` calls a function on some thread."""
        self._clock = clock
        self._host = host
        self._ownership = ownership
        self._in_thread = in_thread
        self._beginnings = SeldomLine(clock, self.log)
        self._backups: dict[int, _Backup] = {}
        self._beginning = 0
        self._reading = 0
        self._none_reads: Deferred[None] | None = None
        self._last_cursor = 0
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._backups)

    async def begin(self, owner: Owner) -> bytes:
        """The fields of the answer to a first call: what the cut is of, and its first page.

        Raises what a read raises here, and Busy when there are as many as may be.
        """
        if self._is_closed or len(self._backups) + self._beginning >= BACKUPS_MAX:
            raise Busy(f"this server makes {BACKUPS_MAX} backups at a time, and not more")
        self._beginning += 1
        try:
            await self._read_point()
        finally:
            self._beginning -= 1
        if self._is_closed:
            raise Busy("this server is ending")
        if not owner.open:
            raise ScanExpired("whoever asked for this backup is gone")
        # In the turn in which the read was released, or one later in which nothing was applied since.
        host, ownership = self._host, self._ownership()
        index = host.machine.last_applied
        term = host.replica.core.log.term_of(index)
        assert term is not None, "the log goes back to what is applied"
        cut = host.pairs.cut()
        self._last_cursor += 1
        backup = _Backup(owner, cut, iter(cut), self._clock.seconds() + BACKUP_SECONDS_MAX)
        self._backups[self._last_cursor] = backup
        self._beginnings.say(f"a backup of group {host.group} begins, as of entry {index}")
        head = field(b"group", host.group.encode()) + codec.integer(b"index", index) + codec.integer(b"term", term)
        return head + blob(b"ownership", ownership.encode()) + await self._next(self._last_cursor, backup)

    async def go_on(self, cursor: int, owner: Owner) -> bytes:
        """The fields of the answer to a later call. Raises ScanExpired when the cut is not kept any more."""
        backup = self._backups.get(cursor)
        if backup is None or backup.owner is not owner:
            raise ScanExpired("this backup's point is no longer kept; begin again")
        if backup.is_reading:
            raise InvalidArgument("a backup is read one page at a time")
        return await self._next(cursor, backup)

    def close_all_of(self, owner: Owner) -> None:
        """The owner's connection is gone."""
        for cursor in [cursor for cursor, backup in self._backups.items() if backup.owner is owner]:
            self._end(cursor)

    async def close(self) -> None:
        """End them all; when this returns, no thread reads any more."""
        self._is_closed = True
        for cursor in list(self._backups):
            self._end(cursor)
        if self._reading:
            self._none_reads = Deferred()
            await self._none_reads

    async def _read_point(self) -> None:
        """Wait until all that was acknowledged so far is applied here, and nobody else leads. Raises as a read."""
        ranges = self._ownership().ranges
        released: Deferred[object] = Deferred()
        self._host.replica.read(ranges[0].start if ranges else b"", released.callback)
        result = await released
        if isinstance(result, MadKVError):
            raise result

    async def _next(self, cursor: int, backup: _Backup) -> bytes:
        if backup.expiry is not None:
            backup.expiry.cancel()
            backup.expiry = None
        pairs = backup.pairs
        backup.is_reading = True
        self._reading += 1
        try:
            page, is_last = await self._in_thread(lambda: _page(pairs))
        except BaseException as error:
            backup.is_over = True
            if isinstance(error, MadKVError):  # of the store, and for operators: so they get its words
                raise InternalError(f"the data of {self._host.group} cannot be read: {error}") from None
            raise
        finally:
            backup.is_reading = False
            if backup.is_over:
                backup.cut.close()
                self._backups.pop(cursor, None)
            self._reading -= 1
            if self._none_reads is not None and not self._reading:
                self._none_reads.callback(None)
        if backup.is_over:
            raise ScanExpired("this backup was ended meanwhile")
        fields = blob(b"pairs", page)
        seconds_left = backup.ends - self._clock.seconds()
        if is_last:
            self._end(cursor)
        elif seconds_left <= 0:
            self._end(cursor)
            raise ScanExpired(f"a backup may take {BACKUP_SECONDS_MAX:g} s for each group, and this has taken longer")
        else:
            fields += codec.integer(b"cursor", cursor)
            backup.expiry = self._clock.callLater(min(BACKUP_IDLE_SECONDS_MAX, seconds_left), self._end, cursor)
        return fields

    def _end(self, cursor: int) -> None:
        """Close it: at once, or as soon as the thread that reads it is through; until then it counts as one."""
        backup = self._backups[cursor]
        backup.is_over = True
        if backup.expiry is not None and backup.expiry.active():
            backup.expiry.cancel()
        if not backup.is_reading:
            del self._backups[cursor]
            backup.cut.close()


def _page(pairs: Iterator[tuple[bytes, bytes]]) -> Page:
    page: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in pairs:
        page.append((key, value))
        size += len(key) + len(value)
        if size >= SCAN_PAGE_BYTES or len(page) >= SCAN_PAGE_PAIRS:
            return codec.encode_pairs(page), False
    return codec.encode_pairs(page), True
