"""The Deferred face of the client: many calls in flight on one connection, each exactly once.

    client = Client(reactor, "127.0.0.1:3777")
    existed = await client.put(b"key", b"value")

Every method returns a Deferred at once, which fires with the answer; it may be awaited, or not at all. Calls that are
in flight together may take effect in any order; await one to have it precede the next.
"""

import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from madkv.addresses import Address
from madkv.client.inflight import CallsInFlight
from madkv.errors import InvalidArgument, TLSError
from madkv.limits import CLIENT_ID_BYTES, CONNECT_SECONDS_MAX
from madkv.tls import TLSFiles, tls_files
from madkv.wire.caller import CallerProtocol
from madkv.wire.endpoint import connect, endpoint_to

T = TypeVar("T")


class Client(CallsInFlight):
    """A client of one store: of a single server, or of a cluster, by its managers (a list, or text with commas).

    Every call is retried until it has its answer. Calls about keys of different partitions do not wait for one another.
    `reactor` may be any with TCP and time.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        server: str | Address | None = None,
        *,
        managers: str | Iterable[str | Address] | None = None,
        tls: TLSFiles | None = None,
    ) -> None:
        """With `tls`, or the variables of the environment that stand for it, all connections are TLS.

        Raises InvalidArgument unless there is either a server or managers, at addresses, and for files of no use.
        """
        super().__init__(ReactorDriver(reactor, tls), os.urandom(CLIENT_ID_BYTES), server, managers, self._log)

    def _log(self, line: str) -> None:
        self.log.info("{line}", line=line)

    # --- Operations -------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> Deferred[bool]:
        """Set the value of a key; whether the key existed.

        Fails with InvalidArgument for a key or value out of bounds, before anything is sent; with OutcomeUnknown when
        the client was cut off for longer than a session lives; with Abandoned when the client was closed meanwhile;
        with Rejected or VersionMismatch when what it was given, or led to, is not what a client can talk to.
        """
        return Deferred.fromCoroutine(self._put(key, value))

    def swap(self, key: bytes, value: bytes) -> Deferred[bytes | None]:
        """Set the value of a key; the value it had, None if it did not exist. Fails as `put`."""
        return Deferred.fromCoroutine(self._swap(key, value))

    def delete(self, key: bytes) -> Deferred[bool]:
        """Remove a key; whether it existed. Fails as `put`."""
        return Deferred.fromCoroutine(self._delete(key))

    def get(self, key: bytes) -> Deferred[bytes | None]:
        """The value of a key, None if it does not exist. Fails as `put`, but for OutcomeUnknown."""
        return Deferred.fromCoroutine(self._get(key))

    def scan(self, start: bytes, end: bytes) -> Deferred[list[tuple[bytes, bytes]]]:
        """All pairs with start <= key <= end in key order. Fails as `get`.

        A single server shows them as they were at one point. In a cluster each was there at some point while the scan
        ran, and the pages of one group show ever later points.
        """
        return Deferred.fromCoroutine(self._scan(start, end))

    def close(self) -> Deferred[None]:
        """Close all sessions and connections, within a second. Calls that still wait fail with Abandoned."""
        return Deferred.fromCoroutine(self._close())


class ReactorDriver:
    """A reactor, as the client uses it (`madkv.client.driver.Driver`)."""

    unreachable: tuple[type[Exception], ...] = (
        error.ConnectError,
        error.ConnectingCancelledError,
        error.ConnectionClosed,
        error.DNSLookupError,
    )
    cancelled: type[BaseException] = CancelledError

    def __init__(self, reactor: Any, tls: TLSFiles | None = None) -> None:
        self._reactor = reactor
        self._tls = tls or tls_files(None, None, None, os.environ)
        if self._tls is not None:
            from madkv.wire.tls import Credentials

            Credentials(self._tls)

    def waiter(self) -> Deferred[Any]:
        """A Deferred for one to await."""
        return Deferred()

    def succeed(self, waiter: Deferred[Any], result: object) -> None:
        """Fire it; whoever awaits it goes on before this returns."""
        waiter.callback(result)

    def fail(self, waiter: Deferred[Any], error: BaseException) -> None:
        """Fire it with the error."""
        waiter.errback(error)

    def call_later(self, seconds: float, do: Callable[[], object]) -> Callable[[], object]:
        """A delayed call, and what cancels it."""
        call = self._reactor.callLater(seconds, do)
        return lambda: call.active() and call.cancel()

    def start(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | None, BaseException | None], None]
    ) -> Deferred[None]:
        """Run it as far as it goes at once."""

        def failed(failure: Failure) -> None:
            done(None, failure.value)

        return Deferred.fromCoroutine(work).addCallbacks(lambda result: done(result, None), failed)

    async def together(self, works: list[Coroutine[Any, Any, T]]) -> list[T]:
        """Run all of them as far as they go at once, and wait for the rest."""
        running = [Deferred.fromCoroutine(work) for work in works]
        try:
            return await gatherResults(running, consumeErrors=True)
        except FirstError as first:
            for each in running:
                each.cancel()
            first.subFailure.raiseException()

    async def connect(self, address: Address, try_seconds: float) -> CallerProtocol:
        """Connect to whichever address the name stands for."""
        endpoint = endpoint_to(address, self._reactor, CONNECT_SECONDS_MAX)
        if self._tls is not None:
            from madkv.wire.tls import Credentials

            try:  # again for each connection, so that a client that lives long takes up new files
                endpoint = Credentials(self._tls).connecting(endpoint, self._reactor, address)
            except InvalidArgument as error:
                raise TLSError(str(error)) from None
        return await connect(endpoint, lambda: CallerProtocol(self._reactor, try_seconds))
