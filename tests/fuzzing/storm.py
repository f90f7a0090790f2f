"""Garbage at every port of real processes, and an honest client beside it who must not notice.

    ./justw fuzz::processes [seconds=60] [seed=]            also: python -m tests.fuzzing.storm ...

First at a single server, then at a cluster with replicas and managers. The client swaps, reads and scans; each answer
must be the right one, none may take longer than a bound, no process may end, grow without bound, or log what nobody
foresaw. Exit status 1 when something of that is not so. How long calls take is judged only where these processes had
the machine to themselves: garbage keeps it busy, so if they got little of it, others had the rest.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import psutil

from madkv.client.blocking import BlockingClient
from madkv.testing import certificates
from madkv.testing.cluster import Cluster
from madkv.testing.options import Parser, add_seed, add_shared, whole
from tests.processes import ROOT, ServerProcess

CALL_SECONDS_MAX = 5.0
"""The bound at which a client gives a connection up, and tries again."""
HANG_SECONDS_MAX = 120.0
"""No call may take so long, whatever else the machine does."""
CPU_SHARE_MIN = 0.7
"""Of one processor, all processes together: with less the machine was busy with something else."""
SLOWDOWN_MAX, SLOWDOWN_SECONDS = 20.0, 0.1
"""How many times as long as before, and that much more, half of the calls may take."""
GROWTH_BYTES_MAX = 128 << 20
"""Two boxes on each connection, what is parsed of them, and Python's own keeping."""
BEFORE_SECONDS_MAX = 5.0
UNFORESEEN = ("Traceback", "Unhandled", "not foreseen")


class Harmed(Exception):
    """The garbage did harm; says which."""


def harmed_if(holds: bool, what: str) -> None:
    """Raise Harmed."""
    if holds:
        raise Harmed(what)


class Honest:
    """A client whose answers are known beforehand."""

    def __init__(self, client: BlockingClient, notices: list[str]) -> None:
        self._client = client
        self._notices = notices
        self._count = 0

    def go_on(self, goes_on: Callable[[], bool]) -> list[float]:
        """Make calls as long as it goes on; how long each took. Raises Harmed."""
        seconds: list[float] = []
        while not seconds or goes_on():
            for call in (self._swap, self._get, self._scan):
                began = time.monotonic()
                call()
                seconds.append(time.monotonic() - began)
                harmed_if(seconds[-1] > HANG_SECONDS_MAX, f"a call took {seconds[-1]:.1f} s; {self._notices}")
        return seconds

    def _swap(self) -> None:
        old = self._value
        self._count += 1
        found = self._client.swap(b"honest", b"%d" % self._count)
        harmed_if(found != old, f"a Swap found {found!r}, not {old!r}")

    def _get(self) -> None:
        found = self._client.get(b"honest")
        harmed_if(found != self._value, f"a Get found {found!r}, not {self._value!r}")

    def _scan(self) -> None:
        found = self._client.scan(b"honest", b"honest")
        harmed_if(found != [(b"honest", self._value)], f"a Scan found {found}, not {self._value!r}")

    @property
    def _value(self) -> bytes | None:
        return b"%d" % self._count if self._count else None


def storm(
    client: BlockingClient, notices: list[str], doors: Sequence[str], pids: Sequence[int], seconds: int, seed: int
) -> str:
    """Talk garbage at the doors for so long; the line that says what came of it. Raises Harmed."""
    honest = Honest(client, notices)
    until = time.monotonic() + min(seconds, BEFORE_SECONDS_MAX)
    before = honest.go_on(lambda: time.monotonic() < until)
    processes = [psutil.Process(pid) for pid in pids]
    first_bytes = [process.memory_info().rss for process in processes]
    first_seconds = _cpu_seconds(processes)
    garbage = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzzing.garbage", str(seed), str(seconds), *doors],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with garbage:
        try:
            during = honest.go_on(lambda: garbage.poll() is None)
            said, _ = garbage.communicate()
        finally:
            garbage.kill()
    harmed_if(garbage.returncode != 0, "whoever talked garbage could not connect any more")
    connections, closed = map(int, said.split())
    harmed_if(not closed, "nothing was refused")
    for process in processes:
        harmed_if(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "a process ended")
    growth = max(process.memory_info().rss - first for process, first in zip(processes, first_bytes, strict=True))
    harmed_if(growth > GROWTH_BYTES_MAX, f"a process grew by {growth >> 20} MiB")
    share = (_cpu_seconds(processes) - first_seconds) / sum(during)
    usual, slowed = median(before), median(during)
    times = f"half of the calls within {usual * 1000:.1f} ms before and {slowed * 1000:.1f} ms during it"
    if share >= CPU_SHARE_MIN:
        harmed_if(slowed > SLOWDOWN_MAX * usual + SLOWDOWN_SECONDS, times)
        harmed_if(max(during) > CALL_SECONDS_MAX, f"a call took {max(during):.1f} s; {notices}")
    else:
        times += f" (but the machine was busy: they got {share:.0%} of a processor)"
    return (
        f"{connections:,} connections, {closed:,} of them closed by the other side; {len(during):,} honest calls, "
        f"{times}, the slowest in {max(during):.2f} s; no process grew by more than {max(growth, 0) >> 20} MiB"
    )


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """What these processes have used, with this one and those that it has waited for."""
    mine = os.times()
    theirs = (process.cpu_times() for process in processes)
    return sum(times.user + times.system for times in theirs) + sum(mine[:4])


def judge_log(text: str) -> None:
    """Raise Harmed when it holds what nobody foresaw."""
    for word in UNFORESEEN:
        at = text.find(word)
        harmed_if(at >= 0, f"the log says: {text[at - 300 : at + 2000]}")


def at_a_server(seconds: int, seed: int, tls: Path | None = None) -> str:
    """The line for a single server, with TLS by the certificates in `tls`. Raises Harmed."""
    notices: list[str] = []
    words = [] if tls is None else certificates.options_of(tls, certificates.SOLO)
    theirs = None if tls is None else certificates.files(tls, certificates.USUAL_CLIENT)
    with (
        ServerProcess(*words) as server,
        BlockingClient(server.address, notice=notices.append, tls=theirs) as client,
    ):
        line = storm(client, notices, [f"client={server.address}"], [server.pid], seconds, seed)
        judge_log(server.output)
    harmed_if(bool(notices), f"the client was told: {notices}")
    return line


def at_a_cluster(root: Path, seconds: int, seed: int, *, managers: int = 3, tls: bool = False) -> str:
    """The line for a cluster. Raises Harmed."""
    notices: list[str] = []
    with Cluster.local(root, partitions=1, rf=3, managers=managers, tls=tls) as cluster:
        shape = cluster.shape
        doors = [
            *(f"client={address}" for address in shape.servers),
            *(f"manager={address}" for address in shape.managers),
            *(f"peer={address}" for address in shape.server_p2ps),
            *(f"peer={address}" for address in shape.manager_p2ps if managers > 1),
        ]
        pids = [pid for node in shape.nodes() if (pid := cluster.pid(node)) is not None]
        with BlockingClient(managers=cluster.address, notice=notices.append) as client:
            line = storm(client, notices, doors, pids, seconds, seed)
        cluster.check("under garbage")
        for node in shape.nodes():
            judge_log(cluster.log(node).read_text(errors="replace"))
    return f"{line}; the client waited {len(notices)} times"


def main(argv: Sequence[str]) -> int:
    """The command; its exit status."""
    parser = Parser(prog="./justw fuzz::processes", description="garbage at every port of real processes")
    parser.add_argument("--seconds", type=whole, default=60, help="for each of two (default: %(default)s)")
    add_seed(parser, "of what is said (default: another one each time)")
    add_shared(parser, "tls")
    given = parser.parse_args(argv)
    if given.seconds < 1:
        parser.error(f"seconds must be at least 1, not {given.seconds}")
    print(f"seed {given.seed}", flush=True)
    with_tls = certificates.are_wanted(given)
    try:
        with tempfile.TemporaryDirectory(prefix="madkv-fuzz-") as name:
            tls = Path(name, certificates.DIRECTORY) if with_tls else None
            if tls is not None:
                certificates.make(tls, {certificates.SOLO: ["127.0.0.1"]}, [certificates.USUAL_CLIENT])
            print(f"a server: {at_a_server(given.seconds, given.seed, tls)}", flush=True)
            cluster = Path(name, "cluster")
            print(f"a cluster: {at_a_cluster(cluster, given.seconds, given.seed, tls=with_tls)}", flush=True)
    except Harmed as harm:
        print(f"HARMED: {harm}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
