"""The line interface: reads one call per line, runs it, prints its answer at once, in order.

    PUT <key> <value>     ->  PUT <key> found          | PUT <key> not_found
    SWAP <key> <value>    ->  SWAP <key> <old value>   | SWAP <key> null
    GET <key>             ->  GET <key> <value>        | GET <key> null
    DELETE <key>          ->  DELETE <key> found       | DELETE <key> not_found
    SCAN <start> <end>    ->  SCAN <start> <end> BEGIN, a line "  <key> <value>" for each pair, SCAN END
    STOP                  ->  STOP, and the client exits

Words are bytes, separated by any number of spaces (0x20 and nothing else). Nothing but answers is ever written to
stdout. Everything it cannot understand gets one line on stderr.
"""

import os
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING

from madkv.errors import InvalidArgument, OutcomeUnknown, Rejected, VersionMismatch
from madkv.limits import LINE_BYTES_MAX

STDIN, STDOUT, STDERR = 0, 1, 2
READ_BYTES = 1 << 16
SHOWN_BYTES = 40

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_OUTCOME_UNKNOWN = 3

_WORDS = {b"PUT": 2, b"SWAP": 2, b"GET": 1, b"DELETE": 1, b"SCAN": 2, b"STOP": 0}
_USAGE = {
    b"PUT": "PUT <key> <value>",
    b"SWAP": "SWAP <key> <value>",
    b"GET": "GET <key>",
    b"DELETE": "DELETE <key>",
    b"SCAN": "SCAN <start> <end>",
    b"STOP": "STOP",
}


class StdoutGone(Exception):
    """Whoever read our answers is gone."""


if TYPE_CHECKING:
    from typing import Protocol

    class Store(Protocol):
        """What answers the lines: a BlockingClient, or another store's client that is measured beside it."""

        def put(self, key: bytes, value: bytes) -> bool: ...
        def swap(self, key: bytes, value: bytes) -> bytes | None: ...
        def get(self, key: bytes) -> bytes | None: ...
        def delete(self, key: bytes) -> bool: ...
        def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]: ...


class LineInterface:
    """One client behind this process's stdin and stdout."""

    def __init__(self, client: "Store") -> None:
        self._client = client
        self._poll = select.poll()
        self._poll.register(STDIN, select.POLLIN)
        self._poll.register(STDOUT, 0)

    def run(self) -> int:
        """Serve lines until STOP or the end of input; the exit status. Raises StdoutGone and Abandoned."""
        for number, line in enumerate(self._lines(), 1):
            try:
                if line is None:
                    raise InvalidArgument(f"more than {LINE_BYTES_MAX:,} bytes in one line")
                answer = self._answer(line)
            except InvalidArgument as error:
                self._complain(f"line {number}: {error}")
            except OutcomeUnknown as error:
                self._complain(f"line {number}: {error}")
                return EXIT_OUTCOME_UNKNOWN
            except (Rejected, VersionMismatch) as error:
                self._complain(str(error))
                return EXIT_FAILED
            else:
                if answer:
                    self._print(answer)
                    if answer == b"STOP\n":
                        break
        return EXIT_OK

    def _answer(self, line: bytes) -> bytes:
        """Run one line; what to print, nothing for a blank line."""
        words = line.split(b" ")
        if b"" in words:
            words = [word for word in words if word]
            if not words:
                return b""
        keyword = words[0]
        expected = _WORDS.get(keyword)
        if expected is None:
            shown = keyword[:SHOWN_BYTES].decode("ascii", "backslashreplace")
            raise InvalidArgument(
                f"unknown keyword {shown!r}; there are {', '.join(_USAGE[word].split()[0] for word in _WORDS)}"
            )
        if len(words) != expected + 1:
            raise InvalidArgument(f"{len(words) - 1} words after {keyword.decode()}; write {_USAGE[keyword]}")
        client = self._client
        if keyword == b"GET":
            value = client.get(words[1])
            return b"GET %b %b\n" % (words[1], b"null" if value is None else value)
        if keyword == b"SWAP":
            value = client.swap(words[1], words[2])
            return b"SWAP %b %b\n" % (words[1], b"null" if value is None else value)
        if keyword == b"PUT":
            return b"PUT %b %b\n" % (words[1], b"found" if client.put(words[1], words[2]) else b"not_found")
        if keyword == b"DELETE":
            return b"DELETE %b %b\n" % (words[1], b"found" if client.delete(words[1]) else b"not_found")
        if keyword == b"SCAN":
            pairs = b"".join([b"  %b %b\n" % pair for pair in client.scan(words[1], words[2])])
            return b"SCAN %b %b BEGIN\n%bSCAN END\n" % (words[1], words[2], pairs)
        return b"STOP\n"

    def _lines(self) -> Iterator[bytes | None]:
        """Lines without their ends; None for one that is too long. What follows the last newline is a line too."""
        rest = b""
        skipping = False
        while True:
            for fd, _ in self._poll.poll():
                if fd == STDOUT:
                    raise StdoutGone
            data = os.read(STDIN, READ_BYTES)
            *lines, tail = data.split(b"\n")
            for line in lines:
                if skipping:
                    skipping = False
                    continue
                line = rest + line
                rest = b""
                yield line[:-1] if line.endswith(b"\r") else line
            if not data:
                if rest:
                    yield rest[:-1] if rest.endswith(b"\r") else rest
                return
            if not skipping:
                rest += tail
                if len(rest) > LINE_BYTES_MAX:
                    rest = b""
                    skipping = True
                    yield None

    def _print(self, answer: bytes) -> None:
        rest = memoryview(answer)
        while rest:
            try:
                rest = rest[os.write(STDOUT, rest) :]
            except BrokenPipeError:
                raise StdoutGone from None
            except BlockingIOError:  # whoever shares the terminal or the pipe with us may have set it so
                room = select.poll()
                room.register(STDOUT, select.POLLOUT)
                room.poll()

    def _complain(self, text: str) -> None:
        try:
            os.write(STDERR, f"madkv: {text}\n".encode())
        except OSError:
            pass  # nobody reads our complaints; the answers still count
