"""Who leads, and how it comes about: the paper's sections 5.1, 5.2 and 5.4.1, and 6.2 and 9.6 of the dissertation."""

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.bounds import ASK_AGAIN_TICKS, ELECTION_TICKS, FIRST_TICKS, HEARTBEAT_TICKS
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
from tests.raft.group import ELECTION, Group, Node, entry, member, said, without

SIZES = range(1, 10)


def vote(sender: int, to: int, term: int, last_index: int = 0, last_term: int = 0, transfer: bool = False) -> Message:
    return said(Vote, sender, to, term=term, last_index=last_index, last_term=last_term, transfer=transfer)


def heartbeat(sender: int, to: int, term: int) -> Message:
    return said(Heartbeat, sender, to, term=term, commit_index=0, round=0)


def pre_vote(sender: int, to: int, term: int, last_index: int = 0, last_term: int = 0) -> Message:
    return said(PreVote, sender, to, term=term, campaign_term=term + 1, last_index=last_index, last_term=last_term)


class TermsTest(SynchronousTestCase):
    """Section 5.1: terms as a clock."""

    def test_everybody_starts_as_a_follower_in_term_0(self) -> None:
        """5.2: a server that comes up is a follower, and stays one while it hears from a leader or candidate."""
        for size in SIZES:
            for node in Group(size).nodes.values():
                self.assertEqual((node.core.role, node.core.term, node.core.leader), (Role.FOLLOWER, 0, None))

    def in_role(self, role: Role) -> tuple[Group, Node]:
        group = Group(3)
        node = group[1]
        if role is Role.LEADER:
            group.elect(1)
        elif role is Role.CANDIDATE:
            node.core.campaign()
            group.settle(lambda message: isinstance(message, (PreVote, PreVoteReply)))
        elif role is Role.PRE_CANDIDATE:
            node.core.campaign()
        self.assertIs(node.core.role, role)
        return group, node

    def test_a_newer_term_makes_everybody_a_follower(self) -> None:
        """5.1: who sees a term larger than its own takes it over; a candidate or leader becomes a follower."""
        for role in Role:
            for message in (
                said(AppendReply, 2, 1, term=7, match_index=0),
                said(HeartbeatReply, 2, 1, term=7, round=0),
                said(VoteReply, 2, 1, term=7, granted=False),
                said(PreVoteReply, 2, 1, term=7, campaign_term=7, granted=False),
            ):
                _, node = self.in_role(role)
                node.step(message)
                self.assertEqual((node.core.role, node.core.term), (Role.FOLLOWER, 7))
                self.assertIsNone(node.core.hard_state.voted_for)
                self.assertIsNone(node.core.leader)

    def test_a_term_from_nowhere_is_not_taken_over(self) -> None:
        """Who took over the last number there is could never campaign again, nor could anybody else."""
        group = Group(3)
        group.elect(1)
        for kind in (Heartbeat, Vote, HeartbeatReply):
            fields = {
                Heartbeat: {"commit_index": 0, "round": 0},
                Vote: {"last_index": 9, "last_term": 9, "transfer": True},
                HeartbeatReply: {"round": 0},
            }[kind]
            for number in (1, 2):
                group.deliver(said(kind, 3, number, term=2**64 - 1, **fields))
                self.assertEqual(group[number].core.term, 1, kind)

    def test_a_leader_of_a_newer_term_is_followed(self) -> None:
        for role in Role:
            _, node = self.in_role(role)
            node.step(heartbeat(3, 1, 7))
            self.assertEqual((node.core.role, node.core.term, node.core.leader), (Role.FOLLOWER, 7, member(3)))

    def test_a_request_of_an_old_term_is_refused(self) -> None:
        """5.1: what carries an old term is refused; the answer carries the new one, so that its sender learns of it."""
        group = Group(3)
        group.load(1, [], term=5)
        old: list[Message] = [
            said(Append, 2, 1, term=4, previous_index=0, previous_term=0, entries=(entry(1, 4),), commit_index=1),
            heartbeat(2, 1, 4),
            vote(2, 1, 4, 9, 4),
            pre_vote(2, 1, 3, 9, 3),
        ]
        for message in old:
            group.deliver(message)
            (answer,) = group.network
            group.network.clear()
            self.assertEqual((answer.to, answer.term), (member(2), 5))
            self.assertFalse(getattr(answer, "granted", False))
        self.assertEqual(group[1].core.hard_state, HardState(5))
        self.assertEqual((group[1].core.leader, group[1].core.log.last_index), (None, 0))

    def test_an_answer_of_an_old_term_changes_nothing(self) -> None:
        """A vote for term 1 must not count in term 2: the voter may have given its vote of term 2 to another."""
        group = Group(3)
        for _ in range(2):
            group[1].core.campaign()
            group.settle(lambda message: isinstance(message, (PreVote, PreVoteReply)))
        self.assertEqual((group[1].core.role, group[1].core.term), (Role.CANDIDATE, 2))
        group[1].step(said(VoteReply, 2, 1, term=1, granted=True))
        self.assertIs(group[1].core.role, Role.CANDIDATE)
        group[1].step(said(VoteReply, 2, 1, term=2, granted=True))
        self.assertIs(group[1].core.role, Role.LEADER)


class ElectionsTest(SynchronousTestCase):
    """Section 5.2."""

    def test_a_follower_campaigns_when_its_time_out_passes(self) -> None:
        """5.2: who hears nothing over an election time-out begins an election."""
        group = Group(3)
        group.deliver(heartbeat(2, 1, 1))
        group.tick(ELECTION_TICKS - 1, only=[1])
        self.assertIs(group[1].core.role, Role.FOLLOWER)
        group.tick(1, only=[1])
        self.assertIs(group[1].core.role, Role.PRE_CANDIDATE)

    def test_time_outs_are_spread(self) -> None:
        """5.2: time-outs are drawn at random from an interval."""
        waits = set()
        for seed in range(100):
            group = Group(3, draw=Random(seed).randrange)
            group.deliver(heartbeat(2, 1, 1))
            group.write()
            waits.add(self._ticks_until_it_asks(group))
        self.assertEqual(waits, set(range(ELECTION_TICKS, 2 * ELECTION_TICKS)))

    def test_who_has_just_started_asks_soon(self) -> None:
        """All of a group may have been down: nobody is to wait for a leader that was lost long ago."""
        waits = {self._ticks_until_it_asks(Group(3, draw=Random(seed).randrange)) for seed in range(100)}
        self.assertEqual(waits, set(range(FIRST_TICKS, FIRST_TICKS + ASK_AGAIN_TICKS)))

    def test_who_has_just_started_disturbs_nobody(self) -> None:
        group = Group(3)
        group.elect(1)
        term = group[1].core.term
        group.restart(3)
        group.tick(FIRST_TICKS + ASK_AGAIN_TICKS, only=[3])
        group.settle()
        self.assertEqual((group[1].core.role, group[1].core.term), (Role.LEADER, term))
        self.assertEqual([group[id].core.leader for id in (1, 2)], [member(1)] * 2)

    def test_who_got_no_answer_asks_again_soon(self) -> None:
        """All of a group were down, and one is up before the others: once they are there, it is not to wait for long.

        No vote is spent on a PreVote; after one round of it, time-outs are half as long, and spread too.
        """
        group = Group(3, draw=Random(1).randrange)
        self._ticks_until_it_asks(group)
        waits = {self._ticks_until_it_asks(group) for _ in range(100)}
        self.assertEqual(waits, set(range(ASK_AGAIN_TICKS, 2 * ASK_AGAIN_TICKS)))
        self.assertEqual(group[1].core.term, 0)

    def test_whoever_has_asked_waits_as_long_as_others_for_a_leader_that_came(self) -> None:
        waits = set()
        for seed in range(100):
            group = Group(3, draw=Random(seed).randrange)
            self._ticks_until_it_asks(group)
            group.deliver(heartbeat(2, 1, 1))
            group.write()
            self.assertIs(group[1].core.role, Role.FOLLOWER)
            waits.add(self._ticks_until_it_asks(group))
        self.assertEqual(waits, set(range(ELECTION_TICKS, 2 * ELECTION_TICKS)))

    def test_a_candidate_waits_as_long_as_that_for_votes(self) -> None:
        """Each of its elections costs everybody a term and a commit."""
        waits = set()
        for seed in range(100):
            group = Group(3, draw=Random(seed).randrange)
            self._ticks_until_it_asks(group)
            group.deliver(said(PreVoteReply, 2, 1, term=0, campaign_term=1, granted=True))
            group.write()
            self.assertIs(group[1].core.role, Role.CANDIDATE)
            waits.add(self._ticks_until_it_asks(group))
        self.assertEqual(waits, set(range(ELECTION_TICKS, 2 * ELECTION_TICKS)))

    def test_after_a_split_vote_it_asks_again_soon(self) -> None:
        """2 of three stands as well, and 3 is down: nobody can win, and each knows that somebody else stands."""
        waits = set()
        for seed in range(100):
            group = Group(3, draw=Random(seed).randrange)
            self._ticks_until_it_asks(group)
            group.deliver(said(PreVoteReply, 2, 1, term=0, campaign_term=1, granted=True))
            group.write()
            group.deliver(said(VoteReply, 2, 1, term=1, granted=False))
            self.assertIs(group[1].core.role, Role.CANDIDATE)
            waits.add(self._ticks_until_it_asks(group))
        self.assertEqual(waits, set(range(ASK_AGAIN_TICKS, 2 * ASK_AGAIN_TICKS)))

    def _ticks_until_it_asks(self, group: Group) -> int:
        for ticks in range(1, 3 * ELECTION_TICKS):
            group[1].tick()
            if group[1].drain():
                self.assertIs(group[1].core.role, Role.PRE_CANDIDATE)
                return ticks
        raise AssertionError("it does not ask")

    def test_a_heartbeat_starts_the_time_out_again(self) -> None:
        """5.2: followers stay followers as long as they hear from a valid leader."""
        group = Group(3)
        for _ in range(5):
            group.deliver(heartbeat(2, 1, 1))
            group.tick(ELECTION_TICKS - 1, only=[1])
        self.assertEqual((group[1].core.role, group[1].core.leader), (Role.FOLLOWER, member(2)))

    def test_a_granted_vote_starts_the_time_out_again(self) -> None:
        """Figure 2, followers: the time-out passes without an Append from the leader and without a vote granted."""
        group = Group(3)
        group.tick(FIRST_TICKS - 1, only=[1])
        group.deliver(vote(2, 1, 1))
        group.tick(ELECTION_TICKS - 1, only=[1])
        self.assertIs(group[1].core.role, Role.FOLLOWER)

    def test_a_refused_vote_does_not_start_it_again(self) -> None:
        """A candidate that cannot win must not keep those that could from campaigning."""
        group = Group(3)
        group.load(1, [1], term=1)
        group.tick(FIRST_TICKS - 1, only=[1])
        group.deliver(vote(2, 1, 2))
        self.assertEqual((group[1].core.term, group[1].core.hard_state.voted_for), (2, None))
        group.tick(ELECTION_TICKS - FIRST_TICKS, only=[1])
        self.assertIs(group[1].core.role, Role.FOLLOWER)
        group.tick(1, only=[1])
        self.assertIs(group[1].core.role, Role.PRE_CANDIDATE)

    def test_a_candidate_raises_its_term_votes_for_itself_and_asks_all(self) -> None:
        """5.2: to begin an election it increments its term, votes for itself and asks all others at once."""
        group = Group(5)
        group[1].core.campaign()
        group.settle(lambda message: isinstance(message, (PreVote, PreVoteReply)))
        self.assertEqual(group[1].core.hard_state, HardState(1, member(1)))
        group[1].tick()
        asked: list[int] = []
        group[1].core.campaign()
        group.settle(lambda m: not isinstance(m, Vote) or bool(asked.append(m.to.replica)))
        self.assertEqual(asked, [2, 3, 4, 5])

    def test_a_majority_wins(self) -> None:
        """5.2: it wins with the votes of a majority of the whole group in the same term; half of them is none."""
        for size in SIZES:
            for others in range(size):
                group = Group(size)
                group[1].core.campaign()
                group.settle(lambda message: isinstance(message, (PreVote, PreVoteReply)))
                for number in range(2, 2 + others):
                    group[1].step(said(VoteReply, number, 1, term=1, granted=True))
                wins = 2 * (others + 1) > size
                self.assertEqual(group[1].core.role is Role.LEADER, wins, (size, others))

    def test_a_vote_counts_once(self) -> None:
        """Messages may be repeated; a voter that is counted twice would make a majority out of two of five."""
        group = Group(5)
        group[1].core.campaign()
        group.settle(lambda message: isinstance(message, (PreVote, PreVoteReply)))
        for _ in range(5):
            group[1].step(said(VoteReply, 2, 1, term=1, granted=True))
        self.assertIs(group[1].core.role, Role.CANDIDATE)

    def test_one_vote_a_term_first_come_first_served(self) -> None:
        """5.2: each server votes for at most one candidate in a term; to that one it answers the same again."""
        group = Group(3)
        for sender, granted in ((2, True), (3, False), (2, True)):
            group.deliver(vote(sender, 1, 1))
            group.write()
            (reply,) = group.network
            group.network.clear()
            self.assertEqual((reply.to, reply.term, reply.granted), (member(sender), 1, granted))
        group.deliver(vote(3, 1, 2))
        group.write()
        self.assertTrue(group.network[0].granted)

    def test_no_vote_in_a_term_whose_leader_is_known(self) -> None:
        group = Group(3)
        group.deliver(heartbeat(2, 1, 1))
        group.settle(lambda message: False)
        group.deliver(vote(3, 1, 1, 9, 1))
        self.assertIsNone(group[1].core.hard_state.voted_for)

    def test_a_candidate_gives_way_to_the_leader_of_its_term(self) -> None:
        """5.2: a candidate follows a leader whose term is at least its own, and goes on if the term is older."""
        for term, follows in ((0, False), (1, True), (2, True)):
            group = Group(3)
            group[1].core.campaign()
            group.settle(lambda message: isinstance(message, (PreVote, PreVoteReply)))
            group[1].step(heartbeat(2, 1, term))
            self.assertEqual(group[1].core.role, Role.FOLLOWER if follows else Role.CANDIDATE)

    def test_a_split_vote_ends_in_another_election(self) -> None:
        """5.2: when no candidate gets a majority each times out and begins again in a newer term."""
        group = Group(4)
        for number in (1, 2):
            group[number].core.campaign()
        group.settle(
            lambda message: (
                not isinstance(message, Vote)
                or {message.sender, message.to} not in [{member(1), member(4)}, {member(2), member(3)}]
            )
        )
        self.assertEqual(group.leaders, [])
        self.assertEqual([group[number].core.term for number in (1, 2)], [1, 1])
        group.tick(ELECTION, only=[2])
        group.settle()
        self.assertEqual((group.leader.core.member, group.leader.core.term), (member(2), 2))

    def test_a_new_leader_tells_everybody(self) -> None:
        """5.2: once elected it sends heartbeats to all others, to establish itself and to prevent new elections."""
        group = Group(5)
        group.elect(1)
        for number in range(2, 6):
            self.assertEqual((group[number].core.leader, group[number].core.term), (member(1), 1))

    def test_an_idle_leader_sends_heartbeats(self) -> None:
        """5.2: heartbeats go out in idle times, often enough that nobody times out."""
        group = Group(3)
        group.elect(1)
        group.tick(HEARTBEAT_TICKS)
        self.assertEqual([message.to for message in group.sent(Heartbeat)], [member(2), member(3)])
        group.run(10 * ELECTION)
        self.assertEqual((group.leader.core.member, group.leader.core.term), (member(1), 1))

    def test_groups_of_every_size_elect_and_commit(self) -> None:
        """5.2 and 5.3, with the largest minority away that a group of this size can do without."""
        for size in SIZES:
            away = range(size, size - (size - 1) // 2, -1)
            group = Group(size)
            leader = group.elect(1, without(*away))
            leader.core.propose(b"value")
            group.settle(without(*away))
            self.assertEqual(leader.payloads, [b"value"])
            group.run(ELECTION)
            for node in group.nodes.values():
                self.assertEqual(node.payloads, [b"value"], (size, node.core.member))

    def test_a_group_of_one_elects_itself_at_once(self) -> None:
        group = Group(1)
        group[1].core.campaign()
        group.settle()
        self.assertIs(group[1].core.role, Role.LEADER)
        self.assertEqual(group[1].core.commit_index, 1)


class UpToDateTest(SynchronousTestCase):
    """Section 5.4.1: only who has everything that is committed may win."""

    def test_a_voter_compares_logs(self) -> None:
        """5.4.1: the log with the later last term is the more up-to-date; of two with the same, the longer one."""
        for last_index, last_term, granted in (
            (3, 2, True),
            (4, 2, True),
            (2, 2, False),
            (1, 3, True),
            (9, 1, False),
            (0, 0, False),
        ):
            for message in (vote(2, 1, 3, last_index, last_term), pre_vote(2, 1, 2, last_index, last_term)):
                group = Group(3)
                group.load(1, [1, 1, 2])
                group.deliver(message)
                group.write()
                (reply,) = group.network
                self.assertEqual(reply.granted, granted, (last_index, last_term))

    def test_who_lacks_a_committed_entry_cannot_win(self) -> None:
        """5.4.1 and 5.4.3: a majority holds each committed entry, and one of it has a vote in every election."""
        group = Group(3)
        leader = group.elect(1)
        leader.core.propose(b"kept")
        group.settle(without(3))
        group.tick(ELECTION_TICKS, only=[2])
        group.network.clear()
        for _ in range(3):
            group[3].core.campaign()
            group.settle(without(1))
            self.assertIs(group[3].core.role, Role.PRE_CANDIDATE)
        group[2].core.campaign()
        group.settle(without(1))
        group.run(HEARTBEAT_TICKS, without(1))
        self.assertEqual((group.leader.core.member, group[3].payloads), (member(2), [b"kept"]))


class PreVoteTest(SynchronousTestCase):
    """The dissertation's section 9.6: nobody raises its term before a majority would vote for it."""

    def test_it_changes_nothing_that_lasts(self) -> None:
        """9.6: asking raises no term and spends no vote, neither here nor there."""
        group = Group(3)
        group[1].core.campaign()
        group.collect()
        self.assertEqual([message.campaign_term for message in group.sent(PreVote)], [1, 1])
        group.deliver(group.sent(PreVote, to=2)[0])
        for number in (1, 2):
            self.assertEqual(group[number].core.hard_state, HardState())
            self.assertIsNone(group[number].writing)
        group.deliver(group.sent(PreVoteReply, to=1)[0])
        self.assertEqual(group[1].core.hard_state, HardState(1, member(1)))

    def test_its_term_is_not_taken_over(self) -> None:
        """Who asks may be far ahead; a leader that took over its term would be deposed by the mere question."""
        group = Group(3)
        group.elect(1)
        for number in (1, 2):
            group.deliver(pre_vote(3, number, 7, 9, 9))
            self.assertEqual(group[number].core.hard_state.term, 1)
        self.assertIs(group[1].core.role, Role.LEADER)

    def test_a_majority_is_needed(self) -> None:
        group = Group(5)
        group[1].core.campaign()
        for number, granted in ((2, True), (2, True), (3, False), (4, False)):
            group[1].step(said(PreVoteReply, number, 1, term=0, campaign_term=1, granted=granted))
            self.assertIs(group[1].core.role, Role.PRE_CANDIDATE)
        group[1].step(said(PreVoteReply, 5, 1, term=0, campaign_term=1, granted=True))
        self.assertIs(group[1].core.role, Role.CANDIDATE)

    def test_an_answer_about_another_campaign_does_not_count(self) -> None:
        group = Group(3)
        group.load(1, [], term=4)
        group[1].core.campaign()
        group[1].step(said(PreVoteReply, 2, 1, term=3, campaign_term=4, granted=True))
        self.assertIs(group[1].core.role, Role.PRE_CANDIDATE)

    def test_it_is_refused_while_the_leader_is_heard(self) -> None:
        """9.6 with 4.2.3: who heard a leader within the shortest time-out grants nothing, the leader neither."""
        group = Group(3)
        group.elect(1)
        group.tick(ELECTION_TICKS - 1, only=[2])
        for number in (1, 2):
            group.deliver(pre_vote(3, number, 1, 9, 9))
        self.assertEqual([message.granted for message in group.sent(PreVoteReply)], [False, False])
        group.tick(1, only=[2])
        group.network.clear()
        group.deliver(pre_vote(3, 2, 1, 9, 9))
        self.assertTrue(group.sent(PreVoteReply)[0].granted)

    def test_who_was_cut_off_comes_back_without_disturbing_anybody(self) -> None:
        """9.6: a server that was partitioned and comes back does not depose a leader by its larger term."""
        group = Group(5)
        group.elect(1)
        group.run(5 * ELECTION, without(5))
        self.assertEqual((group[5].core.role, group[5].core.term), (Role.PRE_CANDIDATE, 1))
        group.run(ELECTION)
        self.assertEqual((group.leader.core.member, group.leader.core.term), (member(1), 1))
        self.assertEqual(group[5].core.leader, member(1))

    def test_who_is_ahead_in_terms_is_not_stuck(self) -> None:
        """A cut-off member may have a newer term (it was elected into it by PreVotes before the others moved on).

        It takes no leader of an older term, and the others, who hear one, grant it no PreVote: somebody must tell the
        leader, or it is out for ever.
        """
        group = Group(3)
        group.elect(1)
        group.load(3, [], term=8)
        group.run(4 * ELECTION)
        self.assertGreater(group.leader.core.term, 8)
        self.assertEqual(group[3].core.leader, group.leader.core.member)

    def test_who_asks_in_an_old_term_learns_of_the_new_one(self) -> None:
        """Otherwise: of three, 1 with the longer log and term 1 and 2 with term 5 are left: neither would ever win."""
        group = Group(3)
        group.load(1, [1, 1])
        group.load(2, [1], term=5)
        group.run(4 * ELECTION, without(3))
        self.assertEqual(group.leader.core.member, member(1))


class CheckQuorumTest(SynchronousTestCase):
    """The dissertation's section 6.2: a leader without a majority steps down; and 4.2.3: one with it is not deposed."""

    def test_a_leader_that_is_cut_off_steps_down(self) -> None:
        """6.2: a leader steps down when an election time-out passes without answers from a majority."""
        for size in SIZES[1:]:
            group = Group(size)
            group.elect(1)
            group.run(ELECTION, without(1))
            self.assertIs(group[1].core.role, Role.FOLLOWER)
            self.assertIsNone(group[1].core.leader)

    def test_a_leader_that_is_not_heard_from_steps_down_too(self) -> None:
        """One-way: its heartbeats arrive, the answers do not. Nobody else would ever campaign."""
        group = Group(3, draw=Random(1).randrange)
        group.elect(1)
        group.run(5 * ELECTION, lambda message: message.to != member(1))
        self.assertIsNot(group[1].core.role, Role.LEADER)
        self.assertNotEqual(group.leader.core.member, member(1))

    def test_a_majority_keeps_it(self) -> None:
        group = Group(5)
        group.elect(1)
        group.run(5 * ELECTION, without(4, 5))
        self.assertEqual((group.leader.core.member, group.leader.core.term), (member(1), 1))

    def test_learners_keep_nobody_in_office(self) -> None:
        group = Group(5, learners=[4, 5])
        group.elect(1)
        group.run(ELECTION, without(2, 3))
        self.assertEqual(group.leaders, [])

    def test_a_vote_is_ignored_while_the_leader_is_heard(self) -> None:
        """4.2.3: who is asked for a vote within the shortest time-out of hearing a leader keeps term and vote."""
        group = Group(3)
        group.elect(1)
        for number in (1, 2):
            group.deliver(vote(3, number, 7, 9, 9))
            self.assertEqual(group[number].core.term, 1)
        self.assertEqual(group.network, [])
        group.tick(ELECTION_TICKS, only=[2])
        group.network.clear()
        group.deliver(vote(3, 2, 7, 9, 9))
        self.assertEqual(group[2].core.hard_state, HardState(7, member(3)))
