"""Crash a store at random points of its life, in every way that a power cut could, and see that nothing is lost.

    ./justw storage::crash IMAGES [seed=SEED] [first=NUMBER]

A process takes a store through a workload (tests/storage/workload.py) while each of its writes and syncs is recorded.
From that recording data files are made as a crash could have left them (tests/storage/recording.py). Each must open,
and hold what had been acknowledged: exactly that, or that and the whole of the step under way. Then it must go on.

Images are numbered; with its seed and number one can be made again. IMAGES_PER_WORKLOAD of them come from one workload,
the next from that of the next seed.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from madkv.errors import MadKVError
from madkv.operate.rows import rows_of
from madkv.storage.batch import Batch
from madkv.storage.check import check_data, check_files
from madkv.storage.directory import DATA_FILE, IDENTITY_FILE
from madkv.testing.ending import complain, run_tool
from madkv.testing.options import Parser, whole
from madkv.testing.preload import NoCompiler
from tests.processes import ROOT
from tests.storage.recording import RECORDING_VARIABLE, Disk, build, environment, events, write_image
from tests.storage.workload import Facts, Workload, differences, facts, take
from tests.storage.writer import open_store

IMAGES_PER_WORKLOAD = 250
STEPS = 400
WRITER_SECONDS_MAX = 120
SHOW_EVERY = 100
FAILURES_SHOWN = 5


class Lost(AssertionError):
    """A store does not hold what was acknowledged."""


def writer_command(directory: Path, seed: int, steps: int, crashed_at: Sequence[int] = ()) -> list[str]:
    """How to start the writer."""
    numbers = map(str, (seed, steps, *crashed_at))
    return [sys.executable, "-m", "tests.storage.writer", str(directory), *numbers]


def record(library: Path, scratch: Path, seed: int, steps: int, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the writer in `scratch`/store, recorded in `scratch`/recording."""
    store, recording = scratch / "store", scratch / "recording"
    more[RECORDING_VARIABLE] = str(recording)
    return subprocess.run(
        writer_command(store, seed, steps),
        cwd=ROOT,
        env=environment(library, store / DATA_FILE, **more),
        capture_output=True,
        text=True,
        timeout=WRITER_SECONDS_MAX,
        check=False,
    )


class Expected:
    """What a store must say after each number of steps, from the last crash on."""

    def __init__(self, seed: int, crashed_at: Sequence[int] = ()) -> None:
        self._workload = Workload(seed)
        self._taken = 0
        for crash in crashed_at:
            while self._taken < crash:
                self._take_one()
            self._workload.crashed()
        self._facts = {self._taken: facts(self._workload.twin)}

    def _take_one(self) -> None:
        self._workload.taken(self._workload.next())
        self._taken += 1

    def after(self, steps: int) -> Facts:
        """After so many."""
        while self._taken < steps:
            self._take_one()
            self._facts[self._taken] = facts(self._workload.twin)
        return self._facts[steps]

    def check(self, found: Facts, acknowledged: int) -> int:
        """How many steps a store took that says this, `acknowledged` or one more. Raises Lost."""
        for steps in (acknowledged, acknowledged + 1):
            if found == self.after(steps):
                return steps
        wrong = differences(found, self.after(acknowledged))
        raise Lost(f"it holds neither the {acknowledged} acknowledged steps nor the one under way: {wrong}")


def check_directory(path: Path, expected: Expected, acknowledged: int) -> int:
    """Look through what a crash left, and open it; how many steps are in it. Raises Lost."""
    check_that_it_is_sound(path)
    try:
        store = open_store(path, sync=False)
        try:
            return expected.check(facts(store), acknowledged)
        finally:
            store.close()
    except MadKVError as error:
        raise Lost(f"after {acknowledged} acknowledged steps: {error}") from None


def check_that_it_is_sound(path: Path) -> None:
    """By what `madkv check` finds in it. Raises Lost."""
    report = check_files(path)
    if report.identity is not None:
        check_data(path, report, rows_of, lambda table, done, total: None)
    if report.damage:
        raise Lost(f"called damaged: {'; '.join(map(str, report.damage.values()))}")


def check_that_it_goes_on(path: Path) -> None:
    """Commit to what a crash left, and find that in it. Raises Lost."""
    try:
        store = open_store(path, sync=False)
        try:
            found = facts(store)
            following = Batch(hard_state=store.hard_state._replace(term=store.hard_state.term + 1))
            take(store, following)
            wrong = differences(facts(store), found | {"hard state": following.hard_state})
        finally:
            store.close()
    except MadKVError as error:
        wrong = str(error)
    if wrong:
        raise Lost(f"it does not go on: {wrong}")


def images(
    recording: Path, seed: int, numbers: range, at_the_end: bool = False
) -> Iterator[tuple[int, int, bytearray, int]]:
    """Image number, steps acknowledged at that point, the file's bytes and its length.

    A point is chosen by the image's own random numbers, so that it is the same one whichever others are made; or all
    are of the recording's end.
    """
    history = list(events(recording))
    begin = next(at for at, event in enumerate(history) if event.type == b"a")
    points: dict[int, list[int]] = {}
    randoms = {number: Random(f"image/{seed}/{number}") for number in numbers}
    for number, random in randoms.items():
        point = random.randrange(begin, len(history))
        points.setdefault(len(history) - 1 if at_the_end else point, []).append(number)
    disk = Disk()
    for at, event in enumerate(history):
        disk.take(event)
        for number in points.get(at, ()):
            assert disk.acknowledged is not None
            image, length = disk.image(randoms[number])
            yield number, disk.acknowledged, image, length


def check_images(scratch: Path, seed: int, numbers: range, at_the_end: bool = False) -> Iterator[tuple[int, str]]:
    """Check images of one recording; for each its number, and what is wrong with it if something is."""
    expected = Expected(seed)
    directory = scratch / "image"
    for number, acknowledged, image, length in images(scratch / "recording", seed, numbers, at_the_end):
        directory.mkdir()
        shutil.copy(scratch / "store" / IDENTITY_FILE, directory)
        write_image(directory / DATA_FILE, image, length)
        try:
            check_directory(directory, expected, acknowledged)
            check_that_it_goes_on(directory)
            yield number, ""
        except Lost as error:
            yield number, str(error)
        shutil.rmtree(directory)


def run(count: int, seed: int, first: int) -> int:
    """The command; its exit status."""
    began, done, failed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="madkv-crash-") as name:
        library = build(Path(name))
        for workload in range(first // IMAGES_PER_WORKLOAD, (first + count - 1) // IMAGES_PER_WORKLOAD + 1):
            begin = workload * IMAGES_PER_WORKLOAD
            numbers = range(max(first, begin), min(first + count, begin + IMAGES_PER_WORKLOAD))
            scratch = Path(name, str(workload))
            scratch.mkdir()
            recorded = record(library, scratch, seed + workload, STEPS)
            if recorded.returncode:
                complain(f"madkv: the writer failed: {recorded.stderr.strip()}")
                return 1
            for number, wrong in check_images(scratch, seed + workload, numbers):
                done += 1
                if wrong:
                    failed += 1
                if wrong and failed <= FAILURES_SHOWN:
                    print(f"image {number}: {wrong}\n  again: ./justw storage::crash 1 seed={seed} first={number}")
                if done % SHOW_EVERY == 0:
                    print(f"{done} of {count} images, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
            shutil.rmtree(scratch)
    verdict = f"{failed} FAILED" if failed else "each holds what was acknowledged"
    print(f"{done} images, seed {seed}: {verdict} ({time.monotonic() - began:.1f} s)")
    return 1 if failed else 0


def main() -> int:
    parser = Parser(prog="./justw storage::crash", description=__doc__.splitlines()[0])
    parser.add_argument("images", type=whole, help="how many data files to make and open")
    parser.add_argument("--seed", type=whole, default=1, help="the workload of the first image (default: %(default)s)")
    parser.add_argument("--first", type=whole, default=0, help="the number of the first image (default: %(default)s)")
    options = parser.parse_args()
    if options.images < 1 or options.first < 0:
        parser.error("there must be at least one image, and they are numbered from 0")
    try:
        return run(options.images, options.seed, options.first)
    except NoCompiler as error:
        complain(f"madkv: {error}")
        return 1


if __name__ == "__main__":
    run_tool("madkv storage::crash", main)
