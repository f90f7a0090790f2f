"""Targets for the client's own doors: what servers may answer it, what people may type, what a command line may say."""

import asyncio
import contextlib
import io
import json
import os
import socket
import threading
from functools import cache
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python import usage
from twisted.python.failure import Failure

from madkv.addresses import parse_address, parse_addresses, show_address
from madkv.arguments import check_key, check_scan, check_value
from madkv.client import line
from madkv.client.aio_connection import CallLost as AsyncCallLost
from madkv.client.aio_connection import Connection as AsyncConnection
from madkv.client.connection import Connection
from madkv.errors import InvalidArgument, MadKVError, ProtocolError
from madkv.manager import tap as manager_tap
from madkv.operate import health
from madkv.operate.ask import read_status
from madkv.operate.nodes import Node
from madkv.operate.status import COLUMNS, facts
from madkv.server import tap as server_tap
from madkv.wire import codec
from madkv.wire.boxes import Box, field
from madkv.wire.caller import CallerProtocol
from madkv.wire.caller import CallLost as DeferredCallLost
from tests.fuzzing.draw import Draw, refused
from tests.fuzzing.wire import drawn_box

# --- Answers ----------------------------------------------------------------------------------------------------------


def client_connections(data: bytes) -> None:
    """The answers to a call on all three clients' connections, which take them alike."""
    draw = Draw(data)
    chunk = draw.byte() + 1
    answer = _answer(draw) if draw.byte() % 2 else draw.rest()
    deferred = _deferred(answer, chunk)
    assert _same(deferred, _asynchronous(answer, chunk))
    blocking = _blocking(answer)
    assert not isinstance(blocking, TimeoutError)
    if isinstance(deferred, DeferredCallLost):
        assert isinstance(blocking, (ConnectionError, ProtocolError))
    else:
        # It has one call out at a time: what follows the answer is one to no call.
        assert _same(deferred, blocking) or (isinstance(blocking, ProtocolError) and len(answer) > 10)


def _answer(draw: Draw) -> bytes:
    """Boxes that begin like an answer to the call."""
    answer = b""
    while draw.more and len(answer) < 200_000:
        box = drawn_box(draw)
        first = draw.choice((b"_answer", b"_error", b""))
        if first:
            box[first] = b"1"
        answer += b"".join(field(name, value) for name, value in box.items()) + b"\0\0" * bool(box)
    return answer


def _same(one: Box | Exception, other: Box | Exception) -> bool:
    """Whether two clients make the same of an answer; when there was none, each has its own words for that."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        lost = DeferredCallLost, AsyncCallLost
        return (isinstance(one, lost) and isinstance(other, lost)) or (type(one), str(one)) == (type(other), str(other))
    return one == other


def _deferred(answer: bytes, chunk: int) -> Box | Exception:
    clock: Any = Clock()
    protocol, transport = CallerProtocol(clock), StringTransport()
    protocol.makeConnection(transport)
    results: list[Any] = []
    protocol.call(codec.GET, field(b"key", b"k")).addBoth(results.append)
    for at in range(0, len(answer), chunk):
        if transport.disconnecting:
            break
        protocol.dataReceived(answer[at : at + chunk])
    protocol.connectionLost()
    assert not clock.getDelayedCalls()
    (result,) = results
    return result.value if isinstance(result, Failure) else result


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


class _Transport:
    """What asyncio gives a protocol: a real socket, which is never written to."""

    def __init__(self) -> None:
        self.is_aborted = False

    def get_extra_info(self, name: str) -> socket.socket:
        return _listening()

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True


def _asynchronous(answer: bytes, chunk: int) -> Box | Exception:
    async def call() -> Box | Exception:
        protocol, transport = AsyncConnection(5.0), _Transport()
        protocol.connection_made(transport)  # type: ignore[arg-type]
        answered = protocol.call(codec.GET, field(b"key", b"k"))
        for at in range(0, len(answer), chunk):
            if transport.is_aborted:
                break
            protocol.data_received(answer[at : at + chunk])
        protocol.connection_lost(None)
        try:
            return await answered
        except Exception as error:
            return error

    return _loop().run_until_complete(call())


@cache
def _listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def _blocking(answer: bytes) -> Box | Exception:
    client = Connection(_listening().getsockname(), None)
    server, _ = _listening().accept()
    with server:
        server.settimeout(10)
        sending = threading.Thread(target=_send, args=(server, answer)) if len(answer) > 60_000 else None
        if sending is None:
            _send(server, answer)
        else:
            sending.start()
        try:
            return client.exchange(codec.GET, field(b"key", b"k"), 10.0)
        except (OSError, MadKVError) as error:
            return error
        finally:
            client.close()
            if sending is not None:
                sending.join()


def _send(server: socket.socket, answer: bytes) -> None:
    try:
        server.sendall(answer)
        server.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the client has heard enough


# --- What operators see -----------------------------------------------------------------------------------------------

_SAID = ("node", "role", "term", "leader", "commit", "applied", "data_bytes", "version", "waiting", "nodes")
_PARTS = ("m", "m.0", "s0", "leader", "registered", "vacant", "127.0.0.1:1", "x\ny", 0, 7, -1, 1.5, None, True, [], {})


def statuses(data: bytes) -> None:
    """What the nodes of a cluster say of themselves, and what operators are shown of it."""
    draw = Draw(data)
    read_status(draw.take(draw.byte()) if draw.byte() % 2 else b"[" * 100_000)
    found: dict[Node, Any] = {}
    for node in (Node(None, None), Node(0, 0), Node(0, 1)):
        said: dict[str, Any] = {}
        for _ in range(draw.byte() % 16):
            said[draw.choice(_SAID)] = draw.choice(_PARTS)
        if draw.byte() % 2:
            said["nodes"] = {
                str(draw.choice(_PARTS)): {name: draw.choice(_PARTS) for name in ("state", "address", "disk")}
            }
        found[node] = read_status(json.dumps(said).encode())
    ailing = health.ailments(found, None)
    lines = [*health.table(list(health.rows(found).values()), COLUMNS), *ailing]
    assert all(line.isprintable() for line in lines)
    json.dumps(facts(found, None, ailing))
    for node in found:
        health.slot_state(found, node)


# --- Lines ------------------------------------------------------------------------------------------------------------


class _Store:
    """What stands behind the lines: a client's checks, and a dict."""

    def __init__(self) -> None:
        self.pairs: dict[bytes, bytes] = {}

    def put(self, key: bytes, value: bytes) -> bool:
        return self.swap(key, value) is not None

    def swap(self, key: bytes, value: bytes) -> bytes | None:
        check_key(key)
        check_value(value)
        old = self.pairs.get(key)
        self.pairs[key] = value
        return old

    def get(self, key: bytes) -> bytes | None:
        check_key(key)
        return self.pairs.get(key)

    def delete(self, key: bytes) -> bool:
        check_key(key)
        return self.pairs.pop(key, None) is not None

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        check_scan(start, end)
        return sorted(pair for pair in self.pairs.items() if start <= pair[0] <= end)


_READ_BYTES, _LINE_BYTES_MAX = 64, 600
"""Bounds of the line interface while it is under fuzzing, so that they come within reach."""


def lines(data: bytes) -> None:
    """The line interface, from standard input to standard output, beside a plain account of what it is to do."""
    names = {"STDIN": 0, "STDOUT": 0, "STDERR": 0, "READ_BYTES": _READ_BYTES, "LINE_BYTES_MAX": _LINE_BYTES_MAX}
    before = {name: getattr(line, name) for name in names}
    with contextlib.ExitStack() as stack:
        for name in ("STDIN", "STDOUT", "STDERR"):
            names[name] = os.memfd_create(name)
            stack.callback(os.close, names[name])
        os.write(names["STDIN"], data)
        os.lseek(names["STDIN"], 0, os.SEEK_SET)
        vars(line).update(names)
        stack.callback(vars(line).update, before)
        assert line.LineInterface(_Store()).run() == line.EXIT_OK
        printed, complained = (os.pread(names[name], 1 << 24, 0) for name in ("STDOUT", "STDERR"))
    answers, complaints = _expected(data)
    assert printed == answers
    assert complained.count(b"\n") == len(complained.splitlines()) == complaints
    assert all(each.startswith(b"madkv: line ") for each in complained.splitlines())


def _expected(data: bytes) -> tuple[bytes, int]:
    """What is printed, and how many complaints there are."""
    pairs: dict[bytes, bytes] = {}
    printed, complaints, begin = b"", 0, 0
    while begin < len(data):
        end = data.find(b"\n", begin)
        last_read = len(data) if end < 0 else end // _READ_BYTES * _READ_BYTES
        words = [word for word in data[begin : len(data) if end < 0 else end].removesuffix(b"\r").split(b" ") if word]
        if last_read - begin > _LINE_BYTES_MAX:
            complaints += 1
        elif words == [b"STOP"]:
            return printed + b"STOP\n", complaints
        elif words:
            answer = _expected_answer(pairs, words)
            complaints += answer is None
            printed += answer or b""
        begin = len(data) if end < 0 else end + 1
    return printed, complaints


def _expected_answer(pairs: dict[bytes, bytes], words: list[bytes]) -> bytes | None:
    match words:
        case [b"SCAN", start, end] if len(start) < 512 and len(end) < 512:
            found = b"".join(b"  %b %b\n" % (key, pairs[key]) for key in sorted(pairs) if start <= key <= end)
            return b"SCAN %b %b BEGIN\n%bSCAN END\n" % (start, end, found)
        case [(b"GET" | b"DELETE" | b"PUT" | b"SWAP") as verb, key, *values] if len(key) < 512:
            if len(values) != (verb in (b"PUT", b"SWAP")):
                return None
            old = pairs.get(key)
            if values:
                pairs[key] = values[0]
            elif verb == b"DELETE":
                pairs.pop(key, None)
            found = b"not_found" if old is None else b"found"
            shown = found if verb in (b"PUT", b"DELETE") else old if old is not None else b"null"
            return b"%b %b %b\n" % (verb, key, shown)
    return None


# --- Command lines ----------------------------------------------------------------------------------------------------


def options(data: bytes) -> None:
    """Command lines of servers and managers, and addresses in them; words are separated by zero bytes."""
    words = [word.decode(errors="surrogateescape") for word in data[1:].split(b"\0")]
    tap = (server_tap, manager_tap)[data[0] % 2 if data else 0]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            tap.Options().parseOptions(words)
        except usage.UsageError as error:
            assert str(error)
        except SystemExit as ending:
            assert not ending.code  # --help, --version
    for word in words:
        address = refused(InvalidArgument, lambda: parse_address(word))  # noqa: B023 called at once
        if address is not None:
            assert parse_address(show_address(address)) == address and 0 < address[1] < 65_536
        addresses = refused(InvalidArgument, lambda: parse_addresses(word))  # noqa: B023
        assert addresses is None or len(set(addresses)) == len(addresses) > 0
