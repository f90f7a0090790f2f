"""A line client of OxideDB, and a node of it whose commits are synced.

`madkv.bench.peers.oxidedb_line HOST:PORT,HOST:PORT,…` is a line client, on OxideDB's own: a GET or SCAN is its `strong`
read (ReadIndex at the leader), a PUT or SWAP a transaction that reads the old value and writes the new one; what is
refused because another transaction is under way is tried again. `madkv.bench.peers.oxidedb_line node …` is
`oxidedb-launcher` with SQLite's `synchronous=FULL`: its own `NORMAL` syncs no commit in WAL mode, and an acknowledged
write could be lost with the power.
"""

import sys
from collections.abc import Callable
from typing import TypeVar

from oxidedb import launcher
from oxidedb.cli import ClusterStore
from oxidedb.storage.engine import SQLiteEngine
from oxidedb.transaction.coordinator import SerializationError

from madkv.bench.peers.serving import serve

T = TypeVar("T")

ATTEMPTS = 1000
"""Of a call that others come between; their own client gives up sooner."""
REFUSALS = (RuntimeError, SerializationError)
AFTER = b"\x01"
"""Makes of a key the first one behind it: a zero byte is in none of OxideDB's keys."""


class OxideStore:
    """The line interface's calls as OxideDB's."""

    def __init__(self, addresses: str) -> None:
        self._store = ClusterStore(addresses.split(","))
        self._store.wait_until_routable()
        self._client = self._store._client

    def put(self, key: bytes, value: bytes) -> bool:
        """Whether the key existed."""
        return self.swap(key, value) is not None

    def swap(self, key: bytes, value: bytes) -> bytes | None:
        """The old value."""
        old: list[bytes | None] = []

        def work(transaction: int) -> None:
            old[:] = [self._client.read(transaction, key)]
            self._client.add_write(transaction, key, value)

        again(lambda: self._client.run(work))
        return old[0]

    def get(self, key: bytes) -> bytes | None:
        """The value."""
        value: bytes | None = again(lambda: self._client.get(key))
        return value

    def delete(self, key: bytes) -> bool:
        """Whether the key existed, at some moment before: its delete is no transaction."""
        existed = self.get(key) is not None
        self._client.delete(key)
        return existed

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """The pairs from `start` to `end`, in order."""
        if start > end:
            return []
        pairs: list[tuple[bytes, bytes]] = again(lambda: self._client.scan(start, end + AFTER))
        return pairs


def again(call: Callable[[], T]) -> T:
    """Call until it is not refused."""
    for _ in range(ATTEMPTS - 1):
        try:
            return call()
        except REFUSALS:
            pass
    return call()


def node(words: list[str]) -> int:
    """Run a node until SIGTERM."""
    SQLiteEngine.__init__.__defaults__ = ("FULL",)
    return int(launcher.main(words) or 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["node"]:
        sys.exit(node(sys.argv[2:]))
    sys.exit(serve("madkv.bench.peers.oxidedb_line", OxideStore, (*REFUSALS, OSError)))
