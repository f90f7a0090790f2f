"""Power cuts and kills: what was acknowledged is there afterwards, and no half of what was not."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

import pytest

from madkv.storage.batch import Batch
from madkv.storage.directory import DATA_FILE
from madkv.storage.twin import TwinDisk, TwinStorage
from madkv.testing.preload import NoCompiler
from tests.storage import crash, kill
from tests.storage.crash import Expected, Lost, check_images, record
from tests.storage.recording import Disk, Event, build, events
from tests.storage.workload import FIRST_CONFIGURATION, Piece, Workload, differences, facts, take
from tests.storage.writer import MISTAKE_VARIABLE

IMAGES = 400
KILLS = 6
TWIN_CRASHES = 100


@pytest.fixture(scope="module")
def recorder() -> Iterator[Path]:
    """The recorder, built."""
    with tempfile.TemporaryDirectory(prefix="madkv-recorder-") as name:
        try:
            yield build(Path(name))
        except NoCompiler as error:
            pytest.skip(str(error))


def test_every_crash_leaves_what_was_acknowledged(recorder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = crash.run(IMAGES, seed=1, first=0)
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("mistake", ["sync", "metasync"])
def test_a_store_that_syncs_too_little_is_caught(recorder: Path, tmp_path: Path, mistake: str) -> None:
    """What LMDB calls sync and metasync being off: nothing is synced, or not the page that says what is in force."""
    assert record(recorder, tmp_path, 1, 60, **{MISTAKE_VARIABLE: mistake}).returncode == 0
    assert any(wrong for _, wrong in check_images(tmp_path, 1, range(40)))


def test_the_recording_holds_everything_that_is_in_the_file(recorder: Path, tmp_path: Path) -> None:
    """Else images would be made of less than what was written: the last one without a crash is the file itself."""
    assert record(recorder, tmp_path, 2, 80).returncode == 0
    disk = Disk()
    for event in events(tmp_path / "recording"):
        disk.take(event)
    assert disk.unsynced == {}
    data = (tmp_path / "store" / DATA_FILE).read_bytes()
    assert data == bytes(disk.synced).ljust(len(data), b"\0")
    assert disk.lengths == [len(data)]


def test_an_image_can_be_made_again(recorder: Path, tmp_path: Path) -> None:
    assert record(recorder, tmp_path, 1, 60).returncode == 0
    all_of_them = {number: found for number, *found in crash.images(tmp_path / "recording", 1, range(20))}
    for number in (3, 17):
        ((_, *found),) = crash.images(tmp_path / "recording", 1, range(number, number + 1))
        assert found == all_of_them[number]


def test_a_disk_keeps_what_was_synced_and_any_of_the_rest() -> None:
    disk = Disk()
    old, new, last = (bytes([value]) * 4096 for value in b"onl")
    for event in (
        Event(b"w", False, 0, old + old),
        Event(b"s", False, 0, b""),
        Event(b"w", False, 0, new),
        Event(b"w", False, 0, last),
        Event(b"w", True, 4096 + 100, b"meta"),
        Event(b"t", False, 5 * 4096, b""),
    ):
        disk.take(event)
    images = [disk.image(Random(seed)) for seed in range(200)]
    assert {length for _, length in images} == {2 * 4096, 5 * 4096}
    second = old[:100] + b"meta" + old[104:]
    assert {bytes(image[4096:8192]) for image, _ in images} == {second}
    sectors = {bytes(image[at : at + 512]) for image, _ in images for at in range(0, 4096, 512)}
    assert sectors == {page[:512] for page in (old, new, last)}
    assert any(len(set(image[:4096])) > 1 for image, _ in images), "some are torn"


def test_no_mapped_writes_go_unseen() -> None:
    with pytest.raises(AssertionError, match="writes that the recorder does not see"):
        Disk().take(Event(b"m", False, 0, b""))


def test_without_a_compiler_the_command_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with mock.patch("madkv.testing.preload.compiler", lambda: None), mock.patch("sys.argv", ["crash", "1"]):
        assert crash.main() == 1
    assert capfd.readouterr().err == "madkv: no C compiler (cc, gcc or clang) found: recorder.c cannot be built\n"


def test_a_killed_writer_leaves_what_it_acknowledged() -> None:
    reached = list(kill.rounds(seed=1, count=KILLS))
    assert len(reached) == KILLS and reached == sorted(reached)
    assert reached[-1] > 0


def test_a_writer_that_ends_by_itself_is_no_kill(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("years of work")
    with pytest.raises(Lost, match=r"ended by itself: madkv: .*/store holds thesis.tex but no IDENTITY"):
        kill.kill_once(tmp_path / "store", 1, [], 5)


def test_the_twin_holds_after_a_crash_what_was_written() -> None:
    """Crashes of the store in memory at random points of the same life, against one that never crashes."""
    workload, store = Workload(4), TwinStorage(TwinDisk(), FIRST_CONFIGURATION)
    random = Random(4)
    for _ in range(TWIN_CRASHES):
        for _ in range(random.randrange(12)):
            step = workload.next()
            take(store, step)
            workload.taken(step)
        expected = facts(store)
        if random.random() < 0.5:
            step = workload.next()
            if not isinstance(step, Piece):
                if isinstance(step, Batch):
                    store.write(step)  # done, and not taken over
                else:
                    store.install(step)
                workload.taken(step)
                expected = facts(workload.twin)
        store = store.crash()
        workload.crashed()
        assert differences(facts(store), expected) == ""


@pytest.mark.parametrize("writes", ["lost", "kept"])
@pytest.mark.parametrize("nth", [40, 41])
def test_after_a_failed_sync_nothing_is_acknowledged(recorder: Path, tmp_path: Path, nth: int, writes: str) -> None:
    """The n-th sync fails: that of the pages, or that of the page that says what is in force. The process stops; on
    the disk, and in whatever a crash then leaves, is what was acknowledged."""
    more = {"MADKV_FAIL_SYNC": str(nth)} | ({"MADKV_FAIL_WRITES": "1"} if writes == "kept" else {})
    done = record(recorder, tmp_path, 6, 1000, **more)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "a commit failed: mdb_txn_commit: Input/output error" in line
    history = list(events(tmp_path / "recording"))
    assert sum(event.type == b"s" or event.durable for event in history) == nth - 1, "and no sync after it"
    acknowledged = int(done.stdout.split()[-1])
    assert acknowledged > 5
    last = max(at for at, event in enumerate(history) if event.type == b"s" or event.durable)
    assert [event.type for event in history[last:]].count(b"a") <= 1, "nothing of that commit"
    assert {wrong for _, wrong in check_images(tmp_path, 6, range(20), at_the_end=True)} == {""}
    crash.check_directory(tmp_path / "store", Expected(6), acknowledged)
    crash.check_that_it_goes_on(tmp_path / "store")


@pytest.mark.parametrize("nth", [1, 2, 7, 12])
def test_a_failed_sync_while_a_store_is_made(recorder: Path, tmp_path: Path, nth: int) -> None:
    done = record(recorder, tmp_path, 6, 1000, MADKV_FAIL_SYNC=str(nth))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert "Input/output error" in done.stderr
    os.unlink(tmp_path / "recording")
    again = record(recorder, tmp_path, 6, 3)
    assert (again.returncode, again.stdout.split()) == (0, ["0", "1", "2", "3"])
