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


def test_on_a_disk_that_is_slow_the_reactor_does_not_wait(
    disk: DiskThread, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs may do so on the reactor's thread once, and not again before it was quick for a while."""
    monkeypatch.setattr(disk_module, "CAREFUL_WORKS", 3)
    monkeypatch.setattr(disk_module, "QUICK_SECONDS", 0.001)
    done: list[int] = []

    def slow() -> int:
        time.sleep(0.002)
        return HERE()

    disk.run(slow, done.append, is_short=True)
    for _ in range(3):
        disk.run(HERE, done.append, is_short=True)
        reactor.make_a_call()
    monkeypatch.setattr(disk_module, "QUICK_SECONDS", 30.0)
    disk.run(HERE, done.append, is_short=True)
    assert [each == HERE() for each in done] == [True, False, False, False, True]


def test_a_slow_one_beside_the_reactor_keeps_others_there(
    disk: DiskThread, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "CAREFUL_WORKS", 2)
    monkeypatch.setattr(disk_module, "QUICK_SECONDS", 0.001)
    done: list[int] = []

    def slow() -> int:
        time.sleep(0.002)
        return HERE()

    disk.run(slow, done.append, is_short=True)
    disk.run(HERE, done.append, is_short=True)
    reactor.make_a_call()
    disk.run(slow, done.append, is_short=True)
    reactor.make_a_call()
    for _ in range(2):
        disk.run(HERE, done.append, is_short=True)
        reactor.make_a_call()
    assert [each == HERE() for each in done] == [True, False, False, False, False]


def test_closing_waits_for_the_work_under_way(reactor: Reactor) -> None:
    made = DiskThread(reactor.call_from_thread)
    ended: list[bool] = []
    made.run(lambda: time.sleep(0.05) or ended.append(True), lambda result: None)  # type: ignore[func-returns-value]
    made.close()
    assert ended == [True]
