"""What a replica does with what the leader of a term sends it: take entries and snapshots in, and acknowledge them.

Appends (section 5.3), and snapshots (section 7), for which the disk takes its time. Who leads is looked at before.
"""

from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Append, AppendRefusal, AppendReply, SnapshotPiece
from madkv.raft.state import ReplicaState


class Following:
    """How one replica follows, whoever leads it."""

    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        self.leader_commit_index = 0
        """What a leader has committed, as its last Append said; this replica may be far behind that."""
        self.pieces: list[SnapshotPiece] = []
        """For the disk to stage, with the next Ready."""
        self.switching_to: int | None = None
        """Up to where the snapshot goes that the disk switches to."""
        self._keeps_suffix = False  # whether the log held its last entry when that began

    # --- Entries ----------------------------------------------------------------------------------------------------

    def step_append(self, message: Append) -> None:
        """Entries of the leader's, or the question whether the log fits."""
        self.leader_commit_index = message.commit_index
        if self.switching_to is not None or not _follow_each_other(message):
            return
        state, log = self._state, self._state.log
        previous = message.previous_index
        confirmed = previous + len(message.entries)
        if previous < state.commit_index:
            # Late or repeated. What is committed agrees with every leader's log, so go on from there.
            if confirmed <= state.commit_index:
                self.acknowledge(message.sender, state.commit_index)
                return
        elif not log.holds(previous, message.previous_term):
            self._refuse(message)
            return
        for entry in message.entries:
            if entry.index <= state.commit_index or log.holds(entry.index, entry.term):
                continue
            if entry.index <= log.last_index:
                # A real conflict. Without one nothing is removed: an old, shorter Append may come late.
                state.truncate(entry.index)
            state.append(entry)
        # Not further than this message proves: entries after `confirmed` may be another leader's.
        state.commit_to(min(message.commit_index, confirmed))
        self.acknowledge(message.sender, confirmed)

    def acknowledge(self, leader: Member, match_index: int) -> None:
        """Tell the leader, once it is on disk, that the log is its own up to there."""
        state = self._state
        for at, held in enumerate(state.held):
            if isinstance(held, AppendReply) and held.to == leader and held.term == state.term:
                # While the disk is busy Appends keep coming: one answer, when it is done, says it all.
                match_index = max(match_index, held.match_index)
                del state.held[at]
                break
        state.send(AppendReply(sender=state.member, to=leader, term=state.term, match_index=match_index))

    def _refuse(self, message: Append) -> None:
        """Name the highest entry that might match: not after the end, and not of a term above what was asked for."""
        state, log = self._state, self._state.log
        index = min(message.previous_index - 1, log.last_index)
        while index > state.commit_index:
            term = log.term_of(index)
            assert term is not None
            if term <= message.previous_term:
                break
            index -= 1
        state.send_now(
            AppendRefusal(
                sender=state.member,
                to=message.sender,
                term=state.term,
                previous_index=message.previous_index,
                hint_index=index,
                hint_term=log.term_of(index) or 0,
            )
        )

    # --- Snapshots --------------------------------------------------------------------------------------------------

    def step_snapshot_piece(self, message: SnapshotPiece) -> None:
        """A piece of a snapshot of the leader's."""
        if message.last_index <= self._state.commit_index:
            self.acknowledge(message.sender, self._state.commit_index)  # it has all that already
        else:
            self.pieces.append(message)

    def switch(self, last_index: int, last_term: int) -> bool:
        """The disk may switch to a snapshot up to there; False when it is of no use any more."""
        if last_index <= self._state.applied_index:
            return False
        self.switching_to = last_index
        self._keeps_suffix = self._state.log.holds(last_index, last_term)
        return True

    def switched(self, last_index: int, configuration: Configuration) -> None:
        """It has. Entries after the snapshot stay if the log held its last entry: they may be acknowledged already."""
        state = self._state
        assert self.switching_to == last_index
        self.switching_to = None
        state.log.snapshot_installed(last_index, keeps_suffix=self._keeps_suffix)
        later = [each for each in state.configurations if each[0] > last_index] if self._keeps_suffix else []
        state.configurations = [(last_index, configuration), *later]
        state.note_configuration()
        state.commit_index = max(state.commit_index, last_index)
        state.applied_index = last_index


def _follow_each_other(message: Append) -> bool:
    """Whether its entries follow each other without a gap, and their terms never go back, as in every leader's log."""
    index, term = message.previous_index, message.previous_term
    for entry in message.entries:
        index += 1
        if entry.index != index or not term <= entry.term <= message.term:
            return False
        term = entry.term
    return True
