"""Garbage on real sockets, for a while: a process of its own, so that who talks sense beside it is not held up.

    python -m tests.fuzzing.garbage SEED SECONDS DOOR=HOST:PORT ...         DOOR: client, manager or peer

Ends with status 0, having printed how many connections there were and how many of them the other side closed.

What it leaves out is what is no garbage: commands of operators, a server's or a replica's true name, the session of
somebody else. Whoever may connect may use those.
"""

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from madkv.addresses import parse_address
from madkv.wire import codec
from madkv.wire.boxes import blob, field

THREADS_PER_DOOR = 2
IO_SECONDS_MAX = 2.0
READ_BYTES = 1 << 16
SESSION = 2**62
"""The session of nobody."""
INTERESTING = (b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\0\0\0\1", b"\1\0", b"_ask", b"_error", b"value", b".1")


class Talk:
    """What one connection says, drawn by a seed."""

    def __init__(self, random: Random, door: str) -> None:
        self._random = random
        self._door = door
        self._tag = 0

    def data(self) -> bytes:
        """All that it says."""
        ways: tuple[Callable[[], bytes], ...] = (
            self._noise,
            self._greeting,
            self._mutated,
            self._mutated,
            self._half,
            self._huge,
            self._tiny,
            self._out_of_order,
        )
        return self._random.choice(ways)()

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.choice((1, 7, 100, 5000, 200_000)))

    def _greeting(self) -> bytes:
        greetings = (
            b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            b"\x16\x03\1\2\0\1\0\1\xfc\3\3",
            b"SSH-2.0-x\r\n",
            b"\0\0",
            b"{}\n",
        )
        return self._random.choice(greetings)

    def _mutated(self) -> bytes:
        """A conversation with a fault or a few."""
        said = bytearray(self._conversation())
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(said) + 1)
            gone = self._random.choice((0, 0, 1, 2, 9))
            said[at : at + gone] = self._random.choice((*INTERESTING, self._random.randbytes(3), b""))
        return bytes(said)

    def _half(self) -> bytes:
        said = self._conversation()
        return said[: self._random.randrange(1, len(said))]

    def _huge(self) -> bytes:
        """A box of which there is no end, or one in which something is as long as it may be, or a bit longer."""
        piece = field(b"n", bytes(65_535))
        ways = (
            lambda: piece * 40,
            lambda: b"".join(field(b"%d" % number, bytes(65_535)) for number in range(31)) + b"\0\0",
            lambda: field(b"f", b"") * 200,
            lambda: self._call(codec.PUT, field(b"key", b"garbage") + blob(b"value", bytes((1 << 20) + 1))),
            lambda: self._call(codec.GET, field(b"key", bytes(65_535))),
            lambda: self._call(b"x" * 60_000, b""),
            lambda: self._call(codec.SCAN, field(b"start", b"") + field(b"end", b"\xff" * 511)) * 50,
            lambda: self._call(codec.REGISTER, self._registration("é." * 10_000)),
            lambda: b"\0\1x\xff\xff",
        )
        return self._random.choice(ways)()

    def _tiny(self) -> bytes:
        """Many of the shortest boxes."""
        return self._random.choice((b"\0\1a\0\0\0\0", self._call(codec.GET, field(b"key", b"g")))) * 5000

    def _out_of_order(self) -> bytes:
        """What is good in another place."""
        ways = (
            lambda: codec.answer(b"1", field(b"value", b"v")) + self._conversation(),
            lambda: field(b"_command", codec.RAFT) + blob(b"message", self._random.randbytes(90)) + b"\0\0",
            lambda: self._hello() * 2,
            lambda: self._hello() + field(b"_command", codec.RAFT) + field(b"message", b"\1\5") + b"\0\0",
            lambda: self._call(codec.INTRODUCE, field(b"replica", b"0") + field(b"settings", b"[" * 30_000)),
            lambda: self._call(codec.HELLO, codec.integer(b"version", 2)),
            lambda: field(b"_error", b"1") + field(b"_error_code", b"BUSY") + b"\0\0",
        )
        return self._random.choice(ways)()

    def _conversation(self) -> bytes:
        """Some calls that are as they should be, for this door or for another."""
        value = blob(b"value", self._random.randbytes(self._random.choice((0, 10, 1000, 70_000))))
        key = field(b"key", b"garbage.%d" % self._random.randrange(9))
        calls = (
            lambda: self._call(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION)),
            lambda: self._call(codec.OPEN_SESSION, field(b"client_id", self._random.randbytes(16))),
            lambda: self._call(codec.PUT, key + value),
            lambda: self._call(codec.SWAP, key + value + codec.session_fields(SESSION, 7, 3)),
            lambda: self._call(codec.DELETE, key),
            lambda: self._call(codec.GET, key),
            lambda: self._call(codec.SCAN, field(b"start", b"garbage") + field(b"end", b"garbagf")),
            lambda: self._call(codec.STATUS, b""),
            lambda: self._call(codec.GET_MAP, b""),
            lambda: self._call(codec.REGISTER, self._registration("127.0.0.1:1")),
            lambda: self._hello(),
        )
        return b"".join(self._random.choice(calls)() for _ in range(self._random.randint(1, 12)))

    def _call(self, command: bytes, fields: bytes) -> bytes:
        self._tag += 1
        return codec.request(self._tag, command, fields)

    def _registration(self, peers: str) -> bytes:
        """Of a server that no cluster has."""
        return (
            field(b"cluster", self._random.choice((b"", b"nobody's\n")))
            + codec.integer(b"partition", 49)
            + codec.integer(b"replica", 8)
            + field(b"disk", bytes(16))
            + codec.integer(b"api_port", 1)
            + codec.integer(b"p2p_port", 1)
            + field(b"peers", peers.encode())
            + codec.integer(b"rf", 2)
        )

    def _hello(self) -> bytes:
        """Of a replica that no cluster has."""
        return self._call(
            codec.PEER_HELLO,
            codec.integer(b"version", codec.PROTOCOL_VERSION)
            + field(b"cluster", b"nobody's")
            + field(b"group", b"s0")
            + codec.integer(b"replica", 1)
            + field(b"disk", bytes(16))
            + codec.integer(b"to", 0)
            + codec.ports(b"ports", (1, 2, 3)),
        )


def talk(door: str, address: tuple[str, int], random: Random, until: float, counts: Counter[str]) -> None:
    """Connect, say something, hear some of the answer, and again."""
    while time.monotonic() < until:
        counts["connections"] += 1
        said = Talk(random, door).data()
        with socket.create_connection(address, IO_SECONDS_MAX) as connection:
            try:
                if random.random() < 0.3:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                for at in range(0, len(said), chunk := random.choice((11, 4096, 1 << 20))):
                    connection.sendall(said[at : at + chunk])
                    if at > 100 * chunk:
                        break
                ending = random.random()
                if ending < 0.3:
                    connection.shutdown(socket.SHUT_WR)
                connection.settimeout(IO_SECONDS_MAX if ending < 0.3 else 0.02)
                while connection.recv(READ_BYTES):
                    # A long answer comes slowly where so little of it is taken at once.
                    if time.monotonic() >= until:
                        raise TimeoutError("it has heard enough")
                counts["closed"] += 1
            except TimeoutError:
                pass  # it waits for the rest of a box, or has nothing to say, or waits to be heard
            except OSError:
                counts["closed"] += 1


def main(seed: int, seconds: float, doors: list[str]) -> None:
    """The command."""
    until = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    threads = []
    for number, each in enumerate(doors * THREADS_PER_DOOR):
        door, _, where = each.partition("=")
        arguments = door, parse_address(where), Random(f"{seed} {number}"), until, counts
        threads.append(threading.Thread(target=talk, args=arguments))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(counts["connections"], counts["closed"])


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
