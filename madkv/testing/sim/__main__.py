"""Run simulations, or play one again: `python -m madkv.testing.sim run N`, `... replay SEED`."""

import multiprocessing
import os
import random
import signal
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from twisted.logger import globalLogBeginner

from madkv.testing.ending import run_tool
from madkv.testing.fleet import interrupt_on_terminate
from madkv.testing.options import Parser, whole
from madkv.testing.sim.cluster_storm import ClusterStorm
from madkv.testing.sim.storm import Outcome, Storm
from madkv.testing.transcript import Progress

SEEDS_PER_TASK = 5
CLUSTER_EVERY = 3
FAILURES_SHOWN_MAX = 5
MUST_HAPPEN = (
    *("leader", "candidate", "crash", "all crash", "restart", "cut off", "split", "one-way cut", "bad weather"),
    *("slow disk", "disk hangs", "long silence", "left behind", "slow machine", "hours pass", "handed over"),
    *("ownership", "asked to end", "client killed", "dead for a while", "disconnected", "hosts cut", "probes"),
    *("owned anew", "restarted without managers", "struck before it owns", "struck in a call", "disk given up"),
    "cluster: retries",
    *("cluster: UnknownSession", "cluster: Vacate", "cluster: FillManager", "cluster: WrongPartition"),
    *("ended by itself", "stopped"),
    *("disk wiped", "disk replaced", "truncations", "snapshots sent", "snapshots installed", "retries"),
    *(
        "commits lost",
        "commits done, not told",
        "commits at once",
        "messages lost",
        "messages repeated",
        "sessions lost",
    ),
    *("outcomes unknown", "cut off while it is streamed to", "Busy", "Interrupted", "NotLeader", "WrongPartition"),
)
"""What a long run must have seen at least once: otherwise it has tested less than it says."""
RARE = ("answer lost",)
"""The same for a very long one."""


def storm_of(seed: int, keeps_trace: bool = False) -> Storm | ClusterStorm:
    """What a seed makes: one in three is of a whole cluster."""
    return Storm(seed, keeps_trace) if seed % CLUSTER_EVERY else ClusterStorm(seed, keeps_trace)


def attempt(seed: int) -> Outcome | tuple[int, str]:
    """One seed; its outcome, or what went wrong."""
    try:
        return storm_of(seed).run(seed)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return seed, f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"


def be_silent() -> None:
    """Processes that have died in a simulation say nothing when they are forgotten; what they log is heard there."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)

    def unraisable(what: Any) -> None:
        if "GeneratorExit" not in str(what.exc_value):
            sys.__unraisablehook__(what)

    sys.unraisablehook = unraisable


def begin_work() -> None:
    """A process of the pool: Ctrl-C is heard by whoever ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    be_silent()


def attempt_all(seeds: Sequence[int]) -> list[Outcome | tuple[int, str]]:
    """Several seeds, one after another."""
    return [attempt(seed) for seed in seeds]


def run(first: int, count: int) -> int:
    """Run seeds on all cores; 0 when none failed."""
    began = time.monotonic()
    progress = Progress()
    seeds = [range(at, min(at + SEEDS_PER_TASK, first + count)) for at in range(first, first + count, SEEDS_PER_TASK)]
    outcomes: list[Outcome] = []
    failures: list[tuple[int, str]] = []
    with ProcessPoolExecutor(initializer=begin_work) as pool:
        try:
            for future in as_completed([pool.submit(attempt_all, few) for few in seeds]):
                for each in future.result():
                    if isinstance(each, Outcome):
                        outcomes.append(each)
                    else:
                        failures.append(each)
                        if len(failures) <= FAILURES_SHOWN_MAX:
                            progress.clear()
                            print(f"seed {each[0]} FAILED: {each[1]}", flush=True)
                            print(f"  play it again: ./justw sim::replay {each[0]}", flush=True)
                if time.monotonic_ns() >= progress.due_ns:
                    progress.show(f"{len(outcomes) + len(failures)} of {count} seeds, {len(failures)} failed")
        except BaseException:
            # Interrupted, or nobody takes what is said: the pool would wait for all of its seeds.
            for worker in multiprocessing.active_children():
                worker.kill()
            progress.clear()
            raise
    progress.clear()
    report(outcomes, time.monotonic() - began)
    must_happen = {*MUST_HAPPEN, *(RARE if count >= 20_000 else ())}
    missing = sorted(must_happen - set(sum((each.counts for each in outcomes), Counter())))
    if count >= 1000 and missing:
        print(f"never happened: {', '.join(missing)}")
    passed = not failures and not (count >= 1000 and missing)
    print(f"{count} seeds from {first}: {f'{len(failures)} FAILED' if failures else 'no violation'}")
    return 0 if passed else 1


def report(outcomes: Sequence[Outcome], seconds: float) -> None:
    """What was exercised."""
    if not outcomes:
        return
    calls, faults = (statistics.median(values) for values in zip(*((o.calls, o.faults) for o in outcomes), strict=True))
    print(f"{len(outcomes)} simulations in {seconds:.0f} s; medians: {calls:g} calls, {faults:g} faults in each")
    total = sum((each.counts for each in outcomes), Counter[str]())
    clusters = sum(outcome.seed % CLUSTER_EVERY == 0 for outcome in outcomes)
    print(f"{clusters} of them of a whole cluster")
    print("exercised: " + ", ".join(f"{number:,} {kind}" for kind, number in sorted(total.items())))


def replay(seed: int) -> int:
    """Play one seed again and tell what happens; 0 when nothing is wrong."""
    be_silent()
    storm = storm_of(seed, keeps_trace=True)
    failure = None
    try:
        storm.run(seed)
    except Exception as error:
        failure = error
    for line in storm.world.trace or ():
        print(line)
    if failure is None:
        print(f"seed {seed}: no violation")
        return 0
    traceback.print_exception(failure)
    print(f"seed {seed} FAILED at {storm.world.now:.4f} s: {failure}")
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = Parser(prog="sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", prog="./justw sim::run", help="run this many seeds on all cores")
    running.add_argument("count", type=whole, help="how many seeds")
    running.add_argument("--first", type=whole, help="the first seed (default: drawn at random)")
    replaying = commands.add_parser(
        "replay", prog="./justw sim::replay", help="play one seed again and tell what happens"
    )
    replaying.add_argument("seed", type=whole, help="as `sim::run` has named it")
    options = parser.parse_args(argv)
    interrupt_on_terminate()
    if options.command == "replay":
        return replay(options.seed)
    if options.count < 1:
        running.error(f"at least one seed, not {options.count}")
    first = random.SystemRandom().randrange(10**9) if options.first is None else options.first
    return run(first, options.count)


if __name__ == "__main__":
    run_tool("madkv sim", main)
