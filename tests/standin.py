"""A service and line clients for tests of the tools: just enough of each, quick to start, and wrong on demand.

Run as `standin.py p1::server ADDRESS` or `standin.py p1::client ADDRESS`, which is how the tools call `just`. What a
client gets wrong is in the environment variable STANDIN, as `WHAT` or `WHAT:AFTER`, the number of right answers before.
"""

import os
import socket
import socketserver
import sys
import threading


class Store(socketserver.StreamRequestHandler):
    """Answers lines; one thread a connection, one lock for all."""

    data: dict[bytes, bytes] = {}
    lock = threading.Lock()

    def handle(self) -> None:
        for line in self.rfile:
            with self.lock:
                reply = self.answer(line.split())
            self.wfile.write(reply)

    def answer(self, words: list[bytes]) -> bytes:
        verb, key = words[:2]
        before = self.data.get(key)
        match verb:
            case b"GET":
                return b"GET %b %b\n" % (key, before or b"null")
            case b"SCAN":
                keys = sorted(each for each in self.data if key <= each <= words[2])
                pairs = b"".join(b"  %b %b\n" % (each, self.data[each]) for each in keys)
                return b"SCAN %b %b BEGIN\n%bSCAN END\n" % (key, words[2], pairs)
            case b"DELETE":
                self.data.pop(key, None)
                return b"DELETE %b %b\n" % (key, b"not_found" if before is None else b"found")
        self.data[key] = words[2]
        if verb == b"SWAP":
            return b"SWAP %b %b\n" % (key, before or b"null")
        return b"PUT %b %b\n" % (key, b"not_found" if before is None else b"found")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def serve(address: tuple[str, int]) -> None:
    Server(address, Store).serve_forever()


def wrong(what: str, reply: bytes) -> bytes:
    """The reply as a client that is wrong in this way gives it."""
    words = reply.split(b" ")
    match what:
        case "null" if words[0] == b"GET":
            return b"GET %b null\n" % words[1]
        case "echo":
            return reply.replace(b"user", b"loser", 1)
        case "skip" if words[0] == b"SCAN":
            lines = reply.split(b"\n")
            return b"\n".join([*lines[:1], *lines[2:]])
    return reply


def client(address: tuple[str, int]) -> None:
    what, _, after = os.environ.get("STANDIN", "").partition(":")
    answered = 0
    connection = socket.create_connection(address)
    replies = connection.makefile("rb")
    for line in sys.stdin.buffer:
        if line == b"STOP\n":
            os.write(1, b"STOP\n")
            sys.exit(4 if what == "status" else 0)
        connection.sendall(line)
        parts = [replies.readline()]
        while line.startswith(b"SCAN") and parts[-1] != b"SCAN END\n":
            parts.append(replies.readline())
        reply = b"".join(parts)
        answered += 1
        if answered > int(after or 0):
            if what == "die":
                print("standin: that is all", file=sys.stderr, flush=True)
                sys.exit(3)
            if what == "hang":
                print("standin: no answer", file=sys.stderr, flush=True)
                continue
            reply = wrong(what, reply)
        while reply:
            reply = reply[os.write(1, reply) :]


if __name__ == "__main__":
    recipe, place = sys.argv[1:3]
    host, _, port = place.rpartition(":")
    (serve if recipe.endswith("server") else client)((host, int(port)))
