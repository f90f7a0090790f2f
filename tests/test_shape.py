"""What a cluster's lists mean: node ids, which lists fit together, and each node's command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from madkv.testing import node as node_tool
from madkv.testing.shape import Node, Shape, ShapeError, parse_node
from tests.processes import ROOT

JUST = Path(sys.executable).with_name("just")
SECONDS_MAX = 30
MANAGERS = "h:1,h:2,h:3"
MANAGER_P2PS = "h:11,h:12,h:13"
SERVERS = "h:21,h:22,h:23,i:21,i:22,i:23"
SERVER_P2PS = "h:31,h:32,h:33,i:31,i:32,i:33"
P2 = Shape.project_2("h:1", "h:21,h:22")
P3 = Shape.project_3(MANAGERS, MANAGER_P2PS, "3", SERVERS, SERVER_P2PS)


# --- node ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "node", "group"),
    [
        ("m", Node(None, None), "m"),
        ("s0", Node(0, None), "s0"),
        ("s12", Node(12, None), "s12"),
        ("m.0", Node(None, 0), "m"),
        ("m.10", Node(None, 10), "m"),
        ("s1.2", Node(1, 2), "s1"),
    ],
)
def test_a_node_id_is_read_and_written(text: str, node: Node, group: str) -> None:
    assert parse_node(text) == node
    assert (str(node), node.group) == (text, group)


@pytest.mark.parametrize("text", ["", "x", "s", "m0", "s.0", "s0.", "s-1", "s0.1.2", "S0", " s0", "m.", "s٣", "s00000"])
def test_what_is_no_node_id_is_refused(text: str) -> None:
    with pytest.raises(ShapeError, match="is no node id"):
        parse_node(text)


@pytest.mark.parametrize(
    ("shape", "text"), [(P2, "s2"), (P2, "m.0"), (P2, "s0.0"), (P3, "m"), (P3, "m.3"), (P3, "s2.0"), (P3, "s0.3")]
)
def test_a_node_of_another_cluster_is_refused(shape: Shape, text: str) -> None:
    with pytest.raises(ShapeError, match=f"there is no {text} in this cluster"):
        shape.node(text)


def test_the_nodes_of_a_cluster() -> None:
    assert [str(node) for node in P2.nodes()] == ["m", "s0", "s1"]
    assert [str(node) for node in P3.nodes()] == ["m.0", "m.1", "m.2", "s0.0", "s0.1", "s0.2", "s1.0", "s1.1", "s1.2"]
    assert [str(node) for node in P3.nodes("s1")] == ["s1.0", "s1.1", "s1.2"]
    assert P3.groups == ["m", "s0", "s1"]
    assert P3.address(parse_node("s1.0")) == "i:21"
    assert P3.address(parse_node("m.2")) == "h:3"


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("managers", "manager_p2ps", "rf", "servers", "server_p2ps", "why"),
    [
        ("h:1,h:2", "h:11,h:12", "3", SERVERS, SERVER_P2PS, "managers: 2 addresses, not 1, 3, 5, 7 or 9"),
        (MANAGERS, "h:11,h:12", "3", SERVERS, SERVER_P2PS, "manager_p2ps: 2 addresses for 3 processes"),
        (MANAGERS, MANAGER_P2PS, "2", SERVERS, SERVER_P2PS, "server_rf: 2 is none of 1, 3, 5, 7 or 9"),
        (MANAGERS, MANAGER_P2PS, "x", SERVERS, SERVER_P2PS, "server_rf: 'x' is no whole number"),
        (MANAGERS, MANAGER_P2PS, "5", SERVERS, SERVER_P2PS, "servers: 6 addresses are no whole number of groups of 5"),
        (MANAGERS, MANAGER_P2PS, "3", SERVERS, "h:31", "server_p2ps: 1 addresses for 6 processes"),
        (MANAGERS, MANAGER_P2PS, "3", "none", "none", "servers: at least one is needed"),
        (MANAGERS, MANAGER_P2PS, "3", "h:1,h:1,h:2", "h:3,h:4,h:5", "servers: h:1 comes twice"),
        (MANAGERS, MANAGER_P2PS, "3", "h:1,h,h:2", "h:3,h:4,h:5", "servers: 'h' is not an address"),
    ],
)
def test_lists_that_do_not_fit_are_one_line(
    managers: str, manager_p2ps: str, rf: str, servers: str, server_p2ps: str, why: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        Shape.project_3(managers, manager_p2ps, rf, servers, server_p2ps)
    assert str(caught.value).startswith(why) and "\n" not in str(caught.value)


def test_project_2_has_one_manager_and_at_most_fifty_servers() -> None:
    with pytest.raises(ShapeError, match="manager: one address is needed, not 2"):
        Shape.project_2("h:1,h:2", "h:3")
    assert Shape.project_2("h:1", ",".join(f"h:{port}" for port in range(2, 52))).partitions == 50
    with pytest.raises(ShapeError, match="51 partitions are more than 50"):
        Shape.project_2("h:1", ",".join(f"h:{port}" for port in range(2, 53)))


@pytest.mark.parametrize(("partitions", "rf", "managers"), [(3, None, 1), (2, 3, 3), (1, 1, 1), (2, 5, 3)])
def test_a_local_cluster_takes_every_port_once(partitions: int, rf: int | None, managers: int) -> None:
    ports = range(100, 100 + Shape.ports_needed(partitions, rf, managers))
    shape = Shape.local(ports, partitions, rf, managers)
    taken = [*shape.managers, *shape.manager_p2ps, *shape.servers, *shape.server_p2ps]
    assert sorted(taken) == [f"127.0.0.1:{port}" for port in ports]
    assert (shape.partitions, shape.rf, len(shape.managers)) == (partitions, rf, managers)


def test_a_cluster_can_be_put_on_other_hosts() -> None:
    moved = P3.on_hosts(lambda node: f"on-{node}")
    assert moved.managers == ("on-m.0:1", "on-m.1:2", "on-m.2:3")
    assert moved.manager_p2ps == ("on-m.0:11", "on-m.1:12", "on-m.2:13")
    assert moved.servers[3:] == ("on-s1.0:21", "on-s1.1:22", "on-s1.2:23")
    assert moved.server_p2ps[:2] == ("on-s0.0:31", "on-s0.1:32")
    assert P2.on_hosts(str).server_p2ps == () and P2.on_hosts(str).servers == ("s0:21", "s1:22")


# --- command lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "node", "command"),
    [
        (P2, "m", "madkv-manager --man-port 1 --servers h:21,h:22 --backer D"),
        (P2, "s1", "madkv-server --partition 1 --managers h:1 --api-port 22 --backer D"),
        (
            P3,
            "m.1",
            f"madkv-manager --man-port 2 --servers {SERVERS} --replica 1 --p2p-port 12 --peers h:11,h:13"
            " --server-rf 3 --backer D",
        ),
        (
            P3,
            "s1.0",
            f"madkv-server --partition 1 --managers {MANAGERS} --api-port 21 --replica 0 --p2p-port 31"
            " --peers i:32,i:33 --backer D",
        ),
        (
            Shape.project_3("h:1", "h:11", "1", "h:21", "h:31"),
            "s0.0",
            "madkv-server --partition 0 --managers h:1 --api-port 21 --replica 0 --p2p-port 31 --peers none --backer D",
        ),
    ],
)
def test_the_command_line_of_a_node(shape: Shape, node: str, command: str) -> None:
    assert shape.command(parse_node(node), "D") == command.split()


def test_a_cluster_that_shows_itself() -> None:
    """A port for each node beside those that it has anyway; recipes take `http=` also right behind the node."""
    shape = Shape.local(range(1, 28), 2, 3, 3)
    for at, node in enumerate(shape.nodes()):
        assert shape.command(node, "d")[-2:] == ["--http", f"127.0.0.1:{19 + at}"]
        assert shape.pages()[node] == f"http://127.0.0.1:{19 + at}/"
    assert P3.pages() == {} and "--http" not in P3.command(parse_node("m.0"), "d")


@pytest.mark.parametrize(
    ("option", "words"),
    [("http=yes", ["--http", "0"]), ("http=9100", ["--http", "9100"]), ("http=no", []), ("--http=7", ["--http=7"])],
)
def test_a_node_is_told_to_show_itself(option: str, words: list[str]) -> None:
    lists = [MANAGERS, MANAGER_P2PS, "3", SERVERS, SERVER_P2PS, "./backer"]
    usual = node_tool.command("p3", ["s0.0", *lists])
    assert node_tool.command("p3", ["s0.0", *lists, option]) == [*usual, *words]
    if not option.startswith("-"):
        default = node_tool.command("p3", ["s0.0", node_tool.MANAGERS["p3"], *lists[1:]])
        assert node_tool.command("p3", ["s0.0", option, *lists[1:]]) == [*default, *words]


def test_the_default_managers_are_those_of_the_recipes() -> None:
    for project, number in (("p2", 2), ("p3", 3)):
        recipes = (ROOT / "justmod" / f"proj{number}.just").read_text()
        (line,) = (line for line in recipes.splitlines() if line.startswith("service "))
        assert f'="{node_tool.MANAGERS[project]}"' in line


def test_a_node_keeps_its_files_under_the_prefix_and_its_id() -> None:
    words = ["s1", "h:1", "h:21,h:22", "x/backer", "--splits", "k"]
    assert node_tool.command("p2", words)[-4:] == ["--backer", "x/backer.s1", "--splits", "k"]
    words = ["m.2", MANAGERS, MANAGER_P2PS, "3", SERVERS, SERVER_P2PS, "./backer"]
    assert node_tool.command("p3", words)[-2:] == ["--backer", "./backer.m.2"]


def test_a_node_that_cannot_be_is_one_line() -> None:
    command = [JUST, "p2::service", "s9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr == "madkv service: there is no s9 in this cluster; its nodes are m, s0, s1, s2\n"


# --- recipes ----------------------------------------------------------------------------------------------------------

THREE = "127.0.0.1:3777,127.0.0.1:3778,127.0.0.1:3779"
SIX = f"{THREE},127.0.0.1:3780,127.0.0.1:3781,127.0.0.1:3782"
SIX_P2PS = "127.0.0.1:3707,127.0.0.1:3708,127.0.0.1:3709,127.0.0.1:3710,127.0.0.1:3711,127.0.0.1:3712"
THREE_MANAGERS = "127.0.0.1:3666,127.0.0.1:3667,127.0.0.1:3668"


def shown(*recipe: str) -> str:
    """What a recipe would run, its words free of quotes."""
    command = [JUST, "--dry-run", *recipe]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=SECONDS_MAX)
    return " ".join(done.stderr.replace("'", "").replace("\\\n", " ").split())


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (["p2::manager"], f"madkv-manager --man-port 3666 --servers {THREE} --backer ./backer.m.3666"),
        (["p2::manager", "4000"], f"madkv-manager --man-port 4000 --servers {THREE} --backer ./backer.m.4000"),
        (
            ["p2::server"],
            "madkv-server --partition 0 --managers 127.0.0.1:3666 --api-port 3777 --backer ./backer.s0",
        ),
        (["p2::client"], "madkv.client --managers 127.0.0.1:3666"),
        (["p2::service"], f"madkv.testing.node p2 s0 127.0.0.1:3666 {THREE} ./backer"),
        (["p2::fuzz"], "madkv.testing.fuzz 5 yes --module p2"),
        (["p2::fuzz", "3", "no"], "--log /tmp/madkv-p2/fuzz/fuzz-3-no.log --address 127.0.0.1:3666"),
        (["p2::bench", "10", "A", "5"], "--log /tmp/madkv-p2/bench/bench-10-a-5.log --address 127.0.0.1:3666"),
        (["p2::testcase"], "madkv.testing.testcase 1 --module p2"),
        (
            ["p3::manager"],
            "madkv-manager --replica 0 --man-port 3666 --p2p-port 3606 --peers 127.0.0.1:3607,127.0.0.1:3608"
            f" --server-rf 3 --servers {SIX} --backer ./backer.m.0",
        ),
        (
            ["p3::server"],
            f"madkv-server --partition 0 --replica 0 --managers {THREE_MANAGERS} --api-port 3777 --p2p-port 3707"
            " --peers 127.0.0.1:3708,127.0.0.1:3709 --backer ./backer.s0.0",
        ),
        (["p3::client"], f"madkv.client --managers {THREE_MANAGERS}"),
        (
            ["p3::service"],
            f"madkv.testing.node p3 s0.0 {THREE_MANAGERS} 127.0.0.1:3606,127.0.0.1:3607,127.0.0.1:3608 3 {SIX}"
            f" {SIX_P2PS} ./backer",
        ),
        (["p3::fuzz"], f"--log /tmp/madkv-p3/fuzz/fuzz-5-no.log --address {THREE_MANAGERS}"),
        (["p3::bench", "10", "a"], f"--log /tmp/madkv-p3/bench/bench-10-a-3.log --address {THREE_MANAGERS}"),
        (["p3::testcase", "4"], "--log /tmp/madkv-p3/tests/test4.log"),
    ],
)
def test_recipes_take_what_the_contract_says(recipe: list[str], words: str) -> None:
    assert words in shown(*recipe)
