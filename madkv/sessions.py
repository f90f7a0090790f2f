"""Exactly-once records: what makes the retry of a call the same call.

A session is opened by a committed operation and named by that operation's index, so that a new session and an expired
one of the same client cannot be taken for each other. Each write carries (session, sequence, floor). The first time,
its answer is recorded; a retry is answered from the record. Below the floor records are forgotten and calls refused.
This is the client table of Ongaro's dissertation, section 6.3, with many calls in flight as in RIFL (Lee et al., 2015).

Everything here is a function of the operations applied and the time that they carry: replicas stay alike.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import attrs

from madkv.errors import Busy, InvalidArgument, MadKVError, StaleCall, UnknownSession
from madkv.limits import (
    SESSION_CALLS_MAX,
    SESSION_OWN_RECORD_BYTES_MAX,
    SESSION_RECORD_BYTES_MAX,
    SESSION_ROWS_EXPIRED_MAX,
    SESSION_SECONDS,
    SESSION_UNUSED_SECONDS,
    SESSIONS_MAX,
)
from madkv.operations import Outcome, Write
from madkv.session_rows import (
    decode_record,
    decode_session,
    encode_record,
    encode_session,
    record_key,
    session_key,
    split_key,
)
from madkv.values import value_class

RECORD_OVERHEAD_BYTES = 200
"""About what one record costs in memory beside its key and its answer."""


@value_class
class Record:
    """The answer of a call that was executed, with its key: a range that moves takes its records along."""

    key: bytes
    outcome: Outcome

    @property
    def size_bytes(self) -> int:
        """What it counts towards SESSION_RECORD_BYTES_MAX."""
        answer = len(self.outcome) if isinstance(self.outcome, bytes) else 0
        return RECORD_OVERHEAD_BYTES + len(self.key) + answer


@attrs.define
class Session:
    """One client's calls. `floor` only grows; every record's sequence number is at or above it."""

    client_id: bytes
    floor: int
    last_write_ms: int
    """Time of the last write, or of the opening while there was none."""
    records: dict[int, Record] = attrs.Factory(dict)
    record_bytes: int = 0


@attrs.frozen
class Tables:
    """All sessions as `Sessions` keeps them, apart from it: made of rows on any thread, taken over by `restore`."""

    unused: OrderedDict[int, Session]
    by_index: OrderedDict[int, Session]
    index_of: dict[bytes, int]
    record_bytes: int

    @staticmethod
    def of(rows: Iterable[tuple[bytes, bytes]]) -> "Tables":
        """By the rows of a whole table. Raises ValueError for what is none."""
        sessions: dict[int, tuple[Session, bool]] = {}
        records: list[tuple[int, int, Record]] = []
        for key, row in rows:
            index, sequence = split_key(key)
            if sequence is None:
                client_id, floor, last_write_ms, is_used = decode_session(row)
                sessions[index] = Session(client_id, floor, last_write_ms), is_used
            else:
                records.append((index, sequence, Record(*decode_record(row))))
        unused: OrderedDict[int, Session] = OrderedDict()
        by_index: OrderedDict[int, Session] = OrderedDict()
        index_of: dict[bytes, int] = {}
        # Those of one time expire together, so their order among themselves does not matter.
        for index, (session, is_used) in sorted(sessions.items(), key=lambda each: each[1][0].last_write_ms):
            (by_index if is_used else unused)[index] = session
            index_of[session.client_id] = index
        if len(index_of) != len(sessions):
            raise ValueError("two sessions of one client")
        record_bytes = 0
        for index, sequence, record in records:
            if index not in sessions:
                raise ValueError(f"a record of session {index}, which is not there")
            session = sessions[index][0]
            session.records[sequence] = record
            session.record_bytes += record.size_bytes
            record_bytes += record.size_bytes
        return Tables(unused, by_index, index_of, record_bytes)


class Sessions:
    """All sessions of one group, bounded in number, in calls each, and in bytes of records together."""

    def __init__(
        self,
        *,
        sessions_max: int = SESSIONS_MAX,
        record_bytes_max: int = SESSION_RECORD_BYTES_MAX,
        life_seconds: float = SESSION_SECONDS,
        rows_expired_max: int = SESSION_ROWS_EXPIRED_MAX,
    ) -> None:
        self._sessions_max = sessions_max
        self._record_bytes_max = record_bytes_max
        self._rows_expired_max = rows_expired_max
        self._life_ms = int(life_seconds * 1000)
        self._unused_life_ms = min(self._life_ms, int(SESSION_UNUSED_SECONDS * 1000))
        # Both in the order of `last_write_ms`: whoever has been idle for longest comes first.
        self._unused: OrderedDict[int, Session] = OrderedDict()  # opened, and no write made yet
        self._by_index: OrderedDict[int, Session] = OrderedDict()  # all the others
        self._index_of: dict[bytes, int] = {}
        self.record_bytes = 0
        # What may differ from the rows taken last.
        self._changed: set[int] = set()
        self._changed_records: set[tuple[int, int]] = set()
        self._changed_bytes = 0

    def __len__(self) -> int:
        return len(self._by_index) + len(self._unused)

    def expire(self, now_ms: int) -> None:
        """Forget sessions that made no write for a session's life, and sooner those that never made one.

        Not too many at once; the others go at later times.
        """
        rows_left = self._close_idle(self._unused, self._unused_life_ms, now_ms, self._rows_expired_max)
        self._close_idle(self._by_index, self._life_ms, now_ms, rows_left)

    def _close_idle(self, sessions: OrderedDict[int, Session], life_ms: int, now_ms: int, rows_max: int) -> int:
        """Close those that have been idle for longer than this, the longest first, up to about so many rows; how many
        are left of these.

        Those of one time go together: what order they have among themselves is not part of the state, and another
        replica may have another.
        """
        last_ms = -1
        while sessions:
            index, session = next(iter(sessions.items()))
            if session.last_write_ms + life_ms >= now_ms or (rows_max <= 0 and session.last_write_ms != last_ms):
                break
            last_ms = session.last_write_ms
            rows_max -= 1 + len(session.records)
            self.close(index)
        return rows_max

    def _make_room(self, now_ms: int, is_full: Callable[[], bool]) -> bool:
        """Close sessions that have been idle for as long as an unused one may live, until there is room; whether there
        is. Otherwise clients that are gone would keep everybody from writing for as long as their sessions live.
        """
        while is_full():
            if self._close_idle(self._by_index, self._unused_life_ms, now_ms, 1) == 1:
                return False
        return True

    def open(self, client_id: bytes, index: int, now_ms: int) -> int | Busy:
        """The client's session: the one it has, or a new one named `index`. Busy when the table is full."""
        existing = self._index_of.get(client_id)
        if existing is not None:
            self._touch(existing, now_ms)
            return existing
        if not self._make_room(now_ms, lambda: len(self) >= self._sessions_max):
            return Busy(f"all {self._sessions_max:,} sessions are in use")
        self._unused[index] = Session(client_id, floor=1, last_write_ms=now_ms)
        self._index_of[client_id] = index
        self._changed.add(index)
        return index

    def close(self, index: int) -> None:
        """Forget a session and its records, if it is there."""
        session = self._by_index.pop(index, None) or self._unused.pop(index, None)
        if session is not None:
            del self._index_of[session.client_id]
            self.record_bytes -= session.record_bytes
            self._changed.add(index)
            self._changed_records.update((index, sequence) for sequence in session.records)

    def admit(self, write: Write, now_ms: int) -> Session | Record | MadKVError:
        """Decide about a write that carries a session, before anything of it is done.

        Returns the Session when it is to be executed now (then call `record`), the Record when it was executed before,
        or the refusal.
        """
        unused = self._unused.pop(write.session, None)
        if unused is not None:
            self._by_index[write.session] = unused
        session = self._touch(write.session, now_ms)
        if session is None:
            return UnknownSession(f"session {write.session} is not open here: it has expired or was closed")
        if write.floor > session.floor:
            self._raise_floor(write.session, session, write.floor)
        if write.sequence < session.floor:
            return StaleCall(f"call {write.sequence} lies below the session's floor, {session.floor}")
        record = session.records.get(write.sequence)
        if record is not None:
            if record.key != write.key:
                return InvalidArgument(f"call {write.sequence} was made before, with another key")
            return record
        if write.sequence >= session.floor + SESSION_CALLS_MAX:
            return InvalidArgument(f"more than {SESSION_CALLS_MAX:,} calls in flight in one session")
        # Its oldest call is let through all the same, if the session has records: until it is answered, the floor
        # cannot rise and none of them goes; a session that filled the table by its later calls would keep it full.
        is_oldest = write.sequence == session.floor and bool(session.records)
        own_full = session.record_bytes >= SESSION_OWN_RECORD_BYTES_MAX and not is_oldest
        bytes_max = (2 if is_oldest else 1) * self._record_bytes_max
        if own_full or (
            self.record_bytes >= bytes_max and not self._make_room(now_ms, lambda: self.record_bytes >= bytes_max)
        ):
            return Busy("no room to record more answers; calls that are being answered will make some")
        return session

    def record(self, session: Session, write: Write, outcome: Outcome) -> None:
        """Keep the answer of a write that `admit` let through and that was executed."""
        record = Record(write.key, outcome)
        size_bytes = record.size_bytes
        session.records[write.sequence] = record
        session.record_bytes += size_bytes
        self.record_bytes += size_bytes
        self._changed_bytes += size_bytes
        self._changed_records.add((write.session, write.sequence))

    def has_changed(self, rows: int, size_bytes: int) -> bool:
        """Whether `take_changes` would give so many rows, or about so many bytes of recorded answers."""
        return len(self._changed) + len(self._changed_records) >= rows or self._changed_bytes >= size_bytes

    def take_changes(self) -> dict[bytes, bytes | None]:
        """The rows that differ from when this was last called; None for one that is gone."""
        rows: dict[bytes, bytes | None] = {}
        for index in self._changed:
            session, is_used = self._find(index)
            rows[session_key(index)] = (
                None
                if session is None
                else encode_session(session.client_id, session.floor, session.last_write_ms, is_used)
            )
        for index, sequence in self._changed_records:
            session, _ = self._find(index)
            record = None if session is None else session.records.get(sequence)
            rows[record_key(index, sequence)] = None if record is None else encode_record(record.key, record.outcome)
        self._changed, self._changed_records, self._changed_bytes = set(), set(), 0
        return rows

    def restore(self, tables: "Tables") -> None:
        """Take the place of everything here."""
        self._unused, self._by_index, self._index_of, self.record_bytes = attrs.astuple(tables, recurse=False)
        self._changed, self._changed_records, self._changed_bytes = set(), set(), 0

    def _find(self, index: int) -> tuple[Session | None, bool]:
        """A session, and whether a write was made in it."""
        session = self._by_index.get(index)
        return (session, True) if session is not None else (self._unused.get(index), False)

    def _touch(self, index: int, now_ms: int) -> Session | None:
        for sessions in (self._by_index, self._unused):
            session = sessions.get(index)
            if session is not None:
                session.last_write_ms = now_ms
                sessions.move_to_end(index)
                self._changed.add(index)
                return session
        return None

    def _raise_floor(self, index: int, session: Session, floor: int) -> None:
        records = session.records
        # A floor may jump by any distance, so never walk more numbers than there are records.
        if floor - session.floor <= len(records):
            below = [number for number in range(session.floor, floor) if number in records]
        else:
            below = [number for number in records if number < floor]
        for number in below:
            size_bytes = records.pop(number).size_bytes
            session.record_bytes -= size_bytes
            self.record_bytes -= size_bytes
            self._changed_records.add((index, number))
        session.floor = floor
