"""The simulated world: time, the network between replicas and clients, and disks.

Everything that happens is a call on one clock, in an order that follows from the seed. The replicas, their storage
overlay, sessions and state machines are the ones that servers run.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import attrs

from madkv.server.disk import Done, Work, outcome_of

TRACE_LINES_KEPT = 200_000
AT_ONCE = 0.3
"""The chance that a short piece of work is done before the disk's `run` returns."""


class Planned:
    """Something that is going to happen, as IDelayedCall has it."""

    __slots__ = ("_arguments", "_function", "time")

    def __init__(self, time: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.time = time
        self._function: Callable[..., Any] | None = function
        self._arguments = arguments

    def active(self) -> bool:
        """Whether it is still going to happen."""
        return self._function is not None

    def cancel(self) -> None:
        """It is not going to happen."""
        assert self._function is not None
        self._function = None

    def happen(self) -> None:
        """It happens."""
        function, self._function = self._function, None
        assert function is not None
        function(*self._arguments)


class World:
    """One clock, one source of chance, and a record of what happened."""

    def __init__(self, seed: int, keeps_trace: bool) -> None:
        self.now = 0.0
        """Seconds since the world began."""
        self._plans: list[tuple[float, int, Planned]] = []
        self._planned = 0
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        """How often each thing happened."""
        self.trace: deque[str] | None = deque(maxlen=TRACE_LINES_KEPT) if keeps_trace else None

    @property
    def now_ns(self) -> int:
        """The time in nanoseconds, for histories."""
        return int(self.now * 1e9)

    def note(self, kind: str, text: Callable[[], str]) -> None:
        """Count something, and tell it in the transcript if one is kept."""
        self.counts[kind] += 1
        if self.trace is not None:
            self.trace.append(f"{self.now:9.4f}  {kind:<18} {text()}")

    def later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Planned:
        """Call a function after so many seconds."""
        plan = Planned(self.now + seconds, function, arguments)
        self._planned += 1
        heapq.heappush(self._plans, (plan.time, self._planned, plan))
        return plan

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        while self._plans:
            self.now, _, plan = heapq.heappop(self._plans)
            if plan.active():
                plan.happen()
                return True
        return False


class LocalClock:
    """One machine's clock, as its reactor sees it: begins anywhere, and runs a little fast or slow."""

    def __init__(self, world: World, touched: Callable[[], None]) -> None:
        """`touched` is called before anything that was planned here happens."""
        self._world = world
        self._touched = touched
        self._offset = world.chance.uniform(0, 1e6)
        self._rate = world.chance.uniform(0.9, 1.1)
        self.lag_max = 0.0
        """By how much whatever is planned here may come late, in seconds: the machine has other things to do."""

    def jump(self, seconds: float) -> None:
        """Time passes that nobody noticed: the machine was asleep."""
        self._offset += seconds

    def seconds(self) -> float:
        """This machine's monotonic time."""
        return self._offset + self._world.now * self._rate

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any) -> Planned:
        """As IReactorTime has it."""
        lag = self._world.chance.uniform(0, self.lag_max) if self.lag_max else 0.0
        return self._world.later(delay / self._rate + lag, self._call, callable, args)

    def _call(self, callable: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._touched()
        callable(*arguments)


@attrs.define
class Weather:
    """How the network is."""

    loss: float = 0.0
    repeats: float = 0.0
    delay_max: float = 0.005
    stray: float = 0.0
    """How many messages take a hundred times as long."""


class Network:
    """Carries things between places, which are numbers; clients have negative ones."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.weather = Weather()
        self.cut: set[tuple[int, int]] = set()
        """Directions that carry nothing."""

    def send(
        self, sender: int, to: int, arrive: Callable[[], None], size_bytes: int = 0, *, may_repeat: bool = True
    ) -> None:
        """Have `arrive` called when this gets there, if it does; maybe twice.

        A call of a client goes over one connection and is never repeated by it: otherwise one copy could be refused and
        the other executed, and a refusal would prove nothing.
        """
        world, weather, chance = self._world, self.weather, self._world.chance
        world.counts["messages"] += 1
        world.counts["bytes"] += size_bytes
        if (sender, to) in self.cut or chance.random() < weather.loss:
            world.counts["messages lost"] += 1
            return
        copies = 1
        if may_repeat and chance.random() < weather.repeats:
            world.counts["messages repeated"] += 1
            copies = 2
        for _ in range(copies):
            delay = chance.uniform(0.0001, weather.delay_max)
            if chance.random() < weather.stray:
                delay *= 100
            world.later(delay, self._arrive, sender, to, arrive)

    def _arrive(self, sender: int, to: int, arrive: Callable[[], None]) -> None:
        if (sender, to) in self.cut:
            self._world.counts["messages lost"] += 1
        else:
            arrive()


class SimulatedDisk:
    """Takes time for each piece of work, but for some that is short. A crash in the middle leaves all of it on the
    disk, or nothing."""

    is_immediate = False

    def __init__(self, world: World, touched: Callable[[], None]) -> None:
        self._world = world
        self._touched = touched
        self._under_way: tuple[Work, Done, Planned] | None = None
        self._hangs_until = 0.0
        self.delay_max = 0.004

    def run(self, work: Work, done: Done, *, is_short: bool = False) -> None:
        """Do `work` some time later, or now, and then `done`."""
        assert self._under_way is None, "one piece of work at a time"
        chance = self._world.chance
        if is_short and self._world.now >= self._hangs_until and chance.random() < AT_ONCE:
            self._world.counts["commits at once"] += 1
            done(outcome_of(work))
            return
        delay = chance.uniform(0.0002, self.delay_max)
        self._under_way = work, done, self._world.later(delay, self._finish)

    def hang(self, seconds: float) -> None:
        """Get nothing done for so long."""
        self._hangs_until = self._world.now + seconds

    def go_on(self) -> None:
        """Hang no longer."""
        self._hangs_until = self._world.now
        if self._under_way is not None:
            work, done, call = self._under_way
            call.cancel()
            self._under_way = work, done, self._world.later(self.delay_max, self._finish)

    def crash(self) -> None:
        """Lose power now: what is under way is done, or it is not."""
        if self._under_way is not None:
            work, _, call = self._under_way
            call.cancel()
            self._under_way = None
            if self._world.chance.random() < 0.5:
                work()
                self._world.counts["commits done, not told"] += 1
            else:
                self._world.counts["commits lost"] += 1

    def close(self) -> None:
        """Nothing outlives the world."""

    def _finish(self) -> None:
        assert self._under_way is not None
        work, done, _ = self._under_way
        if self._world.now < self._hangs_until:
            self._under_way = work, done, self._world.later(self._hangs_until - self._world.now, self._finish)
            return
        self._under_way = None
        self._touched()
        done(outcome_of(work))
