"""Replicas whose disk hangs: what is written neither comes through nor fails."""

from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS, STALLED_TICKS
from madkv.raft.core import Role
from madkv.raft.messages import Append, AppendReply, Heartbeat, HeartbeatReply, Message, PreVote, TimeoutNow
from tests.raft.group import ELECTION, Group, Node, entry, said


class HangingDiskTest(SynchronousTestCase):
    """A group of three led by 1, whose disk hangs from the next entry on."""

    def setUp(self) -> None:
        self.group = Group(3)
        self.leader = self.group.elect(1)
        self.leader.core.propose(b"value")
        self.group.collect()
        self.assertIsNotNone(self.leader.writing)

    def go_on(self, ticks: int, hanging: Iterable[int] = (1,), silent: Iterable[int] = ()) -> None:
        """Time passes, and everything arrives, but for the disks that hang and the members that are gone."""
        for _ in range(ticks):
            self.group.tick()
            for _ in range(10):
                for number in {1, 2, 3} - {*hanging}:
                    self.group[number].write()
                self.group.collect()
                batch, self.group.network = self.group.network, []
                for message in batch:
                    if not {message.sender.replica, message.to.replica} & {*silent}:
                        self.group.deliver(message)

    def leads(self) -> Node:
        return self.group.leader

    def test_another_one_leads_soon(self) -> None:
        """It serves until then: a disk may be slow. What it had sent is committed by the others."""
        self.go_on(STALLED_TICKS - 2)
        self.assertIs(self.leads(), self.leader)
        self.go_on(4)
        self.assertIsNot(self.leads(), self.leader)
        self.assertEqual(self.leads().payloads, [b"value"])
        self.assertIs(self.leader.core.role, Role.FOLLOWER)

    def test_it_steps_down_if_nobody_takes_over(self) -> None:
        self.group.network.clear()
        for _ in range(STALLED_TICKS + ELECTION_TICKS):
            self.assertIs(self.leader.core.role, Role.LEADER)
            for number in (2, 3):
                self.group.deliver(said(HeartbeatReply, number, 1, term=1, round=0))
            self.group.tick(only=[1])
        self.assertIs(self.leader.core.role, Role.FOLLOWER)

    def test_it_does_not_campaign_before_its_disk_moves(self) -> None:
        """The others might let it: to ask takes no disk. To be elected does."""
        self.test_it_steps_down_if_nobody_takes_over()
        self.group.network.clear()
        self.group.tick(3 * ELECTION, only=[1])
        self.group.deliver(said(TimeoutNow, 2, 1, term=1))
        self.assertEqual((self.leader.core.role, self.leader.core.term), (Role.FOLLOWER, 1))
        self.assertEqual(self.group.network, [])
        while self.leader.is_busy:
            self.leader.write()
            self.group.collect()
        self.group.tick(2 * ELECTION, only=[1])
        self.assertIs(self.leader.core.role, Role.PRE_CANDIDATE)

    def test_it_stays_if_the_others_could_elect_nobody(self) -> None:
        """3 is gone, and 2 would need the vote of 1, which cannot be saved: only reads would be lost."""
        self.go_on(4 * STALLED_TICKS, silent=[3])
        self.assertIs(self.leader.core.role, Role.LEADER)
        self.leader.write()
        self.go_on(2, hanging=[], silent=[3])
        self.assertEqual(self.leader.payloads, [b"value"])

    def test_a_disk_that_is_only_slow(self) -> None:
        """It gets one thing done now and then; there is always more to do."""
        for number in range(8):
            self.go_on(STALLED_TICKS - 2)
            self.leader.core.propose(b"%d" % number)
            self.leader.write()
        self.assertIs(self.leads(), self.leader)
        self.assertIs(self.leader.core.role, Role.LEADER)

    def test_whatever_it_does_is_a_sign_of_life(self) -> None:
        """A driver may give it work that the core knows nothing of."""
        for _ in range(8):
            self.go_on(STALLED_TICKS - 2)
            self.leader.core.disk_moved()
        self.assertIs(self.leads(), self.leader)

    def test_answers_that_wait_do_not_pile_up(self) -> None:
        """The same leader asks the same again and again: the latest answer of a kind will do."""
        group = Group(3)
        node = group[1]
        for number in range(50):
            group.deliver(said(Heartbeat, 2, 1, term=7, commit_index=0, round=number))
            fields = {"previous_index": 0, "previous_term": 0, "commit_index": 0}
            group.deliver(said(Append, 2, 1, term=7, entries=(entry(1, 7), entry(2, 7))[: number + 1], **fields))
            fields = {"previous_index": 9, "previous_term": 7, "commit_index": 0}
            group.deliver(said(Append, 2, 1, term=7, entries=(), **fields))
            group.deliver(said(PreVote, 3, 1, term=7, campaign_term=8, last_index=0, last_term=0))
        self.assertIsNotNone(node.writing)
        self.assertLess(len(node.core.held) + len(node.core._under_way), 9)
        sent: list[Message] = []
        group.settle(sent.append)  # type: ignore[arg-type]
        self.assertEqual([message.round for message in sent if isinstance(message, HeartbeatReply)][-1], 49)
        self.assertEqual([message.match_index for message in sent if isinstance(message, AppendReply)], [2])
