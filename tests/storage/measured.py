"""What `storage::measure` has measured: one phase a process, its facts as JSON on stdout.

    python -m tests.storage.measured PHASE DIRECTORY KEYS

Every commit is that of a group of one with 64 writers of 1 KB: the log's entries of 64 writes, and with it the pairs of
the 64 before (which were applied meanwhile), their sessions and the index that they go up to.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import BinaryIO

import lmdb

from madkv.raft.messages import Entry, EntryKind, HardState
from madkv.storage.batch import Batch
from madkv.storage.directory import DATA_FILE
from madkv.storage.durable import DurableStorage
from madkv.storage.snapshot import SnapshotHead
from tests.storage.workload import FIRST_CONFIGURATION, configuration
from tests.storage.writer import open_store

VALUE_BYTES = 1000
WRITERS = 64
LOADED_AT_ONCE = 512
LOG_KEPT = 50_000
"""Entries that stay in the log, so that a restart has to read them."""
COMPACT_EVERY = 1_000
THROUGHPUT_COMMITS = 1_500
ALONE_COMMITS = 300
MIB = 1 << 20
_STRIDE = 0x9E3779B1
"""Odd and large: keys come in no order."""

Measured = dict[str, float]


def key_of(number: int) -> bytes:
    """The key with that number."""
    return b"usertable_user%010d" % number


class Writers:
    """A store under the writes of 64 writers, a commit at a time."""

    def __init__(self, store: DurableStorage, keys: int, seed: int = 0) -> None:
        self.store = store
        self._random = Random(seed)
        self._keys = keys
        self._applied: dict[bytes, bytes | None] = {}
        self.slowest_ms = 0.0
        self.commits = 0

    def commit(self, numbers: Iterator[int] | None = None, count: int = WRITERS) -> None:
        """One commit; the keys are `numbers`' next ones, or random ones."""
        store, first = self.store, self.store.last_index + 1
        chosen = [self._random.randrange(self._keys) if numbers is None else next(numbers) for _ in range(count)]
        changes: dict[bytes, bytes | None] = {key_of(number): self._random.randbytes(VALUE_BYTES) for number in chosen}
        entries = tuple(
            Entry(first + at, 1, EntryKind.OPERATION, key + (value or b""))
            for at, (key, value) in enumerate(changes.items())
        )
        applied = first - 1
        sessions = {b"s%08d" % writer: b"%040d" % applied for writer in range(WRITERS)}
        compact_to = None
        if applied // COMPACT_EVERY != (applied - count) // COMPACT_EVERY:
            compact_to = store.compaction_target(store.applied_index - LOG_KEPT)
        batch = Batch(HardState(1), entries, self._applied, sessions, applied, compact_to)
        began = time.perf_counter()
        store.write(batch)
        store.written(batch)
        self.slowest_ms = max(self.slowest_ms, (time.perf_counter() - began) * 1e3)
        self._applied = changes
        self.commits += 1


def load(path: Path, keys: int) -> Measured:
    """Fill a store."""
    store = open_store(path)
    writers = Writers(store, keys)
    began = time.perf_counter()
    numbers = ((number * _STRIDE) % keys for number in range(keys))
    for at in range(0, keys, LOADED_AT_ONCE):
        writers.commit(numbers, min(LOADED_AT_ONCE, keys - at))
    writers.commit()  # what was applied last
    seconds = time.perf_counter() - began
    with store._env.begin() as txn:
        held = txn.stat(store._pairs_table)["entries"]
    store.close()
    return {"seconds": seconds, "pairs": held, "MB/s": keys * VALUE_BYTES / 1e6 / seconds}


def restart(path: Path, keys: int) -> Measured:
    """Open it, nothing of it being in the system's cache."""
    with open(path / DATA_FILE, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    store = open_store(path)
    store.sessions()
    store.get(key_of(keys // 2))
    seconds = time.perf_counter() - began
    entries = store.last_index - store.snapshot_index
    store.close()
    return {"seconds": seconds, "entries": entries}


def snapshot(path: Path, keys: int) -> Measured:
    """Read the whole of it while writers go on, on a thread of its own, without a pause; then once more, alone."""
    os.sync()  # what the phases before left to be written is not ours to wait for
    store = open_store(path)
    writers = Writers(store, keys, seed=1)
    for _ in range(ALONE_COMMITS):
        writers.commit()
    alone_ms, writers.slowest_ms = writers.slowest_ms, 0.0
    read: list[float] = []

    def read_all() -> None:
        seconds, size = _read_snapshot(store, lambda piece: None)
        read.append(size / MIB / seconds)

    reader = threading.Thread(target=read_all)
    reader.start()
    while reader.is_alive():
        writers.commit()
    reader.join()
    stall_ms, commits = writers.slowest_ms, writers.commits - ALONE_COMMITS
    seconds, size = _read_snapshot(store, lambda piece: None)
    store.close()
    return {
        "MB/s": size / MIB / seconds,
        "MB/s beside writers": read[0],
        "stall ms": stall_ms,
        "commits": commits,
        "alone ms": alone_ms,
    }


def _read_snapshot(store: DurableStorage, take: Callable[[bytes], object]) -> tuple[float, int]:
    began, size = time.perf_counter(), 0
    reader = store.open_snapshot()
    while True:
        take(reader.piece)
        size += len(reader.piece)
        if reader.done:
            break
        reader.next()
    reader.close()
    return time.perf_counter() - began, size


def send(path: Path, keys: int) -> Measured:
    """Hand a snapshot on to stdout: each piece behind its length."""
    store = open_store(path)

    def put(piece: bytes) -> None:
        sys.stdout.buffer.write(len(piece).to_bytes(8, "big") + piece)

    _read_snapshot(store, put)
    store.close()
    sys.stdout.flush()
    return {}


def install(path: Path, keys: int) -> Measured:
    """Install the snapshot that stdin brings over a store that is as large, a commit of writers after each piece.

    Then the first piece of another one comes, which throws the replaced generation away.
    """
    os.sync()
    store = open_store(path)
    writers = Writers(store, keys, seed=2)
    index = store.last_index + 10_000_000
    head = SnapshotHead(index, 1, FIRST_CONFIGURATION)
    stall_ms = staging = 0.0
    size, first = 0, b""
    for piece in _pieces(sys.stdin.buffer):
        first = first or piece
        began = time.perf_counter()
        store.stage(head, size, piece)
        staged = time.perf_counter()
        writers.commit()
        stall_ms = max(stall_ms, (time.perf_counter() - began) * 1e3)
        staging += staged - began
        size += len(piece)
    began = time.perf_counter()
    store.install(head)
    store.installed(head)
    installing = time.perf_counter() - began
    facts = {"MB/s": size / MIB / (staging + installing), "stall ms": max(stall_ms, installing * 1e3)}
    facts |= {"commits": writers.commits, "slowest commit ms": writers.slowest_ms}
    other = SnapshotHead(index + 10_000_000, 1, configuration((1, 2)))
    after = Writers(store, keys, seed=3)
    began = time.perf_counter()
    store.stage(other, 0, first)
    facts["dropping ms"] = (time.perf_counter() - began) * 1e3
    began = time.perf_counter()
    for _ in range(200):
        after.commit()
    facts["ms a commit after dropping"] = (time.perf_counter() - began) * 1e3 / 200
    facts["slowest commit after dropping ms"] = after.slowest_ms
    store.close()
    return facts


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while length := stream.read(8):
        yield stream.read(int.from_bytes(length, "big"))


def throughput(path: Path, keys: int) -> Measured:
    """Commits of 64 writes of 1 KB: in a store, and in LMDB alone with the same keys and values in one table."""
    store = open_store(path / "store")
    writers = Writers(store, keys)
    ours = _rate(writers.commit)
    store.close()
    random = Random(0)
    with lmdb.open(str(path / "raw"), map_size=1 << 36, lib_version=0) as env:

        def commit() -> None:
            pairs = {key_of(random.randrange(keys)): random.randbytes(VALUE_BYTES) for _ in range(WRITERS)}
            with env.begin(write=True) as txn:
                for key in sorted(pairs):
                    txn.put(key, pairs[key])

        raw = _rate(commit)
    return {"commits/s": ours, "writes/s": ours * WRITERS, "raw commits/s": raw, "raw writes/s": raw * WRITERS}


def _rate(commit: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(THROUGHPUT_COMMITS):
        commit()
    return THROUGHPUT_COMMITS / (time.perf_counter() - began)


PHASES = {each.__name__: each for each in (load, restart, snapshot, send, install, throughput)}

if __name__ == "__main__":
    name, directory, number = sys.argv[1:]
    facts = PHASES[name](Path(directory), int(number))
    if facts:
        print(json.dumps(facts))
