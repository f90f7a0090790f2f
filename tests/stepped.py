"""Replicas of one group whose disks and messages move when the test says so."""

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.operations import Write, WriteKind
from madkv.raft.configuration import Configuration, Member
from madkv.raft.core import Role
from madkv.raft.messages import Message
from madkv.server.disk import Done, Work, outcome_of
from madkv.server.parts import Tuning
from madkv.server.replica import Replica
from madkv.storage.batch import Batch
from madkv.storage.overlay import AppliedPairs
from madkv.storage.twin import TwinDisk, TwinStorage

TICK_SECONDS = 0.1
ELECTION_TICKS_MAX = 20
"""Enough for an election among all."""
TICKS_MAX = 200
SOON_TURNS_MAX = 1000


class SteppedDisk:
    """One piece of work waits until it is done, or is done at once with `is_quick`."""

    is_immediate = False

    def __init__(self) -> None:
        self.is_quick = True
        self.does_short_work_at_once = False
        self.short: list[bool] = []
        """Of each piece of work, whether it was called short."""
        self.waiting: deque[tuple[Work, Done]] = deque()

    def run(self, work: Work, done: Done, *, is_short: bool = False) -> None:
        assert not self.waiting, "one piece of work at a time"
        self.short.append(is_short)
        if is_short and self.does_short_work_at_once:
            done(outcome_of(work))
        else:
            self.waiting.append((work, done))

    def go_on(self) -> None:
        work, done = self.waiting.popleft()
        done(outcome_of(work))

    def close(self) -> None:
        """Nothing outlives the test."""


class FailingStorage(TwinStorage):
    """A store whose disk is full as soon as the test says so."""

    is_full = False

    def write(self, batch: Batch) -> None:
        if self.is_full:
            raise OSError("no space left")
        super().write(batch)


class Machine:
    """A replica, its disk, and what it was told to send."""

    def __init__(self, group: "Group", number: int) -> None:
        self.group = group
        self.member = Member(number, bytes([number]) * 16)
        self.platter = TwinDisk()
        self.failures: list[Exception] = []

    def start(self) -> None:
        group = self.group
        self.disk = SteppedDisk()
        self.storage = FailingStorage(self.platter, group.configuration)
        self.pairs = AppliedPairs(self.storage)
        self.replica = Replica(
            self.member, self.storage, self.pairs, self.disk, group.clock,
            group.network.extend, self._draw, self.failures.append, group.tuning,
        )  # fmt: skip
        self.replica.start()

    def _draw(self, below: int) -> int:
        """The lower number has the shorter time-out."""
        return 4 * self.member.replica % below

    def crash(self) -> None:
        self.replica.halt()
        self.disk.waiting.clear()

    def propose(self, operation: Any) -> list[Any]:
        """What is answered will be in the list."""
        answers: list[Any] = []
        self.replica.propose(operation, answers.append)
        return answers

    def read(self, key: bytes) -> list[Any]:
        """The value, or the error, will be in the list."""
        values: list[Any] = []
        self.replica.read(
            key, lambda pairs: values.append(pairs.get(key) if isinstance(pairs, AppliedPairs) else pairs)
        )
        return values

    @property
    def stored(self) -> dict[bytes, bytes]:
        """The pairs on the disk."""
        return dict(self.platter.tables[0])


class Group:
    """Machines that are connected, but for those that are cut off."""

    def __init__(self, count: int, tuning: Tuning) -> None:
        self.tuning = tuning
        self.clock: Any = Clock()
        self.network: deque[Message] = deque()
        self.said: list[Message] = []
        self.cut: set[int] = set()
        self.machines = [Machine(self, number) for number in range(count)]
        self.configuration = Configuration(frozenset(machine.member for machine in self.machines))
        for machine in self.machines:
            machine.start()

    def settle(self) -> None:
        """Let everything happen that needs no time but that of quick disks."""
        for _ in range(SOON_TURNS_MAX):
            self.clock.advance(0)
            busy = [machine for machine in self.machines if machine.disk.is_quick and machine.disk.waiting]
            for machine in busy:
                machine.disk.go_on()
            if self.network:
                self.deliver(self.network.popleft())
            elif not busy and not any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
                return
        raise AssertionError("it does not come to rest")

    def deliver(self, message: Message) -> None:
        self.said.append(message)
        if not {message.to.replica, message.sender.replica} & self.cut:
            self.machines[message.to.replica].replica.receive(message)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.clock.advance(TICK_SECONDS)
            self.settle()

    def elect(self, number: int) -> Machine:
        """Wait until this one leads a term that is newer than all others."""
        core = self.machines[number].replica.core

        def leads() -> bool:
            return core.role is Role.LEADER and core.term == max(each.replica.core.term for each in self.machines)

        self.until(leads)
        return self.machines[number]

    def until(self, is_so: Callable[[], bool], disk: SteppedDisk | None = None) -> None:
        """Let time pass until something is so; between ticks the disk does one piece of work."""
        for _ in range(TICKS_MAX):
            if is_so():
                return
            if disk is not None and disk.waiting:
                disk.go_on()
            self.tick()
        raise AssertionError("it does not come about")


def put(key: bytes, value: bytes, session: int = 0, sequence: int = 0, floor: int = 0) -> Write:
    return Write(WriteKind.PUT, key, value, session, sequence, floor)


class ReplicaTestCase(SynchronousTestCase):
    def make(self, count: int, **tuning: Any) -> Group:
        group = Group(count, Tuning(tick_seconds=TICK_SECONDS, **tuning))
        self.addCleanup(self._end, group)
        group.settle()
        return group

    def _end(self, group: Group) -> None:
        for machine in group.machines:
            machine.replica.halt()
        group.clock.advance(0)  # A turn that was due does nothing any more.
        self.assertEqual(group.clock.getDelayedCalls(), [], "a replica that has ended wants nothing more")
