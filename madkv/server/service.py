"""The AMP service in front of a replica: checks bounds, hands calls over, answers them. It decides nothing else."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, Protocol

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from madkv.arguments import check_key, check_scan, check_value
from madkv.counts import Histogram
from madkv.errors import Busy, InvalidArgument, MadKVError
from madkv.limits import CLIENT_ID_BYTES, SCAN_PAGE_BYTES, SCAN_PAGE_PAIRS, SESSIONS_PER_CONNECTION_MAX
from madkv.operations import CloseSession, OpenSession, Operation, Outcome, Write, WriteKind
from madkv.ranges import Ownership
from madkv.server.backups import Backups
from madkv.server.cuts import Cuts
from madkv.server.replica import Answered
from madkv.storage.memory import Cut, MemoryStore
from madkv.storage.overlay import AppliedPairs
from madkv.wire import codec
from madkv.wire.answering import AnsweringFactory, AnsweringProtocol
from madkv.wire.boxes import Box, blob, field
from madkv.wire.codec import take_blob, take_bytes, take_integer, take_session


class Replica(Protocol):
    """How the service sees its replica. Both calls may answer before they return, or any time later, exactly once."""

    def propose(self, operation: Operation, answered: Answered) -> None:
        """Order and apply `operation`; `answered` gets its outcome, or the error that kept it from being applied."""

    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        """`released` gets the pairs at a moment when reading `key` is linearizable, or an error."""


CALLS = ("get", "put", "swap", "delete", "scan", "open_session", "close_session")
"""What is counted apart; of a scan, each page."""
ReadAnswer = Callable[[bytes, Any], bytes]
"""Makes the answer to a read, of its tag and the pairs at the moment that it was released for."""


class ServerProtocol(AnsweringProtocol):
    """One client's connection."""

    _service: "ServerFactory"

    def __init__(self, service: "ServerFactory", clock: IReactorTime) -> None:
        super().__init__(service, clock)
        self._seconds = clock.seconds
        self._client_ids: set[bytes] = set()  # for which sessions were asked here
        self._unanswered: list[tuple[bytes, int, ReadAnswer, bytes, Histogram, float]] = []
        """Reads that were released while the client did not read what it had been sent, as `_complete` gets them."""
        self._responders |= {
            codec.GET: self._get,
            codec.SWAP: partial(self._write_call, WriteKind.SWAP, service.times["swap"]),
            codec.PUT: partial(self._write_call, WriteKind.PUT, service.times["put"]),
            codec.DELETE: partial(self._write_call, WriteKind.DELETE, service.times["delete"]),
            codec.SCAN: self._scan,
            codec.OPEN_SESSION: self._open_session,
            codec.CLOSE_SESSION: self._close_session,
            codec.BACKUP: partial(self._start_for_operator, self._backup, None),
        }

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let go of what was kept for this client."""
        super().connectionLost(reason)
        self._service.cuts.close_all_of(self)
        if self._service.backups is not None:
            self._service.backups.close_all_of(self)
        unanswered, self._unanswered = self._unanswered, []
        for _, size_bytes, *_ in unanswered:
            self._share.end(size_bytes)

    def resumeProducing(self) -> None:
        """The client has read it all: make the answers that waited for that, each by a read of its own."""
        self._unread_by_peer = False
        unanswered, self._unanswered = self._unanswered, []
        for read in unanswered:
            self._service.replica.read(read[3], partial(self._complete, *read))
        if not self._unread_by_peer:
            super().resumeProducing()

    # --- Sessions ---------------------------------------------------------------------------------------------------

    def _open_session(self, tag: bytes, box: Box) -> None:
        client_id = take_bytes(box, b"client_id")
        if len(client_id) != CLIENT_ID_BYTES:
            raise InvalidArgument(f"a client id has {CLIENT_ID_BYTES} bytes; this one has {len(client_id)}")
        # Asking again, as while nobody leads or when its session has expired, makes no further one.
        if client_id not in self._client_ids:
            if len(self._client_ids) >= SESSIONS_PER_CONNECTION_MAX:
                raise Busy(f"a connection opens sessions for at most {SESSIONS_PER_CONNECTION_MAX} clients")
            self._client_ids.add(client_id)
        self._propose(tag, OpenSession(client_id), CLIENT_ID_BYTES, self._service.times["open_session"])

    def _close_session(self, tag: bytes, box: Box) -> None:
        self._propose(tag, CloseSession(take_integer(box, b"session")), 0, self._service.times["close_session"])

    # --- Writes -----------------------------------------------------------------------------------------------------

    def _write_call(self, kind: WriteKind, times: Histogram, tag: bytes, box: Box) -> None:
        key = take_bytes(box, b"key")
        check_key(key)
        value = b""
        if kind is not WriteKind.DELETE:
            value = take_blob(box, b"value")
            check_value(value)
        self._propose(tag, Write(kind, key, value, *take_session(box)), len(key) + len(value), times)

    def _propose(self, tag: bytes, operation: Operation, size_bytes: int, times: Histogram) -> None:
        self._share.begin(size_bytes)
        try:
            self._service.replica.propose(
                operation, partial(self._complete, tag, size_bytes, _outcome_answer, None, times, self._seconds())
            )
        except BaseException:
            self._share.end(size_bytes)
            raise

    # --- Reads ------------------------------------------------------------------------------------------------------

    def _get(self, tag: bytes, box: Box) -> None:
        key = take_bytes(box, b"key")
        check_key(key)
        self._read(tag, key, partial(_value_answer, key), len(key), self._service.times["get"])

    def _scan(self, tag: bytes, box: Box) -> None:
        times = self._service.times["scan"]
        start, end = take_bytes(box, b"start"), take_bytes(box, b"end")
        check_scan(start, end)
        if self._service.ownership is not None:
            cursor = box.get(b"cursor")
            if cursor is not None:
                check_key(cursor)
            begin = start if cursor is None else cursor + b"\0"  # the first key that may follow it
            self._read(tag, begin, partial(self._stretch_answer, begin, end), len(start) + len(end), times)
        elif b"cursor" in box:
            began = self._seconds()
            cut = self._service.cuts.take(take_integer(box, b"cursor"), self)
            self._answer(tag, self._page_answer(tag, cut))
            times.add(self._seconds() - began)
        else:
            self._read(tag, start, partial(self._first_page_answer, start, end), len(start) + len(end), times)

    def _stretch_answer(self, begin: bytes, end: bytes, tag: bytes, pairs: AppliedPairs) -> bytes:
        """A page of what this group owns from `begin` on: each page shows a point of its own."""
        assert self._service.ownership is not None
        stretch = self._service.ownership().stretch_of(begin)
        assert stretch is not None, "the replica refuses to read what is not owned"
        until = stretch.end if stretch.end is not None and stretch.end <= end else None
        page: list[tuple[bytes, bytes]] = []
        size = 0
        with closing(pairs.pairs(begin, end if until is None else until)) as following:
            for key, value in following:
                if key == until:
                    break
                if size >= SCAN_PAGE_BYTES or len(page) >= self._service.scan_page_pairs:
                    last = blob(b"pairs", codec.encode_pairs(page)) + field(b"cursor", page[-1][0])
                    return codec.answer(tag, last)
                page.append((key, value))
                size += len(key) + len(value)
        fields = blob(b"pairs", codec.encode_pairs(page))
        return codec.answer(tag, fields if until is None else fields + field(b"until", until))

    def _first_page_answer(self, start: bytes, end: bytes, tag: bytes, pairs: MemoryStore) -> bytes:
        return self._page_answer(tag, pairs.cut(start, end))

    def _page_answer(self, tag: bytes, cut: Cut) -> bytes:
        try:
            fields = blob(b"pairs", codec.encode_pairs(cut.page()))
            if cut.done or not self.open:
                cut.close()
            else:
                fields += codec.integer(b"cursor", self._service.cuts.keep(cut, self))
            return codec.answer(tag, fields)
        except BaseException:
            cut.close()
            raise

    def _read(self, tag: bytes, key: bytes, answer_of: ReadAnswer, size_bytes: int, times: Histogram) -> None:
        if not tag:
            return  # nobody wants to know, so nothing would hold back whoever asks
        self._share.begin(size_bytes)
        try:
            self._service.replica.read(
                key, partial(self._complete, tag, size_bytes, answer_of, key, times, self._seconds())
            )
        except BaseException:
            self._share.end(size_bytes)
            raise

    # --- Backups ----------------------------------------------------------------------------------------------------

    async def _backup(self, box: Box) -> bytes:
        backups = self._service.backups
        if backups is None:
            if self._service.ownership is None:
                raise InvalidArgument("this server keeps its pairs in memory; backups are of clusters")
            raise Busy("this server is starting")
        return await (backups.go_on(take_integer(box, b"cursor"), self) if b"cursor" in box else backups.begin(self))

    # --- What both end in -------------------------------------------------------------------------------------------

    def _complete(
        self,
        tag: bytes,
        size_bytes: int,
        answer_of: ReadAnswer,
        read_key: bytes | None,
        times: Histogram,
        began: float,
        result: Any,
    ) -> None:
        """Answer a call that the replica is through with. A failure here is this call's, never the replica's.

        `times` counts how long it took since `began`. `read_key`: the key that was read, None for other calls. The
        answer to a read is made only when there is room for it, since those of all reads in flight may be a gigabyte;
        it is as good at any later moment.
        """
        if self._unread_by_peer and read_key is not None and self.open:
            self._unanswered.append((tag, size_bytes, answer_of, read_key, times, began))
            return
        try:
            if isinstance(result, MadKVError):
                answer = self._failure_answer(tag, result)
            else:
                answer = answer_of(tag, result)
                times.add(self._seconds() - began)
        except Exception as error:
            answer = self._failure_answer(tag, error)
        if tag:
            self.send(answer)
        self._share.end(size_bytes)


def _outcome_answer(tag: bytes, outcome: Outcome) -> bytes:
    """The answer to a write or a session's call that was applied."""
    if outcome is True or outcome is False:
        return codec.answer_found(tag, outcome)
    if outcome is None or isinstance(outcome, bytes):  # None: nothing there before, or a session closed
        return codec.answer_value(tag, outcome)
    assert isinstance(outcome, int)
    return codec.answer(tag, codec.integer(b"session", outcome))


def _value_answer(key: bytes, tag: bytes, pairs: MemoryStore) -> bytes:
    """The answer to a Get."""
    return codec.answer_value(tag, pairs.get(key))


class ServerFactory(AnsweringFactory):
    """The service of one server: its replica, and all connections."""

    kind = "server"

    def __init__(
        self,
        clock: IReactorTime,
        replica: Replica,
        node: bytes,
        boot: bytes,
        status: Callable[[], dict[str, Any]] = dict,
        ownership: Callable[[], Ownership] | None = None,
    ) -> None:
        """`ownership` tells what the server's group owns, if it is one of a cluster. `replica` may be replaced."""
        super().__init__(clock, node, boot, status)
        self.times = {name: Histogram() for name in CALLS}
        self.replica = replica
        self.role = b"solo" if ownership is None else b"server"
        self.ownership = ownership
        self.cuts = Cuts(clock)
        self.backups: Backups | None = None
        """None without a disk, and until its replica begins."""
        self.scan_page_pairs = SCAN_PAGE_PAIRS

    def buildProtocol(self, addr: IAddress | None) -> ServerProtocol | None:
        """A protocol for one connection; None when there is no room for it."""
        return ServerProtocol(self, self._clock) if self.admission.admits() else None
