"""Where the time of a call goes: CPU by room, in the client, the leader and the followers, and who waits for what.

A cluster of one partition is started with `sampler.py` in each server, and line clients with it in them too. All are
sampled while the clients make calls of one kind, once by CPU time and once by real time. The CPU that each process has
used is measured by the system, and shared out by the samples; so the figures of a room are about as good as one in a
hundred, and sampling itself costs some per cent.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from madkv.bench.disk import why_no_disk
from madkv.bench.run import Bench, BenchError
from madkv.bench.workload import CoreWorkload, read_properties, workload_text
from madkv.testing import certificates
from madkv.testing.cluster import Cluster
from madkv.testing.ending import complain, run_tool
from madkv.testing.fleet import Fleet, interrupt_on_terminate
from madkv.testing.node import twistd
from madkv.testing.options import Parser, add_shared, check_cluster, whole
from madkv.testing.service import ServiceError
from madkv.testing.shape import Node

SETTLE_SECONDS = 1.0
"""From the first calls to the first sample."""
WRITTEN_SECONDS_MAX = 10.0
RECORDS = 1000
GROUP = "s0"
ROOMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sockets", ("twisted/internet/tcp.py", "twisted/internet/fdesc.py", "madkv/client/connection.py", "/socket.py")),
    ("reactor", ("twisted/",)),
    ("client", ("madkv/client/", "madkv.client")),
    ("wire", ("madkv/wire/", "madkv.wire", "madkv/server/peer")),
    ("raft", ("madkv/raft/", "madkv.raft")),
    ("storage", ("madkv/storage/", "madkv.storage", "madkv/server/disk.py", "sortedcontainers")),
    ("state machine", ("madkv/sessions.py", "madkv/state_machine.py", "madkv/operations.py", "madkv/ranges.py")),
    ("service", ("madkv/server/service.py", "madkv/arguments.py", "madkv/counts.py")),
    ("replica", ("madkv/server/", "madkv.server")),
)
"""By the file of the innermost frame, the first that fits."""
OTHER = "other"
WAITS = {
    "doPoll": "waits for sockets",
    "poll": "waits for sockets",
    "_wait": "waits for an answer",
    "_lines": "waits for a line",
    "_commit": "in a commit",
    "__exit__": "in a commit",
}
"""What a thread does that a tick of real time finds in such a function."""
KINDS = {
    "put": {"readproportion": "0", "updateproportion": "0", "insertproportion": "1"},
    "swap": {"readproportion": "0", "updateproportion": "1"},
    "get": {"readproportion": "1", "updateproportion": "0"},
}


def room_of(file: str) -> str:
    """The room that a file belongs to."""
    return next((room for room, parts in ROOMS if any(part in file for part in parts)), OTHER)


@attrs.frozen
class Sampled:
    """What one process did while it was sampled."""

    seconds: float
    user: float
    system: float
    ticks: list[tuple[str, str, str, int]]
    """(thread, file, function, ticks)."""

    @staticmethod
    def of(path: Path) -> "Sampled":
        """What a sampler has written."""
        facts = json.loads(path.read_text())
        return Sampled(facts["seconds"], facts["user"], facts["system"], [tuple(row) for row in facts["ticks"]])

    def cpu_us(self, calls: int) -> dict[str, float]:
        """CPU microseconds a call, by room."""
        by_room: Counter[str] = Counter()
        for _, file, _, count in self.ticks:
            by_room[room_of(file)] += count
        total = by_room.total() or 1
        whole_us = (self.user + self.system) / max(1, calls) * 1e6
        return {room: whole_us * count / total for room, count in by_room.most_common()}

    def wall(self) -> dict[str, float]:
        """What each thread that has something to do did, as a share of the time."""
        by_thread: dict[str, Counter[str]] = {}
        for thread, file, function, count in self.ticks:
            if thread in ("MainThread", "madkv-disk"):
                by_thread.setdefault(thread, Counter())[WAITS.get(function, f"in {room_of(file)}")] += count
        return {
            f"{'main' if thread == 'MainThread' else 'disk'}: {what}": count / counts.total()
            for thread, counts in sorted(by_thread.items(), reverse=True)
            for what, count in counts.most_common(4)
        }


class SampledCluster(Cluster):
    """Its servers can be sampled."""

    clock = "cpu"

    def program(self, node: Node) -> list[str]:
        """twistd under the sampler; managers have no part in calls."""
        python, *rest = twistd()
        if node.group != GROUP:
            return [python, *rest]
        return [python, "-m", "madkv.bench.sampler", str(self.samples(node)), self.clock, *rest]

    def samples(self, node: Node) -> Path:
        """Where a server's sampler writes."""
        return self.root / f"{node}.samples"


def sample(root: Path, clock: str, options: argparse.Namespace) -> tuple[int, float, dict[str, Sampled]]:
    """One run: calls while it was sampled, their mean latency in us, and what each process did by its part."""
    tls = certificates.are_wanted(options)
    cluster = SampledCluster.local(root, partitions=1, rf=options.rf, managers=min(3, options.rf), tls=tls)
    cluster.clock = clock
    core = CoreWorkload(
        {**read_properties(workload_text("a")), "recordcount": str(RECORDS), "operationcount": "10000000"}
        | KINDS[options.kind],
        1,
        options.clients,
    )
    client_samples = root / "client.samples"
    client = ["-m", "madkv.client", "--managers", cluster.address]
    with cluster, Fleet([sys.executable, *client], options.clients - 1) as fleet:
        one = fleet.add([sys.executable, "-m", "madkv.bench.sampler", str(client_samples), clock, *client])
        bench = Bench(fleet, core)
        bench.ready()
        loads = core.load()
        bench.phase("Load", [loads] * options.clients, RECORDS)
        leader = cluster.leader(GROUP)
        pids = [pid for node in cluster.shape.nodes(GROUP) if (pid := cluster.pid(node)) is not None]
        pids.append(one.process.pid)
        helper = threading.Thread(target=_signal_all, args=(pids, options.seconds))
        helper.start()
        run = bench.phase(
            "Run",
            [core.calls(number) for number in range(options.clients)],
            seconds=options.seconds + 2 * SETTLE_SECONDS,
        )
        helper.join()
        _wait_for([client_samples, *(cluster.samples(node) for node in cluster.shape.nodes(GROUP))])
        bench.stop()
        found = {"client": Sampled.of(client_samples)}
        for node in cluster.shape.nodes(GROUP):
            part = "leader" if node == leader else f"follower {node}"
            found[part] = Sampled.of(cluster.samples(node))
    return int(run.throughput * options.seconds), 1e6 * options.clients / run.throughput, found


def _signal_all(pids: Sequence[int], seconds: float) -> None:
    time.sleep(SETTLE_SECONDS)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        for pid in pids:
            os.kill(pid, number)
        if number is signal.SIGUSR1:
            time.sleep(seconds)


def _wait_for(paths: Sequence[Path]) -> None:
    deadline = time.monotonic() + WRITTEN_SECONDS_MAX
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            raise BenchError("a process has not written its samples")
        time.sleep(0.05)


def report(kind: str, clients: int, cpu: Any, wall: Any, say: Callable[[str], None]) -> None:
    """The tables, in Markdown."""
    calls, latency_us, sampled = cpu
    parts = list(sampled)
    say(f"{kind}, {clients} client{'s' if clients > 1 else ''}: {latency_us:,.0f} us a call on average")
    say("")
    say("| CPU us a call | " + " | ".join(parts) + " |")
    say("|---|" + "---:|" * len(parts))
    # One of the clients was sampled, and made its share of the calls.
    by_part = {part: each.cpu_us(calls // clients if part == "client" else calls) for part, each in sampled.items()}
    for room in [*(room for room, _ in ROOMS), OTHER]:
        if any(rooms.get(room, 0) >= 0.05 for rooms in by_part.values()):
            say(f"| {room} | " + " | ".join(f"{by_part[part].get(room, 0):.1f}" for part in parts) + " |")
    say("| **all** | " + " | ".join(f"**{sum(by_part[part].values()):.1f}**" for part in parts) + " |")
    say("| of it in the system | " + " | ".join(
        f"{sum(by_part[part].values()) * each.system / max(1e-9, each.user + each.system):.1f}"
        for part, each in sampled.items()
    ) + " |")  # fmt: skip
    say("")
    for part, each in wall[2].items():
        say(f"* {part}: " + ", ".join(f"{what} {share:.0%}" for what, share in each.wall().items()))
    say("")


def profile(options: argparse.Namespace) -> int:
    """Sample twice, and print the tables."""
    try:
        interrupt_on_terminate()
        with tempfile.TemporaryDirectory(prefix="madkv-profile-", dir=options.data) as root:
            cpu, wall = (sample(Path(root) / clock, clock, options) for clock in ("cpu", "wall"))
    except (BenchError, ServiceError, OSError) as error:
        complain(f"bench::profile: {error}")
        return 1
    report(options.kind, options.clients, cpu, wall, print)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(prog="./justw bench::profile", description=__doc__)
    parser.add_argument("--kind", choices=tuple(KINDS), default="put", help="of calls (default: %(default)s)")
    parser.add_argument("--clients", type=whole, default=1, help="(default: %(default)s)")
    parser.add_argument("--rf", type=whole, default=3, help="replicas (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of both runs (default: %(default)g)")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the servers keep their data meanwhile, on a disk (default: %(default)s)",
    )
    add_shared(parser, "tls")
    options = parser.parse_args(argv)
    if not (options.clients >= 1 and options.rf >= 1 and options.seconds > 0):
        parser.error("clients, rf and seconds must be more than 0")
    check_cluster(parser, options.rf, managers=min(3, options.rf), clients=options.clients)
    if why := why_no_disk(options.data):
        parser.error(why)
    return profile(options)


if __name__ == "__main__":
    run_tool("madkv profile", main)
