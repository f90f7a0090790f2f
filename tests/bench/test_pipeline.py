"""Many calls in flight: closed and open loops on a clock of their own, against stores that answer as they are told."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.bench.histogram import Latencies
from madkv.bench.percentiles import exact_summary, ranked, summary_of, together
from madkv.bench.pipeline import DRAIN_SECONDS, Pipeline


class SlowStore:
    """Answers each call after `seconds`, but for a time in which it stands still."""

    def __init__(self, clock: Clock, seconds: float, stalls: tuple[float, float] = (0.0, 0.0)) -> None:
        self._clock = clock
        self._seconds = seconds
        self._stalls = stalls
        self.in_flight = self.in_flight_max = self.started = 0

    def start(self) -> Deferred[None]:
        self.started += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        answered: Deferred[None] = Deferred()
        due = self._clock.seconds() + self._seconds
        begins, ends = self._stalls
        if begins <= due < ends:
            due = ends
        self._clock.callLater(due - self._clock.seconds(), self._answer, answered)
        return answered

    def _answer(self, answered: Deferred[None]) -> None:
        self.in_flight -= 1
        answered.callback(None)


class PipelineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def pipeline(self, start: Callable[[], Deferred[Any]], in_flight: int) -> Pipeline:
        return Pipeline(self.clock, start, in_flight, lambda: round(self.clock.seconds() * 1e9))

    def assert_near(self, value: float, expected: float, distance: float) -> None:
        self.assertLessEqual(abs(value - expected), distance, f"{value} is not {expected}")

    def passes(self, seconds: float, step: float = 0.001) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def test_a_closed_loop_keeps_its_number_in_flight(self) -> None:
        store = SlowStore(self.clock, 0.010)
        finished = self.pipeline(store.start, 8).closed(1.0)
        self.passes(0.995)
        self.assertNoResult(finished)
        self.passes(0.016)
        figures = self.successResultOf(finished)
        self.assertEqual((store.in_flight_max, store.in_flight), (8, 0))
        self.assertEqual(figures["calls"], store.started)
        self.assert_near(figures["throughput"], 800, 80)
        self.assert_near(figures["latency_us"]["p50"], 10_000, 1100)
        self.assertEqual((figures["unfinished"], figures["started_late_us"]), (0, {}))

    def test_an_open_loop_is_as_fast_as_it_is_told(self) -> None:
        store = SlowStore(self.clock, 0.010)
        finished = self.pipeline(store.start, 64).open(200, 2.0)
        self.passes(2.1)
        figures = self.successResultOf(finished)
        self.assertEqual((figures["calls"], figures["unfinished"]), (400, 0))
        self.assert_near(figures["latency_us"]["max"], 10_000, 2100)

    def test_a_stall_is_felt_by_all_that_were_due_meanwhile(self) -> None:
        """Of 1,000 calls in 10 s, those due in the one second without answers wait half a second in the middle."""
        store = SlowStore(self.clock, 0.001, stalls=(2.0, 3.0))
        finished = self.pipeline(store.start, 4).open(100, 10.0)
        self.passes(10.1)
        figures = self.successResultOf(finished)
        self.assertEqual(figures["calls"], 1000)
        self.assertGreater(figures["latency_us"]["max"], 990_000)
        # A tenth of the calls was due within the stall: had only those under way counted, p99 would be a millisecond.
        self.assert_near(figures["latency_us"]["p99"], 900_000, 20_000)
        self.assertLess(figures["latency_us"]["p50"], 3_000)
        self.assertEqual(store.in_flight_max, 4)
        self.assertGreater(figures["started_late_us"]["max"], 900_000)

    def test_what_is_never_answered_counts_with_what_it_waited(self) -> None:
        store = SlowStore(self.clock, 3600.0)
        finished = self.pipeline(store.start, 2).open(10, 1.0)
        self.passes(1.0 + DRAIN_SECONDS + 0.1, step=0.05)
        figures = self.successResultOf(finished)
        self.assertEqual((figures["calls"], figures["unfinished"]), (0, 10))
        self.assert_near(figures["latency_us"]["max"], (1.0 + DRAIN_SECONDS) * 1e6, 60_000)
        self.clock.advance(7200)  # late answers are nobody's business any more

    def test_a_call_that_fails_ends_the_run(self) -> None:
        error = ValueError("wrong")
        finished = self.pipeline(lambda: fail(error), 3).closed(1.0)
        self.assertIs(self.failureResultOf(finished, ValueError).value, error)
        self.assertEqual(self.clock.getDelayedCalls(), [])


@pytest.mark.parametrize(
    ("percentile", "count", "expected"), [(50, 1, 1), (50, 4, 2), (99, 100, 99), (99.9, 1000, 999), (99.9, 999, 999)]
)
def test_a_percentile_is_of_the_nearest_rank(percentile: float, count: int, expected: int) -> None:
    assert ranked(list(range(1, count + 1)), percentile) == expected


def test_a_summary_is_in_microseconds_and_nothing_without_calls() -> None:
    assert exact_summary([]) == summary_of(Latencies()) == {}
    figures = exact_summary(range(1000, 101_000, 1000))
    assert figures == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 100.0, "mean": 50.5, "max": 100.0}


def test_a_histogram_says_the_same_as_all_its_latencies() -> None:
    fast, slow = Latencies(), Latencies()
    for microseconds in range(1, 101):
        (fast if microseconds <= 60 else slow).record(microseconds * 1000)
    figures = summary_of(together([fast, slow]))
    exact = exact_summary(range(1000, 101_000, 1000))
    assert figures == pytest.approx(exact, rel=0.002)
