"""What a process did to its data file, and the files that a crash could have left of it.

Theory. What was synced is on the disk. Of what was written since, the system may have written any page back and any
not, each as it stood at some moment since the sync; and a page that was being written when the power went may be old in
some sectors and new in others, but a sector is written whole (LMDB relies on that: what it writes of the page that says
what is in force lies in one). The file's length may be the synced one or any since.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import attrs

from madkv.testing import preload

RECORDING_VARIABLE = "MADKV_RECORDING"
PAGE_BYTES = 4096
SECTOR_BYTES = 512
_EVENT = struct.Struct("<cBQQ")
_ACKNOWLEDGED = b"a"
_SOURCE = Path(__file__).with_name("recorder.c")


def build(directory: Path) -> Path:
    """Build the recorder into a directory. Raises NoCompiler."""
    return preload.build(_SOURCE, directory)


def environment(library: Path, data_file: Path, **more: str) -> dict[str, str]:
    """The environment of a process that is recorded, or fails."""
    return os.environ | {"LD_PRELOAD": str(library), "MADKV_DATA_FILE": str(data_file)} | more


def acknowledgement(count: int) -> bytes:
    """What the process itself puts into the recording: `count` steps are acknowledged."""
    return _EVENT.pack(_ACKNOWLEDGED, 0, count, 0)


@attrs.frozen
class Event:
    """One record; see recorder.c. `at` is an offset, a length or a number of acknowledged steps."""

    type: bytes
    durable: bool
    at: int
    data: bytes


def events(path: Path) -> Iterator[Event]:
    """All records, in the order in which they happened."""
    with open(path, "rb") as file:
        while head := file.read(_EVENT.size):
            kind, durable, at, length = _EVENT.unpack(head)
            yield Event(kind, bool(durable), at, file.read(length))


class Disk:
    """The data file as it is on the disk for certain, and what was written to it since the last sync."""

    def __init__(self) -> None:
        self.synced = bytearray()
        """Up to the last byte that is not a hole."""
        self.lengths = [0]
        """That of the file when it was synced, and those since."""
        self.unsynced: dict[int, list[bytes]] = {}
        """Page number -> the page as it stood after each write since the last sync."""
        self.acknowledged: int | None = None

    def take(self, event: Event) -> None:
        """Something happened."""
        match event.type:
            case b"w":
                self._write(event)
            case b"t":
                self.lengths.append(event.at)
            case b"s":
                self._sync(list(self.unsynced))
                self.lengths = self.lengths[-1:]
            case b"a":
                self.acknowledged = event.at
            case kind:
                raise AssertionError(f"writes that the recorder does not see: {kind!r}")

    def _write(self, event: Event) -> None:
        end = event.at + len(event.data)
        first, last = event.at // PAGE_BYTES, (end - 1) // PAGE_BYTES
        for number in range(first, last + 1):
            page = bytearray(self._page(number))
            begin = max(event.at, number * PAGE_BYTES)
            part = event.data[begin - event.at : (number + 1) * PAGE_BYTES - event.at]
            at = begin - number * PAGE_BYTES
            page[at : at + len(part)] = part
            self.unsynced.setdefault(number, []).append(bytes(page))
        if end > self.lengths[-1]:
            self.lengths.append(end)
        if event.durable:  # it alone, and what the file's length must be for it
            self._sync(range(first, last + 1))
            self.lengths = [length for length in self.lengths if length >= end]

    def _sync(self, pages: Sequence[int]) -> None:
        for number in pages:
            end = (number + 1) * PAGE_BYTES
            if len(self.synced) < end:
                self.synced.extend(bytes(end - len(self.synced)))
            self.synced[end - PAGE_BYTES : end] = self.unsynced.pop(number)[-1]

    def _page(self, number: int) -> bytes:
        if versions := self.unsynced.get(number):
            return versions[-1]
        return bytes(self.synced[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]).ljust(PAGE_BYTES, b"\0")

    def image(self, random: Random) -> tuple[bytearray, int]:
        """One of the files that a crash now could leave: its bytes up to a hole at its end, and its length."""
        image = bytearray(self.synced)
        kept, torn = random.choice((0.0, 0.1, 0.5, 0.9, 1.0)), random.choice((0.0, 0.0, 0.3))
        for number, versions in self.unsynced.items():
            if random.random() >= kept:
                continue
            begin, end = number * PAGE_BYTES, (number + 1) * PAGE_BYTES
            if len(image) < end:
                image.extend(bytes(end - len(image)))
            page = random.choice(versions)
            for at in range(0, PAGE_BYTES, SECTOR_BYTES):
                if random.random() >= torn:
                    image[begin + at : begin + at + SECTOR_BYTES] = page[at : at + SECTOR_BYTES]
        length = random.choice(self.lengths)
        del image[length:]
        return image, length


def write_image(path: Path, image: bytes | bytearray, length: int) -> None:
    """Make it a file."""
    with open(path, "wb") as file:
        file.write(image)
        file.truncate(length)
