"""Connections from other replicas: who is let in, and what is dropped."""

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport

from madkv.addresses import Address
from madkv.errors import Busy, Rejected
from madkv.limits import (
    BOX_BYTES_MAX,
    BOX_SECONDS_MAX,
    MEMBER_CONNECTIONS_MAX,
    PEER_REFUSALS_KEPT,
    SAME_LINE_SECONDS,
    STRANGER_BOX_BYTES_MAX,
    STRANGER_SECONDS_MAX,
    STRANGERS_MAX,
)
from madkv.raft.messages import Message
from madkv.server.peer_port import PeerFactory, PeerProtocol
from madkv.server.peers import PeerLinks
from madkv.wire import codec
from madkv.wire.boxes import COMMAND, ERROR_CODE, ERROR_DESCRIPTION, Box, field, parse_boxes
from tests.peers import CLUSTER, LogCase, heartbeat, hello_fields, member, raft_box, snapshot_piece


class IncomingTest(LogCase):
    """What a replica does with those who connect to it."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = MemoryReactorClock()
        self.received: list[Message] = []
        self.introduced: list[Box] = []
        self.introduction: Any = field(b"replica", b"0")
        self.factory = PeerFactory(self.clock, self._introduce)
        addresses: dict[int, Address] = {1: ("127.0.0.1", 1001), 2: ("127.0.0.1", 1002)}
        self.misfits: list[str] = []
        self.links = PeerLinks(
            self.clock, CLUSTER, "s0", member(0), 1000, addresses, self.received.append, self.misfits.append
        )
        self.factory.attach(self.links)

    def tearDown(self) -> None:
        for protocol in list(self.factory.connections):
            protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def _introduce(self, box: Box) -> Any:
        self.introduced.append(box)
        if isinstance(self.introduction, Exception):
            raise self.introduction
        return self.introduction

    def connect(self) -> tuple[PeerProtocol, StringTransport]:
        protocol, transport = self.factory.buildProtocol(None), StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport

    def ask(self, command: bytes, fields: bytes) -> tuple[StringTransport, Box]:
        """The answer to one call on a new connection."""
        protocol, transport = self.connect()
        protocol.dataReceived(codec.request(1, command, fields))
        return transport, self.answer_on(transport)

    def answer_on(self, transport: StringTransport) -> Box:
        boxes: list[Box] = []
        self.assertEqual(parse_boxes(transport.value(), boxes), len(transport.value()))
        (answer,) = boxes
        return answer

    def peer(self, replica: int = 1) -> tuple[PeerProtocol, StringTransport]:
        """A connection after its PeerHello."""
        protocol, transport = self.connect()
        protocol.dataReceived(codec.request(1, codec.PEER_HELLO, hello_fields(replica=replica)))
        self.assertEqual(self.answer_on(transport)[b"disk"], b"d" * 16)
        transport.clear()
        return protocol, transport

    def test_messages_arrive_in_order_and_are_not_answered(self) -> None:
        protocol, transport = self.peer()
        sent = [heartbeat(1, 0, number) for number in range(5)]
        data = b"".join(map(raft_box, sent))
        protocol.dataReceived(data[:100])
        protocol.dataReceived(data[100:])
        self.assertEqual(self.received, sent)
        self.assertEqual(transport.value(), b"")
        self.clock.advance(STRANGER_SECONDS_MAX * 10)
        self.assertFalse(transport.disconnecting, "silence is no fault")

    def test_who_is_refused(self) -> None:
        for changed, code, line in (
            ({"cluster": "f" * 16}, Rejected.code, f"s0.0 is of cluster {CLUSTER}, s0.1 of cluster {'f' * 16}"),
            ({"group": "s1"}, Rejected.code, "this is s0.0; s1.1 has its address for that of s1.0"),
            ({"to": 2}, Rejected.code, "this is s0.0; s0.1 has its address for that of s0.2"),
            ({"replica": 3}, Rejected.code, "s0.0 has no s0.3 of 3 replicas among its peers"),
            ({"replica": 0}, Rejected.code, "s0.0 has no s0.0 of 3 replicas among its peers"),
            ({"ports": "1000,1001"}, Rejected.code, "s0.0 has no s0.1 of 2 replicas among its peers"),
            (
                {"ports": "1000,1001,9"},
                Rejected.code,
                "s0.1 and s0.0 do not agree about the p2p port of s0.2: 9 and 1002; see their --p2p-port and --peers",
            ),
            ({"ports": "1000,1001,x"}, b"INVALID_ARGUMENT", "the argument 'ports' are no ports"),
            ({"ports": "1000,1001,65536"}, b"INVALID_ARGUMENT", "the argument 'ports' are no ports"),
            ({"ports": None}, b"INVALID_ARGUMENT", "'ports' is missing"),
            ({"version": 2}, b"VERSION_MISMATCH", "speaks version 1, the other one version 2"),
            ({"disk": b"short"}, b"INVALID_ARGUMENT", "a disk id has 16 bytes"),
            ({"disk": None}, b"INVALID_ARGUMENT", "'disk' is missing"),
            ({"group": b"\xff" * 1000}, Rejected.code, "\\xff"),
        ):
            transport, answer = self.ask(codec.PEER_HELLO, hello_fields(**changed))
            self.assertEqual(answer[ERROR_CODE], code)
            self.assertIn(line, answer[ERROR_DESCRIPTION].decode())
            self.assertTrue(transport.disconnecting)
            self.assertEqual(self.logged(line), 1)
        self.assertEqual(self.links.incoming, {})

    def test_a_refusal_is_logged_once(self) -> None:
        for _ in range(5):
            self.ask(codec.PEER_HELLO, hello_fields(to=2))
            self.ask(codec.PEER_HELLO, hello_fields(group="s1"))
        self.assertEqual(self.logged("refused a connection"), 2)

    def test_whom_the_others_disagree_with_is_wrong(self) -> None:
        """One alone may be the wrong one itself; and those of another cluster may say what they like."""
        for replica in (1, 2):
            self.ask(codec.PEER_HELLO, hello_fields(replica=replica, cluster="f" * 16))
        self.ask(codec.PEER_HELLO, hello_fields(ports="9,1001,1002"))
        self.ask(codec.PEER_HELLO, hello_fields(ports="9,1001,1002"))
        self.assertEqual(self.misfits, [])
        self.ask(codec.PEER_HELLO, hello_fields(replica=2, ports="9,1001,1002"))
        self.assertEqual(
            self.misfits,
            ["s0.2 and s0.0 do not agree about the p2p port of s0.0: 9 and 1000; see their --p2p-port and --peers"],
        )

    def test_one_that_was_taken_does_not_end(self) -> None:
        self.links.taken()
        for replica in (1, 2):
            self.ask(codec.PEER_HELLO, hello_fields(replica=replica, ports="9,1001,1002"))
        self.assertEqual(self.misfits, [])

    def test_before_it_is_known_who_this_is(self) -> None:
        self.factory.links = None
        transport, answer = self.ask(codec.PEER_HELLO, hello_fields(cluster="another"))
        self.assertEqual((answer[ERROR_CODE], answer[ERROR_DESCRIPTION]), (Busy.code, b"it is starting"))
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.lines, [])

    def test_messages_of_others(self) -> None:
        protocol, transport = self.peer()
        protocol.dataReceived(raft_box(attrs.evolve(heartbeat(1, 0), to=member(0, b"former disk"[:1]))))
        self.assertFalse(transport.disconnecting, "a message to a disk that was here before is late, and no fault")
        protocol.dataReceived(raft_box(heartbeat(2, 0)))
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.logged("a message of 2/"), 1)
        self.assertEqual(self.received, [])

    def test_garbage_ends_its_connection_and_no_other(self) -> None:
        good, good_transport = self.peer(2)
        for data in (
            field(COMMAND, codec.RAFT) + field(b"message", b"garbage") + b"\0\0",
            field(COMMAND, codec.RAFT) + b"\0\0",
            field(COMMAND, codec.RAFT) + field(b"message", b"") + field(b"message.1", b"") + b"\0\0",
            field(b"_answer", b"1") + b"\0\0",
            codec.request(2, codec.PEER_HELLO, hello_fields()),
            b"GET / HTTP/1.1\r\n",
        ):
            self.clock.advance(SAME_LINE_SECONDS)
            self.lines.clear()
            protocol, transport = self.peer()
            protocol.dataReceived(data + raft_box(heartbeat(1, 0)))
            self.assertTrue(transport.disconnecting, data)
            self.assertEqual(len(self.lines), 1)
            protocol.connectionLost()
        self.assertEqual(self.received, [])
        good.dataReceived(raft_box(heartbeat(2, 0)))
        self.assertEqual(self.received, [heartbeat(2, 0)])
        self.assertFalse(good_transport.disconnecting)

    def test_a_message_before_peer_hello(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(raft_box(heartbeat(1, 0)))
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.received, [])

    def test_a_client_at_the_wrong_port_is_told(self) -> None:
        transport, answer = self.ask(codec.HELLO, codec.integer(b"version", 1))
        self.assertEqual(answer[ERROR_CODE], Rejected.code)
        self.assertIn(b"clients connect to another", answer[ERROR_DESCRIPTION])
        self.assertTrue(transport.disconnecting)
        _, answer = self.ask(codec.GET, field(b"key", b"k"))
        self.assertEqual(answer[ERROR_CODE], b"UNHANDLED")

    def test_who_does_not_say_who_it_is(self) -> None:
        _, transport = self.connect()
        self.clock.advance(STRANGER_SECONDS_MAX - 0.1)
        self.assertFalse(transport.disconnecting)
        self.clock.advance(0.2)
        self.assertTrue(transport.disconnecting)

    def test_a_member_that_connects_again_replaces_its_connection(self) -> None:
        """The former one may have been lost on the other side alone, and would stay for ever."""
        first, first_transport = self.peer()
        second, second_transport = self.peer()
        self.assertTrue(first_transport.disconnecting)
        first.connectionLost()
        self.assertEqual(self.links.incoming, {member(1): second})
        second.dataReceived(raft_box(heartbeat(1, 0)))
        self.assertEqual(len(self.received), 1)
        self.peer(2)
        self.assertFalse(second_transport.disconnecting)

    def test_many_disks_of_one_replica(self) -> None:
        """Each says it is another disk in the same place: what is kept for them has an end, and it is the oldest."""
        transports = []
        for number in range(MEMBER_CONNECTIONS_MAX + 2):
            protocol, transport = self.connect()
            hello = hello_fields(replica=1, disk=bytes([number]) * 16)
            protocol.dataReceived(codec.request(1, codec.PEER_HELLO, hello))
            transports.append(transport)
        _, other = self.peer(2)
        self.assertEqual(len(self.links.incoming), MEMBER_CONNECTIONS_MAX + 1)
        self.assertEqual([each.disconnecting for each in transports], [True] * 2 + [False] * MEMBER_CONNECTIONS_MAX)
        self.assertFalse(other.disconnecting)

    def test_the_oldest_of_too_many_strangers_goes(self) -> None:
        """Whoever says nothing keeps no replica out, however many of it there are."""
        _, member_transport = self.peer(2)
        strangers = [self.connect()[1] for _ in range(STRANGERS_MAX)]
        self.assertFalse(any(each.disconnecting for each in strangers))
        _, transport = self.peer(1)
        self.assertEqual([each.disconnecting for each in strangers], [True] + [False] * (STRANGERS_MAX - 1))
        more = [self.connect()[1] for _ in range(3 * STRANGERS_MAX)]
        self.assertEqual(sum(not each.disconnecting for each in more), STRANGERS_MAX)
        self.assertFalse(transport.disconnecting or member_transport.disconnecting)
        self.assertEqual(self.logged("too many others say as little who they are"), 1)

    def test_a_stranger_has_no_use_for_a_long_box(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(raft_box(snapshot_piece(1, 0, b"x" * STRANGER_BOX_BYTES_MAX))[:-9])
        self.assertTrue(transport.disconnecting)

    def test_half_a_box_of_a_member_is_not_waited_for(self) -> None:
        protocol, transport = self.peer()
        protocol.dataReceived(raft_box(snapshot_piece(1, 0, b"x" * BOX_BYTES_MAX))[:-1])
        self.clock.pump([1.0] * int(BOX_SECONDS_MAX - 1))
        self.assertFalse(transport.disconnecting)
        self.clock.advance(1.1)
        self.assertTrue(transport.disconnecting)

    def test_refusals_of_all_kinds_do_not_fill_the_log(self) -> None:
        for number in range(1000):
            self.ask(codec.PEER_HELLO, hello_fields(group=f"g{number}"))
        self.assertEqual(self.logged("refused a connection"), PEER_REFUSALS_KEPT + 1)

    def test_garbage_does_not_fill_the_log(self) -> None:
        for _ in range(1000):
            protocol, transport = self.connect()
            protocol.dataReceived(b"garbage")
            self.assertTrue(transport.disconnecting)
            protocol.connectionLost()
        self.assertEqual(self.logged("closed the connection of"), 1)

    def test_boxes_longer_than_those_of_clients(self) -> None:
        piece = snapshot_piece(1, 0, b"x" * BOX_BYTES_MAX)
        protocol, transport = self.peer()
        protocol.dataReceived(raft_box(piece))
        self.assertEqual(self.received, [piece])
        protocol.dataReceived(raft_box(attrs.evolve(piece, data=b"x" * 2 * BOX_BYTES_MAX)))
        self.assertTrue(transport.disconnecting)

    def test_an_introduction(self) -> None:
        _, answer = self.ask(codec.INTRODUCE, field(b"replica", b"2"))
        self.assertEqual(answer, {b"_answer": b"1", b"replica": b"0"})
        self.assertEqual(self.introduced[0][b"replica"], b"2")

    def test_an_introduction_that_takes_time(self) -> None:
        self.factory.links = None
        self.introduction = later = Deferred()
        protocol, transport = self.connect()
        self.clock.advance(STRANGER_SECONDS_MAX - 1)
        protocol.dataReceived(codec.request(1, codec.INTRODUCE, b""))
        self.clock.advance(STRANGER_SECONDS_MAX - 1)
        self.assertFalse(transport.disconnecting)
        later.callback(field(b"replica", b"0"))
        self.assertEqual(self.answer_on(transport)[b"replica"], b"0")

    def test_introductions_on_one_connection_take_turns(self) -> None:
        self.introduction = first = Deferred()
        protocol, transport = self.connect()
        protocol.dataReceived(codec.request(1, codec.INTRODUCE, b"") * 1000)
        self.assertEqual((len(self.introduced), transport.producerState), (1, "paused"))
        self.introduction = Deferred()
        first.callback(b"")
        self.assertEqual(len(self.introduced), 2)
        self.assertEqual(self.answer_on(transport), {b"_answer": b"1"})

    def test_introductions_that_fail(self) -> None:
        for error in (Rejected("other settings"), Busy("later")):
            self.introduction = error
            _, answer = self.ask(codec.INTRODUCE, b"")
            self.assertEqual((answer[ERROR_CODE], answer[ERROR_DESCRIPTION]), (error.code, str(error).encode()))
        self.introduction = ZeroDivisionError()
        _, answer = self.ask(codec.INTRODUCE, b"")
        self.assertEqual(answer[ERROR_CODE], b"INTERNAL_ERROR")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_servers_take_no_introductions(self) -> None:
        self.factory.introduce = None
        _, answer = self.ask(codec.INTRODUCE, b"")
        self.assertEqual(answer[ERROR_CODE], b"UNHANDLED")

    def test_when_it_ends(self) -> None:
        protocol, transport = self.peer()
        self.successResultOf(self.links.stop())
        self.assertTrue(transport.disconnecting)
        protocol.dataReceived(raft_box(heartbeat(1, 0)))
        self.assertEqual(self.received, [])
        _, answer = self.ask(codec.PEER_HELLO, hello_fields())
        self.assertEqual(answer[ERROR_CODE], Busy.code)
        _, stranger_transport = self.connect()
        self.factory.stopFactory()
        self.assertTrue(stranger_transport.disconnecting)
