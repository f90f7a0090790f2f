"""Reads that need no entry of their own: the dissertation's section 6.4 (and section 8 of the paper)."""

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS, HEARTBEAT_TICKS
from madkv.raft.configuration import Configuration
from madkv.raft.core import ReleasedRead, Role
from madkv.raft.messages import Append, AppendReply, Heartbeat, HeartbeatReply
from tests.raft.group import ELECTION, Group, Node, member, members, said, without


class ReadIndexTest(SynchronousTestCase):
    """A group of three whose leader is asked to read."""

    def setUp(self) -> None:
        self.group = Group(3)
        self.leader = self.group.elect(1)

    def released(self, node: Node) -> list[object]:
        return [read.request for read in node.reads]

    def answer(self, number: int, round: int, term: int = 1) -> None:
        self.group.deliver(said(HeartbeatReply, number, 1, term=term, round=round))

    def test_a_read_is_released_at_the_commit_index(self) -> None:
        """6.4: the read's index is the commit index when it came; it is answered once that is applied."""
        self.leader.core.propose(b"value")
        self.group.settle()
        self.group.read(1, "read")
        self.group.settle()
        self.assertEqual(self.leader.reads, [ReleasedRead("read", 2)])

    def test_a_majority_must_answer_first(self) -> None:
        """6.4: the leader exchanges heartbeats with a majority, so that no newer one can have come before the read."""
        for size in range(1, 10):
            group = Group(size)
            leader = group.elect(1)
            group.read(1, "read")
            group.collect()
            (round,) = {message.round for message in group.sent(Heartbeat)} or {1}
            for number in range(2, size + 1):
                self.assertEqual(bool(leader.reads), number - 1 > size // 2, (size, number))
                group.deliver(said(HeartbeatReply, number, 1, term=1, round=round))
            self.assertEqual(self.released(leader), ["read"])

    def test_a_leader_that_was_replaced_releases_nothing(self) -> None:
        """6.4: a cut-off leader does not know of newer writes; its reads would be stale."""
        self.group.settle()
        self.group.tick(ELECTION_TICKS, only=[2, 3])
        self.group.network.clear()
        new = self.group.elect(2, without(1))
        new.core.propose(b"newer")
        self.group.settle(without(1))
        self.assertEqual(new.payloads, [b"newer"])
        self.group.read(1, "read")
        self.group.run(2 * ELECTION, without(1))
        self.assertEqual((self.leader.reads, self.leader.refused), ([], ["read"]))

    def test_not_before_an_entry_of_the_term_is_committed(self) -> None:
        """6.4: a new leader has all committed entries, but does not know which they are before its own no-op is."""
        group = Group(3)
        for number in (1, 2, 3):
            group.load(number, [1, 1])
        leader = group.elect(1, lambda message: not isinstance(message, AppendReply))
        group.read(1, "read")
        group.run(HEARTBEAT_TICKS, lambda message: not isinstance(message, AppendReply))
        self.assertEqual((leader.reads, leader.refused), ([], []))
        group.run(2 * HEARTBEAT_TICKS)
        self.assertEqual(leader.reads, [ReleasedRead("read", 3)])

    def test_a_read_joins_no_round_that_was_sent(self) -> None:
        """An answer that was given before the read came proves nothing for it: each round has an id of its own."""
        self.group.read(1, "first")
        self.group.collect()
        (first,) = {message.round for message in self.group.sent(Heartbeat)}
        self.group.read(1, "second")
        self.group.collect()
        self.answer(2, first)
        self.assertEqual(self.released(self.leader), ["first"])
        (second,) = {message.round for message in self.group.sent(Heartbeat)} - {first}
        self.answer(2, first)
        self.assertEqual(self.released(self.leader), ["first"])
        self.answer(2, second)
        self.assertEqual(self.released(self.leader), ["first", "second"])

    def test_reads_that_come_during_a_round_share_the_next_one(self) -> None:
        """However many come, one round is on its way; an answer to it proves nothing for those that came later."""
        for request in ("first", "second", "third"):
            self.group.read(1, request)
            self.group.collect()
        (number,) = {message.round for message in self.group.sent(Heartbeat)}
        self.answer(3, number)
        self.answer(2, number)
        self.assertEqual(self.released(self.leader), ["first"])
        self.group.collect()
        self.answer(3, number + 1)
        self.assertEqual(self.released(self.leader), ["first", "second", "third"])

    def test_a_round_whose_messages_were_lost_is_asked_again(self) -> None:
        self.group.read(1, "first")
        self.group.collect()
        self.group.network.clear()
        self.group.run(HEARTBEAT_TICKS)
        self.assertEqual(self.released(self.leader), ["first"])

    def test_reads_that_come_together_share_a_round(self) -> None:
        """6.4: a round may serve any number of reads that have accumulated."""
        for request in range(100):
            self.group.read(1, request)
        self.group.collect()
        self.assertEqual(len({message.round for message in self.group.sent(Heartbeat)}), 1)
        self.group.settle()
        self.assertEqual(self.released(self.leader), list(range(100)))

    def test_no_more_are_asked_than_are_needed(self) -> None:
        """Of five, the two that answered the last heartbeat first; who they are may be another two each time."""
        group = Group(5)
        leader = group.elect(1)
        for quick in ([4, 2], [5, 3], [2, 5]):
            group.tick(HEARTBEAT_TICKS, only=[1])
            round = leader.core._leading.round if leader.core._leading else 0
            group.network.clear()
            for number in [*quick, *{2, 3, 4, 5} - set(quick)]:
                group.deliver(said(HeartbeatReply, number, 1, term=1, round=round))
            group.network.clear()
            group.read(1, f"read {quick}")
            group.collect()
            self.assertEqual([message.to for message in group.sent(Heartbeat)], [member(number) for number in quick])
            group.settle()
            self.assertEqual(self.released(leader)[-1], f"read {quick}")

    def test_reads_wait_for_the_next_heartbeat_when_one_that_is_asked_is_gone(self) -> None:
        """Then all are asked again, and from then on another one for each read."""
        group, leader = self.group, self.leader
        group.tick(HEARTBEAT_TICKS, only=[1])
        group.settle()
        (asked,) = leader.core._leading._quick_to_answer.members if leader.core._leading else ()
        gone = without(asked.replica)
        group.read(1, "first")
        group.settle(gone)
        self.assertEqual(self.released(leader), [])
        group.run(HEARTBEAT_TICKS, gone)
        self.assertEqual(self.released(leader), ["first"])
        group.read(1, "second")
        group.settle(gone)
        self.assertEqual(self.released(leader), ["first", "second"])

    def test_ids_are_not_used_again(self) -> None:
        """Answers of an earlier leadership, or to an earlier round, must not be taken for this one's."""
        self.group.read(1, "old")
        self.group.settle()
        old = self.leader.core._leading.round
        self.group.tick(ELECTION, only=[1])
        self.assertIs(self.leader.core.role, Role.FOLLOWER)
        self.group.network.clear()
        leader = self.group.elect(1)
        self.group.read(1, "new")
        self.group.collect()
        for number in (2, 3):
            self.answer(number, old + 10, term=1)
            self.answer(number, old, term=leader.core.term)
        self.assertEqual(self.released(leader), ["old"])
        self.group.settle()
        self.assertEqual(self.released(leader), ["old", "new"])

    def test_reads_are_refused_when_the_leader_steps_down(self) -> None:
        """Pending reads do not survive a change of term: their rounds prove nothing in another one."""
        self.group.read(1, "under way")
        self.group.collect()
        round = self.leader.core._leading.round
        self.leader.core.read("waiting")
        self.group.deliver(said(HeartbeatReply, 3, 1, term=2, round=0))
        self.assertEqual((self.leader.reads, self.leader.refused), ([], ["waiting", "under way"]))
        self.answer(2, round)
        self.group.network.clear()
        self.group.elect(1)
        self.assertEqual(self.leader.reads, [])

    def test_a_round_that_was_lost_is_sent_again(self) -> None:
        """The next heartbeats carry its id."""
        self.group.read(1, "read")
        self.group.settle(lambda message: not isinstance(message, (Heartbeat, HeartbeatReply)))
        self.assertEqual(self.leader.reads, [])
        self.group.run(HEARTBEAT_TICKS)
        self.assertEqual(self.released(self.leader), ["read"])

    def test_only_a_leader_reads(self) -> None:
        self.group[2].core.read("read")
        self.group.collect()
        self.assertEqual(self.group[2].refused, ["read"])

    def test_learners_prove_nothing(self) -> None:
        group = Group(5, learners=[4, 5])
        leader = group.elect(1)
        group.read(1, "read")
        group.settle(without(2, 3))
        self.assertEqual(leader.reads, [])

    def test_a_read_does_not_wait_for_a_disk(self) -> None:
        """Followers answer for the term, which is on their disks; what they are writing is of no account."""
        self.leader.core.hurry()
        self.leader.core.propose(b"value")
        self.group.collect()
        for message in self.group.sent(Append):
            self.group.deliver(message)
        self.group.network.clear()
        self.group.read(1, "read")
        self.group.collect()
        for message in self.group.sent(Heartbeat):
            self.group.deliver(message)
        for message in self.group.sent(HeartbeatReply):
            self.group.deliver(message)
        self.assertTrue(all(node.writing for node in self.group.nodes.values()))
        self.assertEqual(self.released(self.leader), ["read"])

    def test_the_only_voter_need_not_ask(self) -> None:
        """Nobody else could be elected; learners do not count. Its no-op must be committed all the same."""
        group = Group(3, learners=[2, 3])
        group.load(1, [1, 1])
        core = group[1].core
        self.assertIsNone(core.index_to_read, "it does not lead")
        group.tick(2 * ELECTION_TICKS, only=[1])
        group.collect()
        while core.role is not Role.LEADER:
            group.write()
            group.collect()
        self.assertIsNone(core.index_to_read, "its no-op is not committed")
        group.settle(without(2, 3))
        self.assertEqual((core.commit_index, core.index_to_read), (3, 3))
        self.assertEqual(core.propose_configuration(Configuration(members(1, 2), members(3))), 4)
        self.assertIsNone(core.index_to_read, "from now on the other one may be needed")
        self.assertIsNone(self.leader.core.index_to_read)

    def test_a_round_is_over_when_the_members_are_fewer(self) -> None:
        """Without the one who did not answer there is a majority: nobody else's answer would ever come."""
        group = Group(2)
        leader = group.elect(1)
        group.read(1, "read")
        group.collect()
        group.network.clear()
        self.assertEqual(leader.core.propose_configuration(Configuration(members(1))), 2)
        group.settle(without(2))
        self.assertEqual((self.released(leader), leader.core.role), (["read"], Role.LEADER))
        self.assertEqual(leader.core.progress.get(member(2)), None)
