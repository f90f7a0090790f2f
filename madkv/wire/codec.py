"""The calls between client and server as bytes, for both sides' hot paths; `madkv.wire.commands` declares the same.

Requests are built from `request` and `blob` / `field`; what a server reads out of a box comes through the `take_`
functions, which raise InvalidArgument with one line that a user can act on.
"""

import struct
from collections.abc import Iterable

from madkv.errors import (
    InvalidArgument,
    MadKVError,
    NotLeader,
    ProtocolError,
    StaleCall,
    UnknownSession,
    VersionMismatch,
    WrongPartition,
    from_code,
    shown,
)
from madkv.limits import AMP_VALUE_BYTES_MAX
from madkv.wire.boxes import ANSWER, ASK, COMMAND, ERROR, ERROR_CODE, ERROR_DESCRIPTION, Box, blob, field, join_blob

PROTOCOL_VERSION = 1

HELLO = b"Hello"
OPEN_SESSION = b"OpenSession"
CLOSE_SESSION = b"CloseSession"
PUT = b"Put"
SWAP = b"Swap"
GET = b"Get"
DELETE = b"Delete"
SCAN = b"Scan"
STATUS = b"Status"
GET_MAP = b"GetMap"
REGISTER = b"Register"
REPLACE_DISK = b"ReplaceDisk"
TRANSFER_LEADER = b"TransferLeader"
BACKUP = b"Backup"
PEER_HELLO = b"PeerHello"
INTRODUCE = b"Introduce"
RAFT = b"Raft"
WRITES = (PUT, SWAP, DELETE)

UNHANDLED = b"UNHANDLED"
"""AMP's own code for a command that the other side does not know."""

Pair = tuple[bytes, bytes]

_END = b"\0\0"
_TRUE = field(b"found", b"True") + _END
_FALSE = field(b"found", b"False") + _END
INTEGER_MAX = 2**63 - 1
_PAIR_LENGTHS = struct.Struct(">HI")
_DESCRIPTION_BYTES_MAX = AMP_VALUE_BYTES_MAX // 64


# --- Requests -------------------------------------------------------------------------------------------------------


def request(tag: int, command: bytes, fields: bytes) -> bytes:
    """A call as one box; `fields` are already encoded."""
    return field(ASK, b"%d" % tag) + field(COMMAND, command) + fields + _END


def integer(name: bytes, value: int) -> bytes:
    """A field with a whole number in decimal digits."""
    return field(name, b"%d" % value)


def ports(name: bytes, value: Iterable[int]) -> bytes:
    """A field with TCP ports, by replica number: decimal numbers separated by commas."""
    return field(name, b",".join(b"%d" % port for port in value))


def session_fields(session: int, sequence: int, floor: int) -> bytes:
    """What makes the retry of a write the same call."""
    return integer(b"session", session) + integer(b"sequence", sequence) + integer(b"floor", floor)


def take_bytes(box: Box, name: bytes) -> bytes:
    """A field that must be there, at most 65,535 bytes."""
    value = box.get(name)
    if value is None:
        raise InvalidArgument(f"the argument {name.decode()!r} is missing")
    return value


def take_blob(box: Box, name: bytes) -> bytes:
    """A blob that must be there."""
    value = join_blob(box, name)
    if value is None:
        raise InvalidArgument(f"the argument {name.decode()!r} is missing")
    return value


def take_integer(box: Box, name: bytes) -> int:
    """A whole number from 0 to 2**63 - 1 that must be there."""
    digits = take_bytes(box, name)
    if not (digits.isdigit() and len(digits) <= 19) or (number := int(digits)) > INTEGER_MAX:
        raise InvalidArgument(f"the argument {name.decode()!r} is no whole number from 0 to 2**63-1")
    return number


def take_ports(box: Box, name: bytes) -> tuple[int, ...]:
    """TCP ports, of which at least one must be there; 0 stands for none."""
    numbers = take_bytes(box, name).split(b",")
    if not all(number.isdigit() and len(number) <= 5 and int(number) < 65_536 for number in numbers):
        raise InvalidArgument(f"the argument {name.decode()!r} are no ports")
    return tuple(map(int, numbers))


def take_session(box: Box) -> tuple[int, int, int]:
    """(session, sequence, floor) of a write; three zeros when it carries no session."""
    if b"session" not in box:
        if b"sequence" in box or b"floor" in box:
            raise InvalidArgument("'sequence' and 'floor' go with 'session'")
        return 0, 0, 0
    session, sequence, floor = [  # without a call for each, as long as they look as they should
        int(digits) if (digits := box.get(name, b"")).isdigit() and len(digits) < 19 else take_integer(box, name)
        for name in (b"session", b"sequence", b"floor")
    ]
    if not (session > 0 and 0 < floor <= sequence):
        raise InvalidArgument(f"session {session}, sequence {sequence}, floor {floor} do not fit together")
    return session, sequence, floor


# --- Answers --------------------------------------------------------------------------------------------------------


def answer(tag: bytes, fields: bytes) -> bytes:
    """An answer to the call with that tag; `fields` are already encoded."""
    return field(ANSWER, tag) + fields + _END


def answer_value(tag: bytes, value: bytes | None) -> bytes:
    """The answer to Get and Swap; None for no value."""
    if value is None:
        return answer(tag, b"")
    if len(value) > AMP_VALUE_BYTES_MAX:
        return answer(tag, blob(b"value", value))
    # The same bytes as above in one step, since most answers are like this.
    sizes = len(tag) >> 8, len(tag) & 255, tag, len(value) >> 8, len(value) & 255, value
    return b"\0\7_answer%c%c%b\0\5value%c%c%b\0\0" % sizes


def answer_found(tag: bytes, found: bool) -> bytes:
    """The answer to Put and Delete."""
    return field(ANSWER, tag) + (_TRUE if found else _FALSE)


def answer_error(tag: bytes, error: MadKVError) -> bytes:
    """A declared error as the answer, with where to go instead if it knows that."""
    hint = b""
    if isinstance(error, NotLeader) and error.leader is not None:
        hint = integer(b"leader", error.leader)
    elif isinstance(error, WrongPartition):
        hint = integer(b"epoch", error.epoch)
    return answer_error_code(tag, error.code, str(error), hint)


def answer_error_code(tag: bytes, code: bytes, description: str, fields: bytes = b"") -> bytes:
    """An error by its code, such as AMP's own UNHANDLED; `fields` are already encoded."""
    text = description.encode()[:_DESCRIPTION_BYTES_MAX]
    return field(ERROR, tag) + field(ERROR_CODE, code) + field(ERROR_DESCRIPTION, text) + fields + _END


def raise_if_error(box: Box, command: bytes) -> None:
    """Raise the error that the answer to `command` carries, if it carries one; ProtocolError if none may be like it."""
    if ERROR in box:
        description = shown(box.get(ERROR_DESCRIPTION) or b"it does not say why", _DESCRIPTION_BYTES_MAX)
        error = from_code(box.get(ERROR_CODE, b""), description)
        if isinstance(error, (UnknownSession, StaleCall)) and command not in WRITES:
            raise ProtocolError(f"{command.decode()} was answered: {description}")
        if isinstance(error, NotLeader) and b"leader" in box:
            error.leader = take_answer_integer(box, b"leader")
        elif isinstance(error, WrongPartition) and b"epoch" in box:
            error.epoch = take_answer_integer(box, b"epoch")
        raise error


def take_boot(box: Box) -> bytes:
    """The server's boot out of the answer to Hello. Raises VersionMismatch when it speaks another version."""
    version = take_answer_integer(box, b"version")
    if version != PROTOCOL_VERSION:
        raise VersionMismatch(f"this client speaks version {PROTOCOL_VERSION}, the server version {version}")
    return take_answer_field(box, b"boot")


def take_answer_field(box: Box, name: bytes) -> bytes:
    """A field that an answer must hold; ProtocolError when it does not."""
    value = box.get(name)
    if value is None:
        raise ProtocolError(f"an answer without {name.decode()!r}")
    return value


def take_found(box: Box) -> bool:
    """The answer of Put and Delete."""
    found = take_answer_field(box, b"found")
    if found not in (b"True", b"False"):
        raise ProtocolError(f"an answer whose 'found' is {found[:20]!r}")
    return found == b"True"


def take_value(box: Box) -> bytes | None:
    """The answer of Swap and Get."""
    try:
        return join_blob(box, b"value")
    except InvalidArgument as error:
        raise ProtocolError(f"an answer of another protocol: {error}") from None


def take_page(box: Box) -> tuple[list[Pair], bytes | None]:
    """The answer of Scan: pairs, and the cursor for the rest if there is one."""
    return decode_pairs(take_answer_blob(box, b"pairs")), box.get(b"cursor")


def take_answer_blob(box: Box, name: bytes) -> bytes:
    """A blob that an answer must hold."""
    try:
        return take_blob(box, name)
    except InvalidArgument as error:
        raise ProtocolError(f"an answer of another protocol: {error}") from None


def take_answer_integer(box: Box, name: bytes) -> int:
    """A whole number that an answer must hold."""
    try:
        return take_integer(box, name)
    except InvalidArgument as error:
        raise ProtocolError(f"an answer of another protocol: {error}") from None


# --- Pairs ----------------------------------------------------------------------------------------------------------


def encode_pairs(pairs: list[Pair]) -> bytes:
    """Pairs as one byte string: for each, key length (2 bytes), value length (4 bytes), key, value; big-endian."""
    lengths = _PAIR_LENGTHS.pack
    parts: list[bytes] = []
    for key, value in pairs:
        parts += (lengths(len(key), len(value)), key, value)
    return b"".join(parts)


def decode_pairs(data: bytes) -> list[Pair]:
    """The inverse of `encode_pairs`; ProtocolError when the lengths do not add up."""
    pairs: list[Pair] = []
    position, end = 0, len(data)
    unpack = _PAIR_LENGTHS.unpack_from
    while position < end:
        if position + 6 > end:
            raise ProtocolError("pairs cut short")
        key_length, value_length = unpack(data, position)
        key_end = position + 6 + key_length
        value_end = key_end + value_length
        if value_end > end:
            raise ProtocolError("pairs cut short")
        pairs.append((data[position + 6 : key_end], data[key_end:value_end]))
        position = value_end
    return pairs
