"""A backup as a file: what it is of, the pairs of each group at one point, checksums of every part and of the whole.

Layout. MAGIC, which names the version, then frames: kind (1 byte), length of the body (4 bytes, big-endian), body, and
a CRC-32 of the three. In order: HEAD (JSON: `cluster`, `epoch`, `began`, `version`); for each group GROUP (JSON:
`group`, `ranges`, `index`, `term`, `time`), PAGEs (pairs in key order, as `madkv.wire.codec` encodes them) and
GROUP_END (JSON: `pairs`, `bytes`); END (JSON: `groups`, `pairs`, `sha256` of all bytes before this frame). Keys in JSON
have a character for each byte (Latin-1). Nothing follows END, and without it a file is none.
"""

import errno
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import attrs

from madkv.arguments import check_key, check_value
from madkv.errors import MadKVError
from madkv.limits import MIB, PAGE_BYTES_MAX
from madkv.ranges import KeyRange
from madkv.wire.codec import Pair, decode_pairs, encode_pairs

MAGIC = b"MadKV backup 1\n"
ANY_VERSION = b"MadKV backup "
HEAD, GROUP, PAGE, GROUP_END, END = range(1, 6)
_FRAME = struct.Struct(">BI")
_CRC = struct.Struct(">I")
JSON_BYTES_MAX = 16 * MIB
_DESCRIPTORS = "/proc/self/fd"
"""Where a file that has no name has one for this process."""
MODE = 0o600
"""A backup holds everything: it is its owner's to read."""


class NotABackup(MadKVError):
    """The file is something else, or of another version."""


class DamagedBackup(MadKVError):
    """The file was a backup, and what is in it is not what was written."""


@attrs.frozen
class Cut:
    """What one group's pairs are of: all that was applied up to a log entry."""

    group: str
    ranges: tuple[KeyRange, ...]
    """Those that the group owned then."""
    index: int
    term: int
    time: str
    """When it was taken, ISO 8601."""


@attrs.define
class Summary:
    """What a whole file holds; `cuts` with the number of pairs of each, and of bytes of keys and values."""

    cluster: str = ""
    epoch: int = 0
    began: str = ""
    version: str = ""
    cuts: list[tuple[Cut, int, int]] = attrs.Factory(list)
    sha256: str = ""

    @property
    def pairs(self) -> int:
        """Of all groups."""
        return sum(pairs for _, pairs, _ in self.cuts)

    @property
    def data_bytes(self) -> int:
        """Of all keys and values."""
        return sum(size for _, _, size in self.cuts)


def gap_in(ranges: Sequence[KeyRange]) -> bytes | None:
    """The first key that none of these ranges holds, or that two hold; None when each key is in one."""
    at: bytes | None = b""
    for each in sorted(ranges):
        if at is None or each.start != at:
            return each.start if at is None else min(at, each.start)
        at = each.end
    return at


# --- Writing ----------------------------------------------------------------------------------------------------------


class BackupWriter:
    """A file that has no name until it is whole and on the disk. Used in a `with`: it is whole or not there, also when
    the process is killed.

    A group that has begun is abandoned by beginning it anew.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        """Raises OSError, FileExistsError also when there is a file and `force` does not say to replace it."""
        self._path = path
        self._force = force
        self._check_absent()
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        descriptor = _without_a_name(path.parent)
        self._is_nameless = descriptor is not None
        if descriptor is None:  # One that is killed leaves it behind.
            descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE)
        self._file: BinaryIO = os.fdopen(descriptor, "wb")
        self._digest = hashlib.sha256()
        self._summary = Summary()
        self._cut: Cut | None = None
        self._group_began = 0, self._digest
        self._pairs = self._bytes = 0
        self._last_key = b""
        self._write(MAGIC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)  # it has another name by now if all went well

    def begin(self, cluster: str, epoch: int, began: str, version: str) -> None:
        """Say what the file is of."""
        self._summary = Summary(cluster, epoch, began, version)
        self._json(HEAD, {"cluster": cluster, "epoch": epoch, "began": began, "version": version})

    def begin_group(self, cut: Cut) -> None:
        """Say of what the next pages are; what came of a group that was not ended is dropped."""
        if self._cut is None:
            self._file.flush()
            self._group_began = self._file.tell(), self._digest.copy()
        else:
            at, digest = self._group_began
            self._file.seek(at)
            self._file.truncate()
            self._digest = digest.copy()
        self._cut, self._pairs, self._bytes, self._last_key = cut, 0, 0, b""
        ranges = [[_text(each.start), None if each.end is None else _text(each.end)] for each in cut.ranges]
        named = {"group": cut.group, "ranges": ranges, "index": cut.index, "term": cut.term, "time": cut.time}
        self._json(GROUP, named)

    def page(self, pairs: Sequence[Pair]) -> None:
        """Add pairs, which follow those before in key order. Raises MadKVError when they do not."""
        if not pairs:
            return
        keys = [key for key, _ in pairs]
        if any(one >= other for one, other in zip([self._last_key, *keys], keys, strict=False)):
            raise MadKVError(f"{self._cut and self._cut.group} gives its keys in no order, near {keys[0][:40]!r}")
        self._last_key = keys[-1]
        self._pairs += len(pairs)
        self._bytes += sum([len(key) + len(value) for key, value in pairs])
        self._frame(PAGE, encode_pairs(list(pairs)))

    @property
    def so_far(self) -> tuple[int, int]:
        """Pairs of the present group, and the bytes of their keys and values."""
        return self._pairs, self._bytes

    def end_group(self) -> None:
        """The group is whole."""
        assert self._cut is not None
        self._json(GROUP_END, {"pairs": self._pairs, "bytes": self._bytes})
        self._summary.cuts.append((self._cut, self._pairs, self._bytes))
        self._cut = None

    def finish(self) -> Summary:
        """Have the whole on the disk, and then under its name; what it holds. Raises OSError."""
        summary = self._summary
        assert self._cut is None
        summary.sha256 = self._digest.hexdigest()
        self._json(END, {"groups": len(summary.cuts), "pairs": summary.pairs, "sha256": summary.sha256})
        self._file.flush()
        os.fsync(self._file.fileno())
        self._check_absent()  # somebody else may have been quicker
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._is_nameless:
                self._partial.unlink(missing_ok=True)
                # (Python follows the link to the file only where a directory is named.)
                os.link(f"{_DESCRIPTORS}/{self._file.fileno()}", self._partial, src_dir_fd=directory)
            self._partial.rename(self._path)
            os.fsync(directory)
        finally:
            os.close(directory)
        return summary

    def _check_absent(self) -> None:
        if self._path.is_dir():
            raise IsADirectoryError(f"{self._path} is a directory: name a file in it")
        if not self._force and self._path.exists():
            raise FileExistsError(f"{self._path} is there already; --force replaces it")

    def _json(self, kind: int, facts: Mapping[str, Any]) -> None:
        self._frame(kind, json.dumps(facts).encode())

    def _frame(self, kind: int, body: bytes) -> None:
        head = _FRAME.pack(kind, len(body))
        self._write(head + body + _CRC.pack(zlib.crc32(body, zlib.crc32(head))))

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


def _without_a_name(directory: Path) -> int | None:
    """A descriptor of a new file in a directory that goes with the process, unless it gets a name; None where the
    system or the file system has none such."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir(_DESCRIPTORS):
        return None
    try:
        return os.open(directory, os.O_WRONLY | os.O_TMPFILE, MODE)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise


# --- Reading ----------------------------------------------------------------------------------------------------------


def verify(path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Summary:
    """Read all of a file, and hold it against its checksums, order and ranges; what it holds.

    `progress` is told how many bytes were read, of how many. Raises NotABackup, DamagedBackup, OSError.
    """
    reader = BackupReader(path)
    total = path.stat().st_size
    for _ in reader.pages():
        progress(reader.position, total)
    return reader.summary


class BackupReader:
    """A file from its beginning to its end, once. `summary` is what it holds, as far as it was read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.summary = Summary()
        self.position = 0
        """Bytes read."""

    def pages(self) -> Iterator[list[Pair]]:
        """All pairs, a page at a time. Raises NotABackup, DamagedBackup, OSError; only after the last page it is known
        that the whole is sound."""
        with self._path.open("rb") as file:
            beginning = file.read(len(MAGIC))
            if beginning != MAGIC:
                if beginning.startswith(ANY_VERSION):
                    raise NotABackup(f"{self._path} is a backup of another version: {beginning[:40]!r}")
                raise NotABackup(f"{self._path} is no backup of MadKV")
            self.position = len(MAGIC)
            digest = hashlib.sha256(MAGIC)
            try:
                yield from self._groups(file, digest)
            except (ValueError, KeyError, TypeError, MadKVError) as error:
                if isinstance(error, DamagedBackup):
                    raise
                raise self._damaged(str(error)) from None

    def _groups(self, file: BinaryIO, digest: Any) -> Iterator[list[Pair]]:
        summary = self.summary
        head = self._json(file, digest, HEAD)
        summary.cluster, summary.epoch = str(head["cluster"]), int(head["epoch"])
        summary.began, summary.version = str(head["began"]), str(head["version"])
        while True:
            before = digest.hexdigest()
            kind, body = self._frame(file, digest)
            if kind == END:
                break
            if kind != GROUP:
                raise self._damaged("what should be a group is none")
            yield from self._group(file, digest, _object(body))
        end = _object(body)
        if end["sha256"] != before:
            raise self._damaged("the checksum of the whole does not fit")
        if (end["groups"], end["pairs"]) != (len(summary.cuts), summary.pairs):
            raise self._damaged(f"it holds {summary.pairs:,} pairs, and should hold {end['pairs']:,}")
        if file.read(1):
            raise self._damaged("something follows its end")
        gap = gap_in([each for cut, _, _ in summary.cuts for each in cut.ranges])
        if gap is not None:
            raise self._damaged(f"its groups do not own each key once, such as {gap[:40]!r}")
        summary.sha256 = before

    def _group(self, file: BinaryIO, digest: Any, named: dict[str, Any]) -> Iterator[list[Pair]]:
        ranges = tuple(
            KeyRange(start.encode("latin-1"), None if end is None else end.encode("latin-1"))
            for start, end in named["ranges"]
        )
        cut = Cut(str(named["group"]), ranges, int(named["index"]), int(named["term"]), str(named["time"]))
        count = size = at = 0
        last_key = b""
        while True:
            kind, body = self._frame(file, digest)
            if kind != PAGE:
                break
            pairs = decode_pairs(body)
            for key, value in pairs:
                check_key(key)
                check_value(value)
                if key <= last_key:
                    raise self._damaged(f"the keys of {cut.group} are in no order, near {key[:40]!r}")
                last_key = key
                while at < len(ranges) and key not in ranges[at]:
                    at += 1  # both are in order
                if at == len(ranges):
                    raise self._damaged(f"{cut.group} has the key {key[:40]!r}, and does not own it")
                size += len(key) + len(value)
            count += len(pairs)
            yield pairs
        if kind != GROUP_END:
            raise self._damaged(f"{cut.group} has no end")
        end = _object(body)
        if (end["pairs"], end["bytes"]) != (count, size):
            raise self._damaged(f"{cut.group} has {count:,} pairs, and should have {end['pairs']:,}")
        self.summary.cuts.append((cut, count, size))

    def _json(self, file: BinaryIO, digest: Any, wanted: int) -> dict[str, Any]:
        kind, body = self._frame(file, digest)
        if kind != wanted:
            raise self._damaged("it does not begin as a backup does")
        return _object(body)

    def _frame(self, file: BinaryIO, digest: Any) -> tuple[int, bytes]:
        head = self._exactly(file, _FRAME.size)
        kind, length = _FRAME.unpack(head)
        if length > (PAGE_BYTES_MAX if kind == PAGE else JSON_BYTES_MAX):
            raise self._damaged(f"a part of {length:,} bytes")
        body = self._exactly(file, length)
        crc = self._exactly(file, _CRC.size)
        if _CRC.unpack(crc)[0] != zlib.crc32(body, zlib.crc32(head)):
            raise self._damaged("a checksum does not fit")
        digest.update(head + body + crc)
        self.position += len(head) + len(body) + len(crc)
        return kind, body

    def _exactly(self, file: BinaryIO, count: int) -> bytes:
        data = file.read(count)
        if len(data) < count:
            raise self._damaged("it is cut short, or was never finished")
        return data

    def _damaged(self, why: str) -> DamagedBackup:
        return DamagedBackup(f"{self._path} is damaged after byte {self.position:,}: {why}")


def _object(body: bytes) -> dict[str, Any]:
    facts = json.loads(body)
    if not isinstance(facts, dict):
        raise ValueError("a part that should be an object is none")
    return facts


def _text(key: bytes) -> str:
    return key.decode("latin-1")
