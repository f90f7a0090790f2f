"""The LMDB store's twin in memory, for simulated disks: the same answers, and no files.

A `TwinDisk` is what survives a crash; `TwinStorage(disk, ...)` opens it, again and again. What `write` and `install`
were called for is on it. What was staged is lost, as it is on a real disk when the store is opened.
"""

from collections.abc import Iterator

from sortedcontainers import SortedDict

from madkv.errors import ProtocolError
from madkv.raft.configuration import Configuration
from madkv.raft.messages import Entry, HardState
from madkv.storage.batch import Batch, Table
from madkv.storage.index import LogIndex
from madkv.storage.records import Damaged, Meta
from madkv.storage.snapshot import PAIRS, SESSIONS, SnapshotHead, SnapshotReader, records_of
from madkv.storage.state import StoredState

Tables = tuple[SortedDict, SortedDict]
"""Pairs and sessions."""


class TwinDisk:
    """What is on a disk: nothing, until a store is opened on it."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.meta: Meta | None = None
        self.log: list[Entry] = []  # from meta.snapshot_index + 1 on
        self.tables: Tables = SortedDict(), SortedDict()


class TwinStorage(StoredState):
    """As DurableStorage; the comments there hold here. `write` and the rest happen at once."""

    def __init__(self, disk: TwinDisk, configuration: Configuration) -> None:
        if disk.meta is None:
            disk.meta = Meta(configuration=configuration, applied_configuration=configuration)
        self._disk = disk
        index = LogIndex(disk.meta.snapshot_index, disk.meta.snapshot_term, disk.meta.configuration)
        for entry in disk.log:
            index.append(entry)
        super().__init__(disk.hard_state, disk.meta, index)
        self._staged: Tables = SortedDict(), SortedDict()
        self._log, self._tables = disk.log, disk.tables
        """What memory speaks of, also when a commit is done and not taken over."""

    def close(self) -> None:
        """Nothing is held."""

    def crash(self) -> "TwinStorage":
        """The store as it is opened after a crash at this moment."""
        return TwinStorage(self._disk, self._meta.configuration)

    def entries(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        """Entries `first` to `last`, at least one, up to the one that reaches `bytes_max`. Raises Damaged."""
        found: list[Entry] = []
        size = 0
        begin = self._log[0].index if self._log else 0
        for at in range(first - begin, last - begin + 1):
            if not 0 <= at < len(self._log):
                raise Damaged(f"the log has no entry {begin + at}, although it goes up to {self.last_index}")
            found.append(self._log[at])
            size += found[-1].size_bytes
            if size >= bytes_max:
                break
        return found

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        value: bytes | None = self._tables[PAIRS].get(key)
        return value

    def pairs(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key <= end in key order; good until the next commit."""
        table = self._tables[PAIRS]
        return ((key, table[key]) for key in table.irange(start, end))

    def open_pairs(self) -> "_Pairs":
        """All pairs as they are now."""
        return _Pairs(self._tables[PAIRS])

    def sessions(self) -> list[tuple[bytes, bytes]]:
        """The whole table of sessions, for start-up."""
        return list(self._tables[SESSIONS].items())

    def end_turn(self) -> None:
        """There are no transactions to end."""

    def write(self, batch: Batch) -> None:
        """Put a batch on the disk."""
        meta = self._prepare(batch)
        disk = self._disk
        disk.hard_state = batch.hard_state or disk.hard_state
        log = disk.log[: batch.entries[0].index - self.snapshot_index - 1] if batch.entries else disk.log
        disk.log = [*log, *batch.entries][meta.snapshot_index - self.snapshot_index :]
        _change(disk.tables[PAIRS], batch.pairs)
        _change(disk.tables[SESSIONS], batch.sessions)
        disk.meta = meta

    def written(self, batch: Batch) -> None:
        """Take over what a batch changed."""
        super().written(batch)
        self._log = self._disk.log

    def open_snapshot(self, piece_bytes: int | None = None) -> SnapshotReader:
        """The state at the applied index on the disk."""
        return SnapshotReader(_Source(self._disk), piece_bytes)

    def stage(self, head: SnapshotHead, offset: int, piece: bytes) -> int:
        """Keep one piece of a snapshot; how many bytes of this one are staged."""
        if head != self._staged_head:
            if offset != 0:
                return 0
            self._staged = SortedDict(), SortedDict()
            self._staged_head, self._staged_bytes = head, 0
        if offset == self._staged_bytes:
            records = list(records_of(piece))
            last = [next(reversed(table), b"") for table in self._staged]
            for table, key, _ in records:
                if key <= last[table]:
                    raise ProtocolError("a snapshot whose keys are not in order")
                last[table] = key
            for table, key, value in records:
                self._staged[table][key] = value
            self._staged_bytes += len(piece)
        return self._staged_bytes

    def install(self, head: SnapshotHead) -> list[tuple[bytes, bytes]]:
        """Put the staged snapshot in force. Then call `installed`. Returns the whole table of sessions."""
        assert head == self._staged_head and head.last_index > self.applied_index
        self._disk.meta = self._meta_with(head)
        kept = self._disk.log[head.last_index - self.snapshot_index :] if self._keeps_log(head) else []
        self._disk.log, self._disk.tables = kept, self._staged
        return list(self._staged[SESSIONS].items())

    def installed(self, head: SnapshotHead) -> None:
        """Take over what `install` changed."""
        super().installed(head)
        self._log, self._tables = self._disk.log, self._disk.tables


class _Pairs:
    """A copy of the pairs on a disk."""

    def __init__(self, table: SortedDict) -> None:
        self._pairs: list[tuple[bytes, bytes]] = list(table.items())

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values."""
        return iter(self._pairs)

    def close(self) -> None:
        """Nothing is held."""


class _Source:
    """A copy of the state on a disk, for a snapshot."""

    def __init__(self, disk: TwinDisk) -> None:
        meta = disk.meta
        assert meta is not None
        position = meta.applied_index - meta.snapshot_index
        term = disk.log[position - 1].term if position else meta.snapshot_term
        self.head = SnapshotHead(meta.applied_index, term, meta.applied_configuration)
        self._tables = [list(table.items()) for table in disk.tables]

    def records(self, table: int) -> Iterator[tuple[bytes, bytes]]:
        """A table's keys and values."""
        return iter(self._tables[table])

    def close(self) -> None:
        """Nothing is held."""


def _change(table: SortedDict, changes: Table) -> None:
    for key, value in changes.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
