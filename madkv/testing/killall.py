"""Every process of a cluster killed at once, again and again, while clients write; nothing that was answered is lost.

Theory of operation. Some clients, each in a thread of its own, make one call after the other and retry through whatever
happens. Each swaps a key of its own, where every answer must be the value that it wrote before: a lost or a repeated
Swap would show at once. Each puts keys that nobody writes again, which a Scan must find after every restart. And all
put, swap and get the same few keys. Now and then all processes are killed, in some rounds once more while they are
starting. At the end the whole history is judged by `linearizability`.
"""

import argparse
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from madkv.client.blocking import BlockingClient
from madkv.errors import Abandoned, MadKVError
from madkv.partitions import PartitionMap
from madkv.testing import certificates
from madkv.testing.calls import ALPHANUMERIC
from madkv.testing.cluster import Cluster, ClusterError, listed
from madkv.testing.ending import run_tool
from madkv.testing.fuzz import count, judge
from madkv.testing.history import Kind, Operation, Result, write_history
from madkv.testing.lines import show
from madkv.testing.options import Parser, add_seed, add_shared, check_cluster, whole
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

LOAD_SECONDS = (0.1, 1.5)
"""From when every client has an answer again until the next kill."""
AGAIN_SHARE = 0.25
AGAIN_SECONDS = (0.0, 2.5)
"""In so many rounds, the processes are killed again so long after their start."""
RECOVER_SECONDS_MAX = 60.0
"""From the start of all processes until every client has an answer to a call in each partition."""
SHARED_KEYS = 8
CHECK_SECONDS = 300.0
LOOK_SECONDS = 0.02
EVERYTHING = (b"\0", b"\x7f")
VERDICT = "Kill-all result: {}"


class Worker:
    """One client at work on a thread. `history` is what it did; `wrong` what it should not have been told."""

    def __init__(self, number: int, managers: str, seed: int) -> None:
        self.number = number
        self.history: list[Operation] = []
        self.kept: dict[bytes, bytes] = {}
        """What was put once, and acknowledged."""
        self.wrong = ""
        self._chance = random.Random(f"{seed} {number}")
        self._made = 0
        self._own: dict[bytes, bytes | None] = {b"%c-own-%d" % (place, number): None for place in b"0BVkuz"}
        self._is_enough = threading.Event()
        # The client watches the first end of this pipe: closing the second has it give up what it waits for.
        self._reader, self._abandon = os.pipe()
        self._client = BlockingClient(managers=managers, abandon_fd=self._abandon)
        self._thread = threading.Thread(target=self._work, name=f"worker {number}")

    def start(self) -> None:
        """Begin to make calls."""
        self._thread.start()

    def enough(self) -> None:
        """Make no further call."""
        self._is_enough.set()

    def wait(self) -> None:
        """Wait until the last call is answered."""
        self._thread.join()

    def close(self) -> None:
        """Give up the call that waits, if there is one."""
        self._is_enough.set()
        os.close(self._reader)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._abandon)

    def _work(self) -> None:
        try:
            with self._client:
                while not self._is_enough.is_set() and not self.wrong:
                    for step in (self._swap_own, self._put_once, self._call_shared):
                        step()
        except Abandoned:
            pass
        except Exception as error:  # OutcomeUnknown, say, or a mistake here; it must not be lost with its thread
            self.wrong = f"client {self.number}: {error!r}"

    def _swap_own(self) -> None:
        key = self._chance.choice(list(self._own))
        value = self._value()
        found = self._call("SWAP", key, value, lambda: self._client.swap(key, value))
        expected = self._own[key]
        if found != expected:
            self.wrong = (
                f"client {self.number}: nobody else writes {show(key)}; a Swap found {found!r}, and not {expected!r}"
            )
        self._own[key] = value

    def _put_once(self) -> None:
        place = self._chance.choice(ALPHANUMERIC).encode()
        key = b"%s-once-%d-%d" % (place, self.number, self._made)
        value = self._value()
        self._call("PUT", key, value, lambda: self._client.put(key, value))
        self.kept[key] = value

    def _call_shared(self) -> None:
        key = b"%s-shared" % self._chance.choice(ALPHANUMERIC[:: len(ALPHANUMERIC) // SHARED_KEYS]).encode()
        kind = self._chance.choice(("PUT", "SWAP", "GET", "DELETE"))
        value = self._value()
        if kind == "PUT":
            self._call("PUT", key, value, lambda: self._client.put(key, value))
        elif kind == "SWAP":
            self._call("SWAP", key, value, lambda: self._client.swap(key, value))
        elif kind == "GET":
            self._call("GET", key, None, lambda: self._client.get(key))
        else:
            self._call("DELETE", key, None, lambda: self._client.delete(key))

    def _value(self) -> bytes:
        self._made += 1
        return b"c%dn%d" % (self.number, self._made)

    def _call(self, kind: Kind, key: bytes, value: bytes | None, make: Callable[[], Result]) -> Result:
        called_ns = time.monotonic_ns()
        try:
            result = make()
        except BaseException:
            self.history.append(Operation(self.number, kind, key, value, called_ns, None))
            raise
        self.history.append(Operation(self.number, kind, key, value, called_ns, time.monotonic_ns(), result))
        return result


class KillAll:
    """The cluster, the clients, and what became of them."""

    def __init__(self, cluster: Cluster, partition_map: PartitionMap, clients: int, seed: int, out: Transcript) -> None:
        self.recovered: list[float] = []
        """Seconds from the start of all processes until every partition had taken a write."""
        self.kills_ns: list[int] = []
        self.last_scan: Operation | None = None
        self._cluster = cluster
        self._map = partition_map
        self._chance = random.Random(seed)
        self._out = out
        self.workers = [Worker(number, cluster.address, seed) for number in range(clients)]
        self._auditor = BlockingClient(managers=cluster.address)

    def run(self, rounds: int) -> None:
        """All rounds. Raises ClusterError for what is wrong at once."""
        began_ns = time.monotonic_ns()
        for worker in self.workers:
            worker.start()
        self._await_progress(began_ns, "the first calls")
        for number in range(rounds):
            time.sleep(self._chance.uniform(*LOAD_SECONDS))
            self._round()
            answered = sum(len(worker.history) for worker in self.workers)
            self._out.progress(
                f"{number + 1} of {rounds} rounds, {answered:,} calls answered; "
                f"the last recovery took {self.recovered[-1]:.2f} s"
            )
        for worker in self.workers:
            worker.enough()
        for worker in self.workers:
            worker.wait()
            if worker.wrong:
                raise ClusterError(worker.wrong)
        self.last_scan = self._audit()

    def close(self) -> None:
        """Have every client give up."""
        for worker in self.workers:
            worker.close()
        self._auditor.close()

    @property
    def history(self) -> list[Operation]:
        """All that was done."""
        history = [each for worker in self.workers for each in worker.history]
        return history if self.last_scan is None else [*history, self.last_scan]

    @property
    def retried(self) -> int:
        """How many calls were under way when everything was killed, and were answered afterwards."""
        return sum(
            each.called_ns < kill_ns < (each.returned_ns or 0) for each in self.history for kill_ns in self.kills_ns
        )

    def _round(self) -> None:
        cluster = self._cluster
        self._kill_everything()
        if self._chance.random() < AGAIN_SHARE:
            cluster.start_all()
            time.sleep(self._chance.uniform(*AGAIN_SECONDS))
            self._kill_everything()
        began_ns = time.monotonic_ns()
        cluster.start_all()
        self._await_progress(began_ns, "new answers after a restart")
        self._audit()

    def _kill_everything(self) -> None:
        self.kills_ns.append(time.monotonic_ns())
        self._cluster.kill(*self._cluster.shape.nodes())

    def _await_progress(self, began_ns: int, what: str) -> None:
        """Wait until each client has an answer to a call made since then, and each partition has taken a write."""
        deadline = time.monotonic() + RECOVER_SECONDS_MAX
        waiting = set(range(len(self._map.replicas)))
        looked = [len(worker.history) for worker in self.workers]
        fresh: set[int] = set()
        while waiting or len(fresh) < len(self.workers):
            for number, worker in enumerate(self.workers):
                if worker.wrong:
                    raise ClusterError(worker.wrong)
                for each in worker.history[looked[number] :]:
                    looked[number] += 1
                    if each.called_ns >= began_ns:
                        fresh.add(number)
                    if each.kind != "GET" and each.returned_ns is not None and each.returned_ns >= began_ns:
                        waiting.discard(self._map.partition_of(each.key))
            if fallen := self._cluster.fallen():
                raise ClusterError(f"{fallen[0]} ended by itself:\n{self._cluster.last_words(fallen[0])}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{what}: not within {RECOVER_SECONDS_MAX:g} s; {self._cluster.said()}")
            time.sleep(LOOK_SECONDS)
        self.recovered.append((time.monotonic_ns() - began_ns) / 1e9)

    def _audit(self) -> Operation:
        """Find all that was put once and acknowledged until now; the Scan that found it."""
        expected = {item for worker in self.workers for item in list(worker.kept.items())}
        called_ns = time.monotonic_ns()
        pairs = tuple(self._auditor.scan(*EVERYTHING))
        scan = Operation(len(self.workers), "SCAN", *EVERYTHING, called_ns, time.monotonic_ns(), pairs)
        if lost := expected.difference(pairs):
            raise ClusterError(f"{len(lost)} acknowledged pairs are not there, such as {show(b' '.join(min(lost)))}")
        return scan


def report(killing: KillAll, out: Transcript) -> None:
    """The figures."""
    history, recovered = killing.history, killing.recovered[1:]
    writes = sum(each.kind in ("PUT", "SWAP", "DELETE") and each.returned_ns is not None for each in history)
    out.say(f"{len(killing.kills_ns)} times everything was killed; {len(history):,} calls: {count(history)}")
    out.say(f"{writes:,} writes acknowledged; {killing.retried} calls were under way at a kill, and answered after it")
    if recovered:
        out.say("From the start of all processes until each client and each partition had gone on, in seconds:")
        out.say(f"  least {min(recovered):.2f}, median {statistics.median(recovered):.2f}, most {max(recovered):.2f}")


def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
    """The whole of it; whether nothing was lost, repeated or out of order."""
    rf = options.rf or None
    tls = certificates.are_wanted(options)
    cluster = Cluster.local(root, options.partitions, rf, options.managers if rf else 1, tls)
    out.say(f"A cluster of its own: {listed(cluster.shape.nodes())}; seed={options.seed}")
    passed = True
    with cluster:
        killing = KillAll(cluster, cluster.partition_map(), options.clients, options.seed, out)
        try:
            killing.run(options.rounds)
        except (ClusterError, MadKVError) as error:
            out.say(f"Failed: {error}")
            passed = False
        finally:
            killing.close()
            if options.history:
                write_history(options.history, {"clients": options.clients, "seed": options.seed}, killing.history)
    report(killing, out)
    return judge(killing.history, lambda key: True, CHECK_SECONDS, out) and passed


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it passed."""
    parser = Parser(prog="./justw chaos::killall", description="All processes of a cluster killed, again and again.")
    parser.add_argument("--rounds", type=whole, default=10, help="how often (default: %(default)s)")
    add_shared(parser, "partitions", "rf", "managers", "log", "root", "tls")
    parser.add_argument("--clients", type=whole, default=6, help="default: %(default)s")
    add_seed(parser, "draws the same times again (default: others each time)")
    parser.add_argument("--history", type=Path, help="where to write the history")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"rounds must be at least 1, not {options.rounds}")
    rf, managers = options.rf or None, options.managers if options.rf else 1
    check_cluster(parser, rf, options.partitions, managers, options.clients)
    return end_in_verdict(options.log, with_cluster(run, options, options.root), VERDICT)


if __name__ == "__main__":
    run_tool("madkv killall", main)
