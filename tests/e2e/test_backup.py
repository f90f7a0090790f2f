"""`madkv backup` and `madkv restore` on clusters of real processes."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from madkv.client.aio import AsyncClient
from madkv.client.blocking import BlockingClient
from madkv.errors import OutcomeUnknown
from madkv.operate.backup import RESTORING_KEY
from madkv.operate.backup_file import verify
from madkv.operate.restore import restore
from madkv.testing.cluster import Cluster
from tests.processes import Process, free_address, madkv, madkv_command, madkv_refusal

LAST = b"\xff" * 511
PAIRS = {b"%c%05d" % (ord("A") + number % 58, number): b"%d" % number * (number % 50) for number in range(12_000)}
PAIRS |= {b"\xff" * 511: b"the last key", b"large": b"x" * 1_000_000, b"\0": b"", b"a\nb": b"\0\xff"}


def put(cluster: Cluster, pairs: dict[bytes, bytes]) -> None:
    async def put_all() -> None:
        async with AsyncClient(managers=cluster.address) as client:
            await asyncio.gather(*(client.put(key, value) for key, value in pairs.items()))

    asyncio.run(put_all())


def held(cluster: Cluster) -> dict[bytes, bytes]:
    with BlockingClient(managers=cluster.address) as client:
        return dict(client.scan(b"", LAST))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three managers, two partitions of three replicas, and PAIRS in them."""
    with Cluster.local(tmp_path_factory.mktemp("full"), 2, 3, 3) as cluster:
        put(cluster, PAIRS)
        yield cluster


@pytest.fixture(scope="module")
def file(full: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it."""
    file = tmp_path_factory.mktemp("backup") / "file"
    done = madkv("backup", file, "--managers", full.address)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == f"{file}: written"
    return file


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Cluster]:
    """Of another shape: one manager, three partitions."""
    with Cluster.local(tmp_path / "empty", 3, 1, 1) as cluster:
        yield cluster


def test_all_of_a_cluster_in_a_file(full: Cluster, file: Path) -> None:
    done = madkv("check", file, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["sound"], found["pairs"]) == (0, True, len(PAIRS))
    partition_map = full.partition_map()
    assert (found["cluster"], found["epoch"]) == (partition_map.cluster, partition_map.epoch)
    statuses = full.statuses()
    for group in found["groups"]:
        leader = full.leader(group["group"])
        assert leader is not None
        status = statuses[leader] or {}
        assert group["index"] <= status["applied"] and group["term"] <= status["term"]
        assert group["ranges"] == status["ranges"]
        assert group["pairs"] > 1000, "each has its share"


def test_a_file_that_is_there(full: Cluster, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    words = ("backup", path, "--managers", full.address)
    assert madkv_refusal(1, *words) == f"{path} is there already; --force replaces it"
    assert path.read_bytes() == b"precious"
    assert madkv(*words, "--force").returncode == 0
    assert verify(path).pairs == len(PAIRS)
    assert os.listdir(tmp_path) == ["file"]


def test_into_a_cluster_of_another_shape(file: Path, empty: Cluster) -> None:
    words = ("restore", file, "--managers", empty.address)
    assert madkv_refusal(2, *words, "--resume") == "no restore was broken off in this cluster; leave out --resume"
    done = madkv(*words)
    assert done.returncode == 0, done
    assert done.stdout.startswith(f"restored {len(PAIRS):,} pairs, ")
    assert held(empty) == PAIRS
    assert madkv_refusal(2, *words).startswith("the cluster is not empty: s0 holds b'"), "a complete one leaves no mark"
    assert madkv_refusal(2, *words, "--resume") == (
        "no restore into this cluster is incomplete: one that was broken off as it ended is complete"
    )


def test_a_restore_that_is_broken_off(file: Path, empty: Cluster, tmp_path: Path) -> None:
    """It is known for one, no backup is made of it, and the same one goes on; another does not."""
    words = ("restore", file, "--managers", empty.address)
    with BlockingClient(managers=empty.address) as client, Process(madkv_command(*words)) as restoring:
        while client.get(min(PAIRS)) is None and restoring.is_running:
            pass
        restoring.signal(9)
        assert restoring.wait() == -9
        assert client.get(RESTORING_KEY) is not None
    assert "is not complete; `--resume` goes on" in madkv_refusal(2, *words)
    path = tmp_path / "file"
    assert "a restore into this cluster is not complete" in madkv_refusal(
        1, "backup", path, "--managers", empty.address
    )
    assert not path.exists()
    with Cluster.local(tmp_path / "third", 1, 1, 1) as third:
        put(third, {b"key": b"value"})
        assert madkv("backup", path, "--managers", third.address).returncode == 0
    assert "the restore of another backup" in madkv_refusal(2, "restore", path, "--managers", empty.address, "--resume")
    done = madkv(*words, "--resume")
    assert done.returncode == 0 and done.stdout.startswith(f"restored {len(PAIRS):,} pairs, ")
    assert held(empty) == PAIRS


def test_a_restore_whose_last_answer_is_lost(file: Path, empty: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to resume then, so it makes that call again, as every other."""
    delete, asked = AsyncClient.delete, []

    async def lost(self: AsyncClient, key: bytes) -> bool:
        asked.append(key)
        found = await delete(self, key)
        if len(asked) == 1:
            raise OutcomeUnknown("the session has ended")
        return found

    monkeypatch.setattr(AsyncClient, "delete", lost)
    assert restore(file, empty.address) == 0
    assert asked == [RESTORING_KEY] * 2
    assert held(empty) == PAIRS


def test_a_damaged_file_changes_nothing(file: Path, empty: Cluster, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    whole = file.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2] + b"!" + whole[len(whole) // 2 + 1 :])
    assert "is damaged after byte" in madkv_refusal(2, "restore", damaged, "--managers", empty.address)
    damaged.write_bytes(whole[:-100])
    assert "it is cut short, or was never finished" in madkv_refusal(2, "restore", damaged, "--managers", empty.address)
    assert held(empty) == {}


def test_a_leader_that_is_killed_meanwhile(full: Cluster, tmp_path: Path) -> None:
    """Its group is read again, from whoever leads then."""
    path = tmp_path / "file"
    leader = full.leader("s0")
    assert leader is not None
    full.kill(leader)
    try:
        done = madkv("backup", path, "--managers", full.address)
        assert done.returncode == 0, done
        assert verify(path).pairs == len(PAIRS)
    finally:
        full.start(leader)
        full.wait_until_caught_up(leader)


def test_no_manager_and_no_file(file: Path, tmp_path: Path) -> None:
    nobody = free_address()
    path = tmp_path / "file"
    assert madkv_refusal(2, "backup", path, "--managers", nobody) == f"no manager answers at {nobody}"
    assert madkv_refusal(2, "backup", path, "--managers", "x").startswith("'x' is not an address")
    assert os.listdir(tmp_path) == []
    assert madkv_refusal(2, "restore", file, "--managers", nobody) == f"no manager answers at {nobody}"
    assert "No such file" in madkv_refusal(2, "restore", path, "--managers", nobody)
    path.write_bytes(b"hello")
    assert madkv_refusal(2, "restore", path, "--managers", nobody) == f"{path} is no backup of MadKV"
