"""Snapshots on their way: a leader's streams to its peers, and the one that a follower is receiving.

One piece of a stream is out at a time. It is repeated until the peer asks for the next one; a peer that says nothing
for long is given up, and gets a newer snapshot, from the start, when it is back.
"""

from collections.abc import Callable, Sequence

import attrs

from madkv.raft.configuration import Member
from madkv.raft.core import RaftCore, Role
from madkv.raft.messages import Message, SnapshotPiece, SnapshotReply
from madkv.raft.progress import Flow
from madkv.server.events import Events
from madkv.storage.snapshot import SnapshotHead, SnapshotReader

RESEND_TICKS = 4
GIVE_UP_TICKS = 100
"""Ticks without progress after which a piece is sent again, and a stream is given up."""


@attrs.define
class _Stream:
    number: int
    reader: SnapshotReader
    still_ticks: int = 0


class SnapshotStreams:
    """All streams of one leader. Each holds a state of the store open, so none may live for ever."""

    def __init__(
        self,
        core: RaftCore,
        open_snapshot: Callable[[], SnapshotReader],
        send: Callable[[Sequence[Message]], None],
        events: Events,
    ) -> None:
        self._core = core
        self._open_snapshot = open_snapshot
        self._send = send
        self._events = events
        self._streams: dict[Member, _Stream] = {}
        self.started = self.completed = self.given_up = self.sent_bytes = 0
        """Streams in all, those that the peer has taken to the end or that it did not, and bytes with repetitions."""

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def oldest_index(self) -> int | None:
        """Where the log that the receivers will ask for next begins; None when there are none."""
        return min((stream.reader.head.last_index for stream in self._streams.values()), default=None)

    def start(self, to: Member) -> None:
        """Begin to stream the present state to a peer."""
        self._end(to)
        self.started += 1
        stream = _Stream(self.started, self._open_snapshot())
        self._streams[to] = stream
        self._events.add("snapshot begun", peer=to.replica, index=stream.reader.head.last_index)
        self._core.snapshot_started(to, stream.reader.head.last_index)
        self._send_piece(to, stream)

    def replied(self, message: SnapshotReply) -> None:
        """A peer has so much of its snapshot."""
        stream = self._streams.get(message.sender)
        if stream is None or not self._is_wanted(message.sender, stream) or message.term != self._core.term:
            return
        if message.stream != stream.number:
            return
        reader = stream.reader
        if message.offset == reader.offset + len(reader.piece) and not reader.done:
            reader.next()
            stream.still_ticks = 0
            self._send_piece(message.sender, stream)
        elif message.offset == 0 and reader.offset:
            self._give_up(message.sender)  # It has lost what it had, and a reader goes forward only.

    def tick(self) -> None:
        """Time has passed: repeat what may be lost, let go of what is of no use any more."""
        for to, stream in list(self._streams.items()):
            if not self._is_wanted(to, stream):
                self._no_more_wanted(to, stream)
                continue
            stream.still_ticks += 1
            if stream.still_ticks >= GIVE_UP_TICKS:
                self._give_up(to)
            elif stream.still_ticks % RESEND_TICKS == 0:
                self._send_piece(to, stream)

    def give_up_before(self, index: int) -> None:
        """The log will begin after `index`: of a snapshot that ends before it the receiver could not go on."""
        for to, stream in list(self._streams.items()):
            if stream.reader.head.last_index < index:
                self._give_up(to)

    def close(self) -> None:
        """End them all."""
        for to in list(self._streams):
            self._end(to)

    def _is_wanted(self, to: Member, stream: _Stream) -> bool:
        progress = self._core.progress.get(to) if self._core.role is Role.LEADER else None
        return (
            progress is not None
            and progress.flow is Flow.SNAPSHOT
            and progress.snapshot_index == stream.reader.head.last_index
        )

    def _send_piece(self, to: Member, stream: _Stream) -> None:
        core, reader, head = self._core, stream.reader, stream.reader.head
        piece = SnapshotPiece(
            sender=core.member,
            to=to,
            term=core.term,
            stream=stream.number,
            last_index=head.last_index,
            last_term=head.last_term,
            configuration=head.configuration,
            offset=reader.offset,
            data=reader.piece,
            done=reader.done,
        )
        self._send([piece])
        self.sent_bytes += len(piece.data)

    def _no_more_wanted(self, to: Member, stream: _Stream) -> None:
        """Most often it is there; otherwise this replica does not lead any more, or the peer is no member."""
        progress = self._core.progress.get(to)
        index = stream.reader.head.last_index
        if progress is not None and progress.match_index >= index:
            self.completed += 1
            self._events.add("snapshot sent", peer=to.replica, index=index)
        self._end(to)

    def _give_up(self, to: Member) -> None:
        self.given_up += 1
        self._events.add("snapshot given up", peer=to.replica)
        self._core.snapshot_given_up(to)
        self._end(to)

    def _end(self, to: Member) -> None:
        stream = self._streams.pop(to, None)
        if stream is not None:
            stream.reader.close()


def head_of(piece: SnapshotPiece) -> SnapshotHead:
    """The snapshot that a piece is of, on its way."""
    return SnapshotHead(piece.last_index, piece.last_term, piece.configuration, (piece.term, piece.stream))


class ArrivingPieces:
    """Pieces that wait for a follower's disk: one at a time, since no more than one is out."""

    def __init__(self) -> None:
        self.waiting: SnapshotPiece | None = None
        self.received_bytes = 0
        self._newest = 0, 0  # (term, number) of the newest stream that was heard of

    def add(self, piece: SnapshotPiece) -> None:
        """Take in a piece. One that comes late takes no newer one's place, and ends no newer stream."""
        self.received_bytes += len(piece.data)
        stream = piece.term, piece.stream
        waiting = self.waiting
        if stream < self._newest or (waiting is not None and stream == self._newest and piece.offset < waiting.offset):
            return
        self._newest, self.waiting = stream, piece

    def take(self) -> SnapshotPiece:
        """The one that waits."""
        piece, self.waiting = self.waiting, None
        assert piece is not None
        return piece

    def forget(self, last_index: int) -> None:
        """Everything up to `last_index` is there: what waits may be of no use any more, and needs no answer."""
        if self.waiting is not None and self.waiting.last_index <= last_index:
            self.waiting = None
