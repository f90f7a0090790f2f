"""What a replica orders and applies, the outcomes of it, and how it stands in the log.

Reads are not among these: they change nothing, so they are released at a point instead of being ordered in a log.
"""

import struct
from enum import IntEnum

import attrs

from madkv.errors import MadKVError
from madkv.limits import CLIENT_ID_BYTES
from madkv.ranges import Ownership


class WriteKind(IntEnum):
    """What a write does; the numbers are part of the encoding and never change."""

    PUT = 1
    SWAP = 2
    DELETE = 3


@attrs.frozen
class Write:
    """Put, Swap or Delete of one key.

    `value` is empty for a Delete. `session` 0 means a call without a session: it is executed each time it arrives.
    Otherwise `sequence` numbers the call within its session, and `floor` is the lowest number whose caller still waits.
    """

    kind: WriteKind
    key: bytes
    value: bytes = b""
    session: int = 0
    sequence: int = 0
    floor: int = 0


@attrs.frozen
class OpenSession:
    """Open a session for a client that chose 16 random bytes as its id; again for the same id: the same session."""

    client_id: bytes


@attrs.frozen
class CloseSession:
    """Forget a session and its records. Closing one that is not there is no error."""

    session: int


@attrs.frozen
class Own:
    """From here on the group owns these ranges; an epoch that is not newer than the present one changes nothing."""

    ownership: Ownership


Operation = Write | OpenSession | CloseSession | Own

Outcome = bool | int | bytes | MadKVError | None
"""Put and Delete: whether the key existed. Swap: the old value or None. OpenSession: the session's index.
CloseSession and Own: None. A refusal is an error *returned*, since every replica must come to it alike."""

_VERSION = 1
_HEAD = struct.Struct(">BBQ")  # version, kind, time
_WRITE = struct.Struct(">BBQQQQH")  # the same, then session, sequence, floor, length of the key
_SESSION = struct.Struct(">Q")
_OPEN_SESSION, _CLOSE_SESSION, _OWN = 16, 17, 18
_KINDS = {int(kind): kind for kind in WriteKind}


def encode(time_ms: int, operation: Operation) -> bytes:
    """The payload of an entry: the operation and the time its proposer gave it, in the group's milliseconds."""
    if isinstance(operation, Write):
        key = operation.key
        return (
            _WRITE.pack(
                _VERSION,
                operation.kind,
                time_ms,
                operation.session,
                operation.sequence,
                operation.floor,
                len(key),
            )
            + key
            + operation.value
        )
    if isinstance(operation, OpenSession):
        return _HEAD.pack(_VERSION, _OPEN_SESSION, time_ms) + operation.client_id
    if isinstance(operation, CloseSession):
        return _HEAD.pack(_VERSION, _CLOSE_SESSION, time_ms) + _SESSION.pack(operation.session)
    return _HEAD.pack(_VERSION, _OWN, time_ms) + operation.ownership.encode()


def decode(payload: bytes) -> tuple[int, Operation]:
    """The time and the operation. Raises ValueError for what `encode` did not make."""
    try:
        version, kind, time_ms = _HEAD.unpack_from(payload)
        if version != _VERSION:
            raise ValueError(f"an operation of version {version}; this is version {_VERSION}")
        write_kind = _KINDS.get(kind)
        if write_kind is not None:
            _, _, _, session, sequence, floor, key_bytes = _WRITE.unpack_from(payload)
            key_end = _WRITE.size + key_bytes
            if key_end > len(payload):
                raise ValueError("an operation cut short")
            key, value = payload[_WRITE.size : key_end], payload[key_end:]
            return time_ms, Write(write_kind, key, value, session, sequence, floor)
        rest = payload[_HEAD.size :]
        if kind == _OPEN_SESSION and len(rest) == CLIENT_ID_BYTES:
            return time_ms, OpenSession(rest)
        if kind == _CLOSE_SESSION and len(rest) == _SESSION.size:
            return time_ms, CloseSession(_SESSION.unpack(rest)[0])
        if kind == _OWN:
            return time_ms, Own(Ownership.decode(rest))
    except struct.error:
        raise ValueError("an operation cut short") from None
    raise ValueError(f"no such operation: kind {kind}, {len(payload)} bytes")
