"""Stores to try things on."""

import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Entry, EntryKind
from madkv.storage.batch import Batch
from madkv.storage.directory import Directory
from madkv.storage.durable import DurableStorage
from madkv.storage.snapshot import SnapshotHead, SnapshotReader

DISK = bytes(range(16))


def fresh_path(case: SynchronousTestCase) -> str:
    """A path at which nothing is yet, gone after the test. (Under pytest, trial's own leaves it in the checkout.)"""
    directory = tempfile.mkdtemp(prefix="madkv-test-")
    case.addCleanup(shutil.rmtree, directory, ignore_errors=True)
    return f"{directory}/store"


def configuration(*replicas: int) -> Configuration:
    return Configuration(frozenset(Member(replica, bytes([replica]) * 16) for replica in replicas))


def opened(path: str, *, disk: bytes = DISK, sync: bool = False) -> DurableStorage:
    directory = Directory(Path(path), "c", "n", disk)
    try:
        return DurableStorage(directory, configuration(1, 2, 3), sync=sync)
    except BaseException:
        directory.close()
        raise


def entry(index: int, term: int = 1, payload: bytes | None = None) -> Entry:
    return Entry(index, term, EntryKind.OPERATION, b"e%d.%d" % (index, term) if payload is None else payload)


def change(index: int, term: int, *replicas: int) -> Entry:
    return Entry(index, term, EntryKind.CONFIGURATION, configuration(*replicas).encode())


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(entry(index, term) for index in range(first, last + 1))


def commit(store: DurableStorage, batch: Batch) -> None:
    store.write(batch)
    store.written(batch)


def log_of(store: DurableStorage) -> list[Entry]:
    if store.last_index == store.snapshot_index:
        return []
    return store.entries(store.snapshot_index + 1, store.last_index, 10**9)


def pieces_of(reader: SnapshotReader) -> list[tuple[int, bytes]]:
    pieces = [(reader.offset, reader.piece)]
    while not reader.done:
        reader.next()
        pieces.append((reader.offset, reader.piece))
    reader.close()
    return pieces


def install(store: DurableStorage, head: SnapshotHead, pieces: list[tuple[int, bytes]]) -> None:
    for offset, piece in pieces:
        assert store.stage(head, offset, piece) == offset + len(piece)
    store.install(head)
    store.installed(head)
