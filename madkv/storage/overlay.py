"""Applied, and not yet in the tables on disk: pairs that reads see first.

Theory of operation. An operation is applied as soon as it is committed, to an overlay in memory; the log on disk covers
it after a crash. From time to time the overlay is handed to a commit as a whole (`freeze`), a new one is begun, and
once that commit is done the old one is let go of (`thaw`). So a read looks at three layers, newest first: what is
applied since, what is being committed, and what the store holds. The middle one may not be skipped: its pairs are in
the store only when the commit is done, and which of the two a reader of the store sees is not known before.
"""

from bisect import bisect_left, insort
from collections.abc import Generator, Iterator
from typing import Protocol

from madkv.storage.batch import Table

PAIR_OVERHEAD_BYTES = 200
"""About what one pair costs in an overlay beside its key and value."""


class PairStore(Protocol):
    """The store under the overlays."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""

    def pairs(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key <= end in key order."""


class _Overlay:
    """Changes by key. A plain list of some thousand keys is quicker to keep in order than anything cleverer."""

    __slots__ = ("keys", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        """None for a key that was removed."""
        self.keys: list[bytes] = []
        """Of `values`, in order."""


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


class _Layer:
    """A range of one overlay, from `start` to `end` inclusive, and how far it was read."""

    def __init__(self, overlay: _Overlay, start: bytes, end: bytes) -> None:
        self._overlay = overlay
        self._end = end
        self._at = bisect_left(overlay.keys, start) - 1
        self.key: bytes | None = None
        self.value: bytes | None = None
        self.next()

    def next(self) -> None:
        """Go to the next key; None after the last."""
        self._at += 1
        keys = self._overlay.keys
        self.key = keys[self._at] if self._at < len(keys) and keys[self._at] <= self._end else None
        self.value = None if self.key is None else self._overlay.values[self.key]
