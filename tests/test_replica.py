"""What a Replica promises to its callers, on real storage, with a disk whose work is done when the test says so."""

from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import Busy, Interrupted, NotLeader, WrongPartition
from madkv.operations import OpenSession, Own, Write, WriteKind
from madkv.raft.bounds import Bounds
from madkv.raft.configuration import Configuration, Member
from madkv.raft.core import Role
from madkv.raft.messages import Append, Heartbeat, Message, SnapshotPiece, SnapshotReply
from madkv.ranges import KeyRange, Ownership
from madkv.server.disk import Done, Work, outcome_of
from madkv.server.parts import Tuning
from madkv.server.replica import Replica
from madkv.storage.batch import Batch
from madkv.storage.overlay import AppliedPairs
from madkv.storage.twin import TwinDisk, TwinStorage

TICK_SECONDS = 0.1
ELECTION_TICKS_MAX = 20
TICKS_MAX = 200
SOON_TURNS_MAX = 1000


class SteppedDisk:
    """One piece of work waits until it is done, or is done at once with `is_quick`."""

    is_immediate = False

    def __init__(self) -> None:
        self.is_quick = True
        self.waiting: deque[tuple[Work, Done]] = deque()

    def run(self, work: Work, done: Done) -> None:
        assert not self.waiting, "one piece of work at a time"
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
            group.network.append, self._draw, self.failures.append, group.tuning,
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
        self.assertEqual(group.clock.getDelayedCalls(), [], "a replica that has ended wants nothing more")


class ProposeTest(ReplicaTestCase):
    """Each proposal is answered once, and what it is told is true."""

    def test_the_outcome_comes_when_it_is_on_the_disk_and_applied(self) -> None:
        group = self.make(1)
        machine = group.machines[0]
        machine.disk.is_quick = False
        answers = machine.propose(put(b"k", b"v"))
        group.settle()
        self.assertEqual((answers, machine.pairs.get(b"k")), ([], None))
        machine.disk.go_on()
        group.settle()
        self.assertEqual((answers, machine.pairs.get(b"k")), ([False], b"v"))

    def test_what_comes_while_the_disk_is_busy_shares_the_next_commit(self) -> None:
        group = self.make(1)
        machine = group.machines[0]
        machine.disk.is_quick = False
        first = machine.propose(put(b"k", b"0"))
        group.settle()
        others = [machine.propose(put(b"k", b"%d" % number)) for number in range(1, 9)]
        group.settle()
        machine.disk.go_on()
        group.settle()
        self.assertEqual((first, others), ([False], [[]] * 8))
        machine.disk.go_on()
        group.settle()
        self.assertEqual((others, len(machine.disk.waiting)), ([[True]] * 8, 0))

    def test_a_follower_says_who_leads(self) -> None:
        group = self.make(3)
        follower = group.machines[1]
        for words in ("no leader is known", "leader: 0"):
            for answers in (follower.propose(put(b"k", b"v")), follower.read(b"k")):
                group.settle()
                (answer,) = answers
                self.assertIsInstance(answer, NotLeader)
                self.assertIn(words, str(answer))
            group.elect(0)

    def test_a_retry_is_told_apart_when_it_is_applied(self) -> None:
        """Both are in the log, and neither was applied when the other was proposed."""
        group = self.make(1)
        machine = group.machines[0]
        opened = machine.propose(OpenSession(b"c" * 16))
        group.settle()
        (session,) = opened
        machine.disk.is_quick = False
        calls = [machine.propose(put(b"k", b"v", session, 1, 1)) for _ in range(2)]
        machine.disk.is_quick = True
        group.settle()
        self.assertEqual(calls, [[False], [False]], "the second answer is the first one's, not: it was there")

    def test_a_lost_leadership_is_no_refusal(self) -> None:
        """The entry is in the log, and the next leader may commit it: nobody may say that it was not executed."""
        group = self.make(3)
        old = group.elect(0)
        group.cut = {1}
        old.disk.is_quick = False
        answers = old.propose(put(b"k", b"v"))
        group.settle()
        self.assertEqual(answers, [])
        group.cut = {0}
        new = group.elect(2)  # Which holds the entry, and 1 does not.
        group.tick(ELECTION_TICKS_MAX)
        self.assertIsNot(old.replica.core.role, Role.LEADER)
        (answer,) = answers
        self.assertIsInstance(answer, Interrupted)
        self.assertNotIsInstance(answer, NotLeader)
        values = new.read(b"k")
        group.settle()
        self.assertEqual(values, [b"v"], "it was executed indeed")

    def test_another_leaders_entry_at_the_same_index_is_no_answer(self) -> None:
        """Nor is it to one who has not been told of the end of the leadership."""
        group = self.make(3)
        old = group.elect(0)
        group.tick(2)
        group.cut = {0}
        answers = old.propose(put(b"k", b"lost"))
        self.patch(old.replica, "_interrupt_waiters", lambda: None)
        index = old.replica.core.log.last_index
        new = group.elect(1)
        theirs = [new.propose(put(b"k", b"won%d" % number)) for number in range(3)]
        group.settle()
        self.assertEqual(theirs, [[False], [True], [True]])
        self.assertEqual(old.replica.core.log.term_of(index), 1)
        group.cut = set()
        group.tick(2)
        self.assertEqual((old.replica.core.log.term_of(index), old.pairs.get(b"k")), (2, b"won2"))
        (answer,) = answers
        self.assertIsInstance(answer, Interrupted)

    def test_too_much_uncommitted_is_busy(self) -> None:
        group = self.make(3, uncommitted_bytes_max=500)
        leader = group.elect(0)
        group.cut = {0}
        pending = [leader.propose(put(b"k", b"v" * 100)) for _ in range(10)]
        refused = [answers for answers in pending if answers]
        self.assertTrue(0 < len(refused) < 10)
        for (answer,) in refused:
            self.assertIsInstance(answer, Busy)
        group.cut = set()
        group.tick(2)
        self.assertEqual(sum(answers in ([False], [True]) for answers in pending), 10 - len(refused))
        after = leader.propose(put(b"k", b"w"))
        group.settle()
        self.assertEqual(after, [True])

    def test_a_disk_that_lags_behind_the_majority_is_busy_too(self) -> None:
        """Others commit what this one's disk does not hold; the memory that waits for it is bounded."""
        group = self.make(3, uncommitted_bytes_max=500)
        leader = group.elect(0)
        leader.disk.is_quick = False
        answers: list[Any] = []
        for _ in range(20):
            answers += leader.propose(put(b"k", b"v" * 100)) or [None]
            group.settle()
        self.assertTrue(any(isinstance(answer, Busy) for answer in answers))
        leader.disk.is_quick = True
        group.settle()
        after = leader.propose(put(b"k", b"w"))
        group.settle()
        self.assertEqual(after, [True])

    def test_ownership_is_looked_at_when_it_is_applied(self) -> None:
        """Proposed while the key was owned, applied when it no longer is."""
        group = self.make(1)
        machine = group.machines[0]
        machine.disk.is_quick = False
        machine.propose(Own(Ownership(1, (KeyRange(b"", b"k"),))))
        answers = machine.propose(put(b"m", b"v"))
        machine.disk.is_quick = True
        group.settle()
        (answer,) = answers
        self.assertIsInstance(answer, WrongPartition)
        self.assertIsNone(machine.pairs.get(b"m"))
        values = machine.read(b"m")
        group.settle()
        self.assertIsInstance(values[0], WrongPartition)


class ReadTest(ReplicaTestCase):
    """A read sees all that was answered before it was asked."""

    def test_it_waits_until_its_index_is_applied(self) -> None:
        """Two entries are committed and one is applied at a time: a read of that commit index waits for both."""
        group = self.make(3, applied_per_slice=1)
        leader = group.elect(0)
        for number in range(5):
            leader.propose(put(b"k", b"%d" % number))
        applied = leader.replica._apply_some
        self.patch(leader.replica, "_apply_some", lambda: None)
        group.settle()
        values = leader.read(b"k")
        group.settle()
        core = leader.replica.core
        self.assertLess(leader.replica.state_machine.last_applied, core.commit_index)
        self.assertEqual(values, [])
        self.patch(leader.replica, "_apply_some", applied)
        group.tick()
        self.assertEqual(values, [b"4"])

    def test_the_only_voter_answers_at_once_what_is_applied(self) -> None:
        group = self.make(1, applied_per_slice=1)
        machine = group.machines[0]
        self.assertEqual(machine.read(b"k"), [None])
        for number in range(3):
            machine.propose(put(b"k", b"%d" % number))
        applied = machine.replica._apply_some
        self.patch(machine.replica, "_apply_some", lambda: None)
        group.settle()
        self.assertEqual(machine.replica.core.commit_index, 4)
        values = machine.read(b"k")
        group.settle()
        self.assertEqual(values, [])
        self.patch(machine.replica, "_apply_some", applied)
        group.tick()
        self.assertEqual((values, machine.read(b"k")), ([b"2"], [b"2"]))

    def test_it_is_refused_when_the_leadership_is_lost(self) -> None:
        group = self.make(3)
        leader = group.elect(0)
        group.cut = {0}
        values = leader.read(b"k")
        group.tick(ELECTION_TICKS_MAX)
        (answer,) = values
        self.assertIsInstance(answer, NotLeader)

    def test_it_sees_what_is_being_committed(self) -> None:
        """The overlay is with the disk, and the store does not show it yet."""
        group = self.make(1, flush_entries=1)
        machine = group.machines[0]
        machine.disk.is_quick = False
        machine.propose(put(b"k", b"v"))
        group.settle()
        machine.disk.go_on()
        group.tick()
        self.assertEqual((machine.pairs.waiting_bytes, machine.stored), (0, {}), "the overlay is under way")
        values = machine.read(b"k")
        group.settle()
        self.assertEqual((values, list(machine.pairs.pairs(b"", b"z"))), ([b"v"], [(b"k", b"v")]))


class StopTest(ReplicaTestCase):
    """An end answers everybody; a failure answers nobody."""

    def test_whoever_waits_is_told_that_it_is_not_known(self) -> None:
        group = self.make(3)
        leader = group.elect(0)
        group.cut = {0}
        asked = [leader.propose(put(b"k", b"v")), leader.read(b"k")]
        group.settle()
        asked.append(leader.read(b"k"))
        leader.replica.stop()
        asked += [leader.propose(put(b"k", b"v")), leader.read(b"k")]
        for answers in asked:
            (answer,) = answers
            self.assertIsInstance(answer, Interrupted)
        leader.replica.stop()
        self.assertEqual([len(answers) for answers in asked], [1] * 5)

    def test_nobody_is_told_twice(self) -> None:
        """A caller may have the replica stop when it gets its answer: others of the same turn are told once."""
        group = self.make(1)
        machine = group.machines[0]
        machine.propose(put(b"k", b"v"))
        group.settle()
        told: list[tuple[str, Any]] = []
        machine.disk.is_quick = False

        def first(outcome: Any) -> None:
            told.append(("first", outcome))
            machine.replica.stop()

        machine.replica.propose(put(b"a", b"1"), first)
        machine.replica.propose(put(b"b", b"1"), lambda outcome: told.append(("second", outcome)))
        group.settle()
        applied = machine.replica.state_machine.last_applied
        machine.disk.go_on()
        machine.replica.read(b"a", lambda pairs: told.append(("read", pairs)))
        group.tick()
        self.assertEqual(sorted(name for name, _ in told), ["first", "read", "second"])
        for name, outcome in told:
            if name != "first":
                self.assertIsInstance(outcome, Interrupted)
        self.assertEqual(machine.replica.state_machine.last_applied, applied + 1, "nothing is applied after the end")

    def test_a_callers_failure_is_its_own(self) -> None:
        """Whoever asked may be wrong; those who ask next are served."""

        def wrong(answer: Any) -> None:
            raise ValueError("a bug of the caller's")

        group = self.make(1)
        machine = group.machines[0]
        machine.replica.propose(put(b"k", b"v"), wrong)
        machine.replica.read(b"k", wrong)
        group.settle()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        answers = machine.propose(put(b"k", b"w"))
        group.settle()
        values = machine.read(b"k")
        group.settle()
        self.assertEqual((answers, values, machine.failures), ([True], [b"w"], []))

    def test_a_commit_that_fails_is_the_end(self) -> None:
        """Memory is ahead of the disk then: an answer or a message would be a lie."""
        group = self.make(3)
        leader = group.elect(0)
        leader.storage.is_full = True
        answers = leader.propose(put(b"k", b"v"))
        group.settle()
        self.assertEqual(([str(each) for each in leader.failures], answers), (["no space left"], []))
        said = len(group.said)
        peer = group.machines[1].member
        leader.replica.receive(Heartbeat(sender=peer, to=leader.member, term=9, commit_index=0, round=1))
        group.cut = {1, 2}
        group.tick(ELECTION_TICKS_MAX)
        self.assertEqual([each for each in group.said[said:] if each.sender == leader.member], [], "it says nothing")
        self.assertEqual((len(leader.failures), answers), (1, []))

    def test_a_failure_while_applying_is_the_end(self) -> None:
        group = self.make(1)
        machine = group.machines[0]

        def broken(*arguments: Any) -> None:
            raise AssertionError("a bug")

        self.patch(machine.replica.state_machine, "apply", broken)
        answers = machine.propose(put(b"k", b"v"))
        group.settle()
        self.assertEqual(([str(each) for each in machine.failures], answers), (["a bug"], []))
        later = machine.propose(put(b"k", b"v"))
        self.assertIsInstance(later[0], Interrupted)


class DiskTest(ReplicaTestCase):
    """What goes to the disk, when, and what a restart makes of it."""

    def test_tables_follow_when_enough_was_applied(self) -> None:
        group = self.make(1, flush_entries=4)
        machine = group.machines[0]
        machine.propose(put(b"k", b"v"))
        group.settle()
        self.assertEqual((machine.stored, machine.platter.meta.applied_index), ({}, 0))  # type: ignore[union-attr]
        for number in range(3):
            machine.propose(put(b"k%d" % number, b"v"))
            group.settle()
        applied = machine.platter.meta.applied_index  # type: ignore[union-attr]
        self.assertGreaterEqual(applied, 4)
        self.assertEqual(machine.stored[b"k"], b"v")
        self.assertEqual(len(machine.stored), applied - 1, "the pairs are those of that very index; 1 is the no-op")

    def test_tables_follow_when_many_bytes_wait(self) -> None:
        group = self.make(1, flush_bytes=1000)
        machine = group.machines[0]
        machine.propose(put(b"k", b"v" * 100))
        group.tick(2)
        self.assertEqual(machine.stored, {})
        machine.propose(put(b"m", b"v" * 1000))
        group.tick(2)
        self.assertEqual(sorted(machine.stored), [b"k", b"m"])

    def test_a_restart_gives_everything_that_was_answered(self) -> None:
        """Whatever part of it is in the tables, the log or both, sessions included."""
        group = self.make(1, flush_entries=5, log_entries_kept=3)
        machine = group.machines[0]
        opened = machine.propose(OpenSession(b"c" * 16))
        group.settle()
        (session,) = opened
        for number in range(1, 24):
            answers = machine.propose(put(b"k%02d" % number, b"v", session, number, number))
            group.settle()
            self.assertEqual(answers, [False])
            if number % 4 == 0:
                machine.crash()
                machine.start()
                group.settle()
                retried = machine.propose(put(b"k%02d" % number, b"v", session, number, number))
                group.settle()
                self.assertEqual(retried, [False], "a retry is known after the restart")
                self.assertEqual(len(list(machine.pairs.pairs(b"", b"z"))), number)

    def test_the_log_is_cut_only_as_far_as_the_tables_went_before(self) -> None:
        """The commit that takes the tables further may never come about."""
        group = self.make(1, flush_entries=3, log_entries_kept=0)
        machine = group.machines[0]
        cut: list[tuple[int, int]] = []
        write = machine.storage.write

        def watched(batch: Batch) -> None:
            if batch.compact_to is not None:
                cut.append((batch.compact_to, machine.storage.applied_index))
            write(batch)

        self.patch(machine.storage, "write", watched)
        for number in range(20):
            machine.propose(put(b"k%d" % number, b"v"))
            group.settle()
        self.assertTrue(cut, "it is cut at all")
        for compact_to, applied in cut:
            self.assertLessEqual(compact_to, applied)

    def test_a_log_is_cut_by_its_bytes_as_well(self) -> None:
        group = self.make(1, flush_entries=10, log_bytes_kept=20_000)
        machine = group.machines[0]
        for _ in range(300):
            machine.propose(put(b"k", b"v" * 500))
            group.settle()
        kept = machine.storage.last_index - machine.storage.snapshot_index
        self.assertLess(kept, 150, "64 entries a mark, and about 40 that fit")

    def test_a_restart_knows_how_long_the_log_is(self) -> None:
        """Otherwise the log of a server that is restarted now and then grows for ever."""
        group = self.make(1, flush_entries=10, log_bytes_kept=40_000)
        machine = group.machines[0]
        kept = []
        for _ in range(12):
            for _ in range(50):
                machine.propose(put(b"k", b"v" * 300))
                group.settle()
            kept.append(sum(entry.size_bytes for entry in machine.platter.log))
            machine.crash()
            machine.start()
            group.settle()
        self.assertGreater(max(kept), 35_000)
        self.assertLess(max(kept), 75_000, "64 entries a mark, and 10 a commit")

    def test_tables_follow_when_many_sessions_changed(self) -> None:
        group = self.make(1, flush_rows=20)
        machine = group.machines[0]
        for number in range(30):
            machine.propose(OpenSession(b"%016d" % number))
            group.tick()
        self.assertGreaterEqual(machine.platter.meta.applied_index, 20)  # type: ignore[union-attr]

    def test_tables_follow_when_many_bytes_of_answers_are_recorded(self) -> None:
        """They are in no pair: what was swapped out may be large, and what came in its place small."""
        group = self.make(1, flush_bytes=5000)
        machine = group.machines[0]
        machine.propose(put(b"k", b"v" * 2000))
        for number in range(1, 4):
            opened = machine.propose(OpenSession(b"%016d" % number))
            group.settle()
            machine.propose(Write(WriteKind.SWAP, b"k", b"v" * (2000 if number < 3 else 1), opened[0], 1, 1))
            group.tick()
        group.tick()
        self.assertGreaterEqual(machine.platter.meta.applied_index, 7)  # type: ignore[union-attr]

    def test_others_get_their_turn_in_a_backlog(self) -> None:
        """What the core hands out at once is bounded by bytes, which may be fewer entries than a slice."""
        group = self.make(1, bounds=Bounds(apply_bytes=1000))
        machine = group.machines[0]
        machine.disk.is_quick = False
        answers = [machine.propose(put(b"k", b"v" * 900)) for _ in range(10)]
        group.settle()
        seen: list[int] = []

        def other() -> None:
            seen.append(sum(map(len, answers)))
            if len(seen) < 12:
                group.clock.callLater(0, other)

        machine.disk.go_on()
        other()
        group.clock.advance(0)
        self.assertEqual(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10])

    def test_others_get_their_turn_between_slices(self) -> None:
        group = self.make(1, applied_per_slice=10)
        machine = group.machines[0]
        machine.disk.is_quick = False
        answers = [machine.propose(put(b"k", b"v")) for _ in range(35)]
        group.settle()
        seen: list[int] = []

        def other() -> None:
            """Somebody else on the same reactor."""
            seen.append(sum(map(len, answers)))
            if len(seen) < 6:
                group.clock.callLater(0, other)

        machine.disk.go_on()
        other()
        group.clock.advance(0)
        self.assertEqual(seen, [0, 10, 20, 30, 35, 35])

    def test_a_commit_with_tables_holds_the_entries_for_them(self) -> None:
        """Others' disks commit what this leader's lacks: it is applied while a commit of tables alone is under way."""
        group = self.make(3, flush_entries=1)
        leader = group.elect(0)
        group.tick(2)
        leader.disk.is_quick = False
        answers = []
        for number in range(24):
            answers.append(leader.propose(put(b"k%02d" % number, b"v")))
            group.settle()
            if number % 4 == 3:
                for _ in range(2):  # The second time, with nothing but tables to write.
                    self.go_on_with(group, leader)
            elif number % 4 == 0:
                self.go_on_with(group, leader)
        self.assertEqual(answers, [[False]] * 24, "committed without this disk")
        self.assertGreater(len(leader.stored), 20)

    def go_on_with(self, group: Group, machine: Machine) -> None:
        machine.disk.go_on()
        group.settle()
        self.assertEqual(machine.failures, [])
        meta, log = machine.platter.meta, machine.platter.log
        assert meta is not None
        self.assertLessEqual(meta.applied_index, meta.snapshot_index + len(log))


class SnapshotTest(ReplicaTestCase):
    """A follower that lacks what was cut gets the state instead, in pieces."""

    def left_behind(self, **tuning: Any) -> tuple[Group, Machine, Machine, int]:
        """A group whose third member was cut off until the log had been cut; the session and its last call."""
        group = self.make(3, flush_entries=4, log_entries_kept=0, **tuning)
        leader, behind = group.elect(0), group.machines[2]
        opened = leader.propose(OpenSession(b"c" * 16))
        group.settle()
        (session,) = opened
        for number in range(1, 9):
            leader.propose(put(b"old", b"v", session, number, 1))
            group.tick(2)
        self.assertEqual((behind.stored, behind.pairs.get(b"old")), ({b"old": b"v"}, b"v"))
        group.cut = {2}
        leader.propose(Write(WriteKind.DELETE, b"old", b"", session, 9, 1))
        for number in range(10, 40):
            leader.propose(put(b"k%02d" % number, b"x" * 100, session, number, 1))
            group.tick()
        self.assertGreater(leader.storage.snapshot_index, behind.replica.core.log.last_index)
        return group, leader, behind, session

    def test_it_catches_up_by_a_snapshot(self) -> None:
        group, leader, behind, session = self.left_behind()
        group.cut = set()
        group.tick(ELECTION_TICKS_MAX)
        self.assertGreaterEqual(behind.storage.snapshot_index, 30)
        self.assertIsNone(behind.pairs.get(b"old"), "what was in memory before does not shine through")
        self.assertEqual(list(behind.pairs.pairs(b"", b"z")), list(leader.pairs.pairs(b"", b"z")))
        # It has the sessions, too: it may lead, and knows a retry.
        group.cut = {0}
        group.tick(ELECTION_TICKS_MAX)
        group.cut = {0}
        behind.replica.core.campaign()
        group.machines[1].replica.core.transfer_leadership(behind.member)
        group.elect(2)
        group.tick(2)
        answers = behind.propose(put(b"k39", b"x" * 100, session, 39, 1))
        group.settle()
        self.assertEqual(answers, [False])

    def test_a_crash_while_it_is_installed(self) -> None:
        """Before, the old state is there; after, the new one; and it catches up from either."""
        for is_done in (False, True):
            group, leader, behind, _ = self.left_behind()
            behind.disk.is_quick = False
            group.cut = set()
            group.until(lambda: behind.replica.core._installing is not None, behind.disk)  # noqa: B023
            work, _ = behind.disk.waiting[0]
            if is_done:
                work()
            behind.crash()
            behind.start()
            self.assertEqual(behind.pairs.get(b"old"), None if is_done else b"v")
            self.assertEqual(behind.storage.snapshot_index > 30, is_done)
            group.tick(ELECTION_TICKS_MAX)
            self.assertEqual(list(behind.pairs.pairs(b"", b"z")), list(leader.pairs.pairs(b"", b"z")))

    def test_it_takes_the_place_of_what_waits_to_be_applied(self) -> None:
        """A slow follower: entries have been handed out to it when a snapshot that goes further comes."""
        group = self.make(3, flush_entries=4, log_entries_kept=0)
        leader, behind = group.elect(0), group.machines[2]
        apply_some = behind.replica._apply_some
        self.patch(behind.replica, "_apply_some", lambda: None)
        for number in range(8):
            leader.propose(put(b"k%02d" % number, b"v"))
            group.tick()
        self.assertTrue(behind.replica._to_apply)
        group.cut = {2}
        for number in range(8, 40):
            leader.propose(put(b"k%02d" % number, b"v"))
            group.tick()
        group.cut = set()
        group.until(lambda: behind.storage.snapshot_index > 30)
        self.patch(behind.replica, "_apply_some", apply_some)
        leader.propose(put(b"last", b"v"))
        group.tick(2)
        self.assertEqual(behind.failures, [])
        self.assertEqual(behind.pairs.get(b"last"), b"v")
        self.assertEqual(list(behind.pairs.pairs(b"", b"z")), list(leader.pairs.pairs(b"", b"z")))

    def test_late_pieces_end_nothing(self) -> None:
        """Of a stream that was given up, of a snapshot that is installed, or one that came before."""
        group, _, behind, _ = self.left_behind(piece_bytes=200)
        behind.disk.is_quick = False
        group.cut = set()
        group.until(lambda: behind.storage._staged_bytes > 0, behind.disk)
        pieces = [each for each in group.said if isinstance(each, SnapshotPiece)]
        replica = behind.replica
        replica._arriving.waiting = None
        newer = attrs.evolve(pieces[0], stream=pieces[0].stream + 1)
        replica._arriving.add(newer)
        replica._arriving.add(pieces[0])
        self.assertIs(replica._arriving.waiting, newer, "an older stream's")
        second = attrs.evolve(newer, offset=200)
        replica._arriving.add(second)
        replica._arriving.add(newer)
        self.assertIs(replica._arriving.waiting, second, "one that came before")
        replica._arriving.forget(second.last_index)
        self.assertIsNone(replica._arriving.waiting, "what is there already")

    def test_a_piece_repeated_while_it_is_installed(self) -> None:
        """It would be answered as if nothing were there, and the leader would begin again."""
        group, leader, behind, _ = self.left_behind(piece_bytes=200)
        behind.disk.is_quick = False
        group.cut = set()
        group.until(lambda: behind.replica.core._installing is not None, behind.disk)
        last = [each for each in group.said if isinstance(each, SnapshotPiece)][-1]
        behind.replica.receive(last)
        behind.disk.is_quick = True
        said = len(group.said)
        group.tick(5)
        replies = [each for each in group.said[said:] if isinstance(each, SnapshotReply)]
        self.assertEqual([reply.offset for reply in replies if reply.offset == 0], [])
        self.assertEqual(list(behind.pairs.pairs(b"", b"z")), list(leader.pairs.pairs(b"", b"z")))

    def test_what_is_left_to_send_goes_soon(self) -> None:
        """More than one turn may carry waits neither for the next tick nor for an answer."""
        group = self.make(3, bounds=Bounds(append_entries=2, turn_entries=2))
        leader = group.elect(0)
        group.tick(2)
        for _ in range(40):
            leader.propose(put(b"k", b"v"))
        for _ in range(50):
            group.clock.advance(0)
        for to in (1, 2):
            appends = [each for each in group.network if isinstance(each, Append) and each.to.replica == to]
            self.assertEqual(sum(len(each.entries) for each in appends), 40)

    def test_the_log_that_its_receiver_will_ask_for_is_kept(self) -> None:
        """Or it would need another snapshot right after, and so on."""
        group, leader, behind, _ = self.left_behind()
        behind.disk.is_quick = False
        group.cut = set()
        group.until(lambda: leader.replica._streams.oldest_index is not None)
        at = leader.replica._streams.oldest_index
        assert at is not None
        for number in range(40):
            leader.propose(put(b"m%02d" % number, b"x"))
            group.tick()
        self.assertEqual(leader.storage.snapshot_index, at, "it is cut up to there, and no further")
        installed: list[int] = []
        taken_over = behind.storage.installed
        self.patch(behind.storage, "installed", lambda head: (installed.append(head.last_index), taken_over(head)))
        behind.disk.is_quick = True
        group.tick(ELECTION_TICKS_MAX)
        self.assertEqual(installed, [at])
        self.assertEqual(list(behind.pairs.pairs(b"", b"z")), list(leader.pairs.pairs(b"", b"z")))


class AppendsAreSharedTest(ReplicaTestCase):
    def test_one_append_carries_what_came_in_one_turn(self) -> None:
        group = self.make(3)
        leader = group.elect(0)
        group.tick(2)
        for _ in range(10):
            leader.propose(put(b"k", b"v"))
        group.clock.advance(0)
        carried = [len(each.entries) for each in group.network if isinstance(each, Append)]
        self.assertEqual(carried, [10, 10])
