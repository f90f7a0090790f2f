"""The Deferred face of the client: many calls in flight on one connection, each exactly once.

    client = Client(reactor, "127.0.0.1:3777")
    existed = await client.put(b"key", b"value")

Every method returns a Deferred at once, which fires with the answer; it may be awaited, or not at all. Calls that are
in flight together may take effect in any order; await one to have it precede the next.
"""

import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet import error, task
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.logger import Logger

from madkv.addresses import Address, parse_address, show_address
from madkv.arguments import check_key, check_scan, check_value
from madkv.client.router import Backoff, Router
from madkv.client.session import Call, Session
from madkv.errors import Abandoned, InternalError, Interrupted, ProtocolError, Refused, ScanExpired, UnknownSession
from madkv.limits import CLIENT_ID_BYTES, CLOSE_SECONDS_MAX, CONNECT_SECONDS_MAX
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field
from madkv.wire.caller import CallerProtocol

T = TypeVar("T")

_AGAIN = (
    error.ConnectError,
    error.ConnectingCancelledError,
    error.ConnectionClosed,
    error.DNSLookupError,
    ProtocolError,
    Refused,
    Interrupted,
    InternalError,
    ScanExpired,
)
"""What a retry can cure, unless the client is closed: that is what cancels an attempt to connect."""

_CLOSED = "the client was closed before this call had its answer"


class Client:
    """A client of one store; every call is retried until it has its answer. `reactor` may be any with TCP and time."""

    log = Logger()

    def __init__(self, reactor: Any, server: str | Address) -> None:
        self._reactor = reactor
        self._router = Router(parse_address(server) if isinstance(server, str) else server)
        self._session = Session(os.urandom(CLIENT_ID_BYTES))
        self._connecting = _Shared(self._connect)
        self._opening = _Shared(self._open)
        self._connection: CallerProtocol | None = None
        self._room: list[Deferred[None]] = []
        self._pauses: set[Deferred[None]] = set()
        self._closed = False
        self._waiting = False

    # --- Operations -------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> Deferred[bool]:
        """Set the value of a key; whether the key existed.

        Fails with InvalidArgument for a key or value out of bounds, before anything is sent; with OutcomeUnknown when
        the client was cut off for longer than a session lives; with Abandoned when the client was closed meanwhile.
        """
        return Deferred.fromCoroutine(self._put(key, value))

    def swap(self, key: bytes, value: bytes) -> Deferred[bytes | None]:
        """Set the value of a key; the value it had, None if it did not exist. Fails as `put`."""
        return Deferred.fromCoroutine(self._swap(key, value))

    def delete(self, key: bytes) -> Deferred[bool]:
        """Remove a key; whether it existed. Fails as `put`."""
        return Deferred.fromCoroutine(self._delete(key))

    def get(self, key: bytes) -> Deferred[bytes | None]:
        """The value of a key, None if it does not exist. Fails with InvalidArgument or Abandoned."""
        return Deferred.fromCoroutine(self._get(key))

    def scan(self, start: bytes, end: bytes) -> Deferred[list[tuple[bytes, bytes]]]:
        """All pairs with start <= key <= end in key order, as they were at one point. Fails as `get`."""
        return Deferred.fromCoroutine(self._scan(start, end))

    def close(self) -> Deferred[None]:
        """Close the session and the connection, within a second. Calls that still wait fail with Abandoned."""
        return Deferred.fromCoroutine(self._close())

    async def _put(self, key: bytes, value: bytes) -> bool:
        check_key(key)
        check_value(value)
        return await self._write(codec.PUT, field(b"key", key) + blob(b"value", value), codec.take_found)

    async def _swap(self, key: bytes, value: bytes) -> bytes | None:
        check_key(key)
        check_value(value)
        return await self._write(codec.SWAP, field(b"key", key) + blob(b"value", value), codec.take_value)

    async def _delete(self, key: bytes) -> bool:
        check_key(key)
        return await self._write(codec.DELETE, field(b"key", key), codec.take_found)

    async def _get(self, key: bytes) -> bytes | None:
        check_key(key)
        fields = field(b"key", key)

        async def attempt(connection: CallerProtocol) -> bytes | None:
            return codec.take_value(await connection.call(codec.GET, fields))

        return await self._retried(attempt)

    async def _scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        check_scan(start, end)
        if start > end:
            return []
        fields = field(b"start", start) + field(b"end", end)

        async def attempt(connection: CallerProtocol) -> list[tuple[bytes, bytes]]:
            pairs: list[tuple[bytes, bytes]] = []
            page_fields = fields
            while True:
                page, cursor = codec.take_page(await connection.call(codec.SCAN, page_fields))
                pairs += page
                if cursor is None:
                    return pairs
                page_fields = fields + field(b"cursor", cursor)

        return await self._retried(attempt)

    # --- The life of a call -----------------------------------------------------------------------------------------

    async def _write(self, command: bytes, fields: bytes, answer_in: Callable[[Box], T]) -> T:
        session = self._session
        while session.full:
            room: Deferred[None] = Deferred()
            self._room.append(room)
            await room
        call = session.begin()

        async def attempt(connection: CallerProtocol) -> T:
            return answer_in(await self._attempt_write(connection, call, command, fields))

        try:
            return await self._retried(attempt)
        finally:
            session.end(call)
            while self._room and not session.full:
                self._room.pop(0).callback(None)

    async def _attempt_write(self, connection: CallerProtocol, call: Call, command: bytes, fields: bytes) -> Box:
        session = self._session
        sessions_lost = 0
        while True:
            if session.index is None:
                await self._opening.wait()
                if connection is not self._connection:
                    raise error.ConnectionLost("the session was opened on another connection")
            index = session.index
            if index is None:
                continue
            session.sending(call)
            carried = codec.session_fields(index, call.sequence, session.floor)
            try:
                return await connection.call(command, fields + carried)
            except Refused:
                session.not_executed(call)
                raise
            except UnknownSession as refusal:
                session.lost(call, index)
                if sessions_lost:  # and it was a new one: no hurry to lose the next
                    raise ProtocolError(str(refusal)) from None
                sessions_lost += 1

    async def _retried(self, attempt: Callable[[CallerProtocol], Coroutine[Deferred[Any], Any, T]]) -> T:
        backoff: Backoff | None = None
        while not self._is_closed():
            try:
                connection = self._connection
                if connection is None or not connection.open:
                    connection = await self._connecting.wait()
                result = await attempt(connection)
                self._waiting = False
                return result
            except (*_AGAIN, CancelledError) as why:
                if self._is_closed():
                    break
                if isinstance(why, CancelledError):
                    raise
                self._say_once(why)
                backoff = backoff or Backoff()
                await self._pause(backoff.next_seconds())
        raise Abandoned(_CLOSED)

    def _is_closed(self) -> bool:
        return self._closed

    async def _pause(self, seconds: float) -> None:
        pause: Deferred[None] = task.deferLater(self._reactor, seconds)
        self._pauses.add(pause)
        try:
            await pause
        except CancelledError:
            if not self._is_closed():
                raise  # it was the caller who cancelled the call
        finally:
            self._pauses.discard(pause)

    def _say_once(self, why: Exception) -> None:
        if not self._waiting:
            self._waiting = True
            address = show_address(self._router.address_of(b""))
            self.log.info("waiting for {address}: {why}", address=address, why=str(why))

    # --- Connection and session, each made once for all calls that wait for it --------------------------------------

    async def _connect(self) -> CallerProtocol:
        host, port = self._router.address_of(b"")
        endpoint = HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_SECONDS_MAX)
        connection: CallerProtocol = await connectProtocol(endpoint, CallerProtocol(self._reactor))
        try:
            hello = await connection.call(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
            self._session.connected(codec.take_boot(hello))
        except BaseException:
            await connection.abort()
            raise
        self._connection = connection
        return connection

    async def _open(self) -> None:
        connection = self._connection
        if connection is None:
            raise error.ConnectionLost("the connection is closed")
        client_id = field(b"client_id", self._session.client_id)
        opened = await connection.call(codec.OPEN_SESSION, client_id)
        if connection is self._connection:
            self._session.opened(codec.take_answer_integer(opened, b"session"))

    async def _close(self) -> None:
        self._closed = True
        for room in self._room:
            room.errback(Abandoned(_CLOSED))
        self._room.clear()
        for pause in list(self._pauses):
            pause.cancel()
        await self._connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is None or not connection.open:
            return
        try:
            if self._session.index is not None:
                fields = codec.integer(b"session", self._session.index)
                await connection.call(codec.CLOSE_SESSION, fields).addTimeout(CLOSE_SECONDS_MAX, self._reactor)
        except Exception as why:
            self.log.debug("the session was left to expire: {why}", why=str(why))
        finally:
            await connection.abort()


class _Shared:
    """Work that many wait for and that is done once: whoever comes first starts it."""

    def __init__(self, start: Callable[[], Coroutine[Deferred[Any], Any, Any]]) -> None:
        self._start = start
        self._waiting: list[Deferred[Any]] = []
        self._work: Deferred[Any] | None = None

    def wait(self) -> Deferred[Any]:
        """A Deferred of one's own for the result of the work that is going on, or is started now."""
        waiter: Deferred[Any] = Deferred()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            self._work = Deferred.fromCoroutine(self._start())
            self._work.addBoth(self._done)
        return waiter

    def cancel(self) -> Deferred[Any]:
        """Give up the work that is going on, if there is any; fires when it has ended."""
        if not self._waiting or self._work is None:
            return succeed(None)
        ended = self.wait().addErrback(lambda failure: None)
        self._work.cancel()
        return ended

    def _done(self, result: Any) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(result)  # a Failure makes it fail
