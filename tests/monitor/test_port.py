"""The HTTP port: what is answered to whom, and bounds on what a stranger may send or leave open."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from madkv.limits import HTTP_CONNECTIONS_MAX, HTTP_HEADERS_MAX, HTTP_REQUEST_SECONDS_MAX
from madkv.monitor.port import HEADERS, TEXT, Answer, Site


class Transport(StringTransport):
    """Tells the protocol of its end."""

    def loseConnection(self) -> None:
        super().loseConnection()
        self.protocol.connectionLost()

    def abortConnection(self) -> None:
        self.loseConnection()


class PortTest(SynchronousTestCase):
    """Connections to a port with three paths."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.later: list[Deferred[Answer]] = []

        async def at_once() -> Answer:
            return Answer(TEXT, b"hello\n")

        async def later() -> Answer:
            waiting: Deferred[Answer] = Deferred()
            self.later.append(waiting)
            return await waiting

        async def broken() -> Answer:
            raise RuntimeError("a secret <b>")

        self.site = Site(self.clock, {b"/": at_once, b"/later": later, b"/broken": broken})

    def tearDown(self) -> None:
        self.site.close_connections()
        self.assertEqual(self.site.connections, set())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def connect(self) -> tuple[Any, Transport]:
        protocol: Any = self.site.buildProtocol(None)
        if protocol is None:
            raise ConnectionRefusedError
        transport = Transport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return protocol, transport

    def said(self, data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes, bool]:
        """Status line, headers, body, and whether the connection is over, after these bytes from a stranger."""
        protocol, transport = self.connect()
        protocol.dataReceived(data)
        head, _, body = transport.value().partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        headers = dict(each.lower().split(b": ", 1) for each in lines)
        return line, headers, body, transport.disconnecting

    def get(self, path: bytes, method: bytes = b"GET") -> tuple[bytes, dict[bytes, bytes], bytes, bool]:
        return self.said(b"%b %b HTTP/1.1\r\nHost: x\r\n\r\n" % (method, path))

    def test_get(self) -> None:
        line, headers, body, is_over = self.get(b"/")
        self.assertEqual((line, body, is_over), (b"HTTP/1.1 200 OK", b"hello\n", False))
        self.assertEqual(headers[b"content-length"], b"6")
        for name, value in HEADERS.items():
            self.assertEqual(headers[name], value.lower())
        self.assertNotIn(b"set-cookie", headers)

    def test_a_port_on_loopback_is_asked_by_an_address(self) -> None:
        """By a name whose address changes, a page from elsewhere could read this one in its viewer's browser."""
        self.site.is_on_loopback = True
        for host in (
            b"127.0.0.1",
            b"127.0.0.1:9100",
            b"localhost:9100",
            b"LocalHost",
            b"[::1]",
            b"[::1]:9100",
            b"10.0.0.1",
        ):
            line, _, body, _ = self.said(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
            self.assertEqual((line, body), (b"HTTP/1.1 200 OK", b"hello\n"), host)
        self.assertEqual(self.said(b"GET / HTTP/1.0\r\n\r\n")[0], b"HTTP/1.0 200 OK", "no browser")
        for host in (
            *(
                b"evil.example",
                b"evil.example:9100",
                b"127.0.0.1.evil.example",
                b"localhost.evil.example",
                b"x.localhost",
            ),
            *(b"", b":9100", b"[::1", b"[]", b"::1", b"[evil.example]:9100", b"127.0.0.1@evil.example", b"\xff"),
            b"127.0.0.1\r\nHost: evil.example",
        ):
            for path in (b"/", b"/nothing"):
                line, headers, body, _ = self.said(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, host))
                self.assertEqual(line, b"HTTP/1.1 421 Misdirected Request", host)
                self.assertIn(b"by an address", body)
                self.assertNotIn(b"evil", body)
                self.assertEqual(headers[b"x-content-type-options"], b"nosniff")

    def test_a_port_elsewhere_has_whatever_name(self) -> None:
        for host in (b"db-1.internal:9100", b"10.0.0.1:9100"):
            self.assertEqual(self.said(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)[2], b"hello\n")

    def test_head_is_the_same_without_the_body(self) -> None:
        line, headers, body, _ = self.get(b"/", b"HEAD")
        self.assertEqual((line, body, headers[b"content-length"]), (b"HTTP/1.1 200 OK", b"", b"6"))

    def test_a_query_changes_nothing(self) -> None:
        self.assertEqual(self.get(b"/?x=%3Cscript%3E")[2], b"hello\n")

    def test_no_other_path_and_no_echo_of_it(self) -> None:
        for path in (b"/x<script>", b"//", b"/../etc/passwd", b"/%2e%2e/", b"*", b"http://elsewhere/"):
            line, headers, body, _ = self.get(path)
            self.assertEqual((line, body), (b"HTTP/1.1 404 Not Found", b"nothing is here\n"))
            self.assertEqual(headers[b"x-content-type-options"], b"nosniff")

    def test_no_other_method(self) -> None:
        for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"BREW"):
            line, headers, body, _ = self.get(b"/", method)
            self.assertTrue(line.startswith(b"HTTP/1.1 405"), line)
            self.assertEqual((headers[b"allow"], body), (b"get, head", b"only GET and HEAD\n"))

    def test_a_failure_is_logged_and_not_shown(self) -> None:
        line, _, body, _ = self.get(b"/broken")
        self.assertTrue(line.startswith(b"HTTP/1.1 500"), line)
        self.assertEqual(body, b"this failed; the log says how\n")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_bodies_are_refused_before_they_come(self) -> None:
        for method in (b"GET", b"POST"):
            for header in (b"Content-Length: 10000000000", b"Content-Length: 1", b"Transfer-Encoding: chunked"):
                line, _, _, is_over = self.said(b"%b / HTTP/1.1\r\n%b\r\n\r\n" % (method, header))
                self.assertEqual((line, is_over), (b"HTTP/1.1 413 Content Too Large", True))

    def test_one_answer_to_a_request_with_a_body(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n")
        self.assertEqual(transport.value().count(b"HTTP/1.1 "), 1)

    def test_requests_that_come_together_are_not_answered_together(self) -> None:
        """A read of the socket has room for thousands, and metrics take milliseconds: nothing else would be done."""
        for path in (b"/", b"/nothing"):
            for rest in (b"GET %b HTTP/1.1\r\n\r\n" % path * 1000, b"G"):
                protocol, transport = self.connect()
                protocol.dataReceived(b"GET %b HTTP/1.1\r\n\r\n" % path + rest)
                self.assertEqual(transport.value().count(b"HTTP/1.1 "), 1)
                self.assertIn(b"Connection: close\r\n", transport.value())
                self.assertTrue(transport.disconnecting)

    def test_requests_that_come_while_one_is_answered(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /later HTTP/1.1\r\n\r\n")
        protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n" * 700)
        self.later[0].callback(Answer(TEXT, b"late"))
        self.assertEqual(transport.value().count(b"HTTP/1.1 "), 2)
        self.assertTrue(transport.disconnecting)

    def test_one_request_after_another(self) -> None:
        protocol, transport = self.connect()
        for number in range(1, 10):
            protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
            self.assertEqual(transport.value().count(b"HTTP/1.1 200 OK"), number)
        self.assertFalse(transport.disconnecting)

    def test_garbage(self) -> None:
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n",
            b"\x00\x04_ask\x00\x011\x00\x08_command\x00\x06Status\x00\x00\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/9.9\r\nX\r\n\r\n",
            b"GET / HTTP/1.1\r\n: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"G" * 100_000,
            b"GET /" + b"x" * 100_000,
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (HTTP_HEADERS_MAX + 1) + b"\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        ):
            line, _, _, is_over = self.said(data)
            self.assertTrue(is_over, data[:60])
            self.assertNotIn(b"200", line)

    def test_who_takes_too_long_is_closed(self) -> None:
        """However it fills the time: silence, a byte now and then, or nothing after an answer."""
        for pieces in ([], [b"G", b"E", b"T", b" "], [b"GET / HTTP/1.1\r\n\r\n"]):
            protocol, transport = self.connect()
            for piece in pieces:
                self.clock.advance(HTTP_REQUEST_SECONDS_MAX / 5)
                protocol.dataReceived(piece)
            self.assertFalse(transport.disconnecting)
            self.clock.advance(HTTP_REQUEST_SECONDS_MAX)
            self.assertTrue(transport.disconnecting, pieces)

    def test_those_that_take_too_long_are_one_line_a_second(self) -> None:
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        for _ in range(HTTP_CONNECTIONS_MAX):
            self.connect()
        self.clock.advance(HTTP_REQUEST_SECONDS_MAX)
        self.assertEqual(self.site.connections, set())
        why = "over HTTP: no request, or an answer that it did not read, for 20 seconds"
        self.assertEqual(lines, [f"closed the connection of 192.168.1.1:54321 {why}"])
        self.connect()
        self.clock.advance(HTTP_REQUEST_SECONDS_MAX)
        more = f" ({HTTP_CONNECTIONS_MAX - 1} more since the last such line)"
        self.assertEqual(lines[1:], [f"closed the connection of 192.168.1.1:54321 {why}{more}"])

    def test_one_connection_too_many(self) -> None:
        connections = [self.connect() for _ in range(HTTP_CONNECTIONS_MAX)]
        self.assertRaises(ConnectionRefusedError, self.connect)
        connections[0][1].loseConnection()
        self.connect()

    def test_whoever_goes_before_the_answer_costs_nothing(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /later HTTP/1.1\r\n\r\n")
        transport.loseConnection()
        self.later.pop().callback(Answer(TEXT, b"late\n"))
        self.assertEqual(transport.value(), b"")

    def test_requests_behind_one_that_waits_are_not_kept(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /later HTTP/1.1\r\n\r\n" + b"GET / HTTP/1.1\r\n\r\n" * 3)
        self.assertEqual(transport.value(), b"")
        for _ in range(10):
            protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        self.assertEqual(transport.producerState, "paused", "it is not read from")
        self.later.pop().callback(Answer(TEXT, b"late\n"))
        self.assertIn(b"late\n", transport.value())
        self.assertEqual(transport.value().count(b"HTTP/1.1 "), 1)
        self.assertTrue(transport.disconnecting)
