"""Where a call goes, and how long to wait before it is tried again. Pure, and light enough for the line client."""

from madkv.addresses import Address
from madkv.limits import RETRY_SECONDS_MAX, RETRY_SECONDS_MIN


class Router:
    """The servers of the store. So far there is one, which owns every key."""

    def __init__(self, server: Address) -> None:
        self._server = server

    def address_of(self, key: bytes) -> Address:
        """The server that owns `key`."""
        return self._server


class Backoff:
    """Waits that double from RETRY_SECONDS_MIN to RETRY_SECONDS_MAX, for one call's retries."""

    def __init__(self) -> None:
        self._next_seconds = RETRY_SECONDS_MIN

    def next_seconds(self) -> float:
        """How long to wait now."""
        seconds = self._next_seconds
        self._next_seconds = min(2 * seconds, RETRY_SECONDS_MAX)
        return seconds
