"""Handing over the leadership: the dissertation's section 3.10."""

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS, HEARTBEAT_TICKS
from madkv.raft.configuration import Configuration
from madkv.raft.core import Role
from madkv.raft.messages import Append, TimeoutNow, Vote
from tests.raft.group import ELECTION, Group, member, members, said, without


class TransferTest(SynchronousTestCase):
    """A group of three led by 1."""

    def setUp(self) -> None:
        self.group = Group(3)
        self.leader = self.group.elect(1)

    def test_the_target_takes_over(self) -> None:
        """3.10: the target is told to campaign at once, and wins: nobody waits for a time-out."""
        self.assertTrue(self.leader.core.transfer_leadership(member(2)))
        self.group.settle()
        self.assertEqual((self.group.leader.core.member, self.group.leader.core.term), (member(2), 2))
        for node in self.group.nodes.values():
            self.assertEqual(node.core.leader, member(2))

    def test_the_target_gets_the_whole_log_first(self) -> None:
        """3.10: the leader brings the target's log up to its own before it tells it to campaign."""
        self.leader.core.propose(b"value")
        self.group.settle(without(2))
        self.leader.core.transfer_leadership(member(2))
        self.group.collect()
        self.assertEqual(self.group.sent(TimeoutNow), [])
        self.group.run(3 * HEARTBEAT_TICKS)
        self.assertEqual(self.group.leader.core.member, member(2))
        self.assertEqual(self.group[2].payloads, [b"value"])

    def test_what_waits_for_the_next_batch_does_not_wait_any_more(self) -> None:
        """1's disk hangs, and 3 is not there to commit the batch with 2: 2 must get all the same what follows it."""
        hung = self.leader
        hung.core.propose(b"the batch")
        self.group.collect()
        hung.core.propose(b"what follows")
        self.assertTrue(hung.core.transfer_leadership(member(2)))
        for _ in range(4):  # entries, answer, TimeoutNow, and what it leads to
            self.group.collect()
            batch, self.group.network = self.group.network, []
            for message in batch:
                if message.to != member(3):
                    self.group.deliver(message)
            self.group[2].write()
        self.assertEqual((self.group[2].core.role, self.group[2].core.term), (Role.CANDIDATE, 2))

    def test_no_proposals_meanwhile(self) -> None:
        """3.10: the leader takes no new requests, or the target would never have all of its log."""
        self.leader.core.transfer_leadership(member(2))
        self.assertIsNone(self.leader.core.propose(b""))
        self.assertIsNone(self.leader.core.propose_configuration(self.leader.core.configuration))

    def test_a_target_that_is_gone(self) -> None:
        """3.10: when it does not come about within an election time-out, the leader serves on."""
        self.leader.core.transfer_leadership(member(2))
        self.group.run(ELECTION_TICKS, without(2))
        self.assertEqual((self.leader.core.role, self.leader.core.term), (Role.LEADER, 1))
        self.assertEqual(self.leader.core.propose(b"value"), 2)
        self.group.settle(without(2))
        self.group.run(1, without(2))  # It may have waited for 2.
        self.assertEqual(self.leader.payloads, [b"value"])

    def test_who_does_not_answer_is_no_target(self) -> None:
        """Proposals would be refused for an election time-out, and for nothing."""
        self.group.run(ELECTION_TICKS + 2, without(2))
        self.assertFalse(self.leader.core.transfer_leadership(member(2)))
        self.assertEqual(self.leader.core.propose(b"value"), 2)
        self.group.settle(without(2))
        self.assertTrue(self.leader.core.hand_over())
        self.group.settle(without(2))
        self.assertEqual(self.group.leader.core.member, member(3))

    def test_it_is_handed_to_whom_has_most(self) -> None:
        self.leader.core.propose(b"value")
        self.group.settle(without(3))
        self.assertTrue(self.leader.core.hand_over())
        self.group.settle()
        self.assertEqual(self.group.leader.core.member, member(2))
        self.assertFalse(self.leader.core.hand_over(), "it leads no more")

    def test_a_lost_message_leaves_the_leader_in_office(self) -> None:
        self.leader.core.transfer_leadership(member(2))
        self.group.run(ELECTION_TICKS, lambda message: not isinstance(message, TimeoutNow))
        self.assertEqual(self.leader.core.propose(b"value"), 2)

    def test_to_whom_it_cannot_be(self) -> None:
        """A learner, a stranger, itself; and only a leader has anything to hand over."""
        group = Group(4, learners=[4])
        leader = group.elect(1)
        for target in (member(1), member(4), member(9), member(2, disk=1)):
            self.assertFalse(leader.core.transfer_leadership(target))
        self.assertFalse(group[2].core.transfer_leadership(member(3)))
        self.assertEqual(leader.core.propose(b""), 2)

    def test_its_votes_are_not_taken_for_a_disturbance(self) -> None:
        """4.2.3 and 3.10: voters that hear the leader ignore candidates, but for one that the leader itself sent."""
        for transfer, granted in ((False, False), (True, True)):
            group = Group(3)
            group.elect(1)
            group.deliver(said(Vote, 2, 3, term=2, last_index=1, last_term=1, transfer=transfer))
            self.assertEqual(group[3].core.hard_state.voted_for == member(2), granted)

    def test_a_request_of_an_old_term_is_ignored(self) -> None:
        """It was delayed: who sent it leads no more."""
        for _ in range(2):
            self.group.deliver(said(TimeoutNow, 1, 2, term=0))
            self.assertIs(self.group[2].core.role, Role.FOLLOWER)

    def test_a_request_that_comes_twice(self) -> None:
        self.leader.core.transfer_leadership(member(2))
        self.group.collect()
        self.group.network *= 2
        self.group.settle()
        self.assertEqual((self.group.leader.core.member, self.group.leader.core.term), (member(2), 2))

    def test_a_target_that_cannot_win(self) -> None:
        """The others lead on as before: an election more, nothing lost."""
        self.leader.core.transfer_leadership(member(2))
        self.group.settle(lambda message: not isinstance(message, Vote))
        self.group.run(2 * ELECTION)
        self.assertEqual(len(self.group.leaders), 1)
        self.assertIsNotNone(self.group.leader.core.propose(b"value"))

    def test_another_target_takes_the_firsts_place(self) -> None:
        self.leader.core.transfer_leadership(member(2))
        self.group.run(1, without(2))
        self.leader.core.transfer_leadership(member(3))
        self.group.settle(without(2))
        self.assertEqual(self.group.leader.core.member, member(3))

    def test_a_learner_does_not_campaign_when_told(self) -> None:
        group = Group(2, learners=[2])
        group.elect(1)
        group.deliver(said(TimeoutNow, 1, 2, term=1))
        self.assertIs(group[2].core.role, Role.FOLLOWER)

    def test_commands_in_flight_are_not_lost(self) -> None:
        """3.10: what was proposed before the transfer is in the target's log when it takes over."""
        for number in range(10):
            self.leader.core.propose(b"%d" % number)
        self.leader.core.transfer_leadership(member(3))
        self.group.settle(lambda message: not isinstance(message, Append) or message.to == member(3))
        self.group.run(3 * HEARTBEAT_TICKS)
        self.assertEqual(self.group.leader.core.member, member(3))
        self.assertEqual(len(self.group[3].payloads), 10)

    def test_a_leader_that_has_removed_itself_hands_over_as_it_goes(self) -> None:
        """4.2.2 and 3.10: the answer that commits its removal may be the one that its successor's order waits for."""
        self.assertIsNotNone(self.leader.core.propose_configuration(Configuration(members(2, 3))))
        self.assertTrue(self.leader.core.transfer_leadership(member(3)))
        self.group.settle()
        self.assertIs(self.leader.core.role, Role.FOLLOWER)
        self.assertEqual((self.group.leader.core.member, self.group.leader.core.term), (member(3), 2))
