"""What replicas say to each other, and what the log is made of.

Every message names its sender, its addressee and the sender's term when it was made. Messages may be lost, delayed,
repeated and reordered; none is answered twice for what was sent once, and nothing waits for an answer.
"""

from enum import IntEnum
from typing import NamedTuple

from madkv.raft.configuration import Configuration, Member
from madkv.values import value_class

ENTRY_OVERHEAD_BYTES = 128
"""About what an entry costs in memory beside its payload, and on its way there less."""


class EntryKind(IntEnum):
    """What an entry is for; the numbers are part of the encoding and never change."""

    NOOP = 0
    OPERATION = 1
    CONFIGURATION = 2


@value_class
class Entry:
    """One entry of the log. The same index and term on two replicas are the same entry (Log Matching, section 5.3)."""

    index: int
    term: int
    kind: EntryKind
    payload: bytes = b""

    @property
    def size_bytes(self) -> int:
        """What it counts towards bounds on bytes."""
        return len(self.payload) + ENTRY_OVERHEAD_BYTES


class HardState(NamedTuple):
    """What must be on disk before anybody is told of it (Figure 2, persistent state)."""

    term: int = 0
    voted_for: Member | None = None


@value_class
class Message:
    """Base of all messages."""

    sender: Member
    to: Member
    term: int


@value_class
class PreVote(Message):
    """Would you vote for me in `campaign_term`? Asked before the term is raised (dissertation, section 9.6)."""

    campaign_term: int
    last_index: int
    last_term: int


@value_class
class PreVoteReply(Message):
    """The answer about `campaign_term`; binds nobody."""

    campaign_term: int
    granted: bool


@value_class
class Vote(Message):
    """RequestVote (Figure 2). With `transfer`, the leader itself asked for this election (dissertation, 3.10)."""

    last_index: int
    last_term: int
    transfer: bool = False


@value_class
class VoteReply(Message):
    """The answer to Vote, in the term of the election."""

    granted: bool


@value_class
class Append(Message):
    """AppendEntries (Figure 2): entries that follow `previous_index`, and how far the leader has committed."""

    previous_index: int
    previous_term: int
    entries: tuple[Entry, ...]
    commit_index: int


@value_class
class AppendReply(Message):
    """`match_index`: on the sender's disk, the log equals the leader's up to there."""

    match_index: int


@value_class
class AppendRefusal(Message):
    """The entry at `previous_index` is not there, or has another term.

    Entries above `hint_index` cannot match; the one there has `hint_term` (section 5.3, the back-off by terms).
    """

    previous_index: int
    hint_index: int
    hint_term: int


@value_class
class Heartbeat(Message):
    """The leader lives. `commit_index` never exceeds what the addressee is known to hold; `round` is ReadIndex's."""

    commit_index: int
    round: int


@value_class
class HeartbeatReply(Message):
    """The sender took this leader for its leader when heartbeat `round` came."""

    round: int


@value_class
class TimeoutNow(Message):
    """Campaign at once: the leader hands over (dissertation, section 3.10)."""


@value_class
class SnapshotPiece(Message):
    """A piece of a snapshot of everything up to `last_index`, from byte or item `offset`; `done` marks the last.

    `stream` numbers the leader's streams of this term, later ones higher. Each begins from the start, although two of
    them may be of the same snapshot: so nothing depends on their being cut at the same places.
    """

    stream: int
    last_index: int
    last_term: int
    configuration: Configuration
    offset: int
    data: bytes
    done: bool


@value_class
class SnapshotReply(Message):
    """Of the leader's `stream`, everything before `offset` is staged."""

    stream: int
    offset: int
