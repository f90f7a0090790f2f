"""Who is a member: chapter 4 of the dissertation, and members that are a replica on one disk."""

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS, HEARTBEAT_TICKS
from madkv.raft.configuration import Configuration, Member, quorum_value
from madkv.raft.core import Role
from madkv.raft.messages import (
    Append,
    AppendReply,
    HardState,
    HeartbeatReply,
    Message,
    PreVote,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.raft.group import ELECTION, Group, Node, member, members, said, without


def voters(*numbers: int) -> Configuration:
    return Configuration(members(*numbers))


class BatchTest(SynchronousTestCase):
    """What is on its way while the members change."""

    def test_a_batch_that_fewer_voters_need_not_confirm_is_committed(self) -> None:
        """1 of two has written a batch, 2 is gone and is made a learner: there is nobody to wait for any more.

        The change itself stands behind that batch. If the batch waited for it, neither would ever be committed.
        """
        group = Group(2)
        leader = group.elect(1)
        leader.core.propose(b"value")
        group.settle(without(2))
        self.assertEqual(leader.payloads, [])
        leader.core.propose(b"next")
        leader.core.propose_configuration(Configuration(members(1), members(2)))
        group.settle(without(2))
        self.assertEqual(leader.payloads, [b"value", b"next"])
        self.assertEqual(leader.core.commit_index, leader.core.log.last_index)


class ConfigurationTest(SynchronousTestCase):
    """Majorities and their encoding."""

    def test_a_majority(self) -> None:
        for size in range(1, 10):
            configuration = voters(*range(1, size + 1))
            for some in range(size + 1):
                self.assertEqual(configuration.is_quorum(members(*range(1, some + 1))), some > size / 2)
                reached = [7] * some + [0] * (size - some)
                self.assertEqual(quorum_value(reached), 7 if some > size / 2 else 0)

    def test_the_value_of_a_majority(self) -> None:
        self.assertEqual(quorum_value([40, 10, 30, 20]), 20)
        self.assertEqual(quorum_value([10, 30, 20]), 20)
        self.assertEqual(quorum_value([]), 0)

    def test_learners_and_strangers_do_not_count(self) -> None:
        configuration = Configuration(members(1, 2, 3), members(4, 5))
        self.assertFalse(configuration.is_quorum(members(1, 4, 5, 6)))
        self.assertFalse(configuration.is_quorum([member(1), member(2, disk=1), member(3, disk=1)]))
        self.assertFalse(Configuration(frozenset()).is_quorum(members(1)))

    def test_one_voter_at_a_time(self) -> None:
        """4.1: majorities of the old and of the new voters share a member if one voter came or went, and only then."""
        old = voters(1, 2, 3)
        for new, differs_by_one in (
            (voters(1, 2, 3), True),
            (voters(1, 2, 3, 4), True),
            (voters(1, 2), True),
            (voters(1, 2, 4), False),
            (voters(1), False),
            (voters(1, 2, 3, 4, 5), False),
            (Configuration(members(1, 2, 3), members(4, 5)), True),
            (Configuration({*members(1, 2), member(3, disk=1)}), False),
        ):
            self.assertEqual(old.differs_by_one_voter(new), differs_by_one)

    def test_encoding(self) -> None:
        for configuration in (voters(), voters(1), Configuration(members(*range(1, 10)), {member(2, disk=7)})):
            data = configuration.encode()
            self.assertEqual(Configuration.decode(data), configuration)
            for damaged in (data[:-1], data + b"x", b"", b"\x09" + data[1:]):
                self.assertRaises(ValueError, Configuration.decode, damaged)

    def test_a_member_twice_is_no_configuration(self) -> None:
        one = Configuration(members(1, 2)).encode()
        twice = one[:1] + b"\x00\x01\x00\x01" + one[5:23] * 2
        self.assertRaises(ValueError, Configuration.decode, twice)
        self.assertRaises(ValueError, Configuration.decode, one[:1] + b"\x00\x02\x00\x00" + one[5:23] * 2)

    def test_there_is_one_way_to_write_it(self) -> None:
        one = Configuration(members(1, 2)).encode()
        self.assertRaises(ValueError, Configuration.decode, one[:5] + one[23:] + one[5:23])


class ChangesTest(SynchronousTestCase):
    """One server at a time (4.1 to 4.3)."""

    def change(self, group: Group, leader: Node, configuration: Configuration) -> None:
        self.assertIsNotNone(leader.core.propose_configuration(configuration))
        group.settle()

    def test_a_learner_is_added_catches_up_and_becomes_a_voter(self) -> None:
        """4.2.1: a new server gets the log before it has a vote, so that it does not hold up the group."""
        group = Group(3, absent=[3])
        leader = group.elect(1)
        leader.core.propose(b"before")
        self.change(group, leader, Configuration(members(1, 2), members(3)))
        group.run(2 * HEARTBEAT_TICKS)
        self.assertEqual(group[3].payloads, [b"before"])
        self.assertFalse(group[3].core.is_voter)
        self.assertEqual(leader.core.progress[member(3)].match_index, leader.core.log.last_index)
        self.change(group, leader, voters(1, 2, 3))
        self.assertTrue(group[3].core.is_voter)
        leader.core.propose(b"without 2")
        group.settle(without(2))
        group.run(1, without(2))  # It may have waited for 2.
        self.assertEqual(leader.payloads, [b"before", b"without 2"])

    def test_a_group_of_one_grows_to_nine_and_shrinks_to_one(self) -> None:
        group = Group(9, absent=range(2, 10))
        leader = group.elect(1)
        for size in [*range(2, 10), *range(8, 0, -1)]:
            self.change(group, leader, voters(*range(1, size + 1)))
            leader.core.propose(b"%d" % size)
            group.run(2 * HEARTBEAT_TICKS)
            self.assertEqual(leader.payloads[-1], b"%d" % size)
            self.assertEqual(group[size].payloads[-1], b"%d" % size)

    def test_it_holds_from_when_it_is_appended(self) -> None:
        """4.1: a server uses the latest configuration in its log, whether it is committed or not."""
        group = Group(4, absent=[4])
        leader = group.elect(1)
        leader.core.propose_configuration(voters(1, 2, 3, 4))
        self.assertEqual(leader.core.configuration, voters(1, 2, 3, 4))
        group.settle(without(3, 4))
        self.assertEqual(leader.core.commit_index, 1)  # two of four
        self.assertEqual(group[2].core.configuration, voters(1, 2, 3, 4))
        group.run(2 * HEARTBEAT_TICKS, without(3))
        self.assertEqual(leader.core.commit_index, 2)

    def test_it_is_undone_when_it_is_truncated(self) -> None:
        """4.1: when the entry goes, the server falls back to the configuration before it."""
        group = Group(4, absent=[4])
        old = group.elect(1)
        old.core.propose_configuration(voters(1, 2, 3, 4))
        group.settle(without(2, 3, 4))
        self.assertTrue(old.core.configuration.is_quorum(members(1, 2, 4)))
        group.network.clear()
        group.elect(2, without(1))
        group.run(ELECTION)
        self.assertEqual(group[1].core.configuration, voters(1, 2, 3))
        self.assertEqual(group.restart(1).core.configuration, voters(1, 2, 3))

    def test_one_change_at_a_time(self) -> None:
        """4.1: the next one not before the last one is committed: two in one step may part the majorities."""
        group = Group(5, absent=[4, 5])
        leader = group.elect(1)
        self.assertIsNotNone(leader.core.propose_configuration(voters(1, 2, 3, 4)))
        self.assertIsNone(leader.core.propose_configuration(voters(1, 2, 3, 4, 5)))
        group.settle()
        self.assertIsNotNone(leader.core.propose_configuration(voters(1, 2, 3, 4, 5)))

    def test_not_by_two_voters_and_never_to_none(self) -> None:
        group = Group(1)
        leader = group.elect(1)
        for configuration in (voters(), voters(2), voters(1, 2, 3), Configuration({member(1, disk=1)})):
            self.assertIsNone(leader.core.propose_configuration(configuration))
        self.assertIsNone(Group(3)[1].core.propose_configuration(voters(1, 2)))

    def test_not_before_an_entry_of_the_term_is_committed(self) -> None:
        """The erratum to 4.1: a new leader may have changes in its log, or not, that an earlier one has committed.

        Otherwise: of four, 1 adds 5 and reaches nobody; 2 removes 4, commits with 3; 1 is elected again by 4 and 5 (to
        it three of five) and commits without 2 and 3.
        """
        group = Group(3)
        leader = group.elect(1, lambda message: not isinstance(message, Append))
        self.assertIsNone(leader.core.propose_configuration(voters(1, 2)))
        group.run(2 * HEARTBEAT_TICKS)
        self.assertIsNotNone(leader.core.propose_configuration(voters(1, 2)))

    def test_a_removed_leader_leads_until_it_is_committed(self) -> None:
        """4.2.2: it goes on, does not count itself, and steps down when the entry that removes it is committed."""
        group = Group(3, draw=Random(1).randrange)
        leader = group.elect(1)
        leader.core.propose_configuration(voters(2, 3))
        group.settle(without(3))
        self.assertEqual((leader.core.role, leader.core.commit_index), (Role.LEADER, 1))
        group.run(2 * HEARTBEAT_TICKS)
        self.assertEqual((leader.core.role, leader.core.commit_index), (Role.FOLLOWER, 2))
        group.run(4 * ELECTION)
        self.assertIn(group.leader.core.member, members(2, 3))
        self.assertEqual(group.leader.core.commit_index, 3)

    def test_a_removed_leader_is_needed_until_it_is_committed(self) -> None:
        """4.2.2: it still campaigns as long as the entry is not known to be committed.

        Otherwise: 1 of two removes itself and crashes before 2 has the entry. 1 is the only one with the longer log,
        and without its vote 2 has no majority: nobody could lead ever again.
        """
        group = Group(2)
        leader = group.elect(1)
        leader.core.propose_configuration(voters(2))
        group.settle(without(2))
        group.restart(1)
        group.network.clear()
        group.run(4 * ELECTION)
        self.assertEqual([node.core.member for node in group.leaders], [member(2)])
        self.assertEqual(group[2].core.configuration, voters(2))

    def test_a_removed_member_disturbs_nobody(self) -> None:
        """4.2.3: it is not told, times out and campaigns; the others, who hear their leader, do not mind."""
        group = Group(4)
        leader = group.elect(1)
        self.change(group, leader, voters(1, 2, 3))
        group.run(5 * ELECTION)
        self.assertEqual((group.leader.core.member, group.leader.core.term), (member(1), 1))
        self.assertNotIn(member(4), leader.core.progress)

    def test_a_vote_does_not_depend_on_the_voters_configuration(self) -> None:
        """4.1: who asks and who is asked may know different configurations.

        Otherwise: the learner 2 is made a voter by 1, which crashes before 2 has the entry. 1 needs the vote of 2 now,
        and 2 does not know that it has one.
        """
        group = Group(2, learners=[2])
        leader = group.elect(1)
        leader.core.propose_configuration(voters(1, 2))
        group.settle(without(2))
        group.restart(1)
        group.network.clear()
        group.run(4 * ELECTION)
        self.assertEqual((group.leader.core.member, group.leader.core.commit_index), (member(1), 3))

    def test_an_append_does_not_depend_on_it_either(self) -> None:
        """4.1: a server follows a leader that is not in its configuration."""
        group = Group(2, absent=[1])
        group.deliver(said(Append, 1, 2, term=1, previous_index=0, previous_term=0, entries=(), commit_index=0))
        self.assertEqual(group[2].core.leader, member(1))

    def test_a_learner_neither_campaigns_nor_counts(self) -> None:
        group = Group(3, learners=[3])
        group.run(5 * ELECTION, without(1, 2))
        self.assertEqual((group[3].core.role, group[3].core.term), (Role.FOLLOWER, 0))
        group.elect(1)
        group.run(ELECTION)
        self.assertEqual(group[3].core.leader, member(1))
        group.run(ELECTION, without(3))
        self.assertIsNone(group[3].core.leader)

    def test_configurations_come_back_from_the_disk(self) -> None:
        group = Group(3, absent=[3])
        leader = group.elect(1)
        self.change(group, leader, Configuration(members(1, 2), members(3)))
        self.change(group, leader, voters(1, 2, 3))
        group.run(HEARTBEAT_TICKS)
        leader.compact()
        for number in (1, 2, 3):
            self.assertEqual(group.restart(number).core.configuration, voters(1, 2, 3))


class DisksTest(SynchronousTestCase):
    """A replica that comes back on a blank disk is another member (its vote and its entries are forgotten)."""

    def amnesiac(self, group: Group, number: int) -> tuple[Member, Node]:
        """The disk of a replica is replaced by a blank one."""
        del group.nodes[member(number)]
        who = member(number, disk=1)
        return who, group.add(who)

    def test_it_does_not_vote(self) -> None:
        """Otherwise: 2 acknowledged what 1 committed, and forgot it; its vote makes 3 a leader that never had it."""
        group = Group(3)
        group.elect(1)
        _, node = self.amnesiac(group, 2)
        for message in (
            said(Vote, 3, 2, term=2, last_index=0, last_term=0),
            said(PreVote, 3, 2, term=1, campaign_term=2, last_index=0, last_term=0),
            said(TimeoutNow, 3, 2, term=1),
            said(Append, 1, 2, term=1, previous_index=0, previous_term=0, entries=(), commit_index=0),
        ):
            self.assertEqual(message.to, member(2))
            node.step(message)
            group.collect()
            self.assertEqual((group.network, node.core.hard_state), ([], HardState()))
        group.run(5 * ELECTION, without(1, 3))
        self.assertEqual((node.core.role, node.core.term), (Role.FOLLOWER, 0))

    def test_it_does_not_count(self) -> None:
        """Not its vote, not its acknowledgements, not its heartbeats, were it to send any."""
        who = member(2, disk=1)
        group = Group(3)
        group[1].core.campaign()
        group[1].step(PreVoteReply(sender=who, to=member(1), term=0, campaign_term=1, granted=True))
        self.assertIs(group[1].core.role, Role.PRE_CANDIDATE)
        group.settle(lambda message: isinstance(message, (PreVote, PreVoteReply)))
        group[1].step(VoteReply(sender=who, to=member(1), term=1, granted=True))
        self.assertIs(group[1].core.role, Role.CANDIDATE)
        group[1].step(said(VoteReply, 3, 1, term=1, granted=True))
        group.settle(lambda message: not isinstance(message, Append))
        group[1].step(AppendReply(sender=who, to=member(1), term=1, match_index=1))
        self.assertEqual(group[1].core.commit_index, 0)
        group.run(2 * HEARTBEAT_TICKS)
        group.read(1, "read")
        group.collect()
        group[1].step(HeartbeatReply(sender=who, to=member(1), term=1, round=9))
        group.collect()
        self.assertEqual(group[1].reads, [])

    def test_a_lost_disk_is_replaced_member_by_member(self) -> None:
        """The old member is removed, the new one learns, and then has a vote; nothing that was committed is lost."""
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"value")
        group.settle()
        who, node = self.amnesiac(group, 2)
        group.run(ELECTION)
        self.assertEqual(node.core.log.last_index, 0)
        for configuration in (
            voters(1, 3),
            Configuration(members(1, 3), {who}),
            Configuration({*members(1, 3), who}),
        ):
            self.assertIsNotNone(leader.core.propose_configuration(configuration))
            group.run(2 * HEARTBEAT_TICKS)
            self.assertEqual(leader.core.commit_index, leader.core.log.last_index)
        self.assertEqual(node.payloads, [b"value"])
        leader.core.transfer_leadership(who)
        group.run(ELECTION_TICKS)
        self.assertEqual(group.leader.core.member, who)

    def test_the_commit_that_amnesia_would_lose(self) -> None:
        """1 and 2 of three committed; 2 loses its disk and 1 is away: 3 must not lead, whatever 2 says."""
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"committed")
        group.settle(without(3))
        group.network.clear()
        self.amnesiac(group, 2)

        def to_the_new_disk(message: Message) -> bool:
            return without(1)(message)

        for _ in range(10 * ELECTION):
            group.tick()
            group.settle(to_the_new_disk)
        self.assertEqual([node.core.member for node in group.leaders if node is not leader], [])
        group.run(2 * ELECTION)
        self.assertEqual(group[3].payloads, [b"committed"])
