"""Who makes a majority soonest."""

from collections.abc import Iterable

from madkv.raft.configuration import Member
from madkv.raft.state import ReplicaState


class Quickest:
    """The voters whose answers a leader is likely to need: those that were the first to answer when all were asked.

    To ask no more of them spares the others, and the leader, half of the work. Whoever asks these alone has to ask all
    of them again before long: one may be gone, or slow by now.
    """

    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        self._first: list[Member] = []
        self.members: list[Member] = []
        """Whom to ask."""

    def ask_all(self, peers: Iterable[Member]) -> None:
        """Nothing is known of them: ask all from now on."""
        self._first = []
        self.members = [*peers]

    def all_are_asked(self) -> None:
        """All are asked now, whoever is the first to answer."""
        self._first = []

    def answered(self, sender: Member) -> None:
        """One of them has answered what all were asked last."""
        voters, first = self._state.configuration.voters, self._first
        if sender in voters and sender not in first:
            first.append(sender)
            if len(first) + self._state.is_voter == len(voters) // 2 + 1:
                self.members = first.copy()
