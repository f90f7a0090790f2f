"""The connections of a client with many calls in flight: one to each address, made once for all that wait for it."""

from collections.abc import Callable, Coroutine
from typing import Any

from madkv.addresses import Address
from madkv.client.driver import Caller, Driver, Work
from madkv.errors import Abandoned
from madkv.limits import TRY_SECONDS_MAX
from madkv.tls import check_hello
from madkv.wire import codec
from madkv.wire.boxes import Box

CLOSED = "the client was closed before this call had its answer"


class Shared:
    """Work that many wait for and that is done once: whoever comes first starts it, with what it gives."""

    def __init__(self, driver: Driver, start: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._driver = driver
        self._start = start
        self._waiting: dict[Any, None] = {}  # in the order in which they came
        self._work: Work | None = None
        self._is_going = False
        self._given_up = False

    async def wait(self, *arguments: Any) -> Any:
        """The result of the work that is going on, or is started now.

        Whoever is cancelled while it waits takes nothing from the others.
        """
        waiter = self._driver.waiter()
        self._waiting[waiter] = None
        try:
            if not self._is_going:
                self._is_going, self._given_up = True, False
                self._work = self._driver.start(self._start(*arguments), self._done)
            return await waiter
        finally:
            self._waiting.pop(waiter, None)

    async def cancel(self) -> None:
        """Give up the work that is going on, if there is any, and wait for its end: whoever waits gets Abandoned."""
        if not self._is_going or self._work is None:
            return
        self._given_up = True
        self._work.cancel()
        if self._is_going:
            try:
                await self.wait()
            except Abandoned:
                pass

    def _done(self, result: Any, error: BaseException | None) -> None:
        self._is_going = False
        if error is not None and (self._given_up or isinstance(error, self._driver.cancelled)):
            error = Abandoned(CLOSED)
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if error is None:
                self._driver.succeed(waiter, result)
            else:
                self._driver.fail(waiter, error)


class Link:
    """The connection to one address, as long as there is one.

    Calls share it, and so its patience: when a connection ends for want of an answer, the next one to the same address
    waits twice as long, up to TRY_SECONDS_MAX. A server that is slow for everybody is given the time that it takes.
    """

    def __init__(
        self, driver: Driver, address: Address, first_try_seconds: float, greeted: Callable[[Box], None]
    ) -> None:
        """`greeted` looks at the answer to the handshake, and raises when the other side is not who it should be."""
        self._driver = driver
        self._address = address
        self._first_try_seconds = first_try_seconds
        self._greeted = greeted
        self._last: Caller | None = None  # also one that was not greeted
        self.connecting = Shared(driver, self._connect)
        """The connection that is being made."""
        self.connection: Caller | None = None
        """The last one that was greeted; it may be closed by now."""

    async def _connect(self) -> Caller:
        last, seconds = self._last, self._first_try_seconds
        if last is not None and last.is_overdue:
            seconds = min(2 * last.try_seconds, TRY_SECONDS_MAX)
        connection = await self._driver.connect(self._address, seconds)
        self._last = connection
        try:
            hello = await connection.call(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
            check_hello(connection.certified, hello)
            self._greeted(hello)
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
