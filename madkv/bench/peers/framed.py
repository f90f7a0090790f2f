"""A small protocol of our own, for peers that come as a library and bring no server, and a line client that speaks it.

A request is a letter, the lengths of key and value, and both; an answer is its length and its bytes: `1` or `0` to PUT
and DELETE, nothing or `+` and the value to GET and SWAP, to SCAN each pair with its lengths before it.
"""

import socket
import struct
import sys
from collections.abc import Iterable

from madkv.addresses import parse_address
from madkv.bench.peers.serving import serve

PUT, SWAP, GET, DELETE, SCAN, LEADS = b"P", b"S", b"G", b"D", b"C", b"L"
"""LEADS asks whether this node leads: `1` or `0`."""
HEAD = struct.Struct("!cII")
LENGTH = struct.Struct("!I")
PAIR = struct.Struct("!II")
READ_BYTES = 1 << 16
YES, NO = b"1", b"0"

Request = tuple[bytes, bytes, bytes]


class PeerError(Exception):
    """The other side went away."""


class Requests:
    """What comes from one client, cut into requests."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Request]:
        """The requests that are complete now."""
        data = self._rest + data
        at = 0
        found = []
        while len(data) - at >= HEAD.size:
            letter, key_bytes, value_bytes = HEAD.unpack_from(data, at)
            key_at = at + HEAD.size
            end = key_at + key_bytes + value_bytes
            if end > len(data):
                break
            found.append((letter, data[key_at : key_at + key_bytes], data[key_at + key_bytes : end]))
            at = end
        self._rest = data[at:]
        return found


def request(letter: bytes, key: bytes = b"", value: bytes = b"") -> bytes:
    """What a client sends."""
    return HEAD.pack(letter, len(key), len(value)) + key + value


def answer(payload: bytes) -> bytes:
    """What a server sends."""
    return LENGTH.pack(len(payload)) + payload


def optional(value: bytes | None) -> bytes:
    """The payload of an answer to GET and SWAP."""
    return b"" if value is None else b"+" + value


def pairs(found: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The payload of an answer to SCAN."""
    return b"".join([PAIR.pack(len(key), len(value)) + key + value for key, value in found])


class FramedStore:
    """A blocking client."""

    def __init__(self, address: str, timeout_seconds: float | None = None) -> None:
        self._socket = socket.create_connection(parse_address(address), timeout_seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def call(self, letter: bytes, key: bytes = b"", value: bytes = b"") -> bytes:
        """Make a call; the payload of its answer. Raises PeerError and OSError."""
        self._socket.sendall(request(letter, key, value))
        data = b""
        while len(data) < LENGTH.size or len(data) < LENGTH.size + LENGTH.unpack_from(data)[0]:
            received = self._socket.recv(READ_BYTES)
            if not received:
                raise PeerError("the server closed the connection")
            data = data + received if data else received
        return data[LENGTH.size :]

    def put(self, key: bytes, value: bytes) -> bool:
        """Whether the key existed."""
        return self.call(PUT, key, value) == YES

    def swap(self, key: bytes, value: bytes) -> bytes | None:
        """The old value."""
        return self.call(SWAP, key, value)[1:] or None

    def get(self, key: bytes) -> bytes | None:
        """The value."""
        return self.call(GET, key)[1:] or None

    def delete(self, key: bytes) -> bool:
        """Whether the key existed."""
        return self.call(DELETE, key) == YES

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """The pairs from `start` to `end`, in order."""
        payload = self.call(SCAN, start, end)
        found = []
        at = 0
        while at < len(payload):
            key_bytes, value_bytes = PAIR.unpack_from(payload, at)
            key_at = at + PAIR.size
            at = key_at + key_bytes + value_bytes
            found.append((payload[key_at : key_at + key_bytes], payload[key_at + key_bytes : at]))
        return found


def leads(address: str, timeout_seconds: float) -> bool:
    """Whether the node there says that it leads. Raises PeerError and OSError."""
    store = FramedStore(address, timeout_seconds)
    try:
        return store.call(LEADS) == YES
    finally:
        store.close()


if __name__ == "__main__":
    sys.exit(serve("madkv.bench.peers.framed", FramedStore, (PeerError, OSError)))
