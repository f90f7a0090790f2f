"""A follower is down for very many writes, comes back, and catches up by a snapshot; what do clients notice?

First one process writes, many calls in flight, until the log no longer holds what the follower lacks. Then line clients
make one call after the other: for a while alone, as a measure of the machine, and then while the follower comes back.
"""

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from madkv.client.api import Client
from madkv.limits import LOG_BYTES_KEPT, LOG_ENTRIES_KEPT, MIB
from madkv.operate.ask import ask_status
from madkv.testing import certificates
from madkv.testing.calls import ALPHANUMERIC
from madkv.testing.cluster import Cluster, ClusterError, listed
from madkv.testing.ending import run_tool
from madkv.testing.fleet import Fleet, interrupt_on_terminate
from madkv.testing.options import Parser, add_shared, check_cluster, whole
from madkv.testing.shape import Node
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

WRITES_IN_FLIGHT = 512
WRITES = LOG_ENTRIES_KEPT + 50_000
"""More than the log keeps: else the follower would be sent entries."""
CALM_SECONDS = 10.0
"""How long the clients are measured without any follower that comes back."""
CATCH_UP_SECONDS_MAX = 600.0
PAUSE_SECONDS_MAX = 0.2
CALL_SECONDS_MAX = 30.0
MEMORY_BYTES_MAX = 512 * MIB
"""What a server may take of its own, beside the pages of its files."""
LOOK_SECONDS = 0.1
VERDICT = "Catch-up result: {}"


def memory_bytes(pid: int) -> int:
    """A process's memory that is no part of any file; 0 when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class Watch(threading.Thread):
    """Looks again and again how much memory the nodes take, and whether something has come to pass."""

    def __init__(self, pids: dict[str, int | None], has_come: Callable[[], bool] = lambda: False) -> None:
        super().__init__(name="watch")
        self.most = dict.fromkeys(pids, 0)
        """The most memory seen, in bytes."""
        self.came_ns: int | None = None
        """When it had come to pass."""
        self._pids = pids
        self._has_come = has_come
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Until it is over."""
        while not self._over.wait(LOOK_SECONDS):
            for name, pid in self._pids.items():
                if pid is not None:
                    self.most[name] = max(self.most[name], memory_bytes(pid))
            if self.came_ns is None and self._has_come():
                self.came_ns = time.monotonic_ns()


class Filling:
    """Writes distinct keys through the Deferred client, many at a time, in one run of the reactor."""

    def __init__(self, managers: str, writes: int, value_bytes: int, out: Transcript) -> None:
        from twisted.internet import reactor

        self._reactor: Any = reactor
        self._managers = managers
        self._numbers = iter(range(writes))
        self._writes = writes
        self._value_bytes = value_bytes
        self._out = out
        self._working = 0
        self.answered = 0

    def run(self) -> float:
        """Make all writes; the seconds that it took. Raises KeyboardInterrupt when it was cut short."""
        began = time.monotonic()
        self._reactor.callWhenRunning(self._begin)
        self._reactor.run()
        interrupt_on_terminate()
        if self.answered < self._writes:
            raise KeyboardInterrupt
        return time.monotonic() - began

    def _begin(self) -> None:
        from twisted.internet.defer import Deferred

        self._client = Client(self._reactor, managers=self._managers)
        for _ in range(WRITES_IN_FLIGHT):
            self._working += 1
            Deferred.fromCoroutine(self._write()).addErrback(self._failed)

    async def _write(self) -> None:
        for number in self._numbers:
            await self._client.put(key(number), b"%0*d" % (self._value_bytes, number))
            self.answered += 1
            if self.answered % 1000 == 0:
                self._out.progress(f"{self.answered:,} of {self._writes:,} written")
        self._working -= 1
        if not self._working:
            await self._client.close()
            self._reactor.stop()

    def _failed(self, failure: Any) -> None:
        self._out.say(f"A write failed: {failure.getErrorMessage()}")
        if self._reactor.running:
            self._reactor.stop()


def key(number: int) -> bytes:
    """All over the keyspace, in no order."""
    place = number * 2_654_435_761 % 2**32
    return b"%s%010d" % (ALPHANUMERIC[place % len(ALPHANUMERIC)].encode(), number)


class Callers:
    """Line clients, each of which makes one call after the other; how long each took."""

    def __init__(self, fleet: Fleet, writes: int) -> None:
        self.fleet = fleet
        self._writes = writes
        self._made = 0

    def call(self, until: Callable[[], bool]) -> list[float]:
        """Go on until it is so; the seconds of each call. Raises ClusterError when a client fails."""
        seconds = []
        for client in self.fleet.clients:
            self._send(client.number)
        left = len(self.fleet.clients)
        while left:
            is_over = until()
            for number, called_ns, returned_ns, reply in self.fleet.wait(LOOK_SECONDS):
                if reply is None:
                    raise ClusterError(f"a client ended{self.fleet.clients[number].last_words()}")
                seconds.append((returned_ns - called_ns) / 1e9)
                if is_over:
                    left -= 1
                else:
                    self._send(number)
            now_ns = time.monotonic_ns()
            if any(each.pending and now_ns - each.called_ns > CALL_SECONDS_MAX * 1e9 for each in self.fleet.clients):
                raise ClusterError(f"a call without an answer for {CALL_SECONDS_MAX:g} s")
        return seconds

    def _send(self, number: int) -> None:
        self._made += 1
        name = key(self._made * 7919 % self._writes)
        self.fleet.send(number, b"GET %s" % name if self._made % 2 else b"PUT %s %d" % (name, self._made))


def told(what: str, seconds: list[float]) -> str:
    """A line on how long calls took."""
    ordered = sorted(seconds)
    shares = (("median", 0.5), ("99 %", 0.99), ("99.9 %", 0.999))
    parts = [f"{name} {1000 * ordered[int(share * (len(ordered) - 1))]:.1f}" for name, share in shares]
    return f"  {what}: {len(ordered):,} calls, {', '.join(parts)}, longest {1000 * ordered[-1]:.0f} ms"


def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
    """The whole of it; whether it went as it should."""
    cluster = Cluster.local(root, 1, options.rf, 1, tls=certificates.are_wanted(options))
    out.say(f"A cluster of its own: {listed(cluster.shape.nodes())}")
    with cluster:
        leader = cluster.leader("s0")
        assert leader is not None
        follower = next(node for node in cluster.shape.nodes("s0") if node != leader)
        before = _status(cluster, follower)["last"]
        cluster.kill(follower)
        with Watch({"leader": cluster.pid(leader)}) as watch:
            seconds = Filling(cluster.address, options.writes, options.value_bytes, out).run()
        out.say(
            f"{options.writes:,} writes of {options.value_bytes} bytes in {seconds:.1f} s, "
            f"{options.writes / seconds:,.0f} a second; the leader took {watch.most['leader'] / MIB:.0f} MiB at most"
        )
        if cluster.leader("s0") != leader:
            raise ClusterError("another replica leads by now: nothing can be said about this one")
        if _status(cluster, leader)["first"] <= before + 1:
            raise ClusterError("the log still holds all that the follower lacks; make more writes, or longer ones")
        with Fleet([options.just, "p3::client", cluster.address], options.clients) as fleet:
            passed = _measure(cluster, leader, follower, Callers(fleet, options.writes), out)
            for fault in fleet.dismiss().values():
                out.say(f"A client {fault}")
                passed = False
    return passed


def _measure(cluster: Cluster, leader: Node, follower: Node, callers: Callers, out: Transcript) -> bool:
    callers.call(_after(1.0))  # the clients have started by then, and have their connections
    calm = callers.call(_after(CALM_SECONDS))
    began_ns = time.monotonic_ns()
    cluster.start(follower)
    deadline = _after(CATCH_UP_SECONDS_MAX)
    pids = {"leader": cluster.pid(leader), "follower": cluster.pid(follower)}

    def has_caught_up() -> bool:
        theirs, mine = (ask_status(cluster.shape.address(node)) or {} for node in (leader, follower))
        return mine.get("applied", -1) >= theirs.get("commit", mine.get("applied", -1) + 1)

    with Watch(pids, has_caught_up) as watch:
        seconds = callers.call(lambda: watch.came_ns is not None or deadline())
    if watch.came_ns is None:
        raise ClusterError(f"{follower} did not catch up within {CATCH_UP_SECONDS_MAX:g} s\n{cluster.said()}")
    out.say(f"{follower} caught up {(watch.came_ns - began_ns) / 1e9:.1f} s after its start, while clients went on:")
    out.say(told("before it came", calm))
    out.say(told("while it caught up", seconds))
    most = ", ".join(f"{name} {count / MIB:.0f} MiB" for name, count in watch.most.items())
    out.say(f"  memory of their own at most: {most}; the leader's data: {_data(cluster, leader)}")
    out.say(f"  bounds: longest call {1000 * PAUSE_SECONDS_MAX:.0f} ms, memory {MEMORY_BYTES_MAX // MIB} MiB")
    return max(seconds) <= PAUSE_SECONDS_MAX and max(watch.most.values()) <= MEMORY_BYTES_MAX


def _after(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


def _status(cluster: Cluster, node: Node) -> dict[str, Any]:
    status = ask_status(cluster.shape.address(node))
    if status is None:
        raise ClusterError(f"{node} does not answer\n{cluster.last_words(node)}")
    return status


def _data(cluster: Cluster, node: Node) -> str:
    return f"{_status(cluster, node)['data_bytes'] / MIB:.0f} MiB"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it went as it should."""
    parser = Parser(prog="./justw chaos::catchup", description=__doc__)
    parser.add_argument("--writes", type=whole, default=WRITES, help="default: %(default)s")
    parser.add_argument("--value-bytes", type=whole, default=100, help="default: %(default)s")
    parser.add_argument("--clients", type=whole, default=4, help="line clients (default: %(default)s)")
    parser.add_argument("--rf", type=whole, default=3, help="replicas, 3 or more (default: %(default)s)")
    add_shared(parser, "just", "log", "root", "tls")
    options = parser.parse_args(argv)
    if options.rf < 3 or options.clients < 1 or not 10 <= options.value_bytes <= MIB:
        parser.error("at least three replicas, a client, and values of 10 bytes to 1 MiB")
    check_cluster(parser, options.rf, clients=options.clients)
    if options.writes < LOG_ENTRIES_KEPT and options.writes * options.value_bytes < LOG_BYTES_KEPT:
        parser.error(f"the log keeps so much: make {LOG_ENTRIES_KEPT:,} writes, or {LOG_BYTES_KEPT // MIB} MiB of them")
    return end_in_verdict(options.log, with_cluster(run, options, options.root), VERDICT)


if __name__ == "__main__":
    run_tool("madkv catchup", main)
