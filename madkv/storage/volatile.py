"""The store of a group of one that has no disk: it knows how far things go, and holds nothing.

What Raft still needs is elsewhere. Entries that are not applied yet stay in the log's tail in memory; those that are,
only peers would ask for, and there are none. Pairs and sessions are in the state machine, and nobody reads them back:
what a process without a disk has forgotten, it has forgotten for good.
"""

from typing import NoReturn

from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Entry, HardState
from madkv.storage.batch import Batch
from madkv.storage.snapshot import SnapshotHead, SnapshotReader


class VolatileStorage:
    """As DurableStorage, for the only member that its group will ever have. It takes no memory that grows."""

    snapshot_index = 0
    snapshot_term = 0

    def __init__(self, member: Member) -> None:
        """A new group, with an empty log."""
        self.hard_state = HardState()
        self.configurations = [(0, Configuration(frozenset((member,))))]
        self.last_index = 0
        self.applied_index = 0

    def write(self, batch: Batch) -> None:
        """Everything in the batch is where it belongs."""

    def written(self, batch: Batch) -> None:
        """Note how far things go."""
        if batch.entries:
            assert batch.entries[0].index == self.last_index + 1, "the log of a group of one only grows"
            self.last_index = batch.entries[-1].index
        if batch.hard_state is not None:
            self.hard_state = batch.hard_state
        if batch.applied_index is not None:
            assert self.applied_index <= batch.applied_index <= self.last_index, "the log covers what was applied"
            self.applied_index = batch.applied_index

    def sessions(self) -> list[tuple[bytes, bytes]]:
        """None: nothing was there before."""
        return []

    def cut(self, entries_kept: int, bytes_kept: int) -> int:
        """Nothing is kept."""
        return 0

    def compaction_target(self, wanted: int) -> int | None:
        """There is nothing to cut."""
        return None

    def end_turn(self) -> None:
        """There are no transactions to end."""

    def close(self) -> None:
        """Nothing is held."""

    def term_of(self, index: int) -> int | None:
        """For peers."""
        self._no_peers()

    def entries(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        """For peers."""
        self._no_peers()

    def open_snapshot(self, piece_bytes: int | None = None) -> SnapshotReader:
        """For peers."""
        self._no_peers()

    def stage(self, head: SnapshotHead, offset: int, piece: bytes) -> int:
        """From peers."""
        self._no_peers()

    def install(self, head: SnapshotHead) -> list[tuple[bytes, bytes]]:
        """From peers."""
        self._no_peers()

    def installed(self, head: SnapshotHead) -> None:
        """From peers."""
        self._no_peers()

    def _no_peers(self) -> NoReturn:
        raise AssertionError("a group of one has no peers")
