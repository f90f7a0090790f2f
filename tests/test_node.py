"""What a leading node makes of what its group should be: here, when a learner gets its vote."""

from types import SimpleNamespace
from typing import Any

from madkv.raft.configuration import Configuration, Member
from madkv.raft.progress import Progress
from madkv.ranges import NOTHING
from madkv.server.clustered import ClusteredServer
from madkv.state_machine import StateMachine
from madkv.storage.memory import MemoryStore

A, B, NEW = (Member(number, bytes([number]) * 16) for number in range(3))


class Leading:
    """A server that leads a group with a learner, as far as the question of its vote goes."""

    def __init__(self) -> None:
        self.progress = Progress(next_index=1)
        self.core: Any = SimpleNamespace(
            configuration=Configuration(frozenset((A, B)), frozenset((NEW,))),
            progress={NEW: self.progress},
            term=1,
            commit_index=0,
        )
        self.steps: list[Configuration] = []
        machine = StateMachine(MemoryStore(), first_ownership=NOTHING)
        replica = SimpleNamespace(core=self.core, change_members=self.steps.append)
        self.server: Any = ClusteredServer.__new__(ClusteredServer)
        self.server._targets = {}
        self.server._host = SimpleNamespace(leads=True, machine=machine, replica=replica)
        self.server._place = SimpleNamespace(ownership=NOTHING, wanted=Configuration(frozenset((A, B, NEW))))
        self.server._registration = SimpleNamespace(hurry=False)

    def look(self, committed: int, matched: int) -> bool:
        """As each registration does; whether the learner gets its vote now."""
        self.core.commit_index, self.progress.match_index = committed, matched
        self.server._see_to_the_group()
        return bool(self.steps)


def test_a_learner_that_follows_closely_gets_its_vote_while_calls_keep_coming() -> None:
    leading = Leading()
    assert not leading.look(2000, 1998)
    assert leading.server._registration.hurry, "one look should follow the other soon"
    assert leading.look(2300, 2298)
    assert leading.steps == [Configuration(frozenset((A, B, NEW)))]


def test_one_that_holds_everything_gets_it_at_once() -> None:
    assert Leading().look(2000, 2000)


def test_one_that_falls_behind_does_not() -> None:
    leading = Leading()
    assert not any(leading.look(1000 * number, 400 * number) for number in range(1, 10))


def test_what_another_leadership_knew_does_not_count() -> None:
    leading = Leading()
    assert not leading.look(2000, 100)
    leading.core.term = 2
    assert not leading.look(5000, 2500)
    assert leading.look(5100, 5000)
