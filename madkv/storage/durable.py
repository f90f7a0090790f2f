"""The LMDB store: log, term and vote, pairs, sessions and how far they go, each commit in one synced transaction.

Threads. `write`, `stage` and `install` block on the disk; they may be called on any one thread, one at a time, and each
is a whole transaction within the call. Everything else belongs to the reactor's thread and never waits for the disk;
it sees what was written once `written` was called for it. LMDB's readers see a state from before or after a commit,
never half of one, so what they see is right whichever it is: the overlay above holds everything newer. For that a
commit removes nothing that memory still speaks of before `written`: entries that were cut off leave with later commits,
and the tables that a snapshot replaces are emptied when the next one is staged, or at start-up.

Tables. `meta`: hard state, `Meta` and the directory's identity. `log.N`: entries by index. `pairs.N`, `sessions.N`: the
replicated state in generation N; an installed snapshot is staged in the other one, and a flip of the number in `Meta`
puts it in force. The log has a generation of its own, since it may outlive that.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from zlib import crc32

import lmdb

from madkv.counts import ENTRIES, Histogram
from madkv.errors import MadKVError, ProtocolError
from madkv.raft.configuration import Configuration
from madkv.raft.messages import Entry, HardState
from madkv.storage.batch import Batch, Table
from madkv.storage.directory import DATA_FILE, Directory
from madkv.storage.index import LogIndex
from madkv.storage.records import (
    CHECKSUM_BYTES,
    Damaged,
    Meta,
    decode_entry,
    decode_hard_state,
    decode_meta,
    encode_entry,
    encode_hard_state,
    encode_meta,
    index_key,
    index_of,
    operation_prefix,
    seal,
    unseal,
)
from madkv.storage.snapshot import PAIRS, SESSIONS, SnapshotHead, SnapshotReader, records_of
from madkv.storage.state import StoredState

MAP_BYTES = 1 << 40
"""Address space, not disk space: the file grows with what is in it."""
FULL_FRACTION = 0.9
"""Beyond this part of the map no more is written: LMDB needs room to free room."""
FILE_AHEAD_BYTES = 256 << 20
"""The file is kept longer (by a hole) than what LMDB may use next: so a file that is too short was cut short."""
LOOK_BYTES = 32 << 20
"""How much the file may have grown before it is looked at again; less than what it is kept ahead at least."""
COMMIT_BYTES, RECORD_BYTES = 128 << 10, 32 << 10
"""What a commit adds at the most beside its records (roots of all tables, the list of free pages), and for each of them
(eight pages, more than any of LMDB's trees of this size are deep)."""
TABLES_MAX = 8
READERS_MAX = 126
READERS_FILE = "lock.mdb"
READERS_BYTES = 8192
"""What LMDB's table of that many readers takes."""
REMOVED_ENTRIES_MAX = 512
"""Entries that were cut off and leave the table with one commit, or twice as many as come if that is more: a long log
goes over several commits, so that none takes long, and yet the table does not grow."""
TABLES = (b"meta", b"log.0", b"log.1", b"pairs.0", b"sessions.0", b"pairs.1", b"sessions.1")
HARD_STATE_KEY, META_KEY, IDENTITY_KEY = b"hard_state", b"meta", b"identity"
"""The records in the table `meta`."""


class StoreFull(MadKVError):
    """The store has come near the size of its map. Nothing was written."""


class StoreFailed(MadKVError):
    """A commit failed, and what of it is on disk is unknown. Answer nobody, and stop; no other is let through."""


class DurableStorage(StoredState):
    """One replica's store, in a directory that it holds. A LogReader for the Raft log."""

    def __init__(self, directory: Directory, configuration: Configuration, *, sync: bool = True) -> None:
        """Open what is there, or make it: then the group's first configuration is `configuration`.

        Raises Damaged when files are missing, cut short or changed, StoreFailed when the disk is full. `sync=False` is
        for tests that show what it costs.
        """
        self._directory = directory
        self._path = directory.path / DATA_FILE
        if not directory.is_new and not (self._path.exists() and self._path.stat().st_size > 0):
            raise Damaged(f"{self._path} is missing or empty: this replica's data is gone")
        self._failed = False
        self.commit_times, self.sync_times, self.batch_entries = Histogram(), Histogram(), Histogram(ENTRIES)
        """How long commits took in all, and LMDB's own part of it, which is to write pages and sync them; and how many
        entries of the log came together, where there were any."""
        self._growth_bytes = LOOK_BYTES  # since the file was looked at last, at the most
        self._meta = Meta()
        self._reader: Any = None
        _reserve(directory.path / READERS_FILE, READERS_BYTES)
        try:
            self._env = lmdb.open(
                str(directory.path),
                map_size=MAP_BYTES,
                max_dbs=TABLES_MAX,
                max_readers=READERS_MAX,
                sync=sync,
                metasync=sync,
                lib_version=0,
            )
        except lmdb.Error as error:
            raise Damaged(f"{self._path} cannot be opened: {error}") from None
        try:
            self._check_length()
            self._env.reader_check()
            self._open_tables()
            if directory.is_new:
                with self._commit() as txn:
                    self._put_meta(txn, Meta(configuration=configuration, applied_configuration=configuration))
                    txn.put(HARD_STATE_KEY, seal(HARD_STATE_KEY, encode_hard_state(HardState())), db=self._meta_table)
                    txn.put(IDENTITY_KEY, seal(IDENTITY_KEY, self._identity()), db=self._meta_table)
                directory.made()
            with self._env.begin() as txn:
                if self._sealed(txn, IDENTITY_KEY) != self._identity():
                    raise Damaged(f"{self._path} is not this directory's: it was made together with another IDENTITY")
                self._meta = decode_meta(self._sealed(txn, META_KEY))
                hard_state = decode_hard_state(self._sealed(txn, HARD_STATE_KEY))
                index, self._first_stored = self._read_log(txn)
            super().__init__(hard_state, self._meta, index)
            self._drop_other_generation()
        except lmdb.Error as error:
            self._env.close()
            if directory.is_new:
                raise StoreFailed(f"{self._path} cannot be made: {error} ({_room(self._path)})") from None
            raise Damaged(f"{self._path} is damaged: {error}") from None
        except BaseException:
            self._env.close()
            raise

    def close(self) -> None:
        """Close the environment and let go of the directory."""
        self.end_turn()
        self._env.close()
        self._directory.close()

    # --- The log, as Raft reads it ----------------------------------------------------------------------------------

    def entries(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        """Entries `first` to `last`, at least one, up to the one that reaches `bytes_max`. Raises Damaged."""
        found: list[Entry] = []
        size = 0
        with self._reading(), self._read().cursor(db=self._log_table) as cursor:
            for key, record in cursor.iternext() if cursor.set_key(index_key(first)) else ():
                entry = self._entry(key, record)
                if entry.index != first + len(found):
                    break
                found.append(entry)
                size += entry.size_bytes
                if size >= bytes_max or entry.index == last:
                    return found
        raise Damaged(f"the log has no entry {first + len(found)}, although it goes up to {self.last_index}")

    # --- Pairs and sessions, as of applied_index or later -----------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value of a key. Raises Damaged."""
        try:
            record = self._read().get(key, db=self._pairs_table)
            return None if record is None else unseal(key, record)
        except lmdb.Error as error:  # not `_reading`: this is called for every write
            raise Damaged(f"{self._path} cannot be read: {error}") from None
        except Damaged as error:
            raise Damaged(f"{self._path}: {error}") from None

    def pairs(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key <= end in key order; good until the reactor's turn ends. Raises Damaged."""
        with self._reading(), self._read().cursor(db=self._pairs_table) as cursor:
            if cursor.set_range(start) if start else cursor.first():
                for key, record in cursor.iternext():
                    if key > end:
                        return
                    yield key, self._unseal(key, record)

    def open_pairs(self) -> "_Pairs":
        """All pairs, as of applied_index or later, whatever is committed meanwhile; close it soon, as a snapshot."""
        return _Pairs(self)

    def sessions(self) -> list[tuple[bytes, bytes]]:
        """The whole table of sessions, for start-up. Raises Damaged."""
        return self._sessions_in(self._sessions_table)

    def _sessions_in(self, table: Any) -> list[tuple[bytes, bytes]]:
        with self._env.begin() as txn:
            return list(self._records(txn, table))

    def _records(self, txn: Any, table: Any) -> Iterator[tuple[bytes, bytes]]:
        """All of a table. Raises Damaged, also when there are fewer than LMDB has counted: a page that leads to others
        has no checksum."""
        count = 0
        with self._reading(), txn.cursor(db=table) as cursor:
            for key, record in cursor:
                count += 1
                yield key, self._unseal(key, record)
        if count != txn.stat(table)["entries"]:
            raise Damaged(f"{self._path} is damaged: a table has lost a part")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What LMDB finds wrong with its pages is damage."""
        try:
            yield
        except lmdb.Error as error:
            raise Damaged(f"{self._path} cannot be read: {error}") from None

    def end_turn(self) -> None:
        """Let go of the state that was read from: the next reading sees what was committed meanwhile."""
        if self._reader is not None:
            self._reader.abort()
            self._reader = None

    def _read(self) -> Any:
        if self._reader is None:
            self._reader = self._env.begin()  # py-lmdb renews the one that was let go of
        return self._reader

    # --- Writing ----------------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """Commit a batch and wait until it is on disk. Raises StoreFull, StoreFailed: then what was to be promised on
        the strength of this batch must not be."""
        meta = self._prepare(batch)
        removed_max = max(REMOVED_ENTRIES_MAX, 2 * len(batch.entries))
        first_kept = min(self.snapshot_index + 1, self._first_stored + removed_max)
        with self._commit(_growth_max(batch, first_kept - self._first_stored)) as txn:
            if batch.hard_state is not None:
                txn.put(HARD_STATE_KEY, seal(HARD_STATE_KEY, encode_hard_state(batch.hard_state)), db=self._meta_table)
            self._remove_cut_off(txn, first_kept)
            self._replace_entries(txn, batch.entries)
            self._change(txn, self._pairs_table, batch.pairs)
            self._change(txn, self._sessions_table, batch.sessions)
            if meta != self._meta:
                self._put_meta(txn, meta)
        self._first_stored = first_kept
        if batch.entries:
            self.batch_entries.add(len(batch.entries))

    def written(self, batch: Batch) -> None:
        """Take over what a batch changed; to be called on the reactor's thread, after `write`."""
        self.end_turn()
        super().written(batch)

    @contextmanager
    def _commit(self, growth_max: int = LOOK_BYTES) -> Iterator[Any]:
        """One synced transaction. After one that failed there is no other: LMDB may have written its page that says
        what is in force, and then not know whether that reached the disk.

        The file can grow by `growth_max` bytes at the most. To look at it takes about as long as a small commit.
        """
        if self._failed:
            raise StoreFailed(f"{self._path}: an earlier commit failed")
        began = monotonic()
        self._growth_bytes += growth_max
        looks = self._growth_bytes >= LOOK_BYTES
        try:
            if looks:
                self._look(self.used_bytes)
            with self._env.begin(write=True) as txn:
                yield txn
                filled = monotonic()
            ended = monotonic()
            self.sync_times.add(ended - filled)
            self.commit_times.add(ended - began)
            if looks:
                self._lengthen(self.used_bytes)
                self._growth_bytes = 0
        except (lmdb.Error, OSError) as error:
            self._failed = True
            raise StoreFailed(f"{self._path}: a commit failed: {error} ({_room(self._path)})") from error

    def _replace_entries(self, txn: Any, entries: tuple[Entry, ...]) -> None:
        if not entries:
            return
        with txn.cursor(db=self._log_table) as cursor:
            if cursor.set_range(index_key(entries[0].index)):
                while cursor.delete():
                    pass
            for entry in entries:
                appended = cursor.put(index_key(entry.index), encode_entry(entry), append=True)
                assert appended, "entries are written in the order of their indexes"

    def _remove_cut_off(self, txn: Any, first_kept: int) -> None:
        """Remove entries before `first_kept`, which were cut off by earlier commits."""
        count = first_kept - self._first_stored
        if count:
            with txn.cursor(db=self._log_table) as cursor:
                removed = cursor.set_key(index_key(self._first_stored))
                for _ in range(count):
                    removed = removed and cursor.delete()
                assert removed, "the log has no gaps"

    def _change(self, txn: Any, table: Any, changes: Table) -> None:
        for key in sorted(changes):
            value = changes[key]
            if value is None:
                txn.delete(key, db=table)
            else:
                txn.put(key, seal(key, value), db=table)

    # --- Snapshots --------------------------------------------------------------------------------------------------

    def open_snapshot(self, piece_bytes: int | None = None) -> SnapshotReader:
        """The state at the durable applied index. Close it soon: while it is open, LMDB cannot reuse what it frees.

        Everything about it comes from one LMDB state. Taken from memory, the index could be that of operations which
        are applied and not in the tables yet: whoever installs the snapshot would never get them. Or a commit is done
        and `written` not called yet: the configuration would be one that had been replaced, the tables those that an
        installed snapshot replaced.
        """
        return SnapshotReader(_Source(self), piece_bytes)

    def stage(self, head: SnapshotHead, offset: int, piece: bytes) -> int:
        """Write one piece into the generation that is not in force; how many bytes of this snapshot are staged.

        A piece that does not follow the last one changes nothing, but for the first of a new snapshot, which throws
        away what was staged of another. Raises ProtocolError for what is no piece; StoreFull, StoreFailed as `write`.
        """
        if head != self._staged_head:
            if offset != 0:
                return 0
            self._drop_other_generation()
            self._staged_head, self._staged_bytes = head, 0
        if offset == self._staged_bytes:
            with self._commit() as txn:
                tables = self._state_tables[1 - self._meta.generation]
                for table, key, value in records_of(piece):
                    if not txn.put(key, seal(key, value), db=tables[table], append=True):
                        raise ProtocolError("a snapshot whose keys are not in order")
            self._staged_bytes += len(piece)
        return self._staged_bytes

    def install(self, head: SnapshotHead) -> list[tuple[bytes, bytes]]:
        """Put the staged snapshot in force: tables, log and meta in one transaction. Then call `installed`.

        Returns the whole table of sessions, which may be long: so it is read here, where reading holds up nobody.
        Entries after the snapshot stay if the log holds its last one: they may have been acknowledged (section 7).
        """
        assert head == self._staged_head and head.last_index > self.applied_index
        with self._commit() as txn:
            self._put_meta(txn, self._meta_with(head))
        return self._sessions_in(self._state_tables[1 - self._meta.generation][SESSIONS])

    def installed(self, head: SnapshotHead) -> None:
        """Take over what `install` changed; to be called on the reactor's thread. The old generation goes later."""
        self.end_turn()
        if not self._keeps_log(head):
            self._first_stored = head.last_index + 1
        super().installed(head)

    # --- Opening ----------------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """How much of the data file is in use, or was and will be used again."""
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def _look(self, used: int) -> None:
        """Whether there is room for what comes until the next look."""
        if used > FULL_FRACTION * MAP_BYTES:
            raise StoreFull(f"{self._path} holds {used:,} bytes, near the limit of {MAP_BYTES:,}")
        self._lengthen(used)

    def _lengthen(self, used: int) -> None:
        """Keep the file ahead of what LMDB uses. By itself it may end before that: pages that a transaction takes and
        gives back are never written. The next commit's sync covers the length too."""
        if os.path.getsize(self._path) < used + FILE_AHEAD_BYTES // 2:
            os.truncate(self._path, used + FILE_AHEAD_BYTES)

    def _check_length(self) -> None:
        """A file that was cut short would end the process by a signal as soon as a missing page is looked at."""
        used = self.used_bytes
        if os.path.getsize(self._path) < used and not self._directory.is_new:
            raise Damaged(f"{self._path} was cut short: it should have at least {used:,} bytes")

    def _identity(self) -> bytes:
        return self._directory.identity.to_json().encode()

    def _open_tables(self) -> None:
        """All of them now: opening one is a transaction, which the reactor's thread must not wait for."""
        try:
            tables = [self._env.open_db(name, create=self._directory.is_new) for name in TABLES]
        except lmdb.NotFoundError:
            raise Damaged(f"{self._path} does not have MadKV's tables: it is not MadKV's") from None
        self._meta_table, *logs, pairs_0, sessions_0, pairs_1, sessions_1 = tables
        self._log_tables = logs
        self._state_tables = (pairs_0, sessions_0), (pairs_1, sessions_1)

    @property
    def _log_table(self) -> Any:
        return self._log_tables[self._meta.log_generation]

    @property
    def _pairs_table(self) -> Any:
        return self._state_tables[self._meta.generation][PAIRS]

    @property
    def _sessions_table(self) -> Any:
        return self._state_tables[self._meta.generation][SESSIONS]

    def _unseal(self, key: bytes, record: bytes) -> bytes:
        try:
            return unseal(key, record)
        except Damaged as error:
            raise Damaged(f"{self._path}: {error}") from None

    def _entry(self, key: bytes, record: bytes) -> Entry:
        try:
            return decode_entry(key, record)
        except Damaged as error:
            raise Damaged(f"{self._path}: {error}") from None

    def _sealed(self, txn: Any, key: bytes) -> bytes:
        record = txn.get(key, db=self._meta_table)
        if record is None:
            raise Damaged(f"{self._path} has no {key.decode()}: it is not a finished store")
        return self._unseal(key, record)

    def _put_meta(self, txn: Any, meta: Meta) -> None:
        txn.put(META_KEY, seal(META_KEY, encode_meta(meta)), db=self._meta_table)

    def _drop_other_generation(self) -> None:
        """Empty what is not in force: tables that were replaced, or a snapshot that never came to its end."""
        tables = (*self._state_tables[1 - self._meta.generation], self._log_tables[1 - self._meta.log_generation])
        with self._env.begin() as txn:
            filled = [table for table in tables if txn.stat(table)["entries"]]
        if filled:
            with self._commit() as txn:
                for table in filled:
                    txn.drop(table, delete=False)

    def _read_log(self, txn: Any) -> tuple[LogIndex, int]:
        """Go through the log once: terms, configurations, and that every entry is whole and in its place.

        Also the index of the first entry in the table, which may have been cut off already.
        """
        meta = self._meta
        index = LogIndex(meta.snapshot_index, meta.snapshot_term, meta.configuration)
        first_stored = meta.snapshot_index + 1
        with txn.cursor(db=self._log_table) as cursor:
            if cursor.first():
                first_stored = min(first_stored, index_of(cursor.key()))
            # Nearly all are operations of the same term as the one before. They are looked at here and now: a hundred
            # thousand of them are all that a start takes time for.
            last, waiting, waiting_bytes, alike = meta.snapshot_index, 0, 0, b""
            for key, record in cursor.iternext() if cursor.set_range(index_key(meta.snapshot_index + 1)) else ():
                data = record[CHECKSUM_BYTES:]
                if (
                    data.startswith(alike)
                    and alike
                    and key == index_key(last + 1)
                    and record[:CHECKSUM_BYTES] == crc32(data, crc32(key)).to_bytes(CHECKSUM_BYTES)
                ):
                    last += 1
                    waiting += 1
                    waiting_bytes += len(data) - len(alike)
                    if waiting == LogIndex.RUN_ENTRIES:
                        index.append_run(waiting, waiting_bytes)
                        waiting = waiting_bytes = 0
                    continue
                if waiting:
                    index.append_run(waiting, waiting_bytes)
                    waiting = waiting_bytes = 0
                entry = self._entry(key, record)
                if entry.index != index.last_index + 1:
                    raise Damaged(f"{self._path}: the log jumps from entry {index.last_index} to {entry.index}")
                if entry.term < (index.term_of(index.last_index) or 0):
                    raise Damaged(f"{self._path}: the log's terms go back at entry {entry.index}")
                index.append(entry)
                last = entry.index
                alike = operation_prefix(entry.term)
            if waiting:
                index.append_run(waiting, waiting_bytes)
        if index.last_index - first_stored + 1 != txn.stat(self._log_table)["entries"]:
            raise Damaged(f"{self._path}: the log has lost a part: it ends at entry {index.last_index}")
        if not meta.snapshot_index <= meta.applied_index <= index.last_index:
            raise Damaged(
                f"{self._path}: the data goes up to entry {meta.applied_index}, "
                f"the log from {meta.snapshot_index} to {index.last_index}"
            )
        return index, first_stored


def _reserve(path: Path, size: int) -> None:
    """Have room for a file that is written through a map: on a full disk that would end the process by a signal."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)
    except OSError as error:
        raise StoreFailed(f"{path} cannot be made: {error.strerror} ({_room(path.parent)})") from None


def _growth_max(batch: Batch, removed: int) -> int:
    """How many bytes a commit adds to the file at the most; for one of applied data that is not worked out.

    These are new copies of all pages on the way to each record that comes or goes, and the pages of what is long.
    """
    if batch.applied_index is not None:
        return LOOK_BYTES
    payload_bytes = sum([len(entry.payload) for entry in batch.entries])
    return COMMIT_BYTES + (len(batch.entries) + removed) * RECORD_BYTES + 2 * payload_bytes


def _room(path: Path) -> str:
    """How full the disk is: LMDB calls it an input/output error when only a part of a page found room."""
    try:
        disk = os.statvfs(path)
    except OSError as error:
        return str(error)
    return f"its disk has {disk.f_bavail * disk.f_frsize:,} bytes free"


class _Pairs:
    """The pairs of one LMDB state, in the tables that memory speaks of: to it belongs the overlay above.

    (Those that a snapshot has just replaced, where `installed` was not called yet; this state still has them.)
    """

    def __init__(self, storage: DurableStorage) -> None:
        self._storage = storage
        self._txn: Any = storage._env.begin()
        self._table = storage._pairs_table

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values. Raises Damaged."""
        return self._storage._records(self._txn, self._table)

    def close(self) -> None:
        """Let go of the state."""
        self._txn.abort()


class _Source:
    """One LMDB state, for a snapshot."""

    def __init__(self, storage: DurableStorage) -> None:
        self._storage = storage
        self._txn: Any = storage._env.begin()
        meta = decode_meta(storage._sealed(self._txn, META_KEY))
        self._tables = storage._state_tables[meta.generation]
        term = meta.snapshot_term
        if meta.applied_index > meta.snapshot_index:
            key = index_key(meta.applied_index)
            term = storage._entry(key, self._txn.get(key, db=storage._log_tables[meta.log_generation]) or b"").term
        self.head = SnapshotHead(meta.applied_index, term, meta.applied_configuration)

    def records(self, table: int) -> Iterator[tuple[bytes, bytes]]:
        """A table's keys and values."""
        return self._storage._records(self._txn, self._tables[table])

    def close(self) -> None:
        """Let go of the state."""
        self._txn.abort()
