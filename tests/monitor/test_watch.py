"""Who looks at the cluster, and how often; what the page shows of it."""

import json
import re
import time
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.counts import SECONDS
from madkv.monitor.look import Look
from madkv.monitor.service import FILES, LOOK_SECONDS, PAGE, Watch
from madkv.monitor.view import EVENTS_SHOWN, GAP_SECONDS, HISTORY_POINTS, View, merged
from madkv.operate.ask import Status
from madkv.operate.nodes import Node
from madkv.partitions import PartitionMap

S00, S01 = Node(0, 0), Node(0, 1)
MAP = PartitionMap(3, "c0ffee", [b""], [0], [[("127.0.0.1", 1), ("127.0.0.1", 2)]])


class StandingWatch(Watch):
    """Its looks take as long as the test says."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("s0.0", SimpleNamespace(reactor=clock, tls_files=None))  # type: ignore[arg-type]
        self.looks: list[Deferred[Look]] = []

    def _look(self) -> Deferred[Look]:
        self.looks.append(Deferred())
        return self.looks[-1]


def calls(**counts: int) -> dict[str, list[int]]:
    """So many of each kind, all within the second bucket."""
    return {name: [0, count] + [0] * (len(SECONDS) - 1) for name, count in counts.items()}


def status(role: str = "follower", uptime: float = 100.0, **facts: Any) -> Status:
    return {"role": role, "term": 2, "leader": 0, "commit": 9, "applied": 9, "uptime": uptime, **facts}


def look(at: float, *statuses: Status | None, ailments: tuple[str, ...] = ()) -> Look:
    return Look(at, {Node(0, number): each for number, each in enumerate(statuses)}, MAP, list(ailments))


class WatchTest(SynchronousTestCase):
    """How often the others are asked."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.watch = StandingWatch(self.clock)

    def test_nobody_looks_while_nobody_asks(self) -> None:
        self.clock.advance(100)
        self.assertEqual((self.watch.looks, self.clock.getDelayedCalls()), ([], []))

    def test_all_viewers_share_one_look(self) -> None:
        asked = [self.watch.seen() for _ in range(50)]
        self.assertEqual(len(self.watch.looks), 1)
        self.watch.looks[0].callback(look(0.0, status("leader")))
        (body,) = {self.successResultOf(each) for each in asked}
        self.assertEqual(json.loads(body)["here"], "s0.0")
        self.clock.advance(LOOK_SECONDS * 0.9)
        self.assertEqual(self.successResultOf(self.watch.seen()), body)
        self.assertEqual(len(self.watch.looks), 1)

    def test_at_most_about_one_look_a_second_however_many_ask(self) -> None:
        for tenth in range(100):
            for _ in range(5):
                asked = self.watch.seen()
            if not self.watch.looks[-1].called:
                self.watch.looks[-1].callback(look(tenth / 10, status("leader")))
            self.successResultOf(asked)
            self.clock.advance(0.1)
        self.assertIn(len(self.watch.looks), (10, 11, 12))

    def test_a_long_look_is_not_overtaken(self) -> None:
        first = self.watch.seen()
        self.clock.advance(5)
        second = self.watch.seen()
        self.assertEqual(len(self.watch.looks), 1)
        self.watch.looks[0].callback(look(0.0, status("leader")))
        self.assertEqual(self.successResultOf(first), self.successResultOf(second))

    def test_a_look_that_fails_is_told_and_the_next_one_is_made(self) -> None:
        asked = [self.watch.seen(), self.watch.seen()]
        self.watch.looks[0].errback(RuntimeError("no more threads"))
        for each in asked:
            self.failureResultOf(each, RuntimeError)
        again = self.watch.seen()
        self.watch.looks[1].callback(look(0.0, status("leader")))
        self.successResultOf(again)

    def test_a_look_that_cannot_begin_fails_alone(self) -> None:
        self.patch(self.watch, "_look", lambda: 1 // 0)
        self.failureResultOf(self.watch.seen(), ZeroDivisionError)
        self.failureResultOf(self.watch.seen(), ZeroDivisionError)


class ViewTest(SynchronousTestCase):
    """What is made of one look after another."""

    def setUp(self) -> None:
        self.view = View("s0.0")

    def test_groups_and_nodes(self) -> None:
        told = self.view.told(look(0.0, status("leader", voters=["0/a", "1/b"]), None, ailments=("s0.1 is ill",)))
        self.assertEqual((told["cluster"], told["epoch"], told["well"]), ("c0ffee", 3, False))
        self.assertEqual(told["ailments"], ["s0.1 is ill"])
        (group,) = told["groups"]
        self.assertEqual((group["leader"], group["term"], group["owns"]), ("s0.0", 2, "s0 owns all keys"))
        self.assertEqual((group["reads_per_second"], group["writes_ms"]), (None, None))
        here, there = group["nodes"]
        self.assertEqual((here["node"], here["here"], here["answers"], here["lag"]), ("s0.0", True, True, 0))
        self.assertEqual((there["node"], there["here"], there["answers"], there["lag"]), ("s0.1", False, False, None))
        json.dumps(told)

    def test_a_group_of_one_has_two_names(self) -> None:
        """Its managers know `s0`, and it knows itself as `s0.0`."""
        told = self.view.told(Look(0.0, {Node(0, None): status("leader")}, MAP, []))
        (node,) = told["groups"][0]["nodes"]
        self.assertEqual((node["node"], node["here"], told["groups"][0]["leader"]), ("s0", True, "s0"))

    def test_rates_and_times_since_the_look_before(self) -> None:
        self.view.told(look(10.0, status("leader", calls=calls(get=100, put=7)), status(calls=calls(get=5))))
        told = self.view.told(
            look(12.0, status("leader", calls=calls(get=300, scan=0, put=17, delete=0)), status(calls=calls(get=9)))
        )
        (group,) = told["groups"]
        self.assertEqual((group["reads_per_second"], group["writes_per_second"]), (102.0, 5.0))
        half, most = group["reads_ms"]
        self.assertTrue(SECONDS[0] * 1000 < half < most <= SECONDS[1] * 1000)
        self.assertEqual([point["rates"] for point in told["history"]], [{"s0": [102.0, 5.0]}])

    def test_a_node_that_has_begun_anew_counts_from_the_next_look_on(self) -> None:
        self.view.told(look(0.0, status("leader", calls=calls(get=1000))))
        told = self.view.told(look(1.0, status("leader", uptime=0.5, calls=calls(get=10))))
        self.assertEqual(told["groups"][0]["reads_per_second"], 0)

    def test_after_a_pause_rates_begin_anew(self) -> None:
        for at in (0.0, 1.0):
            told = self.view.told(look(at, status("leader", calls=calls(get=10))))
        self.assertEqual(len(told["history"]), 1)
        told = self.view.told(look(2.0 + GAP_SECONDS, status("leader", calls=calls(get=10))))
        self.assertEqual((told["history"], told["groups"][0]["reads_per_second"]), ([], None))

    def test_the_history_is_bounded(self) -> None:
        for at in range(HISTORY_POINTS + 20):
            told = self.view.told(look(float(at), status("leader", calls=calls(get=at))))
        self.assertEqual(len(told["history"]), HISTORY_POINTS)

    def test_of_what_several_tell_the_first_counts(self) -> None:
        lost = {"what": "lost", "peer": 1}
        statuses: dict[Node, Status | None] = {
            Node(0, 0): status("leader", events=[{"ago": 9.0, "what": "leader", "term": 2, "leader": 0}]),
            Node(0, 1): None,
            Node(0, 2): status(events=[{"ago": 8.5, "what": "leader", "term": 2, "leader": 0}, {"ago": 3.0, **lost}]),
            Node(0, 3): status(events=[{"ago": 4.0, **lost}, {"ago": 1.0, "what": "back", "peer": 1}]),
        }
        before = time.time()
        told = self.view.told(Look(0.0, statuses, MAP, []))["events"]
        self.assertEqual([(each["what"], each["node"]) for each in told], [("back", "s0.1"), ("lost", "s0.1"),
                                                                           ("leader", "s0.0")])  # fmt: skip
        self.assertTrue(0 <= told[1]["at"] / 1000 - (before - 4.0) + 0.001 < 0.5)
        self.assertEqual(told[2]["term"], 2)

    def test_a_node_that_stops_answering_is_an_event_also_where_no_peer_says_so(self) -> None:
        self.view.told(look(0.0, status("leader"), status()))
        self.view.told(look(1.0, status("leader"), None))
        told = self.view.told(look(2.0, status("leader"), status()))["events"]
        self.assertEqual([(each["what"], each["node"]) for each in told][::-1], [("lost", "s0.1"), ("back", "s0.1")])

    def test_snapshots(self) -> None:
        events = [{"ago": 2.0, "what": "snapshot begun", "peer": 1}, {"ago": 1.0, "what": "snapshot sent", "peer": 1}]
        installed = [{"ago": 1.5, "what": "snapshot installed", "index": 5}]
        told = self.view.told(look(0.0, status("leader", events=events), status(events=installed)))["events"]
        self.assertEqual(
            [(each["what"], each["node"], each.get("by")) for each in told],
            [("snapshot sent", "s0.1", "s0.0"), ("snapshot installed", "s0.1", None),
             ("snapshot begun", "s0.1", "s0.0")],
        )  # fmt: skip

    def test_what_no_node_says_is_left_out(self) -> None:
        """A node of another version, or none: the page of the others goes on."""
        no_events: list[Any] = [
            *(None, 5, [], {}, {"ago": "1", "what": "lost"}, {"ago": float("nan"), "what": "lost", "peer": 1}),
            *({"ago": 1e300, "what": "lost"}, {"ago": 1, "what": "leader"}, {"ago": 1, "what": "lost", "peer": "1"}),
            *({"ago": 1, "what": []}, {"ago": 1}, {"ago": True, "what": "lost"}, {"ago": 1, "what": "nonsense"}),
        ]
        for wrong in (
            {"events": no_events},
            {"events": 5, "calls": [], "voters": 7, "uptime": "long", "first": "x", "last": {}, "version": 5},
            {"calls": {"get": 5, "put": ["x"] * 16, "swap": [1], "scan": None}, "log_bytes": None},
        ):
            for at in (0.0, 1.0):
                told = self.view.told(look(at, status("leader", **wrong)))
            self.assertEqual(told["events"], [])
            self.assertEqual(told["groups"][0]["reads_per_second"], 0)
            json.dumps(told, allow_nan=False)

    def test_the_same_again_later_is_another_event(self) -> None:
        events = [{"at": at * 1000, "group": "s0", "what": "lost", "node": "s0.1"} for at in (0, 2, 60)]
        self.assertEqual([each["at"] for each in merged(events)], [60_000, 0])
        many = [{"at": at * 60_000, "group": "s0", "what": "lost", "node": "s0.1"} for at in range(500)]
        self.assertEqual(
            [each["at"] for each in merged(many)], [at * 60_000 for at in range(499, 499 - EVENTS_SHOWN, -1)]
        )


def test_the_page_makes_no_markup_of_data_and_loads_nothing_from_elsewhere() -> None:
    script = (PAGE / "page.js").read_text()
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|createContextualFragment|https?:"
    )
    assert re.findall(forbidden, script) == []
    markup = (PAGE / "index.html").read_text()
    assert re.findall(r"<script[^>]*>(?!</script>)|<style|style=|\bon[a-z]+=|https?:|javascript:", markup) == []
    sources = re.findall(r'(?:src|href)="([^"]*)"', markup)
    elsewhere = {"/metrics", "/healthz", "/readyz", "/cluster.json"}
    assert {each.encode() for each in sources} - set(FILES) == {each.encode() for each in elsewhere}
    assert re.findall(r"url\(|@import", (PAGE / "page.css").read_text()) == []


def test_the_files_of_the_page_are_all_there() -> None:
    assert {name for name, _ in FILES.values()} == {path.name for path in PAGE.iterdir()}
