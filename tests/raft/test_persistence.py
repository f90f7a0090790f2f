"""What is on disk before anybody is told: Figure 2's persistent state, section 5.5, and disks that are slow."""

from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS
from madkv.raft.core import Role
from madkv.raft.messages import (
    Append,
    AppendReply,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
)
from tests.raft.group import Group, entry, member, said, without


def append(
    term: int, previous: tuple[int, int], terms: Iterable[int] = (), sender: int = 2, commit: int = 0
) -> Message:
    entries = tuple(entry(index, each) for index, each in enumerate(terms, previous[0] + 1))
    fields = {"previous_index": previous[0], "previous_term": previous[1], "entries": entries, "commit_index": commit}
    return said(Append, sender, 1, term=term, **fields)


def vote(sender: int, term: int) -> Message:
    return said(Vote, sender, 1, term=term, last_index=9, last_term=9)


class VotesTest(SynchronousTestCase):
    """Term and vote."""

    def test_a_vote_is_on_disk_before_it_is_given(self) -> None:
        """Figure 2: the vote is saved before the answer. Otherwise: it crashes, forgets it, and gives another one."""
        group = Group(3)
        group.deliver(vote(2, 1))
        self.assertEqual(group.network, [])
        group.write()
        self.assertEqual(group[1].disk.hard_state, HardState(1, member(2)))
        self.assertTrue(group.sent(VoteReply)[0].granted)

    def test_a_vote_is_remembered(self) -> None:
        """5.2: one vote a term, over restarts too."""
        group = Group(3)
        group.deliver(vote(2, 1))
        group.write()
        group.restart(1)
        group.network.clear()
        for sender, granted in ((3, False), (2, True)):
            group.deliver(vote(sender, 1))
            group.write()
            self.assertEqual([reply.granted for reply in group.sent(VoteReply)], [granted])
            group.network.clear()

    def test_a_vote_in_a_term_that_is_on_disk_already(self) -> None:
        """The vote alone is worth a write."""
        group = Group(3)
        group.load(1, [], term=4)
        group.deliver(vote(2, 4))
        self.assertEqual(group.network, [])
        group.write()
        self.assertEqual(len(group.sent(VoteReply)), 1)
        self.assertEqual(group[1].disk.hard_state, HardState(4, member(2)))

    def test_a_term_is_remembered(self) -> None:
        """5.1: terms only grow, over restarts too: a leader of an older one must not be followed again."""
        group = Group(3)
        group.deliver(said(Heartbeat, 2, 1, term=5, commit_index=0, round=0))
        group.write()
        self.assertEqual(group.restart(1).core.term, 5)
        group.network.clear()
        group.deliver(append(4, (0, 0), [4], sender=3))
        self.assertEqual((group[1].core.leader, group[1].core.log.last_index), (None, 0))

    def test_nothing_is_said_in_a_term_that_is_not_on_disk(self) -> None:
        """Whatever a message says in term 5: after a crash the same member could say otherwise in the same term."""
        for message in (
            said(Heartbeat, 2, 1, term=5, commit_index=0, round=3),
            append(5, (0, 0), [5]),
            append(5, (7, 5)),
            said(PreVoteReply, 2, 1, term=5, campaign_term=5, granted=False),
        ):
            group = Group(3)
            group.deliver(message)
            group.deliver(said(PreVote, 3, 1, term=5, campaign_term=6, last_index=0, last_term=0))
            group.deliver(said(Heartbeat, 3, 1, term=1, commit_index=0, round=1))
            group[1].core.campaign()
            group.collect()
            self.assertEqual(group.network, [])
            group.write()
            self.assertTrue(group.network)

    def test_a_candidates_own_vote_counts_when_it_is_on_disk(self) -> None:
        """Also in a group of one. Otherwise: it leads, crashes, and leads the same term again with another log."""
        for size in (1, 2, 3):
            group = Group(size)
            group[1].core.campaign()
            group.collect()
            for message in group.sent(PreVote):
                group[1].step(said(PreVoteReply, message.to.replica, 1, term=0, campaign_term=1, granted=True))
            group.collect()
            self.assertEqual((group[1].core.role, group.sent(Vote)), (Role.CANDIDATE, []))
            self.assertEqual(group.restart(1).core.hard_state, HardState())

    def test_a_vote_waits_for_its_own_write_and_not_for_an_earlier_one(self) -> None:
        """The write under way when it is given does not hold it: it leaves with the next."""
        group = Group(3)
        group.deliver(append(1, (0, 0), [1]))
        group.deliver(said(Vote, 3, 1, term=2, last_index=9, last_term=9, transfer=True))
        group.write()
        self.assertEqual(group.sent(VoteReply), [])
        self.assertEqual(group[1].disk.hard_state, HardState(1))
        group.write()
        self.assertEqual(len(group.sent(VoteReply)), 1)
        self.assertEqual(group[1].disk.hard_state, HardState(2, member(3)))


class EntriesTest(SynchronousTestCase):
    """Entries."""

    def test_a_follower_acknowledges_what_is_on_disk(self) -> None:
        """Figure 2 and 5.3: an acknowledged entry survives the crash of the one who acknowledged it."""
        group = Group(3)
        group.deliver(append(1, (0, 0), [1, 1]))
        self.assertEqual(group.network, [])
        group.write()
        self.assertEqual([reply.match_index for reply in group.sent(AppendReply)], [2])
        self.assertEqual(group.restart(1).core.log.last_index, 2)

    def test_a_repeated_append_is_not_acknowledged_early(self) -> None:
        """The second copy finds the entries in the log, but they are not on the disk yet."""
        group = Group(3)
        for _ in range(2):
            group.deliver(append(1, (0, 0), [1, 1]))
        self.assertEqual(group.sent(AppendReply), [])
        group.write()
        self.assertEqual({reply.match_index for reply in group.sent(AppendReply)}, {2})

    def test_an_acknowledgement_covers_what_was_committed_before_it_was_written(self) -> None:
        """What is committed is answered from the commit index: on this disk it may not be, yet."""
        group = Group(3)
        group.deliver(append(1, (0, 0), [1, 1], commit=2))
        group.deliver(append(1, (0, 0), [1]))
        self.assertEqual((group[1].core.commit_index, group.sent(AppendReply)), (2, []))

    def test_a_leader_counts_itself_after_its_own_write(self) -> None:
        """10.2.1 of the dissertation, and true of a group of one too."""
        for size in (1, 2, 3):
            group = Group(size)
            leader = group.elect(1, without(3))
            leader.core.propose(b"value")
            group.collect()
            for message in group.sent(Append, to=2):
                group.deliver(message)
            group[2].write() if size > 1 else None
            group.collect()
            for message in group.sent(AppendReply):
                group.deliver(message)
            self.assertEqual(leader.payloads, [], size)
            group.write()
            self.assertEqual(leader.payloads, [b"value"], size)

    def test_one_write_at_a_time(self) -> None:
        """What comes while the disk is busy leaves together with the next write: group commit."""
        group = Group(1)
        leader = group.elect(1)
        sizes = []
        for _ in range(3):
            leader.core.propose(b"")
            group.collect()
            assert leader.writing is not None
            sizes.append(len(leader.writing.entries))
        group.write()
        assert leader.writing is not None
        sizes.append(len(leader.writing.entries))
        self.assertEqual(sizes, [1, 1, 1, 2])

    def test_a_completion_names_index_and_term(self) -> None:
        """Term 1's entries 2 and 3 are being written when term 2's replace them: the completion is not about these."""
        group = Group(3)
        group.deliver(append(1, (0, 0), [1]))
        group.write()
        group.deliver(append(1, (1, 1), [1, 1]))
        group.deliver(append(2, (1, 1), [2, 2], sender=3))
        group.network.clear()
        node = group[1]
        node.write()
        self.assertEqual(node.core.log.stable_index, 1)
        group.collect()
        self.assertEqual([reply for reply in group.sent(AppendReply) if reply.term == 2], [])
        self.assertEqual([each.term for each in node.disk.log], [1, 1, 1])
        group.write()
        self.assertEqual([each.term for each in node.disk.log], [1, 2, 2])
        self.assertEqual(node.core.log.stable_index, 3)
        self.assertEqual([reply.match_index for reply in group.sent(AppendReply) if reply.term == 2], [3])

    def test_a_completion_after_the_log_went_there_and_back(self) -> None:
        """Term 1's entries are under way, term 2 replaces them, term 3 brings back term 1's: they are written again.

        The disk carries out writes in order: if the second one was given out, the first one's completion would count
        for entries which the second removes.
        """
        group = Group(3)
        group.deliver(append(1, (0, 0), [1, 1, 1]))
        group.deliver(append(2, (0, 0), [2], sender=3))
        group.deliver(append(3, (0, 0), [1, 1, 1]))
        node = group[1]
        node.write()
        self.assertEqual(node.core.log.stable_index, 0)
        group.settle(lambda message: False)
        self.assertEqual((node.core.log.stable_index, [each.term for each in node.disk.log]), (3, [1, 1, 1]))

    def test_what_was_not_written_is_forgotten(self) -> None:
        """5.5: a crash loses what was not on disk; nobody was told of it."""
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"lost")
        group.collect()
        group.network.clear()
        self.assertEqual(group.restart(1).core.log.last_index, 1)
        group.elect(2)
        group.run(ELECTION_TICKS)
        for node in group.nodes.values():
            self.assertEqual(node.payloads, [])

    def test_a_write_holds_all_of_a_ready(self) -> None:
        """Hard state and entries of the same step are one write: an entry of a term that is not saved cannot be."""
        group = Group(3)
        group.deliver(append(4, (0, 0), [4]))
        persist = group[1].writing
        assert persist is not None
        self.assertEqual((persist.hard_state, len(persist.entries)), (HardState(4), 1))

    def test_a_group_that_loses_power_keeps_what_was_committed(self) -> None:
        """5.5: all at once, in the middle of a write."""
        for size in (1, 3, 5):
            group = Group(size)
            leader = group.elect(1)
            leader.core.propose(b"kept")
            group.settle()
            leader.core.propose(b"unknown")
            group.collect()
            for number in range(1, size + 1):
                group.restart(number)
            group.network.clear()
            group.elect(1)
            group.run(ELECTION_TICKS)
            for node in group.nodes.values():
                self.assertEqual(node.payloads[0], b"kept")

    def test_what_promises_nothing_does_not_wait(self) -> None:
        """Answers to heartbeats and to PreVotes of a saved term leave at once, however long the disk takes."""
        group = Group(3)
        group.deliver(append(1, (0, 0), [1]))
        group.write()
        group.deliver(append(1, (1, 1), [1]))
        group.network.clear()
        group.deliver(said(Heartbeat, 2, 1, term=1, commit_index=0, round=3))
        group.deliver(said(PreVote, 3, 1, term=1, campaign_term=2, last_index=9, last_term=9))
        self.assertTrue(group[1].writing)
        self.assertEqual((len(group.sent(HeartbeatReply)), len(group.sent(PreVoteReply))), (1, 1))
