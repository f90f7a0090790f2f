"""Random schedules of everything that can go wrong, with the invariants after every step, and life after healing.

A seed decides all. To see more of them, or one again: `python -m tests.raft.test_random_schedules FIRST [LAST]`.
"""

import sys
from collections import Counter
from collections.abc import Callable
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS, Bounds
from madkv.raft.configuration import Configuration, Member
from madkv.raft.core import Role
from madkv.raft.messages import Message
from tests.raft import group as group_module
from tests.raft.group import ELECTION, Group, Node

SEEDS = 400
STEPS = 1200
REACH = 20
"""How far back in the network the message that comes next may be."""


class Schedule:
    """One group, and what befalls it."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.counted: Counter[str] = Counter()
        size = random.choice([1, 2, 3, 3, 3, 4, 5, 5, 7, 9])
        absent = range(size + 1, size + 1 + random.choice([0, 0, 1, 2]))
        learners = random.sample(range(2, size + 1), random.choice([0, 0, min(1, size - 1)]))
        draw = random.randrange
        self.group = Group(size + len(absent), draw=draw, learners=learners, absent=absent)
        self.loss = random.choice([0, 0.02, 0.1, 0.3])
        self.repeats = random.choice([0, 0.05, 0.2])
        self.is_ordered = random.random() < 0.3
        self.slow = {who: random.choice([1, 1, 0.3, 0.05]) for who in self.group.nodes}
        self.cut: set[tuple[Member, Member]] = set()
        weights = {
            self.tick: random.choice([6, 20, 40]),
            self.write: 12,
            self.propose: 6,
            self.read: 3,
            self.restart: random.choice([0, 0.3, 1]),
            self.partition: random.choice([0, 0.4, 1]),
            self.heal: random.choice([0.2, 0.5, 1]),
            self.change_members: random.choice([0, 1]),
            self.transfer: random.choice([0, 0.5]),
            self.compact: random.choice([0, 1, 3]),
            self.deliver: 40,
        }
        self.acts: list[Callable[[], None]] = list(weights)
        self.weights = list(weights.values())

    def run(self) -> None:
        """The storm, and then the calm after it."""
        for act in self.random.choices(self.acts, self.weights, k=STEPS):
            act()
        self.check_calm()

    def node(self) -> Node:
        """Somebody; every other time somebody who leads."""
        if self.random.random() < 0.5 and self.group.leaders:
            return self.random.choice(self.group.leaders)
        return self.random.choice(list(self.group.nodes.values()))

    def after(self, node: Node) -> None:
        """What came out of it goes into the network."""
        node.check()
        self.group.network += node.drain()
        self.group.history.check([node.core])

    def tick(self) -> None:
        """Time passes for all but a few, whose clocks are slow."""
        for node in self.group.nodes.values():
            if self.random.random() < 0.9:
                node.tick()
                self.group.network += node.drain()

    def write(self) -> None:
        """Some disks finish what they are at."""
        for node in self.group.nodes.values():
            if node.is_busy and self.random.random() < self.slow[node.core.member]:
                self.counted["installed"] += node.is_switching
                node.write()
                self.group.network += node.drain()
                self.group.history.check([node.core])

    def propose(self) -> None:
        node = self.node()
        for _ in range(self.random.choice([1, 1, 5])):
            payload = b"%d" % self.counted["proposals"] + bytes(self.random.choice([0, 0, 200]))
            if node.core.propose(payload) is not None:
                self.counted["proposals"] += 1
        self.after(node)

    def read(self) -> None:
        node = self.node()
        self.counted["reads"] += 1
        self.group.read(node.core.member.replica, self.counted["reads"])
        self.after(node)

    def restart(self) -> None:
        """A crash loses what was not written; in one of ten the lights go out for all."""
        everybody = [who.replica for who in self.group.nodes]
        for number in everybody if self.random.random() < 0.1 else [self.random.choice(everybody)]:
            self.group.restart(number)
            self.counted["restarts"] += 1

    def partition(self) -> None:
        """Some do not reach some others; half of the time that is so in both directions."""
        everybody = list(self.group.nodes)
        left = self.random.sample(everybody, self.random.randrange(len(everybody)))
        if self.random.random() < 0.5:  # leaders with a minority
            left = [node.core.member for node in self.group.leaders] + left[: len(everybody) // 2 - 1]
        cut = {(one, other) for one in left for other in everybody if other not in left}
        if self.random.random() < 0.5:
            cut |= {(other, one) for one, other in cut}
        elif self.random.random() < 0.5:
            cut = {(other, one) for one, other in cut}
        self.cut = cut
        self.counted["partitions"] += 1

    def heal(self) -> None:
        self.cut = set()

    def change_members(self) -> None:
        """A voter comes or goes, or a learner does."""
        node = self.node()
        configuration = node.core.configuration
        who = self.random.choice(list(self.group.nodes))
        voters, learners = configuration.voters - {who}, configuration.learners - {who}
        match self.random.randrange(3):
            case 0:
                voters |= {who}
            case 1:
                learners |= {who}
        if node.core.propose_configuration(Configuration(voters, learners)) is not None:
            self.counted["changes"] += 1
        self.after(node)

    def transfer(self) -> None:
        node = self.node()
        if node.core.transfer_leadership(self.random.choice(list(self.group.nodes))):
            self.counted["transfers"] += 1
        self.after(node)

    def compact(self) -> None:
        node = self.node()
        before = node.disk.snapshot_index
        node.compact()
        self.counted["compactions"] += node.disk.snapshot_index > before

    def reaches(self, message: Message) -> bool:
        return (message.sender, message.to) not in self.cut and self.random.random() >= self.loss

    def deliver(self) -> None:
        """A few messages get through, get lost, or come again."""
        network = self.group.network
        for _ in range(self.random.choice([1, 4, 10])):
            if not network:
                return
            at = 0 if self.is_ordered else self.random.randrange(min(len(network), REACH))
            message = network.pop(at)
            if self.random.random() < self.repeats:
                network.append(message)
            if self.reaches(message):
                log = self.group.nodes[message.to].core.log
                last, term = log.last_index, log.last_term
                self.group.deliver(message)
                self.counted["truncations"] += not log.holds(last, term)

    def check_calm(self) -> None:
        """Everything heals; then a leader comes, serves, and brings everybody up to date."""
        group = self.group
        group.settle()
        for _ in range(12 * ELECTION):
            group.tick()
            group.settle()
            if group.leaders and group.leader.core.commit_index == group.leader.core.log.last_index:
                break
        assert group.leaders, "no leader after healing"
        for _ in range(3):  # a leader that is not a voter any more steps down when it has committed that
            leader = group.leader
            index = leader.core.propose(b"last")
            for _ in range(2 * ELECTION):
                group.tick()
                group.settle()
            if index is not None and leader.core.role is Role.LEADER:
                break
        assert index is not None, "a leader that does not serve"
        leader = group.leader
        group.read(leader.core.member.replica, "last")
        for _ in range(ELECTION_TICKS):
            group.tick()
            group.settle()
        assert any(read.request == "last" for read in leader.reads), "a read that is not released"
        for who in leader.core.configuration.members:
            core = group.nodes[who].core
            assert core.applied_index == leader.core.applied_index >= index, f"{who} is left behind"
        self.counted["terms"] += leader.core.term
        self.counted["committed"] += leader.core.commit_index
        self.counted["snapshots"] += sum(node.disk.snapshot_index > 0 for node in group.nodes.values())


def run(seed: int) -> Counter[str]:
    """One seed; whatever fails names it."""
    schedule = Schedule(seed)
    try:
        schedule.run()
    except Exception as error:
        error.add_note(f"python -m tests.raft.test_random_schedules {seed}")
        raise
    return schedule.counted


class RandomSchedulesTest(SynchronousTestCase):
    """Small bounds, so that they are reached."""

    def test_safety_and_liveness(self) -> None:
        small(self.patch)
        counted: Counter[str] = Counter()
        for seed in range(SEEDS):
            counted += run(seed)
        for what in ("truncations", "restarts", "partitions", "changes", "transfers", "compactions", "installed"):
            self.assertGreater(counted[what], SEEDS / 10, counted)


def small(patch: Callable[[object, str, object], object]) -> None:
    """Bounds that are reached with a few entries."""
    patch(
        group_module,
        "BOUNDS",
        Bounds(
            append_bytes=600,
            append_entries=5,
            in_flight_bytes=2000,
            turn_bytes=1000,
            turn_entries=7,
            apply_bytes=600,
            tail_bytes_kept=1000,
        ),
    )


if __name__ == "__main__":
    small(setattr)
    first = int(sys.argv[1])
    total: Counter[str] = Counter()
    for seed in range(first, int(sys.argv[2]) if len(sys.argv) > 2 else first + 1):
        try:
            total += run(seed)
        except Exception as error:
            print(f"seed {seed} FAILED: {type(error).__name__}: {error}")
            raise
    print(total)
