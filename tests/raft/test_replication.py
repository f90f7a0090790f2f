"""How the log gets to the followers: the paper's section 5.3, and the flow to each peer."""

from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ELECTION_TICKS, HEARTBEAT_TICKS, Bounds
from madkv.raft.configuration import Configuration
from madkv.raft.messages import Append, AppendRefusal, AppendReply, Entry, Heartbeat, HeartbeatReply, Message
from madkv.raft.progress import Flow
from tests.raft import group as group_module
from tests.raft.group import ELECTION, Group, Node, entry, member, members, said, without


def append(
    term: int, previous: tuple[int, int], terms: Iterable[int] = (), commit: int = 0, sender: int = 2
) -> Message:
    """Entries of these terms after (index, term), from member 2 to member 1."""
    entries = tuple(entry(index, each) for index, each in enumerate(terms, previous[0] + 1))
    fields = {"previous_index": previous[0], "previous_term": previous[1], "entries": entries, "commit_index": commit}
    return said(Append, sender, 1, term=term, **fields)


def terms(node: Node) -> list[int | None]:
    log = node.core.log
    return [log.term_of(index) for index in range(1, log.last_index + 1)]


class FollowerTest(SynchronousTestCase):
    """What a follower does with an Append (Figure 2, AppendEntries, receiver)."""

    def follower(self, *log: int) -> tuple[Group, Node]:
        group = Group(3)
        return group, group.load(1, log)

    def test_what_does_not_fit_is_refused(self) -> None:
        """5.3: without an entry at the previous index with the previous term it refuses the new ones."""
        for previous, fits in (((0, 0), True), ((2, 1), True), ((2, 2), False), ((3, 2), False), ((1, 1), True)):
            group, node = self.follower(1, 1)
            group.deliver(append(3, previous, [3]))
            group.settle(lambda message: False)
            self.assertEqual(node.core.log.term_of(previous[0] + 1) == 3, fits, previous)
            self.assertEqual(len(node.disk.log), previous[0] + 1 if fits else 2)

    def test_a_conflict_removes_the_entry_and_all_after_it(self) -> None:
        """5.3: where an entry conflicts with a new one (same index, other term) it goes, with all that follow it."""
        group, node = self.follower(1, 1, 2, 2, 2)
        group.deliver(append(3, (2, 1), [3]))
        self.assertEqual(terms(node), [1, 1, 3])
        group.write()
        self.assertEqual([each.term for each in node.disk.log], [1, 1, 3])

    def test_without_a_conflict_nothing_is_removed(self) -> None:
        """5.3: an Append may come late; what a later one brought, and what was acknowledged since, must stay."""
        group, node = self.follower()
        group.deliver(append(1, (0, 0), [1, 1, 1]))
        for late in (append(1, (0, 0), [1]), append(1, (0, 0), [1, 1]), append(1, (1, 1)), append(1, (1, 1), [1])):
            group.deliver(late)
            self.assertEqual(terms(node), [1, 1, 1])

    def test_an_append_may_begin_before_what_is_there(self) -> None:
        group, node = self.follower(1, 1, 2)
        group.deliver(append(3, (1, 1), [1, 2, 3]))
        self.assertEqual(terms(node), [1, 1, 2, 3])

    def test_entries_that_no_leader_sends_are_dropped(self) -> None:
        """A gap, a term that goes back, or one that is not reached yet: nothing of it is taken, and nobody falls."""
        gap = (entry(1, 1), entry(3, 1))
        back = (entry(1, 3), entry(2, 2))
        ahead = (entry(1, 3), entry(2, 9))
        for entries in (gap, back, ahead, (entry(2, 1),)):
            group = Group(3)
            fields = {"previous_index": 0, "previous_term": 0, "commit_index": 0}
            group.deliver(said(Append, 2, 1, term=5, entries=entries, **fields))
            self.assertEqual(group[1].core.log.last_index, 0)
            group.settle(lambda message: False)
            self.assertEqual(group.sent(AppendReply), [])

    def test_the_same_append_twice(self) -> None:
        """5.3: it is idempotent; a leader may send again whatever was not answered."""
        group, node = self.follower()
        for _ in range(2):
            group.deliver(append(1, (0, 0), [1, 1], commit=2))
            group.write()
        self.assertEqual((terms(node), node.core.commit_index, len(node.applied)), ([1, 1], 2, 2))
        self.assertEqual([reply.match_index for reply in group.sent(AppendReply)], [2, 2])

    def test_it_acknowledges_what_the_message_confirmed(self) -> None:
        """Not the end of its own log: what lies beyond may be another leader's."""
        group, _ = self.follower(1, 1, 1, 1)
        group.deliver(append(2, (1, 1), [1]))
        group.write()
        self.assertEqual([reply.match_index for reply in group.sent(AppendReply)], [2])

    def test_what_is_committed_needs_no_comparison(self) -> None:
        """A late Append from before the commit index is answered with what is known to agree."""
        group, node = self.follower(1, 1, 1)
        group.deliver(append(2, (3, 1), [], commit=3))
        group.settle(lambda message: False)
        group.deliver(append(2, (0, 0), [1]))
        group.collect()
        self.assertEqual([reply.match_index for reply in group.sent(AppendReply)], [3])
        group.deliver(append(2, (1, 1), [1, 1, 2]))
        self.assertEqual(terms(node), [1, 1, 1, 2])

    def test_a_refusal_skips_whole_terms(self) -> None:
        """5.3, at its end: the follower names a place from which the leader may go on, instead of one index less."""
        group, _ = self.follower(1, 1, 2, 2, 2, 2, 2)
        group.deliver(append(4, (7, 1)))
        group.write()
        (refusal,) = group.sent(AppendRefusal)
        self.assertEqual((refusal.hint_index, refusal.hint_term), (2, 1))

    def test_a_refusal_does_not_wait_for_the_disk(self) -> None:
        """It promises nothing; while a slow disk is busy the leader may go on looking for the place to begin."""
        group, node = self.follower()
        group.deliver(append(1, (0, 0), [1]))
        group.write()
        group.deliver(append(1, (1, 1), [1]))
        self.assertTrue(node.writing)
        group.deliver(append(1, (9, 1)))
        self.assertEqual([refusal.hint_index for refusal in group.sent(AppendRefusal)], [2])

    def test_acknowledgements_that_wait_are_one(self) -> None:
        """A hundred Appends during one write of the disk are answered once, with the highest index."""
        group, node = self.follower()
        group.deliver(append(1, (0, 0), [1]))
        group.write()
        group.network.clear()
        for index in range(1, 100):
            group.deliver(append(1, (index, 1), [1]))
        group.deliver(append(1, (1, 1), [1]))
        self.assertTrue(node.writing)
        group.write()
        group.write()
        self.assertEqual([reply.match_index for reply in group.sent(AppendReply)], [2, 100])


class FigureSevenTest(SynchronousTestCase):
    """Figure 7: whatever a follower's log looks like, a leader makes it equal to its own."""

    LEADER = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    FOLLOWERS = (
        (1, 1, 1, 4, 4, 5, 5, 6, 6),
        (1, 1, 1, 4),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
        (1, 1, 1, 4, 4, 4, 4),
        (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
        (),
        (2, 2),
    )

    def test_a_leader_makes_the_logs_equal(self) -> None:
        """5.3: it finds the last entry at which the logs agree, and everything after that becomes its own."""
        for log in self.FOLLOWERS:
            group = Group(3)
            group.load(1, self.LEADER)
            group.load(2, self.LEADER)
            group.load(3, log, term=7)
            group.load(1, self.LEADER, term=7)
            leader = group.elect(1, without(3))
            group.run(2 * ELECTION_TICKS)
            self.assertEqual(terms(leader), [*self.LEADER, leader.core.term])
            self.assertEqual(terms(group[3]), terms(leader))
            self.assertEqual(group[3].disk.log, leader.disk.log)
            self.assertEqual(group[3].core.commit_index, leader.core.commit_index)

    def test_it_takes_a_message_a_term_and_not_one_an_entry(self) -> None:
        """5.3, at its end: one refusal for each term in conflict."""
        group = Group(3)
        group.load(3, [1, *[2] * 200, *[3] * 200])
        for number in (1, 2):
            group.load(number, [1, *[4] * 300], term=4)
        group.elect(1, without(3))
        refusals = 0

        def count(message: Message) -> bool:
            nonlocal refusals
            refusals += isinstance(message, AppendRefusal)
            return True

        group.run(2 * ELECTION_TICKS, count)
        self.assertEqual(terms(group[3]), terms(group[1]))
        self.assertLessEqual(refusals, 3)


class LeaderTest(SynchronousTestCase):
    """The leader's side, and what it may take for granted about a network that loses, repeats and reorders."""

    def test_a_leader_appends_and_never_overwrites(self) -> None:
        """5.3, Leader Append-Only: entries it has at its election stay, whether they were committed or not."""
        group = Group(3)
        group.load(1, [1, 2, 2])
        leader = group.elect(1)
        self.assertEqual(terms(leader), [1, 2, 2, 3])

    def test_entries_are_sent_before_the_own_disk_has_them(self) -> None:
        """10.2.1 of the dissertation: the leader writes its disk in parallel with the followers."""
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"value")
        group.collect()
        self.assertTrue(leader.writing)
        self.assertTrue(group.sent(Append))

    def test_one_batch_is_on_its_way(self) -> None:
        """What comes meanwhile costs one message and one commit together (10.2.2), the leader's own too."""
        group = Group(3)
        leader = group.elect(1)
        sent = []
        for number in range(5):
            leader.core.propose(b"%d" % number)
            group.collect()
        self.assertEqual(len(leader.writing.entries if leader.writing else ()), 1)

        def note(message: Message) -> bool:
            if isinstance(message, Append) and message.to == member(2):
                sent.append((message.previous_index, len(message.entries)))
            return True

        group.settle(note)
        self.assertEqual(sent, [(1, 1), (2, 4)])
        self.assertEqual(leader.core.commit_index, 6)

    def test_who_is_behind_does_not_wait_for_the_batch(self) -> None:
        """The batch waits for one that answers; one that comes back gets what it lacks meanwhile, and commits it."""
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"committed without 3")
        group.settle(without(3))
        leader.core.propose(b"sent")
        group.collect()
        group.network.clear()
        group.write()
        leader.core.propose(b"waits")
        group.run(2 * HEARTBEAT_TICKS, without(2))
        self.assertEqual(leader.core.commit_index, 4)
        self.assertEqual(group[3].core.log.last_index, 4)

    def test_what_is_in_flight_is_bounded(self) -> None:
        """A slow peer costs the others nothing: at most a number of bytes is on its way to it."""
        self.patch(group_module, "BOUNDS", Bounds(append_bytes=1000, in_flight_bytes=5000))
        group = Group(3)
        leader = group.elect(1)
        for _ in range(100):
            leader.core.propose(bytes(100))
        group.settle(without(3))
        progress = leader.core.progress[member(3)]
        self.assertEqual(leader.core.commit_index, 101)
        self.assertLess(progress.in_flight_bytes, 5000 + 1000 + 228)
        group.run(5 * HEARTBEAT_TICKS)
        self.assertEqual((progress.match_index, progress.in_flight_bytes), (101, 0))

    def test_a_lost_append_is_sent_again(self) -> None:
        """5.3: a leader tries without end, even when nothing new is proposed after what was lost."""
        for lost in (Append, AppendReply):
            group = Group(3)
            leader = group.elect(1)
            leader.core.propose(b"value")
            group.settle(lambda message, lost=lost: not isinstance(message, lost))
            self.assertEqual(leader.payloads, [])
            group.run(3 * HEARTBEAT_TICKS)
            for node in group.nodes.values():
                self.assertEqual(node.payloads, [b"value"], (lost, node.core.member))

    def test_a_lost_probe_is_sent_again(self) -> None:
        group = Group(2)
        group.load(1, [1, 1, 1])
        leader = group.elect(1, lambda message: not isinstance(message, (Append, AppendReply)))
        for lost in (Append, AppendRefusal, AppendReply):
            group.run(2 * HEARTBEAT_TICKS, lambda message, lost=lost: not isinstance(message, lost))
        group.run(2 * HEARTBEAT_TICKS)
        self.assertEqual(terms(group[2]), terms(leader))

    def test_a_gap_is_found_by_the_next_append(self) -> None:
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"lost")
        group.settle(without(3))
        leader.core.propose(b"next")
        group.settle()
        group.run(1)
        self.assertEqual(terms(group[3]), terms(leader))

    def test_a_restarted_follower_catches_up(self) -> None:
        """5.5: followers may crash and come back; the leader goes on where the disk left off."""
        group = Group(3)
        leader = group.elect(1)
        for number in range(10):
            leader.core.propose(b"%d" % number)
        group.collect()
        group.restart(3)
        group.run(ELECTION_TICKS)
        self.assertEqual(group[3].payloads, leader.payloads)
        self.assertEqual(len(leader.payloads), 10)

    def test_replies_that_are_late_or_repeated_change_nothing(self) -> None:
        """Match indexes only grow: an old reply must not make the leader send everything again, or uncommit."""
        group = Group(3)
        leader = group.elect(1)
        for number in range(5):
            leader.core.propose(b"%d" % number)
        group.settle()
        progress = leader.core.progress[member(2)]
        before = (progress.match_index, progress.next_index, progress.flow, leader.core.commit_index)
        self.assertEqual(before, (6, 7, Flow.REPLICATE, 6))
        for index in (0, 3, 6):
            group.deliver(said(AppendReply, 2, 1, term=1, match_index=index))
            group.deliver(said(AppendRefusal, 2, 1, term=1, previous_index=index, hint_index=0, hint_term=0))
        self.assertEqual((progress.match_index, progress.next_index, progress.flow, leader.core.commit_index), before)
        self.assertEqual(group.network, [])

    def test_a_peer_that_is_gone_gets_no_entries(self) -> None:
        """A probe carries up to a megabyte: to somebody who does not answer it is not sent with every heartbeat."""
        group = Group(3)
        leader = group.elect(1, without(3))
        leader.core.propose(bytes(1000))
        group.run(ELECTION, without(3))
        sent = []
        for _ in range(ELECTION):
            group.tick()
            sent += group.sent(Message, to=3)
            group.settle(without(3))
        self.assertEqual({type(message) for message in sent}, {Heartbeat})
        group.run(2 * HEARTBEAT_TICKS)
        self.assertEqual(terms(group[3]), terms(leader))

    def test_heartbeats_are_answered_while_the_disk_is_busy(self) -> None:
        """A stalled disk is no reason to take a leader out of office, nor to let reads wait."""
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"value")
        group.collect()
        for message in group.sent(Append, to=2):
            group.deliver(message)
        group.network.clear()
        self.assertTrue(group[2].writing)
        group.tick(HEARTBEAT_TICKS)
        for message in group.sent(Heartbeat, to=2):
            group.deliver(message)
        self.assertEqual(len(group.sent(HeartbeatReply)), 1)

    def test_logs_that_agree_somewhere_agree_before(self) -> None:
        """5.3, Log Matching: entries with the same index and term are the same, and so is all that precedes them."""
        group = Group(3)
        for number, log in ((1, [1, 1, 2, 2]), (2, [1, 1, 2]), (3, [1, 1, 1, 1])):
            group.load(number, log)
        group.elect(1)
        group.run(ELECTION_TICKS)
        logs = [node.disk.log for node in group.nodes.values()]
        self.assertEqual(logs[0], logs[1])
        self.assertEqual(logs[0], logs[2])

    def test_only_a_leader_takes_proposals(self) -> None:
        group = Group(3)
        self.assertIsNone(group[1].core.propose(b""))
        group.elect(1)
        self.assertIsNone(group[2].core.propose(b""))
        self.assertEqual(group[1].core.propose(b""), 2)

    def test_asking_again_gives_nothing(self) -> None:
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"value")
        group.collect()
        for node in group.nodes.values():
            self.assertFalse(node.core.ready())

    def test_peers_are_served_in_the_same_order_everywhere(self) -> None:
        """The order must not come from hashes, which differ from process to process: a seed would replay otherwise."""
        group = Group(9)
        leader = group.elect(1)
        leader.core.hurry()
        leader.core.propose(b"value")
        group.collect()
        self.assertEqual([message.to.replica for message in group.sent(Append)], list(range(2, 10)))

    def test_one_ready_does_not_serve_all_who_are_behind(self) -> None:
        """Reading for all of them at once would take longer than an election; each has its turn."""
        self.patch(group_module, "BOUNDS", Bounds(append_entries=2, turn_entries=5))
        group = Group(5)
        leader = group.elect(1)
        for _ in range(30):
            leader.core.propose(b"value")
        served: list[int] = []
        while ready := leader.core.ready():
            appends = [message for message in ready.messages if isinstance(message, Append)]
            self.assertLessEqual(sum(len(message.entries) for message in appends), 5 + 1)
            self.assertLessEqual(max((len(message.entries) for message in appends), default=0), 2)
            served += sorted({message.to.replica for message in appends})
            if not leader.core.has_more_to_send:
                break
        self.assertEqual(served, [2, 3, 4, 5] * 5)
        for progress in leader.core.progress.values():
            self.assertEqual(progress.next_index, 32)

    def test_nobody_is_left_to_send_to(self) -> None:
        """The driver would ask for another Ready again and again."""
        self.patch(group_module, "BOUNDS", Bounds(append_entries=1, turn_entries=2))
        group = Group(2, learners=[2])
        leader = group.elect(1)
        for _ in range(30):
            leader.core.propose(b"value")
        leader.core.ready()
        self.assertTrue(leader.core.has_more_to_send)
        leader.core.propose_configuration(Configuration(members(1)))
        self.assertFalse(leader.core.has_more_to_send)

    def test_a_bound_on_bytes_of_one_ready(self) -> None:
        self.patch(group_module, "BOUNDS", Bounds(append_bytes=1000, turn_bytes=1500))
        group = Group(5)
        leader = group.elect(1)
        for _ in range(30):
            leader.core.propose(bytes(100))
        sizes = []
        for _ in range(100):
            messages = leader.core.ready().messages
            appends = [message for message in messages if isinstance(message, Append)]
            sizes.append(sum(entry.size_bytes for message in appends for entry in message.entries))
        self.assertLess(max(sizes), 1500 + 1000 + 228)
        self.assertFalse(leader.core.has_more_to_send)
        for progress in leader.core.progress.values():
            self.assertEqual(progress.next_index, 32)

    def test_a_long_log_goes_in_bounded_pieces(self) -> None:
        """A follower far behind gets everything, whatever the bound of one message."""
        self.patch(group_module, "BOUNDS", Bounds(append_bytes=300))
        group = Group(3)
        leader = group.elect(1, without(3))
        for _ in range(50):
            leader.core.propose(bytes(30))
        group.settle(without(3))
        sizes: list[tuple[Entry, ...]] = []
        group.run(4 * HEARTBEAT_TICKS, lambda m: not isinstance(m, Append) or not sizes.append(m.entries))
        self.assertEqual(terms(group[3]), terms(leader))
        self.assertLessEqual(max(map(len, sizes)), 4)
