"""apply(operation) -> outcome, over a mapping: the one place where the meaning of a write is written down.

Deterministic: the same operations with the same indexes and times give the same pairs, sessions and outcomes on every
replica, after every restart.
"""

from collections.abc import Iterable
from typing import Protocol

from madkv.errors import WrongPartition
from madkv.operations import CloseSession, OpenSession, Operation, Outcome, Own, Write, WriteKind
from madkv.ranges import EVERYTHING, Ownership
from madkv.session_rows import OWNERSHIP_KEY, TIME_KEY, decode_time, encode_time
from madkv.sessions import Record, Session, Sessions, Tables

Decoded = tuple[Tables, int, Ownership]
"""Sessions, time and ownership."""


class Pairs(Protocol):
    """The mapping that writes act on."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Set the value of `key`; the value it had, or None."""

    def delete(self, key: bytes) -> bytes | None:
        """Remove `key` if it is there; the value it had, or None."""


class StateMachine:
    """Pairs, sessions and ownership of one group, changed by `apply` alone."""

    def __init__(self, pairs: Pairs, sessions: Sessions | None = None, first_ownership: Ownership = EVERYTHING) -> None:
        """`first_ownership` holds until an operation says otherwise."""
        self._pairs = pairs
        self._sessions = Sessions() if sessions is None else sessions
        self._ownership_changed = False
        self._first_ownership = first_ownership
        self.ownership = first_ownership
        """What the group owns, as of `last_applied`."""
        self.time_ms = 0
        """The group's time: the latest that an applied operation carried. It never goes back."""
        self.last_applied = 0
        """Index of the entry applied last; grows by one."""

    def apply(self, index: int, time_ms: int, operation: Operation) -> Outcome:
        """Execute the operation at `index`, the one after `last_applied`.

        `time_ms` is the group's time by its proposer's clock; session life is counted in it and in nothing else. A new
        leader may not have seen how late it is, and say an earlier time.
        """
        assert index == self.last_applied + 1, f"entry {index} does not follow {self.last_applied}"
        self.last_applied = index
        if time_ms > self.time_ms:
            self.time_ms = time_ms
            self._sessions.expire(time_ms)
        if isinstance(operation, Write):
            return self._write(operation)
        if isinstance(operation, OpenSession):
            return self._sessions.open(operation.client_id, index, self.time_ms)
        if isinstance(operation, CloseSession):
            self._sessions.close(operation.session)
            return None
        assert isinstance(operation, Own)
        if operation.ownership.epoch > self.ownership.epoch:
            self.ownership = operation.ownership
            self._ownership_changed = True
        return None

    def skip(self, index: int) -> None:
        """Go past an entry that holds no operation."""
        assert index == self.last_applied + 1, f"entry {index} does not follow {self.last_applied}"
        self.last_applied = index

    def misplaced(self, key: bytes) -> WrongPartition | None:
        """The refusal of a call about a key that this group does not own, as of `last_applied`."""
        if self.ownership is EVERYTHING or self.ownership.range_of(key) is not None:
            return None
        epoch = self.ownership.epoch
        return WrongPartition(f"not a key of this group, as of epoch {epoch}", epoch)

    def take_changes(self) -> dict[bytes, bytes | None]:
        """Rows of everything but the pairs that differ from when this was last called; None for one that is gone."""
        rows = self._sessions.take_changes()
        rows[TIME_KEY] = encode_time(self.time_ms)
        if self._ownership_changed:
            rows[OWNERSHIP_KEY] = self.ownership.encode()
            self._ownership_changed = False
        return rows

    def has_changed(self, rows: int, size_bytes: int) -> bool:
        """Whether `take_changes` would give about so many rows or bytes."""
        return self._sessions.has_changed(rows, size_bytes)

    def decode_rows(self, rows: Iterable[tuple[bytes, bytes]]) -> Decoded:
        """A state, apart from this one and for its `restore`. May be called on any thread: there may be many rows.

        Raises ValueError for what is none.
        """
        table = dict(rows)
        time_row, ownership_row = table.pop(TIME_KEY, None), table.pop(OWNERSHIP_KEY, None)
        time_ms = 0 if time_row is None else decode_time(time_row)
        ownership = self._first_ownership if ownership_row is None else Ownership.decode(ownership_row)
        return Tables.of(table.items()), time_ms, ownership

    def restore(self, decoded: Decoded, last_applied: int) -> None:
        """Take up a state; the pairs are there."""
        tables, self.time_ms, self.ownership = decoded
        self._sessions.restore(tables)
        self._ownership_changed = False
        self.last_applied = last_applied

    def _write(self, write: Write) -> Outcome:
        # The key's place first: a refusal for that leaves no record, so that the group that owns it may execute it.
        if self.ownership is not EVERYTHING and (refusal := self.misplaced(write.key)) is not None:
            return refusal
        if write.session == 0:
            return self._execute(write)
        match self._sessions.admit(write, self.time_ms):
            case Session() as session:
                outcome = self._execute(write)
                self._sessions.record(session, write, outcome)
                return outcome
            case Record() as record:
                return record.outcome
            case refused:
                return refused

    def _execute(self, write: Write) -> Outcome:
        if write.kind is WriteKind.PUT:
            return self._pairs.put(write.key, write.value) is not None
        if write.kind is WriteKind.SWAP:
            return self._pairs.put(write.key, write.value)
        assert write.kind is WriteKind.DELETE
        return self._pairs.delete(write.key) is not None
