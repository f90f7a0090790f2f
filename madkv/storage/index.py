"""What is kept in memory about the log on disk, so that few questions about it need the disk: terms, configurations."""

from bisect import bisect_right

from madkv.raft.configuration import Configuration
from madkv.raft.messages import Entry, EntryKind


class LogIndex:
    """Terms of the entries in the log as runs (terms change seldom), and the configurations in it.

    Covers `snapshot_index` to `last_index`, both included.
    """

    def __init__(self, snapshot_index: int, snapshot_term: int, configuration: Configuration) -> None:
        self.snapshot_index = snapshot_index
        self.last_index = snapshot_index
        self._starts = [snapshot_index]
        self._terms = [snapshot_term]
        self.configurations: list[tuple[int, Configuration]] = [(snapshot_index, configuration)]
        """Those that took effect in the log, oldest first, led by the one that held at `snapshot_index`."""

    @property
    def snapshot_term(self) -> int:
        """The term of the entry at `snapshot_index`."""
        return self._terms[0]

    def term_of(self, index: int) -> int | None:
        """The term of the entry at `index`, None outside."""
        if not self.snapshot_index <= index <= self.last_index:
            return None
        return self._terms[bisect_right(self._starts, index) - 1]

    def configuration_at(self, index: int) -> Configuration:
        """The latest configuration at or before `index`."""
        return next(configuration for at, configuration in reversed(self.configurations) if at <= index)

    def append(self, entry: Entry) -> None:
        """Add the entry that follows, after removing whatever stands at its index and beyond."""
        if entry.index <= self.last_index:
            self._truncate(entry.index)
        assert entry.index == self.last_index + 1, "the log has no gaps"
        self.last_index = entry.index
        if entry.term != self._terms[-1]:
            self._starts.append(entry.index)
            self._terms.append(entry.term)
        if entry.kind is EntryKind.CONFIGURATION:
            self.configurations.append((entry.index, Configuration.decode(entry.payload)))

    def compact(self, index: int) -> None:
        """Forget what lies before `index`, which becomes the snapshot's last entry."""
        term, configuration = self.term_of(index), self.configuration_at(index)
        assert term is not None
        runs = [(at, other) for at, other in zip(self._starts, self._terms, strict=True) if at > index]
        self._starts = [index, *(at for at, _ in runs)]
        self._terms = [term, *(other for _, other in runs)]
        self.configurations = [(index, configuration), *(each for each in self.configurations if each[0] > index)]
        self.snapshot_index = index

    def _truncate(self, first: int) -> None:
        assert first > self.snapshot_index
        self.last_index = first - 1
        while self._starts[-1] >= first:
            self._starts.pop()
            self._terms.pop()
        while self.configurations[-1][0] >= first:
            self.configurations.pop()
