"""What the client with many calls in flight needs of whatever runs it: Twisted's reactor, or asyncio's event loop.

Pure: only what is asked for is said here. A *waiter* is what that framework makes for one coroutine to await, once.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from madkv.addresses import Address
from madkv.wire.boxes import Box

T = TypeVar("T")


class Caller(Protocol):
    """A connection to one replica, on which any number of calls may wait for their answers."""

    try_seconds: float
    """How long a call may wait without anything being heard; then the connection is dropped."""
    is_overdue: bool
    """Whether it was dropped for that."""
    open: bool

    @property
    def certified(self) -> frozenset[str] | None:
        """The names in the other side's certificate; None without TLS."""

    def call(self, command: bytes, fields: bytes) -> Awaitable[Box]:
        """Send one call at once; what is awaited is its answer.

        Raises the error that the answer declares, and one of the driver's `unreachable` when the connection goes first.
        """

    def abort(self) -> Awaitable[None]:
        """Close the connection at once; awaited, until it is closed."""


class Work(Protocol):
    """Something that goes on by itself."""

    def cancel(self) -> object:
        """Raise the driver's `cancelled` in it, where it waits."""


class Driver(Protocol):
    """The reactor or the event loop, as far as the client uses it."""

    unreachable: tuple[type[Exception], ...]
    """What `connect` raises, and a call on a connection that goes; another try may help."""
    cancelled: type[BaseException]

    def waiter(self) -> Any:
        """Something to await, until `succeed` or `fail` is called with it."""

    def succeed(self, waiter: Any, result: object) -> None:
        """Have whoever awaits it go on with the result, if nobody has cancelled it."""

    def fail(self, waiter: Any, error: BaseException) -> None:
        """Raise the error there, if nobody has cancelled it."""

    def call_later(self, seconds: float, do: Callable[[], object]) -> Callable[[], object]:
        """Call `do` after so many seconds; what is returned prevents it, and may be called at any time."""

    def start(self, work: Coroutine[Any, Any, T], done: Callable[[T | None, BaseException | None], None]) -> Work:
        """Have a coroutine go on by itself, and tell `done` its result or what it raised, also if it was cancelled."""

    def together(self, works: list[Coroutine[Any, Any, T]]) -> Awaitable[list[T]]:
        """Run coroutines side by side; their results in order. When one raises, the others are cancelled."""

    def connect(self, address: Address, try_seconds: float) -> Awaitable[Caller]:
        """Make a connection, within CONNECT_SECONDS_MAX."""
