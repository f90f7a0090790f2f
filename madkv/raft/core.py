"""RaftCore: one replica's part in the protocol, as a pure step machine.

What goes in: `tick`, `step` (a message), `propose`, `read`, `persisted`. What comes out: `ready`, which says what to
send, what to persist, what to apply and which reads are released. The driver may do these in any order and at any
speed, but for two rules: persists are carried out one after another in order, each atomically, and what a persist
carries counts only once `persisted` was called for it.

How the rules of Figure 2 about persistence are kept: a message that depends on what is not on disk yet (every vote,
every acknowledgement, everything while a new term or vote is unsaved) is held back and leaves with the first `ready`
after the persist that covers it. A leader's entries leave before its own persist of them is done (dissertation, section
10.2.1): it counts itself only then.

The shape: the term is looked at once, in `step`; then there is one function for each kind of message, which starts with
what makes it refuse. Roles change only in the `_become_` functions. What every role reads is in state.py; what is done
with what a leader sends is in following.py; what a leader has beside is in leadership.py, and goes when its leadership
ends.
"""

from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Any

import attrs

from madkv.raft.bounds import ASK_AGAIN_TICKS, ELECTION_TICKS, FIRST_TICKS, STALLED_TICKS, USUAL, Bounds
from madkv.raft.configuration import Configuration, Member
from madkv.raft.following import Following
from madkv.raft.leadership import Leadership
from madkv.raft.log import LogReader
from madkv.raft.messages import (
    Append,
    AppendRefusal,
    AppendReply,
    Entry,
    HardState,
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
from madkv.raft.progress import Progress
from madkv.raft.state import ReplicaState

TERM_JUMP_MAX = 2**32
"""Terms grow by one for each election: a message so far ahead was made by nobody who follows the protocol. Whoever took
over its term might have none left to campaign in."""

_NOTHING: Sequence[Any] = ()


class Role(Enum):
    """What a replica is, with the words that the log shows."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@attrs.define(eq=False)
class Persist:
    """What one commit of the disk must hold: the hard state if it changed, and entries that replace what follows."""

    hard_state: HardState | None
    entries: tuple[Entry, ...]
    number: int


@attrs.define
class ReleasedRead:
    """A read that may be answered once everything up to `index` is applied."""

    request: Hashable
    index: int


@attrs.define
class Ready:
    """What is to be done now. `refused_reads` are to be tried again, elsewhere or later."""

    messages: Sequence[Message]
    persist: Persist | None
    committed: Sequence[Entry]
    reads: Sequence[ReleasedRead]
    refused_reads: Sequence[Hashable]
    snapshots_wanted: Sequence[Member]
    """Peers that need the snapshot: call `snapshot_started` once one is at hand."""
    pieces: Sequence[SnapshotPiece]
    """Pieces of a snapshot from this term's leader, for the storage to stage; the last one, to install."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(
            self.messages
            or self.persist
            or self.committed
            or self.reads
            or self.refused_reads
            or self.snapshots_wanted
            or self.pieces
        )


class RaftCore(ReplicaState):
    """One replica. `role`, `leader` and what goes with them change in `_become_*` only."""

    def __init__(
        self,
        member: Member,
        reader: LogReader,
        hard_state: HardState,
        configurations: Sequence[tuple[int, Configuration]],
        applied_index: int,
        draw: Callable[[int], int],
        bounds: Bounds = USUAL,
    ) -> None:
        """Take up where the disk left off.

        `configurations` are those in the log and, first, the one that held at the snapshot or at the start, with their
        indexes. `draw(n)` gives a number from 0 to n - 1; elections are spread by it.
        """
        super().__init__(member, reader, hard_state, configurations, applied_index, bounds)
        self.role = Role.FOLLOWER
        self.leader: Member | None = None
        self.led_term: int | None = None
        """The current term, as long as this replica leads it."""
        self._following = Following(self)
        self._leading: Leadership | None = None
        self._last_round = 0  # of earlier leaderships
        self._draw = draw
        self._timeout = FIRST_TICKS + draw(ASK_AGAIN_TICKS)
        self._votes: dict[Member, bool] = {}
        # For those who look on.
        self.campaigns = 0
        """How often it has stood for election."""
        self.elections_won = 0
        # What is being written.
        self._under_way: list[Message] = []  # wait for the persist that is being carried out
        self._persisting: Persist | None = None
        self._persist_number = 0
        # Reads that leave with the next Ready.
        self._reads_released: list[ReleasedRead] = []
        self._reads_refused: list[Hashable] = []

    # --- What can be asked ------------------------------------------------------------------------------------------

    @property
    def progress(self) -> dict[Member, Progress]:
        """As the leader: what is known of every other member."""
        return self._leading.progress if self._leading is not None else {}

    @property
    def has_more_to_send(self) -> bool:
        """Whether the last Ready may not have carried all that may be sent: ask for another one soon."""
        return self._leading is not None and self._leading.has_more_to_send

    @property
    def lag_entries(self) -> int:
        """How many entries its group has committed, as far as it has heard, that it has not handed out for applying."""
        return max(0, max(self.commit_index, self._following.leader_commit_index) - self.applied_index)

    @property
    def index_to_keep(self) -> int | None:
        """Up to where the log may go, by what those peers will ask for that answer; None when none of them needs it."""
        return self._leading.index_to_keep if self._leading is not None else None

    @property
    def batch_on_its_way(self) -> int | None:
        """As the leader of others: the last entry of a batch that is not committed yet; None when there is none."""
        leading = self._leading
        if leading is None or self.commit_index >= leading.batch_end or not leading.progress:
            return None
        return leading.batch_end

    def hurry(self) -> None:
        """The batch takes long, or will: let others have it than those who are the quickest as a rule."""
        if self._leading is not None:
            self._leading.hurry()

    @property
    def _last_to_persist(self) -> int:
        """The last entry that the disk may be given: a leader's takes part in the batch that is on its way."""
        leading = self._leading
        return self.log.last_index if leading is None or not leading.progress else leading.batch_end

    # --- Time -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed: a tenth of the shortest election time-out."""
        self.ticks += 1
        self.elapsed += 1
        has_work = self.log.taken_index < self._last_to_persist or self.hard_state != self.saved_hard_state
        self.stalled_ticks = self.stalled_ticks + 1 if has_work or self._persisting is not None else 0
        if self._leading is not None:
            self._leading.tick()
        elif self.elapsed >= self._timeout:
            self.elapsed = 0
            self.campaign()

    def disk_moved(self) -> None:
        """The disk has done a piece of work, of whatever kind: it does not hang."""
        self.stalled_ticks = 0

    def _draw_timeout(self) -> int:
        return ELECTION_TICKS + self._draw(ELECTION_TICKS)

    def _draw_short_timeout(self) -> int:
        return ASK_AGAIN_TICKS + self._draw(ASK_AGAIN_TICKS)

    # --- What a leader does on request ------------------------------------------------------------------------------

    def propose(self, payload: bytes) -> int | None:
        """Append an operation to the log; its index, at the current term. None unless this is a leader that serves."""
        return None if self._leading is None else self._leading.propose(payload)

    def propose_configuration(self, configuration: Configuration) -> int | None:
        """Change the members, by one voter at a time; the entry's index, or None when that is not possible now."""
        return None if self._leading is None else self._leading.propose_configuration(configuration)

    def transfer_leadership(self, to: Member) -> bool:
        """Hand over to a voter that answers (dissertation, section 3.10); False when it cannot begin.

        No proposals are taken meanwhile.
        """
        return self._leading is not None and self._leading.transfer_to(to)

    def hand_over(self) -> bool:
        """The same, to the voter that has most of the log; False when there is nobody, or this is no leader."""
        return self._leading is not None and self._leading.hand_over()

    def read(self, request: Hashable) -> None:
        """Ask for a moment at which reading is linearizable; it comes back in a Ready, released or refused."""
        if self._leading is None:
            self._reads_refused.append(request)
        else:
            self._leading.reads_waiting.append(request)

    @property
    def index_to_read(self) -> int | None:
        """A read may be answered at once when everything up to there is applied; None: `read` has to ask others first,
        or this is no leader."""
        return None if self._leading is None else self._leading.index_to_read

    def _release(self, requests: list[Hashable], index: int) -> None:
        self._reads_released += [ReleasedRead(request, index) for request in requests]

    def end_reads(self) -> list[Hashable]:
        """Every read that has not left in a Ready, for a driver that ends: they are not known here any more."""
        reads = self._leading.take_reads() if self._leading is not None else []
        reads += self._reads_refused + [read.request for read in self._reads_released]
        self._reads_refused, self._reads_released = [], []
        return reads

    # --- Messages ---------------------------------------------------------------------------------------------------

    def step(self, message: Message) -> bool:
        """Take in one message; False when it has changed nothing that the next Ready could show.

        This is the one place where terms are compared (Figure 2, rules for all servers).
        """
        if message.to != self.member:
            return False  # To this replica on another disk: what that one knew and promised is not known here.
        is_news = message.term > self.term
        if is_news:
            if self._is_disruption(message):
                return False
            if not isinstance(message, (PreVote, PreVoteReply)):
                is_from_leader = isinstance(message, (Append, Heartbeat, SnapshotPiece, TimeoutNow))
                self._become_follower(message.term, message.sender if is_from_leader else None)
        elif message.term < self.term and not isinstance(message, PreVoteReply):
            # (A PreVote is granted without taking over its term, so its answer may well be of an older one.)
            self._answer_from_the_past(message)
            return True
        return _STEPS[type(message)](self, message) is not False or is_news

    def _is_disruption(self, message: Message) -> bool:
        """Whether a member that has lost touch asks for votes while the leader is alive and well (section 6), or a term
        comes from nowhere."""
        if message.term - self.term > TERM_JUMP_MAX:
            return True
        if not isinstance(message, Vote) or message.transfer:
            return False
        return self._hears_leader()

    def _hears_leader(self) -> bool:
        return self.leader is not None and self.elapsed < ELECTION_TICKS

    def _answer_from_the_past(self, message: Message) -> None:
        """A sender of an older term must hear of the newer one.

        Otherwise: a member was cut off, its term ran ahead, it is back. It ignores the leader's messages, which are of
        an older term, and the others refuse its PreVotes, since they hear the leader: it would be stuck for ever.
        """
        if isinstance(message, (Append, Heartbeat, SnapshotPiece)):
            self.send_now(HeartbeatReply(sender=self.member, to=message.sender, term=self.term, round=0))
        elif isinstance(message, PreVote):
            self._reply_pre_vote(message, granted=False)
        elif isinstance(message, Vote):
            self.send(VoteReply(sender=self.member, to=message.sender, term=self.term, granted=False))

    # --- Elections --------------------------------------------------------------------------------------------------

    def campaign(self) -> None:
        """The election time-out has passed: ask whether an election could be won (dissertation, section 9.6)."""
        if self.role is Role.LEADER:
            return
        if self._may_campaign():
            self._become_pre_candidate()
        else:
            self._become_follower(self.term, None)  # It waits for a leader, and must not claim to hear one.

    def _may_campaign(self) -> bool:
        """Whether it has a vote, or had one before an entry that is not known to be committed, and a disk that moves.

        Otherwise (dissertation, section 4.2.2): 1 of two members appends its own removal and crashes before 2 has it.
        2 needs a vote, and 1 cannot give it, since its own log is longer: if 1 did not campaign, nobody would ever win.
        """
        if self.stalled_ticks >= STALLED_TICKS:
            return False  # Its vote could not be saved.
        for index, configuration in reversed(self.configurations):
            if self.member in configuration.voters:
                return True
            if index <= self.commit_index:
                return False
        return False

    def _become_follower(self, term: int, leader: Member | None) -> None:
        was_leading, self._leading = self._leading, None
        self.role = Role.FOLLOWER
        self.leader, self.led_term = leader, None
        if term > self.term:
            self.set_hard_state(HardState(term, None))
        if was_leading is not None or leader is not None:
            # A mere newer term leaves the time-out running: its candidate may have no chance, and we may.
            self.elapsed = 0
        self._timeout = self._draw_timeout()
        self._votes.clear()
        if was_leading is not None:
            self._reads_refused += was_leading.take_reads()
            self._last_round = was_leading.round

    def _step_down(self) -> None:
        self._become_follower(self.term, None)

    def _become_pre_candidate(self) -> None:
        assert self.role is not Role.LEADER
        self.role = Role.PRE_CANDIDATE
        self.leader = None
        # Nobody's vote is spent on a PreVote, so that it may be repeated soon: when all of a group were down, those who
        # are up first ask too early.
        self._timeout = self._draw_short_timeout()
        self._votes = {self.member: True}
        if self.configuration.is_quorum(self._votes):
            self._become_candidate(transfer=False)
            return
        for voter in sorted(self.configuration.voters - {self.member}):
            self.send_now(
                PreVote(
                    sender=self.member,
                    to=voter,
                    term=self.term,
                    campaign_term=self.term + 1,
                    last_index=self.log.last_index,
                    last_term=self.log.last_term,
                )
            )

    def _become_candidate(self, *, transfer: bool) -> None:
        assert self.role is not Role.LEADER
        self.role = Role.CANDIDATE
        self.campaigns += 1
        self.leader = None
        self.elapsed = 0
        self._timeout = self._draw_timeout()
        self.set_hard_state(HardState(self.term + 1, self.member))
        self._votes = {}
        # Its own vote is a message too: it counts when it is on disk.
        self.send(VoteReply(sender=self.member, to=self.member, term=self.term, granted=True))
        for voter in sorted(self.configuration.voters - {self.member}):
            self.send(
                Vote(
                    sender=self.member,
                    to=voter,
                    term=self.term,
                    last_index=self.log.last_index,
                    last_term=self.log.last_term,
                    transfer=transfer,
                )
            )

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE and self.hard_state == self.saved_hard_state
        self.role = Role.LEADER
        self.elections_won += 1
        self.leader, self.led_term = self.member, self.term
        self.elapsed = 0
        self._votes.clear()
        self._leading = Leadership(self, self._step_down, self._release, self._last_round)

    def _step_pre_vote(self, message: PreVote) -> None:
        granted = (
            message.campaign_term > self.term
            and not self._hears_leader()
            and self.log.is_up_to_date(message.last_index, message.last_term)
        )
        self._reply_pre_vote(message, granted)

    def _reply_pre_vote(self, message: PreVote, granted: bool) -> None:
        self.send_now(
            PreVoteReply(
                sender=self.member,
                to=message.sender,
                term=self.term,
                campaign_term=message.campaign_term,
                granted=granted,
            )
        )

    def _step_pre_vote_reply(self, message: PreVoteReply) -> None:
        if message.term > self.term:  # a refusal by somebody who is ahead
            self._become_follower(message.term, None)
            return
        if self.role is not Role.PRE_CANDIDATE or message.campaign_term != self.term + 1 or not message.granted:
            return
        self._votes[message.sender] = True
        if self.configuration.is_quorum(self._votes):
            self._become_candidate(transfer=False)

    def _step_vote(self, message: Vote) -> None:
        # Whether this member has a vote is for the candidate's configuration to say, which may be newer (dissertation,
        # section 4.1): a learner that does not know yet that it was made a voter may be the one who is needed.
        granted = (
            self.leader is None
            and self.hard_state.voted_for in (None, message.sender)
            and self.log.is_up_to_date(message.last_index, message.last_term)
        )
        if granted:
            self.set_hard_state(HardState(self.term, message.sender))
            self.elapsed = 0
        self.send(VoteReply(sender=self.member, to=message.sender, term=self.term, granted=granted))

    def _step_vote_reply(self, message: VoteReply) -> None:
        if self.role is not Role.CANDIDATE:
            return
        self._votes[message.sender] = message.granted
        if not message.granted:
            # Others stand too: if nobody wins, nobody is to wait for long before the next PreVote.
            self._timeout = min(self._timeout, self.elapsed + self._draw_short_timeout())
        if self.configuration.is_quorum(member for member, granted in self._votes.items() if granted):
            self._become_leader()

    def _step_timeout_now(self, message: TimeoutNow) -> None:
        if self._may_campaign():
            self._become_candidate(transfer=True)

    # --- Replication: the follower's side, see following.py -----------------------------------------------------------

    def _follow(self, leader: Member) -> None:
        """A message of this term from its only leader."""
        assert self.role is not Role.LEADER, "two leaders in one term"
        if self.role is not Role.FOLLOWER or self.leader is None:
            self._become_follower(self.term, leader)
        assert self.leader == leader
        self.elapsed = 0

    def _step_append(self, message: Append) -> None:
        self._follow(message.sender)
        self._following.step_append(message)

    def _step_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.sender)
        self.commit_to(min(message.commit_index, self.log.last_index))
        self.send_now(HeartbeatReply(sender=self.member, to=message.sender, term=self.term, round=message.round))

    # --- Replication: the leader's side, see leadership.py ----------------------------------------------------------

    def _step_append_reply(self, message: AppendReply) -> bool:
        return self._leading is not None and self._leading.step_append_reply(message)

    def _step_append_refusal(self, message: AppendRefusal) -> None:
        if self._leading is not None:
            self._leading.step_append_refusal(message)

    def _step_heartbeat_reply(self, message: HeartbeatReply) -> bool:
        return self._leading is not None and self._leading.step_heartbeat_reply(message)

    def _step_snapshot_reply(self, message: SnapshotReply) -> None:
        if self._leading is not None:
            self._leading.heard(message.sender)

    # --- Snapshots --------------------------------------------------------------------------------------------------

    def snapshot_started(self, to: Member, last_index: int) -> None:
        """The driver streams a snapshot that goes up to `last_index` to this peer."""
        if self._leading is not None:
            self._leading.snapshot_started(to, last_index)

    def snapshot_given_up(self, to: Member) -> None:
        """The driver could not stream it to the end: probe again."""
        if self._leading is not None:
            self._leading.snapshot_given_up(to)

    def _step_snapshot_piece(self, message: SnapshotPiece) -> None:
        self._follow(message.sender)
        self._following.step_snapshot_piece(message)

    def snapshot_staged(self, piece: SnapshotPiece, offset: int) -> None:
        """The disk holds what precedes `offset` of the stream that this piece is of: ask for more."""
        if piece.term == self.term:
            self.send(
                SnapshotReply(sender=self.member, to=piece.sender, term=piece.term, stream=piece.stream, offset=offset)
            )

    def snapshot_install(self, last_index: int, last_term: int) -> bool:
        """A snapshot is staged to its end; whether the disk is to switch to it now. False: it is of no use any more.

        To be asked when no persist is under way. After True, until `snapshot_installed`, nothing is given out to write
        or to apply, and Appends are dropped as if they were lost: what the disk keeps of its log is settled at once.
        Otherwise: the log ends at 90; the disk switches to a snapshot up to 100 and drops its log; meanwhile 91 to 110
        arrive; 101 to 110 would be written after a log that is not there, or be taken to be on the disk already.
        """
        assert self._persisting is None and self._following.switching_to is None
        return self._following.switch(last_index, last_term)

    def snapshot_installed(self, last_index: int, configuration: Configuration) -> None:
        """The disk has switched data, sessions, meta and log to a snapshot, in one transaction."""
        self._following.switched(last_index, configuration)
        if self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
            self._become_follower(self.term, None)  # It asked for votes by another log and configuration.
        if self.leader is not None and self.leader != self.member:
            self._following.acknowledge(self.leader, last_index)

    # --- What is to be done -----------------------------------------------------------------------------------------

    def ready(self, *, takes_entries: bool = True, takes_persist: bool = True) -> Ready:
        """What is to be done now; asking again without anything new in between gives nothing.

        Without `takes_entries`, `committed` is empty: the driver has as many as it wants. Without `takes_persist` there
        is none: the disk is busy with something else, and what it will be given may still grow.
        """
        leading = self._leading
        if leading is not None:
            if leading.reads_waiting:
                leading.start_round()
            if leading.progress:
                leading.serve_peers(own_disk_is_free=takes_persist and self._persisting is None)
        persist = self._take_persist(takes_persist)
        # Most are empty most of the time; what is handed over is never added to again.
        committed = reads = refused = snapshots = pieces = _NOTHING
        if takes_entries and self.applied_index < self.commit_index:
            committed = self.take_committed()
        messages = self.take_messages()
        if self._reads_released:
            reads, self._reads_released = self._reads_released, []
        if self._reads_refused:
            refused, self._reads_refused = self._reads_refused, []
        if leading is not None and leading.snapshots_wanted:
            snapshots, leading.snapshots_wanted = leading.snapshots_wanted, []
        following = self._following
        if following.pieces:
            pieces, following.pieces = following.pieces, []
        return Ready(messages, persist, committed, reads, refused, snapshots, pieces)

    def take_messages(self) -> Sequence[Message]:
        """What is to be sent now. A Ready has the same in it."""
        if not self.now:
            return _NOTHING
        messages, self.now = self.now, []
        return messages

    def take_committed(self) -> Sequence[Entry]:
        """What is to be applied next: some of what is committed, in order. A Ready has the same in it."""
        if self.applied_index >= self.commit_index or self._following.switching_to is not None:
            return _NOTHING
        committed = self.log.entries(self.applied_index + 1, self.commit_index, self.bounds.apply_bytes)
        self.applied_index = committed[-1].index
        self.log.forget(self.applied_index, self.bounds.tail_bytes_kept)
        return committed

    def _take_persist(self, may_take: bool) -> Persist | None:
        if self._persisting is not None or self._following.switching_to is not None:
            return None
        hard_state = self.hard_state if self.hard_state != self.saved_hard_state else None
        last = self._last_to_persist
        if hard_state is None and self.log.taken_index >= last:
            if self.held:
                self._deliver(self.held)
            return None
        if not may_take:
            return None
        self._persist_number += 1
        self._persisting = Persist(hard_state, tuple(self.log.take_unpersisted(last)), self._persist_number)
        self._under_way, self.held = self.held, []
        return self._persisting

    def persisted(self, persist: Persist) -> None:
        """The disk holds all of `persist`."""
        assert persist is self._persisting, "persists are done one after another"
        self._persisting = None
        self.stalled_ticks = 0
        if persist.hard_state is not None:
            self.saved_hard_state = persist.hard_state
        if persist.entries:
            last = persist.entries[-1]
            self.log.persisted(last.index, last.term)
        if self._under_way:
            self._deliver(self._under_way)
        if self._leading is not None:
            self._leading.count_acknowledgements()

    def _deliver(self, messages: list[Message]) -> None:
        """Let go of messages that waited for the disk; what is addressed to this member itself arrives at once."""
        delivered = messages.copy()
        messages.clear()
        for message in delivered:
            if message.to != self.member:
                self.now.append(message)
            elif message.term == self.term:
                self.step(message)


_STEPS: dict[type[Message], Callable[[RaftCore, Any], bool | None]] = {
    PreVote: RaftCore._step_pre_vote,
    PreVoteReply: RaftCore._step_pre_vote_reply,
    Vote: RaftCore._step_vote,
    VoteReply: RaftCore._step_vote_reply,
    Append: RaftCore._step_append,
    AppendReply: RaftCore._step_append_reply,
    AppendRefusal: RaftCore._step_append_refusal,
    Heartbeat: RaftCore._step_heartbeat,
    HeartbeatReply: RaftCore._step_heartbeat_reply,
    TimeoutNow: RaftCore._step_timeout_now,
    SnapshotPiece: RaftCore._step_snapshot_piece,
    SnapshotReply: RaftCore._step_snapshot_reply,
}
