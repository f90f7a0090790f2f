"""Whom a batch of entries goes to: as many as make a majority, the quickest, and the others a little later."""

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.leadership import LARGE_BATCH
from madkv.raft.messages import Append, AppendReply, Heartbeat
from tests.raft.group import Group, Node, member, without


def entries_for(group: Group) -> list[int]:
    """Whom the Appends in the network are for, those with entries in them."""
    return sorted(message.to.replica for message in group.sent(Append) if message.entries)


class QuickestTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.group = Group(5)
        self.leader: Node = self.group.elect(1)

    def answer_first(self, *quick: int) -> None:
        """A batch is on its way at a tick, and these answer it before the others do."""
        self.leader.core.propose(b"measured")
        self.group.collect()
        self.group.tick(only=[1])
        self.group.settle(lambda message: not isinstance(message, AppendReply) or message.sender.replica in quick)
        self.group.settle()

    def test_a_batch_goes_to_no_more_than_are_needed(self) -> None:
        """Those that answered first when all had it last; that may be others each time."""
        for quick in ([4, 2], [5, 3], [2, 5]):
            self.answer_first(*quick)
            before = self.leader.core.commit_index
            self.leader.core.propose(b"value")
            self.group.collect()
            self.assertEqual(entries_for(self.group), sorted(quick))
            self.group.settle(without(*{2, 3, 4, 5} - set(quick)))
            self.assertEqual(self.leader.core.commit_index, before + 1)

    def test_the_others_get_it_with_the_next_tick(self) -> None:
        self.answer_first(4, 2)
        for number in range(3):
            self.leader.core.propose(b"%d" % number)
            self.group.settle()
        behind = self.group[3]
        self.assertLess(behind.core.log.last_index, self.leader.core.log.last_index)
        self.group.tick(only=[1])
        (append,) = (message for message in self.group.sent(Append, to=3) if message.entries)
        self.assertEqual(len(append.entries), 3, "in one message")
        self.group.settle()
        self.assertEqual(behind.payloads, self.leader.payloads)

    def test_who_is_gone_is_waited_for_until_the_next_tick(self) -> None:
        """And no longer: whoever answers then is quick."""
        self.answer_first(4, 2)
        before = self.leader.core.commit_index
        gone = without(4, 5)
        self.leader.core.propose(b"first")
        self.group.settle(gone)
        self.assertEqual(self.leader.core.commit_index, before)
        self.group.run(1, gone)
        self.assertEqual(self.leader.core.commit_index, before + 1)
        self.leader.core.propose(b"second")
        self.group.settle(gone)
        self.assertEqual(self.leader.core.commit_index, before + 2, "without waiting")

    def test_who_has_answered_before_all_are_asked_is_quick(self) -> None:
        """That one cannot answer again; another one's answer, however late, shows nothing.

        The batch has gone to 2 alone, and 2 has it; the leader's disk is not done when a tick has it go to 3, too.
        """
        group = Group(3)
        leader = group.elect(1)
        assert leader.core._leading is not None
        leader.core._leading._quick_to_write.members = [member(2)]
        leader.core.propose(b"value")
        group.collect()
        (append,) = group.sent(Append)
        group.network.clear()
        group[2].step(append)
        group.collect()
        group[2].write()
        group.collect()
        (reply,) = group.sent(AppendReply)
        group.deliver(reply)
        group.network.clear()
        group.tick(only=[1])
        self.assertEqual(entries_for(group), [3])
        leader.write()
        self.assertIsNone(leader.core.batch_on_its_way)
        group.settle()
        leader.core.propose(b"next")
        group.collect()
        self.assertEqual(entries_for(group), [2])

    def test_a_batch_that_takes_long_goes_to_all(self) -> None:
        self.answer_first(4, 2)
        before = self.leader.core.commit_index
        self.leader.core.propose(b"value")
        self.group.settle(without(4))
        self.assertEqual(self.leader.core.batch_on_its_way, before + 1)
        self.leader.core.hurry()
        self.group.settle(without(4))
        self.assertEqual(self.leader.core.commit_index, before + 1)
        self.assertIsNone(self.leader.core.batch_on_its_way)

    def test_a_large_batch_goes_to_all_at_once(self) -> None:
        self.answer_first(4, 2)
        for number in range(LARGE_BATCH):
            self.leader.core.propose(b"%d" % number)
        self.group.collect()
        self.assertEqual(entries_for(self.group), [2, 3, 4, 5])

    def test_whoever_takes_over_gets_all_there_is(self) -> None:
        """3.10: the target's log must be as long as the leader's, and no tick is to be waited for."""
        self.answer_first(4, 2)
        self.leader.core.propose(b"value")
        self.group.settle()
        self.assertTrue(self.leader.core.transfer_leadership(member(3)))
        self.group.settle()
        self.assertEqual(self.group[3].core.led_term, 2)

    def test_a_learner_gets_entries_too(self) -> None:
        group = Group(4, learners=[4])
        leader = group.elect(1)
        group.run(4)
        for number in range(3):
            leader.core.propose(b"%d" % number)
            group.settle()
        group.run(1)
        self.assertEqual(group[4].payloads, leader.payloads)

    def test_a_read_asks_who_answers_heartbeats_first(self) -> None:
        """Those are other ones than the batch goes to, if the disk is what keeps them."""
        self.answer_first(4, 2)
        self.group.tick(2, only=[1])
        heartbeats = {message.to.replica: message for message in self.group.sent(Heartbeat)}
        self.group.network.clear()
        for number in (3, 5, 2, 4):
            self.group.deliver(heartbeats[number])
        self.group.settle()
        self.leader.core.propose(b"value")
        self.group.read(1, "read")
        self.group.collect()
        self.assertEqual(entries_for(self.group), [2, 4])
        self.assertEqual(sorted(message.to.replica for message in self.group.sent(Heartbeat)), [3, 5])
