"""The testcases of projects 2 and 3, each a function over a stage: line clients in front of a cluster of its own.

Project 2 has one: a server fails and comes back. Project 3 has four: followers fail, a leader fails, a manager fails,
and more fail than a group can do without.
"""

import time
from collections.abc import Callable
from itertools import product

import attrs

from madkv.partitions import PartitionMap
from madkv.testing.calls import ALPHANUMERIC
from madkv.testing.cases import delete, get, put, scan, swap
from madkv.testing.cluster import Cluster, listed
from madkv.testing.history import Result
from madkv.testing.lines import Call
from madkv.testing.scene import Scene
from madkv.testing.shape import Node

WAITS_SECONDS = 4.0
"""How long a call that cannot be answered is watched."""
ELECTION_SECONDS_MAX = 10.0
KEYS_EACH = 3


class Stage:
    """Clients (`scene`) and the cluster that they call."""

    def __init__(self, scene: Scene, cluster: Cluster, say: Callable[[str], None]) -> None:
        self.scene = scene
        self.cluster = cluster
        self.partition_map = cluster.partition_map()
        self._say = say
        self.expected: dict[bytes, bytes] = {}
        """What was put last, by key."""

    def keys(self, partition: int) -> list[bytes]:
        """Keys that belong to a partition and lie next to each other, so that a Scan over them leaves it alone."""
        return keys_of(self.partition_map, partition)

    def scan(self, partition: int) -> tuple[Call, Result]:
        """A Scan over them, and what it must answer."""
        keys = self.keys(partition)
        return scan(keys[0], keys[-1]), tuple((key, self.expected[key]) for key in keys if key in self.expected)

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Have a client put a value."""
        self.scene.ask(name, put(key, value), key in self.expected)
        self.expected[key] = value

    def swap(self, name: str, key: bytes, value: bytes) -> None:
        """Have a client swap a value."""
        self.scene.ask(name, swap(key, value), self.expected.get(key))
        self.expected[key] = value

    def get(self, name: str, key: bytes) -> None:
        """Have a client get what was put last."""
        self.scene.ask(name, get(key), self.expected.get(key))

    def fill(self, name: str) -> None:
        """Put something into every partition."""
        for partition in range(self.cluster.shape.partitions):
            for number, key in enumerate(self.keys(partition)):
                self.put(name, key, b"first%d" % number)

    def check_all(self, name: str) -> None:
        """Have a client scan what was put into every partition."""
        for partition in range(self.cluster.shape.partitions):
            self.scene.ask(name, *self.scan(partition))

    def fail(self, *nodes: Node) -> None:
        """Kill nodes, all at once."""
        self.cluster.kill(*nodes)
        self._say(f"  * killed (SIGKILL): {listed(nodes)}")

    def bring_back(self, *nodes: Node, wait: bool = True) -> None:
        """Start nodes on their disks as they are; wait until they have caught up."""
        for node in nodes:
            self.cluster.start(node)
        if wait:
            self.cluster.wait_until_caught_up(*nodes)
        self._say(f"  * started again{' and caught up' if wait else ''}: {listed(nodes)}")

    def leader(self, group: str) -> Node:
        """Who leads a group; waits until somebody does."""
        found: list[Node] = []

        def look() -> bool:
            found[:] = filter(None, [self.cluster.leader(group)])
            return bool(found)

        self.cluster.wait_until(look, f"a leader of {group}", ELECTION_SECONDS_MAX)
        self._say(f"  * {found[0]} leads group {group}")
        return found[0]

    def followers(self, group: str) -> list[Node]:
        """The others of a group."""
        leader = self.leader(group)
        return [node for node in self.cluster.shape.nodes(group) if node != leader]

    def timed(self, what: str, act: Callable[[], None], seconds_max: float) -> None:
        """Do something that must not take too long."""
        began = time.monotonic()
        act()
        took = time.monotonic() - began
        self.scene.expect(took <= seconds_max, f"{what} took {took:.2f} s, at most {seconds_max:g} s")


def keys_of(partition_map: PartitionMap, partition: int) -> list[bytes]:
    """A few keys of a partition, in order and next to each other."""
    for start in (*ALPHANUMERIC, *map("".join, product(ALPHANUMERIC, repeat=2))):
        keys = [f"{start}key{number}".encode() for number in range(KEYS_EACH)]
        if [owner for owner, *_ in partition_map.pieces(keys[0], keys[-1])] == [partition]:
            return keys
    raise AssertionError(f"partition {partition} owns no alphanumeric keys")


# --- Project 2 --------------------------------------------------------------------------------------------------------


def a_server_fails(stage: Stage) -> None:
    """A server fails: the others do not notice, calls for its own keys wait, and all is there when it is back"""
    scene, dead, alive = stage.scene, 1, 0
    victim = Node(dead, None)
    key, other = stage.keys(dead)[0], stage.keys(alive)[0]
    scene.tell("A puts pairs into every partition, and swaps one in each.")
    stage.fill("A")
    for partition in range(stage.cluster.shape.partitions):
        stage.swap("A", stage.keys(partition)[1], b"swapped")
    scene.tell("B gets and scans them.")
    stage.get("B", key)
    stage.get("B", other)
    stage.check_all("B")
    scene.tell("A puts one more value into the partition that is going to fail; then its server is killed.")
    stage.put("A", key, b"latest")
    stage.fail(victim)
    scene.tell("The other partitions are fully served: reads, scans and writes.")
    stage.get("B", other)
    scene.ask("B", *stage.scan(alive))
    stage.put("B", other, b"meanwhile")
    stage.get("A", other)
    scene.tell("A Get and a Scan that need the dead partition are not answered: the clients go on trying.")
    call, pairs = stage.scan(dead)
    scene.ask_in_vain({"A": get(key), "B": call}, WAITS_SECONDS)
    scene.tell("A client that starts now still finds the other partitions, since the manager knows all servers.")
    scene.enter("C")
    stage.get("C", other)
    scene.tell("The server starts again on its disk. The calls that wait are answered, with the latest values.")
    stage.bring_back(victim, wait=False)
    scene.answer("A", stage.expected[key])
    scene.answer("B", pairs)
    scene.tell("Everything is there, and the partition takes writes again.")
    stage.check_all("C")
    stage.swap("C", key, b"after")
    stage.get("A", key)


# --- Project 3 --------------------------------------------------------------------------------------------------------


def followers_fail(stage: Stage) -> None:
    """As many followers fail as a group can do without, in two partitions at the same time: nobody notices"""
    scene = stage.scene
    assert stage.cluster.shape.rf is not None
    spare = stage.cluster.shape.rf // 2
    scene.tell("A puts pairs into every partition.")
    stage.fill("A")
    scene.tell(
        f"In each of the two partitions {spare} of {stage.cluster.shape.rf} replicas fail, all of them followers."
    )
    victims = [node for group in ("s0", "s1") for node in stage.followers(group)[:spare]]
    stage.fail(*victims)
    scene.tell("Both partitions are served as before.")
    for partition in (0, 1):
        for key in stage.keys(partition):
            stage.swap("B", key, b"without")
            stage.get("C", key)
    stage.check_all("A")
    scene.tell("They start again on their disks, and catch up.")
    stage.bring_back(*victims)
    scene.tell("Now the others of the first partition fail: what was written meanwhile is on those that are back.")
    leader = stage.leader("s0")
    others = [node for node in stage.cluster.shape.nodes("s0") if node not in (leader, *victims)]
    stage.fail(leader, *others[: spare - 1])
    stage.check_all("B")


def a_leader_fails(stage: Stage) -> None:
    """The leader of a partition fails: after an election the others go on, and nothing that was acknowledged is lost"""
    scene = stage.scene
    keys = stage.keys(0)
    scene.tell("A puts pairs into every partition.")
    stage.fill("A")
    scene.tell("The leader of partition 0 is killed; A's next call finds the new one by itself.")
    old = stage.leader("s0")
    stage.swap("A", keys[0], b"before")
    stage.fail(old)
    stage.timed("the first write after that", lambda: stage.swap("A", keys[0], b"after"), ELECTION_SECONDS_MAX)
    new = stage.leader("s0")
    scene.expect(new != old, f"{new} leads instead of {old}")
    scene.tell("The others see it, and everything from before.")
    stage.get("B", keys[0])
    stage.check_all("C")
    scene.tell("The other partition was never touched.")
    stage.swap("B", stage.keys(1)[0], b"untouched")
    scene.tell("The old leader starts again. It catches up, and follows.")
    stage.bring_back(old)
    status = stage.cluster.statuses([old])[old] or {}
    scene.expect(status.get("role") == "follower", f"{old} is a follower")
    scene.tell("The new leader fails too: with the first one back there is still a majority.")
    stage.fail(new)
    stage.timed("the first write after that", lambda: stage.swap("B", keys[0], b"again"), ELECTION_SECONDS_MAX)
    stage.check_all("C")


def a_manager_fails(stage: Stage) -> None:
    """Managers fail: first their leader, then all; clients and servers that know each other do not need them"""
    scene = stage.scene
    managers = stage.cluster.shape.nodes("m")
    scene.tell("A puts pairs into every partition.")
    stage.fill("A")
    scene.tell("The leader of the managers fails.")
    old = stage.leader("m")
    stage.fail(old)
    stage.check_all("A")
    scene.tell("Another manager leads. B, which starts now, gets the partition map from those that are left.")
    new = stage.leader("m")
    scene.expect(new != old, f"{new} leads instead of {old}")
    scene.enter("B")
    stage.check_all("B")
    stage.swap("B", stage.keys(0)[0], b"byB")
    scene.tell("All managers fail. Who has the map goes on; C, which starts now, has to wait.")
    stage.fail(*[node for node in managers if node != old])
    stage.swap("A", stage.keys(0)[0], b"unmanaged")
    stage.check_all("B")
    scene.enter("C")
    scene.ask_in_vain({"C": get(stage.keys(0)[0])}, WAITS_SECONDS)
    scene.tell("A server fails and starts again without any manager: it knows from its disk what it owns.")
    follower = stage.followers("s1")[0]
    stage.fail(follower)
    stage.bring_back(follower)
    scene.tell("The managers start again on their disks; C gets its answer.")
    stage.bring_back(*managers, wait=False)
    scene.answer("C", stage.expected[stage.keys(0)[0]])
    stage.check_all("C")


def a_majority_fails(stage: Stage) -> None:
    """More replicas fail than a group can do without: calls wait, nothing wrong is answered, and nothing is lost"""
    scene = stage.scene
    keys = stage.keys(0)
    scene.tell("A puts pairs into every partition.")
    stage.fill("A")
    leader = stage.leader("s0")
    followers = [node for node in stage.cluster.shape.nodes("s0") if node != leader]
    too_many = followers[: len(followers) // 2 + 1]
    scene.tell("Of partition 0 only a minority is left, its leader among them.")
    stage.fail(*too_many)
    scene.tell("The leader can neither commit nor know whether it still leads: a write and a read get no answer.")
    scene.ask_in_vain({"A": swap(keys[0], b"waits"), "B": get(keys[1])}, WAITS_SECONDS)
    scene.tell("The other partition is fully served.")
    stage.swap("C", stage.keys(1)[0], b"elsewhere")
    scene.ask("C", *stage.scan(1))
    scene.tell("One replica comes back: a majority again. Both calls are answered, each as if it had been made once.")
    stage.bring_back(too_many[0], wait=False)
    scene.answer("A", stage.expected[keys[0]])
    stage.expected[keys[0]] = b"waits"
    scene.answer("B", stage.expected[keys[1]])
    stage.get("C", keys[0])
    scene.tell("Now all replicas of the partition fail at once, and start again: everything acknowledged is there.")
    stage.bring_back(*too_many[1:], wait=True)
    stage.fail(*stage.cluster.shape.nodes("s0"))
    scene.ask_in_vain({"B": delete(keys[2])}, 1.0)
    stage.bring_back(*stage.cluster.shape.nodes("s0"), wait=False)
    scene.answer("B", True)
    del stage.expected[keys[2]]
    stage.check_all("C")


@attrs.frozen
class ClusterTestcase:
    """What to act out, before a cluster of which shape, and with how many clients at first."""

    act: Callable[[Stage], None]
    clients: int
    partitions: int
    rf: int | None
    managers: int = 1

    @property
    def title(self) -> str:
        """What it shows, in a line."""
        assert self.act.__doc__
        return self.act.__doc__


PROJECT_2 = {1: ClusterTestcase(a_server_fails, clients=2, partitions=3, rf=None)}
PROJECT_3 = {
    1: ClusterTestcase(followers_fail, clients=3, partitions=2, rf=5, managers=3),
    2: ClusterTestcase(a_leader_fails, clients=3, partitions=2, rf=3, managers=3),
    3: ClusterTestcase(a_manager_fails, clients=1, partitions=2, rf=3, managers=3),
    4: ClusterTestcase(a_majority_fails, clients=3, partitions=2, rf=3, managers=3),
}
