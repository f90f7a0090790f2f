"""What a replica knows and does as the leader of one term; all of it ends with that leadership.

Appends and commitment (section 5.3 and 5.4), check-quorum (Ongaro's dissertation, section 6.2), changes of the members
(chapter 4), handing over (section 3.10) and linearizable reads (section 6.4).
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable

from madkv.raft.bounds import ELECTION_TICKS, HEARTBEAT_TICKS, STALLED_TICKS
from madkv.raft.configuration import Configuration, Member, quorum_value
from madkv.raft.messages import (
    Append,
    AppendRefusal,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
)
from madkv.raft.progress import Flow, Progress
from madkv.raft.quickest import Quickest
from madkv.raft.state import ReplicaState

LARGE_BATCH = 8
"""Entries of a batch that goes to all at once."""


class Leadership:
    """One replica's lead in one term. `step_down` ends it: the caller takes care that nothing is asked of it then."""

    def __init__(
        self,
        state: ReplicaState,
        step_down: Callable[[], None],
        release: Callable[[list[Hashable], int], None],
        last_round: int,
    ) -> None:
        """`release(reads, index)` is told which reads may be answered once everything up to `index` is applied.

        `last_round` is the number of the last heartbeat round before: numbers are not used again.
        """
        self._state = state
        self._step_down = step_down
        self._release = release
        self.progress: dict[Member, Progress] = {}
        """What is known of every other member."""
        self.voting: list[Progress] = []
        """Those in it who have a vote."""
        self._heartbeat_elapsed = 0
        self._transfer_to: Member | None = None
        self._transfer_elapsed = 0
        # Sending entries: how much more this Ready may carry, and who is first in the next one.
        self._entries_left = 0
        self._bytes_left = 0
        self._served_next: Member | None = None
        self.batch_end = 0
        """Up to where the log may be sent and written: its end when the batch before this one was committed."""
        self._late_end = 0  # the same for those peers that no batch waits for: see `serve_peers`
        self._asked_end = 0  # the batch that was on its way at the last tick, and went to all then
        self._quick_to_write = Quickest(state)
        self.has_more_to_send = False
        """Whether the last Ready may not have carried all that may be sent."""
        self.snapshots_wanted: list[Member] = []
        """Peers that need the snapshot, and for whom nobody was asked yet."""
        # ReadIndex.
        self.reads_waiting: list[Hashable] = []
        """Reads that have no round yet."""
        self.round = last_round
        self.rounds: deque[tuple[int, int, list[Hashable]]] = deque()
        """Rounds whose answers have not come: (round, index, reads), oldest first."""
        self._round_of_all = 0  # the latest that all were asked in
        self._quick_to_answer = Quickest(state)
        self.follow_configuration()
        # Without it a leader cannot know what is committed, and reads would have to wait (section 8).
        self._term_start_index = state.append_own(EntryKind.NOOP)
        self._send_heartbeats(self.progress)

    # --- Time -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed."""
        state = self._state
        if self._transfer_to is not None:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= ELECTION_TICKS:
                self._transfer_to = None  # it did not come about; serve on
        if state.elapsed >= ELECTION_TICKS:
            state.elapsed = 0
            if not state.configuration.is_quorum({*self._active_peers(), state.member}):
                # It hears from no majority: its clients may find a better one (check-quorum).
                self._step_down()
                return
        if state.stalled_ticks >= STALLED_TICKS and self._let_another_lead():
            return
        self._serve_late()
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= HEARTBEAT_TICKS:
            self._heartbeat_elapsed = 0
            for to, progress in self.progress.items():
                if self._is_active(progress):
                    self._ask_again(to, progress)
            if self.rounds:
                self._quick_to_answer.ask_all(self.progress)  # One that was asked is gone, or slow.
            self.round += 1
            self._round_of_all = self.round
            self._quick_to_answer.all_are_asked()
            self._send_heartbeats(self.progress)

    def _serve_late(self) -> None:
        """Let all have what there is, and see who is quick with the batch that is on its way."""
        self._late_end = self._asked_end = self.batch_end
        if self.batch_end > self._state.commit_index:
            self._quick_to_write.all_are_asked()
            self._count_those_who_have_it()

    def _count_those_who_have_it(self) -> None:
        """Whoever has the batch on its way will not answer again, and is no slower for that than those to come."""
        if self.batch_end > self._state.commit_index:
            for peer, progress in self.progress.items():
                if progress.match_index >= self.batch_end:
                    self._quick_to_write.answered(peer)

    def hurry(self) -> None:
        """The batch on its way takes long, or will: one that it waits for is gone or busy. Let all have it."""
        self._late_end = self.batch_end
        self._quick_to_write.ask_all(self.progress)
        self._count_those_who_have_it()

    def _let_another_lead(self) -> bool:
        """This leader's disk hangs. It could go on for ever: heartbeats need no disk, and others' may commit.

        Only if the others can elect one without its vote: else nothing is won. Whether it has stepped down; it does not
        campaign again before its disk has moved.
        """
        state = self._state
        if not state.configuration.is_quorum(self._active_peers()):
            return False
        if state.stalled_ticks >= STALLED_TICKS + ELECTION_TICKS:
            self._step_down()
            return True
        if self._transfer_to is None:
            self.hand_over()
        return False

    def _is_active(self, progress: Progress) -> bool:
        """Whether this peer has said anything lately."""
        return self._state.ticks - progress.heard_tick <= ELECTION_TICKS

    def _active_peers(self) -> list[Member]:
        return [member for member, progress in self.progress.items() if self._is_active(progress)]

    # --- Proposals, members, handing over ---------------------------------------------------------------------------

    def propose(self, payload: bytes) -> int | None:
        """Append an operation to the log; its index, or None while the leadership is handed over."""
        if self._transfer_to is not None:
            return None
        log = self._state.log
        index = log.last_index + 1
        log.append(Entry(index, self._state.term, EntryKind.OPERATION, payload))
        return index

    def propose_configuration(self, configuration: Configuration) -> int | None:
        """Change the members, by one voter at a time; the entry's index, or None when that is not possible now.

        Not before an entry of the own term is committed, and not while another change is uncommitted: otherwise two
        majorities without a common member may come about (dissertation, section 4.1 and the erratum to it).
        """
        state = self._state
        if (
            self._transfer_to is not None
            or state.commit_index < self._term_start_index
            or state.last_configuration_index > state.commit_index
            or not state.configuration.differs_by_one_voter(configuration)
            or not configuration.voters
        ):
            return None
        index = state.append_own(EntryKind.CONFIGURATION, configuration.encode())
        self.follow_configuration()
        return index

    def follow_configuration(self) -> None:
        """Lead exactly the members there are now."""
        state = self._state
        peers = state.configuration.members - {state.member}
        for gone in self.progress.keys() - peers:
            del self.progress[gone]
        for new in sorted(peers - self.progress.keys()):
            self.progress[new] = Progress(next_index=state.log.last_index + 1, heard_tick=state.ticks)
        self.voting = [self.progress[peer] for peer in peers & state.configuration.voters]
        self._quick_to_answer.ask_all(self.progress)
        self._quick_to_write.ask_all(self.progress)
        self.has_more_to_send = self.has_more_to_send and bool(peers)
        # Of fewer voters those that have answered may be a majority.
        self._release_rounds()
        self.count_acknowledgements()

    def transfer_to(self, to: Member) -> bool:
        """Hand over to a voter that answers; False when it cannot begin."""
        progress = self.progress.get(to)
        if progress is None or not self._is_active(progress) or to not in self._state.configuration.voters:
            return False
        self._transfer_to = to
        self._transfer_elapsed = 0
        self._finish_transfer(to)
        return True

    def hand_over(self) -> bool:
        """The same, to the voter that has most of the log; False when there is nobody."""
        voters = self._state.configuration.voters
        able = [(self.progress[peer].match_index, peer) for peer in self._active_peers() if peer in voters]
        return bool(able) and self.transfer_to(max(able)[1])

    def _finish_transfer(self, to: Member) -> None:
        state = self._state
        if self.progress[to].match_index == state.log.last_index:
            state.send_now(TimeoutNow(sender=state.member, to=to, term=state.term))

    # --- What peers answer ------------------------------------------------------------------------------------------

    def heard(self, sender: Member) -> Progress | None:
        """A peer has answered something; what is known of it, None when it is no member any more."""
        progress = self.progress.get(sender)
        if progress is not None:
            progress.heard_tick = self._state.ticks
        return progress

    def step_append_reply(self, message: AppendReply) -> bool:
        """A follower has these entries on its disk; whether there is something to do for it."""
        state = self._state
        log, commit_index = state.log, state.commit_index
        progress = self.heard(message.sender)
        if progress is None:
            return False
        assert message.match_index <= log.last_index
        if progress.acknowledged(message.match_index):
            if message.match_index >= self._asked_end:
                self._quick_to_write.answered(message.sender)
            if progress.flow is Flow.SNAPSHOT and message.match_index + 1 >= log.first_index:
                progress.replicate()  # An earlier stream has arrived after all, and the log has what follows.
            if self._transfer_to == message.sender:
                self._finish_transfer(message.sender)
            self.count_acknowledgements()
        # The last ones to answer change nothing, mostly.
        return (
            state.commit_index > commit_index
            or progress.next_index <= self._end_for(message.sender)
            or self._transfer_to is not None
        )

    def step_append_refusal(self, message: AppendRefusal) -> None:
        """A follower's log does not hold what was to precede the entries sent."""
        log = self._state.log
        progress = self.heard(message.sender)
        if progress is None:
            return
        # Skip this log's entries of terms that the follower cannot have at that place.
        index = min(message.hint_index, log.last_index)
        while index > progress.match_index and (log.term_of(index) or 0) > message.hint_term:
            index -= 1
        progress.refused(message.previous_index, index + 1)

    def step_heartbeat_reply(self, message: HeartbeatReply) -> bool:
        """A peer still takes this for its leader, as of that round; whether there is something to do for it."""
        known = self.progress.get(message.sender)
        was_active = known is not None and self._is_active(known)
        progress = self.heard(message.sender)
        if progress is None:
            return False
        if message.round == self._round_of_all:
            self._quick_to_answer.answered(message.sender)
        if message.round > progress.acked_round:
            progress.acked_round = message.round
            waiting = len(self.rounds)
            self._release_rounds()
            if len(self.rounds) < waiting:
                return True
        return not was_active  # It may need the snapshot.

    def count_acknowledgements(self) -> None:
        """Commit what a majority has on disk, if it is of this term (section 5.4.2, and Figure 8 for why)."""
        state = self._state
        matched = [progress.match_index for progress in self.voting]
        if state.is_voter:
            matched.append(state.log.stable_index)
        index = quorum_value(matched)
        if index > state.commit_index and state.log.term_of(index) == state.term:
            state.commit_to(index)
            if not state.is_voter and state.last_configuration_index <= index:
                self._step_down()  # It has led its own removal to the end (dissertation, section 4.2.2).

    # --- Sending ----------------------------------------------------------------------------------------------------

    def serve_peers(self, *, own_disk_is_free: bool) -> None:
        """Send to all peers; when this Ready can carry no more, the next one begins with the next peer.

        One batch is on its way at a time: until it is committed the next one gathers, and costs all members one message
        and one commit, however many calls it is made of. Those who lack earlier entries get them meanwhile.

        It goes to as many as make a majority, the quickest; the others get what there is with every tick, at a fraction
        of the cost, or when `hurry` is called. A large one goes to all: a message and a commit each are little beside
        what it holds, and then it waits for nobody who happens to be busy. So does any that begins while the leader's
        own disk is busy: the quickest are a majority only with it.
        """
        bounds, order = self._state.bounds, [*self.progress.items()]
        self._entries_left, self._bytes_left = bounds.turn_entries, bounds.turn_bytes
        # Nothing is proposed while the leadership is handed over, and whoever takes it needs all there is.
        if self._state.commit_index >= self.batch_end or self._transfer_to is not None:
            self.batch_end = self._state.log.last_index
            is_large = self.batch_end - self._state.commit_index >= LARGE_BATCH
            if is_large or not own_disk_is_free or self._transfer_to is not None:
                self._late_end = self.batch_end
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

    def _end_for(self, to: Member) -> int:
        """Up to where the log may be sent to this peer."""
        return self.batch_end if to in self._quick_to_write.members else self._late_end

    def _send_entries(self, to: Member, progress: Progress) -> None:
        """Send what the peer lacks, as far as the flow allows and this Ready may carry."""
        end, in_flight_max = self._end_for(to), self._state.bounds.in_flight_bytes
        while not progress.is_waiting and progress.in_flight_bytes < in_flight_max:
            if progress.flow is Flow.SNAPSHOT:
                return
            if progress.flow is Flow.REPLICATE and progress.next_index > end:
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
        state, log, bounds = self._state, self._state.log, self._state.bounds
        previous = progress.next_index - 1
        previous_term = log.term_of(previous) if progress.next_index >= log.first_index else None
        if previous_term is None:
            if self._is_active(progress):
                progress.snapshot()
                self.snapshots_wanted.append(to)
            return False
        entries: list[Entry] = []
        if with_entries and progress.next_index <= self._end_for(to):
            last = min(self._end_for(to), previous + bounds.append_entries)
            entries = log.entries(progress.next_index, last, bounds.append_bytes)
        state.send_now(
            Append(
                sender=state.member,
                to=to,
                term=state.term,
                previous_index=previous,
                previous_term=previous_term,
                entries=tuple(entries),
                commit_index=state.commit_index,
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

    def _send_heartbeats(self, to_whom: Iterable[Member]) -> None:
        state = self._state
        for to in to_whom:
            progress = self.progress[to]
            commit_index = min(state.commit_index, progress.match_index)
            state.send_now(
                Heartbeat(sender=state.member, to=to, term=state.term, commit_index=commit_index, round=self.round)
            )

    # --- Snapshots, and the log behind them -------------------------------------------------------------------------

    def snapshot_started(self, to: Member, last_index: int) -> None:
        """A snapshot that goes up to `last_index` is streamed to this peer."""
        progress = self.progress.get(to)
        if progress is not None and progress.flow is Flow.SNAPSHOT:
            progress.snapshot_index = last_index

    def snapshot_given_up(self, to: Member) -> None:
        """It could not be streamed to the end: probe again."""
        progress = self.progress.get(to)
        if progress is not None and progress.flow is Flow.SNAPSHOT:
            progress.probe(progress.match_index + 1)

    @property
    def index_to_keep(self) -> int | None:
        """Up to where the log may go, by what those peers will ask for that answer; None when none of them needs it."""
        first = self._state.log.first_index
        needed = [
            progress.snapshot_index if progress.flow is Flow.SNAPSHOT else progress.match_index
            for progress in self.progress.values()
            if self._is_active(progress)
        ]
        return min((index for index in needed if index + 1 >= first), default=None)

    # --- ReadIndex --------------------------------------------------------------------------------------------------

    @property
    def index_to_read(self) -> int | None:
        """Up to where a read that asks nobody has to wait for what is applied; None: others have to be asked first.

        The only voter need not ask whether it still leads: nobody could have elected another.
        """
        commit_index = self._state.commit_index
        return None if self.voting or commit_index < self._term_start_index else commit_index

    def start_round(self) -> None:
        """Give all reads that wait a round of their own, once that of the others before them is answered.

        No more peers are asked than are needed: those that were the first to answer when all were asked last, as they
        are with each heartbeat. Should one of them be gone, reads wait until then, which is a few ticks. Where there
        are writes too, those are likely to be other ones than a batch goes to: they have less to do.

        A read joins only a round that has not been sent. Otherwise: round 7 goes out; a new leader commits a write;
        a read comes in here and joins; the answers to round 7, given before that write, release it: a stale read.
        """
        commit_index = self._state.commit_index
        if not self.reads_waiting or self.rounds or commit_index < self._term_start_index:
            return
        self.round += 1
        self.rounds.append((self.round, commit_index, self.reads_waiting))
        self.reads_waiting = []
        self._send_heartbeats(self._quick_to_answer.members)
        self._release_rounds()

    def _release_rounds(self) -> None:
        if not self.rounds:
            return
        acked = [progress.acked_round for progress in self.voting]
        if self._state.is_voter:
            acked.append(self.round)
        confirmed = quorum_value(acked)
        while self.rounds and self.rounds[0][0] <= confirmed:
            _, index, reads = self.rounds.popleft()
            self._release(reads, index)

    def take_reads(self) -> list[Hashable]:
        """All reads that were not released. Those of a leadership that has ended are refused: its rounds prove nothing
        any more."""
        reads, self.reads_waiting = self.reads_waiting, []
        for _, _, each in self.rounds:
            reads += each
        self.rounds.clear()
        return reads
