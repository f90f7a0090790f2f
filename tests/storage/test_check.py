"""`madkv check` calls sound what is sound, finds each kind of damage, and changes nothing."""

import json
import os
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

import lmdb
import pytest

from madkv.operate.check import facts
from madkv.operate.rows import rows_of
from madkv.raft.messages import HardState
from madkv.session_rows import TIME_KEY, encode_record, encode_session, encode_time, record_key, session_key
from madkv.storage import durable
from madkv.storage.batch import Batch
from madkv.storage.check import Report, Rows, check_data, check_files
from madkv.storage.directory import CREATING_FILE, DATA_FILE, IDENTITY_FILE, Directory, WrongDirectory, held_for_reading
from madkv.storage.durable import HARD_STATE_KEY, IDENTITY_KEY, META_KEY, TABLES, DurableStorage
from madkv.storage.pages import Pages
from madkv.storage.records import decode_meta, encode_entry, encode_hard_state, encode_meta, index_key, seal, unseal
from madkv.storage.snapshot import SnapshotHead
from tests.storage.flips import make
from tests.storage.recording import PAGE_BYTES
from tests.storage.stores import (
    DISK,
    change,
    commit,
    configuration,
    entries,
    entry,
    install,
    opened,
    pieces_of,
)
from tests.storage.test_damage import lose_last_record
from tests.storage.writer import FILE_AHEAD_BYTES, open_store

NOBODY = 65_534
TERM = HardState(5)
PAIRS = {b"k%d" % number: b"value %d" % number for number in range(10)}
SESSIONS = {b"s%d" % number: b"row %d" % number for number in range(4)}


@pytest.fixture(autouse=True)
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they are quickly read and written as a whole."""
    monkeypatch.setattr(durable, "FILE_AHEAD_BYTES", FILE_AHEAD_BYTES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound store of nine entries."""
    store = opened(str(tmp_path / "store"))
    commit(store, Batch(TERM, entries(1, 9, 2), PAIRS, SESSIONS, 8))
    store.close()
    return tmp_path / "store"


def look(path: Path, rows: Any = lambda node: None) -> Report:
    report = check_files(path)
    if report.identity is not None or report.damage:
        check_data(path, report, rows, lambda table, done, total: None)
    return report


def damage(path: Path, rows: Any = lambda node: None) -> list[str]:
    return [str(each) for each in look(path, rows).damage.values()]


def state(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that a check might change."""
    return {
        name: ((found := os.stat(path / name)).st_mtime_ns, found.st_size, (path / name).read_bytes())
        for name in os.listdir(path)
    }


def change_table(path: Path, table: bytes, changes: dict[bytes, bytes | None]) -> None:
    """As a bug might have left it: what is put in is taken as it is."""
    with lmdb.open(str(path), map_size=1 << 30, max_dbs=8, sync=False, lib_version=0) as env:
        database = env.open_db(table)
        with env.begin(write=True) as txn:
            for key, record in changes.items():
                if record is None:
                    assert txn.delete(key, db=database)
                else:
                    txn.put(key, record, db=database)


def sealed(key: bytes, data: bytes) -> dict[bytes, bytes | None]:
    return {key: seal(key, data)}


def everything(path: Path) -> dict[bytes, dict[bytes, bytes]]:
    """All records by tables, as they are stored."""
    with lmdb.open(str(path), map_size=1 << 30, max_dbs=8, readonly=True, lock=False, lib_version=0) as env:
        tables = {name: env.open_db(name, create=False) for name in TABLES}
        with env.begin() as txn:
            return {name: dict(txn.cursor(db=table)) for name, table in tables.items()}


def test_a_sound_store(path: Path) -> None:
    (path / durable.READERS_FILE).unlink()
    before = state(path)
    report = look(path)
    assert not report.damage and not report.notes
    assert state(path) == before
    told = facts(path, report)
    assert (told["node"], told["cluster"], told["disk"]) == ("n", "c", DISK.hex())
    assert (told["term"], told["vote"], told["log"], told["applied"]) == (5, None, {"first": 1, "last": 9}, 8)
    assert (told["pairs"], told["sessions"], told["sound"]) == (10, None, True)
    assert 0 < told["used_bytes"] <= told["file_bytes"] == (path / DATA_FILE).stat().st_size


def test_it_changes_nothing_where_nothing_may_be_changed(path: Path) -> None:
    (path / durable.READERS_FILE).unlink()
    os.chmod(path / DATA_FILE, 0o444)
    os.chmod(path, 0o555)
    try:
        with held_for_reading(path):
            assert damage(path) == []
    finally:
        os.chmod(path, 0o755)


def test_a_new_store_is_sound(tmp_path: Path) -> None:
    opened(str(tmp_path / "store")).close()
    report = look(tmp_path / "store")
    assert not report.damage
    assert (report.log_first, report.pairs) == (None, 0)


def test_a_store_with_something_of_everything_is_sound(tmp_path: Path) -> None:
    """Entries that were cut off and not removed, a snapshot half staged, values on pages of their own."""
    make(tmp_path / "store")
    report = look(tmp_path / "store")
    assert not report.damage
    assert report.log_first is not None and report.meta is not None
    assert any("is not in force" in note for note in report.notes)


def test_it_is_sound_at_every_step(tmp_path: Path) -> None:
    """A log that was cut, changes of members, an installed snapshot that keeps the log and one that does not."""
    store = opened(str(tmp_path / "a"))
    other = opened(str(tmp_path / "b"))
    steps = (
        Batch(TERM, entries(1, 3)),
        Batch(entries=(change(4, 2, 1, 2), *entries(5, 6, 2)), pairs=PAIRS, applied_index=3),
        Batch(entries=(change(7, 5, 1, 2, 4),), sessions=SESSIONS, applied_index=6, compact_to=2),
        Batch(entries=entries(8, 9, 5), applied_index=7, compact_to=6),
    )
    for step in steps:
        commit(store, step)
        store.close()
        assert damage(tmp_path / "a") == []
        store = opened(str(tmp_path / "a"))
    head, pieces = store.open_snapshot().head, pieces_of(store.open_snapshot())
    for log in ((), (*entries(1, 3), *entries(4, 6, 2), *entries(7, 9, 5))):
        if log:
            commit(other, Batch(TERM, log))
        install(other, SnapshotHead(head.last_index, head.last_term, head.configuration), pieces)
        other.close()
        assert damage(tmp_path / "b") == []
        (tmp_path / "b").rename(tmp_path / f"b{len(log)}")
        other = opened(str(tmp_path / "b"))
    other.close()
    store.close()


def test_every_flipped_byte_of_every_record_in_force_is_found(tmp_path: Path) -> None:
    """Also of pairs, and of entries that were cut off: start-up reads neither."""
    path = tmp_path / "store"
    make(path)
    store = open_store(path, sync=False)
    commit(store, Batch(compact_to=store.applied_index))  # the entries leave with a later commit
    store.close()
    report = look(path)
    meta = report.meta
    assert not report.damage and meta is not None
    assert report.log_first is not None and report.log_first < meta.snapshot_index
    stored = everything(path)
    in_force = [
        *(b"meta", b"log.%d" % meta.log_generation),
        *(b"pairs.%d" % meta.generation, b"sessions.%d" % meta.generation),
    ]
    data = (path / DATA_FILE).read_bytes()
    with open(path / DATA_FILE, "r+b", buffering=0) as file:
        for table in in_force:
            assert stored[table]
            for number, record in enumerate(stored[table].values()):
                byte, bit = number % len(record), 1 << number % 8
                places = [match.start() + byte for match in re.finditer(re.escape(record), data)]
                for place in places:  # one of these copies is in force
                    os.pwrite(file.fileno(), bytes([data[place] ^ bit]), place)
                found = damage(path)
                assert found and "checksum does not fit" in found[0], (table, number, found)
                for place in places:
                    os.pwrite(file.fileno(), data[place : place + 1], place)
    assert damage(path) == []


def test_damage_is_counted_by_its_kind(path: Path) -> None:
    change_table(path, b"pairs.0", {b"k3": b"xxxxx", b"k5": b"yyyyy", b"k7": b"z"})
    change_table(path, b"log.0", {index_key(4): b"xxxxxx"})
    assert damage(path) == [
        "log.0: a record is damaged, its checksum does not fit (once: entry 4)",
        "pairs.0: a record is damaged, its checksum does not fit (3 times, first: key b'k3')",
    ]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({index_key(5): None}, "log.0: entries are missing (once: entry 4 is followed by 6)"),
        ({index_key(1): None}, "log.0: begins with entry 2, not with 1"),
        (
            {index_key(5): encode_entry(entry(5, term=1))},
            "log.0: terms go back (once: entry 5 has term 1, after term 2)",
        ),
        ({index_key(9): None, index_key(8): None}, "the data goes up to entry 8, the log from 0 to 7"),
        ({index_key(9): encode_entry(entry(9, term=6))}, "meta: term 5 is behind log.0, which goes up to term 6"),
        (sealed(index_key(9), b"short"), "log.0: a record is no entry (once: entry 9)"),
        (sealed(b"x", b"12345678901"), "log.0: a key is no index (once: key b'x')"),
        (
            {index_key(3): encode_entry(change(3, 2, 1, 2))},
            "the members as of entry 8 are not those that log.0 says",
        ),
    ],
)
def test_a_log_that_does_not_fit_together(path: Path, changes: dict[bytes, bytes | None], found: str) -> None:
    change_table(path, b"log.0", changes)
    assert damage(path) == [found]


def test_a_log_that_does_not_fit_its_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = opened(str(path))
    commit(store, Batch(TERM, entries(1, 9, 2), applied_index=8))
    commit(store, Batch(compact_to=4))
    store.close()
    assert damage(path) == []
    good = everything(path)[b"log.0"]
    change_table(path, b"log.0", {index_key(4): encode_entry(entry(4, term=1))})
    assert damage(path) == [
        "log.0: terms go back (once: entry 4 has term 1, after term 2)",
        "log.0: entry 4 has term 1, and the snapshot up to it 2",
    ]
    change_table(path, b"log.0", {index_key(4): good[index_key(4)], **{index_key(at): None for at in range(4, 10)}})
    assert "log.0: ends with entry 3, before the snapshot's 4" in damage(path)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({HARD_STATE_KEY: None}, ["meta: has no hard_state"]),
        ({IDENTITY_KEY: None}, ["meta: has no identity"]),
        (sealed(HARD_STATE_KEY, b"x"), ["meta: the record of term and vote has a wrong length"]),
        (sealed(b"more", b"x"), ["meta: a record that is none of MadKV's (once: key b'more')"]),
        (sealed(IDENTITY_KEY, b"{}"), ["meta: the identity is none"]),
        ({META_KEY: None}, ["meta: has no meta"]),
        ({META_KEY: b"x"}, ["meta: a record is damaged, its checksum does not fit (once: key b'meta')"]),
    ],
)
def test_a_table_of_meta_that_is_not_whole(path: Path, changes: dict[bytes, bytes | None], found: list[str]) -> None:
    change_table(path, b"meta", changes)
    assert damage(path) == found


def test_without_meta_all_records_are_looked_at(path: Path) -> None:
    change_table(path, b"meta", {META_KEY: None})
    change_table(path, b"sessions.0", {b"s1": b"damaged"})
    report = look(path)
    assert "cannot be told" in report.notes[0]
    assert [each.what for each in report.damage.values()][1:] == [
        "sessions.0: a record is damaged, its checksum does not fit"
    ]


def test_data_that_was_made_for_another_directory(path: Path) -> None:
    facts = json.loads((path / IDENTITY_FILE).read_text())
    (path / IDENTITY_FILE).write_text(json.dumps(facts | {"node": "s1.0"}))
    assert len(found := damage(path)) == 1 and "data.mdb is not this directory's" in found[0]
    for wrong in ("", "{}", "\0", json.dumps(facts | {"disk": 7})):
        (path / IDENTITY_FILE).write_text(wrong)
        assert damage(path) == ["IDENTITY cannot be read"]
    (path / IDENTITY_FILE).write_text(json.dumps(facts | {"layout": 2}))
    assert damage(path) == ["IDENTITY: layout 2; this version of MadKV knows layout 1"]
    (path / IDENTITY_FILE).unlink()
    report = look(path)
    assert list(report.damage) == ["IDENTITY is missing"]
    assert report.identity is not None and report.identity.node == "n"


def test_tables_that_are_missing_or_nobodys(path: Path) -> None:
    with lmdb.open(str(path), map_size=1 << 30, max_dbs=8, sync=False, lib_version=0) as env:
        database = env.open_db(b"sessions.1")
        with env.begin(write=True) as txn:
            txn.drop(database)
        env.open_db(b"mine")
    assert damage(path) == [
        "a table that is none of MadKV's (once: key b'mine')",
        "a table is missing (once: sessions.1)",
    ]


@pytest.mark.parametrize("record", [b"e9.2", b"value 9", b"row 3"])
def test_pages_that_have_lost_records(path: Path, record: bytes) -> None:
    """As in test_damage, and here the pairs are counted too."""
    lose_last_record(path / DATA_FILE, record)
    assert any("can be read, and" in each for each in damage(path))


def test_a_data_file_that_is_missing_empty_or_none(path: Path) -> None:
    size = (path / DATA_FILE).stat().st_size
    used = look(path).used_bytes
    assert used is not None
    os.truncate(path / DATA_FILE, used)
    assert damage(path) == []
    os.truncate(path / DATA_FILE, used - 1)
    assert "was cut short" in damage(path)[0] and f"{used:,}" in damage(path)[0]
    (path / DATA_FILE).write_bytes(b"x" * size)
    assert "cannot be opened" in damage(path)[0]
    for gone in ("empty", "missing"):
        (path / DATA_FILE).write_bytes(b"") if gone == "empty" else (path / DATA_FILE).unlink()
        assert damage(path) == ["data.mdb is missing or empty: this node's data is gone"]


@pytest.mark.parametrize("page", [0, 1])
def test_a_page_that_makes_an_older_commit_look_the_last(path: Path, page: int) -> None:
    """The number of a commit goes down, or up: LMDB takes another page for the newest, and says nothing. (The lowest
    bits may make one that follows the other's just as well.)"""
    number = struct.Struct("=Q")
    at = page * 4096 + 144
    data = bytearray((path / DATA_FILE).read_bytes())
    for bit in range(2, 8):
        number.pack_into(data, at, number.unpack_from(data, at)[0] ^ 1 << bit)
        (path / DATA_FILE).write_bytes(data)
        assert "do not follow each other" in "".join(damage(path)), bit
        number.pack_into(data, at, number.unpack_from(data, at)[0] ^ 1 << bit)


def test_every_page_in_use_is_looked_at(tmp_path: Path) -> None:
    """Also those that only a commit would look at; a flipped bit in one that is free is no damage."""
    path = tmp_path / "store"
    make(path)
    with lmdb.open(str(path), map_size=1 << 30, max_dbs=8, readonly=True, lock=False, lib_version=0) as env:
        last = env.info()["last_pgno"]
        tables = [env.open_db(name, create=False) for name in TABLES]
        with env.begin() as txn:
            trees = [env.stat(), *(txn.stat(table) for table in tables)]
    in_trees = sum(tree["branch_pages"] + tree["leaf_pages"] for tree in trees)
    data = (path / DATA_FILE).read_bytes()
    for byte in (0, 10, 12):  # its number, what it is, where the list of its nodes ends
        found = 0
        with open(path / DATA_FILE, "r+b", buffering=0) as file:
            for page in range(2, last + 1):
                place = page * PAGE_BYTES + byte
                os.pwrite(file.fileno(), bytes([data[place] ^ 8]), place)
                report = Report()
                Pages(path / DATA_FILE, report.damaged, lambda done, total: None).walk()
                found += bool(report.damage)
                os.pwrite(file.fileno(), data[place : place + 1], place)
        assert in_trees < found < last - 1
    assert damage(path) == []


def test_what_the_next_start_throws_away_is_told_and_no_damage(path: Path) -> None:
    (path / CREATING_FILE).write_text("")
    (path / "notes.txt").write_text("mine")
    store = opened(str(path))
    store.close()
    (path / CREATING_FILE).write_text("")
    store = opened(str(path))
    store.stage(SnapshotHead(20, 5, configuration(1)), 0, pieces_of(store.open_snapshot())[0][1])
    store.close()
    (path / CREATING_FILE).write_text("")
    report = look(path)
    assert not report.damage
    told = "\n".join(report.notes)
    for each in ("CREATING is left over", "notes.txt", "pairs.1 holds 10 records", "sessions.1 holds 4 records"):
        assert each in told


def test_a_directory_that_was_never_finished(tmp_path: Path) -> None:
    Directory(tmp_path, "c", "n", DISK).close()
    report = look(tmp_path)
    assert not report.damage
    assert report.notes == [f"it was never finished (disk {DISK.hex()}): the next start begins it anew"]


def test_what_is_no_directory_of_a_node(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "letter").write_text("")
    for name, said in (
        ("empty", "is empty: it is no node's directory"),
        ("others", "holds letter: it is no node's directory"),
        ("file", "is not a directory"),
        ("missing", "there is no .*missing"),
    ):
        with pytest.raises(WrongDirectory, match=said):
            check_files(tmp_path / name)


def test_a_directory_is_held_against_writers_and_not_against_readers(path: Path) -> None:
    with held_for_reading(path), held_for_reading(path), pytest.raises(WrongDirectory, match="in use"):
        opened(str(path))
    store = opened(str(path))
    with pytest.raises(WrongDirectory, match="in use by another process; stop its node first"), held_for_reading(path):
        pass
    store.close()


def test_files_that_this_user_may_not_read_are_not_called_damaged() -> None:
    """Nor is it, where all may look into the directory."""
    with tempfile.TemporaryDirectory(prefix="madkv-test-") as name:
        path = Path(name)
        os.chmod(path, 0o755)
        opened(name).close()
        os.chmod(path / DATA_FILE, 0 if os.geteuid() else 0o600)
        before = os.geteuid()
        os.seteuid(before or NOBODY)
        try:
            with pytest.raises(WrongDirectory, match="may not be read by this user: run this as the user of its node"):
                check_files(path)
        finally:
            os.seteuid(before)


def store_of(path: Path, node: str, rows: dict[bytes, bytes | None]) -> None:
    store = DurableStorage(Directory(path, "c", node, DISK), configuration(1), sync=False)
    commit(store, Batch(TERM, entries(1, 9), sessions=rows, applied_index=8))
    store.close()


SESSION = encode_session(b"i" * 16, 1, 5, True)


@pytest.mark.parametrize(
    ("node", "row", "found"),
    [
        ("s0.1", {}, None),
        ("s0.1", {b"x": b""}, "sessions.0: a row makes no sense"),
        ("s0.1", {session_key(4): b"short"}, "sessions.0: a row makes no sense"),
        ("s0.1", {record_key(4, 1): encode_record(b"k", True)}, "a record of session 4, which is not there"),
        ("s0.1", {session_key(9): SESSION}, "session 9 was opened after entry 8"),
        ("m.1", {b"x": b""}, "sessions.0: a row makes no sense"),
        ("s0.1", {TIME_KEY: b"1"}, "sessions.0: a row makes no sense"),
    ],
)
def test_rows_that_a_node_would_not_take(
    tmp_path: Path, node: str, row: dict[bytes, bytes | None], found: str | None
) -> None:
    good = {TIME_KEY: encode_time(7)}
    if node.startswith("s"):
        good |= {session_key(3): SESSION, record_key(3, 1): encode_record(b"k", b"old")}
    store_of(tmp_path / "store", node, {**good, **row})
    report = look(tmp_path / "store", rows_of)
    if found is None:
        assert not report.damage
        assert report.sessions == 1
    else:
        assert len(report.damage) == 1 and found in str(*report.damage.values())


def test_names_of_nodes_choose_their_rows() -> None:
    kinds: list[Rows | None] = [rows_of(name) for name in ("s0", "s1.2", "m", "m.0", "n")]
    assert [type(each).__name__ for each in kinds] == [*["ServerRows"] * 2, *["ManagerRows"] * 2, "NoneType"]


def test_members_and_vote_survive_the_way_through_a_report(path: Path) -> None:
    vote = HardState(6, next(iter(configuration(2).voters)))
    change_table(path, b"meta", {HARD_STATE_KEY: seal(HARD_STATE_KEY, encode_hard_state(vote))})
    assert facts(path, look(path))["vote"] == {"replica": 2, "disk": (b"\2" * 16).hex()}


def test_an_applied_index_beyond_the_log(path: Path) -> None:
    meta = decode_meta(unseal(META_KEY, everything(path)[b"meta"][META_KEY]))
    beyond = encode_meta(type(meta)(applied_index=12, configuration=meta.configuration))
    change_table(path, b"meta", sealed(META_KEY, beyond))
    assert damage(path) == ["the data goes up to entry 12, the log from 0 to 9"]
