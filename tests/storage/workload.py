"""What a store goes through while it is being crashed: steps from a seed, and what must be there after each of them.

The steps are those of a replica's life: entries appended and applied, term and vote, a suffix in conflict replaced, the
log cut, a snapshot staged piece by piece and installed. They are drawn from a seed and from a `TwinStorage` that takes
them too, so two processes that know the seed know what the store of one of them must hold.
"""

import hashlib
from collections.abc import Iterable, Iterator
from random import Random
from typing import Protocol
from unittest import mock

import attrs

from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Entry, EntryKind, HardState
from madkv.storage import snapshot
from madkv.storage.batch import Batch, Table
from madkv.storage.snapshot import SnapshotHead, SnapshotReader
from madkv.storage.twin import TwinDisk, TwinStorage

PIECE_BYTES = 4096
KEYS = 150
SESSIONS = 12
VALUE_BYTES = (0, 20, 200, 900, 900, 6000)
"""The largest takes pages of its own in LMDB."""
LAST_KEY = b"\xff" * 512

Facts = dict[str, object]


class Store(Protocol):
    """DurableStorage and TwinStorage."""

    hard_state: HardState

    @property
    def snapshot_index(self) -> int: ...
    @property
    def snapshot_term(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def configurations(self) -> list[tuple[int, Configuration]]: ...
    def entries(self, first: int, last: int, bytes_max: int) -> list[Entry]: ...
    def pairs(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]: ...
    def sessions(self) -> list[tuple[bytes, bytes]]: ...
    def write(self, batch: Batch) -> None: ...
    def written(self, batch: Batch) -> None: ...
    def stage(self, head: SnapshotHead, offset: int, piece: bytes) -> int: ...
    def install(self, head: SnapshotHead) -> None: ...
    def installed(self, head: SnapshotHead) -> None: ...


@attrs.frozen
class Piece:
    """One piece of a snapshot to be staged."""

    head: SnapshotHead
    offset: int
    data: bytes


Step = Batch | Piece | SnapshotHead
"""A commit, a piece to stage, or a staged snapshot to install."""


def configuration(replicas: Iterable[int]) -> Configuration:
    """A configuration of these replicas, with disk ids made of their numbers."""
    return Configuration(frozenset(Member(replica, bytes([replica]) * 16) for replica in replicas))


FIRST_CONFIGURATION = configuration((1, 2, 3))


def take(store: Store, step: Step) -> None:
    """Have a store do one step; when this returns, it is acknowledged."""
    if isinstance(step, Batch):
        store.write(step)
        store.written(step)
    elif isinstance(step, Piece):
        staged = store.stage(step.head, step.offset, step.data)
        assert staged == step.offset + len(step.data)
    else:
        store.install(step)
        store.installed(step)


def facts(store: Store) -> Facts:
    """Everything that a store says about itself; long parts as digests."""
    log: list[Entry] = []
    if store.last_index > store.snapshot_index:
        log = store.entries(store.snapshot_index + 1, store.last_index, 1 << 62)
    return {
        "hard state": store.hard_state,
        "snapshot index and term": (store.snapshot_index, store.snapshot_term),
        "last index": store.last_index,
        "applied index": store.applied_index,
        "configurations": store.configurations,
        "log": _digest(repr((entry.index, entry.term, entry.kind)).encode() + entry.payload for entry in log),
        "pairs": _digest(key + b"=" + value for key, value in store.pairs(b"", LAST_KEY)),
        "sessions": _digest(key + b"=" + row for key, row in store.sessions()),
    }


def differences(found: Facts, expected: Facts) -> str:
    """Where two sets of facts differ; empty when they do not."""
    return ", ".join(
        f"{name} is {found[name]}, not {expected[name]}" for name in expected if found[name] != expected[name]
    )


def _digest(parts: Iterable[bytes]) -> tuple[int, str]:
    digest, count = hashlib.blake2b(digest_size=8), 0
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
        count += 1
    return count, digest.hexdigest()


class Workload:
    """Steps from one seed. Call `next`, have the store take the step, call `taken`; after a crash, `crashed`."""

    def __init__(self, seed: int) -> None:
        self._random = Random(f"storage/{seed}")
        self._term = 1
        self._incoming: list[Piece | SnapshotHead] = []
        self.twin = TwinStorage(TwinDisk(), FIRST_CONFIGURATION)

    def next(self) -> Step:
        """The step that follows."""
        random = self._random
        if self._incoming and random.random() < 0.8:
            following = self._incoming[0]
            head = following.head if isinstance(following, Piece) else following
            if head.last_index > self.twin.applied_index:
                return following
            self._incoming = []
        if not self._incoming and random.random() < 0.08:
            self._incoming = self._snapshot()
        return self._batch()

    def taken(self, step: Step) -> None:
        """The store took it."""
        if self._incoming and step is self._incoming[0]:
            del self._incoming[0]
        take(self.twin, step)

    def crashed(self) -> None:
        """The store was closed or killed, and is opened again: what was staged is gone."""
        self._incoming = []
        self.twin = self.twin.crash()

    def _batch(self) -> Batch:
        random, twin = self._random, self.twin
        hard_state = None
        if random.random() < 0.1:
            self._term += 1
            hard_state = HardState(self._term, random.choice((None, Member(2, b"v" * 16))))
        first = twin.last_index + 1
        if random.random() < 0.15:
            first = random.randint(twin.applied_index + 1, first)
            self._term += first <= twin.last_index  # a conflict: another leader's entries
        entries = tuple(self._entry(index) for index in range(first, first + random.choice((0, 1, 1, 2, 5, 12))))
        if entries and self._term > (hard_state or twin.hard_state).term:
            hard_state = HardState(self._term)  # a replica's term is never behind its log
        last = entries[-1].index if entries else twin.last_index
        applied: int | None = None
        pairs: Table = {}
        sessions: Table = {}
        if random.random() < 0.7:
            applied = random.randint(twin.applied_index, last)
            pairs, sessions = self._pairs(applied - twin.applied_index), self._sessions(applied)
        compact_to = None
        if random.random() < 0.15:
            compact_to = random.randint(twin.snapshot_index, twin.applied_index)
        return Batch(hard_state, entries, pairs, sessions, applied, compact_to)

    def _entry(self, index: int) -> Entry:
        if self._random.random() < 0.05:
            voters = sorted(self._random.sample(range(1, 6), 3))
            return Entry(index, self._term, EntryKind.CONFIGURATION, configuration(voters).encode())
        return Entry(
            index, self._term, EntryKind.OPERATION, self._random.randbytes(self._random.choice((30, 300, 1200)))
        )

    def _pairs(self, changes: int) -> Table:
        table: dict[bytes, bytes | None] = {}
        for _ in range(changes * 2):
            removed = self._random.random() < 0.2
            table[b"key%04d" % self._random.randrange(KEYS)] = None if removed else self._value()
        return table

    def _value(self) -> bytes:
        return self._random.randbytes(self._random.choice(VALUE_BYTES))

    def _sessions(self, applied: int) -> Table:
        random = self._random
        table: dict[bytes, bytes | None] = {b"time": b"%d" % applied}
        for _ in range(random.randrange(4)):
            session = b"session%02d" % random.randrange(SESSIONS)
            table[session] = None if random.random() < 0.1 else b"%040d" % applied
            record = session + b"/%02d" % random.randrange(20)
            table[record] = None if random.random() < 0.4 else self._value()[:900]
        return table

    def _snapshot(self) -> list[Piece | SnapshotHead]:
        """The pieces of a snapshot from somewhere else, and its installation."""
        twin = self.twin
        index = max(twin.applied_index + 1, twin.last_index + self._random.randint(-5, 20))
        term = twin.term_of(index)
        if term is None or self._random.random() < 0.4:
            self._term += 1
            term = self._term
        head = SnapshotHead(index, term, configuration((1, 2)))
        source = _Made(head, (self._pairs(self._random.choice((3, 40))), self._sessions(index)))
        with mock.patch.object(snapshot, "PIECE_BYTES", PIECE_BYTES):
            reader = SnapshotReader(source)
            steps: list[Piece | SnapshotHead] = [Piece(head, reader.offset, reader.piece)]
            while not reader.done:
                reader.next()
                steps.append(Piece(head, reader.offset, reader.piece))
        return [*steps, head]


class _Made:
    """A state that was never anywhere, for a snapshot."""

    def __init__(self, head: SnapshotHead, tables: tuple[Table, Table]) -> None:
        self.head = head
        self._tables = tables

    def records(self, table: int) -> Iterator[tuple[bytes, bytes]]:
        """A table's keys and values."""
        return ((key, value) for key, value in sorted(self._tables[table].items()) if value is not None)

    def close(self) -> None:
        """Nothing is held."""
