"""A replica and its disk: what a commit holds, how far the log is cut, snapshots; real replicas on stores in memory."""

from typing import Any

import attrs

from madkv.operations import OpenSession, Write, WriteKind, encode
from madkv.raft.bounds import Bounds
from madkv.raft.messages import Append, AppendReply, Entry, EntryKind, SnapshotPiece, SnapshotReply
from madkv.storage.batch import Batch
from tests.stepped import ELECTION_TICKS_MAX, Group, Machine, ReplicaTestCase, put


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


class ShortWorkTest(ReplicaTestCase):
    """A follower's commits of its log alone, which its reactor may do by itself."""

    def test_which_work_is_short(self) -> None:
        """A leader takes in the next batch meanwhile; applied data takes long, whoever writes it."""
        group = self.make(3, flush_entries=4)
        leader, follower = group.elect(0), group.machines[1]
        group.tick(2)
        leader.disk.short.clear()
        follower.disk.short.clear()
        for number in range(12):
            leader.propose(put(b"k%d" % number, b"v"))
            group.settle()
        self.assertNotIn(True, leader.disk.short)
        self.assertGreater(len(follower.stored), 4)
        self.assertEqual({True, False}, set(follower.disk.short))
        self.assertGreater(follower.disk.short.count(True), follower.disk.short.count(False))

    def test_the_leader_is_answered_before_anything_is_applied(self) -> None:
        """It waits for that commit, and nobody for what is applied here."""
        group = self.make(3)
        leader, follower = group.elect(0), group.machines[1]
        follower.disk.does_short_work_at_once = True
        leader.propose(put(b"k", b"1"))
        group.settle()
        happened: list[str] = []
        send, apply = follower.replica._send, follower.replica.state_machine.apply

        def noted_send(messages: Any) -> None:
            happened.extend("answered" for message in messages if isinstance(message, AppendReply))
            send(messages)

        def noted_apply(*arguments: Any) -> Any:
            happened.append("applied")
            return apply(*arguments)

        follower.replica._send = noted_send
        follower.replica.state_machine.apply = noted_apply  # type: ignore[method-assign]
        leader.propose(put(b"k", b"2"))  # its Append says that the one before is committed
        group.settle()
        self.assertEqual(happened[:2], ["answered", "applied"])

    def test_nothing_is_applied_or_told_after_it_failed(self) -> None:
        """A replica that cannot go on answers nobody, also within the turn in which that came out."""
        group = self.make(3)
        leader, follower = group.elect(0), group.machines[1]
        follower.disk.does_short_work_at_once = True
        leader.propose(put(b"k", b"1"))
        group.settle()
        group.tick(2)
        applied = follower.replica.state_machine.last_applied
        core, log = leader.replica.core, follower.replica.core.log
        follower.storage.is_full = True
        entry = Entry(log.last_index + 1, core.term, EntryKind.OPERATION, encode(1, put(b"k", b"2")))
        told: list[Any] = []
        follower.replica.receive(
            Append(core.member, follower.member, core.term, log.last_index, log.last_term, (entry,), entry.index)
        )
        follower.replica.read(b"k", told.append)
        group.clock.advance(0)
        self.assertEqual(len(follower.failures), 1)
        self.assertEqual((follower.replica.state_machine.last_applied, told), (applied, []))


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
            group.until(lambda: behind.replica.core._following.switching_to is not None, behind.disk)  # noqa: B023
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
        group.until(lambda: behind.replica.core._following.switching_to is not None, behind.disk)
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
