"""The HTTP port: few paths, GET and HEAD, and bounds on all that a stranger can send or leave open.

A request is a line and headers of at most 16 KiB together, and no body. Who does not finish it, or does not read the
answer, in time, loses the connection, and so does who asks again before there is an answer; one connection too many is
closed at once. Every answer says that nothing may be kept, guessed, framed, or loaded from elsewhere. A port on
loopback answers no request that was sent to a name: of one that is somebody else's, and leads here for a moment, a
browser would let that one's page read what is answered.
"""

from collections.abc import Callable, Coroutine, Mapping
from io import BytesIO
from typing import Any

import attrs
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.logger import LimitedHistoryLogObserver, Logger
from twisted.python.failure import Failure
from twisted.web import http

from madkv.addresses import show_address
from madkv.limits import HTTP_CONNECTIONS_MAX, HTTP_HEADERS_MAX, HTTP_REQUEST_SECONDS_MAX
from madkv.wire.lines import SeldomLine

HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"server": b"MadKV",
    b"x-content-type-options": b"nosniff",
}
TEXT, JSON = b"text/plain; charset=utf-8", b"application/json"
MISDIRECTED = 421


@attrs.frozen
class Answer:
    """To one request."""

    content_type: bytes
    body: bytes
    code: int = http.OK


_log = Logger()
Route = Callable[[], Coroutine[Deferred[Any], Any, Answer]]


def _is_address(host: bytes) -> bool:
    """Whether this header Host, with or without a port, is an IP address, or the one name that nobody can give away."""
    name, bracket, rest = host.decode("latin-1").partition("]")
    if bracket:
        return name.startswith("[") and isIPv6Address(name[1:]) and (not rest or rest.startswith(":"))
    name = name.partition(":")[0].lower()
    return name == "localhost" or isIPAddress(name)


class _Request(http.Request):
    """One request."""

    channel: Any
    _is_refused = False

    def gotLength(self, length: int | None) -> None:
        """The headers are there. No request that is answered has a body, so none is waited for."""
        self.content = BytesIO()
        if length != 0:
            self._is_refused = True
            self.channel.transport.write(
                b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            self.channel.loseConnection()

    def handleContentChunk(self, data: bytes) -> None:
        """Of a body that is not wanted."""

    def process(self) -> None:
        """Answer it."""
        if self._is_refused:
            return
        site: Site = self.channel.factory
        if self.channel._buffer:
            # Nobody's browser, nor Prometheus, asks again before it has its answer. One read of the socket has room for
            # thousands of requests, which would all be answered before anything else is done, whoever reads that.
            self.channel.persistent = False
            self.setHeader(b"connection", b"close")
        ended = self.notifyFinish()
        ended.addErrback(lambda failure: None)  # nobody waits any more
        if site.is_on_loopback and not all(map(_is_address, self.requestHeaders.getRawHeaders(b"host", []))):
            line = b"this port is asked by an address, such as 127.0.0.1, or as localhost\n"
            self._answer(Answer(TEXT, line, MISDIRECTED))
            return
        if self.method not in (b"GET", b"HEAD"):
            self.setHeader(b"allow", b"GET, HEAD")
            self._answer(Answer(TEXT, b"only GET and HEAD\n", http.NOT_ALLOWED))
            return
        route = site.routes.get(self.path)
        if route is None:
            self._answer(Answer(TEXT, b"nothing is here\n", http.NOT_FOUND))
            return
        Deferred.fromCoroutine(route()).addErrback(self._failed).addCallback(self._answer)

    def _failed(self, failure: Failure) -> Answer:
        _log.failure("an answer over HTTP went wrong in a way that was not foreseen", failure)
        return Answer(TEXT, b"this failed; the log says how\n", http.INTERNAL_SERVER_ERROR)

    def _answer(self, answer: Answer) -> None:
        if self.finished or self._disconnected:
            return
        self.setResponseCode(answer.code, b"Misdirected Request" if answer.code == MISDIRECTED else None)
        for name, value in HEADERS.items():
            self.setHeader(name, value)
        self.setHeader(b"content-type", answer.content_type)
        self.setHeader(b"content-length", b"%d" % len(answer.body))
        self.write(answer.body)
        self.finish()


class _Channel(http.HTTPChannel):
    """One connection."""

    factory: "Site"
    transport: Any
    requestFactory = _Request
    maxHeaders = HTTP_HEADERS_MAX
    abortTimeout = 5
    _log = Logger(observer=LimitedHistoryLogObserver(0))
    """Twisted's own, for a line about each connection that takes too long."""

    def connectionMade(self) -> None:
        """Count it in."""
        super().connectionMade()
        self.factory.connections.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Count it out."""
        super().connectionLost(reason)
        self.factory.connections.discard(self)

    def timeoutConnection(self) -> None:
        """It has taken too long; or nobody needs it any more, as happens all day."""
        peer = self.transport.getPeer()
        self.factory.closings.say(
            f"closed the connection of {show_address((peer.host, peer.port))} over HTTP: "
            f"no request, or an answer that it did not read, for {HTTP_REQUEST_SECONDS_MAX:g} seconds"
        )
        super().timeoutConnection()

    def resetTimeout(self) -> None:
        """Twisted begins anew with every byte; here a request has its time, however it comes."""


class Site(http.HTTPFactory):
    """All connections to the port."""

    noisy = False
    protocol: Any = _Channel

    def __init__(self, reactor: Any, routes: Mapping[bytes, Route]) -> None:
        super().__init__(timeout=HTTP_REQUEST_SECONDS_MAX, reactor=reactor)
        self.routes = routes
        self.is_on_loopback = False
        """Whether only this machine reaches the port. Elsewhere it may have any name, and its network may ask it."""
        self.connections: set[_Channel] = set()
        self.closings = SeldomLine(reactor, _log)

    def startFactory(self) -> None:
        """There is no log of requests, so nobody needs to know the time each second."""

    def stopFactory(self) -> None:
        """The same."""

    def log(self, request: http.Request) -> None:
        """Whoever looks once a second would fill it."""

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A protocol for one connection; None for one too many, which closes it."""
        return super().buildProtocol(addr) if len(self.connections) < HTTP_CONNECTIONS_MAX else None

    def close_connections(self) -> None:
        """At once."""
        for connection in list(self.connections):
            connection.transport.abortConnection()
