"""One blocking connection to a server or a manager. Imports as little as the line client's start allows."""

import os
import select
import socket

from madkv.addresses import Address
from madkv.errors import Abandoned, ProtocolError
from madkv.limits import CONNECT_SECONDS_MAX, SLOWEST_BYTES_PER_SECOND
from madkv.wire import codec
from madkv.wire.boxes import ANSWER, ERROR, Box, next_field_end, parse_boxes

READ_BYTES = 1 << 16
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


TLS_VARIABLES = ("MADKV_TLS_CA", "MADKV_TLS_CERT", "MADKV_TLS_KEY")  # as madkv.tls has them
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from madkv.tls import TLSFiles

    Connector = Callable[[Address, int | None], "Connection"]


class Connection:
    """One socket, and at most one call on it that waits. `usable` until anything at all goes wrong on it.

    `abandon_fd` is a file descriptor that somebody reads from: when its reader is gone, waiting ends with Abandoned.
    """

    def __init__(self, address: Address, abandon_fd: int | None) -> None:
        self._abandon_fd = abandon_fd
        self._tag = 0
        self._command = b""
        self._asked_bytes = 0
        self._socket = connect(address, abandon_fd)
        self.usable = True
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        if abandon_fd is not None:
            self._poll.register(abandon_fd, 0)

    def exchange(self, command: bytes, fields: bytes, seconds_max: float) -> Box:
        """Send one call and wait for its answer: `ask` and `answer` in one."""
        self.ask(command, fields, seconds_max)
        return self.answer(seconds_max)

    def ask(self, command: bytes, fields: bytes, seconds_max: float) -> None:
        """Send one call; `answer` is next, whatever else is done in between.

        Raises OSError or Abandoned, and then the connection is closed. It may go `seconds_max` without a byte.
        """
        self._tag += 1
        self._command = command
        try:
            data = codec.request(self._tag, command, fields)
            self._asked_bytes = len(data)
            self._send(data, seconds_max)
        except BaseException:
            self.close()
            raise

    def answer(self, seconds_max: float) -> Box:
        """Wait for the answer to the call that was asked.

        Raises the error that the answer declares; OSError, TimeoutError or ProtocolError when there is no answer to be
        had from this connection, which is closed then; Abandoned.
        """
        try:
            # All of the call may still stand in the kernel's buffer.
            box = self._receive(self._asked_bytes / SLOWEST_BYTES_PER_SECOND + seconds_max, seconds_max)
        except BaseException:
            # Also when interrupted: an answer that comes later must not be taken for that of the next call.
            self.close()
            raise
        if ERROR in box:
            codec.raise_if_error(box, self._command)
        return box

    def check_hello(self, hello: Box) -> None:
        """Nobody can tell without TLS whether this answer to Hello is of who it says it is."""

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
            try:
                piece = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue  # a part of what TLS sends at once
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


def connector(tls: "TLSFiles | None") -> "Connector":
    """What makes connections: with TLS, where these files are given or the environment has them; else without.

    Raises InvalidArgument for files that are of no use, and for one or two of the three.
    """
    if tls is None and not any(variable in os.environ for variable in TLS_VARIABLES):
        return Connection
    from madkv.client.secure import SecureConnection, context_of
    from madkv.tls import tls_files

    files = tls or tls_files(None, None, None, os.environ)
    if files is None:
        return Connection
    context_of(files)
    return lambda address, abandon_fd: SecureConnection(files, address, abandon_fd)


def connect(address: Address, abandon_fd: int | None) -> socket.socket:
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
