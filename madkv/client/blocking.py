"""The blocking face of the client, for scripts and for the line interface: one call at a time on plain sockets.

    with BlockingClient("127.0.0.1:3777") as store:
        store.put(b"key", b"value")

It imports nothing heavy, so that a process that uses it starts at once. It is not thread-safe: one client per thread.
"""

import os
import select
import time
from collections.abc import Callable, Iterable
from types import TracebackType

from madkv.addresses import Address
from madkv.arguments import check_key, check_scan, check_value
from madkv.client.connection import Connection, connector
from madkv.client.router import MANAGERS, Router, Tries, pace_of
from madkv.client.scan import Piece
from madkv.client.session import Session
from madkv.errors import (
    Abandoned,
    InternalError,
    Interrupted,
    MadKVError,
    ProtocolError,
    Refused,
    Rejected,
    ScanExpired,
    UnknownSession,
    WrongPartition,
)
from madkv.limits import CLIENT_ID_BYTES, CLOSE_SECONDS_MAX
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field

TYPE_CHECKING = False
if TYPE_CHECKING:  # at run time, importing typing would take as long as everything else here
    from typing import TypeVar

    from madkv.tls import TLSFiles

    Answer = TypeVar("Answer")

_AGAIN = (OSError, ProtocolError, Refused, Interrupted, InternalError, ScanExpired, Rejected)
"""What a retry can cure: nothing to reach, a broken or confused connection, a refusal for now, a stranger in the place
of one of several."""


class BlockingClient:
    """A client of one store: of a single server, or of a cluster, by its managers (a list, or text with commas).

    Every call is retried for ever until it has its answer, and takes effect exactly once. `notice` gets one line when
    a call begins to wait for something that is not there. `abandon_fd` is a file descriptor that somebody reads from:
    when its reader is gone, whatever is being waited for is given up with Abandoned. With `tls`, or the variables of
    the environment that stand for it, all connections are TLS.
    """

    def __init__(
        self,
        server: str | Address | None = None,
        *,
        managers: str | Iterable[str | Address] | None = None,
        notice: Callable[[str], None] | None = None,
        abandon_fd: int | None = None,
        tls: "TLSFiles | None" = None,
    ) -> None:
        """Raises InvalidArgument for addresses that are none, and for TLS's files that are of no use."""
        self._connect = connector(tls)
        self._router = Router(server, managers)
        self._client_id = os.urandom(CLIENT_ID_BYTES)
        self._router.pace = pace_of(self._client_id)
        self._sessions: dict[int, Session] = {}  # by partition
        self._connections: dict[Address, Connection] = {}
        self._notice = notice
        self._abandon_fd = abandon_fd

    def __enter__(self) -> "BlockingClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- Operations -------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> bool:
        """Set the value of a key; whether the key existed.

        Raises InvalidArgument for a key or value out of bounds, before anything is sent; OutcomeUnknown when the
        client was cut off for longer than a session lives; Rejected and VersionMismatch when what it was given, or
        led to, is not what a client can talk to.
        """
        check_key(key)
        check_value(value)
        return self._write(codec.PUT, key, field(b"key", key) + blob(b"value", value), codec.take_found)

    def swap(self, key: bytes, value: bytes) -> bytes | None:
        """Set the value of a key; the value it had, None if it did not exist. Raises as `put`."""
        check_key(key)
        check_value(value)
        return self._write(codec.SWAP, key, field(b"key", key) + blob(b"value", value), codec.take_value)

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it existed. Raises as `put`."""
        check_key(key)
        return self._write(codec.DELETE, key, field(b"key", key), codec.take_found)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None if it does not exist. Raises as `put`, but for OutcomeUnknown."""
        check_key(key)
        fields = field(b"key", key)

        def attempt(connection: Connection, seconds_max: float) -> bytes | None:
            return codec.take_value(connection.exchange(codec.GET, fields, seconds_max))

        while True:
            try:
                return self._retried(self._group_of(key), key, attempt)
            except WrongPartition:
                pass  # the key is another group's by now

    def scan(self, start: bytes, end: bytes) -> list[codec.Pair]:
        """All pairs with start <= key <= end in key order. Raises as `get`.

        A single server shows them as they were at one point. In a cluster each was there at some point while the scan
        ran, and the pages of one group show ever later points.
        """
        check_scan(start, end)
        if start > end:
            return []
        self._group_of(start)
        pieces = self._pieces(start, None, end)
        tries: dict[Piece, Tries] = {}
        waits: dict[Piece, tuple[Exception, float]] = {}
        waited_for: set[int] = set()
        while unfinished := [piece for piece in pieces if not piece.done]:
            ready = [piece for piece in unfinished if piece not in waits]
            if not ready:
                piece = min(waits, key=lambda piece: waits[piece][1])
                tries[piece].said |= piece.group in waited_for
                waited_for.add(piece.group)
                self._wait(tries[piece], *waits[piece])
                waits.clear()
                continue
            for piece in ready:
                if piece not in tries:
                    tries[piece] = Tries(self._router, piece.group)
            for piece, refusal in self._scan_pages(ready, tries, waits):
                is_new = self._learn_of(refusal)
                if self._router.group_of(piece.begin) != piece.group:
                    at = pieces.index(piece)
                    pieces[at + 1 : at + 1] = self._pieces(piece.begin, piece.before, end)
                    piece.done = True
                elif not is_new:
                    waits[piece] = refusal, tries[piece].wait_seconds()
        return [pair for piece in pieces for pair in piece.pairs]

    def close(self) -> None:
        """Close all sessions and connections; takes a second at most, and fails silently: sessions expire too."""
        deadline = time.monotonic() + CLOSE_SECONDS_MAX
        asked: list[Connection] = []
        try:
            for group, session in self._sessions.items():
                address = self._router.addresses(group)[self._router.first(group)]
                connection = self._connections.get(address)
                if session.index is not None and connection is not None and connection.usable:
                    try:
                        connection.ask(codec.CLOSE_SESSION, codec.integer(b"session", session.index), _left(deadline))
                        asked.append(connection)
                    except (OSError, MadKVError):
                        pass
            for connection in asked:
                try:
                    connection.answer(_left(deadline))
                except (OSError, MadKVError):
                    pass
        finally:
            for connection in self._connections.values():
                connection.close()
            self._connections.clear()

    # --- The life of a call -----------------------------------------------------------------------------------------

    def _write(self, command: bytes, key: bytes, fields: bytes, answer_in: "Callable[[Box], Answer]") -> "Answer":
        while True:
            try:
                return self._write_at(self._group_of(key), command, key, fields, answer_in)
            except WrongPartition:
                pass  # not executed, and the key is another group's by now

    def _write_at(
        self, group: int, command: bytes, key: bytes, fields: bytes, answer_in: "Callable[[Box], Answer]"
    ) -> "Answer":
        session = self._session(group)
        call = session.begin()
        sessions_lost = 0

        def attempt(connection: Connection, seconds_max: float) -> "Answer":
            nonlocal sessions_lost
            while True:
                if session.index is None:
                    client_id = field(b"client_id", session.client_id)
                    opened = connection.exchange(codec.OPEN_SESSION, client_id, seconds_max)
                    session.opened(codec.take_answer_integer(opened, b"session"))
                index = session.index
                assert index is not None
                session.sending(call)
                carried = codec.session_fields(index, call.sequence, session.floor)
                try:
                    return answer_in(connection.exchange(command, fields + carried, seconds_max))
                except Refused:
                    session.not_executed(call)
                    raise
                except UnknownSession as refusal:
                    session.lost(call, index)
                    sessions_lost += 1
                    if sessions_lost > 1:  # and it was a new one: no hurry to lose the next
                        raise ProtocolError(str(refusal)) from None

        try:
            return self._retried(group, key, attempt)
        except WrongPartition:
            session.moved(call)
            raise
        finally:
            session.end(call)

    def _retried(self, group: int, key: bytes, attempt: "Callable[[Connection, float], Answer]") -> "Answer":
        """Try until there is an answer. Raises WrongPartition when the group refused `key` and does not own it."""
        tries = Tries(self._router, group)
        while True:
            try:
                return attempt(self._connected(tries), tries.try_seconds)
            except WrongPartition as refusal:
                if not self._learn_of(refusal):
                    self._wait(tries, refusal, tries.wait_seconds())
                if self._router.group_of(key) != group:
                    raise
            except _AGAIN as why:
                seconds = self._failed(tries, why)
                if seconds:
                    self._wait(tries, why, seconds)

    def _scan_pages(
        self, ready: list[Piece], tries: dict[Piece, Tries], waits: dict[Piece, tuple[Exception, float]]
    ) -> list[tuple[Piece, WrongPartition]]:
        """Ask each group for its next page, all before the first is waited for; who does not own what it was asked.

        A group that cannot be asked now gets into `waits` when everybody was tried. A connection carries one call at a
        time, so a group of several pieces is asked for the others later.
        """
        asked: dict[int, tuple[Piece, Connection]] = {}
        misplaced: list[tuple[Piece, WrongPartition]] = []

        def failed(piece: Piece, why: Exception) -> None:
            if self._router.is_single:
                piece.restart()  # a page is good once, and on one connection
            seconds = self._failed(tries[piece], why)
            if seconds:
                waits[piece] = why, seconds

        try:
            for piece in ready:
                if piece.group in asked:
                    continue
                try:
                    connection = self._connected(tries[piece])
                    connection.ask(codec.SCAN, piece.request(), tries[piece].try_seconds)
                    asked[piece.group] = piece, connection
                except _AGAIN as why:
                    failed(piece, why)
            for piece, connection in list(asked.values()):
                try:
                    piece.take(connection.answer(tries[piece].try_seconds))
                except WrongPartition as refusal:
                    piece.restart()
                    misplaced.append((piece, refusal))
                except _AGAIN as why:
                    failed(piece, why)
                del asked[piece.group]
            return misplaced
        finally:
            for _, connection in asked.values():
                connection.close()  # interrupted: its answer would be taken for that of the next call

    # --- What a call needs ------------------------------------------------------------------------------------------

    def _group_of(self, key: bytes) -> int:
        if self._router.map is None:
            self._learn_map()
        return self._router.group_of(key)

    def _pieces(self, start: bytes, before: bytes | None, end: bytes) -> list[Piece]:
        pieces = self._router.pieces(start, before, end)
        return [Piece(group, begin, following, end) for group, begin, following in pieces]

    def _learn_of(self, refusal: WrongPartition) -> bool:
        """Get the newer map that the refusal speaks of; False if it does not."""
        if not self._router.misplaced(refusal.epoch):
            return False
        self._learn_map()
        return True

    def _learn_map(self) -> None:
        """Ask the managers, for ever if need be, and let go of them then: a map is good for long."""
        tries = Tries(self._router, MANAGERS)
        while self._router.needs_map:
            try:
                connection = self._connected(tries)
                answer = connection.exchange(codec.GET_MAP, b"", tries.try_seconds)
                self._router.learn(answer)
                connection.close()
            except _AGAIN as why:
                seconds = self._failed(tries, why)
                if seconds:
                    self._wait(tries, why, seconds)

    def _session(self, group: int) -> Session:
        session = self._sessions.get(group)
        if session is None:
            session = self._sessions[group] = Session(self._client_id)
        return session

    def _connected(self, tries: Tries) -> Connection:
        """The connection to the replica that is to be asked now, made and greeted if need be."""
        group, replica = tries.group, tries.choose()
        address = self._router.addresses(group)[replica]
        connection = self._connections.get(address)
        if connection is not None and connection.usable:
            return connection
        connection = self._connections[address] = self._connect(address, self._abandon_fd)
        try:
            version = codec.integer(b"version", codec.PROTOCOL_VERSION)
            hello = connection.exchange(codec.HELLO, version, tries.try_seconds)
            connection.check_hello(hello)
            boot = self._router.check_hello(group, replica, hello)
        except MadKVError:
            connection.close()
            raise
        if group != MANAGERS:
            self._session(group).connected(boot)
        return connection

    def _failed(self, tries: Tries, why: Exception) -> float:
        """As `Tries.failed`; and tell of a stranger."""
        seconds = tries.failed(why)
        news = tries.news(why)
        if news is not None and self._notice is not None:
            self._notice(news)
        return seconds

    def _wait(self, tries: Tries, why: Exception, seconds: float) -> None:
        """Wait before the next try; say for whom and why, once a call and group."""
        if self._notice is not None and not tries.said:
            tries.said = True
            self._notice(f"waiting for {tries.whom()}: {why}")
        poll = select.poll()
        if self._abandon_fd is not None:
            poll.register(self._abandon_fd, 0)
        if poll.poll(seconds * 1000):
            raise Abandoned("nobody reads the answers any more")


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
