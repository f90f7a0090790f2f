"""Reads that are sent to a node while it is stopped, on connections that were there before.

On each connection one read is sent right before it is stopped, and others later, when its peers have long said that
others lead. When it goes on it looks first where something came first, and takes all that is there: so mostly it comes
to the later reads while it knows nothing of that yet.
"""

import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Self

from madkv.addresses import parse_address
from madkv.errors import MadKVError
from madkv.testing.history import Operation
from madkv.wire import codec
from madkv.wire.boxes import ANSWER, ERROR, Box, field, parse_boxes

ANSWER_SECONDS_MAX = 20.0
"""How long a node that goes on may take for an answer, a refusal, or to close the connection."""
READ_BYTES = 1 << 16


class FrozenReads:
    """A connection to a node on which it is asked for these keys, over and over, one call after the other."""

    def __init__(self, address: str, keys: Sequence[bytes], client: int) -> None:
        """Connect; the calls are numbered from `client` on, as if each had a client of its own. The node must run."""
        self.refused: Counter[str] = Counter()
        """How many were answered with which error, or by the end of their connection."""
        self._client = client
        self._keys = keys
        self._called_ns: list[int] = []
        self._connection = socket.create_connection(parse_address(address), ANSWER_SECONDS_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def sent(self) -> int:
        """How many were sent."""
        return len(self._called_ns)

    def send(self) -> None:
        """Send the next one."""
        number = self.sent
        self._called_ns.append(time.monotonic_ns())
        self._connection.sendall(codec.request(number, codec.GET, field(b"key", self._key(number))))

    def answers(self) -> list[Operation]:
        """Those that were answered with a value, or with there being none; waits until nothing is outstanding."""
        found: list[Operation] = []
        boxes: list[Box] = []
        data, waiting = b"", set(range(self.sent))
        while waiting:
            try:
                piece = self._connection.recv(READ_BYTES)
            except OSError:
                piece = b""
            returned_ns = time.monotonic_ns()
            if not piece:
                self.refused["nothing"] += len(waiting)
                break
            data += piece
            data = data[parse_boxes(data, boxes) :]
            for box in boxes:
                number = int(box.get(ANSWER) or box[ERROR])
                waiting.remove(number)
                try:
                    codec.raise_if_error(box, codec.GET)
                except MadKVError as error:
                    self.refused[type(error).__name__] += 1
                else:
                    key, value = self._key(number), codec.take_value(box)
                    client, called_ns = self._client + number, self._called_ns[number]
                    found.append(Operation(client, "GET", key, None, called_ns, returned_ns, value))
            boxes.clear()
        return found

    def _key(self, number: int) -> bytes:
        return self._keys[number % len(self._keys)]
