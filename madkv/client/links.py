"""The connections of the Deferred client: one to each address, made once for all calls that wait for it."""

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol

from madkv.addresses import Address
from madkv.limits import CONNECT_SECONDS_MAX, TRY_SECONDS_MAX
from madkv.wire import codec
from madkv.wire.boxes import Box
from madkv.wire.caller import CallerProtocol


class Shared:
    """Work that many wait for and that is done once: whoever comes first starts it, with what it gives."""

    def __init__(self, start: Callable[..., Coroutine[Deferred[Any], Any, Any]]) -> None:
        self._start = start
        self._waiting: list[Deferred[Any]] = []
        self._work: Deferred[Any] | None = None

    def wait(self, *arguments: Any) -> Deferred[Any]:
        """A Deferred of one's own for the result of the work that is going on, or is started now."""
        waiter: Deferred[Any] = Deferred()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            self._work = Deferred.fromCoroutine(self._start(*arguments))
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


class Link:
    """The connection to one address, as long as there is one.

    Calls share it, and so its patience: when a connection ends for want of an answer, the next one to the same address
    waits twice as long, up to TRY_SECONDS_MAX. A server that is slow for everybody is given the time that it takes.
    """

    def __init__(
        self, reactor: Any, address: Address, first_try_seconds: float, greeted: Callable[[Box], None]
    ) -> None:
        """`greeted` looks at the answer to the handshake, and raises when the other side is not who it should be."""
        self._reactor = reactor
        self._address = address
        self._first_try_seconds = first_try_seconds
        self._greeted = greeted
        self._last: CallerProtocol | None = None  # also one that was not greeted
        self.connecting = Shared(self._connect)
        """The connection that is being made."""
        self.connection: CallerProtocol | None = None
        """The last one that was greeted; it may be closed by now."""

    async def _connect(self) -> CallerProtocol:
        last, seconds = self._last, self._first_try_seconds
        if last is not None and last.is_overdue:
            seconds = min(2 * last.try_seconds, TRY_SECONDS_MAX)
        host, port = self._address
        endpoint = HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_SECONDS_MAX)
        connection: CallerProtocol = await connectProtocol(endpoint, CallerProtocol(self._reactor, seconds))
        self._last = connection
        try:
            self._greeted(await connection.call(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION)))
        except BaseException:
            await connection.abort()
            raise
        self.connection = connection
        return connection

    async def close(self) -> None:
        """Close the connection, or give up making it."""
        await self.connecting.cancel()
        connection, self.connection = self.connection, None
        if connection is not None and connection.open:
            await connection.abort()
