"""The blocking face of the client, for scripts and for the line interface: one call at a time on a plain socket.

    with BlockingClient("127.0.0.1:3777") as store:
        store.put(b"key", b"value")

It imports nothing heavy, so that a process that uses it starts at once. It is not thread-safe: one client per thread.
"""

import os
import select
import socket
from collections.abc import Callable
from types import TracebackType

from madkv.addresses import Address, parse_address, show_address
from madkv.arguments import check_key, check_scan, check_value
from madkv.client.router import Backoff, Router
from madkv.client.session import Session
from madkv.errors import (
    Abandoned,
    InternalError,
    Interrupted,
    MadKVError,
    ProtocolError,
    Refused,
    ScanExpired,
    UnknownSession,
)
from madkv.limits import (
    CLIENT_ID_BYTES,
    CLOSE_SECONDS_MAX,
    CONNECT_SECONDS_MAX,
    SLOWEST_BYTES_PER_SECOND,
    TRY_SECONDS_MAX,
)
from madkv.wire import codec
from madkv.wire.boxes import ANSWER, ERROR, Box, blob, field, next_field_end, parse_boxes

TYPE_CHECKING = False
if TYPE_CHECKING:  # at run time, importing typing would take as long as everything else here
    from typing import TypeVar

    Answer = TypeVar("Answer")

READ_BYTES = 1 << 18
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL

_AGAIN = (OSError, ProtocolError, Refused, Interrupted, InternalError, ScanExpired)
"""What a retry can cure: nothing to reach, a broken or confused connection, a refusal for now."""


class BlockingClient:
    """A client of one store.

    Every call is retried for ever until it has its answer, and takes effect exactly once. `notice` gets one line when
    a call begins to wait for something that is not there. `abandon_fd` is a file descriptor that somebody reads from:
    when its reader is gone, whatever is being waited for is given up with Abandoned.
    """

    def __init__(
        self,
        server: str | Address,
        *,
        notice: Callable[[str], None] | None = None,
        abandon_fd: int | None = None,
    ) -> None:
        address = parse_address(server) if isinstance(server, str) else server
        self._router = Router(address)
        self._session = Session(os.urandom(CLIENT_ID_BYTES))
        self._notice = notice
        self._abandon_fd = abandon_fd
        self._connection: _Connection | None = None

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
        client was cut off for longer than a session lives.
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
        """The value of a key, None if it does not exist. Raises InvalidArgument."""
        check_key(key)
        fields = field(b"key", key)
        backoff: Backoff | None = None
        while True:
            try:
                return codec.take_value(self._connected(key).exchange(codec.GET, fields))
            except _AGAIN as error:
                backoff = self._wait(error, backoff)

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """All pairs with start <= key <= end in key order, as they were at one point. Raises InvalidArgument."""
        check_scan(start, end)
        fields = field(b"start", start) + field(b"end", end)
        backoff: Backoff | None = None
        while start <= end:
            try:
                connection = self._connected(start)
                pairs: list[tuple[bytes, bytes]] = []
                page_fields = fields
                while True:
                    page, cursor = codec.take_page(connection.exchange(codec.SCAN, page_fields))
                    pairs += page
                    if cursor is None:
                        return pairs
                    page_fields = fields + field(b"cursor", cursor)
            except _AGAIN as error:
                backoff = self._wait(error, backoff)
        return []

    def close(self) -> None:
        """Close the session and the connection; takes a second at most, and fails silently: sessions expire too."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                if self._session.index is not None:
                    fields = codec.integer(b"session", self._session.index)
                    connection.exchange(codec.CLOSE_SESSION, fields, CLOSE_SECONDS_MAX)
            except (OSError, MadKVError):
                pass
            finally:
                connection.close()

    # --- The life of a call -----------------------------------------------------------------------------------------

    def _write(self, command: bytes, key: bytes, fields: bytes, answer_in: "Callable[[Box], Answer]") -> "Answer":
        session = self._session
        call = session.begin()
        backoff: Backoff | None = None
        sessions_lost = 0
        try:
            while True:
                try:
                    connection = self._connected(key)
                    if session.index is None:
                        opened = connection.exchange(codec.OPEN_SESSION, field(b"client_id", session.client_id))
                        session.opened(codec.take_answer_integer(opened, b"session"))
                    assert session.index is not None
                    session.sending(call)
                    carried = codec.session_fields(session.index, call.sequence, session.floor)
                    return answer_in(connection.exchange(command, fields + carried))
                except UnknownSession as error:
                    session.lost(call, session.index)
                    if sessions_lost:  # and it was a new one: no hurry to lose the next
                        backoff = self._wait(error, backoff)
                    sessions_lost += 1
                except _AGAIN as error:
                    if isinstance(error, Refused):
                        session.not_executed(call)
                    backoff = self._wait(error, backoff)
        finally:
            session.end(call)

    def _connected(self, key: bytes) -> "_Connection":
        connection = self._connection
        if connection is None or not connection.usable:
            connection = self._connection = _Connection(self._router.address_of(key), self._abandon_fd)
            self._session.connected(connection.boot)
        return connection

    def _wait(self, why: Exception, backoff: Backoff | None) -> Backoff:
        """Wait before the next attempt; say why, once a call."""
        if self._notice is not None and backoff is None:
            self._notice(f"waiting for {show_address(self._router.address_of(b''))}: {why}")
        backoff = backoff or Backoff()
        poll = select.poll()
        if self._abandon_fd is not None:
            poll.register(self._abandon_fd, 0)
        if poll.poll(backoff.next_seconds() * 1000):
            raise Abandoned("nobody reads the answers any more")
        return backoff


class _Connection:
    """One socket with the handshake done. `usable` until anything at all goes wrong on it."""

    def __init__(self, address: Address, abandon_fd: int | None) -> None:
        self._abandon_fd = abandon_fd
        self._tag = 0
        self._socket = _connect(address, abandon_fd)
        self.usable = True
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        if abandon_fd is not None:
            self._poll.register(abandon_fd, 0)
        try:
            hello = self.exchange(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
            self.boot = codec.take_boot(hello)
        except MadKVError:
            self.close()
            raise

    def exchange(self, command: bytes, fields: bytes, seconds_max: float = TRY_SECONDS_MAX) -> Box:
        """Send one call and wait for its answer.

        Raises the error that the answer declares; OSError, TimeoutError or ProtocolError when there is no answer to be
        had from this connection, which is closed then; Abandoned.
        """
        self._tag += 1
        try:
            data = codec.request(self._tag, command, fields)
            self._send(data, seconds_max)
            # All of it may still stand in the kernel's buffer.
            box = self._receive(len(data) / SLOWEST_BYTES_PER_SECOND + seconds_max, seconds_max)
        except BaseException:
            # Also when interrupted: an answer that comes later must not be taken for that of the next call.
            self.close()
            raise
        if ERROR in box:
            codec.raise_if_error(box, command)
        return box

    def close(self) -> None:
        """Close the socket."""
        self.usable = False
        self._socket.close()

    def _send(self, data: bytes, seconds_max: float) -> None:
        sent = self._socket.send(data)
        if sent == len(data):
            return
        self._poll.modify(self._socket, select.POLLIN | select.POLLOUT)
        view = memoryview(data)
        while sent < len(data):
            if self._wait(seconds_max) & (select.POLLIN | _GONE):
                break  # an answer before the call is complete, or the end: `_receive` finds out
            sent += self._socket.send(view[sent:])
        self._poll.modify(self._socket, select.POLLIN)

    def _receive(self, first_seconds_max: float, seconds_max: float) -> Box:
        boxes: list[Box] = []
        data = b""
        consumed = needed = 0
        while not boxes:
            self._wait(seconds_max if data else first_seconds_max)
            piece = self._socket.recv(READ_BYTES)
            if not piece:
                raise ConnectionResetError("the server closed the connection")
            data = data + piece if data else piece
            if len(data) >= needed:
                consumed = parse_boxes(data, boxes)
                needed = next_field_end(data) if not boxes else 0
        box = boxes[0]
        tag = box.get(ANSWER) or box.get(ERROR)
        if len(boxes) != 1 or consumed != len(data) or tag != b"%d" % self._tag:
            raise ProtocolError("an answer to another call")
        return box

    def _wait(self, seconds_max: float) -> int:
        """Wait until something happens on the socket; what poll saw on it."""
        events = self._poll.poll(seconds_max * 1000)
        if not events:
            raise TimeoutError("no answer in time")
        if any(fd == self._abandon_fd for fd, _ in events):
            raise Abandoned("nobody reads the answers any more")
        return events[0][1]


def _connect(address: Address, abandon_fd: int | None) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError, or Abandoned."""
    failure: OSError = OSError("no address found")
    host, port = address
    # Bytes, since a str would have the codec for international names imported, which costs as much as all of this.
    name = host.encode() if host.isascii() else host
    for family, kind, protocol, _, resolved in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                sock.connect(resolved)
            except BlockingIOError:
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
                if abandon_fd is not None:
                    poll.register(abandon_fd, 0)
                events = poll.poll(CONNECT_SECONDS_MAX * 1000)
                if not events:
                    raise TimeoutError("no connection in time") from None
                if any(fd == abandon_fd for fd, _ in events):
                    raise Abandoned("nobody reads the answers any more") from None
                status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if status:
                    raise OSError(status, os.strerror(status)) from None
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure
