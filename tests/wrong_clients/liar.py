"""Line clients that are wrong in one way each: they wrap the real one, and now and then lie.

Run as `liar.py LIE p1::client ADDRESS`. Lies come after fixed numbers of calls, so that a run always has plenty.
"""

import os
import subprocess
import sys
from collections.abc import Callable


class Client:
    """Hands lines to a real line client and its replies back. A lie overrides the methods it needs."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None
        self.calls = 0

    def ask(self, line: bytes) -> bytes:
        """The true reply."""
        if self._process is None:
            option = "--server" if sys.argv[2].startswith("p1::") else "--managers"
            command = [sys.executable, "-m", "madkv.client", option, self._address]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(line)
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        while reply.startswith(b"SCAN ") and not reply.endswith(b"\nSCAN END\n"):
            reply += self._process.stdout.readline()
        return reply

    def answer(self, line: bytes) -> bytes:
        """The reply to give; a liar's may be another than the true one."""
        return self.ask(line)

    def run(self) -> None:
        """Answer all of stdin."""
        for line in sys.stdin.buffer:
            self.calls += 1
            reply = b"STOP\n" if line == b"STOP\n" else self.answer(line)
            sys.stdout.buffer.write(reply)
            sys.stdout.buffer.flush()
            if line == b"STOP\n":
                break
        if self._process:
            self._process.communicate()


class StaleReads(Client):
    """Sometimes answers a Get with a value that it has overwritten itself."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._old: dict[bytes, bytes] = {}
        self._last: dict[bytes, bytes] = {}

    def answer(self, line: bytes) -> bytes:
        verb, key, *rest = line.split()
        reply = self.ask(line)
        if verb in (b"PUT", b"SWAP"):
            if key in self._last:
                self._old[key] = self._last[key]
            self._last[key] = rest[0]
        if verb == b"GET" and key in self._old and self.calls % 3 == 0:
            return b"GET %b %b\n" % (key, self._old[key])
        return reply


class LostPuts(Client):
    """Sometimes acknowledges a Put that it never makes."""

    def answer(self, line: bytes) -> bytes:
        verb, key, *_ = line.split()
        if verb == b"PUT" and self.calls % 5 == 0:
            found = self.ask(b"GET %b\n" % key) != b"GET %b null\n" % key
            return b"PUT %b %b\n" % (key, b"found" if found else b"not_found")
        return self.ask(line)


class OwnStore(Client):
    """Keeps everything to itself."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._store: dict[bytes, bytes] = {}

    def answer(self, line: bytes) -> bytes:
        verb, key, *rest = line.split()
        old = self._store.get(key)
        if verb == b"SCAN":
            pairs = [(key, value) for key, value in sorted(self._store.items()) if line.split()[1] <= key <= rest[0]]
            rows = b"".join(b"  %b %b\n" % pair for pair in pairs)
            return b"SCAN %b %b BEGIN\n%bSCAN END\n" % (key, rest[0], rows)
        if verb in (b"PUT", b"SWAP"):
            self._store[key] = rest[0]
        if verb == b"DELETE":
            self._store.pop(key, None)
        found = b"not_found" if old is None else b"found"
        return b"%b %b %b\n" % (verb, key, found if verb in (b"PUT", b"DELETE") else old or b"null")


class Forgets(Client):
    """Now and then deletes all that it knows of, and tells nobody."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._known: set[bytes] = set()

    def answer(self, line: bytes) -> bytes:
        verb, key, *_ = line.split()
        if verb in (b"PUT", b"SWAP"):
            self._known.add(key)
        if self.calls % 40 == 0:
            for known in self._known:
                self.ask(b"DELETE %b\n" % known)
        return self.ask(line)


class WrongFound(Client):
    """Sometimes says found for not_found and the other way round."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._asked = 0

    def answer(self, line: bytes) -> bytes:
        reply = self.ask(line)
        self._asked += line.startswith((b"PUT ", b"DELETE "))
        if not line.startswith((b"PUT ", b"DELETE ")) or self._asked % 4:
            return reply
        head, _, word = reply.rstrip().rpartition(b" ")
        return head + (b" not_found\n" if word == b"found" else b" found\n")


class SkippingScan(Client):
    """Sometimes leaves the last pair of a Scan out."""

    def answer(self, line: bytes) -> bytes:
        rows = self.ask(line).split(b"\n")
        if line.startswith(b"SCAN ") and len(rows) > 4 and self.calls % 2:
            del rows[-3]
        return b"\n".join(rows)


class RepeatingScan(Client):
    """Sometimes gives the first pair of a Scan twice."""

    def answer(self, line: bytes) -> bytes:
        rows = self.ask(line).split(b"\n")
        if line.startswith(b"SCAN ") and len(rows) > 4 and self.calls % 2:
            rows.insert(1, rows[1])
        return b"\n".join(rows)


class BabblingScan(Client):
    """Adds lines that are no pairs to every Scan."""

    def answer(self, line: bytes) -> bytes:
        reply = self.ask(line)
        if not line.startswith(b"SCAN "):
            return reply
        first, rest = reply.split(b"\n", 1)
        return first + b"\nTraceback (most recent call last):\nkey value\n  a b c d e\n" + rest


class Dies(Client):
    """Ends in the middle."""

    def answer(self, line: bytes) -> bytes:
        if self.calls == 50:
            sys.exit("the session of this client is too old")
        return self.ask(line)


class Mumbles(Client):
    """Gives a reply that is none."""

    def answer(self, line: bytes) -> bytes:
        return b"ERROR\n" if self.calls == 50 else self.ask(line)


class Confuses(Client):
    """Answers about another key."""

    def answer(self, line: bytes) -> bytes:
        reply = self.ask(line)
        return reply.replace(line.split()[1], b"other") if self.calls == 50 else reply


class Hangs(Client):
    """Does not answer any more."""

    def answer(self, line: bytes) -> bytes:
        return b"" if self.calls == 50 else self.ask(line)


class Announces(Client):
    """Tells no lie, but writes to the pipe that MADKV_ANNOUNCE names when it has answered once."""

    def answer(self, line: bytes) -> bytes:
        reply = self.ask(line)
        if self.calls == 1:
            with open(os.environ["MADKV_ANNOUNCE"], "wb") as pipe:
                pipe.write(b".")
        return reply


class FailsAtLast(Client):
    """Answers STOP as it should, and then exits with 4."""

    def run(self) -> None:
        super().run()
        sys.exit(4)


class Chatters(Client):
    """Says more than it was asked."""

    def answer(self, line: bytes) -> bytes:
        return self.ask(line) + b"anything else?\n" * (self.calls == 50)


LIES: dict[str, Callable[[str], Client]] = {
    "nothing": Client,
    "stale": StaleReads,
    "lost": LostPuts,
    "own": OwnStore,
    "forgets": Forgets,
    "found": WrongFound,
    "skips": SkippingScan,
    "repeats": RepeatingScan,
    "babbles": BabblingScan,
    "dies": Dies,
    "mumbles": Mumbles,
    "confuses": Confuses,
    "hangs": Hangs,
    "chatters": Chatters,
    "announces": Announces,
    "fails": FailsAtLast,
}

if __name__ == "__main__":
    LIES[sys.argv[1]](sys.argv[3]).run()
