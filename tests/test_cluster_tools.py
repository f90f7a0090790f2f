"""What the tools around a cluster say of it: status, health, pauses; and clusters of real processes under them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from madkv.operate import health
from madkv.operate.ask import Status, ask_map, ask_status
from madkv.operate.health import leader_of
from madkv.partitions import PartitionMap
from madkv.testing import chaos, crashfuzz, leaderkills, ports
from madkv.testing.cluster import Cluster, ClusterError
from madkv.testing.cluster_cases import keys_of
from madkv.testing.fuzz import FuzzFailed
from madkv.testing.health import table
from madkv.testing.history import Operation
from madkv.testing.mischief import Fault, Mischief, pauses
from madkv.testing.ports import OUTGOING_PORTS, free_ports
from madkv.testing.shape import Node, Shape, ShapeError, parse_node
from madkv.testing.transcript import Transcript

S00, S01, S02 = (Node(0, replica) for replica in range(3))
TWO = PartitionMap(1, "", [b"", b"k"], [0, 1], [[("h", 1)], [("h", 2)]])


def status(role: str, term: int, leader: int | None, commit: int, applied: int) -> Status:
    facts = {"role": role, "term": term, "leader": leader, "commit": commit, "applied": applied}
    return {**facts, "data_bytes": 3 << 20}


# --- status -----------------------------------------------------------------------------------------------------------


def test_of_two_that_think_they_lead_the_later_term_counts() -> None:
    statuses: dict[Node, Status | None] = {
        S00: status("leader", 3, 0, 9, 9),
        S01: status("leader", 4, 1, 12, 12),
        S02: None,
    }
    assert leader_of(statuses) == S01
    assert leader_of({S00: None, S01: status("follower", 3, 0, 1, 1), S02: {"role": "starting"}}) is None


def test_the_table_of_a_cluster() -> None:
    statuses: dict[Node, Status | None] = {
        S00: status("leader", 3, 0, 12, 12),
        S01: status("follower", 3, 0, 9, 8),
        S02: None,
        Node(1, 0): None,
        Node(None, 0): {"role": "starting"},
    }
    pids = {**dict.fromkeys(statuses), S00: 41, S01: 42, S02: 43}
    assert table(statuses, pids) == [
        "node  role      term  leader  commit  applied  lag     size  pid",
        "s0.0  leader       3  itself      12       12    0  3.0 MiB   41",
        "s0.1  follower     3  s0.0         9        8    4  3.0 MiB   42",
        "s0.2  silent       -  -            -        -    -        -   43",
        "s1.0  down         -  -            -        -    -        -    -",
        "m.0   starting     -  -            -        -    -        -    -",
    ]


def test_what_is_wrong_with_a_cluster_is_said() -> None:
    shape = Shape.local(range(100, 100 + Shape.ports_needed(1, 3, 1)), 1, 3)
    well: dict[Node, Status | None] = {node: status("follower", 1, 0, 1, 1) for node in shape.nodes()}
    well |= {Node(None, 0): status("leader", 1, 0, 1, 1), S00: status("leader", 1, 0, 1, 1)}
    assert health.ailments(well, TWO) == []
    assert health.ailments({**well, S02: None}, TWO) == ["s0.2 does not answer"]
    assert health.ailments({**well, S00: None, S02: None}, TWO) == [
        "s0.0, s0.2 do not answer",
        "group s0 has no leader: it waits",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 19, "2.5 MiB"), (1 << 41, "2048.0 GiB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert health.size(count) == text


# --- pauses -----------------------------------------------------------------------------------------------------------


def write(key: bytes, returned_seconds: float | None, kind: str = "PUT") -> Operation:
    returned_ns = None if returned_seconds is None else int(returned_seconds * 1e9)
    return Operation(0, kind, key, b"v", 0, returned_ns, False)  # type: ignore[arg-type]


def fault(began: float, healed: float, recovered: float, *nodes: str) -> Fault:
    times = (int(seconds * 1e9) for seconds in (began, healed, recovered))
    return Fault("killed", tuple(map(parse_node, nodes)), *times)


def test_a_pause_is_the_longest_time_without_a_write_in_a_partition_that_was_struck() -> None:
    struck = [write(b"a", each) for each in (0.0, 5.0, 9.9, 10.0, 14.0, 14.5, 15.0, 25.0)]
    other = [write(b"z", each) for each in (0.0, 11.0, 30.0)]
    reads = [write(b"a", 12.0, "GET"), write(b"a", None)]
    history = [*struck, *other, *reads]
    assert pauses(fault(10.1, 13.0, 16.0, "s0.1"), TWO, history) == (10.0, 10.0)
    assert pauses(fault(10.1, 13.0, 14.9, "s0.1"), TWO, history) == (4.0, 1.0)
    assert pauses(fault(10.1, 13.0, 14.9, "s1.0"), TWO, history) == (19.0, 17.0)
    assert pauses(fault(10.1, 13.0, 14.9, "m.0"), TWO, history) == (19.0, 17.0)


def test_chaos_sums_up_by_kind() -> None:
    done = [
        (fault(0, 2, 3, "s0.0"), 1.0, 0.25),
        (fault(5, 6, 9, "s0.1"), 0.5, 0.5),
    ]
    assert chaos.table(done)[1].split() == ["killed", "2", "2.00", "3.00", "1.00", "0.50"]
    assert len(chaos.table([])) == 1


@pytest.mark.parametrize(
    ("paused", "passes", "said"),
    [
        ([0.77], True, "1 leader killed; nothing could be written for 0.77 s, and 3 s may be"),
        ([2.0], True, "1 leader killed; nothing could be written for 2.00 s, and 3 s may be"),
        ([3.5], False, "1 leader killed; nothing could be written for 3.50 s, and 3 s may be"),
        ([0.5, 1.0, 2.0], True, "  least 0.50, median 1.00, most 2.00"),
        ([0.5, 2.0, 2.0], False, "  least 0.50, median 2.00, most 2.00"),
        ([0.5, 0.5, 3.5], False, "  least 0.50, median 0.50, most 3.50"),
    ],
)
def test_pauses_are_judged(paused: list[float], passes: bool, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaderkills.judge(paused, Transcript(None)) is passes
    assert said in capsys.readouterr().out.splitlines()


def test_who_is_to_be_killed() -> None:
    two = Shape.project_2("h:1", "h:2,h:3")
    three = Shape.local(range(100, 100 + Shape.ports_needed(2, 5, 1)), 2, 5)
    assert crashfuzz.victims("2", two) == 2
    assert crashfuzz.victims("s1,s0", two) == [Node(1, None), Node(0, None)]
    assert crashfuzz.victims("2", three) == 2
    for text, shape in (("3", two), ("0", two), ("3", three), ("s9", two)):
        with pytest.raises(ShapeError):
            crashfuzz.victims(text, shape)


# --- mischief ---------------------------------------------------------------------------------------------------


class Clients:
    """What mischief sees of a run."""

    def __init__(self) -> None:
        self.history: list[Operation] = []
        self.enough = False
        self.broken = ""


def mischief(act: Callable[[Mischief], None], clients: Clients, said: list[str]) -> Mischief:
    shape = Shape.local(range(100, 103), 2, None)
    return Mischief(Cluster(shape, Path("/nonexistent")), act, said.append).beside(clients)  # type: ignore[arg-type]


def test_mischief_goes_on_while_clients_work_and_ends_their_run() -> None:
    clients, said = Clients(), list[str]()

    def act(mischief: Mischief) -> None:
        mischief.wait_for_calls(1)
        mischief.tell("one")
        clients.enough = True

    with mischief(act, clients, said) as running:
        clients.history.append(write(b"k", 1.0))
        running.join()
    assert clients.enough and not clients.broken
    assert len(said) == 1 and said[0].endswith("1 calls answered] one")


def test_mischief_that_fails_fails_the_run() -> None:
    def act(mischief: Mischief) -> None:
        raise ClusterError("s0 has ended")

    clients = Clients()
    with pytest.raises(FuzzFailed, match="s0 has ended"), mischief(act, clients, []) as running:
        running.join()
    clients = Clients()
    with pytest.raises(FuzzFailed, match="ZeroDivisionError"), mischief(lambda _: print(1 / 0), clients, []):
        pass


def test_mischief_is_broken_off_with_its_run() -> None:
    clients = Clients()
    with pytest.raises(RuntimeError), mischief(lambda mischief: mischief.wait(3600), clients, []):
        raise RuntimeError


# --- real ones --------------------------------------------------------------------------------------------------------


def test_free_ports_are_none_that_the_kernel_gives_away() -> None:
    first, _ = map(int, OUTGOING_PORTS.read_text().split())
    found = free_ports(20)
    assert len(set(found)) == 20 and max(found) < first


def test_free_ports_are_not_given_to_two_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was killed leaves its port free for a while; its clients must not find another cluster's there."""
    script = "from madkv.testing.ports import free_ports\nprint(*free_ports(3), flush=True)\ninput()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = list(map(int, other.stdout.readline().split()))
        (ours,) = free_ports(1)
        monkeypatch.setattr(ports, "candidates", lambda: [*theirs, ours])
        with pytest.raises(OSError, match="fewer than 1 ports"):
            free_ports(1)
        other.communicate("\n")
    assert free_ports(3) == theirs, "it has ended"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One of project 2; tests leave it as they found it."""
    with Cluster.local(tmp_path_factory.mktemp("cluster"), 2, None) as cluster:
        yield cluster


def test_a_cluster_serves_and_tells_how_it_is(cluster: Cluster) -> None:
    statuses = cluster.statuses()
    assert {str(node): each and each["role"] for node, each in statuses.items()} == {
        "m": "leader",
        "s0": "leader",
        "s1": "leader",
    }
    assert health.ailments(statuses, TWO) == []
    partition_map = cluster.partition_map()
    for partition in (0, 1):
        assert {partition_map.partition_of(key) for key in keys_of(partition_map, partition)} == {partition}


def test_who_is_no_manager_has_no_map(cluster: Cluster) -> None:
    assert ask_map(cluster.shape.servers[0]) is None
    assert ask_map("127.0.0.1:1") is None
    assert ask_map("nonsense") is None
    assert ask_status("127.0.0.1:1") is None


def test_a_node_is_killed_and_started_and_another_process_can_take_over(cluster: Cluster) -> None:
    node = parse_node("s1")
    before = cluster.pid(node)
    taken_over = Cluster.load(cluster.root)
    assert taken_over.shape == cluster.shape and taken_over.pid(node) == before
    cluster.kill(node)
    assert not cluster.is_running(node) and cluster.leader("s1") is None
    assert cluster.fallen() == [], "who was killed by us has not fallen"
    assert not Cluster.load(cluster.root).is_running(node)
    cluster.start(node)
    cluster.wait_until_caught_up(node)
    assert cluster.leader("s1") == node and cluster.pid(node) != before


def test_a_stopped_node_answers_nothing_and_goes_on_when_it_may(cluster: Cluster) -> None:
    node = parse_node("s0")
    cluster.pause(node)
    assert cluster.is_running(node) and cluster.statuses([node]) == {node: None}
    cluster.resume(node)
    cluster.wait_until_caught_up(node)


def test_under_load_nodes_that_are_a_moment_behind_have_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every look one or the other lacks what its leader has just committed."""
    group = [parse_node(f"s0.{replica}") for replica in range(3)]
    cluster = Cluster(Shape.local(range(1, 1 + Shape.ports_needed(1, 3, 1)), 1, 3, 1), tmp_path)
    looks = iter([(100, 0, 90), (200, 0, 199), (300, 150, 290), (400, 390, 400)])

    def statuses(nodes: object) -> dict[Node, dict[str, object]]:
        return {
            node: {"role": "follower", "term": 1, "applied": applied, "commit": 0, "voters": group}
            for node, applied in zip(group, next(looks), strict=True)
        } | {group[0]: {"role": "leader", "term": 1, "applied": 400, "commit": 100, "voters": group}}

    monkeypatch.setattr(cluster, "statuses", statuses)
    look = cluster.catching_up(group)
    assert [look(), look(), look()] == [False, False, True]


def test_a_node_that_ends_by_itself_is_noticed(cluster: Cluster) -> None:
    node = parse_node("s0")
    pid = cluster.pid(node)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ClusterError, match="s0 ended while rain was awaited"):
        cluster.wait_until(lambda: False, "rain")
    assert cluster.fallen() == [node]
    cluster.kill(node)
    cluster.start(node)
    cluster.wait_until_caught_up(node)


def test_a_cluster_ends_in_good_order_and_another_one_is_not_found(tmp_path: Path) -> None:
    with Cluster.local(tmp_path / "c", 1, 1) as cluster:
        pids = [cluster.pid(node) for node in cluster.shape.nodes()]
        assert cluster.stop()
    assert all(pid is not None and not os.path.exists(f"/proc/{pid}") for pid in pids)
    with pytest.raises(ClusterError, match="there is no cluster in"):
        Cluster.load(tmp_path / "nowhere")
    (tmp_path / "c" / "cluster.json").write_text("{}")
    with pytest.raises(ClusterError, match="is not what it should be"):
        Cluster.load(tmp_path / "c")
