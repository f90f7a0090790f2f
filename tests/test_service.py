"""The server's side of a connection: what each call gets, bad ones too, and bounds on calls in flight."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import Busy
from madkv.limits import (
    CALL_BYTES_MAX,
    CALL_BYTES_PER_CONNECTION_MAX,
    CALLS_MAX,
    CALLS_PER_CONNECTION_MAX,
    MIB,
    SCAN_CURSOR_SECONDS_MAX,
    SESSIONS_PER_CONNECTION_MAX,
)
from madkv.operations import Operation
from madkv.raft.configuration import Member
from madkv.server.replica import Answered, Replica
from madkv.server.service import ServerFactory, ServerProtocol
from madkv.server.tap import replica_in_memory
from madkv.storage.memory import MemoryStore
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field, join_blob, parse_boxes


def raise_again(error: Exception) -> None:
    raise error


def started_replica(store: MemoryStore, clock: Clock) -> Replica:
    replica = replica_in_memory(store, Member(0, bytes(16)), clock, raise_again)
    replica.start()
    return replica


class LaterReplica:
    """A real replica whose answers come when the test says so, as those of a larger group would."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._replica = started_replica(self.store, Clock())
        self.waiting: deque[Callable[[], None]] = deque()
        self.fails = False

    def propose(self, operation: Operation, answered: Answered) -> None:
        self._hand_over(lambda: self._replica.propose(operation, answered))

    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        self._hand_over(lambda: self._replica.read(key, released))

    def _hand_over(self, work: Callable[[], None]) -> None:
        if self.fails:
            raise RuntimeError("the replica is broken")
        self.waiting.append(work)

    def go_on(self, count: int = 1) -> None:
        for _ in range(count):
            self.waiting.popleft()()


class RefusingReplica:
    """Keeps every operation from being applied, as one that is no leader does."""

    def propose(self, operation: Operation, answered: Answered) -> None:
        answered(Busy("not now"))

    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        released(Busy("not now"))


class Client:
    """The other end of a server's connection."""

    def __init__(self, factory: ServerFactory, *certified: str) -> None:
        """`certified`: the names in its certificate; without any it has no TLS."""
        self.transport: Any = StringTransport()
        if certified:
            self.transport.certified_names = frozenset(certified)
        self.protocol: ServerProtocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        self._tag = 0

    def send(self, command: bytes, fields: bytes = b"") -> bytes:
        self._tag += 1
        self.protocol.dataReceived(codec.request(self._tag, command, fields))
        return b"%d" % self._tag

    def answers(self) -> list[Box]:
        """What has come since the last time."""
        boxes: list[Box] = []
        assert parse_boxes(self.transport.value(), boxes) == len(self.transport.value())
        self.transport.clear()
        return boxes

    def call(self, command: bytes, fields: bytes = b"") -> Box:
        tag = self.send(command, fields)
        (answer,) = self.answers()
        assert answer.get(b"_answer", answer.get(b"_error")) == tag
        return answer


KEY = field(b"key", b"k")
VALUE = blob(b"value", b"v")
LARGE_PUT = KEY + blob(b"value", b"v" * MIB)


class ServerProtocolTest(SynchronousTestCase):
    """Calls on a server whose replica answers at once."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore()
        self.replica = started_replica(self.store, self.clock)
        self.factory = ServerFactory(self.clock, self.replica, b"s0", b"boot")
        self.client = Client(self.factory)

    def tearDown(self) -> None:
        for protocol in list(self.factory.connections):
            protocol.connectionLost()
        self.replica.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(
            (self.factory.in_flight.count, self.factory.in_flight.size_bytes, len(self.factory.cuts)), (0, 0, 0)
        )
        self.assertEqual(self.store._undo_bytes, 0)

    def refused(self, code: bytes, words: str, command: bytes, fields: bytes = b"") -> None:
        """One line that holds these words, and the connection goes on."""
        answer = self.client.call(command, fields)
        self.assertEqual(answer.get(b"_error_code"), code, answer)
        description = answer[b"_error_description"].decode()
        self.assertIn(words, description)
        self.assertNotIn("\n", description)
        self.assertNotIn(b"_error", self.client.call(codec.GET, KEY))
        self.assertFalse(self.client.transport.disconnecting)

    def test_calls(self) -> None:
        call = self.client.call
        hello = call(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
        self.assertEqual((hello[b"node"], hello[b"boot"], hello[b"version"]), (b"s0", b"boot", b"1"))
        self.assertEqual(call(codec.PUT, KEY + VALUE)[b"found"], b"False")
        self.assertEqual(call(codec.GET, KEY)[b"value"], b"v")
        self.assertEqual(call(codec.SWAP, KEY + blob(b"value", b"w"))[b"value"], b"v")
        self.assertEqual(call(codec.DELETE, KEY)[b"found"], b"True")
        self.assertNotIn(b"value", call(codec.GET, KEY))
        self.assertNotIn(b"value", call(codec.SWAP, KEY + VALUE))
        scan = call(codec.SCAN, field(b"start", b"") + field(b"end", b"z"))
        self.assertEqual(codec.decode_pairs(scan[b"pairs"]), [(b"k", b"v")])
        self.assertNotIn(b"cursor", scan)
        session = int(call(codec.OPEN_SESSION, field(b"client_id", b"c" * 16))[b"session"])
        put = KEY + VALUE + codec.session_fields(session, 1, 1)
        self.assertEqual(call(codec.PUT, put)[b"found"], b"True")
        call(codec.DELETE, KEY)
        self.assertEqual(call(codec.PUT, put)[b"found"], b"True", "a retry gets the recorded answer")
        self.assertNotIn(b"value", call(codec.GET, KEY))
        self.assertEqual(set(call(codec.CLOSE_SESSION, codec.integer(b"session", session))), {b"_answer"})
        self.assertEqual(call(codec.PUT, put)[b"_error_code"], b"UNKNOWN_SESSION")

    def test_missing_arguments(self) -> None:
        end, sequence = field(b"end", b""), codec.integer(b"sequence", 1)
        for command, fields, missing in (
            (codec.PUT, b"", "key"),
            (codec.PUT, KEY, "value"),
            (codec.SWAP, VALUE, "key"),
            (codec.SWAP, KEY, "value"),
            (codec.GET, b"", "key"),
            (codec.DELETE, VALUE, "key"),
            (codec.SCAN, end, "start"),
            (codec.SCAN, field(b"start", b""), "end"),
            (codec.HELLO, b"", "version"),
            (codec.OPEN_SESSION, b"", "client_id"),
            (codec.CLOSE_SESSION, b"", "session"),
            (codec.PUT, KEY + VALUE + codec.integer(b"session", 1), "sequence"),
            (codec.PUT, KEY + VALUE + codec.integer(b"session", 1) + sequence, "floor"),
        ):
            self.refused(b"INVALID_ARGUMENT", f"'{missing}' is missing", command, fields)
        self.assertEqual(len(self.store), 0)

    def test_malformed_arguments(self) -> None:
        def key(size: int) -> bytes:
            return field(b"key", b"k" * size)

        for command, fields, words in (
            (codec.GET, key(0), "a key has 1 to 511 bytes; this one has 0"),
            (codec.GET, key(512), "this one has 512"),
            (codec.PUT, key(512) + VALUE, "this one has 512"),
            (codec.SWAP, key(0) + VALUE, "this one has 0"),
            (codec.DELETE, key(65_535), "this one has 65,535"),
            (codec.PUT, KEY + blob(b"value", b"v" * (MIB + 1)), "a value has at most 1,048,576 bytes"),
            (codec.SCAN, field(b"start", b"") + field(b"end", b"k" * 512), "bounds of a scan"),
            (codec.SCAN, field(b"start", b"") + field(b"end", b"") + field(b"cursor", b"x"), "whole number"),
            (codec.HELLO, field(b"version", b"one"), "whole number"),
            (codec.OPEN_SESSION, field(b"client_id", b"c" * 15), "a client id has 16 bytes"),
            (codec.CLOSE_SESSION, field(b"session", b"-1"), "whole number"),
            (codec.DELETE, KEY + codec.session_fields(0, 1, 1), "do not fit together"),
            (codec.DELETE, KEY + codec.integer(b"sequence", 1), "go with 'session'"),
            (codec.PUT, KEY + field(b"value", b"v") + field(b"value.1", b"w"), "split wrongly"),
        ):
            self.refused(b"INVALID_ARGUMENT", words, command, fields)
        self.assertEqual(len(self.store), 0)
        for size in (1, 511):
            self.assertEqual(self.client.call(codec.PUT, key(size) + blob(b"value", b"v" * MIB))[b"found"], b"False")
            self.assertEqual(join_blob(self.client.call(codec.GET, key(size)), b"value"), b"v" * MIB)

    def test_other_refusals(self) -> None:
        self.refused(b"VERSION_MISMATCH", "version 1", codec.HELLO, codec.integer(b"version", 2))
        self.refused(b"UNKNOWN_SESSION", "session 7", codec.DELETE, KEY + codec.session_fields(7, 1, 1))
        bounds = field(b"start", b"") + field(b"end", b"z")
        self.refused(b"SCAN_EXPIRED", "scan again", codec.SCAN, bounds + codec.integer(b"cursor", 1))

    def test_a_connection_opens_sessions_for_a_bounded_number_of_clients(self) -> None:
        for number in range(SESSIONS_PER_CONNECTION_MAX):
            self.client.call(codec.OPEN_SESSION, field(b"client_id", b"%016d" % number))
        self.refused(b"BUSY", "at most 64 clients", codec.OPEN_SESSION, field(b"client_id", b"x" * 16))

    def test_a_client_may_ask_for_its_session_as_often_as_it_has_to(self) -> None:
        """A replica that does not lead refuses it several times a second, on a connection that may live for months."""
        client_id = field(b"client_id", b"x" * 16)
        replica, self.factory.replica = self.factory.replica, RefusingReplica()
        for _ in range(2 * SESSIONS_PER_CONNECTION_MAX):
            self.assertEqual(self.client.call(codec.OPEN_SESSION, client_id)[b"_error_description"], b"not now")
        self.factory.replica = replica
        self.assertIn(b"session", self.client.call(codec.OPEN_SESSION, client_id))

    def test_a_read_that_wants_no_answer_is_not_made(self) -> None:
        """Nothing would hold it back: its sender has no answers to read."""
        self.patch(self.store, "cut", lambda *_: self.fail("read for nobody"))
        bounds = field(b"start", b"") + field(b"end", b"z")
        self.client.protocol.dataReceived(field(b"_command", codec.SCAN) + bounds + b"\0\0")
        self.assertEqual(self.client.answers(), [])

    def test_commands_it_does_not_have(self) -> None:
        self.refused(b"UNHANDLED", "StartTLS", amp.StartTLS.commandName)
        self.refused(b"UNHANDLED", "no command 'put'", b"put", KEY + VALUE)
        self.refused(b"UNHANDLED", r"\xff\x00", b"\xff\x00" * 1000)

    def test_a_box_that_is_no_call(self) -> None:
        self.client.protocol.dataReceived(codec.answer(b"1", b""))
        self.assertTrue(self.client.transport.disconnecting)
        self.assertEqual(self.client.answers(), [])

    def test_calls_that_want_no_answer(self) -> None:
        def untagged(command: bytes, fields: bytes) -> bytes:
            return field(b"_command", command) + fields + b"\0\0"

        for data in (
            untagged(codec.PUT, KEY + VALUE),
            untagged(codec.PUT, KEY),
            untagged(codec.GET, KEY),
            untagged(b"Nonsense", b""),
        ):
            self.client.protocol.dataReceived(data)
        self.assertEqual(self.client.transport.value(), b"")
        self.assertEqual(self.store.get(b"k"), b"v")

    def test_a_responder_that_fails(self) -> None:
        def broken(key: bytes) -> bytes:
            raise RuntimeError("nobody thought of this")

        self.patch(self.store, "get", broken)
        answer = self.client.call(codec.GET, KEY)
        self.assertEqual(answer[b"_error_code"], b"INTERNAL_ERROR")
        self.assertNotIn(b"nobody thought", answer[b"_error_description"])
        (failure,) = self.flushLoggedErrors(RuntimeError)
        self.assertIn("nobody thought", failure.getErrorMessage())
        self.assertEqual(self.client.call(codec.DELETE, KEY)[b"found"], b"False")
        self.assertFalse(self.client.transport.disconnecting)

    def test_a_page_that_fails_leaves_no_cut(self) -> None:
        def broken(*_: object) -> Iterator[tuple[bytes, bytes]]:
            raise RuntimeError("nobody thought of this")

        self.patch(self.store, "_walk", broken)
        answer = self.client.call(codec.SCAN, field(b"start", b"") + field(b"end", b"z"))
        self.assertEqual(answer[b"_error_code"], b"INTERNAL_ERROR")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.store._cuts), 0)

    def test_errors_that_the_replica_answers(self) -> None:
        client = Client(ServerFactory(self.clock, RefusingReplica(), b"s0", b""))
        bounds = field(b"start", b"") + field(b"end", b"z")
        for command, fields in ((codec.PUT, KEY + VALUE), (codec.GET, KEY), (codec.SCAN, bounds)):
            answer = client.call(command, fields)
            self.assertEqual((answer[b"_error_code"], answer[b"_error_description"]), (b"BUSY", b"not now"))
        client.protocol.connectionLost()

    def scan_pages(self) -> Iterator[list[tuple[bytes, bytes]]]:
        bounds = field(b"start", b"") + field(b"end", b"z")
        fields = bounds
        while True:
            answer = self.client.call(codec.SCAN, fields)
            yield codec.decode_pairs(join_blob(answer, b"pairs") or b"")
            if b"cursor" not in answer:
                return
            fields = bounds + field(b"cursor", answer[b"cursor"])

    def test_a_scan_of_many_pages_is_one_cut(self) -> None:
        for number in range(2000):
            self.store.put(b"user%05d" % number, b"v" * 1000)
        before = sorted(self.store._live.items())
        found: list[tuple[bytes, bytes]] = []
        pages = 0
        for page in self.scan_pages():
            found += page
            for number in range(pages, 2000, 50):
                self.client.call(codec.PUT, field(b"key", b"user%05d" % number) + VALUE)
                self.client.call(codec.DELETE, field(b"key", b"user%05d" % (number + 1)))
            pages += 1
        self.assertGreater(pages, 5)
        self.assertEqual(found, before)
        self.assertEqual(self.store._undo_bytes, 0)

    def test_cursors_belong_to_their_connection_and_go_with_it(self) -> None:
        for number in range(1000):
            self.store.put(b"user%05d" % number, b"v" * 1000)
        bounds = field(b"start", b"") + field(b"end", b"z")
        cursor = field(b"cursor", self.client.call(codec.SCAN, bounds)[b"cursor"])
        other = Client(self.factory)
        self.assertEqual(other.call(codec.SCAN, bounds + cursor)[b"_error_code"], b"SCAN_EXPIRED")
        self.assertIn(b"pairs", self.client.call(codec.SCAN, bounds + cursor))
        self.assertEqual(self.client.call(codec.SCAN, bounds + cursor)[b"_error_code"], b"SCAN_EXPIRED")
        self.assertEqual(len(self.factory.cuts), 1)
        self.client.protocol.connectionLost()
        self.assertEqual((len(self.factory.cuts), len(self.store._cuts)), (0, 0))

    def test_cursors_expire(self) -> None:
        for number in range(1000):
            self.store.put(b"user%05d" % number, b"v" * 1000)
        bounds = field(b"start", b"") + field(b"end", b"z")
        cursor = field(b"cursor", self.client.call(codec.SCAN, bounds)[b"cursor"])
        self.clock.advance(SCAN_CURSOR_SECONDS_MAX + 0.1)
        self.assertEqual(self.client.call(codec.SCAN, bounds + cursor)[b"_error_code"], b"SCAN_EXPIRED")
        self.assertEqual(len(self.store._cuts), 0)


class InFlightTest(SynchronousTestCase):
    """Calls whose answers take their time, and bounds on how many may."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.replica = LaterReplica()
        self.factory = ServerFactory(self.clock, self.replica, b"s0", b"boot")
        self.client = Client(self.factory)

    def finish(self) -> None:
        """Let everything be answered; nothing may count as in flight after that."""
        while self.replica.waiting:
            self.replica.go_on()
        self.assertEqual((self.factory.in_flight.count, self.factory.in_flight.size_bytes), (0, 0))
        self.assertEqual(self.client.transport.producerState, "producing")

    def test_answers_come_when_they_are_there(self) -> None:
        tags = [self.client.send(codec.PUT, KEY + VALUE), self.client.send(codec.GET, KEY)]
        self.assertEqual(self.client.answers(), [])
        self.replica.go_on()
        self.assertEqual([answer[b"_answer"] for answer in self.client.answers()], tags[:1])
        self.finish()
        self.assertEqual([answer[b"_answer"] for answer in self.client.answers()], tags[1:])

    def test_a_connection_at_its_bound_waits(self) -> None:
        count = CALLS_PER_CONNECTION_MAX + 10
        self.client.protocol.dataReceived(b"".join(codec.request(n, codec.GET, KEY) for n in range(1, count + 1)))
        self.assertEqual(len(self.replica.waiting), CALLS_PER_CONNECTION_MAX)
        self.assertEqual(self.client.transport.producerState, "paused")
        other = Client(self.factory)
        other.send(codec.GET, KEY)
        self.assertEqual(len(self.replica.waiting), CALLS_PER_CONNECTION_MAX + 1, "others go on")
        self.replica.go_on(3)
        self.assertEqual(
            self.factory.in_flight.count, CALLS_PER_CONNECTION_MAX + 1, "each answer lets the next call in"
        )
        self.assertEqual(self.client.transport.producerState, "paused")
        self.finish()
        tags = [answer[b"_answer"] for answer in self.client.answers()]
        self.assertEqual(sorted(map(int, tags)), list(range(1, count + 1)))

    def test_a_client_that_does_not_read_gets_no_more_answers_made(self) -> None:
        """Its reads are released all at once, and their answers may be a gigabyte."""
        tags = [self.client.send(codec.GET, KEY) for _ in range(10)]
        self.client.protocol.pauseProducing()
        self.replica.go_on(10)
        self.assertEqual((self.client.answers(), self.factory.in_flight.count), ([], 10))
        self.client.protocol.resumeProducing()
        self.assertEqual(len(self.replica.waiting), 10, "each is read again")
        self.replica.go_on(4)
        self.client.protocol.pauseProducing()
        self.replica.go_on(6)
        self.assertEqual(self.factory.in_flight.count, 6)
        self.client.protocol.resumeProducing()
        self.finish()
        self.assertEqual([answer[b"_answer"] for answer in self.client.answers()], tags)

    def test_reads_of_a_client_that_went_without_reading_are_over(self) -> None:
        for _ in range(10):
            self.client.send(codec.GET, KEY)
        self.client.protocol.pauseProducing()
        self.replica.go_on(10)
        self.client.protocol.connectionLost()
        self.assertEqual((self.factory.in_flight.count, self.factory.in_flight.size_bytes), (0, 0))

    def flood(self, command: bytes, fields: bytes, count: int = 1000) -> Client:
        """A new client that sends so many calls at once."""
        client = Client(self.factory)
        client.protocol.dataReceived(b"".join(codec.request(n, command, fields) for n in range(1, count + 1)))
        return client

    def test_many_that_flood_leave_room_for_others(self) -> None:
        """Each may have a share of what is left, so the last one finds something, too."""
        count = CALLS_PER_CONNECTION_MAX + 1
        flooding = [self.flood(codec.GET, KEY, count) for _ in range(50)]
        self.assertLess(self.factory.in_flight.count, CALLS_MAX)
        self.assertEqual({client.transport.producerState for client in flooding}, {"paused"})
        self.client.send(codec.GET, KEY)
        self.assertEqual(self.client.transport.producerState, "producing")
        self.finish()
        self.assertEqual([len(client.answers()) for client in flooding], [count] * 50)
        self.assertEqual({client.transport.producerState for client in flooding}, {"producing"})

    def test_the_server_at_its_bound_is_busy(self) -> None:
        while self.factory.in_flight.count < CALLS_MAX:
            self.flood(codec.GET, KEY)
        self.assertEqual(self.client.call(codec.GET, KEY)[b"_error_code"], b"BUSY")
        self.replica.go_on()
        self.client.send(codec.GET, KEY)
        self.finish()
        (answer,) = self.client.answers()
        self.assertIn(b"_answer", answer)

    def test_a_connection_at_its_bound_of_bytes_waits(self) -> None:
        client = self.flood(codec.PUT, LARGE_PUT, 20)
        self.assertEqual(len(self.replica.waiting), CALL_BYTES_PER_CONNECTION_MAX // MIB)
        self.assertEqual(client.transport.producerState, "paused")
        self.finish()
        self.assertEqual(len(client.answers()), 20)
        self.assertEqual(client.transport.producerState, "producing")

    def test_the_server_at_its_bound_of_bytes_is_busy_for_what_does_not_fit(self) -> None:
        while CALL_BYTES_MAX - self.factory.in_flight.size_bytes > MIB:
            self.flood(codec.PUT, LARGE_PUT, 2)
        self.assertEqual(self.client.call(codec.PUT, LARGE_PUT)[b"_error_code"], b"BUSY")
        self.client.send(codec.PUT, KEY + VALUE)
        self.finish()
        (answer,) = self.client.answers()
        self.assertIn(b"_answer", answer)

    def test_large_calls_leave_time_for_small_ones_of_others(self) -> None:
        """One at a time, and after each a rest as long as it took, for each of the others."""
        small = [Client(self.factory) for _ in range(2)]
        large = [Client(self.factory) for _ in range(2)]
        for client in small:
            client.send(codec.GET, KEY)
        for client in large:
            client.protocol.dataReceived(b"".join(codec.request(n, codec.PUT, LARGE_PUT) for n in (1, 2)))
        self.assertEqual((len(self.replica.waiting), self.factory.in_flight.large.in_flight), (3, 1))
        self.clock.advance(0.05)
        self.replica.waiting.rotate(1)
        self.replica.go_on()
        self.assertEqual(len(large[0].answers()), 1)
        self.assertEqual((len(self.replica.waiting), self.factory.in_flight.large.in_flight), (2, 0))
        self.clock.advance(0.09)
        self.assertEqual(self.factory.in_flight.large.in_flight, 0)
        self.clock.advance(0.02)
        self.assertEqual((len(self.replica.waiting), self.factory.in_flight.large.in_flight), (3, 1))
        self.replica.go_on(3)
        self.assertEqual([len(client.answers()) for client in (*small, *large)], [1, 1, 1, 0])
        self.clock.advance(0.1)
        self.assertEqual(len(self.replica.waiting), 2, "there are no others any more")
        self.finish()
        self.assertEqual([len(client.answers()) for client in large], [0, 2])

    def test_large_calls_of_one_that_is_alone_do_not_wait(self) -> None:
        client = self.flood(codec.PUT, LARGE_PUT, 4)
        client.protocol.dataReceived(codec.request(5, codec.GET, KEY))
        client.protocol.dataReceived(codec.request(6, codec.PUT, LARGE_PUT))
        self.assertEqual(len(self.replica.waiting), 6)
        self.clock.advance(1.0)
        self.finish()
        self.assertEqual(len(client.answers()), 6)

    def test_a_large_call_that_waits_goes_with_its_connection(self) -> None:
        self.client.send(codec.GET, KEY)
        first, second, third = (self.flood(codec.PUT, LARGE_PUT, 1) for _ in range(3))
        second.protocol.connectionLost()
        self.replica.go_on(2)
        self.clock.advance(0.1)
        self.finish()
        self.assertEqual([len(client.answers()) for client in (first, second, third)], [1, 0, 1])

    def test_one_that_does_not_read_keeps_no_large_calls_of_others_waiting(self) -> None:
        self.client.send(codec.GET, KEY)
        first, second, third = (self.flood(codec.PUT, LARGE_PUT, 1) for _ in range(3))
        second.protocol.pauseProducing()
        self.replica.go_on(2)
        self.clock.advance(0.1)
        self.assertEqual(self.factory.in_flight.large.in_flight, 1)
        self.replica.go_on()
        self.assertEqual([len(client.answers()) for client in (first, second, third)], [1, 0, 1])
        self.clock.advance(0.1)
        self.assertFalse(self.factory.in_flight.large._waiting or self.factory.in_flight.large._next)
        second.protocol.resumeProducing()
        self.finish()
        self.assertEqual(len(second.answers()), 1)

    def test_answers_for_a_connection_that_is_gone(self) -> None:
        for number in range(1000):
            self.replica.store.put(b"%d" % number, b"v" * 1000)
        self.client.send(codec.GET, KEY)
        self.client.send(codec.PUT, KEY + VALUE)
        self.client.send(codec.SCAN, field(b"start", b"") + field(b"end", b"z"))
        self.client.protocol.connectionLost()
        self.finish()
        self.assertEqual(self.client.transport.value(), b"")
        self.assertEqual((len(self.factory.cuts), len(self.replica.store._cuts)), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_replica_that_fails_keeps_nothing_in_flight(self) -> None:
        """Otherwise the bounds fill up with calls that nobody will ever answer."""
        self.replica.fails = True
        bounds = field(b"start", b"") + field(b"end", b"z")
        for command, fields in ((codec.GET, KEY), (codec.PUT, KEY + VALUE), (codec.SCAN, bounds)):
            self.assertEqual(self.client.call(command, fields)[b"_error_code"], b"INTERNAL_ERROR")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)
        self.finish()

    def test_an_answer_that_fails_later_is_its_calls_alone(self) -> None:
        def broken(key: bytes) -> bytes:
            raise RuntimeError("nobody thought of this")

        tag = self.client.send(codec.GET, KEY)
        self.patch(self.replica.store, "get", broken)
        self.finish()
        (answer,) = self.client.answers()
        self.assertEqual((answer[b"_error"], answer[b"_error_code"]), (tag, b"INTERNAL_ERROR"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
