"""Reads that are sent to a node while it is stopped, each on a connection of its own that was there before."""

import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Self

from madkv.addresses import parse_address
from madkv.errors import MadKVError
from madkv.testing.history import Operation
from madkv.wire import codec
from madkv.wire.boxes import Box, field, parse_boxes

ANSWER_SECONDS_MAX = 20.0
"""How long a node that goes on may take for an answer, a refusal, or to close the connection."""
READ_BYTES = 1 << 16


class FrozenReads:
    """So many Gets as there are `keys`, to be sent to one node, one by one."""

    def __init__(self, address: str, keys: Sequence[bytes], first_client: int) -> None:
        """Connect; the first one's number in the history is `first_client`. The node must run."""
        self.refused: Counter[str] = Counter()
        """How many were answered with which error, or by the end of their connection."""
        self._first_client = first_client
        self._keys = keys
        self._called_ns: list[int] = []
        self._connections = [socket.create_connection(parse_address(address), ANSWER_SECONDS_MAX) for _ in keys]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    @property
    def sent(self) -> int:
        """How many were sent."""
        return len(self._called_ns)

    def send(self) -> None:
        """Send the next one, if there is one left."""
        if self.sent < len(self._keys):
            number = self.sent
            self._called_ns.append(time.monotonic_ns())
            self._connections[number].sendall(codec.request(1, codec.GET, field(b"key", self._keys[number])))

    def answers(self) -> list[Operation]:
        """Those that were answered with a value, or with there being none; waits until nothing is outstanding."""
        found = []
        for number, called_ns in enumerate(self._called_ns):
            try:
                value = codec.take_value(_answer(self._connections[number]))
            except (MadKVError, OSError) as error:
                self.refused[type(error).__name__] += 1
            else:
                client, returned_ns = self._first_client + number, time.monotonic_ns()
                found.append(Operation(client, "GET", self._keys[number], None, called_ns, returned_ns, value))
        return found


def _answer(connection: socket.socket) -> Box:
    boxes: list[Box] = []
    data = b""
    while not boxes:
        piece = connection.recv(READ_BYTES)
        if not piece:
            raise ConnectionResetError("closed")
        data += piece
        parse_boxes(data, boxes)
    codec.raise_if_error(boxes[0], codec.GET)
    return boxes[0]
