"""A client of etcd with many calls in flight on one connection, to be measured beside MadKV's Deferred client."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from madkv.addresses import parse_address
from madkv.bench.peers import etcd_messages as etcd
from madkv.bench.peers.http2 import Connection, RpcError


class GrpcProtocol(Protocol):
    """Calls over one connection. What is called in answer to one read goes out in one write, at its end."""

    transport: Any

    def __init__(self, authority: str) -> None:
        self._connection = Connection(authority)
        self._waiting: dict[int, Deferred[bytes]] = {}
        self._outgoing: list[bytes] = []
        self._is_reading = False

    def connectionMade(self) -> None:
        """Open the conversation."""
        self.transport.setTcpNoDelay(True)
        self.transport.write(self._connection.greeting())

    def call(self, path: str, message: bytes) -> Deferred[bytes]:
        """Make a call; fires with the message that answers it."""
        stream, data = self._connection.call(path, message)
        answered = self._waiting[stream] = Deferred()
        if self._is_reading:
            self._outgoing.append(data)
        else:
            self._write(data)
        return answered

    def dataReceived(self, data: bytes) -> None:
        """Hand answers on."""
        try:
            done, reply = self._connection.receive(data)
        except RpcError as error:
            self._fail(error)
            self.transport.abortConnection()
            return
        self._is_reading = True
        self._outgoing.append(reply)
        for stream, message in done:
            self._waiting.pop(stream).callback(message)
        self._is_reading = False
        outgoing = b"".join(self._outgoing)
        self._outgoing.clear()
        if outgoing:
            self._write(outgoing)

    def _write(self, data: bytes) -> None:
        """Write through to the socket where nothing waits before it, as MadKV's client does."""
        transport = self.transport
        if transport.connected and transport.dataBuffer == b"" and transport._tempDataLen == 0:
            sent = transport.writeSomeData(data)
            if not isinstance(sent, int) or sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail whatever waits."""
        self._fail(RpcError("the connection to etcd was lost"))

    def _fail(self, error: RpcError) -> None:
        waiting, self._waiting = self._waiting, {}
        for answered in waiting.values():
            answered.errback(error)


class PipelinedEtcd:
    """Puts and gets of one member; reads are linearizable, etcd's default."""

    def __init__(self, reactor: Any, address: str) -> None:
        self._reactor = reactor
        self._address = address
        self._protocol = GrpcProtocol(address)

    async def connect(self) -> None:
        """To be done first."""
        host, port = parse_address(self._address)
        await connectProtocol(TCP4ClientEndpoint(self._reactor, host, port), self._protocol)

    def put(self, key: bytes, value: bytes) -> Deferred[bool]:
        """Whether the key existed."""
        message = etcd.PutRequest(key=key, value=value, prev_kv=True).SerializeToString()
        return self._protocol.call(etcd.PUT, message).addCallback(_existed)

    def get(self, key: bytes) -> Deferred[bytes | None]:
        """The value."""
        message = etcd.RangeRequest(key=key).SerializeToString()
        return self._protocol.call(etcd.RANGE, message).addCallback(_value)

    def close(self) -> Deferred[None]:
        """Leave."""
        self._protocol.transport.loseConnection()
        closed: Deferred[None] = Deferred()
        self._reactor.callLater(0, closed.callback, None)
        return closed


def _existed(answer: bytes) -> bool:
    return bool(etcd.PutResponse.FromString(answer).HasField("prev_kv"))


def _value(answer: bytes) -> bytes | None:
    found = etcd.RangeResponse.FromString(answer).kvs
    return found[0].value if found else None
