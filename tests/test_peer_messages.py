"""Raft's messages as bytes: there and back, and nothing but ProtocolError for whatever is none."""

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from madkv.errors import ProtocolError
from madkv.raft import messages
from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Append, Entry, EntryKind, Heartbeat, Message, SnapshotPiece, Vote
from madkv.wire.peer import INDEX_MAX, Encoder, decode

numbers = st.integers(0, 2**64 - 1)
members = st.builds(Member, st.integers(0, 2**16 - 1), st.binary(min_size=16, max_size=16))
configurations = st.sets(members, max_size=6).flatmap(
    lambda all_of_them: st.sets(st.sampled_from(sorted(all_of_them) or [None])).map(
        lambda some: Configuration(
            voters=frozenset(all_of_them - some), learners=frozenset(member for member in some if member is not None)
        )
    )
)
KINDS = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)]
KINDS.remove(Message)


@st.composite
def appends(draw: st.DrawFn) -> Append:
    contents = draw(st.lists(st.tuples(numbers, st.sampled_from(EntryKind), st.binary(max_size=40)), max_size=6))
    previous_index = draw(st.integers(0, INDEX_MAX - len(contents)))
    entries = tuple(
        Entry(previous_index + number, term, kind, payload) for number, (term, kind, payload) in enumerate(contents, 1)
    )
    return Append(
        sender=draw(members),
        to=draw(members),
        term=draw(numbers),
        previous_index=previous_index,
        previous_term=draw(numbers),
        entries=entries,
        commit_index=draw(numbers),
    )


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    if kind is Append:
        return appends()
    values = {int: numbers, bool: st.booleans(), Member: members, bytes: st.binary(max_size=60)}
    fields = {field.name: values.get(field.type, configurations) for field in attrs.fields(kind)}
    return st.builds(kind, **fields)


all_messages = st.sampled_from(KINDS).flatmap(messages_of)


def encode(message: Message) -> bytes:
    return Encoder().encode(message)


A, B = Member(0, b"a" * 16), Member(65_535, b"b" * 16)
SAMPLE = Append(
    sender=A,
    to=B,
    term=3,
    previous_index=7,
    previous_term=2,
    entries=(Entry(8, 2, EntryKind.OPERATION, b"payload"), Entry(9, 3, EntryKind.NOOP)),
    commit_index=7,
)


def test_the_bytes_stay_what_they_are() -> None:
    """What one release sends, the next must read."""
    number = "%016x"
    assert encode(Heartbeat(sender=A, to=B, term=3, commit_index=4, round=5)).hex() == (
        "01" + "08" + "0000" + "61" * 16 + "ffff" + "62" * 16 + number % 3 + number % 4 + number % 5
    )
    assert encode(SAMPLE).hex() == (
        f"0105{'0000' + '61' * 16}{'ffff' + '62' * 16}{number % 3}{number % 7}{number % 2}{number % 7}00000002"
        f"{number % 2}0100000007{number % 3}0000000000{b'payload'.hex()}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: type[Message]) -> None:
    @given(messages_of(kind))
    def check(message: Message) -> None:
        back = decode(encode(message))
        assert type(back) is kind and back == message

    check()


@given(st.lists(appends(), max_size=4))
def test_an_encoder_remembers_no_wrong_entries(sent: list[Append]) -> None:
    """The same entries to several peers, then others: each message is as from an encoder that knows nothing."""
    encoder = Encoder()
    for message in sent:
        for copy in (message, attrs.evolve(message, to=B)):
            assert encoder.encode(copy) == encode(copy)


def read_or_refuse(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolError:
        return
    assert encode(message) == data, "two ways to write a message"


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    read_or_refuse(data)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_garbage_that_begins_well(kind: int, data: bytes) -> None:
    read_or_refuse(bytes([1, kind]) + data)


@given(all_messages, st.data())
@example(SAMPLE, None)
def test_messages_with_a_fault(message: Message, data: st.DataObject | None) -> None:
    """Bytes changed, missing or added anywhere."""
    encoded = encode(message)
    # The data of a piece of a snapshot ends where the message does; everything else has its length.
    least = len(encoded) - len(message.data) if isinstance(message, SnapshotPiece) else len(encoded)
    for cut in range(least):
        with pytest.raises(ProtocolError):
            decode(encoded[:cut])
    if data is not None:
        at = data.draw(st.integers(0, len(encoded) - 1))
        read_or_refuse(encoded[:at] + data.draw(st.binary(max_size=3)) + encoded[at + 1 :])
    if not isinstance(message, SnapshotPiece):
        with pytest.raises(ProtocolError):
            decode(encoded + b"\0")


def test_every_bit_flipped() -> None:
    vote = Vote(sender=A, to=B, term=3, last_index=4, last_term=2, transfer=True)
    piece = SnapshotPiece(
        sender=A,
        to=B,
        term=3,
        stream=6,
        last_index=4,
        last_term=2,
        configuration=Configuration(frozenset([A]), frozenset([B])),
        offset=0,
        data=b"data",
        done=True,
    )
    for message in (SAMPLE, vote, piece):
        encoded = encode(message)
        for bit in range(8 * len(encoded)):
            flipped = bytearray(encoded)
            flipped[bit // 8] ^= 1 << bit % 8
            read_or_refuse(bytes(flipped))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "version None"),
        (b"\2" + encode(SAMPLE)[1:], "version 2"),
        (b"\1\x0d" + encode(SAMPLE)[2:], "kind 13"),
        (encode(SAMPLE)[:-1], "do not add up"),
        (encode(SAMPLE)[:70], r"2 entries in 70 bytes|unpack"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        decode(data)


def test_indexes_stay_within_what_the_store_can_hold() -> None:
    last = attrs.evolve(SAMPLE, previous_index=INDEX_MAX - 1, entries=(Entry(INDEX_MAX, 1, EntryKind.NOOP),))
    assert decode(encode(last)) == last
    beyond = attrs.evolve(SAMPLE, previous_index=INDEX_MAX, entries=(Entry(INDEX_MAX + 1, 1, EntryKind.NOOP),))
    with pytest.raises(ProtocolError):
        decode(encode(beyond))
