"""Look through the whole of a stopped node's directory, and change nothing in it.

Start-up reads what it needs to go on: term and vote, the log after the snapshot, sessions. This reads every record of
the tables in force, by its place and by its key, and says what does not fit; also what the next start throws away,
which is no damage. LMDB is opened for reading only, without a table of readers: no file is made, grown or touched.

LMDB trusts its own pages, which have no checksums: a flipped bit in one may end the process that reads it by a signal.
They are looked through first (`storage/pages.py`); yet whoever calls `check_data` does it in a process that may end,
and keeps the report as it was when `progress` was last told something.
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import attrs
import lmdb

from madkv.raft.configuration import Configuration
from madkv.raft.messages import EntryKind, HardState
from madkv.storage.directory import (
    CREATING_FILE,
    DATA_FILE,
    IDENTITY_FILE,
    LOCK_FILE,
    Identity,
    WrongDirectory,
    whole_disk_id,
)
from madkv.storage.durable import (
    HARD_STATE_KEY,
    IDENTITY_KEY,
    MAP_BYTES,
    META_KEY,
    READERS_FILE,
    TABLES,
    TABLES_MAX,
)
from madkv.storage.pages import META_PAGES, Pages, commits
from madkv.storage.records import (
    Damaged,
    Meta,
    decode_entry,
    decode_hard_state,
    decode_meta,
    index_of,
    unseal,
)

PROGRESS_RECORDS = 2048
"""How many records are read between two words about progress."""
OWN_FILES = frozenset((IDENTITY_FILE, LOCK_FILE, CREATING_FILE, DATA_FILE, READERS_FILE))


@attrs.define
class Damage:
    """One kind of it."""

    what: str
    count: int
    first: str
    """Where it was found first; empty where the kind says that."""

    def __str__(self) -> str:
        if not self.first:
            return self.what
        return f"{self.what} ({f'{self.count:,} times, first' if self.count > 1 else 'once'}: {self.first})"


@attrs.define
class Report:
    """What is in a directory. None: it could not be told."""

    identity: Identity | None = None
    hard_state: HardState | None = None
    meta: Meta | None = None
    log_first: int | None = None
    """The first and last entry of the log, which may begin before the snapshot's last; None when it holds none."""
    log_last: int | None = None
    pairs: int | None = None
    sessions: int | None = None
    used_bytes: int | None = None
    """Of the data file: what is in use, or was and will be used again."""
    file_bytes: int | None = None
    notes: list[str] = attrs.Factory(list)
    """What is there and is no damage, and what the next start does about it."""
    damage: dict[str, Damage] = attrs.Factory(dict)
    """By kind, in the order in which they were found."""

    def damaged(self, what: str, first: str = "") -> None:
        """Add a piece of damage: once more of the same kind, or a new one with its first example."""
        if what in self.damage:
            self.damage[what].count += 1
        else:
            self.damage[what] = Damage(what, 1, first)


Progress = Callable[[str, int, int], None]
"""Told which table is read, how many of its records were, and how many there are; after each new kind of damage too."""


class Rows(Protocol):
    """What the rows of a node's sessions mean. Each raises ValueError for what is none."""

    sessions: int
    """How many were seen."""

    def add(self, key: bytes, row: bytes) -> None:
        """The next row."""

    def finish(self, applied_index: int) -> None:
        """That was all of them, as of this index."""


def check_files(path: Path) -> Report:
    """Whose directory it is, and what files are in it. Raises WrongDirectory when it is none of MadKV's.

    `report.identity` is None, and nothing is damaged, when it was never finished: then there is no data to look at.
    """
    try:
        names = set(os.listdir(path))
    except NotADirectoryError:
        raise WrongDirectory(f"{path} is not a directory") from None
    except FileNotFoundError:
        raise WrongDirectory(f"there is no {path}") from None
    except OSError as error:
        raise WrongDirectory(f"cannot read the directory {path}: {error.strerror}") from None
    for name in names & OWN_FILES:
        if not os.access(path / name, os.R_OK, effective_ids=True):
            raise WrongDirectory(f"{path / name} may not be read by this user: run this as the user of its node")
    report = Report()
    others = sorted(names - OWN_FILES)
    if IDENTITY_FILE not in names and CREATING_FILE in names:
        disk = whole_disk_id(_text(path / CREATING_FILE) or "")
        drawn = "" if disk is None else f" (disk {disk.hex()})"
        report.notes.append(f"it was never finished{drawn}: the next start begins it anew")
        return report
    if not names & {IDENTITY_FILE, DATA_FILE}:
        raise WrongDirectory(f"{path} {f'holds {min(others)}' if others else 'is empty'}: it is no node's directory")
    if IDENTITY_FILE not in names:
        report.damaged(f"{IDENTITY_FILE} is missing")
    else:
        try:
            report.identity = Identity.from_json(_text(path / IDENTITY_FILE) or "")
        except WrongDirectory as error:
            report.damaged(f"{IDENTITY_FILE}: {error}")
        except ValueError:
            report.damaged(f"{IDENTITY_FILE} cannot be read")
    if CREATING_FILE in names:
        report.notes.append(f"{CREATING_FILE} is left over from its making: the next start removes it")
    if others:
        report.notes.append(f"it also holds {', '.join(others)}, not MadKV's: left alone")
    return report


def check_data(path: Path, report: Report, rows: Callable[[str], Rows | None], progress: Progress) -> None:
    """Look through the data file in the directory `path`, and add to `report` what is found.

    `rows` makes, from a node's name, what knows the rows of its sessions. Damage of LMDB's own pages may end the
    process by a signal, and so may a disk that cannot be read.
    """
    data_file = path / DATA_FILE
    if not data_file.exists() or not data_file.stat().st_size:
        report.damaged(f"{DATA_FILE} is missing or empty: this node's data is gone")
        return
    report.file_bytes = data_file.stat().st_size
    try:
        env = lmdb.open(
            str(path),
            map_size=MAP_BYTES,
            max_dbs=TABLES_MAX,
            readonly=True,
            lock=False,
            create=False,
            readahead=True,
            lib_version=0,
        )
    except lmdb.Error as error:
        report.damaged(f"{DATA_FILE} cannot be opened: {error}")
        return
    with closing(env):
        report.used_bytes = int((env.info()["last_pgno"] + 1) * env.stat()["psize"])
        if report.file_bytes < report.used_bytes:
            # To look at a page that is not there would end the process.
            report.damaged(
                f"{DATA_FILE} was cut short: it has {report.file_bytes:,} bytes, and should have at least "
                f"{report.used_bytes:,}; nothing in it was looked at"
            )
            return
        _check_pages(data_file, report, progress)
        _Look(env, report, rows, progress).through()


def _check_pages(data_file: Path, report: Report, progress: Progress) -> None:
    """What LMDB itself keeps. Two pages say in turn what is in force, each of the commit that follows the other's: if
    the number in one has changed, LMDB may take the last commit but one for the last, and nobody would know."""
    try:
        numbers = commits(data_file)
        if abs(numbers[0] - numbers[1]) != 1 or max(numbers) % META_PAGES != numbers.index(max(numbers)):
            report.damaged(
                f"LMDB's pages: the two that say what is in force are of commits {numbers[0]} and {numbers[1]}, which "
                "do not follow each other"
            )
        Pages(data_file, report.damaged, lambda done, total: progress("pages", done, total)).walk()
    except struct.error:
        report.damaged("LMDB's pages: those that say what is in force cannot be read")


class _Look:
    """One look through all tables, each in a transaction of its own: LMDB gives up one in which it found damage."""

    def __init__(self, env: Any, report: Report, rows: Callable[[str], Rows | None], progress: Progress) -> None:
        self._env = env
        self._report = report
        self._rows = rows
        self._progress = progress
        self._tables: dict[str, Any] = {}

    def through(self) -> None:
        """Look."""
        self._open_tables()
        records = dict(self._records("meta"))
        self._check_identity(records.pop(IDENTITY_KEY, None))
        report = self._report
        report.hard_state = self._decoded(HARD_STATE_KEY, records.pop(HARD_STATE_KEY, None), decode_hard_state)
        report.meta = meta = self._decoded(META_KEY, records.pop(META_KEY, None), decode_meta)
        for key in records:
            report.damaged("meta: a record that is none of MadKV's", shown(key))
        if meta is None:
            report.notes.append("which tables are in force cannot be told: all were looked at, each by itself")
            for name in [name for name in self._tables if name != "meta"]:
                for _ in self._records(name):
                    pass
            return
        names = f"log.{meta.log_generation}", f"sessions.{meta.generation}", f"pairs.{meta.generation}"
        self._check_log(names[0], meta)
        self._check_sessions(names[1], meta)
        report.pairs = sum(1 for _ in self._records(names[2]))
        for name in [name for name in self._tables if name not in ("meta", *names)]:
            self._check_left_over(name)

    def _check_left_over(self, name: str) -> None:
        """A table that is not in force: its records count no more, but whoever empties it goes through its pages."""
        count = self._count(name)
        if not count:
            return
        self._report.notes.append(
            f"{name} holds {count:,} records and is not in force (replaced by a snapshot, or one that was never "
            "finished): the next start empties it"
        )
        for _ in self._stored(name, count):
            pass

    def _open_tables(self) -> None:
        names = [name.decode() for name in TABLES]
        try:
            with self._env.begin() as txn:
                found = {key for key, _ in txn.cursor()}
        except (lmdb.Error, MemoryError) as error:
            self._report.damaged(f"the list of tables cannot be read: {error}")
            return
        for key in found - set(TABLES):
            self._report.damaged("a table that is none of MadKV's", shown(key))
        for name in names:
            try:
                self._tables[name] = self._env.open_db(name.encode(), create=False)
            except lmdb.NotFoundError:
                self._report.damaged("a table is missing", name)
            except lmdb.Error as error:
                self._report.damaged(f"{name} cannot be opened: {error}")

    def _count(self, name: str) -> int:
        """How many records LMDB has counted in a table."""
        try:
            with self._env.begin() as txn:
                return int(txn.stat(self._tables[name])["entries"])
        except lmdb.Error as error:
            self._report.damaged(f"{name}: its records cannot be counted: {error}")
            return 0

    def _records(self, name: str) -> Iterator[tuple[bytes, bytes | None]]:
        """All keys of a table with their records as they are stored; None for one whose checksum does not fit."""
        if name not in self._tables:
            return
        damaged = self._report.damaged
        count, before, expected = 0, b"", self._count(name)
        for key, record, found in self._stored(name, expected):
            count += 1
            if key <= before:
                damaged(f"{name}: keys stand in no order", shown(key))
            before = key
            if found != record:
                damaged(f"{name}: a record is not found by its key", shown(key))
            try:
                unseal(key, record)
            except Damaged:
                damaged(f"{name}: a record is damaged, its checksum does not fit", _where(name, key))
                yield key, None
                continue
            yield key, record
        if count != expected:
            damaged(f"{name}: {count:,} records can be read, and {expected:,} were counted")

    def _stored(self, name: str, expected: int) -> Iterator[tuple[bytes, bytes, bytes | None]]:
        """All keys of a table, each with its record and with what is found by that key, as far as LMDB can read."""
        table, count, kinds = self._tables[name], 0, len(self._report.damage)
        self._progress(name, 0, expected)
        try:
            with self._env.begin() as txn, txn.cursor(db=table) as cursor:
                for key, record in cursor:
                    yield key, record, txn.get(key, db=table)
                    count += 1
                    if not count % PROGRESS_RECORDS or len(self._report.damage) != kinds:
                        kinds = len(self._report.damage)
                        self._progress(name, count, expected)
        except (lmdb.Error, MemoryError) as error:
            self._report.damaged(f"{name}: LMDB cannot read on after {count:,} records: {error}")

    def _check_identity(self, record: bytes | None) -> None:
        report = self._report
        if record is None:
            self._missing(IDENTITY_KEY)
            return
        try:
            identity = Identity.from_json(unseal(IDENTITY_KEY, record).decode())
        except (WrongDirectory, ValueError):
            report.damaged("meta: the identity is none")
            return
        if report.identity is None:
            report.identity = identity
        elif report.identity != identity:
            report.damaged(
                f"{DATA_FILE} is not this directory's: it was made for node {identity.node} of cluster "
                f"{identity.cluster} on disk {identity.disk.hex()}, {IDENTITY_FILE} says another"
            )

    def _missing(self, key: bytes) -> None:
        if not any(what.startswith("meta: a record is damaged") for what in self._report.damage):
            self._report.damaged(f"meta: has no {key.decode()}")

    def _decoded(self, key: bytes, record: bytes | None, decode: Callable[[bytes], Any]) -> Any:
        if record is None:
            self._missing(key)
            return None
        try:
            return decode(unseal(key, record))
        except Damaged as error:
            self._report.damaged(f"meta: {error}")
            return None

    def _check_log(self, name: str, meta: Meta) -> None:
        """Indexes without a gap, terms that never go back, and that it covers what was applied, as `meta` says."""
        report, damaged = self._report, self._report.damaged
        first: int | None = None
        last, term = meta.snapshot_index, 0
        members: Configuration | None = meta.configuration
        for key, record in self._records(name):
            try:
                index = index_of(key)
            except Damaged:
                damaged(f"{name}: a key is no index", shown(key))
                continue
            if first is None:
                first = index
            elif index != last + 1:
                damaged(f"{name}: entries are missing", f"entry {last} is followed by {index}")
            last = index
            counts_for_members = meta.snapshot_index < index <= meta.applied_index
            if index > meta.snapshot_index:
                term = max(term, meta.snapshot_term)
            if record is None:
                members = None if counts_for_members else members
                continue
            try:
                entry = decode_entry(key, record)
                configuration = Configuration.decode(entry.payload) if entry.kind is EntryKind.CONFIGURATION else None
            except (Damaged, ValueError):
                damaged(f"{name}: a record is no entry", f"entry {index}")
                members = None if counts_for_members else members
                continue
            if entry.term < term:
                damaged(f"{name}: terms go back", f"entry {index} has term {entry.term}, after term {term}")
            if index == meta.snapshot_index and entry.term != meta.snapshot_term:
                damaged(f"{name}: entry {index} has term {entry.term}, and the snapshot up to it {meta.snapshot_term}")
            term = max(term, entry.term)
            if configuration is not None and counts_for_members and members is not None:
                members = configuration
        report.log_first, report.log_last = first, None if first is None else last
        if first is not None and first > meta.snapshot_index + 1:
            damaged(f"{name}: begins with entry {first}, not with {meta.snapshot_index + 1}")
        if last < meta.snapshot_index:
            damaged(f"{name}: ends with entry {last}, before the snapshot's {meta.snapshot_index}")
        self._check_log_against_the_rest(name, meta, last, term, members)

    def _check_log_against_the_rest(
        self, name: str, meta: Meta, last: int, term: int, members: Configuration | None
    ) -> None:
        damaged, hard_state = self._report.damaged, self._report.hard_state
        if not meta.snapshot_index <= meta.applied_index <= max(last, meta.snapshot_index):
            damaged(
                f"the data goes up to entry {meta.applied_index}, the log from {meta.snapshot_index} to "
                f"{max(last, meta.snapshot_index)}"
            )
        elif members is not None and members != meta.applied_configuration:
            damaged(f"the members as of entry {meta.applied_index} are not those that {name} says")
        if hard_state is not None and self._report.log_last is not None and hard_state.term < term:
            damaged(f"meta: term {hard_state.term} is behind {name}, which goes up to term {term}")

    def _check_sessions(self, name: str, meta: Meta) -> None:
        report = self._report
        rows = None if report.identity is None else self._rows(report.identity.node)
        has_all = True
        for key, record in self._records(name):
            if record is None:
                has_all = False
            elif rows is not None:
                try:
                    rows.add(key, unseal(key, record))
                except ValueError as error:
                    report.damaged(f"{name}: a row makes no sense", f"{shown(key)}: {error}")
                    has_all = False
        if rows is None:
            return
        report.sessions = rows.sessions
        if has_all:
            try:
                rows.finish(meta.applied_index)
            except ValueError as error:
                report.damaged(f"{name}: rows do not fit together: {error}")


def shown(key: bytes) -> str:
    """A key for people."""
    return f"key {key[:40]!r}{'…' if len(key) > 40 else ''}"


def _where(name: str, key: bytes) -> str:
    if name.startswith("log."):
        try:
            return f"entry {index_of(key)}"
        except Damaged:
            pass
    return shown(key)


def _text(path: Path) -> str | None:
    """None for what is no text, or cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None
