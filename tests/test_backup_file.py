"""The file of a backup: what is written comes back, and whatever was changed, cut off or put together wrongly shows."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from madkv.errors import MadKVError
from madkv.operate.backup import check_backup
from madkv.operate.backup_file import (
    MAGIC,
    BackupReader,
    BackupWriter,
    Cut,
    DamagedBackup,
    NotABackup,
    Summary,
    gap_in,
    verify,
)
from madkv.ranges import KeyRange
from madkv.wire.codec import Pair

LOW = Cut("s0", (KeyRange(b"", b"k"),), 17, 3, "2026-01-02T03:04:05.678+00:00")
HIGH = Cut("s1", (KeyRange(b"k", b"\xff"), KeyRange(b"\xff", None)), 5, 1, "2026-01-02T03:04:06.000+00:00")
PAIRS: dict[str, list[list[Pair]]] = {
    "s0": [[(b"a", b""), (b"b\0", b"value")], [(b"j", b"x" * 2000)]],
    "s1": [[(b"k", b"1"), (b"\xff", b"2")]],
}


def write(path: Path, cuts: tuple[Cut, ...] = (LOW, HIGH), *, force: bool = False) -> Summary:
    with BackupWriter(path, force=force) as writer:
        writer.begin("c0ffee", 4, "2026-01-02T03:04:05.000+00:00", "0.1.0")
        for cut in cuts:
            writer.begin_group(cut)
            for page in PAIRS[cut.group]:
                writer.page(page)
            writer.end_group()
        return writer.finish()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.backup"


def test_what_is_written_comes_back(path: Path) -> None:
    written = write(path)
    assert verify(path) == written
    assert (written.cluster, written.epoch, written.version, written.pairs) == ("c0ffee", 4, "0.1.0", 5)
    assert [cut for cut, _, _ in written.cuts] == [LOW, HIGH]
    assert list(BackupReader(path).pages()) == [page for pages in PAIRS.values() for page in pages]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name], "nothing else is left"


def test_a_group_that_is_begun_anew(path: Path, tmp_path: Path) -> None:
    """Its leader changed, say: what came before counts no more, and leaves no trace."""
    with BackupWriter(path, force=False) as writer:
        writer.begin("c0ffee", 4, "2026-01-02T03:04:05.000+00:00", "0.1.0")
        for cut in (LOW, HIGH):
            for page in ([(b"c", b"old" * 5000)], [(b"d", b"old")]):
                writer.begin_group(cut)
                writer.page(page)
            writer.begin_group(cut)
            for page in PAIRS[cut.group]:
                writer.page(page)
            writer.end_group()
        writer.finish()
    write(tmp_path / "straight")
    assert path.read_bytes() == (tmp_path / "straight").read_bytes()


def test_every_byte_counts(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(NotABackup if at < len(MAGIC) else DamagedBackup):
            verify(path)
    path.write_bytes(whole)
    verify(path)


def test_a_file_that_is_cut_short_or_goes_on(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(NotABackup if length < len(MAGIC) else DamagedBackup):
            verify(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedBackup, match="something follows its end"):
        verify(path)


def test_parts_of_two_backups(path: Path, tmp_path: Path) -> None:
    """Each part is whole by itself; only the checksum of the whole tells."""
    write(path)
    other = tmp_path / "other"
    with BackupWriter(other, force=False) as writer:
        writer.begin("c0ffee", 4, "2026-01-02T03:04:05.000+00:00", "0.1.1")
        for cut in (LOW, HIGH):
            writer.begin_group(cut)
            for page in PAIRS[cut.group]:
                writer.page(page)
            writer.end_group()
        writer.finish()
    one, two = path.read_bytes(), other.read_bytes()
    assert len(one) == len(two)
    at = one.index(b'{"group": "s1"') - 5
    path.write_bytes(one[:at] + two[at:])
    with pytest.raises(DamagedBackup, match="the checksum of the whole does not fit"):
        verify(path)


def test_groups_that_do_not_own_each_key_once(path: Path) -> None:
    write(path, (LOW,))
    with pytest.raises(DamagedBackup, match="do not own each key once, such as b'k'"):
        verify(path)


def test_a_key_of_another_group(path: Path) -> None:
    with BackupWriter(path, force=False) as writer:
        writer.begin("c0ffee", 4, "", "")
        writer.begin_group(LOW)
        writer.page([(b"z", b"")])
        writer.end_group()
        writer.finish()
    with pytest.raises(DamagedBackup, match="s0 has the key b'z', and does not own it"):
        verify(path)


def test_keys_in_no_order_are_not_written(path: Path) -> None:
    for pages in ([[(b"b", b""), (b"a", b"")]], [[(b"b", b"")], [(b"b", b"")]]):
        with (
            pytest.raises(MadKVError, match="s0 gives its keys in no order"),
            BackupWriter(path, force=False) as writer,
        ):
            writer.begin_group(LOW)
            for page in pages:
                writer.page(page)
    assert os.listdir(path.parent) == []


def test_a_file_of_that_name(path: Path, tmp_path: Path) -> None:
    """It stays as it was, also when the new one comes to nothing."""
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="--force replaces it"):
        write(path)
    with pytest.raises(RuntimeError), BackupWriter(path, force=True) as writer:
        writer.begin_group(LOW)
        raise RuntimeError
    assert path.read_bytes() == b"precious"
    write(path, force=True)
    verify(path)
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        write(tmp_path)
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "not" / "there")


def test_one_that_came_meanwhile(path: Path) -> None:
    with pytest.raises(FileExistsError), BackupWriter(path, force=False) as writer:
        path.write_bytes(b"precious")
        writer.finish()
    assert path.read_bytes() == b"precious"
    assert os.listdir(path.parent) == [path.name]


BEGIN = """
import sys
from pathlib import Path
from madkv.operate.backup_file import BackupWriter

with BackupWriter(Path(sys.argv[1]), force=False) as writer:
    writer.begin("c0ffee", 4, "2026-01-02T03:04:05.000+00:00", "0.1.0")
    writer._file.flush()
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_one_that_is_killed_leaves_nothing(path: Path) -> None:
    """Nobody would look for what it left, and everything would be in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.kill()
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_where_each_file_has_a_name(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.open

    def without_nameless(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", without_nameless)
    for _ in range(2):
        written = write(path, force=True)
        assert verify(path) == written
        assert os.listdir(path.parent) == [path.name]
    with pytest.raises(MadKVError, match="in no order"), BackupWriter(path, force=True) as writer:
        writer.begin_group(LOW)
        writer.page([(b"b", b""), (b"a", b"")])
    assert os.listdir(path.parent) == [path.name]
    assert verify(path) == written


def test_ranges() -> None:
    for ranges, gap in (
        ([KeyRange()], None),
        ([KeyRange(b"k", None), KeyRange(b"", b"k")], None),
        ([], b""),
        ([KeyRange(b"a", None)], b""),
        ([KeyRange(b"", b"k")], b"k"),
        ([KeyRange(b"", b"k"), KeyRange(b"l", None)], b"k"),
        ([KeyRange(b"", b"k"), KeyRange(b"j", None)], b"j"),
        ([KeyRange(), KeyRange(b"j", None)], b"j"),
    ):
        assert gap_in(ranges) == gap, ranges


def test_the_check_of_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path)
    assert check_backup(path) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "backup  of cluster c0ffee, begun at 2026-01-02T03:04:05.000+00:00 with MadKV 0.1.0"
    assert said[1] == f"s0      3 pairs, 2.0 KiB, as of entry 17 of term 3, at {LOW.time}"
    assert said[-1] == f"{path}: sound"
    assert check_backup(path, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sound"], found["pairs"], [each["pairs"] for each in found["groups"]]) == (True, 5, [3, 2])
    assert found["groups"][1]["ranges"] == [["k", "\xff"], ["\xff", None]]

    path.write_bytes(path.read_bytes()[:-1])
    assert check_backup(path) == 1
    assert "is damaged after byte" in capsys.readouterr().out
    assert check_backup(path, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["sound"] is False

    for content, why in ((b"hello", "is no backup of MadKV"), (b"MadKV backup 9\n", "is a backup of another version")):
        path.write_bytes(content)
        assert check_backup(path) == 2
        said = capsys.readouterr()
        assert (said.out, len(said.err.splitlines())) == ("", 1) and why in said.err
