"""Raft's messages as bytes, for the one field of the box `Raft`.

A message is version (1 byte), kind (1), replica number and disk id of the sender and of the addressee (2 + 16 each),
term (8), and then what the kind has, in the order of its class; numbers are big-endian, of 8 bytes. An Append ends in
the number of its entries (4), a table with term, kind and length (8 + 1 + 4) of each, and their payloads; that their
indexes follow `previous_index` goes without saying. A SnapshotPiece ends in the length of its configuration (4), that,
and the data.

There is one way to write a message: whatever `decode` takes, `encode` makes again.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter

from madkv.errors import ProtocolError
from madkv.raft.configuration import DISK_ID_BYTES, Configuration, Member
from madkv.raft.messages import (
    Append,
    AppendRefusal,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    PreVoteReply,
    SnapshotPiece,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
)

VERSION = 1
INDEX_MAX = 2**63 - 1

_MEMBERS = struct.Struct(f">H{DISK_ID_BYTES}sH{DISK_ID_BYTES}s")
_HEAD = f">BB{_MEMBERS.size}sQ"
_FIRST_BYTES = 2
_APPEND = struct.Struct(_HEAD + "QQQI")
_PIECE = struct.Struct(_HEAD + "QQQQBI")
_ENTRY = struct.Struct(">QBI")
_APPEND_KIND = 5
_PIECE_KIND = 11
_ENTRY_KINDS = {int(kind): kind for kind in EntryKind}


class _Plain:
    """A kind of message that is a row of numbers, in the order of its class, with a truth value last if it has one."""

    def __init__(self, number: int, kind: type[Message], *numbers: str, truth: str = "") -> None:
        self.number = number
        self.kind = kind
        self.names = (*numbers, truth) if truth else numbers
        get = attrgetter("term", *self.names)  # of one attribute it would give that and no tuple
        self.numbers_of: Callable[[Message], tuple[int, ...]] = get if self.names else lambda message: (message.term,)
        self.has_truth = bool(truth)
        self.layout = struct.Struct(_HEAD + "Q" * len(numbers) + "?" * self.has_truth)


_PLAIN = (
    _Plain(1, PreVote, "campaign_term", "last_index", "last_term"),
    _Plain(2, PreVoteReply, "campaign_term", truth="granted"),
    _Plain(3, Vote, "last_index", "last_term", truth="transfer"),
    _Plain(4, VoteReply, truth="granted"),
    _Plain(6, AppendReply, "match_index"),
    _Plain(7, AppendRefusal, "previous_index", "hint_index", "hint_term"),
    _Plain(8, Heartbeat, "commit_index", "round"),
    _Plain(9, HeartbeatReply, "round"),
    _Plain(10, TimeoutNow),
    _Plain(12, SnapshotReply, "stream", "offset"),
)
_PLAIN_BY_KIND = {plain.kind: plain for plain in _PLAIN}
_PLAIN_BY_NUMBER = {plain.number: plain for plain in _PLAIN}


class Encoder:
    """Writes messages. It keeps the entries of the latest Append as bytes: a leader sends the same to every peer."""

    def __init__(self) -> None:
        self._entries: tuple[Entry, ...] = ()
        self._entries_as_bytes = b""

    def encode(self, message: Message) -> bytes:
        """The message as bytes."""
        if isinstance(message, Append):
            entries = message.entries
            assert not entries or entries[0].index == message.previous_index + 1
            if entries != self._entries:
                self._entries_as_bytes = _encode_entries(entries)
                self._entries = entries
            return (
                _APPEND.pack(
                    VERSION,
                    _APPEND_KIND,
                    _encode_members(message),
                    message.term,
                    message.previous_index,
                    message.previous_term,
                    message.commit_index,
                    len(entries),
                )
                + self._entries_as_bytes
            )
        if isinstance(message, SnapshotPiece):
            configuration = message.configuration.encode()
            head = _PIECE.pack(
                VERSION,
                _PIECE_KIND,
                _encode_members(message),
                message.term,
                message.stream,
                message.last_index,
                message.last_term,
                message.offset,
                message.done,
                len(configuration),
            )
            return b"".join((head, configuration, message.data))
        plain = _PLAIN_BY_KIND[type(message)]
        return plain.layout.pack(VERSION, plain.number, _encode_members(message), *plain.numbers_of(message))


def _encode_members(message: Message) -> bytes:
    sender, to = message.sender, message.to
    assert len(sender.disk) == len(to.disk) == DISK_ID_BYTES
    return _MEMBERS.pack(sender.replica, sender.disk, to.replica, to.disk)


def _encode_entries(entries: tuple[Entry, ...]) -> bytes:
    assert not entries or entries[-1].index - entries[0].index == len(entries) - 1
    pack = _ENTRY.pack
    parts = [pack(entry.term, entry.kind, len(entry.payload)) for entry in entries]
    parts += [entry.payload for entry in entries]
    return b"".join(parts)


def decode(data: bytes) -> Message:
    """The message that `data` is. Raises ProtocolError for whatever no Encoder has made."""
    try:
        return _decode(data)
    except (ValueError, struct.error) as error:
        raise ProtocolError(f"no message of a replica: {error}") from None


def _decode(data: bytes) -> Message:
    """As `decode`, but what is raised may also be a ValueError or struct.error."""
    if len(data) < _FIRST_BYTES or data[0] != VERSION:
        raise ValueError(f"version {data[0] if data else None}, {len(data)} bytes")
    number = data[1]
    if number == _APPEND_KIND:
        return _decode_append(data)
    if number == _PIECE_KIND:
        return _decode_piece(data)
    plain = _PLAIN_BY_NUMBER.get(number)
    if plain is None:
        raise ValueError(f"kind {number}")
    _, _, members, term, *values = plain.layout.unpack(data)
    if plain.has_truth and data[-1] > 1:
        raise ValueError("a truth value that is neither")
    sender, to = _decode_members(members)
    return plain.kind(sender, to, term, *values)


@lru_cache(maxsize=64)
def _decode_members(members: bytes) -> tuple[Member, Member]:
    """Sender and addressee; kept, since every message on a connection has the same."""
    sender, sender_disk, to, to_disk = _MEMBERS.unpack(members)
    return Member(sender, sender_disk), Member(to, to_disk)


def _decode_append(data: bytes) -> Append:
    _, _, members, term, previous_index, previous_term, commit_index, count = _APPEND.unpack_from(data)
    at = _APPEND.size + count * _ENTRY.size
    if at > len(data) or previous_index + count > INDEX_MAX:
        raise ValueError(f"an Append of {count:,} entries in {len(data):,} bytes")
    entries: list[Entry] = []
    index = previous_index
    for entry_term, kind, payload_bytes in _ENTRY.iter_unpack(data[_APPEND.size : at]):
        index += 1
        end = at + payload_bytes
        if kind not in _ENTRY_KINDS:
            raise ValueError(f"an entry of kind {kind}")
        entries.append(Entry(index, entry_term, _ENTRY_KINDS[kind], data[at:end]))
        at = end
    if at != len(data):
        raise ValueError("entries whose lengths do not add up")
    sender, to = _decode_members(members)
    return Append(
        sender=sender,
        to=to,
        term=term,
        previous_index=previous_index,
        previous_term=previous_term,
        entries=tuple(entries),
        commit_index=commit_index,
    )


def _decode_piece(data: bytes) -> SnapshotPiece:
    _, _, members, term, stream, last_index, last_term, offset, done, configuration_bytes = _PIECE.unpack_from(data)
    at = _PIECE.size + configuration_bytes
    configuration = Configuration.decode(data[_PIECE.size : at])
    if at > len(data) or done > 1 or configuration.encode() != data[_PIECE.size : at]:
        raise ValueError("a piece of a snapshot that is none")
    sender, to = _decode_members(members)
    return SnapshotPiece(
        sender=sender,
        to=to,
        term=term,
        stream=stream,
        last_index=last_index,
        last_term=last_term,
        configuration=configuration,
        offset=offset,
        data=data[at:],
        done=bool(done),
    )
