"""Nodes and clients that are started in a wrong way: each ends with a line that says why, and nobody else notices."""

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from madkv.addresses import parse_address
from madkv.client.blocking import BlockingClient
from madkv.testing.cluster import Cluster
from madkv.testing.ports import free_ports
from tests.e2e.clusters import client_refusal, command, out_of_the_way, refusal
from tests.processes import ROOT, ServerProcess

KEYS = [b"0", b"Zebra", b"z"]
"""Of both partitions."""
DISAGREEMENT = re.compile(
    r"(?P<one>\S+) and (?P<other>\S+) do not agree about the p2p port of (?P<subject>\S+): "
    r"(?P<its>\d+) and (?P<others>\d+); see their --p2p-port and --peers$"
)
numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster.local(tmp_path_factory.mktemp("cluster"), partitions=2, rf=3, managers=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Another cluster of the same form."""
    with Cluster.local(tmp_path_factory.mktemp("other"), partitions=1, rf=3, managers=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[BlockingClient]:
    with BlockingClient(managers=cluster.address) as client:
        yield client


@pytest.fixture(autouse=True)
def _nobody_else_notices(cluster: Cluster, client: BlockingClient) -> Iterator[None]:
    """Whatever a test does, calls succeed before and after it, and all nodes are there."""
    number = b"%d" % next(numbers)
    before = [client.put(key, number) for key in KEYS]
    yield
    assert len(before) == len(KEYS)
    assert [client.swap(key, b"after") for key in KEYS] == [number] * len(KEYS)
    assert cluster.fallen() == []


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    return tmp_path / "blank"


def elsewhere() -> dict[str, int]:
    """Ports that nobody has."""
    api_port, p2p_port = free_ports(2)
    return {"api_port": api_port, "p2p_port": p2p_port}


def peers(count: int) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in range(1, count + 1))


def assert_disagreement(line: str, subject: str, one: str, port: int) -> None:
    """`one` and a peer, whichever of them has found it, do not agree about the p2p port of `subject`.

    Where another replica has that port, it may be the first to tell.
    """
    if line.endswith(f"; {one} has its address for that of {subject}; see its --peers"):
        return
    match = DISAGREEMENT.search(line)
    assert match is not None, line
    said = {match["one"]: int(match["its"]), match["other"]: int(match["others"])}
    assert match["subject"] == subject
    assert said[one] == port != next(said[name] for name in said if name != one)


def port_of(address: str) -> int:
    return parse_address(address)[1]


# --- A second process beside the running cluster ----------------------------------------------------------------------


def test_a_duplicate_on_the_same_ports(cluster: Cluster, blank: Path) -> None:
    assert refusal(command(cluster, "s0.1", blank)).startswith("cannot listen on 0.0.0.0:")
    assert refusal(command(cluster, "m.1", blank)).startswith("cannot listen on 0.0.0.0:")


def test_a_duplicate_on_other_ports(cluster: Cluster, blank: Path) -> None:
    ports = elsewhere()
    line = refusal(command(cluster, "s0.1", blank, **ports))
    assert_disagreement(line, "s0.1", "s0.1", ports["p2p_port"])


@pytest.mark.parametrize("node", ["s0.1", "m.1"])
def test_a_directory_that_is_in_use(cluster: Cluster, node: str) -> None:
    path = cluster.directory(cluster.shape.node(node))
    line = refusal(command(cluster, node, path, **elsewhere() if node == "s0.1" else {}))
    assert line == f"the directory {path} is in use by another process; give each node a --backer of its own"


def test_a_partition_and_a_replica_that_there_are_not(cluster: Cluster, blank: Path) -> None:
    ports = elsewhere()
    assert refusal(command(cluster, "s0.1", blank, partition=2, **ports)) == (
        "there is no partition 2: the managers' --servers are 6 with --server-rf 3, so partitions go from 0 to 1"
    )
    line = refusal(command(cluster, "s0.1", blank, replica=3, peers=peers(4), **ports))
    assert line == "there is no replica 3: the managers' --server-rf is 3"
    line = refusal(command(cluster, "s0.1", blank, peers=peers(4), **ports))
    assert line == "s0.1 has --peers for 5 replicas; the managers' --server-rf is 3"


def test_managers_that_are_none(cluster: Cluster, blank: Path, server: ServerProcess) -> None:
    shape = cluster.shape
    advice = "not a manager; --managers is for the managers' addresses"
    another = "for other replicas; clients connect to another port"
    for address, what in ((shape.servers[0], "server s0.0"), (server.address, "a server without managers")):
        line = refusal(command(cluster, "s0.1", blank, managers=address, **elsewhere()))
        assert line == f"{address} is {what}, {advice}"
    line = refusal(command(cluster, "s0.1", blank, managers=shape.manager_p2ps[0], **elsewhere()))
    assert line == f"{shape.manager_p2ps[0]} is the p2p port of m.0, {another}"


def test_clients(cluster: Cluster, server: ServerProcess) -> None:
    shape = cluster.shape
    advice = "give the client the managers' addresses (--managers)"
    for option, address, line in (
        ("--managers", shape.servers[0], f"is server s0.0, not a manager: {advice}"),
        ("--server", shape.servers[0], f"is server s0.0 of a cluster: {advice}"),
        ("--server", shape.managers[0], f"is manager m.0: {advice}"),
        ("--managers", server.address, "is a server without managers: give the client its address as --server"),
    ):
        assert client_refusal(option, address) == f"{address} {line}"
    for option, address, node in (
        ("--managers", shape.manager_p2ps[0], "m.0"),
        ("--server", shape.server_p2ps[4], "s1.1"),
    ):
        line = f"{address} is the p2p port of {node}, for other replicas; clients connect to another port"
        assert client_refusal(option, address) == line


def test_a_fuzzer_has_nothing_to_judge_there(cluster: Cluster, server: ServerProcess, tmp_path: Path) -> None:
    """It ends as for any words that make no sense, in the line of the client that it would start, without a verdict."""
    shape = cluster.shape
    for module, address, line in (
        ("p3", shape.servers[1], "is server s0.1, not a manager: give the client the managers' addresses (--managers)"),
        ("p3", server.address, "is a server without managers: give the client its address as --server"),
        ("p3", shape.manager_p2ps[2], "is the p2p port of m.2, for other replicas; clients connect to another port"),
        ("p1", shape.managers[0], "is manager m.0: give the client the managers' addresses (--managers)"),
    ):
        log = tmp_path / "fuzz.log"
        words = ["1", "no", "--module", module, "--address", address, "--log", str(log), "--just", "nothing"]
        done = subprocess.run(
            [sys.executable, "-m", "madkv.testing.fuzz", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"madkv fuzz: {address} {line}\n")
        assert not log.exists()


# --- In the place of a server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strange(other: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of the other cluster's nodes, by their names."""
    path = tmp_path_factory.mktemp("strange")
    for name in ("s0.1", "m.1"):
        with out_of_the_way(other, name):
            shutil.copytree(other.directory(other.shape.node(name)), path / name)
    return path


def test_a_server_with_wrong_peers(cluster: Cluster, blank: Path) -> None:
    shape = cluster.shape
    p2p, free = shape.server_p2ps, f"127.0.0.1:{free_ports(1)[0]}"
    with out_of_the_way(cluster, "s0.1"):
        for directory in (cluster.directory(shape.node("s0.1")), blank):
            for first, second, subject in (
                (p2p[2], p2p[0], "s0.0"),
                (p2p[0], free, "s0.2"),
                (p2p[0], p2p[5], "s0.2"),
                (p2p[0], shape.servers[2], "s0.2"),
            ):
                line = refusal(command(cluster, "s0.1", directory, peers=f"{first},{second}"))
                assert_disagreement(line, subject, "s0.1", port_of(first if subject == "s0.0" else second))
            line = refusal(command(cluster, "s0.1", directory, p2p_port=port_of(free)))
            assert_disagreement(line, "s0.1", "s0.1", port_of(free))


def test_a_server_in_the_place_of_another(cluster: Cluster, blank: Path) -> None:
    own, shape = cluster.directory(cluster.shape.node("s0.1")), cluster.shape
    alone = {"replica": None, "p2p_port": None, "peers": None}
    with out_of_the_way(cluster, "s0.1"):
        for changed, name in (({"replica": 2}, "s0.2"), ({"partition": 1}, "s1.1"), (alone, "s0")):
            line = refusal(command(cluster, "s0.1", own, **changed))
            assert line.startswith(f"{own} belongs to node s0.1 of cluster "), line
            assert f", not to node {name} of cluster " in line
        assert refusal(command(cluster, "s0.1", blank, replica=2)).startswith("s0.2 and s0.")
        assert refusal(command(cluster, "s0.1", blank, partition=1)).startswith("s1.1 and s1.")
        line = refusal(command(cluster, "s0.1", own, api_port=free_ports(1)[0]))
        assert line.endswith(f"; the managers' --servers says {shape.servers[1]}")


def test_a_server_on_another_directory(cluster: Cluster, other: Cluster, strange: Path, blank: Path) -> None:
    shape = cluster.shape
    own, another = (cluster.directory(shape.node(name)) for name in ("s0.1", "s0.2"))
    of_another_cluster = "this server's directory belongs to cluster "
    with out_of_the_way(cluster, "s0.1"):
        assert refusal(command(cluster, "s0.1", blank)) == (
            "s0.1 is registered on another disk. If that disk is lost for good: "
            "`madkv replace-disk s0.1 --managers …`, then start this again"
        )
        line = refusal(command(cluster, "s0.1", strange / "s0.1"))
        assert line.startswith((of_another_cluster, "s0.0 (", "s0.2 ("))  # whoever is the first to tell
        assert line.endswith((": see its --backer and its --managers", "; see their --backer and --peers"))
        line = refusal(command(cluster, "s0.1", own, managers=other.address))
        assert line.startswith(of_another_cluster)
        assert line.endswith(": see its --backer and its --managers")
        assert refusal(command(cluster, "s0.1", blank, managers=other.address)).startswith("s0.1 and s0.")
        with out_of_the_way(cluster, "s0.2"):
            line = refusal(command(cluster, "s0.1", another))
        assert line.startswith(f"{another} belongs to node s0.2 of cluster ")


# --- In the place of a manager ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_blank", [False, True], ids=["own directory", "blank"])
def test_a_manager_with_something_wrong(cluster: Cluster, is_blank: bool, blank: Path) -> None:
    shape = cluster.shape
    p2p, free = shape.manager_p2ps, f"127.0.0.1:{free_ports(1)[0]}"
    directory = blank if is_blank else cluster.directory(shape.node("m.1"))
    as_on = ["m.0", "m.2"] if is_blank else ["the cluster was founded with"]
    who = ["m.1 was started with", "as on"] if is_blank else ["this manager was started with", "as"]
    other_servers = f"{shape.servers[5]}, not {shape.servers[0]}, among --servers"
    with out_of_the_way(cluster, "m.1"):
        for changed, difference in (
            ({"servers": ",".join(reversed(shape.servers))}, other_servers),
            ({"server_rf": 1}, "--server-rf 1, not 3"),
            ({"splits": "m"}, "--splits m, not left out"),
        ):
            line = refusal(command(cluster, "m.1", directory, **changed))
            assert line in [f"{who[0]} {difference} {who[1]} {name}" for name in as_on]
        for first, second, subject in (
            (p2p[2], p2p[0], "m.0"),
            (p2p[0], free, "m.2"),
            (p2p[0], shape.server_p2ps[0], "m.2"),
            (p2p[0], shape.managers[2], "m.2"),
        ):
            line = refusal(command(cluster, "m.1", directory, peers=f"{first},{second}"))
            assert_disagreement(line, subject, "m.1", port_of(first if subject == "m.0" else second))
        line = refusal(command(cluster, "m.1", directory, p2p_port=port_of(free)))
        assert_disagreement(line, "m.1", "m.1", port_of(free))
        five = f"{p2p[0]},{p2p[2]},127.0.0.1:1,127.0.0.1:2"
        assert "--peers for 5 managers" in refusal(command(cluster, "m.1", directory, peers=five))


def test_a_manager_on_another_directory(cluster: Cluster, other: Cluster, strange: Path, blank: Path) -> None:
    shape, p2p = cluster.shape, other.shape.manager_p2ps
    own = cluster.directory(shape.node("m.1"))
    with out_of_the_way(cluster, "m.1"):
        line = refusal(command(cluster, "m.1", blank))
        assert line.startswith("m.1 is registered on another disk. If that disk is lost for good: ")
        line = refusal(command(cluster, "m.1", strange / "m.1"))
        assert line.startswith(("this manager was started with ", "m.0 (", "m.2 ("))  # whatever is the first to show
        # With the other cluster's settings nothing is wrong but that its peers are not those.
        settings = {"servers": ",".join(other.shape.servers), "server_rf": 3}
        for line in (
            refusal(command(cluster, "m.1", strange / "m.1", **settings)),
            refusal(command(cluster, "m.1", own, peers=f"{p2p[0]},{p2p[2]}")),
        ):
            assert " does not take this replica: m." in line
            assert line.endswith("; see their --backer and --peers")
        line = refusal(command(cluster, "m.1", blank, peers=f"{p2p[0]},{p2p[2]}"))
        assert line in [f"m.1 was started with 6 --servers, not 3 as on {name}" for name in ("m.0", "m.2")]
        line = refusal(command(cluster, "m.1", own, replica=2))
        assert line.startswith(f"{own} belongs to node m.1 of cluster ")


def test_a_manager_at_the_first_start(tmp_path: Path) -> None:
    """Of two on empty directories that do not fit, the one that was started last ends."""
    new = Cluster.local(tmp_path, partitions=1, rf=3, managers=3)
    first = new.shape.node("m.0")
    try:
        new.start(first)
        new.wait_until(lambda: new.statuses([first])[first] is not None, "the first manager")
        line = refusal(command(new, "m.1", tmp_path / "m.1", server_rf=1))
        assert line in (
            "m.1 was started with --server-rf 1, not 3 as on m.0",
            "this is not how m.0 was started before: m.0 was started with --server-rf 3, not 1 as on m.1",
        ), "whichever of them asks first"
        line = refusal(command(new, "m.1", tmp_path / "m.1", peers=f"{new.shape.manager_p2ps[0]},127.0.0.1:9"))
        assert_disagreement(line, "m.2", "m.1", 9)
        assert new.fallen() == []
    finally:
        new.stop()
