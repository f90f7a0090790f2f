"""One connection of the asyncio client: many calls in flight, each answered by its tag."""

import asyncio
import socket
from typing import Any

from madkv.addresses import Address, show_address
from madkv.errors import ProtocolError, TLSError
from madkv.limits import BOX_BYTES_MAX, CONNECT_SECONDS_MAX
from madkv.tls import TLSFiles
from madkv.wire import codec
from madkv.wire.boxes import Box, Rest, parse_boxes
from madkv.wire.unanswered import Unanswered


class CallLost(ConnectionError):
    """The connection went while a call waited for its answer: whether it was executed is unknown. Says why."""


class Connection(asyncio.Protocol):
    """One connection to a server. `call` may be called any number of times without waiting.

    What it holds of what arrives is one box and the boxes of one read. Answers are read however much is still to be
    sent: a server does not read calls while its answers are not read, so that both sides would wait for ever.
    """

    _transport: Any

    def __init__(self, try_seconds: float) -> None:
        """When nothing at all has come for `try_seconds` that was due, the connection is closed; see Unanswered."""
        self._loop = asyncio.get_running_loop()
        self._unanswered: Unanswered[asyncio.Future[Box]] = Unanswered(try_seconds)
        self._overdue: asyncio.TimerHandle | None = None
        self._outgoing: list[bytes] = []
        self._rest = Rest()
        self._why_closed = ""
        self._lost = self._loop.create_future()
        self.try_seconds = try_seconds
        self.is_overdue = False
        """Whether the connection was closed because no answer came in time."""
        self.open = False
        self.certified: frozenset[str] | None = None
        """The names in the other side's certificate; None without TLS."""

    def call(self, command: bytes, fields: bytes) -> "asyncio.Future[Box]":
        """Send one call, with all others of this turn of the event loop; the future answer.

        Raises there the error that the answer declares; CallLost when the connection goes before the answer comes.
        """
        answered: asyncio.Future[Box] = self._loop.create_future()
        if not self.open:
            fail(answered, CallLost("the connection is closed"))
            return answered
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(self._unanswered.add(self._loop.time(), command, fields, answered))
        if self._overdue is None:
            self._overdue = self._loop.call_later(self.try_seconds, self._check_overdue)
        return answered

    def abort(self) -> "asyncio.Future[None]":
        """Close the connection now; done when it is closed and every call that waited has failed."""
        self._close("the connection was closed")
        return asyncio.shield(self._lost)

    def _close(self, why: str) -> None:
        if self.open:
            self.open = False
            self._why_closed = why
            self._transport.abort()

    def _flush(self) -> None:
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        if self.open:
            self._transport.write(data)

    def _check_overdue(self) -> None:
        """One timer for all calls: it looks at the oldest, and again when that would be overdue."""
        self._overdue = None
        seconds_left = self._unanswered.seconds_left(self._loop.time())
        if seconds_left is None:
            return
        if seconds_left <= 0:
            self.is_overdue = True
            self._close(f"no answer within {self.try_seconds:g} seconds")
        else:
            self._overdue = self._loop.call_later(seconds_left, self._check_overdue)

    def _take(self, box: Box) -> None:
        command, answered = self._unanswered.take(box)
        if answered.done():
            return  # nobody waits for it any more
        try:
            codec.raise_if_error(box, command)
        except Exception as error:
            fail(answered, error)
        else:
            answered.set_result(box)

    # --- What asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the socket up; from here on bytes arrive. (asyncio itself sets TCP_NODELAY.)"""
        self._transport = transport
        self.open = True
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Cut what arrived into boxes and hand each to whom it belongs."""
        self._unanswered.heard(self._loop.time())
        if self._rest:
            joined = self._rest.joined(data, BOX_BYTES_MAX)
            if joined is None:
                return
            data = joined
        boxes: list[Box] = []
        try:
            consumed = parse_boxes(data, boxes)
            for box in boxes:
                self._take(box)
        except ProtocolError as error:
            self._close(str(error))
            return
        if consumed < len(data):
            self._rest.keep(data[consumed:])

    def eof_received(self) -> None:
        """The other side closes; what we would still send, it does not read."""
        self._close("closed by the other side")

    def connection_lost(self, why: Exception | None) -> None:
        """Fail every call that waits."""
        self.open = False
        self._rest.clear()
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if self.certified is not None and isinstance(why, OSError):
            from madkv.client.secure import why_lost

            why = TLSError(why_lost(why))
        lost = self._why_closed or str(why or "the connection was lost")
        for answered in self._unanswered.take_all():
            fail(answered, CallLost(lost))
        self._lost.set_result(None)


async def connect(address: Address, try_seconds: float, tls: TLSFiles | None = None) -> Connection:
    """A connection to whichever address the name stands for. Raises OSError, TimeoutError among them, and TLSError."""
    if tls is not None:
        return await _connect_with_tls(address, try_seconds, tls)
    loop = asyncio.get_running_loop()
    host, port = address
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            _, connection = await loop.create_connection(
                lambda: Connection(try_seconds), host, port, happy_eyeballs_delay=0.25
            )
    except TimeoutError:
        raise TimeoutError(f"no connection to {show_address(address)} in time") from None
    return connection


async def _connect_with_tls(address: Address, try_seconds: float, tls: TLSFiles) -> Connection:
    import ssl

    from madkv.client.secure import fresh_context, names_of, why_failed

    loop = asyncio.get_running_loop()
    host, port = address
    context = fresh_context(tls)
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            transport, connection = await loop.create_connection(
                lambda: Connection(try_seconds), host, port, ssl=context, happy_eyeballs_delay=0.25
            )
    except TimeoutError:
        raise TimeoutError(f"no connection to {show_address(address)} in time") from None
    except (ssl.SSLError, ConnectionResetError) as error:
        raise TLSError(why_failed(error)) from None
    try:
        connection.certified = names_of(transport.get_extra_info("ssl_object"))
    except TLSError:
        await connection.abort()
        raise
    return connection


def fail(waiter: "asyncio.Future[Any]", error: BaseException) -> None:
    """Raise the error in whoever awaits it. If that is cancelled just now, nobody misses the error."""
    if not waiter.done():
        waiter.set_exception(error)
        waiter.exception()  # by which it counts as seen
