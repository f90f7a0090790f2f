"""A snapshot as it travels: pairs and sessions of one applied index, in pieces of bounded size.

A piece is a run of records: table (1 byte), key length (2), value length (4), key, value. Offsets count bytes from the
snapshot's beginning. Pieces are made while they are asked for, so that no side ever holds the whole.
"""

import struct
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

import attrs

from madkv.errors import ProtocolError
from madkv.limits import KEY_BYTES_MAX, MIB
from madkv.raft.configuration import Configuration

PIECE_BYTES = 1 * MIB
PAIRS = 0
SESSIONS = 1
_RECORD = struct.Struct(">BHI")

Record = tuple[int, bytes, bytes]
"""Table, key, value."""


@attrs.frozen
class SnapshotHead:
    """What a snapshot stands for: everything up to entry `last_index`, of `last_term`."""

    last_index: int
    last_term: int
    configuration: Configuration
    stream: tuple[int, int] = (0, 0)
    """While it travels: the leader's term and the number of its stream. What was staged of another is of no use."""


class SnapshotSource(Protocol):
    """A state that stands still while it is read."""

    @property
    def head(self) -> SnapshotHead:
        """What it is a state of."""

    def records(self, table: int) -> Iterator[tuple[bytes, bytes]]:
        """A table's keys and values, in key order."""

    def close(self) -> None:
        """Let go of it."""


class SnapshotReader:
    """Cuts a source into pieces. The present piece can be had again until the next one is asked for."""

    def __init__(self, source: SnapshotSource, piece_bytes: int | None = None) -> None:
        """A piece ends with the record that reaches `piece_bytes`, PIECE_BYTES if none are named."""
        self._source = source
        self._piece_bytes = PIECE_BYTES if piece_bytes is None else piece_bytes
        self._records = chain(
            ((PAIRS, key, value) for key, value in source.records(PAIRS)),
            ((SESSIONS, key, value) for key, value in source.records(SESSIONS)),
        )
        self._lookahead = next(self._records, None)
        self.head = source.head
        self.offset = 0
        """Where the present piece begins."""
        self.piece = b""
        self.done = False
        """Whether the present piece is the last."""
        self._fill()

    def next(self) -> None:
        """Go on to the next piece."""
        assert not self.done
        self.offset += len(self.piece)
        self._fill()

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()

    def _fill(self) -> None:
        parts: list[bytes] = []
        size = 0
        while self._lookahead is not None and size < self._piece_bytes:
            table, key, value = self._lookahead
            parts += (_RECORD.pack(table, len(key), len(value)), key, value)
            size += _RECORD.size + len(key) + len(value)
            self._lookahead = next(self._records, None)
        self.piece = b"".join(parts)
        self.done = self._lookahead is None


def records_of(piece: bytes) -> Iterator[Record]:
    """The records in a piece. Raises ProtocolError for what is none."""
    position = 0
    while position < len(piece):
        if position + _RECORD.size > len(piece):
            raise ProtocolError("a piece of a snapshot that ends in the middle of a record")
        table, key_length, value_length = _RECORD.unpack_from(piece, position)
        key_at = position + _RECORD.size
        value_at = key_at + key_length
        position = value_at + value_length
        if table not in (PAIRS, SESSIONS) or not 0 < key_length <= KEY_BYTES_MAX or position > len(piece):
            raise ProtocolError("a piece of a snapshot that holds something else")
        yield table, piece[key_at:value_at], piece[value_at:position]
