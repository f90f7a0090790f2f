"""Where the store's work is done: on the reactor's own thread, or beside it."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from madkv.server import disk as disk_module
from madkv.server.disk import DiskThread

HERE = threading.get_ident


class Reactor:
    """Takes calls of other threads, and makes them when it is asked to."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()

    def call_from_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        self._calls.put((function, arguments))

    def make_a_call(self) -> None:
        """Wait for one, and make it."""
        function, arguments = self._calls.get(timeout=30)
        function(*arguments)

    @property
    def is_idle(self) -> bool:
        return self._calls.empty()


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def disk(reactor: Reactor) -> Iterator[DiskThread]:
    made = DiskThread(reactor.call_from_thread)
    yield made
    made.close()


def test_long_work_is_done_beside_the_reactor(disk: DiskThread, reactor: Reactor) -> None:
    done: list[tuple[int, int]] = []
    disk.run(HERE, lambda result: done.append((result, HERE())))
    assert done == []
    reactor.make_a_call()
    ((worked_at, told_at),) = done
    assert worked_at != told_at == HERE()


def test_short_work_is_done_at_once(disk: DiskThread, reactor: Reactor) -> None:
    done: list[int] = []
    disk.run(HERE, done.append, is_short=True)
    assert done == [HERE()] and reactor.is_idle


@pytest.mark.parametrize("is_short", [False, True])
def test_a_failure_is_told(disk: DiskThread, reactor: Reactor, is_short: bool) -> None:
    def fail() -> None:
        raise OSError("no space left")

    done: list[Any] = []
    disk.run(fail, done.append, is_short=is_short)
    if not is_short:
        reactor.make_a_call()
    assert str(done[0]) == "no space left"


class Watch:
    """Stands for the clock that work is timed by: each piece takes what it is said to take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, disk: DiskThread, reactor: Reactor) -> None:
        self._disk, self._reactor = disk, reactor
        self._now = 0.0
        monkeypatch.setattr(disk_module, "time", self)

    def monotonic(self) -> float:
        return self._now

    def is_done_by_the_reactor(self, seconds: float) -> bool:
        """A piece of short work that takes so long."""
        done: list[int] = []

        def work() -> int:
            self._now += seconds
            return HERE()

        self._disk.run(work, done.append, is_short=True)
        if not done:
            self._reactor.make_a_call()
        return done == [HERE()]


def test_a_disk_that_stalls_stops_the_reactor_once(
    disk: DiskThread, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However quick it is after that, and where it stalls again, for a long time."""
    monkeypatch.setattr(disk_module, "CAREFUL_WORKS", 100)
    watch = Watch(monkeypatch, disk, reactor)
    assert watch.is_done_by_the_reactor(0.0005)
    assert watch.is_done_by_the_reactor(3.0)
    assert [watch.is_done_by_the_reactor(each) for each in (0.0005, 3.0, *[0.0005] * 99)] == [False] * 101
    for _ in range(100):  # until the average has forgotten it
        watch.is_done_by_the_reactor(0.0005)
    assert watch.is_done_by_the_reactor(0.0005)


def test_a_disk_that_is_slow_all_the_time_does_not_hold_the_reactor_up(
    disk: DiskThread, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 ms a commit is no stall, but answers to heartbeats would wait for each."""
    watch = Watch(monkeypatch, disk, reactor)
    by_the_reactor = [watch.is_done_by_the_reactor(0.015) for _ in range(100)]
    assert 1 <= sum(by_the_reactor) <= 5 and not any(by_the_reactor[5:])
    for _ in range(50):
        watch.is_done_by_the_reactor(0.0005)
    assert watch.is_done_by_the_reactor(0.0005), "it is quick again"


def test_closing_waits_for_the_work_under_way(reactor: Reactor) -> None:
    made = DiskThread(reactor.call_from_thread)
    ended: list[bool] = []
    # So that it is still under way when `close` is called; were it not, the test would only show less.
    made.run(lambda: time.sleep(0.05) or ended.append(True), lambda result: None)  # type: ignore[func-returns-value]
    made.close()
    assert ended == [True]
