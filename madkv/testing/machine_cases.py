"""What may be wrong with the machine under a node, done to a cluster beside clients at work: one function a case.

Each says what it does and what it sees, and raises ClusterError for what must not be. What clients are told meanwhile
is judged by whoever runs the cases.
"""

import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from madkv.addresses import parse_address
from madkv.testing.cluster import ClusterError, listed
from madkv.testing.frozen import FrozenReads
from madkv.testing.machine_disks import GROUP, MANAGERS, Stage, full, readonly, sync
from madkv.testing.mischief import LOOK_SECONDS
from madkv.testing.rigged import CLIENTS, RiggedCluster
from madkv.testing.shape import Node

CONNECTIONS, READS = 4, 10
"""Connections to each leader that is stopped, and the reads that are sent on each."""
READERS_FIRST = 1000
"""Their number in the history, well above that of the clients."""
HOUR_SECONDS = 3600
HOLD_SECONDS = 2.5
"""How long clocks are left wrong, and watched when they are right again: time for two elections."""
SLACK_SECONDS = 600
"""How far a clock that is an hour wrong may be from that, in the log."""
STEADY_SECONDS = 0.25
"""Where this program itself got no turn for so long, a slow call or an election tells nothing about clocks."""
CALL_SECONDS_MAX = 1.0
"""How long a call may take while clocks are set."""
EFFECTS, TRIES = 3, 8
"""So often clocks are set if there seems to be an effect, and in all, if the machine is too busy to tell."""
GARBAGE = b"\xff" * 64


# --- A process that stands still --------------------------------------------------------------------------------------


def frozen(stage: Stage) -> None:
    """The leader of each partition is stopped, and asked; others lead meanwhile, and then it goes on."""
    mischief, cluster = stage.mischief, stage.cluster
    groups = [group for group in cluster.shape.groups if group != MANAGERS]
    leaders = [mischief.leader(group) for group in groups]
    partition_map = cluster.partition_map()
    with ExitStack() as stack:
        reads: list[FrozenReads] = []
        for leader in leaders * CONNECTIONS:
            keys = [key for key in mischief.run.keys if partition_map.partition_of(key) == leader.partition]
            address, first = cluster.shape.address(leader), READERS_FIRST + len(reads) * READS
            reads.append(stack.enter_context(FrozenReads(address, keys, first)))

        def strike() -> None:
            for number, leader in enumerate(leaders):
                for each in reads[number :: len(leaders)]:
                    each.send()
                cluster.pause(leader)
                stack.callback(cluster.resume, leader)  # also when it comes to nothing

        def heal() -> None:
            thaws = time.monotonic() + stage.seconds
            others = [mischief.leader(group) for group in groups]
            mischief.tell(f"{listed(others)} lead meanwhile")
            if set(others) & set(leaders):
                raise ClusterError("one that is stopped is said to lead")
            mischief.let_them_call()
            pause = max(LOOK_SECONDS, (thaws - time.monotonic()) / (READS - 1))
            for _ in range(1, READS):
                for each in reads:
                    each.send()
                mischief.wait(pause)
            for leader in leaders:
                cluster.resume(leader)
            answers = [answer for each in reads for answer in each.answers()]
            mischief.run.history.extend(answers)
            refused = sum([each.refused for each in reads], Counter())
            mischief.tell(
                f"{sum(each.sent for each in reads)} reads were sent to those that were stopped; when they went on, "
                f"{len(answers)} were answered, and refused: "
                + (", ".join(f"{count} {name}" for name, count in refused.items()) or "none")
            )

        mischief.fault(f"stopped (SIGSTOP) for {stage.seconds:g} s, every leader", leaders, strike, heal)


# --- Clocks -----------------------------------------------------------------------------------------------------------


class Undecided(Exception):
    """The machine is too busy for a case to tell anything."""


class Pulse(threading.Thread):
    """Finds out for how long this program got no turn at the most."""

    def __init__(self) -> None:
        super().__init__(name="pulse", daemon=True)
        self.longest_seconds = 0.0
        self._is_over = threading.Event()

    def __enter__(self) -> "Pulse":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        """Look again and again."""
        looked = time.monotonic()
        while not self._is_over.wait(LOOK_SECONDS):
            now = time.monotonic()
            self.longest_seconds = max(self.longest_seconds, now - looked - LOOK_SECONDS)
            looked = now


def clock(stage: Stage) -> None:
    """Clocks on the wall are set an hour forward and back: those of leaders, then all; then a leader is killed."""
    mischief, cluster = stage.mischief, stage.cluster
    mischief.wait_until(cluster.catching_up(cluster.shape.nodes()), "the whole cluster")
    # The managers' group matters most: nothing is asked of it, and it lives by timers alone.
    leaders = [mischief.leader(group) for group in cluster.shape.groups]
    _set_clocks(stage, [*map(str, leaders)], f"the clocks of {listed(leaders)} alone, which lead")
    _set_clocks(stage, [*map(str, cluster.shape.nodes()), CLIENTS], "all clocks")
    # Had all timers stopped, there would be no election until now, nor ever.
    leader = mischief.leader(GROUP)

    def start_again() -> None:
        mischief.tell(f"{mischief.leader(GROUP)} leads")
        cluster.start(leader)

    mischief.fault("killed after clocks were set", [leader], lambda: cluster.kill(leader), start_again)


def _set_clocks(stage: Stage, names: list[str], what: str) -> None:
    """Forward and back, with no effect. What clocks bring about they bring about each time, while a busy machine has an
    election or a slow call now and then: so these count when they are there each of EFFECTS times."""
    effects = 0
    for _ in range(TRIES):
        is_steady, has_effect = _set_once(stage, names, what)
        if is_steady and not has_effect:
            return
        effects += is_steady
        if effects == EFFECTS:
            raise ClusterError(f"{what} had an effect each of {EFFECTS} times")
    raise Undecided(f"this machine is too busy to tell whether {what} had an effect")


def _set_once(stage: Stage, names: list[str], what: str) -> tuple[bool, bool]:
    """Whether the machine was steady meanwhile, and whether there was an election or a slow call."""
    mischief, cluster = stage.mischief, stage.cluster
    before, calls = _terms(stage), len(mischief.run.history)
    with Pulse() as pulse:
        mischief.tell(f"{what}: an hour forward")
        with _clocks(cluster, names):
            mischief.wait(HOLD_SECONDS)
            _see_the_clock(stage, next(node for node in cluster.shape.nodes(GROUP) if str(node) in names))
        mischief.tell(f"{what}: an hour back")
        mischief.wait(HOLD_SECONDS)
        mischief.let_them_call()
    after = _terms(stage)
    elected = [f"{node} {before[node]} to {after[node]}" for node in before if before[node] != after[node]]
    took = [(each.returned_ns - each.called_ns) / 1e9 for each in mischief.run.history[calls:] if each.returned_ns]
    mischief.tell(
        f"terms: {', '.join(elected) or 'none changed'}; {len(took):,} calls, "
        f"median {statistics.median(took) * 1e3:.1f} ms, longest {max(took) * 1e3:.0f} ms"
    )
    is_steady = pulse.longest_seconds < STEADY_SECONDS
    if not is_steady:
        mischief.tell(f"that tells nothing: this machine stood still for {pulse.longest_seconds:.2f} s meanwhile")
    return is_steady, bool(elected) or max(took) > CALL_SECONDS_MAX


@contextmanager
def _clocks(cluster: RiggedCluster, names: list[str]) -> Iterator[None]:
    cluster.set_clocks(names, HOUR_SECONDS)
    try:
        yield
    finally:
        cluster.set_clocks(names, 0)


def _terms(stage: Stage) -> dict[Node, int | None]:
    return {node: (status or {}).get("term") for node, status in stage.cluster.statuses().items()}


def _see_the_clock(stage: Stage, node: Node) -> None:
    """See that a node does have the wrong time: by what it logs of a connection that talks garbage."""
    log = stage.cluster.log(node)
    before = log.stat().st_size
    with socket.create_connection(parse_address(stage.cluster.shape.address(node))) as connection:
        connection.sendall(GARBAGE)

        def said() -> str:
            text = log.read_bytes()[before:].decode(errors="backslashreplace")
            return next((line for line in text.splitlines() if "closed the connection" in line), "")

        stage.mischief.wait_until(lambda: bool(said()), f"a word of {node} about garbage")
    logged = datetime.strptime(said().split()[0], "%Y-%m-%dT%H:%M:%S%z")
    ahead = (logged - datetime.now(UTC)).total_seconds()
    if abs(ahead - HOUR_SECONDS) > SLACK_SECONDS:
        raise ClusterError(f"{node}'s clock is {ahead:.0f} s ahead, and not an hour: {said()}")


CASES: dict[str, Callable[[Stage], None]] = {
    "full": full,
    "readonly": readonly,
    "sync": sync,
    "frozen": frozen,
    "clock": clock,
}
NEED_DISKS = ("full", "readonly")
NEED_PRELOADING = ("sync", "clock")
