"""The bare floor: three processes, two sockets, one commit of LMDB each, and nothing else.

`madkv.bench.peers.floor follower PORT DIRECTORY` commits what it is sent and says so.
`madkv.bench.peers.floor leader PORT DIRECTORY FOLLOWERS` takes PUTs from one client after another (`framed.py`), sends
each to both followers, commits it itself meanwhile, and answers when its own commit and the first follower's are done.
That is a replicated, durable Put without elections, terms, sessions, ownership, reads, retries or checks: no store at
all, but what none on these parts can be faster than. Entries are appended under a rising number; LMDB syncs at each
commit, its default.
"""

import selectors
import socket
import statistics
import struct
import sys
import time
from pathlib import Path

import lmdb

from madkv.addresses import parse_address
from madkv.bench.peers import framed

MAP_BYTES = 64 << 30
TIMES = b"T"
"""Asks the leader for the median of what its PUTs took inside it, in nanoseconds."""
DONE = b"."
CONNECT_SECONDS_MAX = 30.0


class Log:
    """Entries on one disk."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._environment = lmdb.open(str(directory), map_size=MAP_BYTES)
        self._last = 0

    def close(self) -> None:
        """Use no more."""
        self._environment.close()

    def append(self, entry: bytes) -> None:
        """Have one entry more on the disk."""
        self._last += 1
        with self._environment.begin(write=True) as transaction:
            transaction.put(struct.pack("!Q", self._last), entry, append=True)


def serve_follower(port: int, directory: Path) -> None:
    """Commit and acknowledge what comes, for one leader, until it goes."""
    log = Log(directory)
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:  # whoever only looks whether it listens sends nothing
            leader, _ = listener.accept()
            leader.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            requests = framed.Requests()
            while data := leader.recv(framed.READ_BYTES):
                for _, key, value in requests.feed(data):
                    log.append(key + value)
                    leader.sendall(DONE)
            leader.close()


class Leader:
    """One disk of its own, and two followers."""

    def __init__(self, directory: Path, followers: list[str]) -> None:
        self._log = Log(directory)
        self._poll = selectors.DefaultSelector()
        self._behind: dict[socket.socket, int] = {}
        """How many entries each follower has yet to acknowledge."""
        self.took_ns: list[int] = []
        for each in followers:
            follower = socket.create_connection(parse_address(each), CONNECT_SECONDS_MAX)
            follower.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._behind[follower] = 0
            self._poll.register(follower, selectors.EVENT_READ)

    def close(self) -> None:
        """Leave the followers."""
        for follower in self._behind:
            follower.close()
        self._poll.close()
        self._log.close()

    def put(self, key: bytes, value: bytes) -> None:
        """Have an entry on its own disk and on that of a follower."""
        began_ns = time.monotonic_ns()
        entry = framed.request(framed.PUT, key, value)
        for follower in self._behind:
            follower.sendall(entry)
            self._behind[follower] += 1
        self._log.append(key + value)
        while all(self._behind.values()):
            for selected, _ in self._poll.select():
                follower = selected.fileobj  # type: ignore[assignment]
                acknowledged = len(follower.recv(framed.READ_BYTES))
                if not acknowledged:
                    raise ConnectionError("a follower is gone")
                self._behind[follower] -= acknowledged
        self.took_ns.append(time.monotonic_ns() - began_ns)


def serve_leader(port: int, directory: Path, followers: list[str]) -> None:
    """Answer clients, one after the other."""
    leader = Leader(directory, followers)
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            requests = framed.Requests()
            while data := client.recv(framed.READ_BYTES):
                for letter, key, value in requests.feed(data):
                    client.sendall(framed.answer(answered(leader, letter, key, value)))
            client.close()


def answered(leader: Leader, letter: bytes, key: bytes, value: bytes) -> bytes:
    """The payload that answers a request. It keeps no pairs: a GET finds nothing, a PUT never found one before."""
    if letter == framed.PUT:
        leader.put(key, value)
        return framed.NO
    if letter == framed.GET:
        return framed.optional(None)
    if letter == framed.LEADS:
        return framed.YES
    if letter == TIMES:
        return b"%d" % statistics.median(leader.took_ns) if leader.took_ns else b"0"
    raise ConnectionError(f"{letter!r} is not answered here")


def inside_p50_us(address: str) -> float:
    """The median of a leader's PUTs, taken inside it: without the client and its socket."""
    store = framed.FramedStore(address, CONNECT_SECONDS_MAX)
    try:
        return int(store.call(TIMES)) / 1000
    finally:
        store.close()


def main(role: str, port: str, directory: str, *followers: str) -> None:
    """One of the processes."""
    if role == "leader":
        serve_leader(int(port), Path(directory), list(followers))
    else:
        serve_follower(int(port), Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
