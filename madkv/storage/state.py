"""What memory knows of a store: how far it goes, the log's terms and configurations, what a commit makes of them."""

import attrs

from madkv.raft.configuration import Configuration
from madkv.raft.messages import EntryKind, HardState
from madkv.storage.batch import Batch
from madkv.storage.index import LogIndex
from madkv.storage.records import Meta
from madkv.storage.snapshot import SnapshotHead


class StoredState:
    """As of the last commit that was taken over by `written` or `installed`."""

    def __init__(self, hard_state: HardState, meta: Meta, index: LogIndex) -> None:
        self.hard_state = hard_state
        self._meta = meta
        self._prepared = meta
        self._index = index
        self._staged_head: SnapshotHead | None = None
        self._staged_bytes = 0

    @property
    def snapshot_index(self) -> int:
        """The log begins after this index."""
        return self._index.snapshot_index

    @property
    def snapshot_term(self) -> int:
        """The term of the entry at `snapshot_index`."""
        return self._index.snapshot_term

    @property
    def last_index(self) -> int:
        """Index of the last entry on disk."""
        return self._index.last_index

    @property
    def log_bytes(self) -> int:
        """About how much the entries in the log are."""
        return self._index.size_bytes

    @property
    def applied_index(self) -> int:
        """How far the tables of pairs and sessions go."""
        return self._meta.applied_index

    @property
    def configurations(self) -> list[tuple[int, Configuration]]:
        """Those in the log, led by the one that held where it begins."""
        return list(self._index.configurations)

    def term_of(self, index: int) -> int | None:
        """The term of the entry at `index`, None when it is not there."""
        return self._index.term_of(index)

    def written(self, batch: Batch) -> None:
        """Take over what a batch changed; to be called on the reactor's thread, after `write`."""
        if batch.hard_state is not None:
            self.hard_state = batch.hard_state
        self._meta = self._prepared
        if batch.entries:
            self._index.extend(batch.entries)
        if batch.compact_to is not None:
            self._index.compact(batch.compact_to)

    def cut(self, entries_kept: int, bytes_kept: int) -> int:
        """The index up to which the log may go, so that at most about this many entries and bytes of it stay."""
        return self._index.cut(entries_kept, bytes_kept)

    def compaction_target(self, wanted: int) -> int | None:
        """How far a log that is to be cut up to `wanted` may be cut; None when there is nothing to cut."""
        target = min(wanted, self.applied_index)
        return target if target > self.snapshot_index else None

    def _prepare(self, batch: Batch) -> Meta:
        """What holds after a batch, for `written` to take over; `write` begins with it.

        What does not fit together is caught here, before it is on disk.
        """
        meta, entries = self._meta, batch.entries
        last_index = self._index.last_index
        if entries:
            first = entries[0].index
            assert meta.applied_index < first <= last_index + 1, "the log has no gaps, and keeps what was applied"
            last_index = entries[-1].index
            index, term = first, self._index.term_of(first - 1) or 0
            for entry in entries:
                assert entry.index == index, "entries are written in the order of their indexes"
                assert entry.term >= term, "terms never go back in a log"
                index, term = index + 1, entry.term
        if batch.applied_index is not None:
            assert meta.applied_index <= batch.applied_index <= last_index, "the log covers what was applied"
            meta = attrs.evolve(meta, applied_index=batch.applied_index)
            meta = attrs.evolve(meta, applied_configuration=self._configuration_after(batch, batch.applied_index))
        else:
            assert not batch.pairs and not batch.sessions, "tables come with the index that they go up to"
        if batch.compact_to is not None:
            assert self.snapshot_index <= batch.compact_to <= self.applied_index, "the log is cut where data covers it"
            cut_term = self._index.term_of(batch.compact_to)
            assert cut_term is not None
            configuration = self._index.configuration_at(batch.compact_to)
            meta = attrs.evolve(
                meta, snapshot_index=batch.compact_to, snapshot_term=cut_term, configuration=configuration
            )
        self._prepared = meta
        return meta

    def _configuration_after(self, batch: Batch, index: int) -> Configuration:
        """The configuration at `index`, once the batch is in the log."""
        for entry in reversed(batch.entries):
            if entry.index <= index and entry.kind is EntryKind.CONFIGURATION:
                return Configuration.decode(entry.payload)
        before = batch.entries[0].index - 1 if batch.entries else index
        return self._index.configuration_at(min(index, before))

    def installed(self, head: SnapshotHead) -> None:
        """Take over what `install` changed; to be called on the reactor's thread. The old generation goes later."""
        keeps_log = self._keeps_log(head)
        self._meta = self._meta_with(head)
        later: list[tuple[int, Configuration]] = []
        if keeps_log:
            self._index.compact(head.last_index)
            later = self._index.configurations[1:]
        else:
            self._index = LogIndex(head.last_index, head.last_term, head.configuration)
        self._index.configurations = [(head.last_index, head.configuration), *later]
        self._staged_head, self._staged_bytes = None, 0

    def _meta_with(self, head: SnapshotHead) -> Meta:
        return Meta(
            snapshot_index=head.last_index,
            snapshot_term=head.last_term,
            applied_index=head.last_index,
            generation=1 - self._meta.generation,
            log_generation=self._meta.log_generation if self._keeps_log(head) else 1 - self._meta.log_generation,
            configuration=head.configuration,
            applied_configuration=head.configuration,
        )

    def _keeps_log(self, head: SnapshotHead) -> bool:
        """Entries after the snapshot stay if the log holds its last one: they may be acknowledged (section 7)."""
        return self.term_of(head.last_index) == head.last_term
