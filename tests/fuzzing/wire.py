"""Targets for what is read off the wire, apart from any connection: boxes, arguments, answers, messages, the map."""

from twisted.protocols import amp

from madkv.errors import InvalidArgument, MadKVError, ProtocolError
from madkv.manager.introduction import Introduced, Introducing
from madkv.manager.registrar import Claim
from madkv.partitions import PartitionMap
from madkv.raft.configuration import Configuration, Member
from madkv.ranges import Ownership
from madkv.server.registration import Place
from madkv.settings import Settings
from madkv.wire import codec, commands, peer
from madkv.wire.boxes import Box, blob, join_blob, next_field_end, parse_boxes, split_blob
from tests.fuzzing.draw import Draw, refused


def boxes(data: bytes) -> None:
    """Bytes of a connection: parsed at once, in pieces, and by stock AMP."""
    draw = Draw(data)
    chunk, bytes_max = draw.byte() + 1, 64 << draw.byte() % 8
    stream = draw.rest()
    whole: list[Box] = []
    consumed = refused(ProtocolError, lambda: parse_boxes(stream, whole, bytes_max))
    if consumed is not None:
        assert [dict(box) for box in amp.parseString(stream[:consumed])] == whole
    pieces: list[Box] = []
    rest, needed, is_refused = b"", 0, False
    for at in range(0, len(stream), chunk):
        rest += stream[at : at + chunk]
        before = len(pieces)
        taken = refused(ProtocolError, lambda: parse_boxes(rest, pieces, bytes_max))  # noqa: B023 called at once
        if taken is None:
            is_refused = True
            break
        assert len(rest) >= needed or len(pieces) == before, "parsed before it was of any use"
        if taken:
            rest = rest[taken:]
        needed = next_field_end(rest) if rest else 0
        assert not rest or needed > len(rest), "what waits waits for something"
    if is_refused:
        assert consumed is None, "pieces are refused, and the whole is not"
    else:
        assert consumed is not None and pieces == whole and len(stream) - len(rest) == consumed


NAMES = (
    *(b"key", b"value", b"value.1", b"value.2", b"session", b"sequence", b"floor", b"start", b"end", b"cursor"),
    *(b"client_id", b"version", b"node", b"boot", b"role", b"cluster", b"pairs", b"until", b"status", b"map"),
    *(b"partition", b"replica", b"disk", b"api_port", b"p2p_port", b"peers", b"rf", b"has_vote", b"epoch"),
    *(b"ownership", b"first", b"wanted", b"group", b"to", b"ports", b"message", b"age", b"settings", b"seen"),
    *(b"found", b"leader", b"_ask", b"_answer", b"_error", b"_command", b"_error_code", b"_error_description"),
)
VALUES = (
    *(b"", b"0", b"1", b"2", b"9223372036854775807", b"9223372036854775808", b"True", b"False", b"d" * 16),
    *(b"Hello", b"Put", b"Get", b"127.0.0.1:3707,127.0.0.1:3708", b"127.0.0.1:3707", b"BUSY", b"NOT_LEADER"),
    *(b"WRONG_PARTITION", b"UNKNOWN_SESSION", b"STALE_CALL", b"solo", b"m.0", b"s0.1", b"65535", b"1,2,3", b"3"),
    *(Settings(1, (("h", 1), ("h", 2))).encode(), Configuration(frozenset([Member(0, b"d" * 16)])).encode()),
    *(Ownership(1, ()).encode(), PartitionMap(1, "c", [b""], [0], [[("h", 1)]]).encode()),
)


def drawn_box(draw: Draw) -> Box:
    """A box with fields of known and of other names, with likely and with other values."""
    box: Box = {}
    for _ in range(draw.byte() % 16):
        name = draw.choice((*NAMES, b""))
        name = name or draw.take(8) or b"x"
        what = draw.byte()
        if what < 128:
            box[name] = VALUES[what % len(VALUES)]
        elif what < 240:
            box[name] = draw.text()[:65_535]
        else:
            pieces = dict(split_blob(name, b"b" * (65_535 + draw.byte() % 3)))
            box |= {each[:255]: piece for each, piece in pieces.items()}
    return box


_WRITES: tuple[type[amp.Command], ...] = (commands.Put, commands.Swap, commands.Delete)


def arguments(data: bytes) -> None:
    """Arguments of calls, as the hot path takes them and as the declared commands do."""
    box = drawn_box(Draw(data))
    for command in _WRITES:
        write = refused(InvalidArgument, lambda: _take_write(box, command is not commands.Delete))  # noqa: B023
        if write is not None:
            declared = command.parseArguments({**box}, None)
            carried = tuple(declared[name] or 0 for name in ("session", "sequence", "floor"))
            assert write == (declared["key"], declared.get("value"), carried)
    for name in (b"version", b"cursor", b"session", b"age", b"replica"):
        number = refused(InvalidArgument, lambda: codec.take_integer(box, name))  # noqa: B023
        assert number is None or (0 <= number <= codec.INTEGER_MAX and number == int(box[name]))
    ports = refused(InvalidArgument, lambda: codec.take_ports(box, b"ports"))
    assert ports is None or (ports and all(0 <= port < 65_536 for port in ports))
    claim = refused(InvalidArgument, lambda: Claim.read(box))
    if claim is not None:
        assert len(claim.register.disk) == 16 and len(claim.register.ports) <= 9
        assert all(0 < port < 65_536 for port in claim.register.ports)
    introducing = refused(InvalidArgument, lambda: Introducing.read(box))
    if introducing is not None:
        again = parsed(introducing.fields())
        assert Introducing.read(again) == introducing


def _take_write(box: Box, has_value: bool) -> tuple[bytes, bytes | None, tuple[int, int, int]]:
    key = codec.take_bytes(box, b"key")
    value = codec.take_blob(box, b"value") if has_value else None
    return key, value, codec.take_session(box)


def parsed(fields: bytes) -> Box:
    """The one box of these fields."""
    found: list[Box] = []
    assert parse_boxes(fields + b"\0\0", found) == len(fields) + 2
    (box,) = found
    return box


def answers(data: bytes) -> None:
    """Answers, as clients, servers and managers read them."""
    draw = Draw(data)
    command = draw.choice((codec.GET, codec.PUT, codec.SCAN, codec.HELLO))
    box = drawn_box(draw)
    for take in (codec.take_boot, codec.take_found, codec.take_value):
        refused(MadKVError, lambda: take(box))  # type: ignore[arg-type,return-value]  # noqa: B023
    page = refused(ProtocolError, lambda: codec.take_page(box))
    if page is not None:
        assert codec.encode_pairs(page[0]) == join_blob(box, b"pairs")
    for name in (b"session", b"leader", b"epoch"):
        refused(ProtocolError, lambda: codec.take_answer_integer(box, name))  # noqa: B023
    refused(MadKVError, lambda: codec.raise_if_error(box, command))
    place = refused(ProtocolError, lambda: Place.read(box))
    if place is not None:
        assert all(len(member.disk) == 16 for member in place.wanted.members)
    introduced = refused(ProtocolError, lambda: Introduced.read(box))
    if introduced is not None:
        assert Introduced.read(parsed(introduced.fields())) == introduced
    pairs = refused(ProtocolError, lambda: codec.decode_pairs(draw.rest()))
    assert pairs is None or codec.decode_pairs(codec.encode_pairs(pairs)) == pairs


def peer_messages(data: bytes) -> None:
    """Raft's messages between replicas: one way to write each."""
    message = refused(ProtocolError, lambda: peer.decode(data))
    if message is not None:
        assert peer.Encoder().encode(message) == data
        assert parsed(blob(b"message", data))


def partition_map(data: bytes) -> None:
    """The partition map, as managers give it to clients."""
    found = refused(ProtocolError, lambda: PartitionMap.decode(data))
    if found is not None:
        assert PartitionMap.decode(found.encode()) == found
        for key in (b"", b"m", b"\xff" * 3, *found.starts[:8]):
            assert 0 <= found.partition_of(key) < len(found.replicas)
            pieces = found.pieces(b"", key)
            assert pieces[-1][2] is None and pieces[-1][0] == found.partition_of(key)
