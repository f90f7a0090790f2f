"""Whole clusters of real processes, of both shapes: started, ended, killed, restarted, given new disks, under load."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from madkv.client.blocking import BlockingClient
from madkv.testing.cluster import Cluster
from madkv.testing.shape import Node

PLACES = ("0", "M", "Zebra", "usertable_user7", "z")
"""Of all partitions."""
END_SECONDS_MAX = 5.0
HAND_OVER_SECONDS_MAX = 0.5
GO_ON_SECONDS_MAX = 30.0


class Worker:
    """A client on a thread that swaps keys of its own, where each answer must be what it wrote before."""

    def __init__(self, managers: str) -> None:
        name = os.urandom(4).hex()
        self.longest = 0.0
        """Of all calls since this was last set to 0, in seconds."""
        self.calls = 0
        self._wrong: list[str] = []
        self._written: dict[bytes, bytes | None] = {f"{place}-{name}".encode(): None for place in PLACES}
        self._over = threading.Event()
        self._reader, self._abandon = os.pipe()
        self._client = BlockingClient(managers=managers, abandon_fd=self._abandon)
        self._thread = threading.Thread(target=self._work, name="worker")

    def _work(self) -> None:
        try:
            with self._client:
                while not self._over.is_set():
                    for key in self._written:
                        self._swap(key)
        except Exception as error:
            self._wrong.append(repr(error))

    def _swap(self, key: bytes) -> None:
        value, began = b"%d" % self.calls, time.monotonic()
        found = self._client.swap(key, value)
        self.longest = max(self.longest, time.monotonic() - began)
        self.calls += 1
        assert found == self._written[key], (key, found, self._written[key])
        self._written[key] = value

    def goes_on(self) -> None:
        """Wait until it has an answer from everywhere to calls that it has made since now."""
        enough, deadline = self.calls + 2 * len(PLACES), time.monotonic() + GO_ON_SECONDS_MAX
        while self.calls < enough:
            assert not self._wrong, self._wrong
            assert time.monotonic() < deadline, "no call is answered"
            time.sleep(0.01)  # between two looks; the deadline is above

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if kind is not None:
            os.close(self._reader)  # nobody may be there to answer it any more
        self._thread.join()
        if kind is None:
            os.close(self._reader)
            assert not self._wrong, self._wrong
        os.close(self._abandon)


def p2(root: Path) -> Cluster:
    return Cluster.local(root, partitions=3, rf=None)


def p3(root: Path) -> Cluster:
    return Cluster.local(root, partitions=2, rf=3, managers=3)


@contextmanager
def started(cluster: Cluster, order: Sequence[Node]) -> Iterator[Cluster]:
    """Nodes started in this order, and a client before them all."""
    try:
        with Worker(cluster.address) as worker:
            for number, node in enumerate(order):
                cluster.start(node)
                if number == len(order) // 2:
                    cluster.wait_until(lambda: any(cluster.statuses(order[:1]).values()), "the first node")
            cluster.wait_until_serving()
            worker.goes_on()
        yield cluster
    finally:
        in_order = cluster.stop()
    assert in_order


@pytest.fixture(scope="module", params=[p2, p3])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = request.param(tmp_path_factory.mktemp("cluster"))
    with started(cluster, random.Random(5).sample(cluster.shape.nodes(), len(cluster.shape.nodes()))):
        yield cluster


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Servers first, the last ones first."""
    cluster = p3(tmp_path_factory.mktemp("replicated"))
    with started(cluster, cluster.shape.nodes()[::-1]):
        yield cluster


@pytest.fixture
def worker(cluster: Cluster) -> Iterator[Worker]:
    with Worker(cluster.address) as worker:
        worker.goes_on()
        yield worker
        worker.goes_on()


def end_in_time(cluster: Cluster, *nodes: Node, meanwhile: Callable[[], None] = lambda: None) -> None:
    """SIGTERM: all of them end with status 0, and in time, also when none is there for another."""
    daemons = [cluster.process(node) for node in nodes]
    began = time.monotonic()
    for daemon in daemons:
        daemon.send_signal(signal.SIGTERM)
    meanwhile()
    gone, alive = psutil.wait_procs(daemons, 2 * END_SECONDS_MAX)
    seconds = time.monotonic() - began
    cluster.kill(*nodes)  # forgets those that have ended, too
    assert not alive
    assert [daemon.returncode for daemon in gone] == [0] * len(nodes)
    assert seconds < END_SECONDS_MAX


def stands_still(worker: Worker) -> bool:
    """Whether it gets no answer for a while that is longer than most calls."""
    made = worker.calls
    time.sleep(0.3)  # that nothing happens can only be seen by waiting; a caller looks until it is so
    return worker.calls == made


# --- Both shapes ------------------------------------------------------------------------------------------------------


def test_everything_ends_in_order_and_starts_again(cluster: Cluster, worker: Worker) -> None:
    end_in_time(cluster, *cluster.shape.nodes())
    cluster.start_all()
    worker.goes_on()


def test_everything_is_killed_under_load(cluster: Cluster, worker: Worker) -> None:
    with Worker(cluster.address) as another:
        another.goes_on()
        cluster.kill(*cluster.shape.nodes())
        cluster.start_all()
        another.goes_on()


def test_servers_serve_without_managers(cluster: Cluster, worker: Worker) -> None:
    managers, servers = cluster.shape.nodes("m"), [node for node in cluster.shape.nodes() if node.group != "m"]
    cluster.kill(*managers)
    worker.goes_on()
    cluster.kill(*servers)
    for server in servers:
        cluster.start(server)
    worker.goes_on()
    # They wait for managers, and end all the same.
    end_in_time(cluster, *servers)
    cluster.start_all()
    cluster.wait_until_serving()


def test_one_manager_comes_back(cluster: Cluster, worker: Worker) -> None:
    manager = cluster.shape.nodes("m")[0]
    end_in_time(cluster, manager)
    worker.goes_on()
    cluster.start(manager)
    cluster.wait_until_caught_up(manager)
    with Worker(cluster.address) as newcomer:
        newcomer.goes_on()


def test_it_ends_before_its_group_has_begun(tmp_path: Path) -> None:
    """A manager that waits for other managers, and a server that waits for a manager."""
    cluster = p3(tmp_path)
    nodes = [cluster.shape.node(name) for name in ("m.0", "s0.0")]
    for node in nodes:
        cluster.start(node)
    cluster.wait_until(lambda: all(cluster.statuses(nodes).values()), "both nodes")
    end_in_time(cluster, *nodes)


# --- With replicas ----------------------------------------------------------------------------------------------------


def test_a_leader_that_is_asked_to_end_hands_over(replicated: Cluster) -> None:
    with Worker(replicated.address) as worker:
        for group in ("s0", "s1", "m"):
            leader = replicated.leader(group)
            assert leader is not None
            worker.goes_on()
            worker.longest = 0.0
            end_in_time(replicated, leader, meanwhile=worker.goes_on)
            worker.goes_on()
            assert worker.longest < HAND_OVER_SECONDS_MAX
            replicated.start(leader)
            replicated.wait_until_caught_up(leader)


def test_it_ends_when_its_peers_are_dead(replicated: Cluster) -> None:
    """A leader that cannot hand over, with a call that it cannot answer."""
    leader = replicated.leader("s0")
    assert leader is not None
    followers = [node for node in replicated.shape.nodes("s0") if node != leader]
    with Worker(replicated.address) as worker:
        worker.goes_on()
        replicated.kill(*followers)
        replicated.wait_until(lambda: stands_still(worker), "a call that waits")
        end_in_time(replicated, leader)
        replicated.start_all()
        worker.goes_on()


@pytest.mark.parametrize("name", ["s0.1", "m.1"])
def test_a_lost_disk(replicated: Cluster, name: str) -> None:
    node = replicated.shape.node(name)
    with Worker(replicated.address) as worker:
        worker.goes_on()
        replicated.kill(node)
        replicated.wipe(node)
        assert replicated.replace_disk(node) is None
        replicated.start(node)
        replicated.wait_until_caught_up(node)
        worker.goes_on()
        # It counts: with it and one other there is a majority.
        other = next(each for each in replicated.shape.nodes(node.group) if each != node)
        replicated.kill(other)
        worker.goes_on()
        replicated.wait_until(lambda: replicated.leader(node.group) is not None, "a leader")
        replicated.start(other)
        replicated.wait_until_caught_up(other)
