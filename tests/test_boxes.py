"""Boxes and calls held to Twisted's own AMP, byte for byte, and to their bounds."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.protocols import amp

from madkv import errors
from madkv.errors import WIRE_ERRORS, InvalidArgument, ProtocolError, from_code
from madkv.limits import AMP_NAME_BYTES_MAX, AMP_VALUE_BYTES_MAX, BOX_BYTES_MAX, BOX_FIELDS_MAX, KEY_BYTES_MAX, MIB
from madkv.wire import codec, commands
from madkv.wire.boxes import Box, blob, field, join_blob, parse_boxes, split_blob

END = b"\0\0"
INTERESTING_BLOBS = [0, 1, 65_534, 65_535, 65_536, 131_070, 131_071, MIB]

names = st.binary(min_size=1, max_size=12) | st.binary(min_size=250, max_size=255)
values = st.binary(max_size=40) | st.sampled_from([0, 255, 256, 65_534, 65_535]).map(
    lambda size: bytes([size % 251]) * size
)
boxes = st.dictionaries(names, values, min_size=1, max_size=5)
keys = st.binary(min_size=1, max_size=40) | st.just(b"k" * KEY_BYTES_MAX)
numbers = st.integers(0, codec.INTEGER_MAX)
pair_lists = st.lists(st.tuples(keys, st.binary(max_size=60)), max_size=20)


def stock(box: Box) -> bytes:
    return bytes(amp.AmpBox(box).serialize())


def ours(box: Box) -> bytes:
    """The box in the order in which the stock serializer writes fields, which AMP leaves open."""
    return b"".join(field(name, box[name]) for name in sorted(box)) + END


def parsed(data: bytes) -> tuple[list[Box], int]:
    found: list[Box] = []
    return found, parse_boxes(data, found)


def parsed_whole(data: bytes) -> Box:
    """The one box that `data` must be."""
    (box,), consumed = parsed(data)
    assert consumed == len(data)
    return box


def content(size: int) -> bytes:
    """Bytes in which no two pieces are alike."""
    return (b"%08d" * (size // 8 + 1) % tuple(range(size // 8 + 1)))[:size]


# --- Boxes ----------------------------------------------------------------------------------------------------------


@given(boxes)
def test_writes_what_stock_amp_writes(box: Box) -> None:
    assert ours(box) == stock(box)


@given(st.lists(boxes, max_size=4))
def test_stock_amp_and_we_parse_alike(sent: list[Box]) -> None:
    data = b"".join(map(stock, sent))
    assert parsed(data) == (sent, len(data))
    assert [dict(box) for box in amp.parseString(b"".join(map(ours, sent)))] == sent


@given(st.lists(boxes, min_size=1, max_size=4), st.lists(st.integers(0, 4096), max_size=12))
def test_any_chunking_gives_the_same_boxes(sent: list[Box], sizes: list[int]) -> None:
    data = b"".join(map(stock, sent))
    found: list[Box] = []
    rest, position = b"", 0
    for size in [*sizes, len(data)]:
        rest += data[position : position + size]
        position += size
        rest = rest[parse_boxes(rest, found) :]
    assert found == sent and rest == b""


def test_one_byte_at_a_time() -> None:
    sent = [{b"a": b"", b"bb": b"2"}, {b"_ask": b"1", b"_command": b"Get", b"key": b"k" * 300}]
    found: list[Box] = []
    rest = b""
    for byte in b"".join(map(stock, sent)):
        rest += bytes([byte])
        rest = rest[parse_boxes(rest, found) :]
    assert found == sent and rest == b""


@settings(max_examples=500)
@given(st.binary(max_size=400))
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
@example(b"GET / HTTP/1.1\r\nHost: madkv\r\n\r\n")
@example(b"\0\0")
def test_random_bytes_wait_or_are_refused(data: bytes) -> None:
    found: list[Box] = []
    try:
        consumed = parse_boxes(data, found)
    except ProtocolError as error:
        assert "\n" not in str(error) and str(error)
    else:
        assert consumed <= len(data)
        assert [dict(box) for box in amp.parseString(data[:consumed])] == found


@given(boxes, st.data())
def test_a_changed_byte_never_does_worse(box: Box, data: st.DataObject) -> None:
    raw = bytearray(stock(box))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert parse_boxes(bytes(raw), []) <= len(raw)
    except ProtocolError:
        pass


def test_what_is_refused_at_once() -> None:
    for data in (b"\x01\x00", b"\xff\xff", END, stock({b"a": b"b"}) + END, stock({b"a": b"b"}) + b"GE"):
        with pytest.raises(ProtocolError):
            parsed(data)
    with pytest.raises(amp.TooLong):
        stock({b"n" * (AMP_NAME_BYTES_MAX + 1): b""})
    with pytest.raises(AssertionError):
        field(b"n" * (AMP_NAME_BYTES_MAX + 1), b"")
    with pytest.raises(AssertionError):
        field(b"n", b"v" * (AMP_VALUE_BYTES_MAX + 1))


def test_box_bytes_bound() -> None:
    """The longest box goes through; a byte more is refused, also while its end has not come."""
    piece = field(b"n", b"v" * AMP_VALUE_BYTES_MAX)
    body = b"".join(field(b"%d" % number, b"v" * AMP_VALUE_BYTES_MAX) for number in range(31))
    left = BOX_BYTES_MAX - len(body) - len(END)
    assert AMP_NAME_BYTES_MAX + 4 < left < len(piece)
    longest = body + field(b"last", b"v" * (left - 8)) + END
    assert len(longest) == BOX_BYTES_MAX
    assert len(parsed_whole(longest)) == 32
    assert parsed(longest[:-1]) == ([], 0)
    with pytest.raises(ProtocolError, match="more than"):
        parsed(body + field(b"last", b"v" * (left - 7)) + END)
    with pytest.raises(ProtocolError, match="more than"):
        parsed(body + field(b"last", b"v" * (left - 6)) + b"\0")
    small = stock({b"a": b"b"})
    assert len(parsed(small * 3 + longest + small)[0]) == 5, "the bound is one box's, not the read's"


def test_box_fields_bound() -> None:
    most = {b"%d" % number: b"" for number in range(BOX_FIELDS_MAX)}
    assert parsed_whole(stock(most)) == most
    assert len(parsed(stock(most) * 3)[0]) == 3, "the bound is one box's, not the read's"
    with pytest.raises(ProtocolError, match="fields"):
        parsed(stock({**most, b"one more": b""}))
    with pytest.raises(ProtocolError, match="fields"):
        parsed(field(b"again", b"") * (BOX_FIELDS_MAX + 1))


# --- Blobs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", INTERESTING_BLOBS)
def test_blob_sizes(size: int) -> None:
    value = content(size)
    data = blob(b"value", value) + END
    box = parsed_whole(data)
    assert join_blob(box, b"value") == value
    assert [dict(each) for each in amp.parseString(data)] == [box]
    pieces = split_blob(b"value", value)
    assert dict(pieces) == box and len(pieces) == len(box) == max(1, -(-size // AMP_VALUE_BYTES_MAX))
    strings: dict[bytes, bytes] = {}
    commands.Blob().toBox(b"value", strings, {"value": value}, None)
    assert strings == box
    objects: dict[str, Any] = {}
    commands.Blob().fromBox(b"value", strings, objects, None)
    assert objects == {"value": value}


@pytest.mark.parametrize(
    "lengths",
    [(None, 1), (10, 1), (AMP_VALUE_BYTES_MAX - 1, 1), (AMP_VALUE_BYTES_MAX, 1, 1), (AMP_VALUE_BYTES_MAX, 0, 1)],
)
def test_blob_whose_pieces_are_not_full(lengths: tuple[int | None, ...]) -> None:
    """What a careless script might send; taking the first piece alone would store half a value without a word."""
    names = [b"value", b"value.1", b"value.2"]
    pieces = {name: b"x" * length for name, length in zip(names, lengths, strict=False) if length is not None}
    with pytest.raises(InvalidArgument, match="split wrongly"):
        join_blob(pieces, b"value")


def test_blob_that_is_not_there() -> None:
    assert join_blob({b"other": b"x"}, b"value") is None
    objects: dict[str, Any] = {}
    commands.Blob(optional=True).fromBox(b"value", {}, objects, None)
    assert objects == {"value": None}
    with pytest.raises(KeyError):
        commands.Blob().fromBox(b"value", {}, objects, None)
    strings: dict[bytes, bytes] = {}
    commands.Blob(optional=True).toBox(b"value", strings, {"value": None}, None)
    assert strings == {}
    with pytest.raises(KeyError):
        commands.Blob().toBox(b"value", strings, {}, None)
    with pytest.raises(KeyError):
        amp.String().toBox(b"value", strings, {}, None)


# --- Pairs ----------------------------------------------------------------------------------------------------------


@given(pair_lists)
def test_pairs_come_back(pairs: list[tuple[bytes, bytes]]) -> None:
    assert codec.decode_pairs(codec.encode_pairs(pairs)) == pairs


def test_pairs_of_any_size() -> None:
    pairs = [(b"k" * KEY_BYTES_MAX, content(size)) for size in INTERESTING_BLOBS]
    assert codec.decode_pairs(codec.encode_pairs(pairs)) == pairs


@given(pair_lists.filter(bool), st.data())
def test_pairs_cut_short_are_refused(pairs: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    encoded = codec.encode_pairs(pairs)
    whole = {len(codec.encode_pairs(pairs[:count])) for count in range(len(pairs) + 1)}
    short = data.draw(st.integers(0, len(encoded)).filter(lambda size: size not in whole))
    with pytest.raises(ProtocolError):
        codec.decode_pairs(encoded[:short])


# --- Calls: the declared commands against what the hot path writes and reads ------------------------------------------


def declared_request(command: type[amp.Command], **arguments: object) -> bytes:
    """A call as stock AMP puts it into bytes."""
    box = command.makeArguments(arguments, None)
    box[amp.ASK] = b"7"
    box[amp.COMMAND] = command.commandName
    return bytes(box.serialize())


def read_by_declaration(command: type[amp.Command], data: bytes) -> dict[str, Any]:
    (box,) = amp.parseString(data)
    return dict(command.parseArguments(box, None))


def answer_by_declaration(command: type[amp.Command], **response: object) -> bytes:
    box = command.makeResponse(response, None)
    box[amp.ANSWER] = b"7"
    return bytes(box.serialize())


def read_answer(command: type[amp.Command], data: bytes) -> dict[str, Any]:
    (box,) = amp.parseString(data)
    assert box.pop(amp.ANSWER) == b"7"
    return dict(command.parseResponse(box, None))


def assert_same(left: bytes, right: bytes) -> None:
    """The same box, in whatever order its fields come."""
    assert parsed_whole(left) == parsed_whole(right)
    assert len(left) == len(right)


def test_names() -> None:
    assert {command.commandName for command in commands.COMMANDS} == {
        codec.HELLO,
        codec.OPEN_SESSION,
        codec.CLOSE_SESSION,
        codec.PUT,
        codec.SWAP,
        codec.GET,
        codec.DELETE,
        codec.SCAN,
        codec.STATUS,
        codec.GET_MAP,
        codec.REGISTER,
        codec.REPLACE_DISK,
        codec.TRANSFER_LEADER,
        codec.BACKUP,
        codec.PEER_HELLO,
        codec.RAFT,
        codec.INTRODUCE,
    }


@given(numbers, st.binary(max_size=20), st.binary(max_size=20))
def test_hello(version: int, node: bytes, boot: bytes) -> None:
    request = codec.request(7, codec.HELLO, codec.integer(b"version", version))
    assert_same(request, declared_request(commands.Hello, version=version))
    assert codec.take_integer(parsed_whole(request), b"version") == version
    answer = codec.answer(b"7", codec.integer(b"version", version) + field(b"node", node) + field(b"boot", boot))
    without = {"version": version, "node": node, "boot": boot, "role": None, "cluster": None}
    assert read_answer(commands.Hello, answer) == without
    assert_same(answer, answer_by_declaration(commands.Hello, **without))


@given(st.binary(min_size=16, max_size=16), numbers)
def test_sessions(client_id: bytes, session: int) -> None:
    request = codec.request(7, codec.OPEN_SESSION, field(b"client_id", client_id))
    assert_same(request, declared_request(commands.OpenSession, client_id=client_id))
    assert codec.take_bytes(parsed_whole(request), b"client_id") == client_id
    answer = codec.answer(b"7", codec.integer(b"session", session))
    assert read_answer(commands.OpenSession, answer) == {"session": session}
    assert codec.take_answer_integer(parsed_whole(answer), b"session") == session
    request = codec.request(7, codec.CLOSE_SESSION, codec.integer(b"session", session))
    assert_same(request, declared_request(commands.CloseSession, session=session))
    assert read_answer(commands.CloseSession, codec.answer(b"7", b"")) == {}


@settings(max_examples=50)
@given(
    keys,
    values | st.sampled_from(INTERESTING_BLOBS).map(content),
    st.none() | st.tuples(numbers.filter(bool), st.integers(10, 2**40), st.integers(1, 10)),
)
def test_writes(key: bytes, value: bytes, carried: tuple[int, int, int] | None) -> None:
    extra = codec.session_fields(*carried) if carried else b""
    named = dict(zip(("session", "sequence", "floor"), carried, strict=True)) if carried else {}
    for command, arguments in (
        (commands.Put, {"key": key, "value": value}),
        (commands.Swap, {"key": key, "value": value}),
        (commands.Delete, {"key": key}),
    ):
        fields = field(b"key", key) + (blob(b"value", value) if "value" in arguments else b"")
        request = codec.request(7, command.commandName, fields + extra)
        assert_same(request, declared_request(command, **arguments, **named))
        nothing = dict.fromkeys(("session", "sequence", "floor"))
        assert read_by_declaration(command, request) == {**nothing, **arguments, **named}
        box = parsed_whole(request)
        assert codec.take_bytes(box, b"key") == key
        assert codec.take_session(box) == (carried or (0, 0, 0))
        if "value" in arguments:
            assert codec.take_blob(box, b"value") == value


@pytest.mark.parametrize("found", [True, False])
def test_found(found: bool) -> None:
    answer = codec.answer_found(b"7", found)
    for command in (commands.Put, commands.Delete):
        assert read_answer(command, answer) == {"found": found}
        assert_same(answer, answer_by_declaration(command, found=found))
    assert codec.take_found(parsed_whole(answer)) is found


@settings(max_examples=50)
@given(st.none() | values | st.sampled_from(INTERESTING_BLOBS).map(content))
def test_values(value: bytes | None) -> None:
    answer = codec.answer(b"7", b"" if value is None else blob(b"value", value))
    for command in (commands.Get, commands.Swap):
        assert read_answer(command, answer) == {"value": value}
        assert_same(answer, answer_by_declaration(command, value=value))
    assert join_blob(parsed_whole(answer), b"value") == value


@given(st.binary(max_size=40), st.binary(max_size=40), st.none() | numbers, pair_lists)
def test_scan(start: bytes, end: bytes, cursor: int | None, pairs: list[tuple[bytes, bytes]]) -> None:
    shown = None if cursor is None else b"%d" % cursor
    extra = b"" if cursor is None else codec.integer(b"cursor", cursor)
    request = codec.request(7, codec.SCAN, field(b"start", start) + field(b"end", end) + extra)
    assert_same(request, declared_request(commands.Scan, start=start, end=end, cursor=shown))
    assert read_by_declaration(commands.Scan, request) == {"start": start, "end": end, "cursor": shown}
    answer = codec.answer(b"7", blob(b"pairs", codec.encode_pairs(pairs)) + extra)
    assert read_answer(commands.Scan, answer) == {"pairs": pairs, "cursor": shown, "until": None}
    assert_same(answer, answer_by_declaration(commands.Scan, pairs=pairs, cursor=shown, until=None))


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", WIRE_ERRORS)
def test_errors_come_back_by_code(error: type[errors.MadKVError]) -> None:
    box = parsed_whole(codec.answer_error(b"7", error("why it is so – really")))
    assert box[b"_error"] == b"7"
    with pytest.raises(error, match="why it is so – really"):
        codec.raise_if_error(box, codec.PUT)
    all_commands: list[Any] = list(commands.COMMANDS)
    declaring = [command for command in all_commands if error in command.allErrors]
    assert declaring, "no command declares it"
    for command in declaring:
        assert command.reverseErrors[box[b"_error_code"]] is error


def test_errors_of_unknown_code_and_odd_text() -> None:
    with pytest.raises(ProtocolError, match=r"unexpected error UNHANDLED: no command"):
        codec.raise_if_error(parsed_whole(codec.answer_error_code(b"7", b"UNHANDLED", "no command")), codec.PUT)
    assert isinstance(from_code(b"\xff", ""), ProtocolError)
    with pytest.raises(ProtocolError):
        codec.raise_if_error({b"_error": b"7"}, codec.PUT)
    long = parsed_whole(codec.answer_error(b"7", InvalidArgument("é" * AMP_VALUE_BYTES_MAX)))
    assert len(long[b"_error_description"]) < 2000
    with pytest.raises(InvalidArgument, match="é"):
        codec.raise_if_error(long, codec.PUT)
    codec.raise_if_error({b"_answer": b"7"}, codec.PUT)


@pytest.mark.parametrize("code", [b"BUSY", b"\r\nGO ON"])
@pytest.mark.parametrize("text", [b"", b"two\nlines", b"\x1b[2J", b"\xff\x00"])
def test_what_others_say_is_one_line_for_people(code: bytes, text: bytes) -> None:
    with pytest.raises(errors.MadKVError) as caught:
        codec.raise_if_error({b"_error": b"7", b"_error_code": code, b"_error_description": text}, codec.PUT)
    assert str(caught.value) and str(caught.value).isprintable()


# --- What is read out of a box ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [b"", b"-1", b"+1", b" 1", b"1.0", b"0x1", b"x", b"9" * 20, b"9223372036854775808"])
def test_no_whole_number(digits: bytes) -> None:
    with pytest.raises(InvalidArgument, match="'version' is no whole number"):
        codec.take_integer({b"version": digits}, b"version")
    with pytest.raises(ProtocolError):
        codec.take_answer_integer({b"version": digits}, b"version")


@pytest.mark.parametrize(
    "numbers_given",
    [(b"0", b"1", b"1"), (b"1", b"0", b"0"), (b"1", b"1", b"2"), (b"1", b"1", b"0"), (b"1", b"x", b"1")],
)
def test_session_that_does_not_fit(numbers_given: tuple[bytes, bytes, bytes]) -> None:
    box = dict(zip((b"session", b"sequence", b"floor"), numbers_given, strict=True))
    with pytest.raises(InvalidArgument):
        codec.take_session(box)


@pytest.mark.parametrize(
    ("take", "error"),
    [
        (lambda: codec.take_bytes({}, b"key"), InvalidArgument),
        (lambda: codec.take_blob({b"value.1": b""}, b"value"), InvalidArgument),
        (lambda: codec.take_integer({}, b"version"), InvalidArgument),
        (lambda: codec.take_session({b"session": b"1", b"sequence": b"1"}), InvalidArgument),
        (lambda: codec.take_answer_field({}, b"boot"), ProtocolError),
        (lambda: codec.take_answer_integer({}, b"session"), ProtocolError),
        (lambda: codec.take_found({}), ProtocolError),
        (lambda: codec.take_found({b"found": b"yes"}), ProtocolError),
    ],
)
def test_what_is_missing(take: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        take()
