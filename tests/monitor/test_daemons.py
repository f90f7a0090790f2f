"""What real daemons show over HTTP: metrics, probes, the cluster; and what garbage on the port does to them."""

import errno
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from madkv import __version__
from madkv.client.blocking import BlockingClient
from madkv.counts import SECONDS
from madkv.limits import HTTP_CONNECTIONS_MAX
from madkv.monitor.service import LOOK_SECONDS
from madkv.server.service import CALLS
from madkv.testing.cluster import Cluster
from madkv.testing.shape import Node
from tests.monitor.daemons import Samples, get, get_json, samples, value
from tests.processes import ROOT, ServerProcess, free_address, server_command

WAIT_SECONDS_MAX = 30.0
PUTS, GETS = 30, 50
PAGES = ("/", "/page.css", "/page.js", "/icon.svg", "/cluster.json", "/metrics", "/healthz", "/readyz")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three managers and two partitions; tests leave it as they found it."""
    with Cluster.local(tmp_path_factory.mktemp("cluster"), 2, 3, 3, http=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def solo() -> Iterator[tuple[ServerProcess, str]]:
    """A server without managers, and its page."""
    with ServerProcess("--http", "0") as server:
        yield (
            server,
            server.wait_for(r"s0 shows itself and its cluster at (http://127\.0\.0\.1:\d+/)")[1],
        )


def page(cluster: Cluster, node: str) -> str:
    return cluster.shape.pages()[cluster.shape.node(node)]


def wait_until(holds: Callable[[], bool], seconds: float = WAIT_SECONDS_MAX) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)  # between two looks; the deadline is above


# --- Metrics ----------------------------------------------------------------------------------------------------------


def test_all_daemons_tell_what_has_happened(cluster: Cluster) -> None:
    before = {node: samples(url) for node, url in cluster.shape.pages().items()}
    with BlockingClient(managers=cluster.address) as client:
        for number in range(PUTS):
            client.put(b"%c" % (ord("0") + number), b"v")
        for _ in range(GETS):
            client.get(b"A")
        client.scan(b"", b"z")
    after: dict[Node, Samples] = {}

    def grown(name: str, **labels: str) -> float:
        servers = [node for node in after if node.partition is not None]
        return sum(value(after[node], name, **labels) - value(before[node], name, **labels) for node in servers)

    def is_all_told() -> bool:
        """What was told a moment before is told again, and a follower may be a moment behind."""
        after.update({node: samples(url) for node, url in cluster.shape.pages().items()})
        calls = {call: grown("madkv_call_seconds_count", call=call) for call in ("put", "get", "scan")}
        return (
            calls["put"] >= PUTS
            and calls["get"] >= GETS
            and calls["scan"] >= 2
            and (grown("madkv_commit_entries_sum") >= 3 * PUTS)
        )

    wait_until(is_all_told)
    assert grown("madkv_call_seconds_count", call="put") == PUTS
    assert grown("madkv_call_seconds_count", call="get") == GETS
    assert grown("madkv_call_seconds_count", call="scan") >= 2, "a page of each partition at least"
    assert 0 < grown("madkv_call_seconds_sum", call="put") < WAIT_SECONDS_MAX
    assert grown("madkv_commit_entries_sum") >= 3 * PUTS, "on the disks of all three"
    assert grown("madkv_commit_seconds_count") == grown("madkv_sync_seconds_count") > 0
    for group in cluster.shape.groups:
        nodes = cluster.shape.nodes(group)
        assert sum(value(after[node], "madkv_raft_is_leader") for node in nodes) == 1
        assert {value(after[node], "madkv_raft_has_leader") for node in nodes} == {1}
        assert len({value(after[node], "madkv_raft_term") for node in nodes}) == 1
        (leader,) = (node for node in nodes if value(after[node], "madkv_raft_is_leader"))
        for peer in nodes:
            if peer != leader:
                replica = str(peer.replica)
                assert value(after[leader], "madkv_raft_peer_lag_entries", replica=replica) < 10
                assert value(after[leader], "madkv_peer_connected", replica=replica) == 1
    for node, found in after.items():
        named = dict(next(iter(found["madkv_info"])))
        assert (named["node"], named["group"], named["version"]) == (str(node), node.group, __version__)
        assert named["cluster"] == cluster.partition_map().cluster
        buckets = [count for labels, count in found["madkv_commit_seconds_bucket"].items()]
        assert len(buckets) == len(SECONDS) + 1 and buckets == sorted(buckets)
        assert value(found, "madkv_store_bytes") > value(found, "madkv_log_bytes") > 0
        assert found["process_cpu_seconds_total"] and found["python_gc_collections_total"]
    servers = [found for node, found in after.items() if node.partition is not None]
    assert {value(found, "madkv_ranges_owned") >= 1 for found in servers} == {True}
    manager = after[Node(None, 0)]
    assert value(manager, "madkv_disks", state="registered") == 9
    assert sum(value(found, "madkv_call_seconds_count", call="get_map") for node, found in after.items()
               if node.partition is None) > 0  # fmt: skip


def test_every_metric_is_documented(cluster: Cluster, solo: tuple[ServerProcess, str]) -> None:
    """By its name as it is written, and nothing is documented that is not there."""
    text = (ROOT / "docs" / "seeing.md").read_text()
    told = set(re.findall(r"^\| `(madkv_\w+)(?:\{\w+\})?`", text, re.M))
    found = set()
    for url in (*cluster.shape.pages().values(), solo[1]):
        _, _, body = get(url, "/metrics")
        found |= {line.split()[2] for line in body.splitlines() if line.startswith("# TYPE madkv_")}
    assert told == found


def test_a_server_without_managers(solo: tuple[ServerProcess, str]) -> None:
    server, url = solo
    with BlockingClient(server.address) as client:
        client.put(b"k", b"v")
        client.swap(b"k", b"w")
    wait_until(lambda: value(samples(url), "madkv_call_seconds_count", call="swap") == 1)  # not what was made before
    found = samples(url)
    assert {labels[0][1] for labels in found["madkv_call_seconds_count"]} == set(CALLS)
    assert value(found, "madkv_raft_is_leader") == 1
    assert "madkv_commit_seconds_count" not in found, "it has no disk"
    assert get_json(url, "/readyz")[0] == get_json(url, "/healthz")[0] == 200
    _, view = get_json(url, "/cluster.json")
    assert (view["well"], view["here"], [each["group"] for each in view["groups"]]) == (True, "s0", ["s0"])
    assert view["groups"][0]["nodes"][0]["role"] == "leader"


# --- Probes -----------------------------------------------------------------------------------------------------------


def test_probes_of_a_cluster_that_is_well(cluster: Cluster) -> None:
    for node, url in cluster.shape.pages().items():
        for path in ("/healthz", "/readyz"):
            code, body = get_json(url, path)
            assert (code, body["ok"], body["reasons"], body["node"]) == (200, True, [], str(node))


def test_a_follower_without_a_leader_is_alive_and_not_ready(cluster: Cluster) -> None:
    nodes = cluster.shape.nodes("s1")
    leader = cluster.leader("s1")
    follower = next(node for node in nodes if node != leader)
    others = [node for node in nodes if node != follower]
    url = cluster.shape.pages()[follower]
    cluster.kill(*others)
    try:
        wait_until(lambda: get_json(url, "/readyz")[0] == 503)
        wait_until(lambda: get_json(url, "/readyz")[1]["reasons"] == ["it knows no leader of its group"])
        code, body = get_json(url, "/readyz")
        assert (code, body["ok"], body["leader"]) == (503, False, None)
        assert get_json(url, "/healthz")[0] == 200
        _, view = get_json(url, "/cluster.json")
        assert not view["well"]
        assert f"{others[0]}, {others[1]} do not answer" in view["ailments"]
        assert "group s1 has no leader: it waits" in view["ailments"]
    finally:
        for node in others:
            cluster.start(node)
        cluster.wait_until_caught_up(*nodes)
    wait_until(lambda: get_json(url, "/readyz")[0] == 200)
    wait_until(lambda: bool(get_json(url, "/cluster.json")[1]["well"]))  # not what was seen while they were down


# --- The whole cluster ------------------------------------------------------------------------------------------------


def test_any_node_shows_the_whole_cluster(cluster: Cluster) -> None:
    for node, url in cluster.shape.pages().items():
        code, view = get_json(url, "/cluster.json")
        assert (code, view["here"], view["cluster"]) == (200, str(node), cluster.partition_map().cluster)
        assert view["well"], view["ailments"]
        assert [each["group"] for each in view["groups"]] == ["m", "s0", "s1"]
        shown = [each for group in view["groups"] for each in group["nodes"]]
        assert [each["node"] for each in shown] == list(map(str, cluster.shape.nodes()))
        assert all(each["answers"] and each["version"] == __version__ for each in shown)
        assert [each["node"] for each in shown if each["here"]] == [str(node)]
        for group in view["groups"]:
            assert group["leader"] == str(cluster.leader(group["group"]))
            assert bool(group["owns"]) == (group["group"] != "m")


def test_rates_and_events(cluster: Cluster) -> None:
    url = page(cluster, "m.1")
    get_json(url, "/cluster.json")
    with BlockingClient(managers=cluster.address) as client:
        deadline = time.monotonic() + 1.2
        while time.monotonic() < deadline:
            client.put(b"0", b"v")
            client.get(b"0")
    _, view = get_json(url, "/cluster.json")
    (group,) = (each for each in view["groups"] if each["group"] == "s0")
    assert group["writes_per_second"] > 5 and group["reads_per_second"] > 5
    assert 0 < group["reads_ms"][0] <= group["reads_ms"][1]
    assert view["history"][-1]["rates"]["s0"] == [group["reads_per_second"], group["writes_per_second"]]
    assert {"leader"} <= {each["what"] for each in view["events"]}


def test_a_killed_leader_is_shown_at_any_node_by_the_next_look(cluster: Cluster) -> None:
    leader = cluster.leader("s0")
    assert leader is not None
    url = page(cluster, "m.2")
    get_json(url, "/cluster.json")

    def shown() -> dict[str, bool]:
        _, view = get_json(url, "/cluster.json")
        return {each["node"]: each["answers"] for group in view["groups"] for each in group["nodes"]}

    assert shown()[str(leader)]
    cluster.process(leader).kill()
    try:
        # One look may be a little less than a second old, and the next one is not.
        deadline = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < deadline:
            shown()
        assert not shown()[str(leader)]
        cluster.kill(leader)
        wait_until(lambda: "lost" in [each["what"] for each in get_json(url, "/cluster.json")[1]["events"]])
    finally:
        cluster.kill(leader)
        cluster.start(leader)
        cluster.wait_until_caught_up(leader)
    wait_until(lambda: get_json(url, "/cluster.json")[1]["well"])
    events = [(each["what"], each["node"]) for each in get_json(url, "/cluster.json")[1]["events"]]
    assert events.count(("lost", str(leader))) == events.count(("back", str(leader))) == 1
    assert ("leader", str(cluster.leader("s0"))) in events


def test_without_managers_a_server_shows_what_it_knew_before(cluster: Cluster) -> None:
    url = page(cluster, "s0.0")
    get_json(url, "/cluster.json")
    managers = cluster.shape.nodes("m")
    cluster.kill(*managers)
    try:
        wait_until(lambda: "m.0, m.1, m.2 do not answer" in get_json(url, "/cluster.json")[1]["ailments"])
        _, view = get_json(url, "/cluster.json")
        assert [each["leader"] is None for each in view["groups"]] == [True, False, False]
    finally:
        for node in managers:
            cluster.start(node)
        cluster.wait_until_caught_up(*managers)


# --- Strangers --------------------------------------------------------------------------------------------------------


def test_all_that_is_answered_says_what_may_be_done_with_it(solo: tuple[ServerProcess, str]) -> None:
    for path in (*PAGES, "/nothing"):
        for method in ("GET", "HEAD"):
            _, headers, body = get(solo[1], path, method)
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy
            assert (body == "") == (method == "HEAD")


def test_garbage_and_idle_connections_cost_the_daemon_nothing(solo: tuple[ServerProcess, str]) -> None:
    server, url = solo
    address = url.removeprefix("http://").rstrip("/").split(":")
    where = address[0], int(address[1])
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"\x00\x04_ask\x00\x011\x00\x08_command\x00\x06Status\x00\x00",
        b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 100_000,
        b"GET /" + b"x" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 100_000,
    ):
        with socket.create_connection(where, WAIT_SECONDS_MAX) as stranger:
            try:
                stranger.sendall(data)
                stranger.shutdown(socket.SHUT_WR)
                answer = stranger.recv(65536)
            except OSError as error:
                # Closed by the daemon already: for `shutdown` that is not a ConnectionError.
                assert isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN
                answer = b""
            assert b" 200 " not in answer
    memory = server.memory_bytes()
    idle = [socket.create_connection(where, WAIT_SECONDS_MAX) for _ in range(HTTP_CONNECTIONS_MAX + 40)]
    try:
        for each in idle[HTTP_CONNECTIONS_MAX:]:
            assert each.recv(1) == b"", "one too many is closed"
        with BlockingClient(server.address) as client:
            client.put(b"still", b"here")
            assert client.get(b"still") == b"here"
    finally:
        for each in idle:
            each.close()
    wait_until(lambda: _answers(url))
    assert server.memory_bytes() - memory < 20 << 20


def _answers(url: str) -> bool:
    try:
        return get(url, "/healthz")[0] == 200
    except OSError:
        return False


def test_only_loopback_unless_an_address_is_given(solo: tuple[ServerProcess, str]) -> None:
    assert solo[1].startswith("http://127.0.0.1:")


# --- The option -------------------------------------------------------------------------------------------------------


def refused(*options: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        server_command(*options), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX
    )
    assert done.returncode == 1, done
    return done


def test_a_port_that_is_taken_is_one_line(solo: tuple[ServerProcess, str]) -> None:
    taken = solo[1].removeprefix("http://").rstrip("/")
    said = refused("--listen", free_address(), "--http", taken).stderr.splitlines()
    assert said == [f"madkv-server: cannot listen on {taken}: [Errno 98] Address already in use"]


@pytest.mark.parametrize("text", ["nonsense", "127.0.0.1", "70000", "-1", "127.0.0.1:x", ""])
def test_what_is_no_address_is_said(text: str) -> None:
    done = refused("--listen", free_address(), f"--http={text}")
    assert "--http: " in done.stdout + done.stderr


def test_without_the_library_the_daemon_starts_and_the_option_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['prometheus_client'] = None\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = refused("--listen", free_address(), "--http", "0", environment=environment)
    assert (
        "--http: the package prometheus-client is needed for it: pip install 'madkv[http]'" in done.stdout + done.stderr
    )
    with ServerProcess(env=environment) as server, BlockingClient(server.address) as client:
        assert client.get(b"k") is None


@pytest.mark.skipif(sys.platform != "linux", reason="the daemons' own reactor is made of epoll")
def test_the_daemon_keeps_its_own_reactor(solo: tuple[ServerProcess, str]) -> None:
    """What the port is made of would bring another one along, if it came first."""
    assert "reactor class: madkv.server.reactor.DaemonReactor" in solo[0].output


def test_a_daemon_without_the_option_loads_nothing_of_it() -> None:
    script = "import sys, madkv.server.tap, madkv.manager.tap; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    found = set(loaded.stdout.split())
    assert "madkv.monitor.option" in found
    assert not {"twisted.web", "prometheus_client", "madkv.monitor.service"} & found
