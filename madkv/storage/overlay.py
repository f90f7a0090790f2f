"""Applied, and not yet in the tables on disk: pairs that reads see first.

Theory of operation. An operation is applied as soon as it is committed, to an overlay in memory; the log on disk covers
it after a crash. From time to time the overlay is handed to a commit as a whole (`freeze`), a new one is begun, and
once that commit is done the old one is let go of (`thaw`). So a read looks at three layers, newest first: what is
applied since, what is being committed, and what the store holds. The middle one may not be skipped: its pairs are in
the store only when the commit is done, and which of the two a reader of the store sees is not known before.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from madkv.storage.batch import Table

PAIR_OVERHEAD_BYTES = 200
"""About what one pair costs in an overlay beside its key and value."""


class StoredPairs(Protocol):
    """All pairs of a store as they are at one moment, in key order, whatever is committed later."""

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values; on any thread."""

    def close(self) -> None:
        """Let go of them. Nobody may be reading."""


class PairStore(Protocol):
    """The store under the overlays."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""

    def pairs(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key <= end in key order."""

    def open_pairs(self) -> StoredPairs:
        """All pairs as they are now."""


class _Overlay:
    """Changes by key. A plain list of some thousand keys is quicker to keep in order than anything cleverer."""

    __slots__ = ("keys", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        """None for a key that was removed."""
        self.keys: list[bytes] = []
        """Of `values`, in order."""

    def between(self, start: bytes, end: bytes) -> list[bytes]:
        """The keys from `start` to `end`, both included."""
        return self.keys[bisect_left(self.keys, start) : bisect_right(self.keys, end)]


class AppliedPairs:
    """The pairs as of the last applied operation."""

    def __init__(self, store: PairStore) -> None:
        self._store = store
        self._filling = _Overlay()
        self._frozen = _Overlay()
        self.waiting_bytes = 0
        """About what the overlay that is being filled takes up."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        for overlay in (self._filling, self._frozen):
            if key in overlay.values:
                return overlay.values[key]
        return self._store.get(key)

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Set the value of `key`; the value it had, or None."""
        old = self.get(key)
        self._set(key, value)
        return old

    def delete(self, key: bytes) -> bytes | None:
        """Remove `key` if it is there; the value it had, or None."""
        old = self.get(key)
        if old is not None:
            self._set(key, None)
        return old

    def pairs(self, start: bytes, end: bytes) -> Generator[tuple[bytes, bytes], None, None]:
        """Pairs with start <= key <= end in key order; nothing may be applied while it is read."""
        return _merged(self._store.pairs(start, end), self._changed_between(start, end), self._change)

    def cut(self) -> "PairsCut":
        """All pairs as they are now, for later, whatever is applied meanwhile. Close it soon, as a snapshot."""
        return PairsCut(self._store.open_pairs(), {**self._frozen.values, **self._filling.values})

    def _changed_between(self, start: bytes, end: bytes) -> list[bytes]:
        """The keys of both overlays from `start` to `end`, in order."""
        newer, older = (overlay.between(start, end) for overlay in (self._filling, self._frozen))
        return sorted({*newer, *older}) if newer and older else newer or older

    def _change(self, key: bytes) -> bytes | None:
        """The latest change of a key that was changed."""
        newer = self._filling.values
        return newer[key] if key in newer else self._frozen.values[key]

    def freeze(self) -> Table:
        """All changes since the last time, for a commit that begins now. One at a time."""
        assert not self._frozen.keys, "a commit is under way"
        self._frozen, self._filling = self._filling, _Overlay()
        self.waiting_bytes = 0
        return self._frozen.values

    def thaw(self) -> None:
        """That commit is done, and the store shows it."""
        self._frozen = _Overlay()

    def forget(self) -> None:
        """The store has switched to another state altogether: a snapshot was installed."""
        self._filling, self._frozen = _Overlay(), _Overlay()
        self.waiting_bytes = 0

    def _set(self, key: bytes, value: bytes | None) -> None:
        values = self._filling.values
        if key in values:
            self.waiting_bytes -= len(values[key] or b"")
        else:
            self.waiting_bytes += PAIR_OVERHEAD_BYTES + len(key)
            insort(self._filling.keys, key)
        self.waiting_bytes += len(value or b"")
        values[key] = value


class PairsCut:
    """The pairs as of one applied operation. It may be read once, on any thread; whoever closes it sees to it that
    nobody reads it then."""

    def __init__(self, stored: StoredPairs, changes: Table) -> None:
        self._stored = stored
        self._changes = changes

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Pairs in key order."""
        return _merged(iter(self._stored), sorted(self._changes), self._changes.__getitem__)

    def close(self) -> None:
        """Let go of the store's state."""
        self._stored.close()


def _merged(
    stored: Iterator[tuple[bytes, bytes]], keys: list[bytes], change: Callable[[bytes], bytes | None]
) -> Generator[tuple[bytes, bytes], None, None]:
    """Pairs of a store, and what became of some keys since (None: removed), both in key order."""
    at, count = 0, len(keys)
    for pair in stored:
        key = pair[0]
        while at < count and keys[at] < key:
            value = change(keys[at])
            if value is not None:
                yield keys[at], value
            at += 1
        if at < count and keys[at] == key:
            value = change(key)
            if value is not None:
                yield key, value
            at += 1
        else:
            yield pair
    for key in keys[at:]:
        value = change(key)
        if value is not None:
            yield key, value
