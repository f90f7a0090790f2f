"""Put each known mistake into a copy of the project, and print which check catches it.

    ./justw sim::mutations [--all] [PART OF A NAME ...]          also: python -m tests.mutate ...

Without --all those that the project must never be without: `REQUIRED`. With it all that the lists in tests/raft,
tests/simulation and tests/storage have. Names are chosen by parts of them; `raft:` is a part, too. Exit status 1 when
one is caught by nothing, or no longer fits the code.
"""

import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from madkv.testing.options import Parser
from madkv.testing.transcript import Progress
from tests.mutation import CheckBroken, Mistake, MistakeList, Verdict, copy_project, search, tests
from tests.raft.mistakes import MUTATIONS as RAFT
from tests.simulation.mistakes import MUTATIONS as SIMULATION
from tests.storage.mistakes import MUTATIONS as STORAGE

CRASHES = ("tests/storage/test_crash.py", "tests/storage/test_damage.py")
TWINS = "tests/storage/test_twin.py"
"""Long when it fails: it looks for the shortest way to that."""
SCHEDULES = "tests/raft/test_random_schedules.py"
SCENES = "tests/simulation/test_scenes.py"
AROUND_THE_CORE = ("replica", "replica_disk", "sessions", "state_machine", "client_session")
LISTS = (
    MistakeList(
        "raft",
        "madkv/raft",
        RAFT,
        (tests("tests/raft", f"--ignore={SCHEDULES}"),),
        search("tests.raft.test_random_schedules", "random schedule"),
    ),
    MistakeList(
        "simulation",
        "madkv",
        SIMULATION,
        (tests(*(f"tests/test_{part}.py" for part in AROUND_THE_CORE), SCENES),),
        search("tests.simulation.search", "simulated seed"),
        searches_always=True,
    ),
    MistakeList(
        "storage",
        "madkv/storage",
        STORAGE,
        (
            tests(*CRASHES),
            tests("tests/storage", *(f"--ignore={file}" for file in (*CRASHES, TWINS))),
            tests(TWINS),
        ),
    ),
)

REQUIRED: dict[str, tuple[str, ...]] = {
    "an entry of an old term committed by counting": ("raft: old-term entry committed by counting",),
    "the scan for what to commit stopped at an entry of an old term": (
        "raft: scan for commit stopped at an old-term entry",
    ),
    "the vote not persisted": (
        "raft: vote not persisted",
        "raft: vote not persisted (unless the term changed)",
    ),
    "the term not persisted": ("raft: term not persisted",),
    "the answer to a Vote sent before it is persisted": ("raft: vote reply before persist",),
    "a follower that acknowledges before its fsync": (
        "raft: follower acks before its fsync",
        "raft: follower acks with the write under way",
    ),
    "a leader that counts itself before its fsync": (
        "raft: leader counts itself before its fsync",
        "raft: leader of one counts itself before its fsync",
    ),
    "commit or match index going back on a reordered reply": (
        "raft: commit index goes back",
        "raft: match index goes back",
    ),
    "a follower that commits beyond the entries just confirmed": (
        "raft: follower commits beyond what was confirmed",
        "raft: heartbeat commits beyond the match index",
    ),
    "truncation without a conflict": (
        "raft: truncation without conflict",
        "raft: truncation of what follows an Append",
    ),
    "no no-op before ReadIndex": (
        "raft: no no-op before ReadIndex (not waited for)",
        "raft: no no-op at election",
    ),
    "the number of a ReadIndex round used again": ("raft: ReadIndex round id reused",),
    "waiting reads kept over a change of the term": ("raft: pending reads kept over a term change",),
    "a read released before it is applied": ("simulation: read released before apply",),
    "a snapshot that drops a suffix of the log that it should keep": (
        "raft: snapshot drops a log suffix it should keep",
        "storage: installing empties the log although it holds the snapshot's last entry",
    ),
    "a snapshot not atomic with log and meta": (
        "storage: snapshot switched on before log and meta",
        "storage: log switched before the snapshot's pairs",
    ),
    "an applied index without the data": (
        "simulation: applied index without data",
        "storage: applied index written without its pairs",
        "storage: applied index written a commit before its pairs",
    ),
    "sessions missing from a snapshot": (
        "simulation: sessions missing from a snapshot",
        "storage: sessions missing from a snapshot",
    ),
    "sessions checked when proposed instead of when applied": (
        "simulation: session check at propose instead of apply",
    ),
    "a retry that is given a new sequence number": ("simulation: retry given a new sequence number",),
    "a write of an unknown session executed": ("simulation: unknown session executed",),
    "a number below the floor executed": ("simulation: number below the floor executed",),
    "ownership checked only when proposed": ("simulation: ownership checked only at propose",),
    "a waiter answered by index without term": ("simulation: waiter answered by index without term",),
    "the end of a persist taken by index without term": (
        "raft: persist completion by index without term",
        "raft: persist completion by index without term or taken index",
    ),
    "a read that joins a round already sent": ("raft: read joined to a round already sent",),
    "the log cut past the applied index on disk": (
        "simulation: log cut as far as it is applied, not as far as the tables go",
        "storage: log cut beyond the durable applied index",
    ),
    "a snapshot's index taken from memory": (
        "simulation: snapshot index taken from memory",
        "storage: snapshot's index taken from memory",
    ),
    "the overlay that is being committed skipped in reads": (
        "simulation: overlay being committed skipped in reads",
        "simulation: overlay being committed skipped in scans",
        "storage: the overlay being committed skipped by Get",
        "storage: the overlay being committed skipped by Scan",
    ),
    "an amnesiac member that votes": (
        "raft: amnesiac member votes",
        "raft: amnesiac member counts",
        "simulation: amnesiac member votes",
    ),
    "a PreVote of a lower term ignored silently": ("raft: PreVote ignores lower terms silently",),
    "a leader that is cut off and never steps down": ("raft: leader cut off never steps down",),
    "LMDB opened with sync=False": ("storage: LMDB with sync off",),
    "LMDB opened with metasync=False": ("storage: LMDB with metasync off",),
}
"""The mistakes that must be caught, as people call them, and the entries of the lists that put them in."""

Entry = tuple[MistakeList, Mistake]


def entries() -> dict[str, Entry]:
    """Every mistake of the lists, by the list's name and its own."""
    return {f"{each.name}: {mistake[0]}": (each, mistake) for each in LISTS for mistake in each.mistakes}


def judged(chosen: Iterable[Entry], progress: Progress) -> Iterator[Verdict]:
    """The verdict on each, in order; as many at a time as there are cores."""
    chosen = list(chosen)
    cores = os.cpu_count() or 1
    done = 0
    with tempfile.TemporaryDirectory(prefix="madkv-mutations-") as directory:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(cores):
            copy = Path(directory) / str(number)
            copy.mkdir()
            copy_project(copy)
            copies.put(copy)
        progress.show("the tests without a mistake")
        for each in {entry[0].name: entry[0] for entry in chosen}.values():
            if failed := each.run_tests(Path(directory) / "0"):
                raise CheckBroken(f"fails without any mistake: {failed}")

        def judge(entry: Entry) -> Verdict:
            nonlocal done
            copy = copies.get()
            try:
                return entry[0].judge(copy, entry[1])
            finally:
                copies.put(copy)
                done += 1
                progress.show(f"{done} of {len(chosen)} mistakes looked at, the last: {entry[1][0]}")

        with ThreadPoolExecutor(cores) as pool:
            yield from pool.map(judge, chosen)


def main() -> int:
    """The command; its exit status."""
    parser = Parser(prog="./justw sim::mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="all mistakes of the lists, not only the required ones")
    parser.add_argument("part", nargs="*", help="only mistakes with one of these in their names")
    options = parser.parse_args()
    by_name = entries()
    titles = {name: title for title, names in REQUIRED.items() for name in names}
    chosen = list(by_name if options.all else titles)
    if options.part:
        chosen = [name for name in chosen if any(p in name or p in titles.get(name, "") for p in options.part)]
    if not chosen:
        parser.error("there is no such mistake")
    began = time.monotonic()
    progress = Progress()
    missed = 0
    title = None
    for name, verdict in zip(chosen, judged((by_name[name] for name in chosen), progress), strict=True):
        progress.clear()
        if titles.get(name) != title:
            title = titles.get(name)
            if title is not None:
                print(title)
        print(f"    {name:<62} | {verdict}", flush=True)
        missed += not verdict.caught_by
    seconds = time.monotonic() - began
    print(f"{len(chosen)} mistakes in {seconds:.0f} s: {f'{missed} NOT CAUGHT' if missed else 'each is caught'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
