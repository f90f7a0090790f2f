"""Where a call goes: groups and maps, whom it tries in which order, and what a scan asks for."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from madkv.client.router import MANAGERS, Router, Tries, pace_of
from madkv.client.scan import Piece
from madkv.errors import Busy, Interrupted, InvalidArgument, MadKVError, NotLeader, ProtocolError, Rejected
from madkv.limits import (
    ELECTION_RETRY_SECONDS_MAX,
    FIRST_TRY_SECONDS,
    RETRY_SECONDS_MAX,
    RETRY_SECONDS_MIN,
    TRY_SECONDS_MAX,
)
from madkv.partitions import PartitionMap
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field, parse_boxes

SERVERS = [[(f"s{partition}", 1 + replica) for replica in range(3)] for partition in range(2)]


def answer(fields: bytes) -> Box:
    boxes: list[Box] = []
    parse_boxes(codec.answer(b"1", fields), boxes)
    return boxes[0]


def map_answer(epoch: int, cluster: str = "c0ffee", owners: tuple[int, int] = (0, 1)) -> Box:
    return answer(blob(b"map", PartitionMap(epoch, cluster, [b"", b"m"], list(owners), SERVERS).encode()))


def router_of_a_cluster() -> Router:
    router = Router(None, "m0:1,m1:1,m2:1")
    router.learn(map_answer(5))
    return router


class MapTests(SynchronousTestCase):
    def test_it_takes_a_server_or_the_managers_in_any_form(self) -> None:
        three = [("m0", 1), ("::1", 2)]
        for managers in ("m0:1,[::1]:2", ["m0:1", "[::1]:2"], three, iter(three)):
            router = Router(None, managers)
            self.assertEqual(router.addresses(MANAGERS), three)
            self.assertTrue(router.needs_map)
        self.assertFalse(Router("s:1", None).needs_map)
        for server, wrong in ((None, None), ("s:1", "m:1"), (None, ""), (None, []), (None, "m:1,m:1"), ("s", None)):
            self.assertRaises(InvalidArgument, Router, server, wrong)

    def test_a_group_that_knows_a_newer_map_makes_it_needed(self) -> None:
        router = router_of_a_cluster()
        self.assertFalse(router.misplaced(4))
        self.assertFalse(router.misplaced(5))
        self.assertFalse(router.needs_map)
        self.assertTrue(router.misplaced(8))
        self.assertTrue(router.misplaced(7), "less is asked for, but that has not come either")
        self.assertRaises(ProtocolError, router.learn, map_answer(7))
        self.assertEqual(router.map and router.map.epoch, 5)
        router.learn(map_answer(9, owners=(1, 0)))
        self.assertFalse(router.needs_map)
        self.assertEqual((router.group_of(b"a"), router.group_of(b"z")), (1, 0))

    def test_a_map_never_goes_back(self) -> None:
        router = router_of_a_cluster()
        self.assertRaises(ProtocolError, router.learn, map_answer(4))
        router.learn(map_answer(5))

    def test_a_map_of_another_cluster_is_no_map(self) -> None:
        self.assertRaises(Rejected, router_of_a_cluster().learn, map_answer(6, "another"))

    def test_an_answer_without_a_map_is_none(self) -> None:
        for fields in (b"", blob(b"map", b"what?"), field(b"map", b"") + field(b"map.1", b"")):
            self.assertRaises(ProtocolError, Router(None, "m:1").learn, answer(fields))

    def test_a_single_server_needs_no_map_whatever_it_says(self) -> None:
        self.assertFalse(Router("s:1", None).misplaced(9))

    def test_people_are_told_whom_it_waits_for(self) -> None:
        router = router_of_a_cluster()
        self.assertEqual(router.describe(1, 2), "s1.2 at s1:3")
        self.assertEqual(router.describe(MANAGERS, 1), "the managers at m0:1,m1:1,m2:1")
        self.assertEqual(Router(None, "m:1").describe(MANAGERS, 0), "the manager at m:1")
        self.assertEqual(Router("[::1]:7", None).describe(0, 0), "[::1]:7")

    @given(st.binary(max_size=2), st.binary(max_size=2), st.binary(max_size=2))
    def test_pieces_before_a_key_are_those_of_the_whole_scan_cut_there(
        self, start: bytes, before: bytes, end: bytes
    ) -> None:
        if not start < before <= end:
            return
        router = router_of_a_cluster()
        pieces = router.pieces(start, before, end)
        self.assertEqual(pieces[0][1], start)
        self.assertEqual(pieces[-1][2], before)
        for (_, begin, following), (_, begins_next, _) in pairwise(pieces):
            self.assertTrue(begin < begins_next == following)
        for group, begin, following in pieces:
            self.assertEqual(group, router.group_of(begin))
            assert following is not None
            self.assertLess(begin, following)


class TriesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.router = router_of_a_cluster()

    def test_every_replica_is_asked_before_it_waits(self) -> None:
        tries = Tries(self.router, 0)
        waits = []
        for _ in range(4):
            asked, seconds = list[int](), 0.0
            while not seconds:
                asked.append(tries.choose())
                seconds = tries.failed(OSError())
            waits.append(seconds)
            self.assertEqual(sorted(asked), [0, 1, 2])
        self.assertEqual(waits[0], RETRY_SECONDS_MIN)
        self.assertTrue(all(later == min(2 * sooner, RETRY_SECONDS_MAX) for sooner, later in pairwise(waits)))

    def test_an_election_is_looked_at_often(self) -> None:
        """The leader was killed; the others answer that nobody leads, until one does."""
        tries = Tries(self.router, 0)
        waits = []
        for _ in range(10):
            seconds = 0.0
            while not seconds:
                dead = tries.choose() == 0
                seconds = tries.failed(OSError() if dead else NotLeader("nobody leads"))
            waits.append(seconds)
        self.assertEqual(waits[:2], [RETRY_SECONDS_MIN, 2 * RETRY_SECONDS_MIN])
        self.assertEqual(set(waits[2:]), {ELECTION_RETRY_SECONDS_MAX})
        self.assertLess(sum(waits[:7]), 1.2)

    def test_who_answered_is_asked_first_by_the_next_call(self) -> None:
        tries = Tries(self.router, 0)
        tries.choose()
        tries.failed(OSError())
        self.assertEqual((tries.choose(), Tries(self.router, 0).choose(), Tries(self.router, 1).choose()), (1, 1, 0))

    def test_a_hint_is_followed_at_once(self) -> None:
        tries = Tries(self.router, 0)
        tries.choose()
        self.assertEqual(tries.failed(NotLeader("", 2)), 0.0)
        self.assertEqual((tries.choose(), Tries(self.router, 0).choose()), (2, 2))

    def test_two_that_take_each_other_for_the_leader_do_not_keep_it_from_the_third(self) -> None:
        tries = Tries(self.router, 0)
        self.assertEqual(tries.choose(), 0)
        self.assertEqual(tries.failed(NotLeader("", 1)), 0.0)
        self.assertEqual(tries.choose(), 1)
        self.assertEqual(tries.failed(NotLeader("", 0)), 0.0)
        self.assertEqual(tries.choose(), 2)

    def test_a_hint_to_nobody_is_none(self) -> None:
        for leader in (0, 3, 2**40):
            tries = Tries(self.router, 0)
            first = tries.choose()
            tries.failed(NotLeader("", leader if leader else first))
            self.assertEqual(tries.choose(), (first + 1) % 3)

    def test_a_round_in_vain_is_followed_by_one_that_begins_with_who_answers(self) -> None:
        """The one that names no leader yet will name the next; the others may be gone, and cost time."""
        tries = Tries(self.router, 0)
        for why in (TimeoutError(), OSError(), NotLeader("", 0)):
            tries.choose()
            waits = tries.failed(why)
        self.assertEqual((tries.choose(), waits), (2, RETRY_SECONDS_MIN))

    def test_what_was_asked_long_ago_does_not_turn_the_others_back(self) -> None:
        """Many calls fail with one connection; the first to notice says where to; the others do not say it again."""
        calls = [Tries(self.router, 0) for _ in range(5)]
        for tries in calls:
            tries.choose()
        for _ in range(2):
            calls[0].failed(Interrupted())
            self.assertEqual(calls[0].choose(), Tries(self.router, 0).choose())
        self.assertEqual(calls[0].choose(), 2)
        for why in (Interrupted(), OSError(), NotLeader("", 1), Busy()):
            calls.pop().failed(why)
            self.assertEqual(Tries(self.router, 0).choose(), 2)

    def test_strangers_are_final_when_there_is_nobody_else(self) -> None:
        tries, stranger = Tries(self.router, 0), Rejected("a stranger")
        for why in (stranger, OSError(), stranger):
            tries.choose()
            seconds = tries.failed(why)
        self.assertEqual(seconds, RETRY_SECONDS_MIN)
        for why in (OSError(), stranger, stranger):
            tries.choose()
            tries.failed(why)
        tries.choose()
        self.assertIs(self.assertRaises(Rejected, tries.failed, stranger), stranger)
        alone = Tries(Router("s:1", None), 0)
        alone.choose()
        self.assertRaises(Rejected, alone.failed, stranger)

    def test_a_stranger_is_told_of_once(self) -> None:
        tries = [Tries(self.router, 0) for _ in range(3)]
        for each in tries:
            each.choose()
        self.assertEqual(tries[0].news(Rejected("s is x")), "going on with others: s is x")
        self.assertIsNone(tries[1].news(Rejected("s is x")))
        self.assertIsNone(tries[1].news(OSError("gone")))
        self.assertEqual(tries[2].news(Rejected("s is y")), "going on with others: s is y")

    def test_tries_that_end_in_silence_get_longer(self) -> None:
        tries = Tries(self.router, 0)
        seconds = [tries.try_seconds]
        for why in (TimeoutError(), Busy(), TimeoutError(), TimeoutError()):
            tries.choose()
            tries.failed(why)
            seconds.append(tries.try_seconds)
        first = FIRST_TRY_SECONDS
        self.assertEqual(seconds, [first, 2 * first, 2 * first, TRY_SECONDS_MAX, TRY_SECONDS_MAX])
        self.assertEqual(Tries(Router("s:1", None), 0).try_seconds, TRY_SECONDS_MAX)

    def test_a_single_server_is_waited_for_each_time(self) -> None:
        tries = Tries(Router("s:1", None), 0)
        for count in range(3):
            self.assertEqual(tries.choose(), 0)
            self.assertEqual(tries.failed(OSError()), RETRY_SECONDS_MIN * 2**count)

    def test_clients_wait_at_paces_of_their_own(self) -> None:
        """Those that lost the same server at the same moment do not all come back together."""
        waits = set()
        for first in range(256):
            router = Router("s:1", None)
            router.pace = pace_of(bytes([first]) * 16)
            tries = Tries(router, 0)
            tries.choose()
            waits.add(tries.failed(OSError()))
        self.assertEqual((min(waits), max(waits), len(waits)), (RETRY_SECONDS_MIN / 2, RETRY_SECONDS_MIN, 256))

    @given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 8)), st.booleans())))
    def test_whatever_they_say_all_are_asked_between_two_waits(self, said: list[tuple[int, int | None, bool]]) -> None:
        """With several calls at once: none asks one replica twice without waiting, or waits before it asked all."""
        router = router_of_a_cluster()
        calls = [Tries(router, 0) for _ in range(4)]
        asked: list[list[int]] = [[] for _ in calls]
        for call, leader, refuses in said:
            asked[call].append(calls[call].choose())
            why: Exception = NotLeader("", leader) if refuses else OSError()
            if calls[call].failed(why):
                self.assertEqual(sorted(asked[call]), [0, 1, 2])
                asked[call].clear()
            else:
                self.assertLess(len(set(asked[call])), 3)
            self.assertEqual(len(set(asked[call])), len(asked[call]))


class HelloTests(SynchronousTestCase):
    def hello(self, role: bytes, node: bytes = b"x", cluster: bytes = b"") -> Box:
        fields = codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"boot", b"life")
        return answer(fields + field(b"role", role) + field(b"node", node) + field(b"cluster", cluster))

    def assert_refused(self, router: Router, group: int, hello: Box, line: str) -> None:
        error = self.assertRaises(Rejected, router.check_hello, group, 0, hello)
        self.assertEqual(str(error), line)

    def test_each_is_who_it_should_be(self) -> None:
        cluster = router_of_a_cluster()
        self.assertEqual(Router("s:1", None).check_hello(0, 0, self.hello(b"solo")), b"life")
        for known in (b"c0ffee", b""):
            cluster.check_hello(MANAGERS, 0, self.hello(b"manager", cluster=known))
        for node in (b"s0", b"s0.0"):
            cluster.check_hello(0, 0, self.hello(b"server", node, b"c0ffee"))

    def test_a_server_that_knows_no_cluster_yet_may_become_one_of_another(self) -> None:
        hello = self.hello(b"server", b"s0.0")
        self.assertRaises(ProtocolError, router_of_a_cluster().check_hello, 0, 0, hello)

    def test_another_server_of_the_same_cluster(self) -> None:
        for node in (b"s0.1", b"s1.0", b"s1"):
            hello = self.hello(b"server", node, b"c0ffee")
            self.assertRaises(Rejected, router_of_a_cluster().check_hello, 0, 0, hello)

    def test_a_server_from_before_there_were_roles(self) -> None:
        fields = codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"boot", b"life")
        self.assertEqual(Router("s:1", None).check_hello(0, 0, answer(fields)), b"life")

    def test_one_that_is_something_else(self) -> None:
        single, cluster = Router("s:1", None), router_of_a_cluster()
        to_managers = "give the client the managers' addresses (--managers)"
        self.assert_refused(single, 0, self.hello(b"manager", b"m.0"), f"s:1 is manager m.0: {to_managers}")
        self.assert_refused(single, 0, self.hello(b"server", b"s0"), f"s:1 is server s0 of a cluster: {to_managers}")
        line = f"m0:1 is server s0, not a manager: {to_managers}"
        self.assert_refused(cluster, MANAGERS, self.hello(b"server", b"s0"), line)
        line = "m0:1 is a server without managers: give the client its address as --server"
        self.assert_refused(cluster, MANAGERS, self.hello(b"solo"), line)
        line = "s1:1 is manager m; the managers take it for a server of partition 1"
        self.assert_refused(cluster, 1, self.hello(b"manager", b"m"), line)
        line = f"s:1 is server 's\\n0' of a cluster: {to_managers}"
        self.assert_refused(single, 0, self.hello(b"server", b"s\n0"), line)
        line = "s0:1 is s0.0 of cluster beef; the managers are of c0ffee"
        self.assert_refused(cluster, 0, self.hello(b"server", b"s0.0", b"beef"), line)
        line = "m0:1 is m of cluster beef; the managers are of c0ffee"
        self.assert_refused(cluster, MANAGERS, self.hello(b"manager", b"m", b"beef"), line)


class PieceTests(SynchronousTestCase):
    def page(self, *keys: bytes, cursor: bytes | None = None, until: bytes | None = None, value: bytes = b"") -> Box:
        fields = blob(b"pairs", codec.encode_pairs([(key, value) for key in keys]))
        fields += b"" if cursor is None else field(b"cursor", cursor)
        return answer(fields if until is None else fields + field(b"until", until))

    def keys(self, piece: Piece) -> list[bytes]:
        return [key for key, _ in piece.pairs]

    def test_pages_up_to_where_the_map_says(self) -> None:
        piece = Piece(0, b"a", b"m", b"z")
        self.assertEqual(piece.request(), field(b"start", b"a") + field(b"end", b"z"))
        piece.take(self.page(b"a", b"b", cursor=b"b"))
        self.assertFalse(piece.done)
        self.assertEqual(piece.request(), field(b"start", b"a") + field(b"end", b"z") + field(b"cursor", b"b"))
        piece.take(self.page(b"c", until=b"m"))
        self.assertEqual((piece.done, self.keys(piece)), (True, [b"a", b"b", b"c"]))

    def test_the_last_piece_ends_with_the_scan(self) -> None:
        for until in (None, b"zz"):
            piece = Piece(0, b"m", None, b"z")
            piece.take(self.page(b"n", until=until))
            self.assertTrue(piece.done)

    def test_of_less_than_the_map_says_the_rest_is_asked_for(self) -> None:
        for before in (b"m", None):
            piece = Piece(0, b"a", before, b"z")
            piece.take(self.page(b"a", until=b"f"))
            self.assertEqual((piece.done, piece.begin), (False, b"f"))
            self.assertEqual(piece.request(), field(b"start", b"f") + field(b"end", b"z"))
            piece.take(self.page(b"g", cursor=b"g"))
            piece.restart()
            self.assertEqual((self.keys(piece), piece.begin), ([b"a"], b"f"))

    def test_what_is_more_than_the_map_says_is_left_to_others(self) -> None:
        for answered in (
            self.page(b"a", b"m", b"n", until=b"p"),
            self.page(b"a", b"m", b"n"),
            self.page(b"a", b"n", cursor=b"n"),
            self.page(b"a", until=b"p"),
            self.page(b"a"),
        ):
            piece = Piece(0, b"a", b"m", b"z")
            piece.take(answered)
            self.assertEqual((piece.done, self.keys(piece)), (True, [b"a"]))

    def test_an_end_before_the_beginning_is_no_answer(self) -> None:
        for until in (b"", b"a"):
            piece = Piece(0, b"a", b"m", b"z")
            self.assertRaises(ProtocolError, piece.take, self.page(b"a", until=until))
            self.assertEqual(self.keys(piece), [], "it is asked for again")
        self.assertRaises(MadKVError, Piece(0, b"a", b"m", b"z").take, answer(b""))
