"""A scan, cut into what each group is asked for. Pure, and light enough for the line client."""

from madkv.errors import ProtocolError
from madkv.wire import codec
from madkv.wire.boxes import Box, field


class Piece:
    """What one group is asked for: keys from `begin` on that lie before `before`, or up to `end` if that is None.

    It comes in pages. A group may own less or more than the map said: of less, what follows is asked for by the next
    request, which that group refuses with its epoch; what is more is left to whomever the map names.
    """

    __slots__ = ("_cursor", "_kept", "before", "begin", "done", "end", "group", "pairs")

    def __init__(self, group: int, begin: bytes, before: bytes | None, end: bytes) -> None:
        self.group = group
        self.begin = begin
        """The first key of what is still to be asked for, but for the pages that have come of that."""
        self.before = before
        self.end = end
        self.pairs: list[codec.Pair] = []
        self.done = False
        self._kept = 0  # pairs before `begin`
        self._cursor: bytes | None = None

    def request(self) -> bytes:
        """The fields of the next request."""
        fields = field(b"start", self.begin) + field(b"end", self.end)
        return fields if self._cursor is None else fields + field(b"cursor", self._cursor)

    def take(self, answer: Box) -> None:
        """Take in the answer to `request`. Raises ProtocolError for one that cannot be."""
        page, cursor = codec.take_page(answer)
        before, until = self.before, answer.get(b"until")
        if before is not None and page and page[-1][0] >= before:
            self.pairs += [pair for pair in page if pair[0] < before]
            self.done = True
            return
        self.pairs += page
        self._cursor = cursor
        if cursor is not None:
            return
        if until is None or until > self.end or (before is not None and until >= before):
            self.done = True
        elif until <= self.begin:
            self.restart()
            raise ProtocolError("a scan's answer that ends before it begins")
        else:
            self.begin = until
            self._kept = len(self.pairs)

    def restart(self) -> None:
        """Forget the pages that have come from `begin` on."""
        del self.pairs[self._kept :]
        self._cursor = None
