"""The simulated reactor: TCP loses nothing, keeps the order, and breaks only for a reason."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from madkv.testing.sim.reactor import Ended, Internet, Reactor
from madkv.testing.sim.world import LocalClock, World

HERE, THERE = "10.0.0.1", "10.0.0.2"


class Recorder(Protocol):
    """What came, and why no more."""

    transport: Any

    def __init__(self) -> None:
        self.heard = b""
        self.why: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Any = None) -> None:
        self.why = reason.type


class ReactorTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(1, False)
        self.internet = Internet(self.world)
        self.here, self.there = self.reactor(HERE), self.reactor(THERE)
        self.served: list[Recorder] = []

    def reactor(self, host: str) -> Reactor:
        return Reactor(self.internet, host, LocalClock(self.world, lambda: None), lambda: None)

    def run_for(self, seconds: float) -> None:
        over: list[bool] = []
        self.world.later(seconds, over.append, True)
        while not over:
            self.world.step()

    def serve(self, reactor: Reactor) -> None:
        def built() -> Recorder:
            self.served.append(Recorder())
            return self.served[-1]

        reactor.listenTCP(1, Factory.forProtocol(built))

    def connecting(self, timeout: float = 30) -> Deferred[Recorder]:
        return connectProtocol(HostnameEndpoint(self.here, THERE, 1, timeout=timeout), Recorder())

    def pair(self) -> tuple[Recorder, Recorder]:
        self.serve(self.there)
        connecting = self.connecting()
        self.run_for(0.1)
        return self.successResultOf(connecting), self.served[-1]

    def cut(self) -> None:
        self.internet.cut.add(frozenset((HERE, THERE)))

    def test_what_is_sent_arrives_in_order_also_through_losses(self) -> None:
        ours, theirs = self.pair()
        self.internet.loss = 0.5
        for number in range(50):
            ours.transport.write(b"%d " % number)
            self.run_for(0.01)
        theirs.transport.writeSequence([b"a", b"b"])
        self.run_for(30)
        self.assertEqual(theirs.heard.split(), [b"%d" % number for number in range(50)])
        self.assertEqual(ours.heard, b"ab")

    def test_a_cut_holds_things_up(self) -> None:
        ours, theirs = self.pair()
        self.cut()
        ours.transport.write(b"x")
        self.run_for(60)
        self.assertEqual((theirs.heard, ours.why, theirs.why), (b"", None, None))
        self.internet.cut.clear()
        self.run_for(3)
        self.assertEqual(theirs.heard, b"x")

    def test_an_end_in_good_order(self) -> None:
        ours, theirs = self.pair()
        ours.transport.write(b"last")
        ours.transport.loseConnection()
        self.run_for(1)
        self.assertEqual((theirs.heard, theirs.why, ours.why), (b"last", ConnectionDone, ConnectionDone))

    def test_an_abort(self) -> None:
        ours, theirs = self.pair()
        ours.transport.abortConnection()
        self.run_for(1)
        self.assertEqual((ours.why, theirs.why), (ConnectionAborted, ConnectionLost))

    def test_a_killed_process_is_heard_of_by_those_who_are_connected(self) -> None:
        ours, theirs = self.pair()
        later: list[bool] = []
        self.there.callLater(0.01, later.append, True)
        self.there.kill()
        self.run_for(1)
        self.assertEqual((ours.why, theirs.why, later), (ConnectionLost, None, []))
        self.assertRaises(ConnectionRefusedError, self.run_and_raise, self.connecting())

    def run_and_raise(self, connecting: Deferred[Recorder]) -> None:
        self.run_for(1)
        self.failureResultOf(connecting).raiseException()

    def test_a_machine_without_power_says_nothing_until_it_is_back(self) -> None:
        ours, _ = self.pair()
        self.internet.dark.add(THERE)
        self.there.kill()
        ours.transport.write(b"hello?")
        self.run_for(60)
        self.assertIs(ours.why, None)
        self.serve(self.reactor(THERE))
        self.internet.dark.clear()
        self.run_for(3)
        self.assertIs(ours.why, ConnectionLost)

    def test_attempts_to_connect(self) -> None:
        self.assertRaises(ConnectionRefusedError, self.run_and_raise, self.connecting())
        self.cut()
        self.assertRaises(TimeoutError, self.run_and_raise, self.connecting(0.5))
        given_up = self.connecting()
        given_up.cancel()
        self.failureResultOf(given_up, ConnectingCancelledError)
        self.serve(self.there)
        patient = self.connecting()
        self.run_for(5)
        self.internet.cut.clear()
        self.run_for(3)
        self.successResultOf(patient).transport.write(b"x")
        self.run_for(1)
        self.assertEqual([each.heard for each in self.served], [b"x"])

    def test_an_attempt_that_was_given_up_leaves_no_connection(self) -> None:
        self.serve(self.there)
        connecting = self.connecting()
        while not self.served:
            self.world.step()
        connecting.cancel()
        self.failureResultOf(connecting, ConnectingCancelledError)
        self.run_for(1)
        self.assertIs(self.served[0].why, ConnectionLost)
        self.assertEqual(list(self.internet.connections), [])

    def test_whoever_does_not_read_gets_nothing(self) -> None:
        ours, theirs = self.pair()
        theirs.transport.pauseProducing()
        ours.transport.write(b"x")
        self.run_for(1)
        self.assertEqual(theirs.heard, b"")
        theirs.transport.resumeProducing()
        self.run_for(1)
        self.assertEqual(theirs.heard, b"x")

    def test_connections_break_from_outside(self) -> None:
        ours, theirs = self.pair()
        self.internet.break_connections("10.0.0.9")
        self.run_for(1)
        self.assertIs(ours.why, None)
        self.internet.break_connections(THERE)
        self.run_for(1)
        self.assertEqual((ours.why, theirs.why), (ConnectionLost, ConnectionLost))

    def test_delayed_calls(self) -> None:
        done: list[str] = []
        early, late, never = (self.here.callLater(1, done.append, name) for name in ("early", "late", "never"))
        never.cancel()
        late.reset(5)
        self.run_for(2)
        self.assertEqual(done, ["early"])
        self.assertEqual((early.active(), late.active(), never.active()), (False, True, False))
        self.run_for(5)
        self.assertEqual(done, ["early", "late"])

    def test_a_process_that_ends_in_the_middle_of_something(self) -> None:
        def end() -> None:
            self.here.kill()
            raise Ended

        self.here.callLater(0.1, end)
        self.run_for(1)
        self.assertFalse(self.here.is_alive)
