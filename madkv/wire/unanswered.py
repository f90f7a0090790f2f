"""The calls on one connection that wait for their answers: their tags, and how long they may wait. Pure.

A server that is silent is left, one that is slow is not: time counts from when a call should have reached the other
side, even over the slowest link, and again from whatever is heard.
"""

from typing import Generic, TypeVar

from madkv.errors import ProtocolError
from madkv.limits import SLOWEST_BYTES_PER_SECOND
from madkv.wire import codec
from madkv.wire.boxes import ANSWER, ERROR, Box

Waiter = TypeVar("Waiter")


class Unanswered(Generic[Waiter]):
    """Calls by their tags. Times are seconds of any one clock; `waiter` is whatever is to be told the answer."""

    def __init__(self, try_seconds: float) -> None:
        """Silence for `try_seconds` is too long."""
        self._try_seconds = try_seconds
        self._last_tag = 0
        # By tag, the oldest first: when it should have arrived, the command, and whom to tell.
        self._waiting: dict[bytes, tuple[float, bytes, Waiter]] = {}
        self._last_heard = 0.0
        self._arrived = 0.0  # when everything sent so far should be there, over the slowest link

    def add(self, now: float, command: bytes, fields: bytes, waiter: Waiter) -> bytes:
        """Another call; what is to be sent for it."""
        self._last_tag += 1
        data = codec.request(self._last_tag, command, fields)
        self._arrived = max(self._arrived, now) + len(data) / SLOWEST_BYTES_PER_SECOND
        self._waiting[b"%d" % self._last_tag] = self._arrived, command, waiter
        return data

    def heard(self, now: float) -> None:
        """The other side is alive."""
        self._last_heard = now

    def take(self, answer: Box) -> tuple[bytes, Waiter]:
        """The command that this is the answer to, and whom to tell. Raises ProtocolError when it is to none."""
        waiting = self._waiting.pop(answer.get(ANSWER) or answer.get(ERROR) or b"", None)
        if waiting is None:
            raise ProtocolError("an answer to no call")
        _, command, waiter = waiting
        return command, waiter

    def seconds_left(self, now: float) -> float | None:
        """How long the oldest call may still wait, 0 or less when that was too long; None if no call waits."""
        oldest = next(iter(self._waiting.values()), None)
        return None if oldest is None else max(oldest[0], self._last_heard) + self._try_seconds - now

    def take_all(self) -> list[Waiter]:
        """Whoever waits: the connection has gone."""
        waiting, self._waiting = self._waiting, {}
        return [waiter for _, _, waiter in waiting.values()]
