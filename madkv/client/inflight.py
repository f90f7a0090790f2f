"""The life of a call, with many in flight: what the Deferred and the asyncio face of the client have in common.

Pure: what runs these coroutines, keeps the time and makes the connections is a `Driver`, and which one it is cannot be
seen from here. The rules are those of session.py and router.py.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from madkv.addresses import Address
from madkv.arguments import check_key, check_scan, check_value
from madkv.client.driver import Caller, Driver
from madkv.client.links import CLOSED, Link, Shared
from madkv.client.router import MANAGERS, Router, Tries, pace_of
from madkv.client.scan import Piece
from madkv.client.session import Call, Session
from madkv.errors import (
    Abandoned,
    InternalError,
    Interrupted,
    ProtocolError,
    Refused,
    Rejected,
    ScanExpired,
    UnknownSession,
    WrongPartition,
)
from madkv.limits import CLOSE_SECONDS_MAX
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field

T = TypeVar("T")


class CallsInFlight:
    """A client of one store, without the methods that its users see: a face adds those, in its framework's manner."""

    def __init__(
        self,
        driver: Driver,
        client_id: bytes,
        server: str | Address | None,
        managers: str | Iterable[str | Address] | None,
        notice: Callable[[str], object],
    ) -> None:
        """`notice` gets one line when calls begin to wait for a group that has not answered since."""
        self._driver = driver
        self._router = Router(server, managers)
        self._router.pace = pace_of(client_id)
        self._client_id = client_id
        self._notice = notice
        self._again: tuple[type[Exception], ...] = (
            *driver.unreachable,
            *(ProtocolError, Refused, Interrupted, InternalError, ScanExpired, Rejected),
        )
        """What another try can cure."""
        self._partitions: dict[int, _Partition] = {}
        self._links: dict[tuple[int, Address], Link] = {}
        self._learning = Shared(driver, self._learn_map)
        self._pauses: set[Any] = set()
        self._closed = False
        self._waited_for: set[int] = set()  # groups of which it was said, and that have not answered since

    # --- Operations -------------------------------------------------------------------------------------------------

    async def _put(self, key: bytes, value: bytes) -> bool:
        check_key(key)
        check_value(value)
        return await self._write(codec.PUT, key, field(b"key", key) + blob(b"value", value), codec.take_found)

    async def _swap(self, key: bytes, value: bytes) -> bytes | None:
        check_key(key)
        check_value(value)
        return await self._write(codec.SWAP, key, field(b"key", key) + blob(b"value", value), codec.take_value)

    async def _delete(self, key: bytes) -> bool:
        check_key(key)
        return await self._write(codec.DELETE, key, field(b"key", key), codec.take_found)

    async def _get(self, key: bytes) -> bytes | None:
        check_key(key)
        fields = field(b"key", key)

        async def attempt(connection: Caller) -> bytes | None:
            return codec.take_value(await connection.call(codec.GET, fields))

        while True:
            if self._router.map is None:
                await self._learning.wait()
            try:
                return await self._retried(self._router.group_of(key), lambda: key, attempt)
            except WrongPartition:
                pass  # the key is another group's by now

    async def _scan(self, start: bytes, end: bytes) -> list[codec.Pair]:
        check_scan(start, end)
        if start > end:
            return []
        if self._router.map is None:
            await self._learning.wait()
        return await self._scan_pieces(start, None, end)

    async def _scan_pieces(self, start: bytes, before: bytes | None, end: bytes) -> list[codec.Pair]:
        """What a scan to `end` finds from `start` on and before `before`; all groups are asked at once."""
        pieces = [Piece(*piece, end) for piece in self._router.pieces(start, before, end)]
        if len(pieces) == 1:
            return await self._scan_piece(pieces[0])
        parts = await self._driver.together([self._scan_piece(piece) for piece in pieces])
        return [pair for part in parts for pair in part]

    async def _scan_piece(self, piece: Piece) -> list[codec.Pair]:
        async def attempt(connection: Caller) -> list[codec.Pair]:
            if self._router.is_single:
                piece.restart()  # a page is good once, and on one connection
            while not piece.done:
                piece.take(await connection.call(codec.SCAN, piece.request()))
            return piece.pairs

        try:
            return await self._retried(piece.group, lambda: piece.begin, attempt)
        except WrongPartition:
            piece.restart()
            return piece.pairs + await self._scan_pieces(piece.begin, piece.before, piece.end)

    # --- The life of a call -----------------------------------------------------------------------------------------

    async def _write(self, command: bytes, key: bytes, fields: bytes, answer_in: Callable[[Box], T]) -> T:
        while True:
            if self._router.map is None:
                await self._learning.wait()
            try:
                return await self._write_at(self._router.group_of(key), command, key, fields, answer_in)
            except WrongPartition:
                pass  # not executed, and the key is another group's by now

    async def _write_at(
        self, group: int, command: bytes, key: bytes, fields: bytes, answer_in: Callable[[Box], T]
    ) -> T:
        partition = self._partition(group)
        call = await partition.begin()

        async def attempt(connection: Caller) -> T:
            return answer_in(await partition.attempt_write(connection, call, command, fields))

        try:
            return await self._retried(group, lambda: key, attempt)
        except WrongPartition:
            partition.session.moved(call)
            raise
        finally:
            partition.end(call)

    async def _retried(
        self,
        group: int,
        key_of: Callable[[], bytes],
        attempt: Callable[[Caller], Awaitable[T]],
    ) -> T:
        """Try until there is an answer. Raises WrongPartition when the group does not own the key that it refused."""
        tries = Tries(self._router, group)
        while not self._is_closed():
            link = self._link(group, tries.choose())
            try:
                connection = link.connection
                if connection is None or not connection.open:
                    connection = await link.connecting.wait()
                result = await attempt(connection)
                self._waited_for.discard(group)
                return result
            except WrongPartition as refusal:
                if self._router.misplaced(refusal.epoch):
                    await self._learning.wait()
                elif self._router.group_of(key_of()) == group:
                    await self._wait(tries, refusal, tries.wait_seconds())
                if self._router.group_of(key_of()) != group:
                    raise
            except self._again as why:
                if self._is_closed():
                    break
                seconds = self._failed(tries, why)
                if seconds:
                    await self._wait(tries, why, seconds)
        raise Abandoned(CLOSED)

    def _is_closed(self) -> bool:
        return self._closed

    def _failed(self, tries: Tries, why: Exception) -> float:
        """As `Tries.failed`; and tell of a stranger."""
        seconds = tries.failed(why)
        news = tries.news(why)
        if news is not None:
            self._notice(news)
        return seconds

    async def _wait(self, tries: Tries, why: Exception, seconds: float) -> None:
        """Wait before the next try; say for whom and why, if that was not said since the group answered last."""
        if tries.group not in self._waited_for:
            self._waited_for.add(tries.group)
            self._notice(f"waiting for {tries.whom()}: {why}")
        pause = self._driver.waiter()
        stop = self._driver.call_later(seconds, lambda: self._driver.succeed(pause, None))
        self._pauses.add(pause)
        try:
            await pause
        finally:
            stop()
            self._pauses.discard(pause)

    # --- What a call needs --------------------------------------------------------------------------------------------

    async def _learn_map(self) -> None:
        """Ask the managers, for ever if need be, and let go of them then: a map is good for long."""
        tries = Tries(self._router, MANAGERS)
        while self._router.needs_map and not self._is_closed():
            link = self._link(MANAGERS, tries.choose())
            try:
                connection = await link.connecting.wait()
                self._router.learn(await connection.call(codec.GET_MAP, b""))
                self._waited_for.discard(MANAGERS)
            except self._again as why:
                if not self._is_closed():
                    seconds = self._failed(tries, why)
                    if seconds:
                        await self._wait(tries, why, seconds)
            finally:
                await link.close()
        if self._router.needs_map:
            raise Abandoned(CLOSED)

    def _partition(self, group: int) -> "_Partition":
        partition = self._partitions.get(group)
        if partition is None:
            partition = self._partitions[group] = _Partition(self._driver, self._client_id)
        return partition

    def _link(self, group: int, replica: int) -> Link:
        address = self._router.addresses(group)[replica]
        link = self._links.get((group, address))
        if link is None:

            def greeted(hello: Box) -> None:
                boot = self._router.check_hello(group, replica, hello)
                if group != MANAGERS:
                    self._partition(group).session.connected(boot)

            first_try_seconds = Tries(self._router, group).try_seconds
            link = self._links[group, address] = Link(self._driver, address, first_try_seconds, greeted)
        return link

    async def _close(self) -> None:
        self._closed = True
        for partition in self._partitions.values():
            partition.abandon()
        for pause in list(self._pauses):
            self._driver.succeed(pause, None)
        try:
            closing = [self._close_session(group, partition) for group, partition in self._partitions.items()]
            await self._driver.together(closing)
        finally:
            await self._driver.together([link.close() for link in self._links.values()])
            await self._learning.cancel()

    async def _close_session(self, group: int, partition: "_Partition") -> None:
        connection = self._link(group, self._router.first(group)).connection
        index = partition.session.index
        if index is None or connection is None or not connection.open:
            return
        stop = self._driver.call_later(CLOSE_SECONDS_MAX, connection.abort)
        try:
            await connection.call(codec.CLOSE_SESSION, codec.integer(b"session", index))
        except Exception:
            pass  # it is left to expire
        finally:
            stop()


class _Room:
    """A write's place among those that wait until their session takes another call."""

    __slots__ = ("call", "waiter")

    def __init__(self, waiter: Any) -> None:
        self.waiter = waiter
        self.call: Call | None = None
        """What it was given, possibly before it could notice."""


class _Partition:
    """What a client has at one partition: its session, and the writes that wait for room in it."""

    def __init__(self, driver: Driver, client_id: bytes) -> None:
        self.session = Session(client_id)
        self._driver = driver
        self._rooms: OrderedDict[_Room, None] = OrderedDict()  # whoever came first is the first
        self._opening = Shared(driver, self._open)

    async def begin(self) -> Call:
        """A new call, as soon as the session has room for it; `end` it in any case."""
        if not self.session.full:
            return self.session.begin()
        room = _Room(self._driver.waiter())
        self._rooms[room] = None
        try:
            await room.waiter
        except BaseException:
            self._rooms.pop(room, None)
            if room.call is not None:  # cancelled when it had its call and did not know it yet
                self.end(room.call)
            raise
        assert room.call is not None
        return room.call

    def end(self, call: Call) -> None:
        """The call has its answer or was given up; those that wait may have room by that."""
        self.session.end(call)
        while self._rooms and not self.session.full:
            room, _ = self._rooms.popitem(last=False)
            room.call = self.session.begin()
            self._driver.succeed(room.waiter, None)

    def abandon(self) -> None:
        """The client is closed: nobody gets room any more."""
        rooms, self._rooms = self._rooms, OrderedDict()
        for room in rooms:
            self._driver.fail(room.waiter, Abandoned(CLOSED))

    async def attempt_write(self, connection: Caller, call: Call, command: bytes, fields: bytes) -> Box:
        """Make a call once, in a session that is opened first if need be."""
        session = self.session
        sessions_lost = 0
        while True:
            if session.index is None:
                await self._opening.wait(connection)
                if not connection.open:
                    raise ProtocolError("the connection is closed")
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

    async def _open(self, connection: Caller) -> None:
        opened = await connection.call(codec.OPEN_SESSION, field(b"client_id", self.session.client_id))
        if connection.open:
            self.session.opened(codec.take_answer_integer(opened, b"session"))
