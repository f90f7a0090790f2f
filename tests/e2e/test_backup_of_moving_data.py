"""A backup that is made under load is the state of each group at one moment, by the history of all clients."""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from madkv.client.aio import AsyncClient
from madkv.operate.backup_file import BackupReader, Summary
from madkv.partitions import PartitionMap
from madkv.testing.cluster import Cluster
from madkv.testing.cutcheck import moments
from madkv.testing.history import Kind, Operation
from madkv.testing.linearizability import Verdict, check
from tests.processes import ROOT

KEYS = [b"%c%d" % (letter, number) for letter in b"09AKZakz" for number in range(4)]
CLIENTS = 4
CALLS_BEFORE = 300
"""Of all clients together: so that a backup does not begin before there is anything."""
BACKUPS = 4
SECONDS_MAX = 60.0
BALLAST = {b"ballast%04d" % number: b"x" * 2000 for number in range(1000)}
"""Pairs that nobody changes: several pages, so that a group is read for a while as it moves."""


class Clients:
    """Callers of one store that write down what they are told, until they are to end."""

    def __init__(self, managers: str) -> None:
        self._managers = managers
        self.history: list[Operation] = []
        self.enough = False

    async def run(self, number: int) -> None:
        draw = random.Random(number)
        async with AsyncClient(managers=self._managers) as client:
            for count in range(10**9):
                if self.enough:
                    break
                key, value = draw.choice(KEYS), b"%d-%d" % (number, count)
                match draw.randrange(5):
                    case 0:
                        await self._call(number, "GET", key, None, client.get(key))
                    case 1:
                        await self._call(number, "DELETE", key, None, client.delete(key))
                    case 2:
                        await self._call(number, "SWAP", key, value, client.swap(key, value))
                    case _:
                        await self._call(number, "PUT", key, value, client.put(key, value))

    async def _call(self, number: int, kind: Kind, key: bytes, value: bytes | None, call: Awaitable[Any]) -> None:
        called = time.monotonic_ns()
        result = await call
        self.history.append(Operation(number, kind, key, value, called, time.monotonic_ns(), result))


async def madkv(*words: str) -> tuple[int, int]:
    """Run a command that must succeed; when it began, and ended."""
    began = time.monotonic_ns()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "madkv.cli", *words, cwd=ROOT)
    assert await asyncio.wait_for(process.wait(), SECONDS_MAX) == 0
    return began, time.monotonic_ns()


async def back_up_meanwhile(cluster: Cluster, directory: Path) -> tuple[list[Operation], list[tuple[Path, int, int]]]:
    """The history of all calls, and backups with the times of their beginnings and ends."""
    clients = Clients(cluster.address)
    async with AsyncClient(managers=cluster.address) as client:
        await asyncio.gather(*(client.put(key, value) for key, value in BALLAST.items()))
    running = [asyncio.create_task(clients.run(number)) for number in range(CLIENTS)]
    backups = []
    try:
        for number in range(BACKUPS):
            goal = len(clients.history) + CALLS_BEFORE
            while len(clients.history) < goal and not any(each.done() for each in running):
                await asyncio.sleep(0.01)
            path = directory / f"{number}.backup"
            backing_up = madkv("backup", str(path), "--managers", cluster.address)
            if number == BACKUPS - 1:  # while leaders change
                to = [f"s{partition}.{number % 3}" for partition in (0, 1)]
                handing_over = (madkv("transfer-leader", node, "--managers", cluster.address) for node in to)
                (began, ended), *_ = await asyncio.gather(backing_up, *handing_over)
            else:
                began, ended = await backing_up
            backups.append((path, began, ended))
    finally:
        clients.enough = True
        await asyncio.gather(*running)
    return clients.history, backups


def read(path: Path) -> tuple[Summary, dict[bytes, bytes]]:
    reader = BackupReader(path)
    pairs = {key: value for page in reader.pages() for key, value in page}
    return reader.summary, pairs


def test_each_group_at_one_moment(tmp_path: Path) -> None:
    with Cluster.local(tmp_path / "cluster", 2, 3, 1) as cluster:
        partition_map: PartitionMap = cluster.partition_map()
        history, backups = asyncio.run(back_up_meanwhile(cluster, tmp_path))
    assert check(history).verdict is Verdict.OK
    keys_of = [[key for key in KEYS if partition_map.partition_of(key) == partition] for partition in (0, 1)]
    assert all(len(keys) > 8 for keys in keys_of), "both partitions have work"
    states = []
    for path, began, ended in backups:
        summary, pairs = read(path)
        assert {key: value for key, value in pairs.items() if key.startswith(b"ballast")} == BALLAST
        assert set(pairs) - set(BALLAST) <= set(KEYS)
        for partition, keys in enumerate(keys_of):
            found = moments(history, pairs, keys, began, ended)
            assert found, f"backup {path.name} shows no moment of s{partition}, as of {summary.cuts[partition][0]}"
        states.append({key: pairs.get(key) for key in KEYS})
        assert any(began < operation.called_ns < ended for operation in history), "calls went on meanwhile"
    assert states[0] != states[-1], "the data moved"
    # The judge is not blind: what is of two moments is of none.
    (_, began, _), (_, _, ended) = backups[0], backups[-1]
    mixed = {key: value for key in KEYS if (value := states[KEYS.index(key) % 2 * (BACKUPS - 1)][key]) is not None}
    assert moments(history, mixed, KEYS, began, ended) == []
