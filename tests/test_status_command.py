"""`madkv status` on clusters of real processes: well, ailing, not there."""

import json
from collections.abc import Iterator

import pytest

from madkv import __version__
from madkv.operate.ask import read_status
from madkv.operate.status import facts, owners
from madkv.partitions import PartitionMap
from madkv.testing.cluster import Cluster
from tests.processes import free_address, madkv


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three managers and two partitions, one of which can do without a replica; tests leave it as they found it."""
    with Cluster.local(tmp_path_factory.mktemp("cluster"), 2, 3, 3) as cluster:
        cluster.wait_until_serving()
        yield cluster


def test_a_cluster_that_is_well(cluster: Cluster) -> None:
    done = madkv("status", "--managers", cluster.address)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == "node role term leader commit applied lag size version".split()
    assert [row.split()[0] for row in rows[:9]] == [str(node) for node in cluster.shape.nodes()]
    assert {row.split()[-1] for row in rows[:9]} == {__version__}
    assert sum(row.split()[1] == "leader" for row in rows[:9]) == 3
    assert [row.split(" owns keys ")[0] for row in rows[9:]] == ["s0", "s1"]
    assert rows[9:] == owners(cluster.partition_map())


def test_the_object_for_programs(cluster: Cluster) -> None:
    done = madkv("status", "--managers", cluster.address, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    partition_map = cluster.partition_map()
    assert (found["cluster"], found["epoch"]) == (partition_map.cluster, partition_map.epoch)
    assert (found["well"], found["ailments"]) == (True, [])
    assert [each["node"] for each in found["nodes"]] == [str(node) for node in cluster.shape.nodes()]
    for each in found["nodes"]:
        assert each["answers"] and each["version"] == __version__ and each["lag"] >= 0 and each["data_bytes"] > 0
        assert (each["role"] == "leader") == (each["leader"] == each["node"])
    starts = [start.decode() for start in partition_map.starts]
    ends = {start: end for each in found["partitions"] for start, end in each["ranges"]}
    assert ends == dict(zip(starts, [*starts[1:], None], strict=True))
    for number, start in enumerate(starts):
        assert start in [begin for begin, _ in found["partitions"][partition_map.owners[number]]["ranges"]]
    assert [address for each in found["partitions"] for address in each["replicas"]] == list(cluster.shape.servers)


def test_a_cluster_of_which_a_node_is_gone(cluster: Cluster) -> None:
    node = cluster.shape.node("s1.2")
    cluster.kill(node)
    try:
        done = madkv("status", "--managers", cluster.address)
        assert (done.returncode, done.stderr) == (1, "")
        assert "unwell: s1.2 does not answer" in done.stdout.splitlines()
        found = json.loads(madkv("status", "--managers", cluster.address, "--json").stdout)
        assert not found["well"] and "s1.2 does not answer" in found["ailments"]
        (gone,) = (each for each in found["nodes"] if each["node"] == "s1.2")
        assert gone == {**dict.fromkeys(gone), "node": "s1.2", "answers": False}
    finally:
        cluster.start(node)
        cluster.wait_until_caught_up(node)


def test_no_manager_that_answers(cluster: Cluster) -> None:
    nobody = free_address()
    server = cluster.shape.servers[0]
    for managers, why in (
        (nobody, f"no manager answers at {nobody}"),
        (server, f"managers: at {server} is no manager, but s0.0"),
        (cluster.shape.managers[0], "managers: name all 3 of this cluster, each once, and not 1"),
        ("nonsense", "managers: 'nonsense' is not an address"),
        ("", "managers: at least one address is needed"),
    ):
        for words in ((), ("--json",)):
            done = madkv("status", "--managers", managers, *words)
            assert (done.returncode, done.stdout) == (2, "")
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"madkv status: {why}"), line


def test_who_owns_what() -> None:
    """Several ranges, none, and keys that are no text."""
    several = PartitionMap(3, "c", [b"", b"g", b"\xff"], [1, 0, 1], [[("h", 1)], [("h", 2)], [("h", 3)]])
    assert owners(several) == [
        "s0 owns keys from 'g' to before '\\xff'",
        "s1 owns keys before 'g' and keys from '\\xff' on",
        "s2 owns no keys",
    ]
    assert owners(PartitionMap(1, "c", [b""], [0], [[("h", 1)]])) == ["s0 owns all keys"]
    assert owners(None) == []
    found = facts({}, several, [])["partitions"]
    assert [each["ranges"] for each in found] == [[["g", "\xff"]], [["", "g"], ["\xff", None]], []]
    assert facts({}, None, ["no map"]) == {
        "cluster": None,
        "epoch": None,
        "nodes": [],
        "partitions": [],
        "ailments": ["no map"],
        "well": False,
    }


def test_help() -> None:
    for words, expected in (
        (("status", "--help"), ("--managers", "--json", "Exit status", "2 no manager answers")),
        (("client", "--help"), ("The line interface: PUT, SWAP, GET, DELETE, SCAN and STOP on stdin",)),
        (("--help",), ("shell", "client", "replace-disk", "status", "check")),
    ):
        done = madkv(*words)
        assert done.returncode == 0
        for word in expected:
            assert word in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "said",
    [
        "[" * 100_000,
        "[]",
        "{",
        '{"role": "leader"}',
        '{"term": "7"}',
        '{"applied": true}',
        '{"leader": []}',
        '{"waiting": 1}',
        '{"node": "m\\n"}',
        '{"applied": 1, "nodes": []}',
        '{"applied": 1, "nodes": {"x": {"disk": "", "state": "", "address": ""}}}',
        '{"applied": 1, "nodes": {"s0": {"disk": "", "state": 1, "address": ""}}}',
        '{"nodes": {"s0": {"disk": "", "state": "", "address": ""}}}',
    ],
)
def test_what_no_node_says_of_itself(said: str) -> None:
    """Another program's port, or a broken node: it counts as silent, and the others are shown."""
    assert read_status(said.encode()) is None


def test_what_a_node_may_say_of_itself() -> None:
    for said in ({}, {"node": "s0", "role": "solo"}, {"role": "leader", "term": 1, "leader": 0, "later": ["more"]}):
        assert read_status(json.dumps(said).encode()) == said
