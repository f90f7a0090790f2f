"""Restart every node of a cluster, one after the other, while clients are at work: no call may fail, or take long."""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from madkv.errors import MadKVError
from madkv.operate.ask import ask_map
from madkv.operate.transfer import hand_to
from madkv.partitions import PartitionMap
from madkv.testing import certificates, fuzz
from madkv.testing.cluster import Cluster, ClusterError, listed
from madkv.testing.ending import run_tool
from madkv.testing.history import Operation
from madkv.testing.mischief import LOOK_SECONDS, Fault, Mischief, pauses
from madkv.testing.options import Parser, add_shared, check_cluster, whole
from madkv.testing.shape import Node
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

PAUSE_SECONDS_MAX = 2.0
"""How long a call may take while nodes are restarted."""
VERDICT = "Rolling restart result: {}"
CALLS_BETWEEN = 50
"""Answered before the first node is restarted, and after each."""

Say = Callable[[str], None]
Restarted = Callable[[Node, int, int], None]
"""A node was restarted: when it was asked to end, and when it had caught up."""


def restart_all(
    cluster: Cluster,
    say: Say,
    restarted: Restarted = lambda node, began, ended: None,
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Restart every node, so that clients notice nothing: a group's leader last, after it has handed over.

    The next one only when all of the group answer, follow one leader, and have what it has committed. Raises
    ClusterError when that does not come about, or a node does not end when it is asked to; then it stops there. What is
    `held` while a node is down ends with it up again.
    """
    for group in cluster.shape.groups:
        nodes = cluster.shape.nodes(group)
        done: list[Node] = []
        while left := [node for node in nodes if node not in done]:
            cluster.wait_until_caught_up(*nodes)
            leader = cluster.leader(group)
            node = next((each for each in left if each != leader), left[0])
            began_ns = time.monotonic_ns()
            if node == leader and len(nodes) > 1:
                # To one that is through: so the lead moves once.
                to = done[-1] if done else next(each for each in nodes if each != leader)
                say(f"{to} leads group {group} in term {_hand_over(cluster, to)}")
            with held():
                _restart(cluster, node)
            cluster.wait_until_caught_up(node)
            say(f"{node} restarted; it has caught up after {(time.monotonic_ns() - began_ns) / 1e9:.2f} s")
            done.append(node)
            restarted(node, began_ns, time.monotonic_ns())


def _hand_over(cluster: Cluster, to: Node) -> int:
    try:
        addresses = [cluster.shape.address(each) for each in cluster.shape.nodes(to.group)]
        return hand_to(to, addresses, files=cluster.operator)
    except MadKVError as error:
        raise ClusterError(f"{to} does not take over: {error}") from None


def _restart(cluster: Cluster, node: Node) -> None:
    in_order = cluster.terminate(node)
    cluster.start(node)
    if not in_order:
        raise ClusterError(f"{node} did not end when it was asked to, and was killed; it is started again")


def longest(history: Sequence[Operation]) -> tuple[float, str]:
    """How long the slowest call took, in seconds, and what it was."""
    took, call = max(
        (((each.returned_ns or each.called_ns) - each.called_ns, each) for each in history), key=lambda pair: pair[0]
    )
    return took / 1e9, f"a {call.kind} of client {call.client}"


def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
    """The whole of it; whether all answers were right, and none took long."""
    tls = certificates.are_wanted(options)
    cluster = Cluster.local(root, options.partitions, options.rf, options.managers, tls)
    out.say(f"A cluster of its own: {listed(cluster.shape.nodes())}; each node is restarted once")
    with cluster:
        address = ["--module", "p3", "--just", options.just, "--address", cluster.address]
        history = ["--history", str(options.log.with_suffix(".history.jsonl"))] if options.log else []
        fuzz_options = fuzz.parse_options([str(options.clients), "yes", *address, *history])
        faults: list[Fault] = []

        def act(mischief: Mischief) -> None:
            def restarted(node: Node, began_ns: int, ended_ns: int) -> None:
                faults.append(Fault("restarted", (node,), began_ns, ended_ns, ended_ns))
                mischief.wait_for_calls(len(mischief.run.history) + CALLS_BETWEEN)

            mischief.wait_for_calls(CALLS_BETWEEN * options.clients)
            while len({each.client for each in mischief.run.history}) < options.clients:
                mischief.wait(LOOK_SECONDS)  # the first answer of each has waited for its interpreter to start
            restart_all(cluster, mischief.tell, restarted)
            mischief.run.enough = True

        mischief = Mischief(cluster, act, out.say)
        passed = fuzz.fuzz(fuzz_options, out, mischief.beside)
        partition_map = ask_map(cluster.address)
    return judge(faults, partition_map, mischief.run.history, out) and passed


def judge(
    faults: Sequence[Fault], partition_map: PartitionMap | None, history: Sequence[Operation], out: Transcript
) -> bool:
    """Say how long calls and partitions stood still; whether the calls are within their bound."""
    # What was answered earlier has not waited for any restart.
    begins = faults[0].began_ns if faults else 0
    seconds, call = longest([each for each in history if (each.returned_ns or each.called_ns) >= begins])
    if partition_map is not None and faults:
        still = max(pauses(fault, partition_map, history)[0] for fault in faults)
        out.say(f"{len(faults)} nodes restarted; longest time without a write in a partition: {still:.2f} s")
    out.say(f"Longest call: {seconds:.2f} s, {call}; {PAUSE_SECONDS_MAX:g} s may be")
    return seconds <= PAUSE_SECONDS_MAX


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it passed."""
    parser = Parser(prog="./justw chaos::rolling", description=__doc__)
    parser.add_argument("--clients", type=whole, default=5, help="default: %(default)s")
    add_shared(parser, "just", "log", "partitions", "rf", "managers", "tls")
    options = parser.parse_args(argv)
    if options.rf < 3 or options.managers < 3:
        parser.error("rf= and managers= must be 3 or more: a group of one cannot do without its node")
    check_cluster(parser, options.rf, options.partitions, options.managers, options.clients)
    return end_in_verdict(
        options.log, with_cluster(run, options), VERDICT, interrupted="the clients and the cluster are stopped."
    )


if __name__ == "__main__":
    run_tool("madkv rolling", main)
