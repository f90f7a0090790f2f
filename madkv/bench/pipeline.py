"""Many calls in flight from one process, in a closed or in an open loop, and what each of them took.

Theory of operation. In a closed loop `in_flight` calls are always under way: each answer starts the next call, until
the time is over. In an open loop calls are due at fixed moments, whatever the store does, and a call's latency counts
from the moment at which it was *due*: when the store stalls, the calls that pile up behind it are as late as a user of
theirs would find them (no "coordinated omission"). There too at most `in_flight` calls are under way; what is due
beyond that waits, and its waiting counts. What is not answered within `DRAIN_SECONDS` after the end counts with what it
has waited by then, and is told apart as unfinished.
"""

import gc
import time
from array import array
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from madkv.bench.percentiles import exact_summary

DRAIN_SECONDS = 10.0
Figures = dict[str, Any]


class Pipeline:
    """One run: use it once. `start` makes a call and returns what fires with its answer."""

    def __init__(
        self,
        reactor: Any,
        start: Callable[[], Deferred[Any]],
        in_flight: int,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._reactor = reactor
        self._start = start
        self._in_flight_max = in_flight
        self._now_ns = now_ns
        self._latencies = array("q")
        self._late = array("q")
        self._flying: set[int] = set()
        """When each call that is under way was due; no two are due at the same nanosecond."""
        self._interval_ns = 0.0
        self._due = 0
        """Calls of the open loop that have been started."""
        self._began_ns = self._ends_ns = self._last_ns = 0
        self._timer: IDelayedCall | None = None
        self._giving_up: IDelayedCall | None = None
        self._finished: Deferred[Figures] = Deferred()

    def closed(self, seconds: float) -> Deferred[Figures]:
        """Run a closed loop. Fires with the figures, or fails with what a call failed with."""
        self._begin(seconds)
        for number in range(self._in_flight_max):
            self._launch(self._began_ns + number)
        return self._finished

    def open(self, rate: float, seconds: float) -> Deferred[Figures]:
        """Run an open loop of `rate` calls a second. Fires as `closed`."""
        self._interval_ns = 1e9 / rate
        self._begin(seconds)
        self._giving_up = self._reactor.callLater(seconds + DRAIN_SECONDS, self._give_up)
        self._pump(self._began_ns)
        return self._finished

    def _begin(self, seconds: float) -> None:
        # Nothing here makes a cycle that matters; a collection in the middle would only be seen as latency.
        gc.collect()
        gc.disable()
        self._began_ns = self._last_ns = self._now_ns()
        self._ends_ns = self._began_ns + round(seconds * 1e9)

    def _launch(self, due_ns: int) -> None:
        self._flying.add(due_ns)
        self._start().addCallbacks(self._answered, self._failed, callbackArgs=(due_ns,))

    def _answered(self, _: Any, due_ns: int) -> None:
        now_ns = self._last_ns = self._now_ns()
        if self._finished.called:
            return
        self._latencies.append(now_ns - due_ns)
        self._flying.remove(due_ns)
        if self._interval_ns:
            self._pump(now_ns)
        elif now_ns < self._ends_ns:
            # Several may be answered at one reading of the clock.
            while now_ns in self._flying:
                now_ns += 1
            self._launch(now_ns)
        elif not self._flying:
            self._finish()

    def _pump(self, now_ns: int) -> None:
        """Start what is due, and see to it that the next one is started in time."""
        due_ns = self._due_ns()
        while due_ns <= now_ns and due_ns < self._ends_ns and len(self._flying) < self._in_flight_max:
            self._late.append(self._now_ns() - due_ns)
            self._due += 1
            self._launch(due_ns)
            due_ns = self._due_ns()
        if due_ns >= self._ends_ns:
            if not self._flying:
                self._finish()
        elif self._timer is None and len(self._flying) < self._in_flight_max:
            self._timer = self._reactor.callLater(max(0.0, (due_ns - self._now_ns()) / 1e9), self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._pump(self._now_ns())

    def _due_ns(self) -> int:
        return self._began_ns + round(self._due * self._interval_ns)

    def _failed(self, why: Failure) -> None:
        if not self._finished.called:
            self._end()
            self._finished.errback(why)

    def _give_up(self) -> None:
        self._giving_up = None
        self._finish()

    def _finish(self) -> None:
        self._end()
        now_ns = self._now_ns()
        answered = len(self._latencies)
        waiting = [now_ns - due_ns for due_ns in self._flying]
        while self._interval_ns and (due_ns := self._due_ns()) < self._ends_ns:
            waiting.append(now_ns - due_ns)
            self._due += 1
        self._latencies.extend(waiting)
        seconds = max(1, self._last_ns - self._began_ns) / 1e9
        self._finished.callback(
            {
                "calls": answered,
                "seconds": seconds,
                "throughput": answered / seconds,
                "unfinished": len(waiting),
                "latency_us": exact_summary(self._latencies),
                "started_late_us": exact_summary(self._late),
            }
        )

    def _end(self) -> None:
        gc.enable()
        for timer in (self._timer, self._giving_up):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer = self._giving_up = None
