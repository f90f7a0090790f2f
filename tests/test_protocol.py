"""The base protocol: bounds on time and memory, backpressure, and writing through to the socket."""

import random
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.error import ConnectionAborted
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from madkv.limits import (
    BOX_BYTES_MAX,
    BOX_FIELDS_MAX,
    BOX_SECONDS_MAX,
    MIB,
)
from madkv.raft.configuration import Member
from madkv.server.service import ServerFactory
from madkv.server.tap import replica_in_memory
from madkv.storage.memory import MemoryStore
from madkv.wire import codec, protocol
from madkv.wire.boxes import Box, blob, field, join_blob, parse_boxes
from madkv.wire.protocol import FLUSH_BYTES, SLICE_SECONDS, BoxProtocol

READ_BYTES = 64 * 1024


def box(number: int, size: int = 0) -> bytes:
    return field(b"n", b"%d" % number) + blob(b"fill", b"f" * size) + b"\0\0"


class Collector(BoxProtocol):
    """Keeps the boxes that it gets; what it does with one can be replaced."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.got: list[int] = []
        self.then: Callable[[int], None] = lambda number: None

    def box_received(self, box: Box) -> None:
        number = int(box[b"n"])
        self.got.append(number)
        self.then(number)


class BoxProtocolTest(SynchronousTestCase):
    """The base protocol on a transport that keeps what is written."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = StringTransport()
        self.protocol = Collector(self.clock)
        self.protocol.makeConnection(self.transport)

    def tearDown(self) -> None:
        self.protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_boxes_in_any_pieces(self) -> None:
        data = box(1) + box(2, 300) + box(3)
        for byte in data:
            self.protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.protocol.got, [1, 2, 3])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_much_at_once_takes_turns_with_others(self) -> None:
        """Each box takes half a slice: two are handled in a turn, and nothing is read before all are."""

        def take_time(number: int) -> None:
            self.clock.rightNow += SLICE_SECONDS * 0.6

        self.protocol.then = take_time
        self.protocol.dataReceived(b"".join(box(number) for number in range(5)) + box(5)[:3])
        self.assertEqual(self.protocol.got, [0, 1])
        self.assertEqual(self.transport.producerState, "paused")
        self.clock.advance(0)  # the turns that follow are all due by then, by this clock
        self.assertEqual(self.protocol.got, [0, 1, 2, 3, 4])
        self.assertEqual(self.transport.producerState, "producing")
        self.protocol.dataReceived(box(5)[3:])
        self.assertEqual(self.protocol.got[-1], 5)

    def test_between_turns_the_connection_may_go(self) -> None:
        def take_time(number: int) -> None:
            self.clock.rightNow += SLICE_SECONDS * 1.1

        self.protocol.then = take_time
        self.protocol.dataReceived(box(1) + box(2))
        self.protocol.connectionLost()
        self.clock.advance(1)
        self.assertEqual(self.protocol.got, [1])

    def count_looks(self) -> list[int]:
        """A list that gets a number for each time that what has arrived is parsed."""
        looks: list[int] = []

        def counted(data: bytes, boxes: deque[Box], bytes_max: int) -> int:
            looks.append(len(data))
            return parse_boxes(data, boxes, bytes_max)

        self.patch(protocol, "parse_boxes", counted)
        return looks

    def test_a_long_field_is_not_looked_at_for_every_byte(self) -> None:
        looks = self.count_looks()
        for byte in box(1, 3000):
            self.protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.protocol.got, [1])
        self.assertLess(len(looks), 20)

    def test_a_long_box_is_not_parsed_for_every_field(self) -> None:
        looks = self.count_looks()
        data = box(1, MIB) + box(2)
        for start in range(0, len(data), READ_BYTES):
            self.protocol.dataReceived(data[start : start + READ_BYTES])
        self.assertEqual(self.protocol.got, [1, 2])
        self.assertEqual(looks, [READ_BYTES, len(data)])

    def test_a_box_of_many_fields_is_refused_before_it_ends(self) -> None:
        for _ in range(BOX_FIELDS_MAX + 2):
            self.assertFalse(self.transport.disconnecting)
            self.protocol.dataReceived(field(b"n", b""))
        self.assertTrue(self.transport.disconnecting)

    def test_half_a_box_and_silence(self) -> None:
        self.protocol.dataReceived(box(1) + box(2)[:-1])
        self.clock.advance(BOX_SECONDS_MAX - 0.1)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(0.2)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.protocol.got, [1])

    def test_trickling_bytes_do_not_prolong_a_box(self) -> None:
        for byte in box(1, 100)[:40]:
            self.protocol.dataReceived(bytes([byte]))
            self.clock.advance(1)
        self.assertTrue(self.transport.disconnecting)

    def test_slow_but_whole_boxes_go_on(self) -> None:
        halves = [half for number in range(20) for half in (box(number)[:3], box(number)[3:])]
        self.protocol.dataReceived(halves[0])
        for late, early in zip(halves[1::2], [*halves[2::2], b""], strict=True):
            self.clock.advance(BOX_SECONDS_MAX - 1)
            self.protocol.dataReceived(late + early)
        self.assertEqual(self.protocol.got, list(range(20)))
        self.clock.advance(BOX_SECONDS_MAX * 10)
        self.assertFalse(self.transport.disconnecting, "nothing is half received, so silence may last")

    def test_a_half_box_does_not_age_while_we_do_not_read(self) -> None:
        self.protocol.dataReceived(box(1)[:5])
        self.protocol.hold()
        self.clock.advance(BOX_SECONDS_MAX * 2)
        self.assertFalse(self.transport.disconnecting)
        self.protocol.release()
        self.clock.advance(BOX_SECONDS_MAX + 0.1)
        self.assertTrue(self.transport.disconnecting)

    def test_an_endless_box_stays_within_bounds(self) -> None:
        piece = field(b"n", b"v" * 60_000)
        sent = 0
        while not self.transport.disconnecting:
            self.protocol.dataReceived(piece)
            sent += len(piece)
            self.assertLessEqual(len(self.protocol._rest), BOX_BYTES_MAX + READ_BYTES)
        self.assertLessEqual(sent, BOX_BYTES_MAX + 2 * len(piece))
        self.assertEqual(self.protocol._rest, b"")

    def test_garbage_is_named(self) -> None:
        for data, word in (
            (b"\x16\x03\x01\x02\x00\x01", "TLS"),
            (b"GET / HTTP/1.1\r\n", "HTTP"),
            (b"SSH-2.0-x\r\n", "SSH"),
            (random.Random(1).randbytes(100_000), "not an AMP box"),
            (random.Random(2).randbytes(3), "not an AMP box"),
            (b"\0\0", "an empty box"),
            (field(b"a", b"b") * 1000 + b"\0\0", "fields"),
        ):
            lines: list[str] = []
            protocol, transport = Collector(self.clock), StringTransport()
            protocol.makeConnection(transport)
            protocol.drop, real_drop = lambda why, lines=lines: lines.append(why), protocol.drop  # type: ignore
            protocol.dataReceived(data)
            self.assertEqual(len(lines), 1)
            self.assertIn(word, lines[0])
            real_drop(lines[0])
            self.assertTrue(transport.disconnecting)
            protocol.connectionLost()

    def test_hold_and_release(self) -> None:
        self.protocol.then = lambda number: self.protocol.hold() if number % 2 == 0 else None
        self.protocol.dataReceived(b"".join(map(box, range(5))))
        self.assertEqual(self.protocol.got, [0])
        self.assertEqual(self.transport.producerState, "paused")
        self.protocol.release()
        self.assertEqual(self.protocol.got, [0, 1, 2])
        self.assertEqual(self.transport.producerState, "paused")
        self.protocol.release()
        self.assertEqual(self.protocol.got, [0, 1, 2, 3, 4])
        self.protocol.release()
        self.assertEqual(self.transport.producerState, "producing")
        self.protocol.release()
        self.assertEqual(self.transport.producerState, "producing")

    def test_a_release_while_handling(self) -> None:
        def then(number: int) -> None:
            self.protocol.hold()
            self.protocol.release()

        self.protocol.then = then
        self.protocol.dataReceived(b"".join(map(box, range(5))))
        self.assertEqual(self.protocol.got, list(range(5)))
        self.assertEqual(self.transport.producerState, "producing")

    def test_who_does_not_read_is_not_read_from(self) -> None:
        self.protocol.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.protocol.dataReceived(box(1))
        self.assertEqual(self.protocol.got, [])
        self.protocol.hold()
        self.protocol.resumeProducing()
        self.assertEqual((self.protocol.got, self.transport.producerState), ([], "paused"))
        self.protocol.release()
        self.assertEqual((self.protocol.got, self.transport.producerState), ([1], "producing"))

    def test_answers_leave_together_in_order(self) -> None:
        writes: list[int] = []
        write = self.transport.write
        self.transport.write = lambda data: (writes.append(len(data)), write(data))  # type: ignore
        self.protocol.then = lambda number: self.protocol.send(box(number, 1000))
        self.protocol.dataReceived(b"".join(map(box, range(100))))
        self.assertEqual(self.transport.value(), b"".join(box(number, 1000) for number in range(100)))
        self.assertLessEqual(max(writes), FLUSH_BYTES + 2000)
        self.assertLessEqual(len(writes), 3)

    def test_nothing_is_sent_or_handled_when_the_connection_is_gone(self) -> None:
        self.protocol.hold()
        self.protocol.dataReceived(box(1) + box(2)[:3])
        self.protocol.connectionLost()
        self.protocol.release()
        self.protocol.resumeProducing()
        self.protocol.send(box(3))
        self.protocol.drop("again")
        self.assertEqual((self.protocol.got, self.transport.value()), ([], b""))
        self.assertFalse(self.transport.disconnecting)


class SocketTest(SynchronousTestCase):
    """A real connection on a reactor of the test's own, so that the system's buffers really fill."""

    def setUp(self) -> None:
        self.reactor = SelectReactor()
        self.clock = Clock()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.peer = socket.create_connection(listening.getsockname())
            self.socket, address = listening.accept()
        self.addCleanup(self.close)
        self.socket.setblocking(False)
        self.peer.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        self.address = address

    def connect(self, protocol: BoxProtocol) -> Any:
        transport = tcp.Server(self.socket, protocol, self.address, None, 0, self.reactor)  # type: ignore[arg-type]
        protocol.makeConnection(transport)
        return transport

    def close(self) -> None:
        self.peer.close()
        self.socket.close()
        for selectable in {*self.reactor.removeAll(), *self.reactor._internalReaders}:
            selectable.connectionLost(Failure(ConnectionAborted()))

    def read(self, most: int = READ_BYTES) -> bytes:
        try:
            return self.peer.recv(most)
        except BlockingIOError:
            return b""

    def test_what_was_not_sent_goes_with_the_connection(self) -> None:
        """Transport and protocol hold each other: what is in them may stay until the garbage collector comes."""
        protocol = Collector(self.clock)
        transport = self.connect(protocol)
        protocol.send(bytes(8 * 1024 * 1024))
        self.assertGreater(protocol.unsent_bytes, 4 * 1024 * 1024)
        transport.connectionLost(Failure(ConnectionAborted()))
        held = len(transport.dataBuffer) + sum(map(len, transport._tempDataBuffer))
        self.assertEqual((held, transport._tempDataLen, protocol.unsent_bytes), (0, 0, 0))

    def test_what_of_twisted_the_write_through_relies_on(self) -> None:
        transport = self.connect(Collector(self.clock))
        self.assertEqual((transport.dataBuffer, transport._tempDataLen, transport.connected), (b"", 0, 1))
        self.assertEqual(transport.writeSomeData(b"abc"), 3)
        transport.write(b"def")
        self.assertEqual(transport._tempDataLen, 3)
        self.assertEqual(self.read(), b"abc")

    def test_small_boxes_leave_without_a_turn_of_the_reactor(self) -> None:
        protocol = Collector(self.clock)
        self.connect(protocol)
        protocol.send(box(1))
        self.assertEqual(self.read(), box(1))
        self.assertEqual(self.reactor.getWriters(), [])

    def test_order_is_kept_when_the_buffers_fill(self) -> None:
        protocol = Collector(self.clock)
        self.connect(protocol)
        sent = [box(number, size) for number, size in enumerate([10, 300_000, 0, 70_000, 5, MIB, 1, 2, 200_000] * 3)]
        received = bytearray()
        for number, data in enumerate(sent):
            protocol.send(data)
            if number % 3 == 2:
                self.assertTrue(self.reactor.getWriters(), "the buffers have not filled: this test shows nothing")
                received += self.read(number * 40_000)
                self.reactor.doIteration(0)
        while len(received) < sum(map(len, sent)):
            self.reactor.doIteration(0)
            piece = self.read()
            self.assertTrue(piece or self.reactor.getWriters())
            received += piece
        self.assertEqual(bytes(received), b"".join(sent))
        protocol.send(box(99))
        self.assertEqual(self.read(), box(99), "once all is read, boxes are written through again")

    def test_a_peer_that_does_not_read(self) -> None:
        """What waits for it stays bounded however much it asks for, and it gets all of it once it reads."""
        store = MemoryStore()
        store.put(b"k", b"v" * MIB)
        replica = replica_in_memory(store, Member(0, bytes(16)), self.clock, self.fail)
        replica.start()
        self.addCleanup(replica.stop)
        factory = ServerFactory(self.clock, replica, b"s0", b"boot")
        protocol = factory.buildProtocol(None)
        transport = self.connect(protocol)
        count = 40
        requests = b"".join(codec.request(number, codec.GET, field(b"key", b"k")) for number in range(count))
        self.assertEqual(self.peer.send(requests), len(requests))
        for _ in range(20):
            self.reactor.doIteration(0)
        self.assertNotIn(transport, self.reactor.getReaders())
        self.assertLess(len(transport.dataBuffer) + transport._tempDataLen, 3 * MIB)
        self.assertGreater(len(protocol._boxes), count // 2)
        boxes: list[Box] = []
        received = bytearray()
        while len(received) < count * MIB or not received.endswith(b"\0\0"):
            self.reactor.doIteration(0)
            received += self.read(MIB)
        self.assertEqual(parse_boxes(bytes(received), boxes), len(received))
        self.assertEqual([int(answer[b"_answer"]) for answer in boxes], list(range(count)))
        self.assertEqual({len(join_blob(answer, b"value") or b"") for answer in boxes}, {MIB})
        self.assertIn(transport, self.reactor.getReaders())

    def test_a_peer_that_is_gone(self) -> None:
        protocol = Collector(self.clock)
        self.connect(protocol)
        self.peer.close()
        for _ in range(10):
            protocol.send(box(1, 1000))
        self.reactor.doIteration(0)
        self.assertFalse(protocol.open)
        protocol.send(box(2))
