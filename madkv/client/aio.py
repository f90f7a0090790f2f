"""The asyncio face of the client: many calls in flight on one connection, each exactly once.

    async with AsyncClient("127.0.0.1:3777") as store:
        existed = await store.put(b"key", b"value")

It needs no Twisted. A client belongs to the event loop in which its first call is made, and is not thread-safe. Calls
that are in flight together may take effect in any order; await one to have it precede the next.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, TypeVar

from madkv.addresses import Address
from madkv.client.aio_connection import Connection, connect, fail
from madkv.client.inflight import CallsInFlight
from madkv.limits import CLIENT_ID_BYTES
from madkv.tls import TLSFiles, tls_files

T = TypeVar("T")


class AsyncClient(CallsInFlight):
    """A client of one store: of a single server, or of a cluster, by its managers (a list, or text with commas).

    Every call is retried for ever until it has its answer, and takes effect exactly once. Calls about keys of different
    partitions do not wait for one another. Into each partition up to 1,024 writes are in flight; the next ones wait for
    room, in order. `notice` gets one line when calls begin to wait for something that is not there.

    Cancelling a task that awaits a call, or a time-out around it, gives up that call and no other. A write that was
    given up may take effect or not, also a moment later.
    """

    def __init__(
        self,
        server: str | Address | None = None,
        *,
        managers: str | Iterable[str | Address] | None = None,
        notice: Callable[[str], object] | None = None,
        tls: TLSFiles | None = None,
    ) -> None:
        """Raises InvalidArgument unless there is either a server or managers, at addresses, and for files of no use."""
        super().__init__(LoopDriver(tls), os.urandom(CLIENT_ID_BYTES), server, managers, notice or (lambda line: None))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def put(self, key: bytes, value: bytes) -> bool:
        """Set the value of a key; whether the key existed.

        Raises InvalidArgument for a key or value out of bounds, before anything is sent; OutcomeUnknown when the
        client was cut off for longer than a session lives; Abandoned when the client was closed meanwhile; Rejected
        and VersionMismatch when what it was given, or led to, is not what a client can talk to.
        """
        return await self._put(key, value)

    async def swap(self, key: bytes, value: bytes) -> bytes | None:
        """Set the value of a key; the value it had, None if it did not exist. Raises as `put`."""
        return await self._swap(key, value)

    async def delete(self, key: bytes) -> bool:
        """Remove a key; whether it existed. Raises as `put`."""
        return await self._delete(key)

    async def get(self, key: bytes) -> bytes | None:
        """The value of a key, None if it does not exist. Raises as `put`, but for OutcomeUnknown."""
        return await self._get(key)

    async def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """All pairs with start <= key <= end in key order. Raises as `get`.

        A single server shows them as they were at one point. In a cluster each was there at some point while the scan
        ran, and the pages of one group show ever later points.
        """
        return await self._scan(start, end)

    async def close(self) -> None:
        """Close all sessions and connections, within a second. Calls that still wait raise Abandoned."""
        await self._close()


class LoopDriver:
    """The running event loop, as the client uses it (`madkv.client.driver.Driver`)."""

    unreachable: tuple[type[Exception], ...] = (OSError,)
    cancelled: type[BaseException] = asyncio.CancelledError
    fail = staticmethod(fail)

    def __init__(self, tls: TLSFiles | None = None) -> None:
        """With `tls`, or the variables of the environment that stand for it, connections are TLS."""
        self._tls = tls or tls_files(None, None, None, os.environ)
        if self._tls is not None:
            from madkv.client.secure import context_of

            context_of(self._tls)

    async def connect(self, address: Address, try_seconds: float) -> Connection:
        """A connection to whichever address the name stands for."""
        return await connect(address, try_seconds, self._tls)

    def waiter(self) -> "asyncio.Future[Any]":
        """A Future for one to await."""
        return asyncio.get_running_loop().create_future()

    def succeed(self, waiter: "asyncio.Future[Any]", result: object) -> None:
        """Whoever awaits it goes on in the loop's next turn."""
        if not waiter.done():
            waiter.set_result(result)

    def call_later(self, seconds: float, do: Callable[[], object]) -> Callable[[], object]:
        """A timer, and what stops it."""
        return asyncio.get_running_loop().call_later(seconds, do).cancel

    def start(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | None, BaseException | None], None]
    ) -> "asyncio.Task[T]":
        """Run it as a task, which begins in the loop's next turn."""

        def ended(task: "asyncio.Task[T]") -> None:
            # A task that was cancelled before it began has not run a line of its own, so this stands outside of it.
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            done(None if error is not None else task.result(), error)

        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(ended)
        return task

    async def together(self, works: list[Coroutine[Any, Any, T]]) -> list[T]:
        """Run each as a task; when this ends, for whatever reason, all of them have ended."""
        tasks = [asyncio.get_running_loop().create_task(work) for work in works]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
