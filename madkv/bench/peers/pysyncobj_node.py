"""One node of a replicated dictionary on PySyncObj, the usual Raft library of Python, with a door for clients.

`madkv.bench.peers.pysyncobj_node CLIENT_PORT OWN PEERS DIRECTORY` listens for clients on CLIENT_PORT and for its peers
on OWN. Every call, a read too, goes through the replicated log: the library has no other read that is linearizable.

What is set, and why. `appendEntriesUseBatch=False`, its setting for short answers: with the default a call waits for up
to 0.1 s to be sent. The clients' sockets are in the library's own poll loop, in one thread, which costs it less than
its default of a second thread. Its journal is a mapped file that it never syncs; here it is synced (one msync for
whatever is new): by a follower before it answers, by the leader after it has sent and before it looks what is
committed, once for all that came together. So a write is on the disks of a majority when it is acknowledged. With
`MADKV_PYSYNCOBJ_SYNC=no` in the environment the journal is left as it comes: written, and not synced.
"""

import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pysyncobj.syncobj
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal
from pysyncobj.poller import POLL_EVENT_TYPE
from pysyncobj.transport import TCPTransport
from sortedcontainers import SortedDict

from madkv.bench.peers import framed

TICK_SECONDS = 0.05


class SyncedJournal(FileJournal):
    """The library's journal, which knows whether something in it is not synced yet."""

    latest: "SyncedJournal"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.is_dirty = False
        SyncedJournal.latest = self

    def add(self, command: bytes, idx: int, term: int) -> None:
        """An entry more."""
        super().add(command, idx, term)
        self.is_dirty = True

    def sync(self) -> None:
        """Bring to the disk what is not there yet."""
        if self.is_dirty:
            self.flush()
            self.is_dirty = False


class SyncingTransport(TCPTransport):
    """Sends nothing before the journal is on the disk, but for a leader's new entries."""

    def send(self, node: Any, message: Any) -> bool:
        """Send to a peer."""
        if message["type"] != "append_entries":
            SyncedJournal.latest.sync()
        return bool(super().send(node, message))


class Dictionary(SyncObj):
    """The replicated state. Values are immutable, so results may go to callers as they are."""

    def __init__(self, own: str, others: list[str], conf: SyncObjConf, transport: type) -> None:
        super().__init__(own, others, conf, transportClass=transport)
        self._pairs = SortedDict()

    @replicated
    def swap(self, key: bytes, value: bytes) -> bytes | None:
        """Set a value; the old one."""
        old = self._pairs.get(key)
        self._pairs[key] = value
        return old

    @replicated
    def look(self, key: bytes) -> bytes | None:
        """The value, at this point of the log."""
        return self._pairs.get(key)

    @replicated
    def remove(self, key: bytes) -> bytes | None:
        """Remove a key; its value."""
        return self._pairs.pop(key, None)

    @replicated
    def range(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """The pairs from `start` to `end`, at this point of the log."""
        return [(key, self._pairs[key]) for key in self._pairs.irange(start, end)]


class Door:
    """The clients of one node."""

    def __init__(self, dictionary: Dictionary, port: int) -> None:
        self._dictionary = dictionary
        self._poller = dictionary._poller
        self._clients: dict[int, tuple[socket.socket, framed.Requests]] = {}
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._poller.subscribe(self._listener.fileno(), self._accept, POLL_EVENT_TYPE.READ)

    def _accept(self, number: int, event: int) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[client.fileno()] = client, framed.Requests()
        self._poller.subscribe(client.fileno(), self._read, POLL_EVENT_TYPE.READ | POLL_EVENT_TYPE.ERROR)

    def _read(self, number: int, event: int) -> None:
        client, requests = self._clients[number]
        try:
            data = client.recv(framed.READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._drop(number)
        for each in requests.feed(data):
            self._call(number, client, *each)

    def _drop(self, number: int) -> None:
        if number in self._clients:
            self._poller.unsubscribe(number)
            self._clients.pop(number)[0].close()

    def _call(self, number: int, client: socket.socket, letter: bytes, key: bytes, value: bytes) -> None:
        dictionary = self._dictionary

        def done(result: Any, failure: int) -> None:
            if failure:
                # As a user would: the leader has changed, say, or the library has dropped an entry again.
                print(f"a call is tried again: reason {failure} of FAIL_REASON", file=sys.stderr, flush=True)
                self._call(number, client, letter, key, value)
                return
            try:
                client.sendall(framed.answer(_payload(letter, result)))
            except OSError:
                self._drop(number)

        if letter == framed.GET:
            dictionary.look(key, callback=done)
        elif letter in (framed.PUT, framed.SWAP):
            dictionary.swap(key, value, callback=done)
        elif letter == framed.SCAN:
            dictionary.range(key, value, callback=done)
        elif letter == framed.DELETE:
            dictionary.remove(key, callback=done)
        elif letter == framed.LEADS:
            done(dictionary._isLeader() and dictionary.isReady(), 0)
        else:
            self._drop(number)


def _payload(letter: bytes, result: Any) -> bytes:
    if letter in (framed.GET, framed.SWAP):
        return framed.optional(result)
    if letter == framed.SCAN:
        return framed.pairs(result)
    is_yes = result if letter == framed.LEADS else result is not None
    return framed.YES if is_yes else framed.NO


def main(port: str, own: str, others: str, directory: str) -> None:
    """Run until SIGTERM."""
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    syncs = os.environ.get("MADKV_PYSYNCOBJ_SYNC") != "no"
    if syncs:
        # The library has no way to be given a journal.
        pysyncobj.syncobj.createJournal = SyncedJournal
    conf = SyncObjConf(
        autoTick=False,
        appendEntriesUseBatch=False,
        journalFile=str(root / "journal"),
        fullDumpFile=str(root / "dump"),
    )
    dictionary = Dictionary(own, others.split(","), conf, SyncingTransport if syncs else TCPTransport)
    if syncs:
        dictionary.addOnTickCallback(SyncedJournal.latest.sync)
    Door(dictionary, int(port))
    ending = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    while not ending:
        dictionary.doTick(TICK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
