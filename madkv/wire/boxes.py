"""AMP boxes, parsed and written by hand: the same bytes as twisted.protocols.amp, at a fraction of its cost.

A box is a run of fields and a zero length. A field is a name (2-byte big-endian length, 1-255 bytes) and a value
(2-byte length, 0-65,535 bytes). Tests hold this module to Twisted's own parser and serializer.

A byte string over 65,535 bytes travels as `name`, `name.1`, `name.2` and so on, each piece but the last full: a *blob*.
"""

from collections.abc import MutableSequence

from madkv.errors import InvalidArgument, ProtocolError
from madkv.limits import AMP_NAME_BYTES_MAX, AMP_VALUE_BYTES_MAX, BOX_BYTES_MAX, BOX_FIELDS_MAX

Box = dict[bytes, bytes]

ASK = b"_ask"
ANSWER = b"_answer"
ERROR = b"_error"
COMMAND = b"_command"
ERROR_CODE = b"_error_code"
ERROR_DESCRIPTION = b"_error_description"


_WITHOUT_TLS = "this side speaks TLS only with --tls-ca, --tls-cert and --tls-key"
_GREETINGS = (
    (b"\x16\x03", f"it looks like a TLS hello; {_WITHOUT_TLS}"),
    (b"\x15\x03", f"it looks like TLS; {_WITHOUT_TLS}"),
    (b"GET ", "it looks like an HTTP request"),
    (b"POST ", "it looks like an HTTP request"),
    (b"SSH-", "it looks like SSH"),
)
"""How what is no box may begin; by the first two bytes alone it is none."""


def parse_boxes(data: bytes, boxes: MutableSequence[Box], bytes_max: int = BOX_BYTES_MAX) -> int:
    """Append every whole box at the start of `data` to `boxes`; the number of bytes that they take up.

    None may have more than `bytes_max` bytes. Raises ProtocolError as soon as what is there cannot become a box within
    bounds.
    """
    available = len(data)
    consumed = position = 0
    box: Box = {}
    fields = 0  # counted, since a name that comes again adds nothing to the dict but costs as much to parse
    while True:
        if position + 2 > available:
            break
        name_length = data[position] << 8 | data[position + 1]
        if name_length == 0:
            if not box:
                raise ProtocolError("an empty box")
            position += 2
            if position - consumed > bytes_max:
                raise ProtocolError(f"a box of more than {bytes_max:,} bytes")
            boxes.append(box)
            consumed = position
            box = {}
            fields = 0
            continue
        if name_length > AMP_NAME_BYTES_MAX:
            raise ProtocolError(f"not an AMP box: {_shown(data[position:], name_length)}")
        value_at = position + 4 + name_length
        if value_at > available:
            break
        value_end = value_at + (data[value_at - 2] << 8 | data[value_at - 1])
        if value_end > available:
            break
        box[data[position + 2 : value_at - 2]] = data[value_at:value_end]
        fields += 1
        if fields > BOX_FIELDS_MAX:
            raise ProtocolError(f"a box of more than {BOX_FIELDS_MAX} fields")
        position = value_end
    if available - consumed > bytes_max:
        raise ProtocolError(f"a box of more than {bytes_max:,} bytes")
    return consumed


def _shown(data: bytes, name_length: int) -> str:
    """What begins with a name that is too long."""
    return next(
        (what for prefix, what in _GREETINGS if data.startswith(prefix)), f"a field name of {name_length:,} bytes"
    )


def next_field_end(data: bytes | bytearray) -> int:
    """Of a box that has begun: how many bytes it takes before parsing it is any use.

    No more than there are when it is whole, or when parsing would refuse it for what it begins with.
    """
    available = len(data)
    position = fields = 0
    while position + 2 <= available:
        name_length = data[position] << 8 | data[position + 1]
        if not 0 < name_length <= AMP_NAME_BYTES_MAX or fields > BOX_FIELDS_MAX:
            return available
        value_at = position + 4 + name_length
        if value_at > available:
            return value_at
        position = value_at + (data[value_at - 2] << 8 | data[value_at - 1])
        fields += 1
    return max(position, available + 1)


class Rest(bytearray):
    """The beginning of a box, until its end has come; looked at only when enough of it is there."""

    __slots__ = ("_needed",)

    def keep(self, data: bytes) -> None:
        """Begin with what parsing has left over."""
        self += data
        self._needed = next_field_end(self)

    def joined(self, data: bytes, bytes_max: int) -> bytes | None:
        """What has come so far, with this, to be parsed and kept no longer; None while that would be no use.

        What is longer than `bytes_max` is to be parsed, which refuses it.
        """
        self += data
        if len(self) < self._needed:
            return None
        if len(self) <= bytes_max:
            # A long box has many fields: to parse the first ones again with each that comes would copy them all.
            self._needed = next_field_end(self)
            if len(self) < self._needed:
                return None
        whole = bytes(self)
        self.clear()
        return whole


def field(name: bytes, value: bytes) -> bytes:
    """One field as bytes."""
    assert 0 < len(name) <= AMP_NAME_BYTES_MAX and len(value) <= AMP_VALUE_BYTES_MAX
    return b"%c%c%b%c%c%b" % (0, len(name), name, len(value) >> 8, len(value) & 255, value)


def blob(name: bytes, value: bytes) -> bytes:
    """A byte string of any length as one or more fields."""
    if len(value) <= AMP_VALUE_BYTES_MAX:
        return field(name, value)
    return b"".join(field(piece_name, piece) for piece_name, piece in split_blob(name, value))


def split_blob(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    """The fields that carry `value`, as names and pieces."""
    pieces = [(name, value[:AMP_VALUE_BYTES_MAX])]
    for number, start in enumerate(range(AMP_VALUE_BYTES_MAX, len(value), AMP_VALUE_BYTES_MAX), 1):
        pieces.append((b"%b.%d" % (name, number), value[start : start + AMP_VALUE_BYTES_MAX]))
    return pieces


def join_blob(box: Box, name: bytes) -> bytes | None:
    """The byte string that `blob` wrote, or None when there is none of that name.

    Raises InvalidArgument for pieces that `blob` would not have made: what follows them might be lost.
    """
    value = box.get(name)
    if value is None or len(value) < AMP_VALUE_BYTES_MAX:
        if name + b".1" in box:
            raise InvalidArgument(f"the argument {name.decode()!r} is split wrongly: each piece but the last is full")
        return value
    pieces = [value]
    number = 1
    while (piece := box.get(b"%b.%d" % (name, number))) is not None:
        if len(pieces[-1]) < AMP_VALUE_BYTES_MAX:
            raise InvalidArgument(f"the argument {name.decode()!r} is split wrongly: each piece but the last is full")
        pieces.append(piece)
        number += 1
    return b"".join(pieces)
