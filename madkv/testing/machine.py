"""A cluster on a machine that is not well, while clients call it: disks that are full, read-only or fail, leaders that
are stopped, clocks that are wrong. Every answer is judged, and so is how nodes end and go on.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from madkv.testing import certificates, disk, fuzz
from madkv.testing.chaos import all_end, table
from madkv.testing.cluster import listed
from madkv.testing.disk import SmallDisk
from madkv.testing.ending import run_tool
from madkv.testing.machine_cases import CASES, NEED_DISKS, NEED_PRELOADING, Undecided
from madkv.testing.machine_disks import GROUP, MANAGERS, Stage
from madkv.testing.mischief import Mischief, pauses
from madkv.testing.options import Parser, add_seed, add_shared, check_cluster, whole
from madkv.testing.preload import NoCompiler
from madkv.testing.rigged import RiggedCluster
from madkv.testing.shape import Node
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

KEYS = 24
"""Few, so that each is read and written again and again."""
VERDICT = "Machine faults result: {}"


def cases(text: str) -> list[str]:
    """Names of cases, in the order in which they are done."""
    chosen = text.split(",")
    if not set(chosen) <= CASES.keys():
        raise argparse.ArgumentTypeError(f"{text!r}: cases are {', '.join(CASES)}")
    return [name for name in CASES if name in chosen]


def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
    """The whole of it; whether every answer was right, and every node ended and went on as it should."""
    cluster = RiggedCluster.local(root, options.partitions, options.rf, options.managers)
    out.say(f"A cluster of its own: {listed(cluster.shape.nodes())}; cases: {', '.join(options.cases)}")
    chosen = [name for name in options.cases if name not in options.left_out]
    try:
        cluster.rig()
    except NoCompiler as error:
        options.left_out |= {name: str(error) for name in chosen if name in NEED_PRELOADING}
    for name, why in options.left_out.items():
        out.say(f"Left out: {name}: {why}")
    chosen = [name for name in chosen if name not in options.left_out]
    if not chosen:
        out.say("Nothing is left to do here.")
        return False
    undecided: list[str] = []
    with ExitStack() as stack:
        disks: dict[Node, SmallDisk] = {}
        if any(name in NEED_DISKS for name in chosen):
            for node in (*cluster.shape.nodes(GROUP), *cluster.shape.nodes(MANAGERS)):
                disks[node] = SmallDisk(root / f"{node}.image", cluster.directory(node))
                stack.callback(disks[node].unmount)
        stack.enter_context(cluster)
        stack.enter_context(cluster.for_clients())
        partition_map = cluster.partition_map()

        def act(mischief: Mischief) -> None:
            mischief.let_them_call()
            for name in chosen:
                mischief.tell(f"case {name}: {(CASES[name].__doc__ or '').rstrip('.')}")
                try:
                    CASES[name](Stage(cluster, disks, mischief, options.seconds))
                except Undecided as why:
                    undecided.append(f"Not decided: {name}: {why}")
            mischief.run.enough = True

        mischief = Mischief(cluster, act, out.say)
        passed = fuzz.fuzz(_fuzz_options(options, cluster.address), out, mischief.beside)
        passed = all_end(cluster, out) and passed
    out.say("")
    for line in table([(each, *pauses(each, partition_map, mischief.run.history)) for each in mischief.faults]):
        out.say(line)
    for line in undecided:
        out.say(line)
    return passed and not undecided


def _fuzz_options(options: argparse.Namespace, address: str) -> argparse.Namespace:
    chosen = [str(options.clients), "yes", "--module", "p3", "--address", address, "--just", options.just]
    chosen += ["--keys", str(KEYS), "--seed", str(options.seed)]
    if options.log:
        chosen += ["--history", str(options.log.with_suffix(".history.jsonl"))]
    return fuzz.parse_options(chosen)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it passed."""
    parser = Parser(prog="./justw chaos::machine", description=__doc__)
    parser.add_argument(
        "--cases", type=cases, default=[*CASES], help=f"some of {','.join(CASES)}, with commas (default: all)"
    )
    parser.add_argument("--seconds", type=whole, default=10, help="how long leaders are stopped (default: %(default)s)")
    parser.add_argument("--clients", type=whole, default=4, help="default: %(default)s")
    add_shared(parser, "partitions", "rf", "managers", "just", "log", "root", "tls")
    add_seed(parser, "makes the same calls again (default: others each time)")
    options = parser.parse_args(argv)
    if certificates.are_wanted(options):
        parser.error(
            "who asks a stopped leader here speaks no TLS: tls=no runs it without, whatever the environment has"
        )
    if min(options.rf, options.managers) < 3 or options.seconds < 2 or options.clients < 1:
        parser.error("at least three replicas, three managers, two seconds and a client")
    check_cluster(parser, options.rf, options.partitions, options.managers, options.clients)
    options.left_out = {}
    if any(name in NEED_DISKS for name in options.cases):
        why = disk.why_impossible()
        if why is None:
            disk.enter()
        else:
            options.left_out = {name: why for name in options.cases if name in NEED_DISKS}
    return end_in_verdict(options.log, with_cluster(run, options, options.root), VERDICT)


if __name__ == "__main__":
    run_tool("madkv machine", main)
