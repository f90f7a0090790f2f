"""What must hold of one replica at any time, of two consecutive states of it, and of a whole group.

Tests and simulations call these after every step; production never does. Each raises AssertionError with the rule that
was broken (Figure 3 of the paper, and what the fields of `RaftCore` promise).
"""

from collections.abc import Iterable

import attrs

from madkv.raft.configuration import Member
from madkv.raft.core import RaftCore, Role
from madkv.raft.messages import Entry, HardState
from madkv.raft.progress import Flow


@attrs.frozen
class Seen:
    """What is remembered of a replica's state, to hold the next one against it."""

    hard_state: HardState
    role: Role
    commit_index: int
    applied_index: int
    match_index: dict[Member, int]

    @classmethod
    def of(cls, core: RaftCore) -> "Seen":
        """The state just now."""
        matched = {member: progress.match_index for member, progress in core.progress.items()}
        return cls(core.hard_state, core.role, core.commit_index, core.applied_index, matched)


def check_state(core: RaftCore) -> None:
    """Rules about one replica at one time."""
    log, last_index, leads = core.log, core.log.last_index, core.role is Role.LEADER
    assert log.stable_index <= log.taken_index <= last_index, "stable <= taken <= last"
    assert core.applied_index <= core.commit_index <= last_index, "applied <= committed <= last"
    assert log.last_term <= core.term, "no entry of a term to come"
    assert log.term_of(last_index) == log.last_term and log.term_of(last_index + 1) is None, "where the log ends"
    assert core.term == core.hard_state.term, "the term is that of the hard state"
    assert core.is_voter == (core.member in core.configuration.voters), "it knows whether it has a vote"
    assert core.led_term == (core.term if leads else None), "it knows which term it leads"
    assert leads == (core.leader == core.member), "a leader knows itself as the leader"
    if not leads:
        assert not core.progress, "only a leader keeps progress"
        return
    peers = core.configuration.members - {core.member}
    assert core.progress.keys() == peers, "progress of every peer, and only those"
    votes = {id(progress) for member, progress in core.progress.items() if member in core.configuration.voters}
    assert core._leading is not None
    assert {id(progress) for progress in core._leading.voting} == votes, "majorities are counted among the voters"
    for member, progress in core.progress.items():
        assert 0 <= progress.match_index < progress.next_index, f"match < next, for {member}"
        assert progress.match_index <= last_index, f"{member} matches what is not there"
        assert progress.in_flight_bytes >= 0
        assert progress.flow is not Flow.PROBE or progress.in_flight_bytes == 0, "a probe is one message"


def check_step(before: Seen, core: RaftCore) -> Seen:
    """Rules about two consecutive states of one replica that did not restart in between; the second one."""
    after = Seen.of(core)
    assert after.hard_state.term >= before.hard_state.term, "the term never goes back"
    if after.hard_state.term == before.hard_state.term:
        assert before.hard_state.voted_for in (None, after.hard_state.voted_for), "one vote a term"
        if before.role is Role.LEADER and after.role is Role.LEADER:
            for member, match_index in after.match_index.items():
                assert match_index >= before.match_index.get(member, 0), "match_index never goes back"
    assert after.commit_index >= before.commit_index, "commit_index never goes back"
    assert after.applied_index >= before.applied_index, "nothing is applied twice"
    return after


class GroupHistory:
    """Rules about a group over all time: what was once committed, and who led which term."""

    def __init__(self) -> None:
        self.committed: dict[int, Entry] = {}
        self._leaders: dict[int, Member] = {}

    def check(self, cores: Iterable[RaftCore]) -> None:
        """Election Safety: one leader a term. Leader Completeness: it begins with all that was committed before."""
        for core in cores:
            if core.role is Role.LEADER:
                if core.term > max(self._leaders, default=0) and self.committed:
                    newest = self.committed[max(self.committed)]
                    is_there = newest.index < core.log.first_index or core.log.holds(newest.index, newest.term)
                    assert is_there, f"{core.member} leads term {core.term} without {newest}"
                leader = self._leaders.setdefault(core.term, core.member)
                assert leader == core.member, f"two leaders in term {core.term}: {leader} and {core.member}"

    def check_committed(self, entries: Iterable[Entry]) -> None:
        """State Machine Safety: one entry for each index, on every replica, for ever."""
        for entry in entries:
            known = self.committed.setdefault(entry.index, entry)
            assert known == entry, f"index {entry.index} is {entry} here and {known} elsewhere"
