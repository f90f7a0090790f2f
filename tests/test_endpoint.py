"""Connecting to addresses and to names, on real sockets."""

import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from madkv.wire.endpoint import connect, endpoint_to

reactor: Any = installed


class Recorder(Protocol):
    """Fires `lost` when the connection is over."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost.callback(None)


class Greeter(Protocol):
    """Says something, and that is all."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello")
        self.transport.loseConnection()


def closed_port(family: socket.AddressFamily, host: str) -> int:
    """A port on which nobody listens: bound for as long as nobody asks for it again, and not listened on."""
    with socket.socket(family) as bound:
        bound.bind((host, 0))
        port: int = bound.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("host", "interface"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "127.0.0.1")]
)
@pytest_twisted.ensureDeferred
async def test_a_protocol_is_given_its_connection(host: str, interface: str) -> None:
    listening = reactor.listenTCP(0, Factory.forProtocol(Greeter), interface=interface)
    try:
        protocol = await connect(endpoint_to((host, listening.getHost().port), reactor, 5), Recorder)
        await protocol.lost
    finally:
        await listening.stopListening()
    assert protocol.received == b"hello"


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
@pytest_twisted.ensureDeferred
async def test_where_nobody_listens_it_fails(family: socket.AddressFamily, host: str) -> None:
    with pytest.raises(Refused):
        await connect(endpoint_to((host, closed_port(family, host)), reactor, 5), Recorder)


@pytest_twisted.ensureDeferred
async def test_nothing_stands_between_a_connection_and_its_protocol() -> None:
    """What is read goes to the protocol by one call of Python's, and not by two."""
    listening = reactor.listenTCP(0, Factory.forProtocol(Greeter), interface="127.0.0.1")
    try:
        protocol = await connect(endpoint_to(("127.0.0.1", listening.getHost().port), reactor, 5), Recorder)
        transport: Any = protocol.transport
        assert transport.protocol is protocol
        await protocol.lost
    finally:
        await listening.stopListening()


@pytest_twisted.ensureDeferred
async def test_an_attempt_that_is_given_up_leaves_no_connection() -> None:
    made: list[Recorder] = []

    def build() -> Recorder:
        made.append(Recorder())
        return made[-1]

    with socket.create_server(("127.0.0.1", 0)) as listening:
        attempt = connect(endpoint_to(listening.getsockname(), reactor, 5), build)
        attempt.cancel()
        with pytest.raises(CancelledError):
            await attempt
        await deferLater(reactor, 0)  # Twisted's own beginning of an attempt, which finds that it is given up
        assert [each.transport for each in made] == [None]
        # The attempt may have reached the kernel's queue; whoever takes it from there finds it closed.
        listening.settimeout(1)
        try:
            taken, _ = listening.accept()
        except TimeoutError:
            return
        with taken:
            taken.settimeout(5)
            try:
                assert taken.recv(1) == b""
            except ConnectionResetError:
                pass
