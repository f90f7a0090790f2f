"""Connections to other replicas: what is sent, and how a lost peer is found again."""

from itertools import pairwise
from typing import Any

import attrs
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.test.iosim import ConnectionCompleter, IOPump

from madkv.limits import PEER_CONNECT_SECONDS_MAX, PEER_HELLO_SECONDS_MAX, RETRY_SECONDS_MAX, RETRY_SECONDS_MIN
from madkv.raft.messages import Message
from madkv.server.peer_port import PeerFactory
from madkv.server.peers import PeerLinks
from madkv.wire import codec
from tests.peers import CLUSTER, LogCase, heartbeat, hello_fields, member


class LinksTest(LogCase):
    """Replicas 0 and 1 on a simulated network."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = MemoryReactorClock()
        self.network = ConnectionCompleter(self.clock)
        self.received: list[Message] = []
        self.factory = PeerFactory(self.clock)
        self.misfits: list[str] = []
        self.other = PeerLinks(
            self.clock, CLUSTER, "s0", member(1), 1001, {0: ("127.0.0.1", 1000)}, self.received.append, self.fail
        )
        self.factory.attach(self.other)
        self.clock.listenTCP(1001, self.factory)
        self.start("127.0.0.1")
        self.pump: IOPump | None = None

    def start(self, host: str) -> None:
        """Have replica 0 connect to its peer, that is to be found at `host`."""
        self.links = PeerLinks(
            self.clock, CLUSTER, "s0", member(0), 1000, {1: (host, 1001)}, self._never, self.misfits.append
        )
        self.links.start()

    def _never(self, message: Message) -> None:
        raise AssertionError("nothing comes on the connections that one opens")

    def tearDown(self) -> None:
        stopped = self.links.stop()
        if self.pump is not None:
            self.pump.flush()
        self.successResultOf(stopped)
        for protocol in list(self.factory.connections):
            protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def connect(self) -> IOPump:
        self.pump = self.network.succeedOnce(greet=False)
        assert self.pump is not None, "no attempt to connect"
        self.pump.flush()
        return self.pump

    def lose(self) -> None:
        assert self.pump is not None
        for protocol in list(self.factory.connections):
            protocol.transport.abortConnection()
        self.pump.flush()

    def pass_on(self, message: Message) -> None:
        self.links.send([message])
        assert self.pump is not None
        self.pump.flush()

    def test_a_peer_that_is_lost_and_back_is_noted(self) -> None:
        noted: list[tuple[str, int]] = []
        self.links.noted = lambda what, replica: noted.append((what, replica))
        self.connect()
        self.assertEqual((noted, self.links.connected), ([], {1: True}), "the first time it is just there")
        self.lose()
        self.assertEqual((noted, self.links.connected), ([("lost", 1)], {1: False}))
        self.clock.advance(RETRY_SECONDS_MAX)
        self.connect()
        self.assertEqual(noted, [("lost", 1), ("back", 1)])

    def test_what_is_sent_arrives(self) -> None:
        self.links.send([heartbeat(0, 1, 1)])  # lost: there is no connection yet
        self.connect()
        self.pass_on(heartbeat(0, 1, 2))
        self.pass_on(heartbeat(0, 1, 3))
        self.assertEqual(self.received, [heartbeat(0, 1, 2), heartbeat(0, 1, 3)])
        self.assertEqual(self.lines, ["connected to s0.1 (127.0.0.1:1001)"])

    def test_what_is_for_nobody_there_is_not_sent(self) -> None:
        pump = self.connect()
        for to in (member(1, b"x"), member(2)):
            self.links.send([attrs.evolve(heartbeat(0, 1), to=to)])
        self.assertFalse(pump.clientIO.getOutBuffer())

    def test_attempts_come_less_and_less_often(self) -> None:
        began = []
        for _ in range(8):
            self.assertEqual(len(self.clock.tcpClients), 1)
            began.append(self.clock.seconds())
            self.network.failOnce(Failure(ConnectionRefusedError("nobody listens")))
            while not self.clock.tcpClients:
                self.clock.advance(0.01)
        waits = [later - before for before, later in pairwise(began)]
        for wait, wanted in zip(waits, [RETRY_SECONDS_MIN * 2**number for number in range(7)], strict=True):
            self.assertLess(abs(wait - min(wanted, RETRY_SECONDS_MAX)), 0.03)
        self.assertEqual(self.logged("no connection to s0.1 (127.0.0.1:1001)"), 1)
        self.assertEqual(len(self.lines), 1)

    def test_a_peer_that_connects_is_connected_to_at_once(self) -> None:
        """It has started again, and an election may wait for it."""
        for _ in range(8):
            self.network.failOnce(Failure(ConnectionRefusedError("nobody listens")))
            self.clock.advance(RETRY_SECONDS_MAX)
        self.network.failOnce(Failure(ConnectionRefusedError("nobody listens")))
        self.clock.advance(RETRY_SECONDS_MIN)
        self.assertEqual(self.clock.tcpClients, [])
        factory = PeerFactory(self.clock)
        factory.attach(self.links)
        incoming = factory.buildProtocol(None)
        incoming.makeConnection(StringTransport())
        incoming.dataReceived(codec.request(1, codec.PEER_HELLO, hello_fields(replica=1, ports="1000,1001")))
        self.clock.advance(0)
        self.connect()
        self.pass_on(heartbeat(0, 1))
        self.assertEqual(len(self.received), 1)
        incoming.connectionLost()

    def test_an_attempt_that_hangs_counts_as_the_wait(self) -> None:
        """Where packets vanish an attempt takes its whole second: another second of waiting would be too much."""
        for _ in range(6):
            self.network.failOnce()
            self.clock.advance(RETRY_SECONDS_MAX)
        self.assertEqual(len(self.clock.tcpClients), 1)
        self.assertEqual(self.clock.tcpClients[0][3], PEER_CONNECT_SECONDS_MAX)
        self.clock.advance(PEER_CONNECT_SECONDS_MAX)
        self.network.failOnce()
        self.clock.advance(0)
        self.assertEqual(len(self.clock.tcpClients), 1)

    def test_a_name_that_is_looked_up_for_ever(self) -> None:
        self.network.failOnce()
        self.successResultOf(self.links.stop())
        resolver = self.clock.installNameResolver(NeverResolves())  # type: ignore[arg-type]
        self.start("peer.example")
        self.clock.advance(RETRY_SECONDS_MIN)
        self.assertEqual(self.clock.tcpClients, [])
        self.clock.installNameResolver(resolver)
        self.clock.advance(2 * PEER_CONNECT_SECONDS_MAX)
        self.clock.advance(0)
        self.assertEqual(len(self.clock.tcpClients), 1)

    def test_a_lost_connection_is_replaced_at_once(self) -> None:
        for _ in range(3):
            self.connect()
            self.clock.advance(RETRY_SECONDS_MAX)
            self.lose()
            self.clock.advance(0)
        self.connect()
        self.pass_on(heartbeat(0, 1))
        self.assertEqual(len(self.received), 1)

    def test_one_that_is_lost_again_and_again_is_not(self) -> None:
        connections = 0
        for _ in range(1000):
            if self.clock.tcpClients:
                self.connect()
                connections += 1
                self.lose()
            self.clock.advance(0.01)
        self.assertLess(connections, 16)

    def test_a_refused_replica_keeps_trying_and_says_so_once(self) -> None:
        self.other.group = "s1"
        for _ in range(4):
            self.connect()
            self.assertEqual(self.factory.connections, set())
            self.clock.advance(RETRY_SECONDS_MAX - 0.01)
            self.assertEqual(self.clock.tcpClients, [])
            self.clock.advance(0.02)
        refusal = "s0.1 (127.0.0.1:1001) does not take this replica: this is s1.1; s0.0 has its address for that"
        self.assertEqual(self.logged(refusal), 1)
        self.assertEqual(self.logged("refused a connection"), 1)
        self.other.group = "s0"
        self.connect()
        self.pass_on(heartbeat(0, 1))
        self.assertEqual(len(self.received), 1)
        self.assertEqual(len(self.lines), 3)

    def test_a_peer_that_is_starting(self) -> None:
        self.factory.links = None
        self.connect()
        self.factory.links = self.other
        self.clock.advance(RETRY_SECONDS_MIN)
        self.connect()
        self.pass_on(heartbeat(0, 1))
        self.assertEqual(len(self.received), 1)

    def test_a_peer_that_takes_the_connection_and_says_nothing(self) -> None:
        self.pump = self.network.succeedOnce(greet=False)
        self.clock.advance(0)
        self.clock.advance(PEER_HELLO_SECONDS_MAX)
        assert self.pump is not None
        self.pump.flush()
        self.assertEqual(self.logged("no answer"), 1)
        self.clock.advance(0)
        self.connect()
        self.pass_on(heartbeat(0, 1))
        self.assertEqual(len(self.received), 1)

    def test_what_was_sent_before_the_end_arrives(self) -> None:
        pump = self.connect()
        self.links.send([heartbeat(0, 1)])
        stopped = self.links.stop()
        self.assertNoResult(stopped)
        self.links.send([heartbeat(0, 1)])
        pump.flush()
        self.successResultOf(stopped)
        self.assertEqual(len(self.received), 1)

    def test_the_end_in_the_middle_of_an_attempt(self) -> None:
        self.successResultOf(self.links.stop())
        self.assertEqual(self.lines, [])

    def test_the_end_between_attempts(self) -> None:
        self.network.failOnce()
        self.successResultOf(self.links.stop())
        self.clock.advance(10)
        self.assertEqual(self.clock.tcpClients, [])

    def test_the_end_in_the_middle_of_peer_hello(self) -> None:
        self.pump = self.network.succeedOnce(greet=False)
        stopped = self.links.stop()
        assert self.pump is not None
        self.pump.flush()
        self.successResultOf(stopped)


class NeverResolves:
    """A name server that cannot be reached."""

    def resolveHostName(self, receiver: Any, name: str, portNumber: int) -> None:
        """Say nothing."""
