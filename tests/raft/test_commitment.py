"""What is committed, and who learns of it: the paper's sections 5.3, 5.4.2 and 8."""

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS, HEARTBEAT_TICKS, Bounds
from madkv.raft.messages import Append, AppendReply, EntryKind, Heartbeat, Message
from tests.raft import group as group_module
from tests.raft.group import Group, Node, entry, member, said, without


def acknowledge(group: Group, sender: int, to: int, index: int) -> None:
    """A hand-made acknowledgement; the disk of the sender is made to hold what it says."""
    leader = group[to]
    if group[sender].disk.last_index < index:
        hold(group, sender, to, index)
    group.deliver(said(AppendReply, sender, to, term=leader.core.term, match_index=index))


def hold(group: Group, sender: int, to: int, index: int) -> None:
    """Put a leader's log up to there on a peer's disk."""
    leader = group[to]
    entries = [*leader.disk.log, *leader.core.log.entries(1, leader.core.log.last_index, 10**9)]
    group[sender].disk.log = [next(each for each in entries if each.index == at) for at in range(1, index + 1)]


class CommitTest(SynchronousTestCase):
    """The leader's rule (Figure 2, last of the rules for leaders)."""

    def leader(self, size: int, *log: int) -> tuple[Group, Node]:
        """A leader whose log was this before its own no-op, none of it known to be anywhere else."""
        group = Group(size)
        for number in range(1, size + 1):
            group.load(number, log if number == 1 else [])
        group.elect(1, lambda message: not isinstance(message, Append))
        return group, group[1]

    def test_a_majority_commits(self) -> None:
        """5.3: an entry is committed once a majority holds it, the leader among them or not."""
        for size in range(1, 10):
            group, leader = self.leader(size)
            for number in range(2, size + 1):
                needed = size // 2 + 1
                self.assertEqual(leader.core.commit_index, int(number - 1 >= needed), (size, number))
                acknowledge(group, number, 1, 1)
            self.assertEqual(leader.core.commit_index, 1)

    def test_committing_an_entry_commits_all_before_it(self) -> None:
        """5.3: all entries before it are committed with it, earlier leaders' too; each is applied once, in order."""
        group, leader = self.leader(3, 1, 1, 2)
        acknowledge(group, 2, 1, 4)
        self.assertEqual([each.index for each in leader.applied], [1, 2, 3, 4])

    def test_an_old_terms_entry_is_not_committed_by_counting(self) -> None:
        """5.4.2: a majority that holds an entry of an older term does not commit it by that."""
        group, leader = self.leader(3, 1, 1, 2)
        for number in (2, 3):
            acknowledge(group, number, 1, 3)
        self.assertEqual(leader.core.commit_index, 0)
        acknowledge(group, 2, 1, 4)
        self.assertEqual(leader.core.commit_index, 4)

    def test_figure_8(self) -> None:
        """Figure 8: an entry of term 2 is on a majority and overwritten by term 3: counting it would be wrong."""
        group = Group(5)
        group = Group(5)
        for number, log in ((1, [1, 2]), (2, [1, 2]), (3, [1]), (4, [1]), (5, [1, 3])):
            group.load(number, log, term=3)

        def is_old(message: Message) -> bool:
            return not isinstance(message, Append) or all(each.term < 4 for each in message.entries)

        # (c) S1, whose entry of term 2 S2 has, leads term 4; the entry gets to S3, too, but none of term 4 does.
        group.elect(1, lambda message: without(4, 5)(message) and is_old(message))
        for number in (2, 3):
            acknowledge(group, number, 1, 2)
        self.assertEqual((group[1].core.term, group[1].core.commit_index), (4, 0))
        # (d) It crashes. S5 may win with the votes of S2, S3 and S4, and does away with the entry.
        group.network.clear()
        group.load(3, [1, 2], term=4, voted_for=member(1))
        group.load(5, [1, 3], term=4)
        group.elect(5, without(1))
        for number in (2, 3, 4):
            self.assertEqual(group[number].core.log.term_of(2), 3)

    def test_a_no_op_opens_the_term(self) -> None:
        """8: a leader commits a blank entry at the start of its term, so that it learns what is committed."""
        group = Group(3)
        for number in (1, 2, 3):
            group.load(number, [1, 1])
        leader = group.elect(1)
        self.assertEqual([each.kind for each in leader.applied], [EntryKind.OPERATION] * 2 + [EntryKind.NOOP])

    def test_it_does_not_go_back(self) -> None:
        """Replies that are reordered or repeated must not lower what is committed."""
        group, leader = self.leader(3)
        for _ in range(4):
            leader.core.propose(b"")
        group.collect()
        group.write()
        acknowledge(group, 2, 1, 1)
        group.collect()
        group.write()
        group.network.clear()
        for index in (3, 1, 2, 5, 4):
            acknowledge(group, 2, 1, index)
        self.assertEqual((leader.core.commit_index, leader.core.progress[member(2)].match_index), (5, 5))

    def test_a_majority_without_the_leader(self) -> None:
        """10.2.1 of the dissertation: followers alone may commit it while the leader's own disk is still at it."""
        group, leader = self.leader(3)
        acknowledge(group, 2, 1, 1)
        acknowledge(group, 3, 1, 1)
        group.write()
        leader.core.propose(b"value")
        group.collect()
        self.assertTrue(leader.writing)
        acknowledge(group, 2, 1, 2)
        self.assertEqual(leader.core.commit_index, 1)
        acknowledge(group, 3, 1, 2)
        self.assertEqual(leader.core.commit_index, 2)
        self.assertEqual(leader.payloads, [b"value"])

    def test_an_acknowledgement_of_an_old_term_does_not_count(self) -> None:
        """What the sender held then may have been overwritten since by another leader's entries."""
        group, leader = self.leader(3, 1, 1)
        group.collect()
        for number in (2, 3):
            group.deliver(said(AppendReply, number, 1, term=1, match_index=3))
        self.assertEqual((leader.core.commit_index, leader.core.progress[member(2)].match_index), (0, 0))

    def test_learners_commit_nothing(self) -> None:
        group = Group(5, learners=[4, 5])
        leader = group.elect(1, lambda message: not isinstance(message, Append))
        for number in (4, 5):
            acknowledge(group, number, 1, 1)
        self.assertEqual(leader.core.commit_index, 0)

    def test_a_slow_follower_holds_up_nobody(self) -> None:
        """5.3: a minority of slow servers does not slow down the group."""
        group = Group(5)
        leader = group.elect(1)
        for number in range(20):
            leader.core.propose(b"%d" % number)
            group.settle(without(4, 5))
            self.assertEqual(len(leader.payloads), number + 1)

    def test_what_is_applied_at_once_is_bounded(self) -> None:
        self.patch(group_module, "BOUNDS", Bounds(apply_bytes=200))
        group, leader = self.leader(1)
        for _ in range(10):
            leader.core.propose(bytes(60))
        group.collect()
        persist = leader.writing
        assert persist is not None
        leader.disk.write(persist)
        leader.core.persisted(persist)
        leader.writing = None
        self.assertEqual(leader.core.commit_index, 11)
        self.assertEqual([each.index for each in leader.core.ready().committed], [2, 3])
        self.assertEqual([each.index for each in leader.core.ready().committed], [4, 5])


class FollowersCommitTest(SynchronousTestCase):
    """How followers learn of it (Figure 2, AppendEntries, receiver, rule 5)."""

    def follower(self, *log: int) -> tuple[Group, Node]:
        group = Group(3)
        return group, group.load(1, log)

    def append(self, previous: tuple[int, int], count: int, commit: int, term: int = 3) -> Message:
        entries = tuple(entry(previous[0] + 1 + at, term) for at in range(count))
        index, previous_term = previous
        fields = {"previous_index": index, "previous_term": previous_term, "entries": entries, "commit_index": commit}
        return said(Append, 2, 1, term=term, **fields)

    def test_it_follows_the_leaders_commit_index(self) -> None:
        """5.3: a follower that learns an entry is committed applies it, in the order of the log."""
        for commit in range(4):
            group, node = self.follower()
            group.deliver(self.append((0, 0), 3, commit))
            self.assertEqual([each.index for each in node.applied], list(range(1, commit + 1)))

    def test_not_beyond_what_the_message_confirmed(self) -> None:
        """Figure 2: the lesser of the leader's commit index and the last new entry: what follows may be another's."""
        group, node = self.follower(1, 1, 2, 2, 2)
        group.deliver(self.append((2, 1), 0, 5))
        self.assertEqual(node.core.commit_index, 2)
        group.deliver(self.append((2, 1), 1, 5))
        self.assertEqual((node.core.commit_index, node.core.log.last_index), (3, 3))

    def test_a_refused_append_commits_nothing(self) -> None:
        group, node = self.follower(1, 1)
        group.deliver(self.append((2, 2), 1, 2))
        self.assertEqual(node.core.commit_index, 0)

    def test_it_does_not_go_back(self) -> None:
        group, node = self.follower()
        group.deliver(self.append((0, 0), 3, 3))
        group.deliver(self.append((0, 0), 3, 1))
        group.deliver(said(Heartbeat, 2, 1, term=3, commit_index=1, round=0))
        self.assertEqual(node.core.commit_index, 3)

    def test_an_idle_group_learns_by_heartbeats(self) -> None:
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"last")
        group.settle()
        group.run(HEARTBEAT_TICKS)
        for node in group.nodes.values():
            self.assertEqual(node.payloads, [b"last"])

    def test_a_heartbeat_says_no_more_than_the_peer_holds(self) -> None:
        """A heartbeat compares no logs: what it lets a follower commit must be known to be there.

        Otherwise: 3 has entry 2 of an old leader, the group has committed another one; 3 would apply its own.
        """
        group = Group(3)
        for number, log in ((1, [1, 2]), (2, [1, 2]), (3, [1, 1])):
            group.load(number, log)
        leader = group.elect(1, lambda message: without(3)(message) or not isinstance(message, Append))
        self.assertEqual(leader.core.commit_index, 3)
        group.run(2 * HEARTBEAT_TICKS, lambda message: not isinstance(message, Append))
        self.assertEqual(group[3].core.commit_index, 0)
        group.run(2 * HEARTBEAT_TICKS)
        self.assertEqual(group[3].applied, leader.applied)

    def test_a_minority_commits_nothing(self) -> None:
        """5.4: a leader that is cut off with a minority commits nothing, and what it had is overwritten."""
        group = Group(5)
        old = group.elect(1)
        old.core.propose(b"lost")
        group.settle(without(3, 4, 5))
        self.assertEqual(old.payloads, [])
        group.network.clear()
        new = group.elect(3, without(1, 2))
        new.core.propose(b"kept")
        group.settle(without(1, 2))
        group.run(ELECTION_TICKS)
        for node in group.nodes.values():
            self.assertEqual(node.payloads, [b"kept"])
