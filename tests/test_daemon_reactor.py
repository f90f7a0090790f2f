"""The reactor of our daemons: what it does in a round, and in which order."""

import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

if sys.platform != "linux":
    pytest.skip("epoll is Linux's", allow_module_level=True)

from madkv.server.reactor import DaemonReactor
from tests.processes import ROOT

SECONDS_MAX = 10.0


@implementer(IReadDescriptor)
class Reader:
    """Something with bytes to read, until they are read."""

    def __init__(self, case: "DaemonReactorTest", what: str, error: Exception | None = None) -> None:
        self._socket, other = socket.socketpair()
        case.addCleanup(self._socket.close)
        case.addCleanup(other.close)
        other.send(b"x")
        self._case, self._what, self._error = case, what, error
        case.reactor.addReader(self)
        case.addCleanup(case.reactor.removeReader, self)

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "a test"

    def doRead(self) -> None:
        self._socket.recv(1)
        self._case.done.append(self._what)
        if self._error is not None:
            raise self._error

    def connectionLost(self, reason: Failure) -> None:
        self._case.done.append(f"{self._what} is lost: {reason.getErrorMessage()}")


class DaemonReactorTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor: Any = DaemonReactor()
        self.done: list[str] = []
        self.addCleanup(self._close)

    def _close(self) -> None:
        self.reactor.removeAll()
        for waker in self.reactor._internalReaders:
            waker.connectionLost(None)
        self.reactor._poller.close()

    def test_what_is_wanted_soon_comes_after_the_sockets(self) -> None:
        """So that all that came by them can be done together."""
        self.reactor.soon(lambda: self.done.append("soon"))
        Reader(self, "one")
        Reader(self, "other")
        self.reactor.doIteration(SECONDS_MAX)
        self.assertEqual(sorted(self.done[:2]), ["one", "other"])
        self.assertEqual(self.done[2:], ["soon"])

    def test_it_does_not_wait_then(self) -> None:
        self.reactor.soon(lambda: self.done.append("soon"))
        began = time.monotonic()
        self.reactor.doIteration(None)
        self.assertLess(time.monotonic() - began, SECONDS_MAX)
        self.assertEqual(self.done, ["soon"])

    def test_what_is_wanted_meanwhile_is_a_round_later(self) -> None:
        """Others on this reactor have their turn first."""

        def again() -> None:
            self.done.append("once")
            self.reactor.soon(lambda: self.done.append("twice"))

        self.reactor.soon(again)
        self.reactor.doIteration(0)
        self.assertEqual(self.done, ["once"])
        Reader(self, "one")
        self.reactor.doIteration(0)
        self.assertEqual(self.done, ["once", "one", "twice"])

    def test_a_call_that_fails_costs_no_other(self) -> None:
        def fail() -> None:
            raise RuntimeError("on purpose")

        self.reactor.soon(fail)
        self.reactor.soon(lambda: self.done.append("soon"))
        self.reactor.doIteration(0)
        self.assertEqual(self.done, ["soon"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_reader_that_fails_is_let_go_of_alone(self) -> None:
        bad, good = Reader(self, "bad", RuntimeError("on purpose")), Reader(self, "good")
        self.reactor.doIteration(0)
        self.assertEqual(sorted(self.done), ["bad", "bad is lost: on purpose", "good"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertIn(good, self.reactor.getReaders())
        self.assertNotIn(bad, self.reactor.getReaders())

    def test_a_thread_wakes_it(self) -> None:
        thread = threading.Thread(target=self.reactor.callFromThread, args=(self.done.append, "from the thread"))
        self.reactor.callWhenRunning(thread.start)
        self.reactor.startRunning(installSignalHandlers=False)
        began = time.monotonic()
        while not self.done:
            self.reactor.doIteration(SECONDS_MAX)
            self.reactor.runUntilCurrent()
        thread.join()
        self.assertLess(time.monotonic() - began, SECONDS_MAX)
        self.assertEqual(self.done, ["from the thread"])

    def test_its_clock_is_the_one_that_nobody_sets(self) -> None:
        self.assertIs(self.reactor.seconds, time.monotonic)


def test_a_daemon_without_tls_loads_no_openssl() -> None:
    """Twisted would load it, where it is installed: a fifth of a daemon's start."""
    script = (
        "import sys, madkv.server.tap, madkv.manager.tap; print(*sys.modules);"
        "from madkv.server.reactor import installed_reactor; installed_reactor();"
        "import madkv.wire.tls; from twisted.internet import ssl; print(ssl.SSL.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, available = done.stdout.splitlines()
    assert "madkv.server.reactor" in loaded.split()
    assert not {"OpenSSL", "cryptography", "service_identity"} & set(loaded.split())
    assert available == "OpenSSL.SSL"
