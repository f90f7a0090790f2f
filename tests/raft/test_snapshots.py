"""Followers that need what has been compacted away: the paper's section 7, chapter 5 of the dissertation."""

from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS, HEARTBEAT_TICKS
from madkv.raft.configuration import Configuration
from madkv.raft.core import Role
from madkv.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    Message,
    PreVoteReply,
    SnapshotPiece,
    SnapshotReply,
)
from madkv.raft.progress import Flow
from tests.raft.group import ELECTION, PATIENCE, Group, Node, entry, member, members, said, without


def piece(last_index: int, last_term: int, term: int = 5, voters: Iterable[int] = (1, 2, 3)) -> SnapshotPiece:
    """A whole snapshot in one piece, from member 2 to member 1."""
    return SnapshotPiece(
        sender=member(2),
        to=member(1),
        term=term,
        stream=1,
        last_index=last_index,
        last_term=last_term,
        configuration=Configuration(members(*voters)),
        offset=0,
        data=bytes(32),
        done=True,
    )


def append(previous: tuple[int, int], terms: Iterable[int], commit: int = 0, term: int = 5) -> Message:
    entries = tuple(entry(index, each) for index, each in enumerate(terms, previous[0] + 1))
    fields = {"previous_index": previous[0], "previous_term": previous[1], "entries": entries, "commit_index": commit}
    return said(Append, 2, 1, term=term, **fields)


class StreamTest(SynchronousTestCase):
    """A leader whose log begins after what a follower needs."""

    def setUp(self) -> None:
        self.group = Group(3)
        self.leader = self.group.elect(1)
        for number in range(10):
            self.leader.core.propose(b"%d" % number)
        self.group.settle(without(3))
        self.group[3].core.leader = None
        self.leader.compact()
        self.progress = self.leader.core.progress[member(3)]

    def test_a_follower_that_is_far_behind_gets_the_snapshot(self) -> None:
        """7: when the leader has discarded the next entry that a follower needs it sends its snapshot."""
        self.leader.core.propose(b"after")
        self.group.run(4 * HEARTBEAT_TICKS)
        node = self.group[3]
        self.assertEqual((node.disk.snapshot_index, node.core.commit_index), (11, 12))
        self.assertEqual((node.payloads, node.state), ([b"after"], self.leader.state))
        self.assertIs(self.progress.flow, Flow.REPLICATE)

    def test_a_new_server_gets_it_too(self) -> None:
        """7: a new server that joins is the other one who needs it."""
        group = Group(4, absent=[4])
        leader = group.elect(1)
        leader.core.propose(b"value")
        group.settle()
        leader.compact()
        leader.core.propose_configuration(Configuration(members(1, 2, 3), members(4)))
        group.run(4 * HEARTBEAT_TICKS)
        self.assertEqual((group[4].state, group[4].core.commit_index), (leader.state, 3))
        self.assertEqual(group[4].core.configuration, leader.core.configuration)

    def test_a_lost_piece_is_no_end(self) -> None:
        for lost in (SnapshotPiece, SnapshotReply, AppendReply):
            self.setUp()
            self.group.run(PATIENCE + 3, lambda message, lost=lost: not isinstance(message, lost))
            self.group.run(2 * PATIENCE)
            self.assertEqual(self.group[3].state, self.leader.state)
            self.assertIs(self.progress.flow, Flow.REPLICATE)

    def test_no_entries_meanwhile(self) -> None:
        self.group.run(2 * HEARTBEAT_TICKS, lambda message: not isinstance(message, SnapshotReply))
        self.assertIs(self.progress.flow, Flow.SNAPSHOT)
        self.leader.core.propose(b"more")
        self.group.collect()
        self.assertEqual(self.group.sent(Append, to=3), [])

    def test_who_is_gone_gets_none(self) -> None:
        """To somebody who answers nothing no snapshot is streamed; when it is back, it is."""
        self.group.run(2 * HEARTBEAT_TICKS, lambda message: not isinstance(message, SnapshotReply))
        self.assertIs(self.progress.flow, Flow.SNAPSHOT)
        self.group.run(2 * ELECTION, without(3))
        sent = []
        for _ in range(ELECTION):
            self.group.tick()
            sent += self.group.sent(Message, to=3)
            self.group.settle(without(3))
        self.assertEqual({type(message) for message in sent}, {Heartbeat})
        self.group.run(ELECTION)
        self.assertEqual(self.group[3].state, self.leader.state)

    def test_a_snapshot_that_was_given_up_is_begun_again(self) -> None:
        self.group.run(PATIENCE, lambda message: not isinstance(message, SnapshotPiece))
        self.leader.core.snapshot_given_up(member(3))
        self.assertIs(self.progress.flow, Flow.PROBE)
        self.leader.core.snapshot_given_up(member(3))
        self.leader.core.snapshot_given_up(member(9))
        self.leader.core.snapshot_started(member(9), 11)
        self.group.run(2 * PATIENCE)
        self.assertEqual(self.group[3].state, self.leader.state)

    def test_the_peer_may_catch_up_by_itself(self) -> None:
        """What it acknowledged late, or got from a leader in between, ends the flow: from there on entries will do."""
        self.group.run(2 * HEARTBEAT_TICKS, lambda message: not isinstance(message, SnapshotPiece))
        self.assertEqual((self.progress.flow, self.progress.snapshot_index), (Flow.SNAPSHOT, 11))
        self.group[3].disk.log += self.group[2].disk.log[1:]
        self.group.deliver(said(AppendReply, 3, 1, term=1, match_index=10))
        self.assertIs(self.progress.flow, Flow.SNAPSHOT)
        self.group.deliver(said(AppendReply, 3, 1, term=1, match_index=11))
        self.assertIs(self.progress.flow, Flow.REPLICATE)

    def test_an_earlier_snapshot_that_arrived_will_do(self) -> None:
        """The stream of it was given up, and it was installed after all; the log has what follows."""
        self.group.run(2 * HEARTBEAT_TICKS, lambda message: not isinstance(message, SnapshotPiece))
        self.leader.core.snapshot_given_up(member(3))
        for number in range(5):
            self.leader.core.propose(b"%d" % number)
        self.group.settle(without(3))
        self.progress.snapshot()
        self.leader.core.snapshot_started(member(3), 16)
        self.group[3].disk.log += self.group[2].disk.log[:11]
        self.group.deliver(said(AppendReply, 3, 1, term=1, match_index=11))
        self.assertIs(self.progress.flow, Flow.REPLICATE)

    def test_a_crash_while_it_is_staged(self) -> None:
        self.group.run(2 * HEARTBEAT_TICKS, lambda message: not isinstance(message, SnapshotReply))
        self.group.network.clear()
        self.group.restart(3)
        self.group.run(3 * PATIENCE)
        self.assertEqual(self.group[3].state, self.leader.state)

    def test_a_leader_may_be_elected_after_compaction(self) -> None:
        """The term of the snapshot's last entry stands for the entry, which is gone."""
        for number in (1, 2):
            self.group[number].compact()
            self.group.restart(number)
        self.assertEqual(self.group[1].core.log.last_term, 1)
        self.group.elect(1)
        self.group.run(4 * PATIENCE)
        self.assertEqual(self.group[3].state, self.group[1].state)


class InstallTest(SynchronousTestCase):
    """The follower's side (section 7, InstallSnapshot, receiver)."""

    def follower(self, *log: int, term: int = 5) -> tuple[Group, Node]:
        group = Group(3)
        node = group.load(1, log, term)
        return group, node

    def install(self, group: Group, node: Node, snapshot: SnapshotPiece) -> None:
        group.deliver(snapshot)
        while node.is_busy:
            group.write()

    def test_it_takes_the_place_of_the_log(self) -> None:
        """7: a follower that has nothing of what the snapshot covers, or something else, discards its whole log."""
        for log in ((), (1,), (1,) * 9, (1, 1, 2, 2, 2, 2, 2)):
            for forget in (False, True):
                group, node = self.follower()
                if forget:
                    group, node = self.follower(*log)
                else:
                    group.deliver(append((0, 0), log))
                    group.write()
                self.install(group, node, piece(5, 4))
                core = node.core
                self.assertEqual((core.log.first_index, core.log.last_index, core.log.last_term), (6, 5, 4))
                self.assertEqual((core.commit_index, core.applied_index, node.disk.last_index), (5, 5, 5))
                self.assertEqual(group.sent(AppendReply)[-1].match_index, 5)
                self.assertEqual(core.log.stable_index, 5)
                group.deliver(append((5, 4), [5]))
                group.write()
                self.assertEqual(group.sent(AppendReply)[-1].match_index, 6)

    def test_entries_after_it_stay(self) -> None:
        """7: if it has the snapshot's last entry, only what the snapshot covers goes: the rest may be acknowledged."""
        for forget in (False, True):
            group, node = self.follower()
            if forget:
                group, node = self.follower(4, 4, 4, 4, 4, 4, 5)
            else:
                group.deliver(append((0, 0), [4, 4, 4, 4, 4, 4, 5]))
                group.write()
            self.install(group, node, piece(5, 4))
            self.assertEqual((node.core.log.first_index, node.core.log.last_index, node.disk.last_index), (6, 7, 7))
            self.assertEqual([node.core.log.term_of(index) for index in (5, 6, 7, 8)], [4, 4, 5, None])
            group.deliver(append((7, 5), [], commit=7))
            self.assertEqual([each.index for each in node.applied], [6, 7])

    def test_entries_after_it_that_are_not_on_disk_stay_too(self) -> None:
        """They arrived while the disk was busy; answers that wait for them are let go after the next write.

        Otherwise: what follows the snapshot would be taken for written, acknowledged, and lost in a crash.
        """
        group, node = self.follower(4, 4)
        group.deliver(append((2, 4), [4]))  # under way
        group.deliver(append((3, 4), [4, 4, 4, 5]))
        self.install(group, node, piece(5, 4))
        group.settle(lambda message: False)
        self.assertEqual((node.disk.snapshot_index, [each.index for each in node.disk.log]), (5, [6, 7]))
        self.assertEqual((node.core.log.stable_index, node.core.log.last_index), (7, 7))

    def test_entries_that_come_while_the_disk_switches_are_dropped(self) -> None:
        """Whether the disk keeps its log is settled when the switch begins; what comes then is as good as lost."""
        group, node = self.follower(4, 4)
        group.deliver(piece(5, 4))
        while not node.is_switching:
            group.write()
        group.deliver(append((2, 4), [4, 4, 4, 4, 5], commit=7))
        self.assertEqual((node.core.log.last_index, node.applied, node.writing), (2, [], None))
        group.write()
        group.deliver(append((5, 4), [4, 5], commit=7))
        group.settle(lambda message: False)
        self.assertEqual([each.index for each in node.disk.log], [6, 7])
        self.assertEqual([each.index for each in node.applied], [6, 7])

    def test_nothing_is_written_or_applied_while_the_disk_switches(self) -> None:
        group, node = self.follower(4, 4, 4, 4, 4, 4)
        group.deliver(piece(5, 4))
        while not node.is_switching:
            group.write()
        group.deliver(said(Heartbeat, 2, 1, term=6, commit_index=6, round=0))
        self.assertEqual((node.core.commit_index, node.core.applied_index, node.writing), (6, 0, None))
        group.write()
        self.assertEqual([each.index for each in node.applied], [6])
        assert node.writing is not None
        group.settle(lambda message: False)
        self.assertEqual((node.disk.hard_state.term, node.core.commit_index), (6, 6))

    def test_what_it_has_already_is_not_installed(self) -> None:
        """It answers with what it has, so that the leader goes on from there."""
        group, node = self.follower(4, 4, 4, 4, 4, 4)
        group.deliver(append((6, 4), [], commit=6))
        group.settle(lambda message: False)
        group.deliver(piece(5, 4))
        group.collect()
        self.assertEqual((node.staged, node.installing), (b"", None))
        self.assertEqual([reply.match_index for reply in group.sent(AppendReply)], [6])

    def test_what_was_overtaken_is_not_installed(self) -> None:
        """While it was staged another leader came, and the entries themselves."""
        group, node = self.follower(4, 4)
        group.deliver(append((2, 4), [4]))
        group.deliver(piece(5, 4))
        group.deliver(append((3, 4), [4, 4, 4], commit=6))
        self.assertTrue(node.writing)
        group.settle(lambda message: False)
        self.assertEqual((node.disk.snapshot_index, node.core.applied_index, node.disk.last_index), (0, 6, 6))

    def test_a_piece_is_a_sign_of_life(self) -> None:
        group, node = self.follower()
        for _ in range(5):
            group.tick(ELECTION_TICKS - 1, only=[1])
            group.deliver(piece(5, 4))
        self.assertEqual((node.core.role, node.core.leader), (Role.FOLLOWER, member(2)))

    def test_a_piece_of_an_old_term_is_not_taken(self) -> None:
        group, node = self.follower(term=6)
        group.deliver(piece(5, 4, term=5))
        self.assertEqual((node.staged, node.core.leader), (b"", None))
        self.assertEqual([message.term for message in group.network], [6])

    def test_a_request_for_more_in_an_old_term_is_not_sent(self) -> None:
        """The disk staged a piece of a leader that leads no more."""
        group, node = self.follower(term=6)
        node.core.snapshot_staged(piece(5, 5, term=5), 16)
        group.collect()
        self.assertEqual(group.network, [])

    def test_the_configuration_comes_with_it(self) -> None:
        """7: a snapshot holds the latest configuration as of its last entry; those of the discarded log are gone."""
        group, node = self.follower()
        group.deliver(append((0, 0), [4]))
        self.install(group, node, piece(5, 4, voters=(1, 2, 3, 4)))
        self.assertEqual(node.core.configuration, Configuration(members(1, 2, 3, 4)))
        self.assertEqual(group.restart(1).core.configuration, Configuration(members(1, 2, 3, 4)))

    def test_a_candidate_that_it_removes_stops(self) -> None:
        """It campaigned while the disk was switching: by its new configuration it has no vote, nor could it win."""
        group, node = self.follower()
        group.deliver(piece(5, 4, voters=(2, 3, 4)))
        while not node.is_switching:
            group.write()
        group.tick(ELECTION, only=[1])
        self.assertIs(node.core.role, Role.PRE_CANDIDATE)
        group.write()
        self.assertIs(node.core.role, Role.FOLLOWER)
        for number in (2, 3):
            group.deliver(said(PreVoteReply, number, 1, term=5, campaign_term=6, granted=True))
        group.tick(2 * ELECTION, only=[1])
        self.assertEqual((node.core.role, node.core.term), (Role.FOLLOWER, 5))

    def test_it_survives_a_crash(self) -> None:
        group, node = self.follower(1, 1)
        self.install(group, node, piece(5, 4))
        again = group.restart(1)
        self.assertEqual((again.core.commit_index, again.core.log.last_index, again.core.log.last_term), (5, 5, 4))

    def test_a_crash_before_the_switch_leaves_the_old_state(self) -> None:
        group, node = self.follower(1, 1)
        group.deliver(piece(5, 4))
        while not node.is_switching:
            group.write()
        again = group.restart(1)
        self.assertEqual((again.core.commit_index, again.core.log.last_index, again.core.log.last_term), (0, 2, 1))


class CompactionTest(SynchronousTestCase):
    """The log is cut while the core works."""

    def test_a_core_goes_on_over_it(self) -> None:
        group = Group(3)
        leader = group.elect(1)
        for number in range(30):
            leader.core.propose(b"%d" % number)
            group.run(HEARTBEAT_TICKS)
            group[number % 3 + 1].compact()
        self.assertEqual(len(leader.payloads), 30)
        for node in group.nodes.values():
            self.assertEqual(node.state, leader.state)

    def test_a_late_append_from_before_it(self) -> None:
        """What it carries is compacted away here: it is answered from the commit index, without looking."""
        group = Group(3)
        node = group.load(1, [1, 1, 1], term=5)
        group.deliver(append((3, 1), [], commit=3))
        group.settle(lambda message: False)
        node.compact(3)
        for late in (append((0, 0), [1, 1]), append((2, 1), [1]), append((1, 1), [1, 1, 5])):
            group.deliver(late)
            group.settle(lambda message: False)
        self.assertEqual((node.core.log.last_index, node.disk.last_index), (4, 4))
