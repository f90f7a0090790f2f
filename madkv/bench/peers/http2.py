"""Unary gRPC calls over HTTP/2, as lean as MadKV's own boxes: what etcd's servers can do, without a heavy client.

Theory of operation. `Connection` holds no socket: `call` gives bytes to send, `receive` takes bytes that came and gives
the calls that are complete. The peer is told to keep no table of headers (RFC 7541, SETTINGS_HEADER_TABLE_SIZE = 0), so
that each header block means the same wherever it comes; blocks that came before are known by their bytes. Our windows
are as wide as they may be; the peer's are kept to: what does not fit waits until it makes room.
"""

import struct
from collections import deque

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, PADDED, PRIORITY, ACK = 1, 4, 8, 32, 1
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
WINDOW_MAX = (1 << 31) - 1
WINDOW_DEFAULT = 65_535
FRAME_BYTES_DEFAULT = 16_384
FRAME_HEAD_BYTES = 9
PREFIX_BYTES = 5
"""Before each gRPC message: whether it is compressed, and its length."""


class RpcError(Exception):
    """A call failed, or the connection did: what the other side said."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack("!IBI", len(payload) << 8 | kind, flags, stream) + payload


class Connection:
    """The calls of one connection. Use `greeting` first."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._heads: dict[str, bytes] = {}
        self._decoder = hpack.Decoder()
        self._decoder.header_table_size = 0
        self._statuses: dict[bytes, str] = {}
        self._next_stream = 1
        self._room = WINDOW_DEFAULT
        self._stream_room = WINDOW_DEFAULT
        self._rooms: dict[int, int] = {}
        """What may still be sent on a stream, for those whose request is not all sent."""
        self._frame_bytes = FRAME_BYTES_DEFAULT
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._messages: dict[int, list[bytes]] = {}
        self._received = b""
        self._taken = 0

    def greeting(self) -> bytes:
        """What opens the connection."""
        settings = ((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, WINDOW_MAX))
        payload = b"".join(struct.pack("!HI", *each) for each in settings)
        return (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, payload)
            + frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", WINDOW_MAX - WINDOW_DEFAULT))
        )

    def call(self, path: str, message: bytes) -> tuple[int, bytes]:
        """Begin a call: its number, and what to send now."""
        stream = self._next_stream
        self._next_stream += 2
        self._messages[stream] = []
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head(path)
        body = b"\0" + struct.pack("!I", len(message)) + message
        opening = struct.pack("!IBI", len(head) << 8 | HEADERS, END_HEADERS, stream) + head
        if not self._unsent and len(body) <= min(self._room, self._stream_room, self._frame_bytes):
            self._room -= len(body)
            return stream, opening + struct.pack("!IBI", len(body) << 8 | DATA, END_STREAM, stream) + body
        self._rooms[stream] = self._stream_room
        self._unsent.append((stream, body))
        return stream, opening + self._send_what_fits()

    def receive(self, data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
        """The calls that these bytes complete, each with its answer, and what to send now. Raises RpcError."""
        data = self._received + data
        at, end = 0, len(data)
        done: list[tuple[int, bytes]] = []
        replies: list[bytes] = []
        while end - at >= FRAME_HEAD_BYTES:
            size_and_kind, flags, stream = struct.unpack_from("!IBI", data, at)
            size, kind = size_and_kind >> 8, size_and_kind & 0xFF
            if end - at < FRAME_HEAD_BYTES + size:
                break
            payload = data[at + FRAME_HEAD_BYTES : at + FRAME_HEAD_BYTES + size]
            at += FRAME_HEAD_BYTES + size
            if kind == DATA:
                self._taken += size
                self._messages[stream].append(payload[1 : size - payload[0]] if flags & PADDED else payload)
            elif kind == HEADERS:
                if flags & END_STREAM:
                    done.append((stream, self._complete(stream, flags, payload)))
            else:
                replies.append(self._control(kind, flags, stream, payload))
        self._received = data[at:]
        if self._taken > WINDOW_MAX // 2:
            replies.append(frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", self._taken)))
            self._taken = 0
        if self._unsent:
            replies.append(self._send_what_fits())
        return done, b"".join(replies)

    def _head(self, path: str) -> bytes:
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": self._authority,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        encoded = b""
        for name, value in fields.items():  # literals that enter no table (RFC 7541, 6.2.2); all are short
            assert len(name) < 127 and len(value) < 127
            encoded += b"\0%c%b%c%b" % (len(name), name.encode(), len(value), value.encode())
        return encoded

    def _complete(self, stream: int, flags: int, block: bytes) -> bytes:
        """The answer to a call whose last headers have come."""
        if not flags & END_HEADERS or flags & (PADDED | PRIORITY):
            raise RpcError("headers came in a form that is not understood here")
        status = self._statuses.get(block)
        if status is None:
            fields = {_text(name): _text(value) for name, value in self._decoder.decode(block)}
            status = fields.get("grpc-status", "none")
            if status != "0":
                raise RpcError(f"status {status}: {fields.get('grpc-message', 'no message')}")
            self._statuses[block] = status
        message = b"".join(self._messages.pop(stream))
        self._rooms.pop(stream, None)
        if message[:1] != b"\0" or len(message) != PREFIX_BYTES + int.from_bytes(message[1:PREFIX_BYTES]):
            raise RpcError("the answer is not one message, or is compressed")
        return message[PREFIX_BYTES:]

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        """Take what is not about an answer; what to send for it."""
        if kind == PING and not flags & ACK:
            return frame(PING, ACK, 0, payload)
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload)
            if stream == 0:
                self._room += more
            elif stream in self._rooms:
                self._rooms[stream] += more
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack("!HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    change = value - self._stream_room
                    self._stream_room = value
                    self._rooms = {each: room + change for each, room in self._rooms.items()}
                elif name == MAX_FRAME_SIZE:
                    self._frame_bytes = value
            return frame(SETTINGS, ACK, 0)
        elif kind in (GOAWAY, RST_STREAM):
            what = "connection" if kind == GOAWAY else "call"
            raise RpcError(f"the server ended the {what}: {payload!r}")
        return b""

    def _send_what_fits(self) -> bytes:
        """Of the requests that wait, in order, as much as the peer's windows allow."""
        sent: list[bytes] = []
        while self._unsent:
            stream, body = self._unsent[0]
            size = min(len(body), self._room, self._rooms[stream], self._frame_bytes)
            if size <= 0:
                break
            self._room -= size
            self._rooms[stream] -= size
            if size == len(body):
                self._unsent.popleft()
                del self._rooms[stream]
                sent.append(frame(DATA, END_STREAM, stream, body))
            else:
                self._unsent[0] = stream, body[size:]
                sent.append(frame(DATA, 0, stream, body[:size]))
        return b"".join(sent)


def _text(word: str | bytes) -> str:
    return word.decode(errors="backslashreplace") if isinstance(word, bytes) else word
