"""Sessions as rows of a table: what a commit writes of them, what a snapshot carries, what start-up reads.

Two kinds of rows. A session: `s`, index -> client id, floor, time of the last write, whether there was one. A record:
`r`, index, sequence number -> the answer and the key. Two more hold the group's time and what ranges it owns.
"""

import struct

from madkv.limits import CLIENT_ID_BYTES
from madkv.operations import Outcome

TIME_KEY = b"t"
OWNERSHIP_KEY = b"o"
_SESSION_KEY = struct.Struct(">cQ")
_RECORD_KEY = struct.Struct(">cQQ")
_SESSION = struct.Struct(f">{CLIENT_ID_BYTES}sQQ?")
_RECORD = struct.Struct(">BH")  # kind of the answer, length of the key
_TIME = struct.Struct(">Q")
_FALSE, _TRUE, _NONE, _BYTES = range(4)


def session_key(index: int) -> bytes:
    """The key of a session's row."""
    return _SESSION_KEY.pack(b"s", index)


def record_key(index: int, sequence: int) -> bytes:
    """The key of a record's row."""
    return _RECORD_KEY.pack(b"r", index, sequence)


def split_key(key: bytes) -> tuple[int, int | None]:
    """Session index, and the sequence number of a record's row or None for a session's. Raises ValueError."""
    if key[:1] == b"s" and len(key) == _SESSION_KEY.size:
        return int(_SESSION_KEY.unpack(key)[1]), None
    if key[:1] == b"r" and len(key) == _RECORD_KEY.size:
        _, index, sequence = _RECORD_KEY.unpack(key)
        return int(index), int(sequence)
    raise ValueError(f"a row of sessions with the key {key!r}")


def encode_session(client_id: bytes, floor: int, last_write_ms: int, is_used: bool) -> bytes:
    """A session's row; `is_used`: whether a write was ever made in it."""
    return _SESSION.pack(client_id, floor, last_write_ms, is_used)


def decode_session(row: bytes) -> tuple[bytes, int, int, bool]:
    """Client id, floor, time of the last write, whether there was one. Raises ValueError."""
    if len(row) != _SESSION.size or row[-1] > 1:
        raise ValueError("a session's row that is none")
    client_id, floor, last_write_ms, is_used = _SESSION.unpack(row)
    return client_id, floor, last_write_ms, is_used


def encode_record(key: bytes, outcome: Outcome) -> bytes:
    """A record's row. Refusals are never recorded, nor are the answers to opening and closing a session."""
    if isinstance(outcome, bytes):
        return _RECORD.pack(_BYTES, len(key)) + key + outcome
    assert outcome is None or isinstance(outcome, bool)
    kind = _NONE if outcome is None else _TRUE if outcome else _FALSE
    return _RECORD.pack(kind, len(key)) + key


def decode_record(row: bytes) -> tuple[bytes, Outcome]:
    """Key and answer."""
    if len(row) < _RECORD.size:
        raise ValueError("a record's row cut short")
    kind, key_length = _RECORD.unpack_from(row)
    key, rest = row[_RECORD.size : _RECORD.size + key_length], row[_RECORD.size + key_length :]
    if len(key) != key_length or kind > _BYTES or (rest and kind != _BYTES):
        raise ValueError("a record's row that is none")
    outcomes: tuple[Outcome, ...] = (False, True, None, rest)
    return key, outcomes[kind]


def encode_time(time_ms: int) -> bytes:
    """The row of the time."""
    return _TIME.pack(time_ms)


def decode_time(row: bytes) -> int:
    """The inverse of `encode_time`. Raises ValueError."""
    if len(row) != _TIME.size:
        raise ValueError("the row of the time has a wrong length")
    return int(_TIME.unpack(row)[0])
