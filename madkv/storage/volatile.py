"""The store of a group of one that has no disk: it knows how far things go, and holds nothing.

What Raft still needs is elsewhere. Entries that are not applied yet stay in the log's tail in memory; those that are,
only peers would ask for, and there are none. Pairs and sessions are in the state machine, and nobody reads them back:
what a process without a disk has forgotten, it has forgotten for good.
"""

from typing import NoReturn

from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Entry, HardState
from madkv.storage.batch import Batch
from madkv.storage.index import LogIndex
from madkv.storage.records import Meta
from madkv.storage.snapshot import SnapshotHead, SnapshotReader
from madkv.storage.state import StoredState


class VolatileStorage(StoredState):
    """As DurableStorage, for the only member that its group will ever have. It takes no memory that grows."""

    def __init__(self, member: Member) -> None:
        """A new group, with an empty log."""
        alone = Configuration(frozenset((member,)))
        meta = Meta(configuration=alone, applied_configuration=alone)
        super().__init__(HardState(), meta, LogIndex(0, 0, alone))

    def write(self, batch: Batch) -> None:
        """Everything in the batch is where it belongs."""
        self._prepare(batch)

    def sessions(self) -> list[tuple[bytes, bytes]]:
        """None: nothing was there before."""
        return []

    def end_turn(self) -> None:
        """There are no transactions to end."""

    def close(self) -> None:
        """Nothing is held."""

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

    def _no_peers(self) -> NoReturn:
        raise AssertionError("a group of one has no peers")
