"""The Deferred face of the client: many calls in flight on one connection, each exactly once.

    client = Client(reactor, "127.0.0.1:3777")
    existed = await client.put(b"key", b"value")

Every method returns a Deferred at once, which fires with the answer; it may be awaited, or not at all. Calls that are
in flight together may take effect in any order; await one to have it precede the next.
"""

import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet import error, task
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.logger import Logger

from madkv.addresses import Address
from madkv.arguments import check_key, check_scan, check_value
from madkv.client.links import Link, Shared
from madkv.client.router import MANAGERS, Router, Tries, pace_of
from madkv.client.scan import Piece
from madkv.client.session import Call, Session
from madkv.errors import (
    Abandoned,
    InternalError,
    Interrupted,
    ProtocolError,
    Refused,
    ScanExpired,
    UnknownSession,
    WrongPartition,
)
from madkv.limits import CLIENT_ID_BYTES, CLOSE_SECONDS_MAX
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
    ) -> None:
        self._reactor = reactor
        self._router = Router(server, managers)
        self._client_id = os.urandom(CLIENT_ID_BYTES)
        self._router.pace = pace_of(self._client_id)
        self._partitions: dict[int, _Partition] = {}
        self._links: dict[tuple[int, Address], Link] = {}
        self._learning = Shared(self._learn_map)
        self._pauses: set[Deferred[None]] = set()
        self._closed = False
        self._waited_for: set[int] = set()  # groups of which it was said, and that have not answered since

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

        async def attempt(connection: CallerProtocol) -> bytes | None:
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
        pieces = self._router.pieces(start, before, end)
        asked = [Deferred.fromCoroutine(self._scan_piece(Piece(*piece, end))) for piece in pieces]
        try:
            parts = await gatherResults(asked, consumeErrors=True)
        except FirstError as first:
            for deferred in asked:
                deferred.cancel()
            first.subFailure.raiseException()
        return [pair for part in parts for pair in part]

    async def _scan_piece(self, piece: Piece) -> list[codec.Pair]:
        async def attempt(connection: CallerProtocol) -> list[codec.Pair]:
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
        session = partition.session
        while session.full:
            room: Deferred[None] = Deferred()
            partition.room.append(room)
            await room
        call = session.begin()

        async def attempt(connection: CallerProtocol) -> T:
            return answer_in(await partition.attempt_write(connection, call, command, fields))

        try:
            return await self._retried(group, lambda: key, attempt)
        except WrongPartition:
            session.moved(call)
            raise
        finally:
            session.end(call)
            while partition.room and not session.full:
                partition.room.pop(0).callback(None)

    async def _retried(
        self,
        group: int,
        key_of: Callable[[], bytes],
        attempt: Callable[[CallerProtocol], Coroutine[Deferred[Any], Any, T]],
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
            except (*_AGAIN, CancelledError) as why:
                if self._is_closed():
                    break
                if isinstance(why, CancelledError):
                    raise
                seconds = tries.failed(why)
                if seconds:
                    await self._wait(tries, why, seconds)
        raise Abandoned(_CLOSED)

    def _is_closed(self) -> bool:
        return self._closed

    async def _wait(self, tries: Tries, why: Exception, seconds: float) -> None:
        """Wait before the next try; say for whom and why, if that was not said since the group answered last."""
        if tries.group not in self._waited_for:
            self._waited_for.add(tries.group)
            self.log.info("waiting for {whom}: {why}", whom=tries.whom(), why=str(why))
        pause: Deferred[None] = task.deferLater(self._reactor, seconds)
        self._pauses.add(pause)
        try:
            await pause
        except CancelledError:
            if not self._is_closed():
                raise  # it was the caller who cancelled the call
        finally:
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
            except (*_AGAIN, CancelledError) as why:
                if not self._is_closed() and not isinstance(why, CancelledError):
                    seconds = tries.failed(why)
                    if seconds:
                        await self._wait(tries, why, seconds)
            finally:
                await link.close()
        if self._router.needs_map:
            raise Abandoned(_CLOSED)

    def _partition(self, group: int) -> "_Partition":
        partition = self._partitions.get(group)
        if partition is None:
            partition = self._partitions[group] = _Partition(self._client_id)
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
            link = self._links[group, address] = Link(self._reactor, address, first_try_seconds, greeted)
        return link

    async def _close(self) -> None:
        self._closed = True
        for partition in self._partitions.values():
            for room in partition.room:
                room.errback(Abandoned(_CLOSED))
            partition.room.clear()
        for pause in list(self._pauses):
            pause.cancel()
        closing = [self._close_session(group, partition) for group, partition in self._partitions.items()]
        await gatherResults([Deferred.fromCoroutine(each) for each in closing])
        await gatherResults([Deferred.fromCoroutine(link.close()) for link in self._links.values()])

    async def _close_session(self, group: int, partition: "_Partition") -> None:
        connection = self._link(group, self._router.first(group)).connection
        index = partition.session.index
        if index is None or connection is None or not connection.open:
            return
        try:
            fields = codec.integer(b"session", index)
            await connection.call(codec.CLOSE_SESSION, fields).addTimeout(CLOSE_SECONDS_MAX, self._reactor)
        except Exception as why:
            self.log.debug("the session was left to expire: {why}", why=str(why))


class _Partition:
    """What a client has at one partition: its session, and the writes that wait for room in it."""

    def __init__(self, client_id: bytes) -> None:
        self.session = Session(client_id)
        self.room: list[Deferred[None]] = []
        self._opening = Shared(self._open)

    async def attempt_write(self, connection: CallerProtocol, call: Call, command: bytes, fields: bytes) -> Box:
        """Make a call once, in a session that is opened first if need be."""
        session = self.session
        sessions_lost = 0
        while True:
            if session.index is None:
                await self._opening.wait(connection)
                if not connection.open:
                    raise error.ConnectionLost("the connection is closed")
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

    async def _open(self, connection: CallerProtocol) -> None:
        opened = await connection.call(codec.OPEN_SESSION, field(b"client_id", self.session.client_id))
        if connection.open:
            self.session.opened(codec.take_answer_integer(opened, b"session"))
