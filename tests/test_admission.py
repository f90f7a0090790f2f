"""Which connections a port takes and lets go of: by number, by what they hold, and by their silence."""

import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.error import ConnectionAborted
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from madkv.limits import (
    BOX_SECONDS_MAX,
    HANDSHAKE_SECONDS_MAX,
    HOLDERS_AT_ANY_PACE,
    IDLE_SECONDS_MAX,
    KIB,
    LONG_BOX_BYTES,
    LONG_BOX_BYTES_PER_SECOND,
    LONG_BOX_SECONDS_AHEAD,
    SAME_LINE_SECONDS,
    SWEEP_SECONDS,
    UNREAD_SECONDS_MAX,
    UNSENT_BYTES_MAX,
)
from madkv.wire.admission import Admission
from madkv.wire.boxes import Box, blob, field
from madkv.wire.lines import FirstLine
from madkv.wire.protocol import BoxProtocol
from tests.peers import LogCase

CONNECTIONS_MAX = 10
BYTES_MAX = 1000 * KIB
PART = field(b"f", bytes(16 * KIB))
"""A box may have many of these."""


class Taker(BoxProtocol):
    """Takes whatever box comes."""

    def box_received(self, box: Box) -> None:
        pass


def box(size: int = 0) -> bytes:
    return field(b"n", b"1") + blob(b"fill", b"f" * size) + b"\0\0"


class AdmissionTest(LogCase):
    """A port with room for ten connections and a thousand KiB."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.admission = Admission(self.clock, CONNECTIONS_MAX, BYTES_MAX)
        self.open: list[Taker] = []

    def tearDown(self) -> None:
        for protocol in self.open:
            self.close(protocol)
        self.assertEqual((self.admission.count, self.admission.held_bytes), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def connect(self) -> Taker:
        protocol = Taker(self.clock, self.admission)
        protocol.makeConnection(StringTransport())
        self.open.append(protocol)
        return protocol

    def close(self, protocol: Taker) -> None:
        if protocol.open:
            protocol.connectionLost()

    def is_closing(self, protocol: Taker) -> bool:
        return bool(protocol.transport.disconnecting)

    # --- Number -----------------------------------------------------------------------------------------------------

    def test_no_more_connections_than_there_is_room_for(self) -> None:
        for _ in range(CONNECTIONS_MAX):
            self.assertTrue(self.admission.admits())
            self.connect()
        self.assertFalse(self.admission.admits())
        self.close(self.open[3])
        self.assertTrue(self.admission.admits())

    def test_refusals_are_logged_once_a_second(self) -> None:
        for _ in range(CONNECTIONS_MAX):
            self.connect()
        for _ in range(1000):
            self.admission.admits()
        self.assertEqual(self.logged("refused a connection: there are 10, and no more are taken"), 1)
        self.clock.advance(SAME_LINE_SECONDS)
        self.admission.admits()
        self.assertEqual(self.logged("refused a connection"), 2)
        self.assertEqual(self.logged("(999 more since the last such line)"), 1)

    def test_closings_are_logged_once_a_second(self) -> None:
        for _ in range(1000):
            protocol = self.connect()
            protocol.dataReceived(b"garbage")
            self.assertTrue(self.is_closing(protocol))
            self.close(protocol)
        self.assertEqual(self.logged("closed the connection of"), 1)
        self.assertEqual(self.logged("not an AMP box"), 1)
        self.clock.advance(SAME_LINE_SECONDS)
        self.connect().dataReceived(b"\0\0")
        self.assertEqual(self.logged("an empty box (999 more since the last such line)"), 1)

    def test_what_is_said_first_is_logged_and_what_comes_again_is_not(self) -> None:
        lines = FirstLine(self.clock, Logger(), 3)
        for _ in range(2):
            for number in range(3):
                lines.say(number, f"line {number} of somebody")
        self.assertEqual(self.lines, [f"line {number} of somebody" for number in range(3)])
        for number in range(1000):
            lines.say(number % 9, f"another line {number}")
        self.assertEqual(self.logged("another line"), 1)
        self.clock.advance(SAME_LINE_SECONDS)
        lines.say(9, "the last one")
        self.assertEqual(self.logged("the last one ("), 1)

    # --- Bytes ------------------------------------------------------------------------------------------------------

    def test_those_that_got_on_with_nothing_for_longest_go_first(self) -> None:
        first, second, third = (self.connect() for _ in range(3))
        for protocol in (first, second, third):
            protocol.dataReceived(box(300 * KIB)[:-10])
        first.dataReceived(box(300 * KIB)[-10:] + box(300 * KIB)[:-10])  # It gets on: a box of it was whole.
        self.assertGreater(self.admission.held_bytes, 900 * KIB)
        fourth = self.connect()
        fourth.dataReceived(box(200 * KIB)[:-10])
        self.assertEqual(
            [self.is_closing(each) for each in (first, second, third, fourth)], [False, True, False, False]
        )
        self.assertLess(self.admission.held_bytes, BYTES_MAX)
        self.assertEqual(self.logged("all together had too much here"), 1)
        third.dataReceived(box(300 * KIB)[-10:])
        self.assertFalse(self.is_closing(third))

    def test_one_that_has_its_boxes_handled_holds_nothing(self) -> None:
        protocol = self.connect()
        protocol.dataReceived(box(300 * KIB)[:-1])
        self.assertGreater(self.admission.held_bytes, 300 * KIB)
        protocol.dataReceived(b"\0" + box() * 10)
        self.assertEqual(self.admission.held_bytes, 0)

    def test_boxes_of_several_reads_that_wait_are_held(self) -> None:
        """TLS gives what one read of the socket has brought record by record, also to one that reads nothing now."""
        protocol = self.connect()
        protocol.hold()
        for _ in range(4):
            protocol.dataReceived(box(16 * KIB))
        self.assertGreater(self.admission.held_bytes, 64 * KIB)
        self.assertLess(self.admission.held_bytes, 80 * KIB)
        protocol.release()
        self.assertEqual(self.admission.held_bytes, 0)

    def test_boxes_that_wait_are_held(self) -> None:
        """Many tiny ones take more memory than their bytes."""
        protocol = self.connect()
        protocol.hold()
        protocol.dataReceived(box() * 1000)
        self.assertGreater(self.admission.held_bytes, 300 * KIB)
        protocol.release()
        self.assertEqual(self.admission.held_bytes, 0)

    def test_long_boxes_on_many_connections_come_in_turns(self) -> None:
        few = [self.connect() for _ in range(HOLDERS_AT_ANY_PACE)]
        for protocol in few:
            for _ in range(3):
                protocol.dataReceived(PART)
        self.assertEqual({each.transport.producerState for each in few}, {"producing"})
        for protocol in few:
            protocol.dataReceived(b"\0\0")
        self.assertEqual(self.admission.held_bytes, 0)

    def test_those_with_short_boxes_do_not_wait_for_them(self) -> None:
        many = [self.connect() for _ in range(HOLDERS_AT_ANY_PACE + 2)]
        for protocol in many:
            for _ in range(LONG_BOX_BYTES * 2 // len(PART)):
                protocol.dataReceived(PART)
        late = many[-1]
        for _ in range(20):
            late.dataReceived(PART * 2)
        self.assertEqual(late.transport.producerState, "paused")
        short = many[0]
        short.dataReceived(b"\0\0" + box() * 3)
        self.assertEqual(short.transport.producerState, "producing")
        self.clock.advance(40 * len(PART) / LONG_BOX_BYTES_PER_SECOND + LONG_BOX_SECONDS_AHEAD)
        self.assertEqual(late.transport.producerState, "producing")

    # --- Silence ----------------------------------------------------------------------------------------------------

    def test_who_never_says_anything(self) -> None:
        silent, speaking = self.connect(), self.connect()
        speaking.dataReceived(box())
        self.clock.pump([SWEEP_SECONDS] * int((HANDSHAKE_SECONDS_MAX - 1) // SWEEP_SECONDS))
        self.assertFalse(self.is_closing(silent))
        self.clock.pump([SWEEP_SECONDS] * 2)
        self.assertTrue(self.is_closing(silent))
        self.assertEqual(self.logged("it says nothing for 30 seconds"), 1)
        self.assertFalse(self.is_closing(speaking))

    def test_who_says_nothing_any_more(self) -> None:
        silent, speaking = self.connect(), self.connect()
        silent.dataReceived(box())
        for _ in range(int(IDLE_SECONDS_MAX // SWEEP_SECONDS)):
            self.assertFalse(self.is_closing(silent))
            speaking.dataReceived(box())
            self.clock.advance(SWEEP_SECONDS)
        self.clock.pump([SWEEP_SECONDS] * 2)
        self.assertTrue(self.is_closing(silent))
        self.assertFalse(self.is_closing(speaking))

    def test_half_a_box_is_not_waited_for(self) -> None:
        protocol = self.connect()
        protocol.dataReceived(box(100)[:-1])
        self.clock.pump([1.0] * int(BOX_SECONDS_MAX))
        self.assertTrue(self.is_closing(protocol))

    def test_a_closed_connection_is_not_asked_for_anything_more(self) -> None:
        protocol = self.connect()
        protocol.hold()
        protocol.dataReceived(box() * 3)
        protocol.abandon()
        protocol.release()
        protocol.send(box())
        protocol.dataReceived(box())
        self.assertTrue(self.is_closing(protocol))


class UnreadTest(LogCase):
    """A client that does not read, on real sockets, so that the system's buffers really fill."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor = SelectReactor()
        self.clock = Clock()
        self.admission = Admission(self.clock, CONNECTIONS_MAX)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.peer = socket.create_connection(listening.getsockname())
            self.socket, address = listening.accept()
        self.socket.setblocking(False)
        self.peer.setblocking(False)
        self.protocol = Taker(self.clock, self.admission)
        transport: Any = tcp.Server(self.socket, self.protocol, address, None, 0, self.reactor)  # type: ignore[arg-type]
        self.protocol.makeConnection(transport)
        self.addCleanup(self.close)

    def close(self) -> None:
        self.peer.close()
        self.socket.close()
        for selectable in {*self.reactor.removeAll(), *self.reactor._internalReaders}:
            selectable.connectionLost(Failure(ConnectionAborted()))
        if self.protocol.open:
            self.protocol.connectionLost()

    def read(self) -> None:
        """What there is, and let more be sent."""
        for _ in range(3):
            try:
                self.peer.recv(256 * KIB)
            except BlockingIOError:
                pass
            self.reactor.doIteration(0)

    def sweep(self, seconds: float, *, reading: bool) -> None:
        self.protocol.dataReceived(box())  # It has something to say all the while.
        for _ in range(int(seconds // SWEEP_SECONDS)):
            if reading:
                self.read()
            self.clock.advance(SWEEP_SECONDS)

    def test_who_reads_nothing_is_closed_after_a_while(self) -> None:
        self.protocol.send(bytes(UNSENT_BYTES_MAX))
        self.sweep(UNREAD_SECONDS_MAX - SWEEP_SECONDS, reading=False)
        self.assertFalse(self.protocol._is_abandoned)
        self.sweep(2 * SWEEP_SECONDS, reading=False)
        self.assertTrue(self.protocol._is_abandoned)
        self.assertEqual(self.logged("it reads nothing for 60 seconds"), 1)

    def test_who_reads_slowly_is_not(self) -> None:
        self.protocol.send(bytes(UNSENT_BYTES_MAX))
        self.sweep(2 * UNREAD_SECONDS_MAX, reading=True)
        self.assertGreater(self.protocol.unsent_bytes, 0)
        self.assertFalse(self.protocol._is_abandoned)

    def test_answers_for_one_that_does_not_read_are_bounded(self) -> None:
        """They were recorded where calls have a session: whoever asks again is told."""
        for _ in range(2 * UNSENT_BYTES_MAX // BYTES_MAX):
            self.protocol.send(bytes(BYTES_MAX))
        self.assertTrue(self.protocol._is_abandoned)
        self.assertEqual(self.logged("bytes wait for it to read them"), 1)
        self.assertLessEqual(self.protocol.unsent_bytes, UNSENT_BYTES_MAX + BYTES_MAX)

    def test_what_it_does_not_read_is_held(self) -> None:
        self.protocol.send(bytes(UNSENT_BYTES_MAX))
        self.assertEqual(self.admission.held_bytes, self.protocol.unsent_bytes)
        self.assertGreater(self.admission.held_bytes, UNSENT_BYTES_MAX // 2)
        while self.protocol.unsent_bytes:
            self.read()
        self.protocol.dataReceived(box())
        self.assertEqual(self.admission.held_bytes, 0)
