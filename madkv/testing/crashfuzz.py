"""The fuzzer against a cluster of its own, some of whose servers are killed in the middle of it and started again."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from madkv.operate.ask import ask_map
from madkv.testing import certificates, fuzz
from madkv.testing.cluster import Cluster, listed
from madkv.testing.ending import run_tool
from madkv.testing.mischief import Mischief, pauses
from madkv.testing.options import Parser, add_shared, check_cluster, whole
from madkv.testing.shape import Node, Shape, ShapeError
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

CLIENTS = "5"
DOWN_SECONDS = 4.0
"""From the kill to the start."""
PARTITIONS, MANAGERS = 2, 3
"""In project 3."""


def victims(text: str, shape: Shape) -> list[Node] | int:
    """Who is to be killed: some nodes by their ids, or a number of them. Raises ShapeError."""
    if not text.isdigit():
        return [shape.node(name) for name in text.split(",")]
    most = shape.partitions if shape.rf is None else shape.rf // 2
    if not 1 <= int(text) <= most:
        raise ShapeError(f"{text} servers cannot be killed here, but 1 to {most}")
    return int(text)


def crash(mischief: Mischief, chosen: list[Node] | int, calls: int) -> None:
    """Kill them once a quarter of so many calls is answered, and start them again; go on for the rest of the calls.

    Chosen by number they are, in project 3, the leader of partition 0 and its followers; else servers from 0 on.
    """
    cluster = mischief.cluster
    mischief.wait_for_calls(calls // 4)
    if isinstance(chosen, int):
        if cluster.shape.rf is None:
            chosen = [Node(partition, None) for partition in range(chosen)]
        else:
            leader = mischief.leader("s0")
            chosen = [leader, *(node for node in cluster.shape.nodes("s0") if node != leader)][:chosen]
    nodes = chosen

    def heal() -> None:
        mischief.wait(DOWN_SECONDS)
        for node in nodes:
            cluster.start(node)

    mischief.fault("killed (SIGKILL)", nodes, lambda: cluster.kill(*nodes), heal)
    mischief.wait_for_calls(calls)
    mischief.run.enough = True


def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
    """One run from start to verdict; whether it passed."""
    partitions, rf, managers = options.numbers
    cluster = Cluster.local(root, partitions, rf, managers, tls=certificates.are_wanted(options))
    chosen = victims(options.crash, cluster.shape)
    rest = [*options.fuzz, "--module", options.module, "--address", cluster.address, "--just", options.just]
    if options.log:
        rest += ["--history", str(options.log.with_suffix(".history.jsonl"))]
    fuzz_options = fuzz.parse_options([CLIENTS, "yes", *rest])
    out.say(f"A cluster of its own: {listed(cluster.shape.nodes())}")
    with cluster:
        calls = fuzz_options.nclis * fuzz.calls_of(fuzz_options)
        out.say(
            f"Some are killed at a quarter of {calls:,} calls; it goes on until all are answered, and they are back."
        )
        mischief = Mischief(cluster, lambda mischief: crash(mischief, chosen, calls), out.say)
        passed = fuzz.fuzz(fuzz_options, out, mischief.beside)
        if partition_map := ask_map(cluster.address):
            for each in mischief.faults:
                pause, _ = pauses(each, partition_map, mischief.run.history)
                out.say(f"Longest time without a write in the partitions that were struck: {pause:.2f} s")
    return passed


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it passed."""
    parser = Parser(
        prog="crashfuzz",
        description=__doc__,
        epilog="All else is handed on to the fuzzer. ops= times the clients is how many calls there are at least.",
    )
    parser.add_argument("module", choices=("p2", "p3"))
    parser.add_argument("count", type=whole, help="p2: how many servers; p3: how many replicas of each partition")
    parser.add_argument("crash", nargs="?", help="how many to kill, or their ids (default: p2 1, p3 2)")
    add_shared(parser, "just", "log", "tls")
    options, rest = parser.parse_known_args(argv)
    options.fuzz = rest
    options.crash = options.crash or {"p2": "1", "p3": "2"}[options.module]
    partitions, rf, managers = options.numbers = (
        (options.count, None, 1) if options.module == "p2" else (PARTITIONS, options.count, MANAGERS)
    )
    check_cluster(parser, rf, partitions, managers)
    try:
        victims(options.crash, Shape.local(range(1, 1 + Shape.ports_needed(*options.numbers)), *options.numbers))
    except ShapeError as error:
        parser.error(str(error))
    return end_in_verdict(
        options.log,
        with_cluster(run, options),
        fuzz.VERDICT,
        interrupted="the clients and the cluster are stopped, nothing was judged.",
    )


if __name__ == "__main__":
    run_tool("madkv crashfuzz", main)
