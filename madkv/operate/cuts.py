"""What the groups of a cluster hold, read from whoever leads each: all of it at one point, or the first key."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Protocol

from madkv.client.connection import Connection, connector
from madkv.client.router import Router, Tries
from madkv.client.scan import Piece
from madkv.errors import Interrupted, MadKVError, ProtocolError, Refused, Rejected, ScanExpired, TLSError
from madkv.limits import KEY_BYTES_MAX, TRY_SECONDS_MAX
from madkv.operate.ask import check_files
from madkv.operate.backup_file import Cut
from madkv.operate.health import map_of
from madkv.ranges import Ownership
from madkv.wire import codec
from madkv.wire.boxes import Box, field
from madkv.wire.codec import Pair

SILENT_SECONDS_MAX = 30.0
"""How long a group may be without a leader before it is given up."""
BEGINNINGS_MAX = 5
"""How often a group is begun: each time its leader changes meanwhile."""

_LAST_KEY = b"\xff" * KEY_BYTES_MAX

_AGAIN = (OSError, ProtocolError, Refused, Interrupted, ScanExpired, TLSError, Rejected)

Notice = Callable[[str], object]
_Pages = Generator[tuple[Cut | None, list[Pair]], None, None]


class Visitor(Protocol):
    """Whoever takes in a group's pairs."""

    def begin_group(self, cut: Cut) -> None:
        """The pairs that follow are of this point; those before, if the group had begun, count no more."""

    def page(self, pairs: list[Pair]) -> None:
        """Pairs that follow in key order."""


class Groups:
    """The groups of a cluster, by the addresses of its managers."""

    def __init__(self, managers: str, notice: Notice) -> None:
        """`notice` gets a line when something has to be waited for. Raises NotSeen when no manager has the map."""
        check_files()
        self._connect = connector(None)
        self._router = Router(None, managers)
        self._notice = notice
        partition_map = map_of(managers)
        self._router.map = partition_map
        self.cluster, self.epoch, self.count = partition_map.cluster, partition_map.epoch, len(partition_map.replicas)

    def read(self, group: int, visitor: Visitor) -> None:
        """All pairs of a group at one point. Raises MadKVError when it has no leader, or cannot be read to the end."""
        self._read(group, visitor, self._backup)

    def first_key(self, group: int) -> bytes | None:
        """The first key that a group holds; None when it holds none. It is read as any client may."""
        first = _First()
        self._read(group, first, self._first_pair)
        return first.key

    def _read(self, group: int, visitor: Visitor, pages_of: Callable[[Tries], _Pages]) -> None:
        tries = Tries(self._router, group)
        beginnings = 0
        silent_since = time.monotonic()
        said = False
        while True:
            has_begun = False
            with closing(pages_of(tries)) as pages:
                while True:
                    try:  # and nothing of the visitor's: what its disk says is no reason to try again
                        cut, pairs = next(pages, (None, None))
                    except _AGAIN as why:
                        problem = why
                        break
                    if pairs is None:
                        return
                    if cut is not None:
                        visitor.begin_group(cut)
                        has_begun = True
                    visitor.page(pairs)
                    silent_since = time.monotonic()
            beginnings += has_begun
            if beginnings >= BEGINNINGS_MAX or time.monotonic() - silent_since > SILENT_SECONDS_MAX:
                raise MadKVError(f"group s{group} cannot be read: {tries.whom()}: {problem}")
            seconds = tries.failed(problem)
            news = tries.news(problem)
            if news is not None:
                self._notice(news)
            if seconds:
                if not said:
                    self._notice(f"waiting for {tries.whom()}: {problem}")
                said = True
                time.sleep(seconds)

    @contextmanager
    def _connected(self, tries: Tries) -> Iterator[Connection]:
        """A connection to the replica that is to be asked now, which is the one that it should be."""
        router, group, replica = self._router, tries.group, tries.choose()
        with closing(self._connect(router.addresses(group)[replica], None)) as connection:
            version = codec.integer(b"version", codec.PROTOCOL_VERSION)
            hello = connection.exchange(codec.HELLO, version, tries.try_seconds)
            connection.check_hello(hello)
            router.check_hello(group, replica, hello)
            yield connection

    def _backup(self, tries: Tries) -> _Pages:
        """One backup: with the first page, what it is of."""
        with self._connected(tries) as connection:
            try:
                box = connection.exchange(codec.BACKUP, b"", TRY_SECONDS_MAX)
            except Rejected as error:  # a certificate that is not for this: others of the group say the same
                raise MadKVError(str(error)) from None
            yield _cut_of(box), _pairs_of(box)
            while (cursor := box.get(b"cursor")) is not None:
                box = connection.exchange(codec.BACKUP, field(b"cursor", cursor), TRY_SECONDS_MAX)
                yield None, _pairs_of(box)

    def _first_pair(self, tries: Tries) -> _Pages:
        """The first pair, if there is any, as the only page."""
        with self._connected(tries) as connection:
            for group, begin, before in self._router.pieces(b"", None, _LAST_KEY):
                piece = Piece(group, begin, before, _LAST_KEY)
                while group == tries.group and not piece.done and not piece.pairs:
                    piece.take(connection.exchange(codec.SCAN, piece.request(), TRY_SECONDS_MAX))
                if piece.pairs:
                    yield None, piece.pairs[:1]
                    return


class _First:
    """Takes in the first key."""

    key: bytes | None = None

    def begin_group(self, cut: Cut) -> None:
        """Whatever it is."""

    def page(self, pairs: list[Pair]) -> None:
        """It has one pair."""
        self.key = pairs[0][0]


def _cut_of(box: Box) -> Cut:
    try:
        ownership = Ownership.decode(codec.take_answer_blob(box, b"ownership"))
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    return Cut(
        codec.take_answer_field(box, b"group").decode("ascii", "backslashreplace"),
        ownership.ranges,
        codec.take_answer_integer(box, b"index"),
        codec.take_answer_integer(box, b"term"),
        now(),
    )


def _pairs_of(box: Box) -> list[Pair]:
    return codec.decode_pairs(codec.take_answer_blob(box, b"pairs"))


def now() -> str:
    """The time by the clock on the wall, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
