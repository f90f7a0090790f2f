"""`cluster::up` and its like: what they start, end, refuse and leave alone. Clusters of real processes."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from madkv.client.blocking import BlockingClient
from madkv.operate import health
from madkv.operate.ask import Status
from madkv.partitions import PartitionMap
from madkv.testing import operate
from madkv.testing.cluster import STATE, Cluster
from madkv.testing.shape import Node, parse_node
from tests.monitor.daemons import get
from tests.processes import ROOT

SECONDS_MAX = 90
ONLY = "of its other replicas {} can vote just now, and 2 are needed"
pytestmark = pytest.mark.usefixtures("signals_as_before")
ONE = PartitionMap(1, "", [b""], [0], [[("h", 1)]])
SMALL = ("partitions=1", "rf=0")
"""Of two processes."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A partition of three and a manager; tests leave it as they found it."""
    with Cluster.local(tmp_path_factory.mktemp("cluster"), 1, 3, 1) as cluster:
        yield cluster
        Cluster.load(cluster.root).stop()  # also those that tests had started by the tool


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Where a cluster may be started; whatever runs there at the end is ended."""
    root = tmp_path / "cluster"
    yield root
    if (root / STATE).exists():
        Cluster.load(root).stop()


def processes_of(root: Path) -> list[psutil.Process]:
    """Those whose command line names a directory."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if any(str(root) in word for word in process.info["cmdline"] or [])]


# --- up and down ------------------------------------------------------------------------------------------------------


def test_down_removes_what_the_cluster_made_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert operate.main(["up", f"root={root}", *SMALL]) == 0
    (root / "mine").mkdir()
    (root / "mine" / "thesis").write_text("years of work")
    assert operate.main(["down", f"root={root}"]) == 0
    assert [path.name for path in root.iterdir()] == ["mine"]
    assert (root / "mine" / "thesis").read_text() == "years of work"
    assert capsys.readouterr().out.endswith(f"{root} stays: the cluster has not made mine\n")


def test_every_node_is_restarted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a leader that moves once, to one that is through; and not while a node is down."""
    assert operate.main(["up", f"root={root}", "partitions=1", "rf=3", "managers=1"]) == 0
    cluster = Cluster.load(root)
    pids = {node: cluster.pid(node) for node in cluster.shape.nodes()}
    leader = cluster.leader("s0")
    with BlockingClient(managers=cluster.address) as client:
        client.put(b"key", b"value")
        capsys.readouterr()
        assert operate.main(["rolling-restart", f"root={root}"]) == 0
        assert client.get(b"key") == b"value"
    said = capsys.readouterr().out.splitlines()
    restarted = [line.split()[0] for line in said if " restarted; " in line]
    assert sorted(restarted) == sorted(map(str, pids)) and restarted[-1] == str(leader)
    (moved,) = (line for line in said if " leads group " in line)
    assert moved.startswith(f"{restarted[-2]} leads group s0 in term ")
    cluster = Cluster.load(root)
    assert not set(pids.values()) & {cluster.pid(node) for node in cluster.shape.nodes()}
    cluster.kill(Node(0, 1))
    assert operate.main(["rolling-restart", f"root={root}"]) == 1
    assert capsys.readouterr().err.startswith("madkv cluster: s0.1: not running, so others may be needed")
    assert operate.main(["up", f"root={root}"]) == 0
    said = capsys.readouterr().out
    assert "started again: s0.1\n" in said and "unwell" not in said


def test_up_and_down_leave_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert operate.main(["up", f"root={root}", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "\nclients: ./justw p2::client 127.0.0.1:" in said
    assert operate.main(["up", f"root={root}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("the cluster is there already: partitions=1 rf=0 managers=1; all of it runs\n")
    assert operate.main(["status", f"managers={Cluster.load(root).address}"]) == 0
    assert rows(capsys.readouterr().out) == [["m", "leader"], ["s0", "leader"]]
    assert operate.main(["down", f"root={root}"]) == 0
    assert not root.exists()


def test_a_cluster_that_shows_itself_says_where(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert operate.main(["up", f"root={root}", *SMALL, "http=yes"]) == 0
    pages = dict(re.findall(r"^(?:pages)? +(\S+) +(http://127\.0\.0\.1:\d+/)$", capsys.readouterr().out, re.M))
    assert list(pages) == ["m", "s0"]
    for node, url in pages.items():
        assert f'"here": "{node}"' in get(url, "/cluster.json")[2]
    assert operate.main(["up", f"root={root}", "http=no"]) == 1
    assert "has partitions=1 rf=0 managers=1 http=yes, for good, and not http=no: " in capsys.readouterr().err
    assert operate.main(["status", f"root={root}"]) == 0
    assert pages["m"] in capsys.readouterr().out
    assert operate.main(["down", f"root={root}"]) == 0
    assert not root.exists()


def test_up_does_not_move_in_with_others(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.mkdir()
    (root / "thesis").write_text("years of work")
    assert operate.main(["up", f"root={root}", *SMALL]) == 1
    assert capsys.readouterr().err == (
        f"madkv cluster: {root} is no cluster's, and not empty: give another root=, or nothing\n"
    )
    assert [path.name for path in root.iterdir()] == ["thesis"]
    assert processes_of(root) == []


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_no_directory_is_not_this_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        operate.main([command, "root="])
    assert capsys.readouterr().err.endswith("error: root: a directory is needed (see --help)\n")


def test_options_of_another_cluster_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.mkdir()
    ports = iter(range(1, 100))
    shape = {
        "managers": [f"127.0.0.1:{next(ports)}" for _ in range(3)],
        "manager_p2ps": [f"127.0.0.1:{next(ports)}" for _ in range(3)],
        "rf": 3,
        "servers": [f"127.0.0.1:{next(ports)}" for _ in range(6)],
        "server_p2ps": [f"127.0.0.1:{next(ports)}" for _ in range(6)],
    }
    (root / STATE).write_text(json.dumps({"shape": shape, "processes": {}}))
    for words, wrong in (
        (("partitions=2", "rf=5"), "rf=5"),
        (("managers=1", "partitions=4"), "partitions=4 managers=1"),
    ):
        assert operate.main(["up", f"root={root}", *words]) == 1
        assert capsys.readouterr().err == (
            f"madkv cluster: the cluster in {root} has partitions=2 rf=3 managers=3, for good, and not {wrong}: "
            "`./justw cluster::down` removes it, another root= makes another\n"
        )
    assert processes_of(root) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["rf=-1"], "rf: -1 is none of 1, 3, 5, 7 or 9"),
        (["rf=2"], "rf: 2 is none of 1, 3, 5, 7 or 9"),
        (["managers=0"], "managers: 0 is none of 1, 3, 5, 7 or 9"),
        (["managers=-3"], "managers: -3 is none of 1, 3, 5, 7 or 9"),
        (["partitions=0"], "partitions: 0 is none of 1 to 50"),
        (["partitions=-2", "rf=0"], "partitions: -2 is none of 1 to 50"),
        (["rf=0", "managers=3"], "managers: with rf=0, as in project 2, there is 1, not 3"),
        (["rf=0", "managers=0"], "managers: with rf=0, as in project 2, there is 1, not 0"),
    ],
)
def test_what_makes_no_cluster_is_one_line(
    root: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert operate.main(["up", f"root={root}", *words]) == 1
    assert capsys.readouterr().err == f"madkv cluster: {why}\n"
    assert not root.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_ends_what_it_started(root: Path, number: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told the tests to ignore it
    command = [sys.executable, "-m", "madkv.testing.operate", "up", f"root={root}", "partitions=2", "rf=3"]
    tool = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while not (root / STATE).exists():
        assert tool.poll() is None
    tool.send_signal(number)
    out, err = tool.communicate(timeout=SECONDS_MAX)
    assert (tool.returncode, out) == (130, "")
    ended, last = err.splitlines()
    assert ended.startswith("madkv cluster: ended what this has started (m.0")
    assert ended.endswith(f"; its files stay in {root}") and last == "madkv cluster: interrupted"
    assert processes_of(root) == []


def test_a_start_that_fails_ends_only_what_it_started(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert operate.main(["up", f"root={root}", *SMALL]) == 0
    cluster = Cluster.load(root)
    manager, server = cluster.shape.nodes()
    cluster.kill(server)
    cluster.wipe(server)
    cluster.directory(server).write_text("no directory")
    capsys.readouterr()
    assert operate.main(["up", f"root={root}"]) == 1
    said = capsys.readouterr()
    assert said.out == "the cluster is there already: partitions=1 rf=0 managers=1; started again: s0\n"
    assert f"ended what this has started (s0); all else is as it was in {root}\n" in said.err
    assert Cluster.load(root).is_running(manager)


# --- status -----------------------------------------------------------------------------------------------------------


COMMANDS = (["status"], ["kill-node", "s0.0"], ["start-node", "s0.0"], ["down"], ["rolling-restart"])


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_where_there_is_no_cluster_it_is_said_how_to_get_one(
    root: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand = "; `./justw cluster::status managers=HOST:PORT,…` looks at one that was started by hand"
    assert operate.main([*words, f"root={root}"]) == 1
    assert capsys.readouterr().err == (
        f"madkv cluster: there is no cluster in {root}: `./justw cluster::up` makes one, root=DIRECTORY says where "
        f"another one is{by_hand if words == ['status'] else ''}\n"
    )
    assert not root.exists()


@pytest.mark.parametrize("words", [["up"], *COMMANDS], ids=lambda words: words[0])
def test_a_file_is_no_root(root: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root.write_text("years of work")
    assert operate.main([*words, f"root={root}"]) == 1
    assert capsys.readouterr().err.startswith(f"madkv cluster: {root} is a file: root= is for a")
    assert root.read_text() == "years of work"


def test_help_shows_options_as_recipes_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        operate.main(["up", "--help"])
    said = capsys.readouterr().out
    assert "  root=ROOT" in said and "[partitions=PARTITIONS]" in said and "--root" not in said


def rows(said: str) -> list[list[str]]:
    """Names and roles of a printed table."""
    return [line.split()[:2] for line in said.splitlines() if line[:2] in ("m.", "m ", "s0")]


def test_a_cluster_is_seen_by_its_managers_addresses(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert operate.main(["status", f"root={cluster.root}"]) == 0
    with_pids = capsys.readouterr().out
    assert operate.main(["status", f"managers={cluster.address}"]) == 0
    said = capsys.readouterr().out
    assert rows(said) == rows(with_pids) and len(rows(said)) == 4
    assert all(line.endswith("  -") for line in said.splitlines()[1:5]), said
    assert said.splitlines()[-1] == f"clients: ./justw p3::client {cluster.address}"
    assert "unwell" not in said
    node = parse_node("s0.2")
    cluster.pause(node)
    assert operate.main(["status", f"managers={cluster.address}"]) == 1
    said = capsys.readouterr().out
    assert ["s0.2", "silent"] in rows(said) and "unwell: s0.2 does not answer\n" in said
    cluster.resume(node)
    cluster.wait_until_caught_up(node)


def test_what_are_not_the_managers_is_one_line(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    server = cluster.shape.servers[1]
    for managers, why in (
        (server, f"managers: at {server} is no manager, but s0.1"),
        ("127.0.0.1:1", "no manager answers at 127.0.0.1:1"),
        (f"{cluster.address},127.0.0.1:1", "managers: name all 1 of this cluster, each once, and not 2"),
        ("", "managers: at least one address is needed"),
        ("nonsense", "managers: 'nonsense' is not an address"),
    ):
        assert operate.main(["status", f"managers={managers}"]) == 1
        assert capsys.readouterr().err.startswith(f"madkv cluster: {why}")


def test_slots_that_are_not_as_they_should_be_are_said() -> None:
    leads = {"role": "leader", "term": 1, "leader": 0, "commit": 1, "applied": 1}
    states = {"m.0": "registered", "s0.0": "registered", "s0.1": "catching up", "s0.2": "vacant"}
    manager = leads | {"waiting": "", "nodes": {name: {"state": state} for name, state in states.items()}}
    well: dict[Node, Status | None] = {parse_node("m.0"): manager, parse_node("s0.0"): leads}
    assert health.ailments(well, ONE) == [
        "s0.1 is catching up on an empty disk",
        "the disk of s0.2 was given up: start s0.2 on an empty directory",
    ]
    assert health.slot_state(well, parse_node("s0.1")) == "catching up"
    assert health.slot_state(well, parse_node("s7.1")) is None
    manager |= {"nodes": {}, "waiting": "waiting for s0.1 (1 of 2 registered)"}
    assert health.ailments(well, ONE) == ["waiting for s0.1 (1 of 2 registered)"]
    manager |= {"waiting": "for the cluster to be founded"}
    assert health.ailments(well, ONE) == ["waiting for the cluster to be founded"]


# --- replace-disk -----------------------------------------------------------------------------------------------------


def test_a_disk_that_the_others_need_is_not_given_up(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    down, asked = parse_node("s0.1"), parse_node("s0.0")
    cluster.kill(down)
    cluster.wait_until(lambda: cluster.leader("s0") is not None, "a leader")
    before = cluster.pid(asked), sorted(cluster.directory(asked).iterdir())
    assert operate.main(["replace-disk", "s0.0", f"root={cluster.root}"]) == 1
    assert capsys.readouterr().err == f"madkv cluster: group s0 cannot do without s0.0: {ONLY.format('s0.2')}\n"
    assert operate.main(["replace-disk", "m.0", f"root={cluster.root}"]) == 1
    assert capsys.readouterr().err == (
        "madkv cluster: group m cannot do without m.0: there is no other replica to get its data from\n"
    )
    assert (cluster.pid(asked), sorted(cluster.directory(asked).iterdir())) == before
    assert operate.main(["status", f"managers={cluster.address}"]) == 1
    assert "given up" not in capsys.readouterr().out
    cluster.start(down)
    cluster.wait_until_caught_up(down)


def test_a_disk_that_the_others_can_do_without_is_replaced(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it leads or not; and then all is well at once, so that the next one may be replaced."""
    leader = cluster.leader("s0")
    assert leader is not None
    other = next(node for node in cluster.shape.nodes("s0") if node != leader)
    for node in (leader, other):
        assert operate.main(["replace-disk", str(node), f"root={cluster.root}"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"the disk of {node} is given up; waiting until the new one has caught up",
            f"{node} has caught up on an empty disk",
        ]
        assert operate.main(["status", f"root={cluster.root}"]) == 0, capsys.readouterr().out
        capsys.readouterr()


def test_when_a_group_can_do_without_a_node() -> None:
    node, *others = (parse_node(f"s0.{replica}") for replica in range(3))
    leads = {"role": "leader", "term": 2, "leader": 1, "voters": ["0/ab", "1/cd", "2/ef"]}
    follows = {"role": "follower", "term": 2, "leader": 1}
    lost = {"role": "candidate", "term": 3, "leader": None}
    for first, second, why in (
        (leads, follows, None),
        (leads, None, ONLY.format("s0.1")),
        (leads, lost, ONLY.format("s0.1")),
        (
            leads | {"voters": ["0/ab", "1/cd"]},
            follows,
            ONLY.format("s0.1"),
        ),
        (follows, lost, "it has no leader"),
    ):
        assert operate.why_needed(node, {node: follows, others[0]: first, others[1]: second}) == why
    assert operate.why_needed(node, {node: leads}) == "there is no other replica to get its data from"
