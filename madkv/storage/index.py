"""What is kept in memory about the log on disk, so that few questions about it need the disk: terms, configurations."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from madkv.limits import KIB
from madkv.raft.configuration import Configuration
from madkv.raft.messages import ENTRY_OVERHEAD_BYTES, Entry, EntryKind


class LogIndex:
    """Terms of the entries in the log as runs (terms change seldom), and the configurations in it.

    Covers `snapshot_index` to `last_index`, both included.
    """

    RUN_ENTRIES = 64

    def __init__(self, snapshot_index: int, snapshot_term: int, configuration: Configuration) -> None:
        self.snapshot_index = snapshot_index
        self.last_index = snapshot_index
        self._starts = [snapshot_index]
        self._terms = [snapshot_term]
        self._sizes = _Sizes(snapshot_index)
        self.configurations: list[tuple[int, Configuration]] = [(snapshot_index, configuration)]
        """Those that took effect in the log, oldest first, led by the one that held at `snapshot_index`."""

    @property
    def snapshot_term(self) -> int:
        """The term of the entry at `snapshot_index`."""
        return self._terms[0]

    @property
    def size_bytes(self) -> int:
        """About how much the entries after `snapshot_index` are."""
        return self._sizes.size_bytes

    def term_of(self, index: int) -> int | None:
        """The term of the entry at `index`, None outside."""
        if not self.snapshot_index <= index <= self.last_index:
            return None
        if index >= self._starts[-1]:
            return self._terms[-1]  # as most questions are
        return self._terms[bisect_right(self._starts, index) - 1]

    def configuration_at(self, index: int) -> Configuration:
        """The latest configuration at or before `index`."""
        return next(configuration for at, configuration in reversed(self.configurations) if at <= index)

    def append(self, entry: Entry) -> None:
        """Add the entry that follows, after removing whatever stands at its index and beyond."""
        self.extend((entry,))

    def extend(self, entries: Sequence[Entry]) -> None:
        """The same for entries that follow each other; at least one."""
        if entries[0].index <= self.last_index:
            self._truncate(entries[0].index)
        last_index, last_term, size = self.last_index, self._terms[-1], 0
        for entry in entries:
            last_index += 1
            assert entry.index == last_index, "the log has no gaps"
            size += len(entry.payload)
            if entry.term != last_term:
                last_term = entry.term
                self._starts.append(last_index)
                self._terms.append(last_term)
            if entry.kind is EntryKind.CONFIGURATION:
                self.configurations.append((last_index, Configuration.decode(entry.payload)))
        self.last_index = last_index
        self._sizes.append(last_index, size + len(entries) * ENTRY_OVERHEAD_BYTES)

    def append_run(self, count: int, payload_bytes: int) -> None:
        """Add operations of the last entry's term, at most RUN_ENTRIES, of so many bytes together."""
        self.last_index += count
        self._sizes.append(self.last_index, payload_bytes + count * ENTRY_OVERHEAD_BYTES)

    def cut(self, entries_kept: int, bytes_kept: int) -> int:
        """The index up to which the log may go, so that at most about this many entries and bytes stay."""
        return max(self.snapshot_index, self.last_index - entries_kept, self._sizes.cut(bytes_kept))

    def compact(self, index: int) -> None:
        """Forget what lies before `index`, which becomes the snapshot's last entry."""
        term, configuration = self.term_of(index), self.configuration_at(index)
        assert term is not None
        runs = [(at, other) for at, other in zip(self._starts, self._terms, strict=True) if at > index]
        self._starts = [index, *(at for at, _ in runs)]
        self._terms = [term, *(other for _, other in runs)]
        self.configurations = [(index, configuration), *(each for each in self.configurations if each[0] > index)]
        self.snapshot_index = index
        self._sizes.compact(index)

    def _truncate(self, first: int) -> None:
        assert first > self.snapshot_index
        self.last_index = first - 1
        self._sizes.truncate(self.last_index)
        while self._starts[-1] >= first:
            self._starts.pop()
            self._terms.pop()
        while self.configurations[-1][0] >= first:
            self.configurations.pop()


class _Sizes:
    """How many bytes of entries there are up to some indexes; between them, as if all entries were alike."""

    MARK_ENTRIES = 64
    MARK_BYTES = 64 * KIB
    """So many entries or bytes after the last mark, whichever comes first, there is another."""

    def __init__(self, index: int) -> None:
        # Counted from some beginning, which does not matter. The first mark is where the log begins, or before it.
        self._indexes = [index]
        self._totals = [0]
        self._last_index = index
        self._total = 0

    @property
    def size_bytes(self) -> int:
        """From the first mark on."""
        return self._total - self._totals[0]

    def append(self, index: int, size_bytes: int) -> None:
        """Add the entries that follow, up to `index`."""
        self._last_index = index
        self._total += size_bytes
        if index - self._indexes[-1] >= self.MARK_ENTRIES or self._total - self._totals[-1] >= self.MARK_BYTES:
            self._indexes.append(index)
            self._totals.append(self._total)

    def truncate(self, last_index: int) -> None:
        """Forget what lies beyond `last_index`."""
        self._total = self._total_at(last_index)
        self._last_index = last_index
        kept = max(1, bisect_right(self._indexes, last_index))
        del self._indexes[kept:], self._totals[kept:]

    def compact(self, index: int) -> None:
        """Forget what lies before `index`."""
        total = self._total_at(index)
        gone = bisect_right(self._indexes, index)
        self._indexes[:gone], self._totals[:gone] = [index], [total]

    def cut(self, bytes_kept: int) -> int:
        """The first mark after which at most this many bytes follow, or the last mark."""
        return self._indexes[min(bisect_left(self._totals, self._total - bytes_kept), len(self._indexes) - 1)]

    def _total_at(self, index: int) -> int:
        after = bisect_left(self._indexes, index)
        if after == len(self._indexes):
            next_index, next_total = self._last_index, self._total
        else:
            next_index, next_total = self._indexes[after], self._totals[after]
        if next_index <= index or after == 0:
            return next_total
        index_before, total_before = self._indexes[after - 1], self._totals[after - 1]
        share = (index - index_before) / (next_index - index_before)
        return total_before + int((next_total - total_before) * share)
