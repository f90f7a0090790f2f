"""A cluster of real processes under one fault after another, while clients call it; every answer is judged.

Theory of operation. Time is cut into rounds of a minute at most. In each the fuzzer's clients call the cluster on
keys of that round, until the round is over, and their answers are checked. Meanwhile faults are drawn, one after the
other, from a seed: nodes killed, stopped, asked to end, bereft of their disks, cut off from the network; one of them,
a minority of every group, all replicas of a partition, or everything at once. Each fault heals after a few seconds;
then the whole cluster must get back to work within a bounded time, and after a calm the next fault comes.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from madkv.partitions import PartitionMap
from madkv.testing import certificates, fuzz
from madkv.testing.cluster import STATE, Cluster, ClusterError, listed
from madkv.testing.ending import run_tool
from madkv.testing.mischief import Fault, Mischief, pauses
from madkv.testing.network import Network, enter, is_entered, is_possible
from madkv.testing.options import Parser, add_seed, add_shared, check_cluster, whole
from madkv.testing.shape import Node, Shape
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

ROUND_SECONDS = 60.0
OUT_SECONDS = (0.2, 4.0)
"""How long a fault lasts."""
CALM_SECONDS = (0.5, 2.0)
"""Between the healing of one and the beginning of the next."""
VERDICT = "Chaos result: {}"


class Chaos:
    """Draws faults and does them."""

    def __init__(self, shape: Shape, chance: random.Random, network: Network | None = None) -> None:
        self._shape = shape
        self._chance = chance
        self._kinds: list[Callable[[Mischief], None]] = [
            self._kill_one,
            self._kill_a_leader,
            self._kill_a_leader,
            self._stop_one,
            self._stop_a_leader,
            self._end_a_leader_gently,
            self._kill_a_group,
            self._kill_everything,
        ]
        if shape.rf and shape.rf > 1:
            self._kinds += [self._kill_minorities, self._lose_a_disk]
        if network:
            self._kinds += [
                partial(self._cut, network.pull, network.plug, "cut off"),
                partial(self._cut, network.pull, network.plug, "cut off", leader=True),
                partial(self._cut, network.silence, network.unsilence, "hears and is not heard"),
                partial(self._cut, network.silence, network.unsilence, "hears and is not heard", leader=True),
            ]

    def until(self, ends: float, mischief: Mischief) -> None:
        """Fault after fault until `ends`, of the monotonic clock; then the clients have had enough."""
        while time.monotonic() < ends:
            self._chance.choice(self._kinds)(mischief)
            self._wait(mischief, CALM_SECONDS)
        mischief.run.enough = True

    def _wait(self, mischief: Mischief, seconds: tuple[float, float]) -> None:
        mischief.wait(self._chance.uniform(*seconds))

    def _any(self) -> Node:
        return self._chance.choice(self._shape.nodes())

    def _leader(self, mischief: Mischief) -> Node:
        return mischief.leader(self._chance.choice(self._shape.groups))

    def _kill(self, mischief: Mischief, what: str, nodes: list[Node], gently: bool = False) -> None:
        cluster = mischief.cluster

        def strike() -> None:
            if not gently:
                cluster.kill(*nodes)
            elif not cluster.terminate(*nodes):
                raise ClusterError(f"{nodes[0]} did not end when it was asked to")

        def heal() -> None:
            self._wait(mischief, OUT_SECONDS)
            for node in nodes:
                cluster.start(node)

        mischief.fault(what, nodes, strike, heal)

    def _stop(self, mischief: Mischief, what: str, node: Node) -> None:
        cluster = mischief.cluster

        def heal() -> None:
            self._wait(mischief, OUT_SECONDS)
            cluster.resume(node)

        mischief.fault(what, [node], lambda: cluster.pause(node), heal)

    def _cut(
        self,
        cut: Callable[[Node], None],
        mend: Callable[[Node], None],
        what: str,
        mischief: Mischief,
        leader: bool = False,
    ) -> None:
        node = self._leader(mischief) if leader else self._any()

        def heal() -> None:
            self._wait(mischief, OUT_SECONDS)
            mend(node)

        mischief.fault(f"{what}, a leader" if leader else what, [node], lambda: cut(node), heal)

    def _kill_one(self, mischief: Mischief) -> None:
        self._kill(mischief, "killed", [self._any()])

    def _kill_a_leader(self, mischief: Mischief) -> None:
        self._kill(mischief, "killed, a leader", [self._leader(mischief)])

    def _stop_one(self, mischief: Mischief) -> None:
        self._stop(mischief, "stopped (SIGSTOP)", self._any())

    def _stop_a_leader(self, mischief: Mischief) -> None:
        self._stop(mischief, "stopped (SIGSTOP), a leader", self._leader(mischief))

    def _end_a_leader_gently(self, mischief: Mischief) -> None:
        self._kill(mischief, "asked to end, a leader", [self._leader(mischief)], gently=True)

    def _kill_a_group(self, mischief: Mischief) -> None:
        self._kill(mischief, "killed, a whole group", self._shape.nodes(self._chance.choice(self._shape.groups)))

    def _kill_everything(self, mischief: Mischief) -> None:
        self._kill(mischief, "killed, everything", self._shape.nodes())

    def _kill_minorities(self, mischief: Mischief) -> None:
        victims = []
        for group in self._shape.groups:
            nodes = self._shape.nodes(group)
            victims += self._chance.sample(nodes, (len(nodes) - 1) // 2)
        self._kill(mischief, "killed, a minority of each group", victims)

    def _lose_a_disk(self, mischief: Mischief) -> None:
        cluster = mischief.cluster
        group = self._chance.choice([group for group in self._shape.groups if len(self._shape.nodes(group)) > 1])
        node = self._chance.choice(self._shape.nodes(group))

        def strike() -> None:
            cluster.kill(node)
            cluster.wipe(node)

        def heal() -> None:
            self._wait(mischief, OUT_SECONDS)
            # Refused for as long as another disk of the group is being replaced.
            mischief.wait_until(lambda: cluster.replace_disk(node) is None, f"the replacement of {node}'s disk")
            cluster.start(node)

        mischief.fault("disk lost", [node], strike, heal)


def table(faults: Sequence[tuple[Fault, float, float]]) -> list[str]:
    """How often each kind of fault was done, how long they lasted, and the pauses of writes that came with them."""
    kinds: dict[str, list[tuple[Fault, float, float]]] = {}
    for each in faults:
        kinds.setdefault(each[0].what, []).append(each)
    width = max((len(kind) for kind in kinds), default=0)
    lines = [f"{'longest, in seconds:':<{width}}  times  until healed  until recovered  no writes for  since healed"]
    for kind, several in sorted(kinds.items()):
        healed = max((fault.healed_ns - fault.began_ns) / 1e9 for fault, _, _ in several)
        recovered = max((fault.recovered_ns - fault.healed_ns) / 1e9 for fault, _, _ in several)
        pause, behind = max(pause for _, pause, _ in several), max(behind for _, _, behind in several)
        numbers = f"{healed:>12.2f}  {recovered:>15.2f}  {pause:>13.2f}  {behind:>12.2f}"
        lines.append(f"{kind:<{width}}  {len(several):>5}  {numbers}")
    return lines


def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
    """All rounds; whether every answer was right and every fault healed."""
    rf = options.rf or None
    if (root / STATE).exists():
        raise ClusterError(f"there is a cluster in {root} already")
    tls = certificates.are_wanted(options)
    cluster = Cluster.local(root, options.partitions, rf, options.managers if rf else 1, tls)
    shape = cluster.shape
    network = Network(shape.nodes()) if options.network == "yes" else None
    if network is not None:
        cluster = Cluster(shape, root, network, tls)
    out.say(f"A cluster of its own: {listed(shape.nodes())}; seed={options.seed}")
    if network is None:
        out.say("Its network is this machine's: nobody is cut off.")
    chaos = Chaos(shape, random.Random(options.seed), network)
    done: list[tuple[Fault, float, float]] = []
    passed = True
    rounds = max(1, math.ceil(options.seconds / ROUND_SECONDS))
    with cluster:
        partition_map = cluster.partition_map()
        while passed and rounds:
            rounds -= 1
            round_ends = time.monotonic() + min(options.seconds, ROUND_SECONDS)
            mischief = Mischief(cluster, lambda mischief, ends=round_ends: chaos.until(ends, mischief), out.say)  # type: ignore[misc]
            passed = fuzz.fuzz(_fuzz_options(options, cluster.address), out, mischief.beside)
            done += [_with_pauses(fault, partition_map, mischief) for fault in mischief.faults]
        passed = all_end(cluster, out) and passed
    out.say("")
    for line in table(done):
        out.say(line)
    return passed


def _with_pauses(fault: Fault, partition_map: PartitionMap, mischief: Mischief) -> tuple[Fault, float, float]:
    return fault, *pauses(fault, partition_map, mischief.run.history)


def all_end(cluster: Cluster, out: Transcript) -> bool:
    """End the cluster; whether nothing had ended by itself, and everything ended in good order."""
    fallen = cluster.fallen()
    for node in fallen:
        out.say(f"{node} has ended by itself:\n{cluster.last_words(node)}")
    in_order = cluster.stop()
    if not in_order:
        out.say("Not every node ended when it was asked to.")
    return in_order and not fallen


def _fuzz_options(options: argparse.Namespace, address: str) -> argparse.Namespace:
    module = "p3" if options.rf else "p2"
    chosen = [str(options.clients), "yes", "--module", module, "--address", address, "--just", options.just]
    if options.history:
        chosen += ["--history", str(options.history)]
    return fuzz.parse_options(chosen)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it passed."""
    parser = Parser(prog="./justw chaos::run", description="A cluster under faults, every answer judged.")
    parser.add_argument("--seconds", type=float, default=60.0, help="default: %(default)g")
    add_shared(parser, "partitions", "rf", "managers", "just", "log", "root", "tls")
    parser.add_argument("--clients", type=whole, default=5, help="default: %(default)s")
    add_seed(parser, "draws the same faults again (default: another one each time)")
    parser.add_argument("--history", type=Path, help="where to write the last round's history")
    parser.add_argument(
        "--network",
        choices=("yes", "no"),
        help="give each node a network of its own, and cut it (default: where this machine allows it)",
    )
    options = parser.parse_args(argv)
    if not 0 < options.seconds < math.inf:
        parser.error(f"seconds must be more than 0, not {options.seconds:g}")
    rf, managers = options.rf or None, options.managers if options.rf else 1
    check_cluster(parser, rf, options.partitions, managers, options.clients)
    if options.network is None:
        options.network = "yes" if is_entered() or is_possible() else "no"
    if options.network == "yes":
        enter()
    return end_in_verdict(options.log, with_cluster(run, options, options.root), VERDICT)


if __name__ == "__main__":
    run_tool("madkv chaos", main)
