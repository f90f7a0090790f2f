"""What a replica orders and applies, the outcomes of it, and how it stands in the log.

Reads are not among these: they change nothing, so they are released at a point instead of being ordered in a log.
"""

import struct
from enum import IntEnum

import attrs

from madkv.errors import MadKVError
from madkv.limits import CLIENT_ID_BYTES
from madkv.raft.configuration import DISK_ID_BYTES, Configuration
from madkv.ranges import Ownership
from madkv.settings import Settings
from madkv.values import value_class


class WriteKind(IntEnum):
    """What a write does; the numbers are part of the encoding and never change."""

    PUT = 1
    SWAP = 2
    DELETE = 3


@value_class
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


# --- Of the managers' group: what each means is written in madkv/manager/placement.py ---------------------------------


@attrs.frozen
class Found:
    """The cluster begins: its settings, who its first managers are, and how keys are cut.

    The cut is a list of (start, partition) as in `PartitionMap`. It is said here, and not worked out by each manager,
    since another version of MadKV may cut otherwise.
    """

    settings: Settings
    managers: Configuration
    cut: tuple[tuple[bytes, int], ...]


@attrs.frozen
class Register:
    """A server is there, on this disk.

    `ports` are the p2p ports of its group in the order of replica numbers, its own and those it was given of its
    peers; empty in a group of one. `has_vote`: it counts in its group.
    """

    partition: int
    replica: int
    disk: bytes
    ports: tuple[int, ...]
    has_vote: bool = False


@attrs.frozen
class Vacate:
    """The disk of this replica is lost for good: another may take its place. `partition` may be MANAGERS."""

    partition: int
    replica: int


@attrs.frozen
class FillManager:
    """A manager is there, on this disk, in the place of one that was lost. `has_vote`: it counts in the group."""

    replica: int
    disk: bytes
    has_vote: bool = False


Operation = Write | OpenSession | CloseSession | Own | Found | Register | Vacate | FillManager

Outcome = bool | int | bytes | MadKVError | None
"""Put and Delete: whether the key existed. Swap: the old value or None. OpenSession: the session's index.
All others: None. A refusal is an error *returned*, since every replica must come to it alike."""

_VERSION = 1
_HEAD = struct.Struct(">BBQ")  # version, kind, time
_WRITE = struct.Struct(">BBQQQQH")  # the same, then session, sequence, floor, length of the key
_SESSION = struct.Struct(">Q")
_FOUND = struct.Struct(">IH")  # lengths of the settings and of the managers' configuration
_CUT = struct.Struct(">HH")  # partition, length of the start
_REGISTER = struct.Struct(f">HH{DISK_ID_BYTES}sBB")  # partition, replica, disk, whether it has a vote, number of ports
_VACATE = struct.Struct(">HH")
_FILL_MANAGER = struct.Struct(f">H{DISK_ID_BYTES}sB")
_OPEN_SESSION, _CLOSE_SESSION, _OWN, _FOUND_KIND, _REGISTER_KIND, _VACATE_KIND, _FILL_KIND = range(16, 23)
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
    if isinstance(operation, Own):
        return _HEAD.pack(_VERSION, _OWN, time_ms) + operation.ownership.encode()
    kind, rest = _encode_managers(operation)
    return _HEAD.pack(_VERSION, kind, time_ms) + rest


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
        if kind >= _FOUND_KIND:
            return time_ms, _decode_managers(kind, rest)
    except struct.error:
        raise ValueError("an operation cut short") from None
    raise ValueError(f"no such operation: kind {kind}, {len(payload)} bytes")


def _encode_managers(operation: Found | Register | Vacate | FillManager) -> tuple[int, bytes]:
    if isinstance(operation, Register):
        ports = operation.ports
        head = _REGISTER.pack(
            operation.partition, operation.replica, operation.disk, operation.has_vote, len(operation.ports)
        )
        return _REGISTER_KIND, head + struct.pack(f">{len(ports)}H", *ports)
    if isinstance(operation, Vacate):
        return _VACATE_KIND, _VACATE.pack(operation.partition, operation.replica)
    if isinstance(operation, FillManager):
        return _FILL_KIND, _FILL_MANAGER.pack(operation.replica, operation.disk, operation.has_vote)
    settings, managers = operation.settings.encode(), operation.managers.encode()
    parts = [_FOUND.pack(len(settings), len(managers)), settings, managers]
    for start, partition in operation.cut:
        parts += (_CUT.pack(partition, len(start)), start)
    return _FOUND_KIND, b"".join(parts)


def _decode_managers(kind: int, rest: bytes) -> Found | Register | Vacate | FillManager:
    if kind == _REGISTER_KIND:
        partition, replica, disk, has_vote, count = _REGISTER.unpack_from(rest)
        ports = struct.unpack(f">{count}H", rest[_REGISTER.size :])
        return Register(partition, replica, disk, ports, _flag(has_vote))
    if kind == _VACATE_KIND:
        return Vacate(*_VACATE.unpack(rest))
    if kind == _FILL_KIND:
        replica, disk, has_vote = _FILL_MANAGER.unpack(rest)
        return FillManager(replica, disk, _flag(has_vote))
    if kind != _FOUND_KIND:
        raise ValueError(f"no such operation: kind {kind}")
    settings_bytes, managers_bytes = _FOUND.unpack_from(rest)
    at = _FOUND.size + settings_bytes
    settings = Settings.decode(rest[_FOUND.size : at])
    managers = Configuration.decode(rest[at : at + managers_bytes])
    at += managers_bytes
    cut = []
    while at < len(rest):
        partition, start_bytes = _CUT.unpack_from(rest, at)
        at += _CUT.size + start_bytes
        if at > len(rest) or partition >= settings.partitions:
            raise ValueError("a cut that is none")
        cut.append((rest[at - start_bytes : at], partition))
    starts = [start for start, _ in cut]
    if starts[:1] != [b""] or starts != sorted(set(starts)):
        raise ValueError("a cut in no order")
    return Found(settings, managers, tuple(cut))


def _flag(number: int) -> bool:
    if number > 1:
        raise ValueError("a flag that is neither set nor not")
    return number == 1
