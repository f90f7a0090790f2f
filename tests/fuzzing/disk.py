"""Targets for what is read off a disk: records under their checksums, the identity file, LMDB's own pages."""

import atexit
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

from madkv.raft.configuration import DISK_ID_BYTES, Configuration
from madkv.raft.messages import Entry, EntryKind, HardState
from madkv.storage import records
from madkv.storage.batch import Batch
from madkv.storage.directory import DATA_FILE, Identity, WrongDirectory, whole_disk_id
from madkv.storage.index import LogIndex
from madkv.storage.pages import _FREE_TREE_AT, _LAST_PAGE_AT, Pages, commits
from tests.fuzzing.draw import refused
from tests.storage.stores import commit, entries, entry, opened


def stored_records(data: bytes) -> None:
    """Records of the log and about the whole, damaged and under a checksum that fits; and a log index made of them."""
    key, content = data[:8], data[8:]
    refused(records.Damaged, lambda: records.unseal(key, content))
    assert records.unseal(key, records.seal(key, content)) == content
    refused(records.Damaged, lambda: records.decode_entry(key, content))
    entry = refused(records.Damaged, lambda: records.decode_entry(key, records.seal(key, content)))
    if entry is not None:
        assert records.encode_entry(entry) == records.seal(key, content)
        assert records.index_key(records.index_of(key)) == key
        _index(entry)
    state = refused(records.Damaged, lambda: records.decode_hard_state(content))
    assert state is None or records.encode_hard_state(state) == content
    meta = refused(records.Damaged, lambda: records.decode_meta(content))
    assert meta is None or records.encode_meta(meta) == content


def _index(entry: Entry) -> None:
    index = LogIndex(entry.index - 1, 0, Configuration(frozenset()))
    if refused(ValueError, lambda: index.append(entry) or True):
        assert (index.last_index, index.term_of(entry.index)) == (entry.index, entry.term)
        assert len(index.configurations) == 1 + (entry.kind is EntryKind.CONFIGURATION)


def identity(data: bytes) -> None:
    """IDENTITY and CREATING, which people can edit."""
    text = data.decode("utf-8", "surrogateescape")
    found = refused((ValueError, WrongDirectory), lambda: Identity.from_json(text))
    if found is not None:
        assert len(found.disk) == DISK_ID_BYTES
        assert Identity.from_json(found.to_json()) == found
        (found.cluster + found.node).encode()
    disk = whole_disk_id(text)
    assert disk is None or len(disk) == DISK_ID_BYTES


# --- LMDB's pages -----------------------------------------------------------------------------------------------------

_PAGE_BYTES = 4096
_FIELDS = struct.Struct(">BHB")  # page, where in it, how many bytes


@cache
def _image() -> bytes:
    """A small data file with branches, long values, a list of free pages and a table that is not in force."""
    with tempfile.TemporaryDirectory(prefix="madkv-fuzz-") as name:
        store = opened(f"{name}/store")
        pairs = {b"%03d" % number: b"v" * 100 for number in range(100)} | {b"long": b"v" * 10_000}
        commit(store, Batch(HardState(1), (*entries(1, 60), entry(61, payload=b"e" * 9000)), pairs, {b"t": b"0"}, 50))
        commit(store, Batch(None, entries(62, 70), dict.fromkeys(list(pairs)[::3]), {}, 60))
        used = store.used_bytes
        store.close()
        return Path(name, "store", DATA_FILE).read_bytes()[:used]


@cache
def _scratch() -> Path:
    """A file in memory, for this process alone."""
    memory = Path("/dev/shm")
    directory = tempfile.mkdtemp(prefix="madkv-fuzz-", dir=memory if memory.is_dir() else None)
    atexit.register(shutil.rmtree, directory)
    return Path(directory, DATA_FILE)


def pages(data: bytes) -> None:
    """A data file of LMDB's with some bytes changed: its pages are looked through, whatever they say."""
    image, is_same = bytearray(_image()), True
    for at in range(0, len(data) - _FIELDS.size, _FIELDS.size + 8):
        page, offset, count = _FIELDS.unpack_from(data, at)
        place = page * _PAGE_BYTES % len(image) + offset % _PAGE_BYTES
        new = data[at + _FIELDS.size : at + _FIELDS.size + 1 + count % 8]
        is_same = is_same and image[place : place + len(new)] == new
        image[place : place + len(new)] = new
    data_file = _scratch()
    data_file.write_bytes(image)
    (page_bytes,) = struct.unpack_from("=I", image, _FREE_TREE_AT)
    last_pages = [struct.unpack_from("=Q", image, at + _LAST_PAGE_AT)[0] for at in (0, min(page_bytes, _PAGE_BYTES))]
    if (max(last_pages) + 1) * page_bytes > len(image):
        return  # `check_data` finds that out first, and does not look at pages
    damage: list[str] = []
    try:
        numbers = commits(data_file)
        Pages(data_file, lambda what, where: damage.append(f"{what}: {where}"), lambda done, total: None).walk()
    except struct.error:
        assert not is_same
        return
    assert not is_same or (not damage and abs(numbers[0] - numbers[1]) == 1)
    assert all("\n" not in line for line in damage)
