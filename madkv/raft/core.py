"""RaftCore: one replica's part in the protocol, as a pure step machine.

What goes in: `tick`, `step` (a message), `propose`, `read`, `persisted`. What comes out: `ready`, which says what to
send, what to persist, what to apply and which reads are released. The driver may do these in any order and at any
speed, but for two rules: persists are carried out one after another in order, each atomically, and what a persist
carries counts only once `persisted` was called for it.

How the rules of Figure 2 about persistence are kept: a message that depends on what is not on disk yet (every vote,
every acknowledgement, everything while a new term or vote is unsaved) is held back and leaves with the first `ready`
after the persist that covers it. A leader's entries leave at once (dissertation, section 10.2.1): it counts itself only
when its own persist is done.

The shape: the term is looked at once, in `step`; then there is one function for each kind of message, which starts with
what makes it refuse. Roles change only in the `_become_` functions.
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Any

import attrs

from madkv.raft.bounds import USUAL, Bounds
from madkv.raft.configuration import Configuration, Member, quorum_value
from madkv.raft.log import LogReader, RaftLog
from madkv.raft.messages import (
    Append,
    AppendRefusal,
    AppendReply,
    Entry,
    EntryKind,
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
from madkv.raft.progress import Flow, Progress

ELECTION_TICKS = 10
"""The shortest election time-out; each one is drawn from this to twice this, less one."""
HEARTBEAT_TICKS = 2
STALLED_TICKS = 2 * ELECTION_TICKS
"""A disk that has had something to do and done nothing for so long hangs: its replica should not lead."""

TERM_JUMP_MAX = 2**32
"""Terms grow by one for each election: a message so far ahead was made by nobody who follows the protocol. Whoever took
over its term might have none left to campaign in."""

assert HEARTBEAT_TICKS * 3 <= ELECTION_TICKS

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


class RaftCore:
    """One replica.

    State and who may change it: `hard_state` only through `_set_hard_state`; `commit_index` only through `_commit_to`
    and an installed snapshot, and it never goes back; `leader` and `role` only in `_become_*`; `configuration` follows
    the log, the latest one in it counts whether committed or not (dissertation, section 4.1).
    """

    def __init__(
        self,
        member: Member,
        reader: LogReader,
        hard_state: HardState,
        configurations: list[tuple[int, Configuration]],
        applied_index: int,
        draw: Callable[[int], int],
        bounds: Bounds = USUAL,
    ) -> None:
        """Take up where the disk left off.

        `configurations` are those in the log and, first, the one that held at the snapshot or at the start, with their
        indexes. `draw(n)` gives a number from 0 to n - 1; elections are spread by it.
        """
        self.member = member
        self.log = RaftLog(reader)
        self.hard_state = hard_state
        self.term = hard_state.term
        """The current term."""
        self.role = Role.FOLLOWER
        self.leader: Member | None = None
        self.led_term: int | None = None
        """The current term, as long as this replica leads it."""
        self.commit_index = max(applied_index, reader.snapshot_index)
        assert self.commit_index <= self.log.last_index, "a disk that has applied what its log does not hold"
        self.applied_index = self.commit_index
        """Up to there entries have been handed out in a Ready."""
        self.progress: dict[Member, Progress] = {}
        self._voting: list[Progress] = []  # as leader: those in `progress` who have a vote
        self._configurations = list(configurations)
        self._note_configuration()
        self._draw = draw
        self._bounds = bounds
        self._ticks = 0
        self._elapsed = 0
        self._heartbeat_elapsed = 0
        self._timeout = self._draw_timeout()
        self._votes: dict[Member, bool] = {}
        self._term_start_index = 0  # as leader: the index of its no-op
        self._transfer_to: Member | None = None
        self._transfer_elapsed = 0
        # Sending entries: how much more this Ready may carry, and who is first in the next one.
        self._entries_left = 0
        self._bytes_left = 0
        self._served_next: Member | None = None
        self.has_more_to_send = False
        """Whether the last Ready may not have carried all that may be sent: ask for another one soon."""
        # Going out.
        self._now: list[Message] = []
        self._held: list[Message] = []  # wait for the next persist to be taken, and then for it to be done
        self._under_way: list[Message] = []  # wait for the persist that is being carried out
        self._saved_hard_state = hard_state
        self._persisting: Persist | None = None
        self._persist_number = 0
        self._stalled_ticks = 0  # since the disk last did something, while it has something to do
        self._snapshots_wanted: list[Member] = []
        self._pieces: list[SnapshotPiece] = []
        self._installing: tuple[int, int] | None = None  # (index, term) of the snapshot that the disk switches to
        self._keeps_suffix = False  # whether the log held its last entry when that began
        # ReadIndex (dissertation, section 6.4).
        self._reads_waiting: list[Hashable] = []
        self._round = 0
        self._rounds: deque[tuple[int, int, list[Hashable]]] = deque()  # (round, index, reads), oldest first
        self._reads_released: list[ReleasedRead] = []
        self._reads_refused: list[Hashable] = []

    # --- What can be asked ------------------------------------------------------------------------------------------

    @property
    def last_configuration_index(self) -> int:
        """Where that one stands in the log, or where the log begins."""
        return self._configurations[-1][0]

    @property
    def index_to_keep(self) -> int | None:
        """Up to where the log may go, by what those peers will ask for that answer; None when none of them needs it."""
        first = self.log.first_index
        needed = [
            progress.snapshot_index if progress.flow is Flow.SNAPSHOT else progress.match_index
            for progress in self.progress.values()
            if self._is_active(progress)
        ]
        return min((index for index in needed if index + 1 >= first), default=None)

    # --- Time -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed: a tenth of the shortest election time-out."""
        self._ticks += 1
        self._elapsed += 1
        has_work = self.log.taken_index < self.log.last_index or self.hard_state != self._saved_hard_state
        self._stalled_ticks = self._stalled_ticks + 1 if has_work or self._persisting is not None else 0
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._elapsed >= self._timeout:
            self._elapsed = 0
            self._timeout = self._draw_timeout()
            self.campaign()

    def _tick_leader(self) -> None:
        if self._transfer_to is not None:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= ELECTION_TICKS:
                self._transfer_to = None  # it did not come about; serve on
        if self._elapsed >= ELECTION_TICKS:
            self._elapsed = 0
            self._check_quorum()
        if self._stalled_ticks >= STALLED_TICKS:
            self._let_another_lead()
        if self.role is not Role.LEADER:
            return
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= HEARTBEAT_TICKS:
            self._heartbeat_elapsed = 0
            for to, progress in self.progress.items():
                if self._is_active(progress):
                    self._ask_again(to, progress)
            self._send_heartbeats()

    def _check_quorum(self) -> None:
        """A leader that hears from no majority steps down: its clients may find a better one (section 6.2 there)."""
        if not self.configuration.is_quorum({*self._active_peers(), self.member}):
            self._become_follower(self.term, None)

    def _is_active(self, progress: Progress) -> bool:
        """Whether this peer has said anything lately."""
        return self._ticks - progress.heard_tick <= ELECTION_TICKS

    def _active_peers(self) -> list[Member]:
        return [member for member, progress in self.progress.items() if self._is_active(progress)]

    def _let_another_lead(self) -> None:
        """This leader's disk hangs. It could go on for ever: heartbeats need no disk, and others' may commit.

        Only if the others can elect one without its vote: else nothing is won. It does not campaign again before its
        disk has moved.
        """
        if not self.configuration.is_quorum(self._active_peers()):
            return
        if self._stalled_ticks >= STALLED_TICKS + ELECTION_TICKS:
            self._become_follower(self.term, None)
        elif self._transfer_to is None:
            self.hand_over()

    def disk_moved(self) -> None:
        """The disk has done a piece of work, of whatever kind: it does not hang."""
        self._stalled_ticks = 0

    def _draw_timeout(self) -> int:
        return ELECTION_TICKS + self._draw(ELECTION_TICKS)

    # --- Proposals and reads ----------------------------------------------------------------------------------------

    def propose(self, payload: bytes) -> int | None:
        """Append an operation to the log; its index, at the current term. None unless this is a leader that serves."""
        if self.role is not Role.LEADER or self._transfer_to is not None:
            return None
        index = self.log.last_index + 1
        self.log.append(Entry(index, self.term, EntryKind.OPERATION, payload))
        return index

    def propose_configuration(self, configuration: Configuration) -> int | None:
        """Change the members, by one voter at a time; the entry's index, or None when that is not possible now.

        Not before an entry of the own term is committed, and not while another change is uncommitted: otherwise two
        majorities without a common member may come about (dissertation, section 4.1 and the erratum to it).
        """
        if (
            self.role is not Role.LEADER
            or self._transfer_to is not None
            or self.commit_index < self._term_start_index
            or self._configurations[-1][0] > self.commit_index
            or not self.configuration.differs_by_one_voter(configuration)
            or not configuration.voters
        ):
            return None
        return self._append_own(EntryKind.CONFIGURATION, configuration.encode())

    def read(self, request: Hashable) -> None:
        """Ask for a moment at which reading is linearizable; it comes back in a Ready, released or refused."""
        if self.role is not Role.LEADER:
            self._reads_refused.append(request)
        else:
            self._reads_waiting.append(request)

    @property
    def index_to_read(self) -> int | None:
        """A read may be answered at once when everything up to there is applied; None: `read` has to ask others first.

        The only voter need not ask whether it still leads: nobody could have elected another.
        """
        if self.role is not Role.LEADER or self._voting or self.commit_index < self._term_start_index:
            return None
        return self.commit_index

    def transfer_leadership(self, to: Member) -> bool:
        """Hand over to a voter that answers (dissertation, section 3.10); False when it cannot begin.

        No proposals are taken meanwhile.
        """
        progress = self.progress.get(to)
        if progress is None or not self._is_active(progress) or to not in self.configuration.voters:
            return False
        self._transfer_to = to
        self._transfer_elapsed = 0
        self._finish_transfer(to)
        return True

    def hand_over(self) -> bool:
        """The same, to the voter that has most of the log; False when there is nobody, or this is no leader."""
        voters = self.configuration.voters
        able = [(self.progress[peer].match_index, peer) for peer in self._active_peers() if peer in voters]
        return bool(able) and self.transfer_leadership(max(able)[1])

    def _append_own(self, kind: EntryKind, payload: bytes = b"") -> int:
        entry = Entry(self.log.last_index + 1, self.term, kind, payload)
        self._append(entry)
        return entry.index

    def _append(self, entry: Entry) -> None:
        self.log.append(entry)
        if entry.kind is EntryKind.CONFIGURATION:
            self._configurations.append((entry.index, Configuration.decode(entry.payload)))
            self._note_configuration()
            self._follow_configuration()

    def _note_configuration(self) -> None:
        self.configuration = self._configurations[-1][1]
        """The latest configuration in the log."""
        self.is_voter = self.member in self.configuration.voters
        """Whether this very member, on this very disk, has a vote."""

    def _follow_configuration(self) -> None:
        """Lead exactly the members there are now."""
        if self.role is not Role.LEADER:
            return
        peers = self.configuration.members - {self.member}
        for gone in self.progress.keys() - peers:
            del self.progress[gone]
        for new in sorted(peers - self.progress.keys()):
            self.progress[new] = Progress(next_index=self.log.last_index + 1, heard_tick=self._ticks)
        self._voting = [self.progress[peer] for peer in peers & self.configuration.voters]
        self._release_rounds()  # Of fewer voters those that have answered may be a majority.

    # --- Messages ---------------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take in one message. This is the one place where terms are compared (Figure 2, rules for all servers)."""
        if message.to != self.member:
            return  # To this replica on another disk: what that one knew and promised is not known here.
        if message.term > self.term:
            if self._is_disruption(message):
                return
            if not isinstance(message, (PreVote, PreVoteReply)):
                is_from_leader = isinstance(message, (Append, Heartbeat, SnapshotPiece, TimeoutNow))
                self._become_follower(message.term, message.sender if is_from_leader else None)
        elif message.term < self.term and not isinstance(message, PreVoteReply):
            # (A PreVote is granted without taking over its term, so its answer may well be of an older one.)
            self._answer_from_the_past(message)
            return
        _STEPS[type(message)](self, message)

    def _is_disruption(self, message: Message) -> bool:
        """Whether a member that has lost touch asks for votes while the leader is alive and well (section 6), or a term
        comes from nowhere."""
        if message.term - self.term > TERM_JUMP_MAX:
            return True
        if not isinstance(message, Vote) or message.transfer:
            return False
        return self._hears_leader()

    def _hears_leader(self) -> bool:
        return self.leader is not None and self._elapsed < ELECTION_TICKS

    def _answer_from_the_past(self, message: Message) -> None:
        """A sender of an older term must hear of the newer one.

        Otherwise: a member was cut off, its term ran ahead, it is back. It ignores the leader's messages, which are of
        an older term, and the others refuse its PreVotes, since they hear the leader: it would be stuck for ever.
        """
        if isinstance(message, (Append, Heartbeat, SnapshotPiece)):
            self._send_now(HeartbeatReply(sender=self.member, to=message.sender, term=self.term, round=0))
        elif isinstance(message, PreVote):
            self._reply_pre_vote(message, granted=False)
        elif isinstance(message, Vote):
            self._send(VoteReply(sender=self.member, to=message.sender, term=self.term, granted=False))

    def _send(self, message: Message) -> None:
        """Send when everything that this replica has come to so far is on disk."""
        self._held.append(message)

    def _send_now(self, message: Message) -> None:
        """Send without waiting for the disk, once the term is on it: what a leader says, and what binds nobody."""
        if self.hard_state == self._saved_hard_state:
            self._now.append(message)
            return
        # While a disk hangs, the same questions come again and again: of the answers the latest will do.
        for at, other in enumerate(self._held):
            if type(other) is type(message) and other.to == message.to and other.term == message.term:
                del self._held[at]
                break
        self._held.append(message)

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
        if self._stalled_ticks >= STALLED_TICKS:
            return False  # Its vote could not be saved.
        for index, configuration in reversed(self._configurations):
            if self.member in configuration.voters:
                return True
            if index <= self.commit_index:
                return False
        return False

    def _become_follower(self, term: int, leader: Member | None) -> None:
        was_leader = self.role is Role.LEADER
        self.role = Role.FOLLOWER
        self.leader, self.led_term = leader, None
        if term > self.term:
            self._set_hard_state(HardState(term, None))
        if was_leader or leader is not None:
            # A mere newer term leaves the time-out running: its candidate may have no chance, and we may.
            self._elapsed = 0
        self._timeout = self._draw_timeout()
        self._votes.clear()
        self._drop_reads()
        if was_leader:
            self.progress.clear()
            self._voting.clear()
            self._transfer_to = None
            self.has_more_to_send = False
            self._snapshots_wanted.clear()

    def _become_pre_candidate(self) -> None:
        assert self.role is not Role.LEADER
        self.role = Role.PRE_CANDIDATE
        self.leader = None
        self._votes = {self.member: True}
        if self.configuration.is_quorum(self._votes):
            self._become_candidate(transfer=False)
            return
        for voter in sorted(self.configuration.voters - {self.member}):
            self._send_now(
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
        self.leader = None
        self._elapsed = 0
        self._timeout = self._draw_timeout()
        self._set_hard_state(HardState(self.term + 1, self.member))
        self._votes = {}
        # Its own vote is a message too: it counts when it is on disk.
        self._send(VoteReply(sender=self.member, to=self.member, term=self.term, granted=True))
        for voter in sorted(self.configuration.voters - {self.member}):
            self._send(
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
        assert self.role is Role.CANDIDATE and self.hard_state == self._saved_hard_state
        self.role = Role.LEADER
        self.leader, self.led_term = self.member, self.term
        self._elapsed = 0
        self._heartbeat_elapsed = 0
        self._votes.clear()
        self.progress.clear()
        self._follow_configuration()
        # Without it a leader cannot know what is committed, and reads would have to wait (section 8).
        self._term_start_index = self._append_own(EntryKind.NOOP)
        self._send_heartbeats()

    def _set_hard_state(self, hard_state: HardState) -> None:
        assert hard_state.term >= self.term
        assert hard_state.term > self.term or self.hard_state.voted_for in (None, hard_state.voted_for)
        self.hard_state = hard_state
        self.term = hard_state.term

    def _step_pre_vote(self, message: PreVote) -> None:
        granted = (
            message.campaign_term > self.term
            and not self._hears_leader()
            and self.log.is_up_to_date(message.last_index, message.last_term)
        )
        self._reply_pre_vote(message, granted)

    def _reply_pre_vote(self, message: PreVote, granted: bool) -> None:
        self._send_now(
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
            self._set_hard_state(HardState(self.term, message.sender))
            self._elapsed = 0
        self._send(VoteReply(sender=self.member, to=message.sender, term=self.term, granted=granted))

    def _step_vote_reply(self, message: VoteReply) -> None:
        if self.role is not Role.CANDIDATE:
            return
        self._votes[message.sender] = message.granted
        if self.configuration.is_quorum(member for member, granted in self._votes.items() if granted):
            self._become_leader()

    def _step_timeout_now(self, message: TimeoutNow) -> None:
        if self._may_campaign():
            self._become_candidate(transfer=True)

    # --- Replication: the follower's side ---------------------------------------------------------------------------

    def _follow(self, leader: Member) -> None:
        """A message of this term from its only leader."""
        assert self.role is not Role.LEADER, "two leaders in one term"
        if self.role is not Role.FOLLOWER or self.leader is None:
            self._become_follower(self.term, leader)
        assert self.leader == leader
        self._elapsed = 0

    def _step_append(self, message: Append) -> None:
        self._follow(message.sender)
        if self._installing is not None or not _follow_each_other(message):
            return
        log = self.log
        previous = message.previous_index
        confirmed = previous + len(message.entries)
        if previous < self.commit_index:
            # Late or repeated. What is committed agrees with every leader's log, so go on from there.
            if confirmed <= self.commit_index:
                self._acknowledge(message.sender, self.commit_index)
                return
        elif not log.holds(previous, message.previous_term):
            self._refuse(message)
            return
        for entry in message.entries:
            if entry.index <= self.commit_index or log.holds(entry.index, entry.term):
                continue
            if entry.index <= log.last_index:
                # A real conflict. Without one nothing is removed: an old, shorter Append may come late.
                self._truncate(entry.index)
            self._append(entry)
        # Not further than this message proves: entries after `confirmed` may be another leader's.
        self._commit_to(min(message.commit_index, confirmed))
        self._acknowledge(message.sender, confirmed)

    def _acknowledge(self, leader: Member, match_index: int) -> None:
        for at, held in enumerate(self._held):
            if isinstance(held, AppendReply) and held.to == leader and held.term == self.term:
                # While the disk is busy Appends keep coming: one answer, when it is done, says it all.
                match_index = max(match_index, held.match_index)
                del self._held[at]
                break
        self._send(AppendReply(sender=self.member, to=leader, term=self.term, match_index=match_index))

    def _refuse(self, message: Append) -> None:
        """Name the highest entry that might match: not after the end, and not of a term above what was asked for."""
        index = min(message.previous_index - 1, self.log.last_index)
        while index > self.commit_index:
            term = self.log.term_of(index)
            assert term is not None
            if term <= message.previous_term:
                break
            index -= 1
        self._send_now(
            AppendRefusal(
                sender=self.member,
                to=message.sender,
                term=self.term,
                previous_index=message.previous_index,
                hint_index=index,
                hint_term=self.log.term_of(index) or 0,
            )
        )

    def _truncate(self, first: int) -> None:
        assert first > self.commit_index, "a committed entry would be lost"
        self.log.truncate(first)
        while self._configurations[-1][0] >= first:
            self._configurations.pop()
        self._note_configuration()

    def _step_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.sender)
        self._commit_to(min(message.commit_index, self.log.last_index))
        self._send_now(HeartbeatReply(sender=self.member, to=message.sender, term=self.term, round=message.round))

    # --- Replication: the leader's side -----------------------------------------------------------------------------

    def _progress_of(self, message: Message) -> Progress | None:
        """The peer that answers, if this is its leader still and it is a member still."""
        progress = self.progress.get(message.sender) if self.role is Role.LEADER else None
        if progress is not None:
            progress.heard_tick = self._ticks
        return progress

    def _step_append_reply(self, message: AppendReply) -> None:
        progress = self._progress_of(message)
        if progress is None:
            return
        assert message.match_index <= self.log.last_index
        if progress.acknowledged(message.match_index):
            if progress.flow is Flow.SNAPSHOT and message.match_index + 1 >= self.log.first_index:
                progress.replicate()  # An earlier stream has arrived after all, and the log has what follows.
            self._count_acknowledgements()
            if self._transfer_to == message.sender:
                self._finish_transfer(message.sender)

    def _step_append_refusal(self, message: AppendRefusal) -> None:
        progress = self._progress_of(message)
        if progress is None:
            return
        # Skip this log's entries of terms that the follower cannot have at that place.
        index = min(message.hint_index, self.log.last_index)
        while index > progress.match_index and (self.log.term_of(index) or 0) > message.hint_term:
            index -= 1
        progress.refused(message.previous_index, index + 1)

    def _step_heartbeat_reply(self, message: HeartbeatReply) -> None:
        progress = self._progress_of(message)
        if progress is not None and message.round > progress.acked_round:
            progress.acked_round = message.round
            self._release_rounds()

    def _count_acknowledgements(self) -> None:
        """Commit what a majority has on disk, if it is of this term (section 5.4.2, and Figure 8 for why)."""
        matched = [progress.match_index for progress in self._voting]
        if self.is_voter:
            matched.append(self.log.stable_index)
        index = quorum_value(matched)
        if index > self.commit_index and self.log.term_of(index) == self.term:
            self._commit_to(index)

    def _commit_to(self, index: int) -> None:
        if index <= self.commit_index:
            return
        assert index <= self.log.last_index
        self.commit_index = index
        if self.role is Role.LEADER and not self.is_voter and self._configurations[-1][0] <= index:
            # It has led its own removal to the end (dissertation, section 4.2.2).
            self._become_follower(self.term, None)

    def _send_entries(self, to: Member, progress: Progress) -> None:
        """Send what the peer lacks, as far as the flow allows and this Ready may carry."""
        while not progress.is_waiting and progress.in_flight_bytes < self._bounds.in_flight_bytes:
            if progress.flow is Flow.SNAPSHOT:
                return
            if progress.flow is Flow.REPLICATE and progress.next_index > self.log.last_index:
                return
            if self._entries_left <= 0 or self._bytes_left <= 0:
                return
            # A probe carries entries too: most of the time the logs do agree.
            if not self._send_append(to, progress, with_entries=True):
                return

    def _send_append(self, to: Member, progress: Progress, *, with_entries: bool) -> bool:
        """Send what follows `next_index`, as much as one message carries, or nothing but the question whether it fits.

        False when the peer needs what has been compacted away: then it needs the snapshot.
        """
        log = self.log
        previous = progress.next_index - 1
        previous_term = log.term_of(previous) if progress.next_index >= log.first_index else None
        if previous_term is None:
            if self._is_active(progress):
                progress.snapshot()
                self._snapshots_wanted.append(to)
            return False
        entries: list[Entry] = []
        if with_entries and progress.next_index <= log.last_index:
            last = min(log.last_index, previous + self._bounds.append_entries)
            entries = log.entries(progress.next_index, last, self._bounds.append_bytes)
        self._send_now(
            Append(
                sender=self.member,
                to=to,
                term=self.term,
                previous_index=previous,
                previous_term=previous_term,
                entries=tuple(entries),
                commit_index=self.commit_index,
            )
        )
        if with_entries:
            size = sum(entry.size_bytes for entry in entries)
            self._entries_left -= len(entries)
            self._bytes_left -= size
            progress.sent(previous + len(entries), size)
        return True

    def _ask_again(self, to: Member, progress: Progress) -> None:
        """What was sent may be lost, or its answer; nothing else may ever be sent that would show it.

        To a peer that answers nothing at all only heartbeats go: a probe may be large.
        """
        if progress.flow is Flow.PROBE:
            progress.is_waiting = False
        elif progress.flow is Flow.REPLICATE and progress.match_index + 1 < progress.next_index:
            self._send_append(to, progress, with_entries=False)

    def _send_heartbeats(self) -> None:
        for to, progress in self.progress.items():
            commit_index = min(self.commit_index, progress.match_index)
            self._send_now(
                Heartbeat(sender=self.member, to=to, term=self.term, commit_index=commit_index, round=self._round)
            )

    def _finish_transfer(self, to: Member) -> None:
        if self.progress[to].match_index == self.log.last_index:
            self._send_now(TimeoutNow(sender=self.member, to=to, term=self.term))

    # --- Snapshots --------------------------------------------------------------------------------------------------

    def snapshot_started(self, to: Member, last_index: int) -> None:
        """The driver streams a snapshot that goes up to `last_index` to this peer."""
        progress = self.progress.get(to)
        if progress is not None and progress.flow is Flow.SNAPSHOT:
            progress.snapshot_index = last_index

    def snapshot_given_up(self, to: Member) -> None:
        """The driver could not stream it to the end: probe again."""
        progress = self.progress.get(to)
        if progress is not None and progress.flow is Flow.SNAPSHOT:
            progress.probe(progress.match_index + 1)

    def _step_snapshot_reply(self, message: SnapshotReply) -> None:
        self._progress_of(message)

    def _step_snapshot_piece(self, message: SnapshotPiece) -> None:
        self._follow(message.sender)
        if message.last_index <= self.commit_index:
            self._acknowledge(message.sender, self.commit_index)  # it has all that already
        else:
            self._pieces.append(message)

    def snapshot_staged(self, piece: SnapshotPiece, offset: int) -> None:
        """The disk holds what precedes `offset` of the stream that this piece is of: ask for more."""
        if piece.term == self.term:
            self._send(
                SnapshotReply(sender=self.member, to=piece.sender, term=piece.term, stream=piece.stream, offset=offset)
            )

    def snapshot_install(self, last_index: int, last_term: int) -> bool:
        """A snapshot is staged to its end; whether the disk is to switch to it now. False: it is of no use any more.

        To be asked when no persist is under way. After True, until `snapshot_installed`, nothing is given out to write
        or to apply, and Appends are dropped as if they were lost: what the disk keeps of its log is settled at once.
        Otherwise: the log ends at 90; the disk switches to a snapshot up to 100 and drops its log; meanwhile 91 to 110
        arrive; 101 to 110 would be written after a log that is not there, or be taken to be on the disk already.
        """
        assert self._persisting is None and self._installing is None
        if last_index <= self.applied_index:
            return False
        self._installing = last_index, last_term
        self._keeps_suffix = self.log.holds(last_index, last_term)
        return True

    def snapshot_installed(self, last_index: int, configuration: Configuration) -> None:
        """The disk has switched data, sessions, meta and log to a snapshot, in one transaction.

        Entries after the snapshot stay if the log held its last entry (section 7): they may be acknowledged already.
        """
        assert self._installing is not None and self._installing[0] == last_index
        self._installing = None
        self.log.snapshot_installed(last_index, keeps_suffix=self._keeps_suffix)
        later = [each for each in self._configurations if each[0] > last_index] if self._keeps_suffix else []
        self._configurations = [(last_index, configuration), *later]
        self._note_configuration()
        self.commit_index = max(self.commit_index, last_index)
        self.applied_index = last_index
        if self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
            self._become_follower(self.term, None)  # It asked for votes by another log and configuration.
        if self.leader is not None and self.leader != self.member:
            self._acknowledge(self.leader, last_index)

    # --- ReadIndex --------------------------------------------------------------------------------------------------

    def _start_round(self) -> None:
        """Give all reads that wait a round of their own.

        A read joins only a round that has not been sent. Otherwise: round 7 goes out; a new leader commits a write;
        a read comes in here and joins; the answers to round 7, given before that write, release it: a stale read.
        """
        if not self._reads_waiting or self.role is not Role.LEADER or self.commit_index < self._term_start_index:
            return
        self._round += 1
        self._rounds.append((self._round, self.commit_index, self._reads_waiting))
        self._reads_waiting = []
        if self.progress:
            self._send_heartbeats()
        self._release_rounds()

    def _release_rounds(self) -> None:
        acked = [progress.acked_round for progress in self._voting]
        if self.is_voter:
            acked.append(self._round)
        confirmed = quorum_value(acked)
        while self._rounds and self._rounds[0][0] <= confirmed:
            _, index, requests = self._rounds.popleft()
            for request in requests:
                self._reads_released.append(ReleasedRead(request, index))

    def _drop_reads(self) -> None:
        """Reads of a leadership that ended are refused: their rounds prove nothing any more."""
        self._reads_refused += self._reads_waiting
        for _, _, requests in self._rounds:
            self._reads_refused += requests
        self._reads_waiting = []
        self._rounds.clear()

    def end_reads(self) -> list[Hashable]:
        """Every read that has not left in a Ready, for a driver that ends: they are not known here any more."""
        self._drop_reads()
        reads = self._reads_refused + [read.request for read in self._reads_released]
        self._reads_refused, self._reads_released = [], []
        return reads

    # --- What is to be done -----------------------------------------------------------------------------------------

    def ready(self, *, takes_entries: bool = True, takes_persist: bool = True) -> Ready:
        """What is to be done now; asking again without anything new in between gives nothing.

        Without `takes_entries`, `committed` is empty: the driver has as many as it wants. Without `takes_persist` there
        is none: the disk is busy with something else, and what it will be given may still grow.
        """
        if self._reads_waiting:
            self._start_round()
        if self.progress:
            self._serve_peers()
        persist = self._take_persist(takes_persist)
        # Most are empty most of the time; what is handed over is never added to again.
        committed = messages = reads = refused = snapshots = pieces = _NOTHING
        if takes_entries and self.applied_index < self.commit_index:
            committed = self.take_committed()
        if self._now:
            messages, self._now = self._now, []
        if self._reads_released:
            reads, self._reads_released = self._reads_released, []
        if self._reads_refused:
            refused, self._reads_refused = self._reads_refused, []
        if self._snapshots_wanted:
            snapshots, self._snapshots_wanted = self._snapshots_wanted, []
        if self._pieces:
            pieces, self._pieces = self._pieces, []
        return Ready(messages, persist, committed, reads, refused, snapshots, pieces)

    def _serve_peers(self) -> None:
        """Send to all peers; when this Ready can carry no more, the next one begins with the next peer."""
        order = [*self.progress.items()]
        self._entries_left, self._bytes_left = self._bounds.turn_entries, self._bounds.turn_bytes
        if self.has_more_to_send:
            self.has_more_to_send = False
            if self._served_next in self.progress:
                at = [*self.progress].index(self._served_next)
                order = order[at:] + order[:at]
        for at, (to, progress) in enumerate(order, 1):
            self._send_entries(to, progress)
            if self._entries_left <= 0 or self._bytes_left <= 0:
                self._served_next = order[at % len(order)][0]
                self.has_more_to_send = True
                return

    def take_committed(self) -> Sequence[Entry]:
        """What is to be applied next: some of what is committed, in order. A Ready has the same in it."""
        if self.applied_index >= self.commit_index or self._installing is not None:
            return _NOTHING
        committed = self.log.entries(self.applied_index + 1, self.commit_index, self._bounds.apply_bytes)
        self.applied_index = committed[-1].index
        self.log.forget(self.applied_index, self._bounds.tail_bytes_kept)
        return committed

    def _take_persist(self, may_take: bool) -> Persist | None:
        if self._persisting is not None or self._installing is not None:
            return None
        hard_state = self.hard_state if self.hard_state != self._saved_hard_state else None
        if hard_state is None and self.log.taken_index == self.log.last_index:
            if self._held:
                self._deliver(self._held)
            return None
        if not may_take:
            return None
        self._persist_number += 1
        self._persisting = Persist(hard_state, tuple(self.log.take_unpersisted()), self._persist_number)
        self._under_way, self._held = self._held, []
        return self._persisting

    def persisted(self, persist: Persist) -> None:
        """The disk holds all of `persist`."""
        assert persist is self._persisting, "persists are done one after another"
        self._persisting = None
        self._stalled_ticks = 0
        if persist.hard_state is not None:
            self._saved_hard_state = persist.hard_state
        if persist.entries:
            last = persist.entries[-1]
            self.log.persisted(last.index, last.term)
        if self._under_way:
            self._deliver(self._under_way)
        if self.role is Role.LEADER:
            self._count_acknowledgements()

    def _deliver(self, messages: list[Message]) -> None:
        """Let go of messages that waited for the disk; what is addressed to this member itself arrives at once."""
        delivered = messages.copy()
        messages.clear()
        for message in delivered:
            if message.to != self.member:
                self._now.append(message)
            elif message.term == self.term:
                self.step(message)


def _follow_each_other(message: Append) -> bool:
    """Whether its entries follow each other without a gap, and their terms never go back, as in every leader's log."""
    index, term = message.previous_index, message.previous_term
    for entry in message.entries:
        index += 1
        if entry.index != index or not term <= entry.term <= message.term:
            return False
        term = entry.term
    return True


_STEPS: dict[type[Message], Callable[[RaftCore, Any], None]] = {
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
