"""The Deferred face of the client: the calling protocol and time-outs, on a Clock."""

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from madkv.client.api import Client, ReactorDriver
from madkv.client.links import Link
from madkv.errors import Abandoned, Busy, InvalidArgument, ProtocolError
from madkv.limits import (
    CONNECT_SECONDS_MAX,
    FIRST_TRY_SECONDS,
    KEY_BYTES_MAX,
    MIB,
    RETRY_SECONDS_MAX,
    SESSION_CALLS_MAX,
    SLOWEST_BYTES_PER_SECOND,
    TRY_SECONDS_MAX,
    VALUE_BYTES_MAX,
)
from madkv.wire import codec
from madkv.wire.boxes import COMMAND, Box, blob, field
from madkv.wire.caller import CallerProtocol
from tests.proxy import split_boxes

HELLO_FIELDS = codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"node", b"s0") + field(b"boot", b"boot")
FOUND = field(b"found", b"True")


class CallerTests(SynchronousTestCase):
    """One connection: calls in flight, their tags and their time."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.caller = CallerProtocol(self.clock)
        self.transport = StringTransport()
        self.caller.makeConnection(self.transport)

    def tearDown(self) -> None:
        if self.caller.open:
            self.caller.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answers_come_to_their_calls_in_any_order(self) -> None:
        calls = [self.caller.call(codec.GET, field(b"key", b"%d" % number)) for number in range(3)]
        for number in (2, 0, 1):
            self.caller.dataReceived(codec.answer(b"%d" % (number + 1), field(b"value", b"%d" % number)))
        self.assertEqual([self.successResultOf(call)[b"value"] for call in calls], [b"0", b"1", b"2"])

    def test_declared_errors(self) -> None:
        busy, unheard = self.caller.call(codec.GET, b""), self.caller.call(codec.GET, b"")
        self.caller.dataReceived(codec.answer_error(b"1", Busy("later")))
        self.caller.dataReceived(codec.answer_error_code(b"2", b"UNHEARD_OF", "what?"))
        self.failureResultOf(busy, Busy)
        self.failureResultOf(unheard, ProtocolError)
        self.assertFalse(self.transport.disconnecting)

    def test_an_answer_to_no_call_drops_the_connection(self) -> None:
        waiting = self.caller.call(codec.GET, b"")
        self.caller.dataReceived(codec.answer(b"9", b""))
        self.assertTrue(self.transport.disconnecting)
        self.assertNoResult(waiting)
        self.caller.connectionLost(Failure(ConnectionDone()))
        self.failureResultOf(waiting, ConnectionLost)

    def test_a_lost_connection_fails_all_that_wait_once(self) -> None:
        calls = [self.caller.call(codec.GET, b"") for _ in range(5)]
        self.caller.dataReceived(codec.answer(b"3", b""))
        self.caller.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(calls.pop(2))
        for call in calls:
            self.failureResultOf(call, ConnectionLost)
        self.failureResultOf(self.caller.call(codec.GET, b""), ConnectionLost)

    def test_no_answer_in_time(self) -> None:
        """The time is that of the oldest call that waits, not of the connection."""
        first = self.caller.call(codec.GET, b"")
        self.clock.advance(TRY_SECONDS_MAX - 1)
        second = self.caller.call(codec.GET, b"")
        self.caller.dataReceived(codec.answer(b"1", b""))
        self.successResultOf(first)
        self.clock.advance(TRY_SECONDS_MAX - 0.5)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(0.51)
        self.assertTrue(self.transport.disconnecting)
        self.caller.connectionLost(Failure(ConnectionDone()))
        self.assertIn("no answer within", str(self.failureResultOf(second, ConnectionLost).value))

    def test_a_large_call_gets_the_time_that_a_slow_link_needs(self) -> None:
        """Otherwise it is cut off and sent anew for ever, over a link that would have carried it."""
        self.caller.call(codec.PUT, blob(b"value", b"v" * MIB)).addErrback(lambda _: None)
        self.clock.advance(MIB / SLOWEST_BYTES_PER_SECOND + TRY_SECONDS_MAX)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(0.1)
        self.assertTrue(self.transport.disconnecting)
        self.caller.connectionLost(Failure(ConnectionDone()))

    def test_an_answer_that_arrives_bit_by_bit_is_waited_for(self) -> None:
        got = self.caller.call(codec.GET, b"")
        answer = codec.answer(b"1", field(b"value", b"v" * 20))
        for byte in answer:
            self.clock.advance(TRY_SECONDS_MAX - 1)
            self.caller.dataReceived(bytes([byte]))
        self.assertEqual(self.successResultOf(got)[b"value"], b"v" * 20)

    def test_an_answer_to_a_cancelled_call_is_no_surprise(self) -> None:
        cancelled, kept = self.caller.call(codec.GET, b""), self.caller.call(codec.GET, b"")
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.caller.dataReceived(codec.answer(b"1", b"") + codec.answer(b"2", b""))
        self.successResultOf(kept)
        self.assertFalse(self.transport.disconnecting)

    def test_answers_are_read_however_much_is_still_to_be_sent(self) -> None:
        """If both sides waited for the other to read first, they would wait for ever."""
        answered = self.caller.call(codec.GET, b"")
        self.caller.pauseProducing()
        self.assertEqual(self.transport.producerState, "producing")
        self.caller.dataReceived(codec.answer(b"1", b""))
        self.successResultOf(answered)
        self.caller.resumeProducing()

    def test_abort_fires_when_all_have_failed(self) -> None:
        waiting = self.caller.call(codec.GET, b"")
        aborted = self.caller.abort()
        self.assertNoResult(aborted)
        self.caller.connectionLost(Failure(ConnectionDone()))
        self.failureResultOf(waiting, ConnectionLost)
        self.successResultOf(aborted)
        self.successResultOf(self.caller.abort())


class TimeTests(SynchronousTestCase):
    """The client's retries, with a network that does only what the test does."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.client = Client(self.reactor, "127.0.0.1:3777")

    def connection(self) -> tuple[CallerProtocol, StringTransport]:
        """The last connection that was tried, made."""
        factory = self.reactor.tcpClients[-1][2]
        protocol: Any = factory.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        self.reactor.advance(0)
        return protocol, transport

    def greeted(self) -> tuple[CallerProtocol, StringTransport]:
        protocol, transport = self.connection()
        tag, command = self.asked(transport)
        self.assertEqual(command, b"Hello")
        protocol.dataReceived(codec.answer(tag, HELLO_FIELDS))
        return protocol, transport

    def asked(self, transport: StringTransport) -> tuple[bytes, bytes]:
        """Tag and command of the only request that was written since the last time."""
        [(_, box)], rest = split_boxes(transport.value())
        self.assertEqual(rest, b"")
        transport.clear()
        return box[b"_ask"], box[COMMAND]

    def close(self) -> None:
        closed = self.client.close()
        self.reactor.advance(10)
        self.successResultOf(closed)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_server_that_accepts_and_never_answers(self) -> None:
        got = self.client.get(b"k")
        for tries in range(1, 4):
            self.assertEqual(len(self.reactor.tcpClients), tries)
            protocol, transport = self.connection()
            self.reactor.advance(TRY_SECONDS_MAX - 0.01)
            self.assertFalse(transport.disconnecting)
            self.reactor.advance(0.02)
            self.assertTrue(transport.disconnecting)
            protocol.connectionLost(Failure(ConnectionLost()))
            self.reactor.advance(RETRY_SECONDS_MAX)
        self.assertNoResult(got)
        protocol, transport = self.greeted()
        tag, _ = self.asked(transport)
        protocol.dataReceived(codec.answer(tag, field(b"value", b"v")))
        self.assertEqual(self.successResultOf(got), b"v")
        transport.abortConnection = lambda: protocol.connectionLost(Failure(ConnectionDone()))  # type: ignore[method-assign]
        self.close()

    def test_a_retry_is_the_same_call(self) -> None:
        put = self.client.put(b"k", b"v")
        protocol, transport = self.greeted()
        tag, command = self.asked(transport)
        self.assertEqual(command, b"OpenSession")
        protocol.dataReceived(codec.answer(tag, codec.integer(b"session", 5)))
        first = split_boxes(transport.value())[0][0][1]
        protocol.connectionLost(Failure(ConnectionLost()))
        self.reactor.advance(RETRY_SECONDS_MAX)
        protocol, transport = self.greeted()
        [(_, second)], _ = split_boxes(transport.value())
        for name in (b"session", b"sequence", b"floor", b"key", b"value"):
            self.assertEqual(first[name], second[name])
        protocol.dataReceived(codec.answer(second[b"_ask"], FOUND))
        self.assertIs(self.successResultOf(put), True)
        transport.abortConnection = lambda: protocol.connectionLost(Failure(ConnectionDone()))  # type: ignore[method-assign]
        self.close()

    def test_closed_while_it_connects(self) -> None:
        got = self.client.get(b"k")
        self.assertEqual(len(self.reactor.tcpClients), 1)
        self.close()
        self.failureResultOf(got, Abandoned)

    def test_closed_while_it_waits(self) -> None:
        got, put = self.client.get(b"k"), self.client.put(b"k", b"v")
        factory: Any
        _, _, factory, timeout, _ = self.reactor.tcpClients[-1]
        self.assertEqual(timeout, CONNECT_SECONDS_MAX)
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.assertNoResult(got)
        closed = self.client.close()
        self.successResultOf(closed)
        self.failureResultOf(got, Abandoned)
        self.failureResultOf(put, Abandoned)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_calls_that_are_given_up_leave_nothing_behind(self) -> None:
        """However many, while nobody is there: those that wait for the connection, and those that wait for room."""
        puts = [self.client.put(b"k", b"") for _ in range(SESSION_CALLS_MAX + 100)]
        [link] = self.client._links.values()
        partition = self.client._partitions[0]
        self.assertEqual((len(link.connecting._waiting), len(partition._rooms)), (SESSION_CALLS_MAX, 100))
        for put in puts[::-1]:
            put.cancel()
            self.failureResultOf(put, CancelledError)
        self.assertEqual((len(link.connecting._waiting), len(partition._rooms)), (0, 0))
        self.assertEqual(partition.session.floor, SESSION_CALLS_MAX + 1)
        # The connection is still being made, and whoever comes next waits for that one.
        got = self.client.get(b"k")
        self.assertEqual(len(self.reactor.tcpClients), 1)
        self.close()
        self.failureResultOf(got, Abandoned)

    def test_closed_for_good(self) -> None:
        self.close()
        self.failureResultOf(self.client.get(b"k"), Abandoned)
        self.failureResultOf(self.client.put(b"k", b"v"), Abandoned)
        self.assertEqual(self.reactor.tcpClients, [])

    def test_bounds_are_checked_before_anything_is_sent(self) -> None:
        client, key, value = self.client, b"k" * (KEY_BYTES_MAX + 1), b"v" * (VALUE_BYTES_MAX + 1)
        wrong: list[Deferred[Any]] = [
            *(client.get(b""), client.get(key), client.delete(b""), client.delete(key)),
            *(client.put(b"", b""), client.put(key, b""), client.put(b"k", value)),
            *(client.swap(b"", b""), client.swap(key, b""), client.swap(b"k", value)),
            *(client.scan(key, b"z"), client.scan(b"a", key)),
        ]
        for deferred in wrong:
            self.failureResultOf(deferred, InvalidArgument)
        self.assertEqual(self.successResultOf(client.scan(b"z", b"a")), [])
        self.assertEqual(self.reactor.tcpClients, [])


class PatienceTests(SynchronousTestCase):
    """Connections to one address of a cluster: each that ends in silence makes the next one wait longer."""

    def test_silence_makes_patient_and_nothing_else_does(self) -> None:
        reactor = MemoryReactorClock()
        greetings: list[Box] = []
        link = Link(ReactorDriver(reactor), ("127.0.0.1", 3777), FIRST_TRY_SECONDS, greetings.append)
        for seconds in (FIRST_TRY_SECONDS, 2 * FIRST_TRY_SECONDS, TRY_SECONDS_MAX, TRY_SECONDS_MAX):
            connecting = Deferred.fromCoroutine(link.connecting.wait())
            protocol, transport = self.connection(reactor)
            reactor.advance(seconds - 0.01)
            self.assertFalse(transport.disconnecting)
            reactor.advance(0.02)
            self.assertTrue(transport.disconnecting)
            protocol.connectionLost(Failure(ConnectionLost()))
            self.failureResultOf(connecting, ConnectionLost)
        for _ in range(2):
            connecting = Deferred.fromCoroutine(link.connecting.wait())
            protocol, transport = self.connection(reactor)
            protocol.connectionLost(Failure(ConnectionLost()))
            self.failureResultOf(connecting, ConnectionLost)
        self.assertEqual(protocol.try_seconds, FIRST_TRY_SECONDS)
        self.assertEqual((greetings, link.connection), ([], None))

    def connection(self, reactor: MemoryReactorClock) -> tuple[CallerProtocol, StringTransport]:
        protocol: Any = reactor.tcpClients[-1][2].buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        reactor.advance(0)
        return protocol, transport
