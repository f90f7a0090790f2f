"""`madkv transfer-leader` on a cluster of real processes."""

from collections.abc import Iterator

import pytest

from madkv.client.blocking import BlockingClient
from madkv.limits import TRANSFER_LAG_ENTRIES_MAX
from madkv.testing.cluster import Cluster
from tests.processes import free_address, madkv


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster.local(tmp_path_factory.mktemp("cluster"), 1, 3, 3) as cluster:
        yield cluster


def transfer(*words: str) -> tuple[int, str, str]:
    done = madkv("transfer-leader", *words)
    return done.returncode, done.stdout.removesuffix("\n"), done.stderr.removesuffix("\n")


@pytest.mark.parametrize("group", ["s0", "m"])
def test_each_replica_in_turn(cluster: Cluster, group: str) -> None:
    """It leads when the command has ended, and the others know."""
    with BlockingClient(managers=cluster.address) as client:
        for node in cluster.shape.nodes(group):
            status, said, complaint = transfer(str(node), "--managers", cluster.address)
            assert (status, complaint) == (0, "")
            assert cluster.leader(group) == node
            assert said == f"{node} leads group {group} in term {(cluster.statuses([node])[node] or {})['term']}"
            assert client.put(b"key", b"value") in (True, False)
    last = cluster.shape.nodes(group)[-1]
    assert transfer(str(last), "--managers", cluster.address) == (0, said, ""), "it leads already"


def test_a_number_in_a_group(cluster: Cluster) -> None:
    assert transfer("1", "--group", "s0", "--managers", cluster.address)[0] == 0
    assert cluster.leader("s0") == cluster.shape.node("s0.1")
    assert transfer("s0.0", "--group", "s0", "--managers", cluster.address)[0] == 0


def test_who_cannot_lead(cluster: Cluster) -> None:
    nobody = free_address()
    managers = ("--managers", cluster.address)
    for words, expected, why in (
        (("s0.7", *managers), 1, "group s0 has no replica 7, but 0, 1, 2"),
        (("s3.0", *managers), 1, "there is no group s3: the last one is s0"),
        (("x", *managers), 2, "'x' is no node id; m or s0 in project 2, m.0 or s0.1 in project 3"),
        (("s0.1", "--group", "s1", *managers), 2, "s0.1 is of group s0, not s1"),
        (("1", "--group", "s0.1", *managers), 2, "--group s0.1: a group is m, s0, s1 and so on"),
        (("s0.1", "--managers", nobody), 2, f"no manager answers at {nobody}"),
        (("m.1", "--managers", "nonsense"), 2, "'nonsense' is not an address; write HOST:PORT, such as 127.0.0.1:3777"),
    ):
        assert transfer(*words) == (expected, "", f"madkv transfer-leader: {why}")


def test_one_that_is_behind_or_silent(cluster: Cluster) -> None:
    """Nothing changes by that: who leads goes on."""
    leader = cluster.leader("s0")
    assert leader is not None
    slow = next(node for node in cluster.shape.nodes("s0") if node != leader)
    cluster.wait_until_caught_up(slow)
    cluster.pause(slow)
    try:
        status, _, complaint = transfer(str(slow), "--managers", cluster.address)
        assert status == 1
        assert "does not answer its leader" in complaint or "has not taken over in time" in complaint
        with BlockingClient(managers=cluster.address) as client:
            for number in range(TRANSFER_LAG_ENTRIES_MAX + 50):
                client.put(b"key", b"%d" % number)
        status, _, complaint = transfer(str(slow), "--managers", cluster.address)
        assert status == 1 and complaint.endswith("entries behind: wait until it has caught up"), complaint
        assert cluster.leader("s0") == leader
    finally:
        cluster.resume(slow)
    cluster.wait_until_caught_up(slow)
    assert transfer(str(slow), "--managers", cluster.address)[0] == 0
