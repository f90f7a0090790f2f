"""Connections between replicas on real sockets, without TLS and with it: order, restarts, peers that do not read."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import attrs
import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor
from twisted.internet.task import deferLater

from madkv.limits import (
    CLOSE_SECONDS_MAX,
    KEY_BYTES_MAX,
    MIB,
    PEER_BUFFER_BYTES_MAX,
    PEER_UNACKNOWLEDGED_SECONDS_MAX,
    VALUE_BYTES_MAX,
)
from madkv.raft.bounds import USUAL
from madkv.raft.messages import ENTRY_OVERHEAD_BYTES, Append, Entry, EntryKind, Heartbeat, Message
from madkv.server.peer_port import PeerFactory
from madkv.server.peers import PeerLinks
from madkv.testing.ports import free_ports
from madkv.tls import SERVER
from madkv.wire.tls import Credentials
from tests.certified import Certificates
from tests.peers import CLUSTER, heartbeat, member, snapshot_piece

network: Any = reactor


class Replicas:
    """Replicas on real sockets; each keeps what it receives."""

    certificates: Certificates | None = None
    """What the connections are made with, if they are TLS."""

    def __init__(self, *numbers: int) -> None:
        self.ports = dict(zip(numbers, free_ports(len(numbers)), strict=True))
        self.received: dict[int, list[Message]] = {number: [] for number in numbers}
        self.links: dict[int, PeerLinks] = {}
        self.listening: dict[int, Any] = {}
        self.misfits: list[str] = []

    def start(self, number: int, disk: bytes = b"d") -> None:
        addresses = {other: ("127.0.0.1", port) for other, port in self.ports.items() if other != number}
        certificates = self.certificates
        tls = None if certificates is None else Credentials(certificates.of(f"s0.{number}"))
        links = PeerLinks(
            network,
            CLUSTER,
            "s0",
            member(number, disk),
            self.ports[number],
            addresses,
            self.received[number].append,
            self.misfits.append,
            tls,
        )
        peers = PeerFactory(network)
        peers.attach(links)
        factory: Any = peers if tls is None else tls.listening(peers, network, frozenset({SERVER}))
        self.listening[number] = network.listenTCP(self.ports[number], factory, interface="127.0.0.1")
        self.links[number] = links
        links.start()

    async def stop(self, number: int) -> None:
        await self.links.pop(number).stop()
        await self.listening.pop(number).stopListening()
        await until(lambda: True)

    async def __aenter__(self) -> Self:
        for number in self.ports:
            self.start(number)
        await self.connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        for number in list(self.links):
            await self.stop(number)

    def hold(self, number: int) -> Any:
        """Have the one that listens to a single other read nothing more; its end of the connection."""
        (incoming,) = self.links[number].incoming.values()
        incoming.hold()
        return incoming

    def outgoing(self, sender: int, to: int) -> Any:
        """The sender's end of a connection."""
        outgoing = self.links[sender]._links[to].protocol
        assert outgoing is not None
        return outgoing

    async def connected(self) -> None:
        """Until messages pass on every connection."""
        for sender in self.links.values():
            for to in self.links.values():
                if to is not sender:
                    await self._connected(sender, to)
        for received in self.received.values():
            received.clear()

    async def _connected(self, sender: PeerLinks, to: PeerLinks) -> None:
        """Most of what is sent at first is lost; wait also for the last that is not."""
        message = attrs.evolve(heartbeat(0, 0), sender=sender.member, to=to.member)
        sent = 0

        def has_arrived() -> bool:
            nonlocal sent
            arrived = {each.term for each in self.received[to.member.replica] if each.sender == sender.member}
            if not arrived:
                sent += 1
                sender.send([attrs.evolve(message, term=sent)])
            return sent in arrived

        await until(has_arrived)


@pytest.fixture(autouse=True, params=["plain", "TLS"])
def _with_and_without_tls(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "TLS":
        monkeypatch.setattr(Replicas, "certificates", Certificates(tmp_path))


async def until(holds: Callable[[], bool]) -> None:
    """Go on when it holds, which takes milliseconds; fail when it has not come about for very long."""
    deadline = network.seconds() + 30
    while not holds():
        assert network.seconds() < deadline
        await deferLater(network, 0.001)  # between two looks


def append(sender: int, to: int, payloads: list[bytes]) -> Append:
    entries = tuple(Entry(number, 1, EntryKind.OPERATION, payload) for number, payload in enumerate(payloads, 1))
    return Append(
        sender=member(sender),
        to=member(to),
        term=1,
        previous_index=0,
        previous_term=0,
        entries=entries,
        commit_index=0,
    )


@pytest_twisted.ensureDeferred
async def test_three_replicas_send_to_each_other() -> None:
    """Small messages and the longest ones, on all connections at once, each in its order."""
    async with Replicas(0, 1, 2) as replicas:
        longest = append(
            0,
            0,
            [b"x" * (USUAL.append_bytes - ENTRY_OVERHEAD_BYTES - 1), b"y" * (KEY_BYTES_MAX + VALUE_BYTES_MAX + 64)],
        )
        for number in range(100):
            for sender, links in replicas.links.items():
                for to in replicas.links:
                    if to != sender:
                        links.send([heartbeat(sender, to, number)])
                        if number % 40 == 0:
                            links.send([attrs.evolve(longest, sender=member(sender), to=member(to))])
        await until(lambda: all(len(received) >= 2 * 103 for received in replicas.received.values()))
        for to, received in replicas.received.items():
            for sender in {0, 1, 2} - {to}:
                from_there = [message for message in received if message.sender == member(sender)]
                beats = [message.term for message in from_there if isinstance(message, Heartbeat)]
                assert beats == list(range(100))
                assert [message.entries for message in from_there if isinstance(message, Append)] == 3 * [
                    longest.entries
                ]


@pytest_twisted.ensureDeferred
async def test_a_peer_that_is_started_again_is_found_also_on_another_disk() -> None:
    async with Replicas(0, 1) as replicas:
        await replicas.stop(1)
        replicas.start(1, disk=b"x")
        await replicas.connected()
        replicas.links[0].send([heartbeat(0, 1)])  # to the disk that was there before
        replicas.links[0].send([attrs.evolve(heartbeat(0, 1, 2), to=member(1, b"x"))])
        await until(lambda: bool(replicas.received[1]))
        assert [message.term for message in replicas.received[1]] == [2]


@pytest_twisted.ensureDeferred
async def test_a_peer_that_does_not_read_costs_a_bounded_number_of_bytes() -> None:
    async with Replicas(0, 1) as replicas:
        incoming, links, outgoing = replicas.hold(1), replicas.links[0], replicas.outgoing(0, 1)
        message = append(0, 1, [b"x" * MIB])
        for _ in range(2 * PEER_BUFFER_BYTES_MAX // MIB):
            links.send([message])
        assert PEER_BUFFER_BYTES_MAX < outgoing.unsent_bytes < PEER_BUFFER_BYTES_MAX + 2 * MIB
        waiting = outgoing.unsent_bytes
        links.send([heartbeat(0, 1, 1)])
        assert outgoing.unsent_bytes == waiting, "beyond the bound nothing is taken, however small"
        incoming.release()
        await until(lambda: not outgoing.unsent_bytes)
        links.send([heartbeat(0, 1, 2)])
        await until(lambda: any(isinstance(received, Heartbeat) for received in replicas.received[1]))
        assert replicas.received[1].pop() == heartbeat(0, 1, 2)
        assert len(replicas.received[1]) > PEER_BUFFER_BYTES_MAX // MIB
        assert all(received == message for received in replicas.received[1])


@pytest_twisted.ensureDeferred
async def test_the_bound_holds_within_one_ready_too() -> None:
    async with Replicas(0, 1) as replicas:
        replicas.hold(1)
        links, outgoing = replicas.links[0], replicas.outgoing(0, 1)
        links.send([append(0, 1, [b"x" * MIB])] * (3 * PEER_BUFFER_BYTES_MAX // MIB))
        assert outgoing.unsent_bytes < PEER_BUFFER_BYTES_MAX + 2 * MIB


@pytest_twisted.ensureDeferred
async def test_copies_of_a_piece_of_a_snapshot_do_not_pile_up() -> None:
    async with Replicas(0, 1) as replicas:
        incoming, links, outgoing = replicas.hold(1), replicas.links[0], replicas.outgoing(0, 1)
        piece = snapshot_piece(0, 1, b"x" * MIB)
        while not outgoing.unsent_bytes:  # until the system's buffers are full
            links.send([piece])
        waiting = outgoing.unsent_bytes
        assert waiting < 2 * MIB
        links.send([piece])
        assert outgoing.unsent_bytes == waiting
        incoming.release()
        await until(lambda: not outgoing.unsent_bytes)


@pytest_twisted.ensureDeferred
async def test_the_system_looks_after_a_machine_that_is_gone() -> None:
    async with Replicas(0, 1) as replicas:
        handle = replicas.outgoing(0, 1).transport.getHandle()
        milliseconds = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert milliseconds == PEER_UNACKNOWLEDGED_SECONDS_MAX * 1000
        assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest_twisted.ensureDeferred
async def test_the_end_does_not_wait_for_a_peer_that_does_not_read() -> None:
    async with Replicas(0, 1) as replicas:
        replicas.hold(1)
        for _ in range(8):
            replicas.links[0].send([append(0, 1, [b"x" * MIB])])
        began = network.seconds()
        await replicas.stop(0)
        assert 0.5 * CLOSE_SECONDS_MAX < network.seconds() - began < 4 * CLOSE_SECONDS_MAX
