"""Applied, and not yet in the tables on disk: pairs that reads see first.

Theory of operation. An operation is applied as soon as it is committed, to an overlay in memory; the log on disk covers
it after a crash. From time to time the overlay is handed to a commit as a whole (`freeze`), a new one is begun, and
once that commit is done the old one is let go of (`thaw`). So a read looks at three layers, newest first: what is
applied since, what is being committed, and what the store holds. The middle one may not be skipped: its pairs are in
the store only when the commit is done, and which of the two a reader of the store sees is not known before.
"""

from collections.abc import Generator, Iterator
from typing import Protocol

from sortedcontainers import SortedDict

from madkv.storage.batch import Table

PAIR_OVERHEAD_BYTES = 200
"""About what one pair costs in an overlay beside its key and value."""


class PairStore(Protocol):
    """The store under the overlays."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""

    def pairs(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key <= end in key order."""


class AppliedPairs:
    """The pairs as of the last applied operation."""

    def __init__(self, store: PairStore) -> None:
        self._store = store
        self._filling: SortedDict = SortedDict()  # key -> value, None for a key that was removed
        self._frozen: SortedDict = SortedDict()
        self.waiting_bytes = 0
        """About what the overlay that is being filled takes up."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        for overlay in (self._filling, self._frozen):
            if key in overlay:
                value: bytes | None = overlay[key]
                return value
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
        layers = [_Layer(overlay, start, end) for overlay in (self._filling, self._frozen)]
        stored = self._store.pairs(start, end)
        below = next(stored, None)
        while True:
            first = min((layer.key for layer in layers if layer.key is not None), default=None)
            if below is not None and (first is None or below[0] < first):
                yield below
                below = next(stored, None)
                continue
            if first is None:
                return
            newest = next(layer for layer in layers if layer.key == first)
            if newest.value is not None:
                yield first, newest.value
            for layer in layers:
                if layer.key == first:
                    layer.next()
            if below is not None and below[0] == first:
                below = next(stored, None)

    def freeze(self) -> Table:
        """All changes since the last time, for a commit that begins now. One at a time."""
        assert not self._frozen, "a commit is under way"
        self._frozen, self._filling = self._filling, SortedDict()
        self.waiting_bytes = 0
        frozen: Table = self._frozen
        return frozen

    def thaw(self) -> None:
        """That commit is done, and the store shows it."""
        self._frozen = SortedDict()

    def forget(self) -> None:
        """The store has switched to another state altogether: a snapshot was installed."""
        self._filling, self._frozen = SortedDict(), SortedDict()
        self.waiting_bytes = 0

    def _set(self, key: bytes, value: bytes | None) -> None:
        overlay = self._filling
        if key in overlay:
            self.waiting_bytes -= len(overlay[key] or b"")
        else:
            self.waiting_bytes += PAIR_OVERHEAD_BYTES + len(key)
        self.waiting_bytes += len(value or b"")
        overlay[key] = value


class _Layer:
    """A range of one overlay, and how far it was read."""

    def __init__(self, overlay: SortedDict, start: bytes, end: bytes) -> None:
        self._overlay = overlay
        self._keys = overlay.irange(start, end)
        self.key: bytes | None = None
        self.value: bytes | None = None
        self.next()

    def next(self) -> None:
        """Go to the next key; None after the last."""
        self.key = next(self._keys, None)
        self.value = None if self.key is None else self._overlay[self.key]
