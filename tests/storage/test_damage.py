"""A disk that is full or has changed what was written: refused or stopped with one clear line, nothing lost."""

import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from madkv.storage import durable
from madkv.storage.batch import Batch
from madkv.storage.directory import DATA_FILE
from madkv.storage.records import Damaged, encode_entry, index_key
from tests.processes import ROOT
from tests.storage.crash import Expected, check_directory, check_that_it_goes_on, writer_command
from tests.storage.recording import PAGE_BYTES
from tests.storage.stores import commit, entries, entry, opened, pieces_of

FLIPS = 150
PAGE_HEAD = struct.Struct("=QHHH")  # LMDB's: number, padding, flags, where the list of its records ends
LEAF = 2
LOOKED_AT_BYTES = 1 << 20
FILE_BYTES_MAX = 1_200_000
"""Above the length at which a store begins, below that to which it grows."""


def in_a_namespace() -> list[str] | None:
    """How to start a process that may mount what only it sees, None where the machine does not allow that."""
    for unshare in (["unshare", "-m"], ["unshare", "-U", "-r", "-m"]):
        try:
            if subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0:
                return unshare
        except FileNotFoundError:
            pass
    return None


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one, with a filesystem of its own; also opened and made anew on it."""
    unshare = in_a_namespace()
    if unshare is None:
        pytest.skip("this machine lets nobody mount a filesystem of their own; see test_a_file_that_may_not_grow")
    command = [*unshare, sys.executable, "-m", "tests.storage.full_disk", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written, _, without, new, *too_small, after = done.stdout.splitlines()
    assert re.search(r"status 1, [0-9]+ acknowledged, said 'madkv: .* a commit failed: .* 0 bytes free\)'$", written)
    assert without.endswith("lock.mdb cannot be made: No space left on device (its disk has 0 bytes free)")
    assert re.search(r"cannot use the directory \S+/new: No space left on device$", new)
    for line in too_small:
        assert re.search(r" cannot be made: .* \(its disk has [0-9,]+ bytes free\)$", line), line
    assert len(too_small) == 3
    assert after.endswith("and goes on")


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """A limit on the file's size stands in for the disk's, where no filesystem may be mounted."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))

    store = tmp_path / "store"
    command = writer_command(store, 2, 100_000)
    done = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"madkv: .* a commit failed: .*File too large.*\n", done.stderr)
    check_directory(store, Expected(2), int(done.stdout.split()[-1]))
    check_that_it_goes_on(store)


def test_flipped_bits_are_never_taken_for_data() -> None:
    """Wherever they are, what is read is right, or is refused, or the process ends."""
    command = [sys.executable, "-m", "tests.storage.flips", str(FLIPS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"(\w+)=([0-9]+)", done.stdout))
    assert int(counts["same"]) > FLIPS / 4 and int(counts["refused"]) > FLIPS / 4


def lose_last_record(data_file: Path, record: bytes) -> None:
    """In each leaf page that has this record, LMDB finds one record less than there were."""
    with open(data_file, "rb") as file:
        data = bytearray(file.read(LOOKED_AT_BYTES))
    for page in range(0, len(data), PAGE_BYTES):
        _, _, flags, lower = PAGE_HEAD.unpack_from(data, page)
        if flags & LEAF and record in data[page : page + PAGE_BYTES]:
            PAGE_HEAD.pack_into(data, page, *PAGE_HEAD.unpack_from(data, page)[:3], lower - 2)
    with open(data_file, "r+b") as file:
        file.write(data)


def test_a_page_that_has_lost_records_is_noticed(tmp_path: Path) -> None:
    """LMDB's pages have no checksums. A shorter log would be acknowledged entries lost, a shorter snapshot would be
    handed on; both are counted. A single Get cannot know."""
    for record in (b"e9.1", b"v9", b"s9"):
        path = tmp_path / record.decode()
        store = opened(str(path))
        tables = ({b"k%d" % n: b"v%d" % n for n in range(10)}, {b"k%d" % n: b"s%d" % n for n in range(10)})
        commit(store, Batch(None, entries(1, 9), *tables, 1))
        store.close()
        lose_last_record(path / DATA_FILE, record)
        if record == b"e9.1":
            with pytest.raises(Damaged, match="the log has lost a part: it ends at entry 8"):
                opened(str(path))
            continue
        store = opened(str(path))
        with pytest.raises(Damaged, match="a table has lost a part"):
            pieces_of(store.open_snapshot())
        if record == b"s9":
            with pytest.raises(Damaged, match="a table has lost a part"):
                store.sessions()
        store.close()


@pytest.mark.parametrize(
    ("key", "record", "line"),
    [
        (5, None, "the log jumps from entry 4 to 6"),
        (5, encode_entry(entry(5, term=0)), "the log's terms go back at entry 5"),
        (1, None, "the log jumps from entry 0 to 2"),
        (9, None, "the data goes up to entry 9, the log from 0 to 8"),
    ],
)
def test_a_log_that_does_not_fit_together(tmp_path: Path, key: int, record: bytes | None, line: str) -> None:
    """Each record whole, as bugs might leave it."""
    store = opened(str(tmp_path / "store"))
    commit(store, Batch(entries=entries(1, 9), applied_index=9))
    with store._env.begin(write=True) as txn:
        if record is None:
            txn.delete(index_key(key), db=store._log_table)
        else:
            txn.put(index_key(key), record, db=store._log_table)
    store.close()
    with pytest.raises(Damaged, match=line):
        opened(str(tmp_path / "store"))


def test_the_table_of_readers_is_as_large_as_is_reserved_for_it(tmp_path: Path) -> None:
    opened(str(tmp_path / "store")).close()
    (tmp_path / "store" / durable.READERS_FILE).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "_reserve", lambda path, size: None)
        opened(str(tmp_path / "store")).close()
    assert (tmp_path / "store" / durable.READERS_FILE).stat().st_size == durable.READERS_BYTES
