"""Ask far too much of a cluster, and see what ten honest clients notice of it, and what its processes take of memory.

Ten line clients make one call after the other: alone at first, as a measure of the machine, then while very many idle
connections come in, and then beside one client that floods with the longest values, one that reads none of its answers,
hundreds that hold half a box, and a storm of connections (`madkv.testing.flooding`).
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import attrs

from madkv.limits import CONNECTIONS_MAX, FILES_KEPT, MIB, NODE_MEMORY_BYTES
from madkv.testing import certificates
from madkv.testing.catchup import Callers, Watch, told
from madkv.testing.checkout import ROOT
from madkv.testing.cluster import Cluster, ClusterError, listed
from madkv.testing.ending import run_tool
from madkv.testing.fleet import Fleet
from madkv.testing.flooding import Counts
from madkv.testing.options import Parser, add_shared, check_cluster, whole
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

HONEST_CLIENTS = 10
KEYS = 1000
IDLE = 10_000
HALF = 500
SECONDS = 30
CALM_SECONDS = 10.0
CONNECT_SECONDS_MAX = 300.0
END_SECONDS_MAX = 60.0
SHARE_MIN = 0.5
"""Of what honest clients got done before, what they must get done beside it all."""
VERDICT = "Flood result: {}"


class Attackers:
    """The process that asks too much. In a `with` statement it is ended."""

    def __init__(self, server: str, p2ps: Sequence[str], idle: int, half: int) -> None:
        command = [sys.executable, "-m", "madkv.testing.flooding", f"server={server}", f"p2p={','.join(p2ps)}"]
        self._process = subprocess.Popen(
            [*command, f"idle={idle}", f"half={half}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._are_ready = threading.Event()
        self.idle = 0
        """Idle connections that it has made."""
        self._last_line = ""
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            if line.startswith("ready "):
                self.idle = int(line.split()[1])
                self._are_ready.set()
            self._last_line = line
        self._are_ready.set()  # or never will be

    @property
    def are_ready(self) -> bool:
        """Whether all idle connections are there, and the rest begins. Raises ClusterError when it has ended."""
        if self._process.poll() is not None:
            assert self._process.stderr is not None
            why = self._process.stderr.read().strip().splitlines()[-1:] or ["?"]
            raise ClusterError(f"what should ask too much has ended: {why[0]}")
        return self._are_ready.is_set()

    def end(self) -> Counts:
        """Let it end, and say what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"what asks too much did not end within {END_SECONDS_MAX:g} s") from None
        self._reader.join()
        return Counts(**json.loads(self._last_line))


def idle_possible(wanted: int) -> int:
    """As many idle connections as this machine lets one process have, and the server take."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = CONNECTIONS_MAX if files == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, files - FILES_KEPT)
    return max(1, min(wanted, room * 5 // 6))


def _timed(callers: Callers, until: Callable[[], bool]) -> tuple[list[float], float]:
    """The seconds of each call, and calls a second."""
    began = time.monotonic()
    seconds = callers.call(until)
    return seconds, len(seconds) / (time.monotonic() - began)


def _for_seconds(seconds: float, holds: Callable[[], bool] = lambda: True) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: holds() and time.monotonic() >= deadline


@attrs.frozen
class Findings:
    """What it came to."""

    calm: list[float]
    """The seconds of each call before it all."""
    calm_rate: float
    """Calls a second."""
    beside: list[float]
    """Beside it all."""
    rate: float
    counts: Counts
    most_bytes: dict[str, int]
    """Memory by node."""
    elected: list[str]
    """Nodes whose term changed, and how."""

    def judge(self, out: Transcript) -> bool:
        """Say it; whether all is within its bounds."""
        out.say(told(f"before it: {self.calm_rate:,.0f} a second", self.calm))
        out.say(told(f"beside it all: {self.rate:,.0f} a second", self.beside))
        out.say(f"  their share: {self.rate / self.calm_rate:.2f} of before; bound: {SHARE_MIN:g}")
        most = ", ".join(f"{name} {count / MIB:.0f} MiB" for name, count in self.most_bytes.items())
        out.say(f"  memory of their own at most: {most}; bound: {NODE_MEMORY_BYTES // MIB} MiB")
        out.say(f"  terms: {', '.join(self.elected) or 'none changed'}")
        return (
            self.rate >= SHARE_MIN * self.calm_rate
            and max(self.most_bytes.values()) <= NODE_MEMORY_BYTES
            and not self.elected
            and not self.counts.idle_closed
        )


def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
    """The whole of it; whether it went as it should."""
    cluster = Cluster.local(root, 1, options.rf, options.rf)
    out.say(f"A cluster of its own: {listed(cluster.shape.nodes())}")
    with cluster, Fleet([options.just, "p3::client", cluster.address], HONEST_CLIENTS) as fleet:
        leader = cluster.leader("s0")
        if leader is None:
            raise ClusterError(f"nobody leads s0\n{cluster.said()}")
        terms, callers, idle = _terms(cluster), Callers(fleet, KEYS), idle_possible(options.idle)
        with Watch({str(node): cluster.pid(node) for node in cluster.shape.nodes()}) as watch:
            calm, calm_rate = _timed(callers, _for_seconds(CALM_SECONDS))
            p2ps = [*cluster.shape.server_p2ps, *cluster.shape.manager_p2ps]
            with Attackers(cluster.shape.address(leader), p2ps, idle, options.half) as attackers:
                deadline = time.monotonic() + CONNECT_SECONDS_MAX
                came, came_rate = _timed(callers, lambda: attackers.are_ready or time.monotonic() > deadline)
                if not attackers.are_ready:
                    raise ClusterError(f"{idle:,} connections were not made within {CONNECT_SECONDS_MAX:g} s")
                beside, rate = _timed(callers, _for_seconds(options.seconds, lambda: attackers.are_ready))
                counts = attackers.end()
            cluster.check("under the flood")
        faults = fleet.dismiss()
        after = _terms(cluster)
    for fault in faults.values():
        out.say(f"A client {fault}")
    why = "" if idle == options.idle else f" (of {options.idle:,}: the machine allows a process no more files)"
    out.say(f"At {leader}, which leads:")
    out.say(f"  {counts.idle:,} idle connections{why}, of which {counts.idle_closed:,} were closed")
    out.say(
        f"  one that reads no answers, and a flood of {counts.puts:,} values of 1 MiB ({counts.puts_refused:,} refused)"
    )
    out.say(f"  {options.half:,} with half a box, half of them at p2p ports ({counts.closed:,} closed, and made again)")
    out.say(f"  a storm of {counts.storm:,} more connections ({counts.storm_closed:,} closed)")
    out.say(f"{HONEST_CLIENTS} honest clients:")
    out.say(told(f"while the idle ones came: {came_rate:,.0f} a second", came))
    elected = [f"{name} {term} to {after[name]}" for name, term in terms.items() if after[name] != term]
    findings = Findings(calm, calm_rate, beside, rate, counts, watch.most, elected)
    return findings.judge(out) and not faults


def _terms(cluster: Cluster) -> dict[str, int | None]:
    return {str(node): (status or {}).get("term") for node, status in cluster.statuses().items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it went as it should."""
    parser = Parser(prog="./justw chaos::flood", description=__doc__)
    parser.add_argument("--seconds", type=whole, default=SECONDS, help="of the flood (default: %(default)s)")
    parser.add_argument("--idle", type=whole, default=IDLE, help="idle connections (default: %(default)s)")
    parser.add_argument("--half", type=whole, default=HALF, help="connections with half a box (default: %(default)s)")
    parser.add_argument("--rf", type=whole, default=3, help="replicas, and managers (default: %(default)s)")
    add_shared(parser, "just", "log", "root", "tls")
    options = parser.parse_args(argv)
    if certificates.are_wanted(options):
        parser.error("who asks too much here speaks no TLS: tls=no runs it without, whatever the environment has")
    if options.rf < 3 or options.seconds < 1 or options.idle < 1 or options.half < 2:
        parser.error("at least three replicas, a second, an idle connection and two half boxes")
    check_cluster(parser, options.rf)
    return end_in_verdict(options.log, with_cluster(run, options, options.root), VERDICT)


if __name__ == "__main__":
    run_tool("madkv flood", main)
