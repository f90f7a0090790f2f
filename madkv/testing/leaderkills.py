"""Kill the leader of a partition again and again: how long until a write is acknowledged that began after it?"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from madkv.testing import certificates
from madkv.testing.cluster import Cluster, ClusterError, listed
from madkv.testing.ending import run_tool
from madkv.testing.fleet import Fleet
from madkv.testing.lines import show
from madkv.testing.options import Parser, add_shared, check_cluster, whole
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

WRITES_BETWEEN = 50
"""Acknowledged before each kill, so that it comes in the middle of work."""
WRITE_SECONDS_MAX = 60.0
MEDIAN_SECONDS_MAX = 1.5
PAUSE_SECONDS_MAX = 3.0
VERDICT = "Leader kills result: {}"


class Writer:
    """One line client that writes, and counts up what it writes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._number = 0

    def write(self) -> int:
        """One Swap, which must give back the value of the one before; when it returned, in monotonic nanoseconds.

        Raises ClusterError when it does not, or gives no answer.
        """
        before = str(self._number).encode() if self._number else b"null"
        self._number += 1
        self._fleet.send(0, b"SWAP leaderkills %d" % self._number)
        completions = self._fleet.wait(WRITE_SECONDS_MAX)
        while not completions and not self._fleet.clients[0].ended:
            if time.monotonic_ns() - self._fleet.clients[0].called_ns > WRITE_SECONDS_MAX * 1e9:
                break
            completions = self._fleet.wait(WRITE_SECONDS_MAX)
        if not completions or completions[0].reply is None:
            raise ClusterError(f"no answer to a write{self._fleet.clients[0].last_words()}")
        if completions[0].reply != b"SWAP leaderkills " + before:
            raise ClusterError(f"a write was answered {show(completions[0].reply)}, and not with {show(before)}")
        return completions[0].returned_ns


def kill_leaders(cluster: Cluster, writer: Writer, count: int, out: Transcript) -> list[float]:
    """Kill so many leaders, one after the other; the pauses in seconds."""
    pauses = []
    for number in range(count):
        for _ in range(WRITES_BETWEEN):
            writer.write()
        leader = cluster.leader("s0")
        if leader is None:
            raise ClusterError("the partition takes writes, and nobody says that it leads")
        began_ns = time.monotonic_ns()
        cluster.kill(leader)
        pauses.append((writer.write() - began_ns) / 1e9)
        out.progress(f"{number + 1} of {count} killed; the last pause was {pauses[-1]:.2f} s")
        cluster.start(leader)
        cluster.wait_until_caught_up(leader)
    return pauses


def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
    """The whole of it; whether the pauses are within their bounds."""
    cluster = Cluster.local(root, 1, options.rf, 3, tls=certificates.are_wanted(options))
    out.say(f"A cluster of its own: {listed(cluster.shape.nodes())}")
    with cluster, Fleet([options.just, "p3::client", cluster.address], 1, expected_to_wait=True) as fleet:
        pauses = kill_leaders(cluster, Writer(fleet), options.count, out)
        faults = fleet.dismiss()
    is_quick = judge(pauses, out)
    for fault in faults.values():
        out.say(f"The client {fault}")
    return is_quick and not faults


def judge(pauses: Sequence[float], out: Transcript) -> bool:
    """Say how long the pauses were; whether they are within their bounds. One alone has no median."""
    median, longest = statistics.median(pauses), max(pauses)
    if len(pauses) == 1:
        out.say(f"1 leader killed; nothing could be written for {longest:.2f} s, and {PAUSE_SECONDS_MAX:g} s may be")
        return longest <= PAUSE_SECONDS_MAX
    out.say(f"{len(pauses)} leaders killed; nothing could be written for, in seconds:")
    out.say(f"  least {min(pauses):.2f}, median {median:.2f}, most {longest:.2f}")
    out.say(f"  bounds: median {MEDIAN_SECONDS_MAX:g}, most {PAUSE_SECONDS_MAX:g}")
    return median <= MEDIAN_SECONDS_MAX and longest <= PAUSE_SECONDS_MAX


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when the pauses are within their bounds."""
    parser = Parser(prog="./justw cluster::leaderkills", description=__doc__)
    parser.add_argument("--count", type=whole, default=100, help="how many to kill (default: %(default)s)")
    parser.add_argument("--rf", type=whole, default=3, help="replicas, 3 or more (default: %(default)s)")
    add_shared(parser, "just", "log", "tls")
    options = parser.parse_args(argv)
    if options.count < 1 or options.rf < 3:
        parser.error("at least one leader of at least three replicas")
    check_cluster(parser, options.rf)
    return end_in_verdict(
        options.log, with_cluster(run, options), VERDICT, interrupted="the client and the cluster are stopped."
    )


if __name__ == "__main__":
    run_tool("madkv leaderkills", main)
