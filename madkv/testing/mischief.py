"""What is done to a cluster while clients are at work on it: faults, one after the other, on a thread of their own."""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from types import TracebackType
from typing import Self

import attrs

from madkv.partitions import PartitionMap
from madkv.testing.cluster import Cluster, ClusterError, listed
from madkv.testing.fuzz import FuzzFailed, Run
from madkv.testing.history import Operation
from madkv.testing.shape import Node

LOOK_SECONDS = 0.02
RECOVER_SECONDS_MAX = 40.0
"""From the healing of a fault until those that it struck have caught up; and until a group has a leader."""
CALLS_AFTER_FAULT = 50
"""Calls that are answered after one fault before the next one begins."""
WRITES = ("PUT", "SWAP", "DELETE")


@attrs.frozen
class Fault:
    """One fault: what it was, to which nodes, and when (of the monotonic clock)."""

    what: str
    nodes: tuple[Node, ...]
    began_ns: int
    healed_ns: int
    """When nothing was in their way any more: they were started, say."""
    recovered_ns: int
    """When they had caught up."""

    @property
    def groups(self) -> set[str]:
        """Whose members it struck."""
        return {node.group for node in self.nodes}


class _Over(Exception):
    """The run has ended."""


class Mischief(AbstractContextManager["Mischief"]):
    """`act` is called with this on a thread, from when the run begins until it returns; see `fuzz`, `beside`.

    It ends the run by setting its `enough`; when it fails, so does the run. When the run breaks off, so does `act`, at
    its next wait.
    """

    def __init__(self, cluster: Cluster, act: Callable[["Mischief"], None], say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.faults: list[Fault] = []
        self._act = act
        self._say = say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mischief")
        self._began_ns = 0
        self.run: Run

    def beside(self, run: Run) -> Self:
        """Begin beside this run, when it is entered."""
        self.run = run
        return self

    def __enter__(self) -> Self:
        self._began_ns = time.monotonic_ns()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is None and self.run.broken:
            raise FuzzFailed(self.run.broken)

    def join(self) -> None:
        """Wait until `act` has returned."""
        self._thread.join()

    def _work(self) -> None:
        try:
            self._act(self)
        except _Over:
            pass
        except ClusterError as error:
            self.run.broken = str(error)
        except Exception as error:  # a mistake in `act`; it must not be lost with its thread
            self.run.broken = repr(error)

    # --- For `act` ----------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises ClusterError when a node has ended by itself."""
        if self._over.wait(seconds):
            raise _Over
        self.cluster.check("by itself")

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something at the cluster. Raises ClusterError when it takes too long."""

        def holds_or_over() -> bool:
            self.wait(0)
            return holds()

        self.cluster.wait_until(holds_or_over, what, RECOVER_SECONDS_MAX)

    def wait_for_calls(self, count: int) -> None:
        """Let the clients have so many answers in all."""
        while len(self.run.history) < count:
            self.wait(LOOK_SECONDS)

    def let_them_call(self) -> None:
        """Let the clients have CALLS_AFTER_FAULT more answers."""
        self.wait_for_calls(len(self.run.history) + CALLS_AFTER_FAULT)

    def wait_for_end(self, node: Node, press: Callable[[], None]) -> int:
        """Wait until a node has ended by itself, as it should; its exit status. Raises ClusterError if it does not.

        `press` is called again and again meanwhile.
        """
        process = self.cluster.process(node)
        deadline = time.monotonic() + RECOVER_SECONDS_MAX
        while self.cluster.is_running(node):
            press()
            if self._over.wait(LOOK_SECONDS):
                raise _Over
            if time.monotonic() > deadline:
                raise ClusterError(f"{node} goes on, and was to end:\n{self.cluster.last_words(node)}")
        status = process.wait()
        self.cluster.kill(node)  # from now on it is one that was ended
        return int(status)

    def leader(self, group: str) -> Node:
        """Who leads a group; waits until somebody does."""
        found: list[Node] = []

        def look() -> bool:
            found.extend(filter(None, [self.cluster.leader(group)]))
            return bool(found)

        self.wait_until(look, f"a leader of {group}")
        return found[0]

    def tell(self, text: str) -> None:
        """Say what happens, with the time and how far the clients are."""
        seconds = (time.monotonic_ns() - self._began_ns) / 1e9
        self._say(f"  [{seconds:6.2f} s, {len(self.run.history):,} calls answered] {text}")

    def fault(self, what: str, nodes: Sequence[Node], strike: Callable[[], None], heal: Callable[[], None]) -> None:
        """Do something to nodes, undo it (`heal` lets time pass first), and wait until they have caught up."""
        named = listed(nodes)
        self.tell(f"{what}: {named}")
        began_ns = time.monotonic_ns()
        strike()
        heal()
        healed_ns = time.monotonic_ns()
        self.wait_until(self.cluster.catching_up(nodes), f"the catching up of {named}")
        recovered_ns = time.monotonic_ns()
        self.faults.append(Fault(what, tuple(nodes), began_ns, healed_ns, recovered_ns))
        self.tell(f"over after {(recovered_ns - began_ns) / 1e9:.2f} s: {named}")
        # So that how long the clients take to go on is this fault's, and not the next one's too.
        self.let_them_call()


def pauses(fault: Fault, partition_map: PartitionMap, history: Iterable[Operation]) -> tuple[float, float]:
    """The longest time without an acknowledged write in a partition that a fault struck, until it had recovered, in
    seconds; and the same from the healing on. Where only managers were struck, all partitions are looked at.
    """
    struck = {int(group[1:]) for group in fault.groups if group != "m"} or set(range(len(partition_map.replicas)))
    longest_ns = behind_ns = 0
    for partition in struck:
        times = sorted(
            each.returned_ns
            for each in history
            if each.kind in WRITES and each.returned_ns and partition_map.partition_of(each.key) == partition
        )
        first = max(0, bisect_right(times, fault.began_ns) - 1)
        for before, after in pairwise(times[first:]):
            if before > fault.recovered_ns:
                break
            longest_ns = max(longest_ns, after - before)
            behind_ns = max(behind_ns, after - max(before, fault.healed_ns))
    return longest_ns / 1e9, behind_ns / 1e9
