"""The reactor that our daemons run on Linux: Twisted's on epoll, with less between the kernel and what handles events.

What is left out is what nothing here asks for: a log context around each event, which takes about as long to set up as
a small box to handle, and the objects of a timed call for whatever only waits for the end of the present round.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import EPOLLIN
from typing import Any

from twisted.internet.main import installReactor
from twisted.logger import Logger


@contextmanager
def _openssl_held_out() -> Iterator[None]:
    """Have imports find no OpenSSL.

    Where Twisted finds it, each daemon imports it, which is a fifth of its start, and each write to a socket asks first
    whether that has turned to TLS. Ours never do: madkv/wire/tls.py stands above a plain connection, and imports what
    it needs.
    """
    if "OpenSSL" in sys.modules:
        yield
        return
    sys.modules["OpenSSL"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        yield
    finally:
        del sys.modules["OpenSSL"]


with _openssl_held_out():
    from twisted.internet import epollreactor


class DaemonReactor(epollreactor.EPollReactor):
    """Handles in each round what the sockets have, then what was asked for by `soon`."""

    log = Logger()

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []
        super().__init__()

    # Twisted counts by the clock that people set: set back an hour, no timer would fire for an hour.
    seconds = staticmethod(time.monotonic)

    def soon(self, call: Callable[[], None]) -> None:
        """Make this call once what the sockets have now is handled; one asked for in such a call, a round later."""
        self._soon.append(call)

    def doPoll(self, timeout: float | None) -> None:
        """One round: wait until there is something to do, but for `timeout` seconds at most, and do it."""
        if self._soon:
            timeout = 0
        elif timeout is None:
            timeout = -1
        selectables = self._selectables
        try:
            events = self._poller.poll(timeout, len(selectables))
        except InterruptedError:
            return
        for descriptor, event in events:
            selectable = selectables.get(descriptor)
            if selectable is None:
                continue  # closed in this very round
            if event == EPOLLIN:
                try:
                    why = selectable.doRead()
                except BaseException as error:
                    self.log.failure("a connection has failed in a way that was not foreseen")
                    why = error
                if why:
                    self._disconnectSelectable(selectable, why, True)
            else:
                self._doReadOrWrite(selectable, descriptor, event)
        if self._soon:
            calls, self._soon = self._soon, []
            for call in calls:
                try:
                    call()
                except Exception:
                    self.log.failure("a call has failed in a way that was not foreseen")

    doIteration = doPoll

    def wakeUp(self) -> None:
        """Have a round begin now; from any thread."""
        waker: Any = self.waker
        if waker is not None and waker.o is not None:
            try:
                os.write(waker.o, b"x")
            except BlockingIOError:
                pass  # it has been woken up often enough


def installed_reactor() -> Any:
    """The reactor of this process: another one if that is there already, or was asked for, such as a test's."""
    if "twisted.internet.reactor" not in sys.modules and sys.platform == "linux":
        installReactor(DaemonReactor())
    from twisted.internet import reactor

    return reactor
