"""Disks that are full, read-only or fail, under a partition's replicas and then under managers: cases as in
`machine_cases`.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Protocol

import attrs

from madkv.operate.ask import ask_map
from madkv.testing.checkout import ROOT
from madkv.testing.cluster import ClusterError, listed
from madkv.testing.disk import SmallDisk
from madkv.testing.mischief import Mischief
from madkv.testing.rigged import RiggedCluster
from madkv.testing.shape import Node

GROUP, MANAGERS = "s0", "m"
"""Whose disks fail."""
FAILED = 1
"""The exit status of a node whose disk failed."""
CHECK_SECONDS_MAX = 60.0


@attrs.frozen
class Stage:
    """Where a case plays."""

    cluster: RiggedCluster
    disks: dict[Node, SmallDisk]
    mischief: Mischief
    seconds: float
    """How long leaders are stopped."""


@attrs.frozen
class DiskFault:
    """Something that befalls a node's disk."""

    what: str
    strike: Callable[[Node], None]
    mend: Callable[[Node], None]
    said: str
    """A pattern of the line with which the node ends."""
    said_at_start: str
    """Of that with which it ends when it is started before the disk is well."""


def full(stage: Stage) -> None:
    """A disk that is full, until there is room again."""
    said = r": a commit failed: .* \(its disk has [\d,]+ bytes free\)$"
    disks = stage.disks
    befall(stage, DiskFault("disk full", lambda node: disks[node].fill(), lambda node: disks[node].empty(), said, said))


def readonly(stage: Stage) -> None:
    """A disk in which the system finds a fault and which it makes read-only, until it was repaired."""
    said = r": a commit failed: .*Read-only file system"
    said_at_start = r": cannot use the directory .*: Read-only file system$"
    disks = stage.disks
    fault = DiskFault(
        "disk read-only",
        lambda node: disks[node].break_down(),
        lambda node: disks[node].repair(),
        said,
        said_at_start,
    )
    befall(stage, fault)


def sync(stage: Stage) -> None:
    """Syncs that fail, until they do not."""
    said = r": a commit failed: .*Input/output error"
    befall(stage, DiskFault("syncs fail", stage.cluster.fail_syncs, stage.cluster.let_sync, said, said))


# --- What has disks written -------------------------------------------------------------------------------------------


class Use(Protocol):
    """What has a group write, and acknowledge it."""

    group: str
    one: str
    """A member of it, for people."""

    def begin(self) -> None:
        """Make ready to `press`."""

    def press(self) -> None:
        """Ask once for something that members must write, whether they can or not."""

    def goes_on(self) -> None:
        """See that the group serves, and knows what it has acknowledged before. Raises ClusterError."""


class Calls:
    """The clients' calls to a partition. They come by themselves, and their answers are judged with all others."""

    group, one = GROUP, "one"

    def __init__(self, mischief: Mischief) -> None:
        self._mischief = mischief

    def begin(self) -> None:
        """Nothing is to be done."""

    def press(self) -> None:
        """They do."""

    def goes_on(self) -> None:
        """They are answered."""
        self._mischief.let_them_call()


class Replacements:
    """A server loses its disk and comes back on an empty one, again and again: each time managers must write that the
    old disk is given up, and that another has come.
    """

    group, one = MANAGERS, "a manager"

    def __init__(self, stage: Stage) -> None:
        self._cluster, self._mischief = stage.cluster, stage.mischief
        partition = stage.cluster.shape.groups[-1]
        leader = stage.mischief.leader(partition)
        self._server = next(node for node in stage.cluster.shape.nodes(partition) if node != leader)
        self._disk = self._slot()["disk"]
        """Its disk, as managers have acknowledged."""
        self._is_lost = self._is_given_up = False
        """Whether that disk is lost, and the server down; whether managers have acknowledged that."""

    def begin(self) -> None:
        """Have the server lose its disk."""
        if not self._is_lost:
            self._see_that_managers_know()
            self._cluster.kill(self._server)
            self._cluster.wipe(self._server)
            self._is_lost = True

    def press(self) -> None:
        """Ask for the disk to be given up: each time that is an entry, whether the disk is given up already or not."""
        self._is_given_up |= self._ask()

    def goes_on(self) -> None:
        """Have the server come back, and let it register; and see that clients can begin, and go on."""
        self.begin()
        self._see_that_managers_know()
        self._mischief.wait_until(self._ask, f"the replacement of {self._server}'s disk")
        self._cluster.start(self._server)

        lost = self._disk

        def is_registered() -> bool:
            self._disk, status = self._slot()["disk"], self._cluster.statuses([self._server])[self._server]
            return self._disk != lost and status is not None and status.get("disk") == self._disk

        self._mischief.wait_until(is_registered, f"the registration of {self._server}'s new disk")
        self._is_lost = self._is_given_up = False
        self._mischief.tell(f"{self._server} has registered on a new disk")
        self._mischief.wait_until(lambda: ask_map(self._cluster.address) is not None, "what clients begin with")
        self._mischief.let_them_call()

    def see_the_end(self) -> None:
        """Wait until the server has its vote again, and all managers know of that."""
        cluster, server = self._cluster, self._server
        self._mischief.wait_until(cluster.catching_up([server]), f"the catching up of {server}")

        def agree() -> bool:
            known = [
                (status or {}).get("nodes", {}) for status in cluster.statuses(cluster.shape.nodes(MANAGERS)).values()
            ]
            slot = known[0].get(str(server), {})
            return slot.get("state") == "registered" and all(each == known[0] for each in known)

        self._mischief.wait_until(agree, f"managers that know the same, and {server} as registered")
        self._see_that_managers_know()

    def _ask(self) -> bool:
        """Ask each manager, once, to give the disk up; whether one says that it is."""
        return self._cluster.replace_disk(self._server, seconds=0) is None

    def _see_that_managers_know(self) -> None:
        """Wait until the one that leads knows what was acknowledged: just elected, it may have to apply it yet."""

        def knows() -> bool:
            slot = self._slot()
            return slot["disk"] == self._disk and (slot["state"] == "vacant" or not self._is_given_up)

        acknowledged = f"{self._server} is on disk {self._disk}{', which is given up' if self._is_given_up else ''}"
        self._mischief.wait_until(knows, f"what managers have acknowledged, that {acknowledged}")

    def _slot(self) -> dict[str, str]:
        """What the leader of the managers knows of the server."""
        found: list[dict[str, str]] = []

        def look() -> bool:
            leader = self._mischief.leader(MANAGERS)
            status = self._cluster.statuses([leader])[leader] or {}
            found.extend(filter(None, [status.get("nodes", {}).get(str(self._server))]))
            return bool(found)

        self._mischief.wait_until(look, "a word of the manager that leads")
        return found[0]


# --- Faults -----------------------------------------------------------------------------------------------------------


def befall(stage: Stage, fault: DiskFault) -> None:
    """Replicas of a partition have it, and then managers."""
    befall_group(stage, fault, Calls(stage.mischief))
    replacements = Replacements(stage)
    befall_group(stage, fault, replacements)
    replacements.see_the_end()


def befall_group(stage: Stage, fault: DiskFault, use: Use) -> None:
    """A follower has it, then the leader; then a follower without which nothing could be acknowledged."""
    mischief, cluster, group = stage.mischief, stage.cluster, use.group
    nodes = cluster.shape.nodes(group)

    def strike_one(node: Node) -> None:
        _ends(stage, fault, use, node, lambda: fault.strike(node), fault.said)

    def mend_one(node: Node) -> None:
        use.goes_on()  # without this one
        _ends(stage, fault, use, node, lambda: cluster.start(node), fault.said_at_start)
        fault.mend(node)
        cluster.start(node)

    for role in ("follows", "leads"):
        leader = mischief.leader(group)
        node = leader if role == "leads" else next(each for each in nodes if each != leader)
        mischief.fault(
            f"{fault.what}, {use.one} that {role}",
            [node],
            lambda node=node: strike_one(node),  # type: ignore[misc]
            lambda node=node: mend_one(node),  # type: ignore[misc]
        )

    leader = mischief.leader(group)
    needed, *others = [node for node in nodes if node != leader]
    rest, left = others[: len(nodes) // 2], [leader, *others[len(nodes) // 2 :]]

    def strike_the_needed() -> None:
        use.goes_on()  # whatever is acknowledged now is on the disks that are left
        strike_one(needed)

    def mend_without_the_leader() -> None:
        cluster.kill(*left)
        fault.mend(needed)
        for node in (needed, *rest):
            cluster.start(node)
        mischief.tell(
            f"{mischief.leader(group)} leads, without {listed(left)}: what was acknowledged is on {needed} alone"
        )
        use.goes_on()
        for node in left:
            cluster.start(node)

    cluster.kill(*rest)
    mischief.tell(f"{listed(rest)} killed: nothing can be acknowledged without {needed}")
    mischief.fault(f"{fault.what}, {use.one} that is needed", nodes, strike_the_needed, mend_without_the_leader)


def _ends(stage: Stage, fault: DiskFault, use: Use, node: Node, cause: Callable[[], None], said: str) -> None:
    """See a node end by a fault of its disk: by one line and status 1, and with sound files."""
    use.begin()
    log = stage.cluster.log(node)
    began, before = time.monotonic(), log.stat().st_size
    cause()
    status = stage.mischief.wait_for_end(node, use.press)
    took = time.monotonic() - began
    text = log.read_bytes()[before:].decode(errors="backslashreplace")
    lines = [line for line in text.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]
    if status != FAILED or len(lines) != 1 or not re.search(said, lines[0]) or "Traceback" in text:
        raise ClusterError(f"{node} ended with status {status} ({fault.what}), and said:\n{text}")
    stage.mischief.tell(f"{node} ended with status {status} after {took:.2f} s: {lines[0]}")
    checked = subprocess.run(
        [sys.executable, "-m", "madkv.cli", "check", str(stage.cluster.directory(node))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS_MAX,
        check=False,
    )
    if checked.returncode:
        raise ClusterError(f"{node}'s directory is not sound:\n{checked.stdout}{checked.stderr}")
