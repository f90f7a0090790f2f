"""The log as one replica sees it: what its disk holds, and after that what is still on its way there.

`LogReader` is the durable part, read through the storage. `RaftLog` adds the tail in memory: every entry that has not
been persisted, and recent ones that have been, since those are what followers ask for.
"""

from typing import Protocol

from madkv.raft.messages import ENTRY_OVERHEAD_BYTES, Entry


class LogReader(Protocol):
    """The log on disk. Everything up to `snapshot_index` has been compacted away."""

    @property
    def snapshot_index(self) -> int:
        """Index of the last entry that the snapshot covers; 0 when there is none."""

    @property
    def snapshot_term(self) -> int:
        """Term of that entry."""

    @property
    def last_index(self) -> int:
        """Index of the last entry on disk; `snapshot_index` when there is none."""

    def term_of(self, index: int) -> int | None:
        """Term of the entry at `index`, also at `snapshot_index`; None when it is not there."""

    def entries(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        """Entries `first` to `last`, both included, cut off after the one that reaches `bytes_max`."""


class RaftLog:
    """Entries from `first_index` to `last_index`, which follow each other without a gap.

    `taken_index`: up to there entries have been handed to the disk; `stable_index`: up to there they are known to be on
    it. stable_index <= taken_index <= last_index. A conflict lowers them; nothing else does.
    """

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._tail: list[Entry] = []
        self._tail_first = reader.last_index + 1
        self._tail_bytes = 0
        self._note_end()
        self.stable_index = reader.last_index
        self.taken_index = reader.last_index

    @property
    def first_index(self) -> int:
        """The first entry that has not been compacted away (it may not be there yet)."""
        return self._reader.snapshot_index + 1

    def _note_end(self) -> None:
        """The log may end elsewhere now; `append` alone keeps account of that by itself."""
        self.last_index = self._tail_first + len(self._tail) - 1
        """The last entry; `first_index` - 1 when there is none."""
        last_term = self.term_of(self.last_index)
        assert last_term is not None
        self.last_term = last_term
        """The last entry's term; 0 when the log and the snapshot are empty."""

    def term_of(self, index: int) -> int | None:
        """The term of the entry at `index`; None when it is not there (any more)."""
        if index >= self._tail_first:
            at = index - self._tail_first
            return self._tail[at].term if at < len(self._tail) else None
        if index == 0 and self._reader.snapshot_index == 0:
            return 0
        return self._reader.term_of(index)

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry at `index` has this term, so that the logs agree up to there."""
        return self.term_of(index) == term

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends like this is at least as up-to-date as this one (section 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def entries(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        """Entries `first` to `last`, at least one, cut off after the one that reaches `bytes_max`."""
        assert first <= last <= self.last_index
        if first < self._tail_first:
            assert self.first_index <= first
            return self._reader.entries(first, min(last, self._tail_first - 1), bytes_max)
        begin = first - self._tail_first
        if first == last:
            return [self._tail[begin]]
        end = begin
        size = 0
        while size < bytes_max and end <= last - self._tail_first:
            size += self._tail[end].size_bytes
            end += 1
        return self._tail[begin:end]

    def append(self, entry: Entry) -> None:
        """Add the entry that follows the last one."""
        assert entry.index == self.last_index + 1
        assert entry.term >= self.last_term
        self._tail.append(entry)
        self._tail_bytes += len(entry.payload) + ENTRY_OVERHEAD_BYTES
        self.last_index, self.last_term = entry.index, entry.term

    def truncate(self, first: int) -> None:
        """Remove entry `first` and all after it: they conflict with the leader's (section 5.3)."""
        assert self.first_index <= first <= self.last_index
        if first <= self.taken_index:
            self.taken_index = first - 1
            self.stable_index = min(self.stable_index, first - 1)
        if first < self._tail_first:
            self._tail.clear()
            self._tail_first = first
            self._tail_bytes = 0
        else:
            removed = self._tail[first - self._tail_first :]
            del self._tail[first - self._tail_first :]
            self._tail_bytes -= sum(entry.size_bytes for entry in removed)
        self._note_end()

    def take_unpersisted(self, last: int) -> list[Entry]:
        """What the disk has not been given yet, up to `last`; from now on it has.

        It replaces what the disk holds at and after it.
        """
        assert self.taken_index >= self._tail_first - 1
        last = max(last, self.taken_index)
        taken = self._tail[self.taken_index + 1 - self._tail_first : last + 1 - self._tail_first]
        self.taken_index = last
        return taken

    def persisted(self, last_index: int, term: int) -> None:
        """The disk holds the entry (last_index, term) and all before it; counts only if this log still does.

        Without the term: entries 5-7 of term 1 are on their way to the disk; a new leader replaces them by 5-6 of term
        2; the completion for 7 arrives, and entries of term 2 would be acknowledged that are on no disk.
        """
        if self.stable_index < last_index <= self.taken_index and self.holds(last_index, term):
            self.stable_index = last_index

    def snapshot_installed(self, snapshot_index: int, *, keeps_suffix: bool) -> None:
        """The disk has switched to a snapshot; with `keeps_suffix`, this log held its last entry before.

        Then entries after it stay. Those that the disk had been given are still on it; if it had not been given even
        the snapshot's last one it has dropped its log, and what follows the snapshot is still to be written: it may not
        be forgotten, since acknowledgements of it may be waiting for that.
        """
        assert self._reader.snapshot_index == snapshot_index
        if not keeps_suffix or self.taken_index < snapshot_index:
            assert self._reader.last_index == snapshot_index
            kept = self._tail[max(0, snapshot_index + 1 - self._tail_first) :] if keeps_suffix else []
            self._tail = kept
            self._tail_first = snapshot_index + 1
            self._tail_bytes = sum(entry.size_bytes for entry in kept)
            self._note_end()
            self.taken_index = snapshot_index
        self.stable_index = max(min(self.stable_index, self.taken_index), snapshot_index)

    def forget(self, applied_index: int, bytes_kept: int) -> None:
        """Let go of the oldest entries that are on the disk and applied, down to about so many bytes."""
        if self._tail_bytes <= bytes_kept * 5 // 4:
            return  # Many at a time: each time, all that stay are moved.
        last = min(self.stable_index, applied_index)
        count = 0
        while self._tail_bytes > bytes_kept and self._tail_first + count <= last:
            self._tail_bytes -= self._tail[count].size_bytes
            count += 1
        if count:
            del self._tail[:count]
            self._tail_first += count
