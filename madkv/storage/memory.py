"""Sorted pairs in memory, with cuts: readers that keep seeing the pairs as they were when the cut was taken.

Theory of operation. A sorted list of keys stands beside a dict of pairs. Taking a cut copies nothing: it notes the
current version. While any cut is open, each write gets the next version and notes the value that it replaces under its
key. A cut of version v reads a key as the oldest value noted with a version above v, or the live value if there is
none; so a key that has a note above every open cut needs no further one. Notes that no open cut needs are dropped; when
they outgrow their bound, the oldest cut is given up.
"""

from collections import deque
from collections.abc import Iterator

from sortedcontainers import SortedDict, SortedList

from madkv.errors import ScanExpired
from madkv.limits import SCAN_PAGE_BYTES, SCAN_PAGE_KEYS_WALKED, SCAN_PAGE_PAIRS, SCAN_UNDO_BYTES_MAX

Pair = tuple[bytes, bytes]

NOTES_DROPPED_PER_WRITE = 16
NOTE_OVERHEAD_BYTES = 300
"""About what one note costs in memory beside its key and the value that it keeps."""


class Cut:
    """The pairs with start <= key <= end at the moment when it was taken, read page by page. Close it when done."""

    def __init__(self, store: "MemoryStore", start: bytes, end: bytes, version: int) -> None:
        self._store = store
        self._next = start
        self._inclusive = True
        self._end = end
        self.version = version
        self.open = True
        self.done = start > end
        """Whether the last page has been read."""

    def page(self, bytes_max: int = SCAN_PAGE_BYTES, pairs_max: int = SCAN_PAGE_PAIRS) -> list[Pair]:
        """The next pairs in key order: up to and including the one that reaches a bound.

        It may hold few or none and not be the last, when many keys were looked at that were not there.

        Raises ScanExpired when the store had to give this cut up.
        """
        if not self.open:
            raise ScanExpired("the cut was given up to make room; scan again")
        pairs: list[Pair] = []
        if self.done:
            return pairs
        size = 0
        walk = self._store._walk(self._next, self._end, self._inclusive, self.version)
        for walked, (key, value) in enumerate(walk, 1):
            if value is not None:
                pairs.append((key, value))
                size += len(key) + len(value)
            if size >= bytes_max or len(pairs) >= pairs_max or walked >= SCAN_PAGE_KEYS_WALKED:
                self._next, self._inclusive = key, False
                return pairs
        self.done = True
        return pairs

    def close(self) -> None:
        """Let the store forget what it keeps for this cut. Closing twice is no error."""
        if self.open:
            self.open = False
            self._store._closed(self)


class MemoryStore:
    """The pairs of a replica that keeps them in memory alone."""

    waiting_bytes = 0
    """What waits to be written to a store: nothing does."""

    def __init__(self, undo_bytes_max: int = SCAN_UNDO_BYTES_MAX) -> None:
        self._live: dict[bytes, bytes] = {}
        self._keys: SortedList = SortedList()
        self._version = 0
        self._cuts: deque[Cut] = deque()  # oldest first, so by version
        self._replaced: SortedDict = SortedDict()  # key -> [(version, old value or None), ...], versions rising
        self._noted: deque[tuple[int, bytes, int]] = deque()  # (version, key, bytes), versions rising
        self._undo_bytes = 0
        self._undo_bytes_max = undo_bytes_max

    def __len__(self) -> int:
        return len(self._live)

    def freeze(self) -> dict[bytes, bytes | None]:
        """As an overlay's, when a commit begins. No store beside this one holds the pairs."""
        return {}

    def thaw(self) -> None:
        """As an overlay's, when that commit is done."""

    def forget(self) -> None:
        """As an overlay's, when a snapshot was installed; a replica in memory has no peer to send it one."""
        raise AssertionError("pairs in memory come from no snapshot")

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        return self._live.get(key)

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Set the value of `key`; the value it had, or None."""
        old = self._live.get(key)
        if self._cuts:
            self._note(key, old)
        if old is None:
            self._keys.add(key)
        self._live[key] = value
        return old

    def delete(self, key: bytes) -> bytes | None:
        """Remove `key` if it is there; the value it had, or None."""
        old = self._live.pop(key, None)
        if old is not None:
            if self._cuts:
                self._note(key, old)
            self._keys.remove(key)
        return old

    def cut(self, start: bytes, end: bytes) -> Cut:
        """All pairs with start <= key <= end, as they are now."""
        cut = Cut(self, start, end, self._version)
        self._cuts.append(cut)
        return cut

    def _note(self, key: bytes, old: bytes | None) -> None:
        notes = self._replaced.setdefault(key, [])
        if notes and notes[-1][0] > self._cuts[-1].version:
            return  # every open cut reads that note or an older one
        self._version += 1
        size = NOTE_OVERHEAD_BYTES + len(key) + len(old or b"")
        notes.append((self._version, old))
        self._noted.append((self._version, key, size))
        self._undo_bytes += size
        self._drop_notes(NOTES_DROPPED_PER_WRITE)
        while self._undo_bytes > self._undo_bytes_max and self._cuts:
            if not self._drop_notes(NOTES_DROPPED_PER_WRITE):
                self._cuts[0].close()

    def _closed(self, cut: Cut) -> None:
        self._cuts.remove(cut)
        if not self._cuts:
            self._replaced, self._noted, self._undo_bytes = SortedDict(), deque(), 0

    def _drop_notes(self, count: int) -> bool:
        """Drop up to `count` notes that no open cut needs; whether there were any.

        A few with each write, rather than all when a cut is closed: there may be hundreds of thousands.
        """
        oldest = self._cuts[0].version if self._cuts else self._version
        dropped = False
        while count and self._noted and self._noted[0][0] <= oldest:
            version, key, size = self._noted.popleft()
            notes = self._replaced[key]
            assert notes[0][0] == version, "notes of a key are dropped in the order in which they were made"
            del notes[0]
            if not notes:
                del self._replaced[key]
            self._undo_bytes -= size
            count -= 1
            dropped = True
        return dropped

    def _walk(self, start: bytes, end: bytes, inclusive: bool, version: int) -> Iterator[tuple[bytes, bytes | None]]:
        """Keys from `start` (itself only if `inclusive`) to `end`, with their values at `version`, if they had one.

        Nothing may change meanwhile.
        """
        bounds = (inclusive, True)
        live, replaced = self._live, self._replaced
        if not replaced:
            for key in self._keys.irange(start, end, bounds):
                yield key, live[key]
            return
        for key in _merged(self._keys.irange(start, end, bounds), replaced.irange(start, end, bounds)):
            value = live.get(key)
            for noted_version, old in replaced.get(key, ()):
                if noted_version > version:
                    value = old
                    break
            yield key, value


def _merged(left: Iterator[bytes], right: Iterator[bytes]) -> Iterator[bytes]:
    """Two ascending sequences as one, each key once."""
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        if a < b:
            yield a
            a = next(left, None)
        elif b < a:
            yield b
            b = next(right, None)
        else:
            yield a
            a, b = next(left, None), next(right, None)
    while a is not None:
        yield a
        a = next(left, None)
    while b is not None:
        yield b
        b = next(right, None)
