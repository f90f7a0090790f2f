"""How things stand on disk: fixed layouts with a checksum in front, so that a damaged record is never taken for data.

A checksum covers the record's key too: a record that was moved is damaged as well.
"""

import struct
import zlib

import attrs

from madkv.errors import MadKVError
from madkv.raft.configuration import DISK_ID_BYTES, Configuration, Member
from madkv.raft.messages import Entry, EntryKind, HardState

_CHECKSUM = struct.Struct(">I")
CHECKSUM_BYTES = _CHECKSUM.size
_INDEX = struct.Struct(">Q")
_ENTRY = struct.Struct(">QB")  # term, kind
_VOTED_AT = 8
_NOBODY = Configuration(frozenset())
_HARD_STATE = struct.Struct(">QBH")  # term, whether a vote was given, the replica it went to
_META = struct.Struct(
    ">QQQBBH"
)  # snapshot index, term, applied index, generation, that of the log, length of what follows


class Damaged(MadKVError):
    """What is on disk is not what was written there."""


@attrs.frozen
class Meta:
    """What one commit says about the whole: it is written together with what it speaks of.

    `generation` names the tables that hold pairs and sessions, `log_generation` the log's; both are 0 or 1. Pairs and
    sessions go as far as `applied_index`, where `applied_configuration` held. The log begins after `snapshot_index`,
    where `configuration` held.
    """

    snapshot_index: int = 0
    snapshot_term: int = 0
    applied_index: int = 0
    generation: int = 0
    log_generation: int = 0
    configuration: Configuration = _NOBODY
    applied_configuration: Configuration = _NOBODY


def seal(key: bytes, data: bytes) -> bytes:
    """A record as it is stored."""
    return _CHECKSUM.pack(zlib.crc32(data, zlib.crc32(key))) + data


def unseal(key: bytes, record: bytes) -> bytes:
    """The data of a record. Raises Damaged when the checksum does not fit."""
    data = record[_CHECKSUM.size :]
    if len(record) < _CHECKSUM.size or _CHECKSUM.unpack_from(record)[0] != zlib.crc32(data, zlib.crc32(key)):
        raise Damaged(f"a record is damaged (key {key[:40]!r}): its checksum does not fit")
    return data


def index_key(index: int) -> bytes:
    """Keys in the log stand in the order of their indexes."""
    return _INDEX.pack(index)


def index_of(key: bytes) -> int:
    """The inverse of `index_key`. Raises Damaged."""
    if len(key) != _INDEX.size:
        raise Damaged(f"a key in the log is no index: {key[:40]!r}")
    return int(_INDEX.unpack(key)[0])


def encode_entry(entry: Entry) -> bytes:
    """Checksum, term, kind, payload."""
    return seal(index_key(entry.index), _ENTRY.pack(entry.term, entry.kind) + entry.payload)


def decode_entry(key: bytes, record: bytes) -> Entry:
    """The inverse of `encode_entry`."""
    data = unseal(key, record)
    try:
        term, kind = _ENTRY.unpack_from(data)
        return Entry(index_of(key), term, EntryKind(kind), data[_ENTRY.size :])
    except (struct.error, ValueError):
        raise Damaged(f"a record in the log is no entry (key {key[:40]!r})") from None


def operation_prefix(term: int) -> bytes:
    """What the data of every operation of a term begins with; its payload follows."""
    return _ENTRY.pack(term, EntryKind.OPERATION)


def encode_hard_state(state: HardState) -> bytes:
    """Term and vote."""
    voted_for = state.voted_for
    if voted_for is None:
        return _HARD_STATE.pack(state.term, 0, 0)
    return _HARD_STATE.pack(state.term, 1, voted_for.replica) + voted_for.disk


def decode_hard_state(data: bytes) -> HardState:
    """The inverse of `encode_hard_state`."""
    disk = data[_HARD_STATE.size :]
    if len(data) < _HARD_STATE.size or len(disk) != (DISK_ID_BYTES if data[_VOTED_AT] else 0):
        raise Damaged("the record of term and vote has a wrong length")
    term, voted, replica = _HARD_STATE.unpack_from(data)
    state = HardState(term, Member(replica, disk) if voted else None)
    if encode_hard_state(state) != data:
        raise Damaged("the record of term and vote is none")
    return state


def encode_meta(meta: Meta) -> bytes:
    """Numbers, then the two configurations."""
    configuration = meta.configuration.encode()
    numbers = (meta.snapshot_index, meta.snapshot_term, meta.applied_index, meta.generation, meta.log_generation)
    return _META.pack(*numbers, len(configuration)) + configuration + meta.applied_configuration.encode()


def decode_meta(data: bytes) -> Meta:
    """The inverse of `encode_meta`."""
    try:
        snapshot_index, snapshot_term, applied_index, generation, log_generation, length = _META.unpack_from(data)
        at = _META.size + length
        configuration, applied = Configuration.decode(data[_META.size : at]), Configuration.decode(data[at:])
    except (struct.error, ValueError):
        raise Damaged("the record about the whole is none") from None
    if max(generation, log_generation) > 1:
        raise Damaged(f"there are no tables of generation {generation} or {log_generation}")
    return Meta(snapshot_index, snapshot_term, applied_index, generation, log_generation, configuration, applied)
