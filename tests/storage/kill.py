"""Kill a writing process at random moments, again and again on the same store, and see that nothing is lost.

    ./justw storage::kill ROUNDS [seed=SEED]

Each round starts the writer (tests/storage/writer.py) where the last one was ended, reads from its pipe until a random
number of further steps is acknowledged, and ends it by SIGKILL, wherever it is by then. What it had acknowledged until
then is still in the pipe. The store must open, and hold exactly that, or that and the whole of the step under way.

A kill leaves the system's page cache, so this says nothing of syncs; for them there is `storage::crash`.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from madkv.testing.ending import run_tool
from madkv.testing.options import Parser, whole
from tests.processes import ROOT
from tests.storage.crash import Expected, Lost, check_directory, writer_command

STEPS_MAX = 1 << 40
STEPS_PER_ROUND = 60
ROUNDS_PER_STORE = 20
SHOW_EVERY = 20


def kill_once(store: Path, seed: int, crashed_at: list[int], steps: int) -> int:
    """Kill the writer when it has acknowledged `steps` more; how many it has acknowledged in all."""
    command = writer_command(store, seed, STEPS_MAX, crashed_at)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stderr is not None
        try:
            acknowledged = [writer.stdout.readline() for _ in range(1 + steps)][-1]
        finally:
            writer.kill()
        acknowledged = [acknowledged, *writer.stdout.read().splitlines(keepends=True)][-1]
        if not acknowledged.endswith(b"\n"):
            raise Lost(f"the writer ended by itself: {writer.stderr.read().decode(errors='replace').strip()}")
    return int(acknowledged)


def rounds(seed: int, count: int) -> Iterator[int]:
    """Kill so many times on one store; the number of steps that were in it, each time. Raises Lost."""
    random = Random(f"kill/{seed}")
    crashed_at: list[int] = []
    with tempfile.TemporaryDirectory(prefix="madkv-kill-") as name:
        store = Path(name, "store")
        for _ in range(count):
            acknowledged = kill_once(store, seed, crashed_at, random.randrange(STEPS_PER_ROUND))
            crashed_at.append(check_directory(store, Expected(seed, crashed_at), acknowledged))
            yield crashed_at[-1]


def run(count: int, seed: int) -> int:
    """The command; its exit status."""
    began, done = time.monotonic(), 0
    for store in range((count + ROUNDS_PER_STORE - 1) // ROUNDS_PER_STORE):
        try:
            for _ in rounds(seed + store, min(ROUNDS_PER_STORE, count - done)):
                done += 1
                if done % SHOW_EVERY == 0:
                    print(f"{done} of {count} kills, {time.monotonic() - began:.0f} s", flush=True)
        except Lost as error:
            print(f"kill {done}: {error}")
            print(
                f"  once more, if not to the microsecond: ./justw storage::kill {ROUNDS_PER_STORE} seed={seed + store}"
            )
            return 1
    print(f"{done} kills, seed {seed}: each left what was acknowledged ({time.monotonic() - began:.1f} s)")
    return 0


def main() -> int:
    parser = Parser(prog="./justw storage::kill", description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=whole, help="how often to kill")
    parser.add_argument("--seed", type=whole, default=1, help="the workload of the first store (default: %(default)s)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("there must be at least one kill")
    return run(options.rounds, options.seed)


if __name__ == "__main__":
    run_tool("madkv storage::kill", main)
