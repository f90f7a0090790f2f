"""What a Replica promises to its callers, on real storage, with a disk whose work is done when the test says so."""

from typing import Any

from madkv.errors import Busy, Interrupted, NotLeader, WrongPartition
from madkv.operations import OpenSession, Own
from madkv.raft.core import Role
from madkv.raft.messages import Append, Heartbeat
from madkv.ranges import KeyRange, Ownership
from madkv.server.parts import PATIENCE_SECONDS
from tests.stepped import ELECTION_TICKS_MAX, ReplicaTestCase, put


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

    def test_a_batch_waits_for_nobody_who_is_gone(self) -> None:
        """It goes to the quickest alone; when one of them is gone, to all, and long before the next tick."""
        group = self.make(3)
        leader = group.elect(0)
        for gone in (1, 2, 1):
            other = 3 - gone
            # All get what is on its way at a tick: the other one answers too late to be one of the quickest.
            leader.propose(put(b"k", b"v"))
            group.clock.advance(0)
            group.cut = {other}
            group.tick()
            group.cut = set()
            group.tick(2)
            group.cut = {gone}
            answers = leader.propose(put(b"k", b"v"))
            group.settle()
            self.assertEqual(answers, [], f"only {gone} was asked")
            group.clock.advance(PATIENCE_SECONDS)
            group.settle()
            self.assertEqual(answers, [True])
            group.cut = set()
            group.tick(2)

    def test_a_batch_does_not_wait_for_a_slow_disk_of_the_leader(self) -> None:
        """The quickest are a majority only with it. It was well when the first one began, and that one shows it."""
        group = self.make(3)
        leader = group.elect(0)
        group.tick(2)
        leader.disk.is_quick = False
        first = leader.propose(put(b"first", b"v"))
        group.settle()
        group.clock.advance(PATIENCE_SECONDS)
        group.settle()
        self.assertEqual(first, [False])
        for number in range(5):
            answers = leader.propose(put(b"k%d" % number, b"v"))
            group.settle()
            self.assertEqual(answers, [False], "without waiting")

    def test_a_batch_does_not_wait_for_tables_of_the_leader(self) -> None:
        """A commit that brings them up to date takes long; what is written with it has been sent by then."""
        group = self.make(3, flush_entries=1)
        leader = group.elect(0)
        group.tick(2)
        leader.disk.is_quick = False
        leader.propose(put(b"applied", b"v"))
        group.settle()
        leader.propose(put(b"while that is written", b"v"))
        leader.disk.go_on()
        group.settle()
        answers = leader.propose(put(b"beside tables", b"v"))
        leader.disk.go_on()
        group.settle()
        self.assertTrue(leader.pairs._frozen.keys, "its disk is not done with them")
        self.assertEqual(answers, [False])

    def test_a_lost_leadership_is_no_refusal(self) -> None:
        """The entry is in the log, and the next leader may commit it: nobody may say that it was not executed."""
        group = self.make(3)
        old = group.elect(0)
        group.cut = {1}
        old.disk.is_quick = False
        old.replica.core.hurry()  # So that 2 gets it at once, whoever is the quickest.
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
