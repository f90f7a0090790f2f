"""The blocking face of the client, against the real server and against what is no server."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from madkv.client import connection, router
from madkv.client.blocking import BlockingClient
from madkv.errors import Abandoned, InvalidArgument, VersionMismatch
from madkv.limits import KEY_BYTES_MAX, RETRY_SECONDS_MIN, SCAN_PAGE_PAIRS, VALUE_BYTES_MAX
from madkv.wire import codec
from madkv.wire.boxes import Box, field, parse_boxes
from tests.processes import ServerProcess
from tests.proxy import SlowLink

VALUES = [b"", b"\0", b"\n", b"a b\r\n", bytes(range(256)), b"v" * 65_534, b"v" * 65_535, b"v" * 65_536]


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BlockingClient]:
    with BlockingClient(server.address) as client:
        yield client


def test_every_operation(client: BlockingClient) -> None:
    assert client.get(b"bk.a") is None
    assert client.put(b"bk.a", b"1") is False
    assert client.put(b"bk.a", b"2") is True
    assert client.swap(b"bk.a", b"3") == b"2"
    assert client.swap(b"bk.b", b"4") is None
    assert client.get(b"bk.a") == b"3"
    assert client.scan(b"bk.", b"bk.~") == [(b"bk.a", b"3"), (b"bk.b", b"4")]
    assert client.delete(b"bk.a") is True
    assert client.delete(b"bk.a") is False
    assert client.get(b"bk.a") is None


@pytest.mark.parametrize("value", [*VALUES, bytes(range(256)) * (VALUE_BYTES_MAX // 256)], ids=len)
def test_values_of_any_bytes(client: BlockingClient, value: bytes) -> None:
    key = b"bk.bytes\0\n \xff"
    client.put(key, value)
    assert client.get(key) == value
    assert client.swap(key, value[::-1]) == value
    assert client.scan(key, key) == [(key, value[::-1])]
    assert client.delete(key) is True


def test_a_scan_over_many_pages(client: BlockingClient) -> None:
    """More pages than one by number of pairs, and again by bytes."""
    pairs = [(b"bk.many.%05d" % number, b"") for number in range(SCAN_PAGE_PAIRS + 10)]
    pairs += [(b"bk.many.large.%d" % number, b"%d" % number * 300_000) for number in range(5)]
    for key, value in pairs:
        client.put(key, value)
    assert client.scan(b"bk.many.", b"bk.many.~") == pairs


def test_scans_of_nothing(client: BlockingClient) -> None:
    assert client.scan(b"bk.none.", b"bk.none.~") == []
    assert client.scan(b"z", b"a") == []
    assert client.scan(b"", b"") == []


@contextmanager
def port_that(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a port where each connection is given to `behave`, one after the other, and then closed."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                try:
                    behave(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)
        assert not thread.is_alive()


def test_bounds_are_checked_before_anything_is_sent() -> None:
    def nobody(connection: socket.socket) -> None:
        raise AssertionError("somebody connected")

    long_key, long_value = b"k" * (KEY_BYTES_MAX + 1), b"v" * (VALUE_BYTES_MAX + 1)
    with port_that(nobody) as address, BlockingClient(address) as client:
        for wrong in (
            lambda: client.get(b""),
            lambda: client.get(long_key),
            lambda: client.put(b"", b"v"),
            lambda: client.put(long_key, b"v"),
            lambda: client.put(b"k", long_value),
            lambda: client.swap(long_key, b"v"),
            lambda: client.swap(b"k", long_value),
            lambda: client.delete(b""),
            lambda: client.delete(long_key),
            lambda: client.scan(long_key, b"z"),
            lambda: client.scan(b"a", long_key),
            lambda: client.get("text"),  # type: ignore[arg-type]
            lambda: client.put(b"k", "text"),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidArgument):
                wrong()


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:65536", "a:b:1", "host:x"])
def test_addresses_are_checked_at_once(address: str) -> None:
    with pytest.raises(InvalidArgument):
        BlockingClient(address)


def test_a_closed_client_may_go_on(server: ServerProcess) -> None:
    """It opens a session again; its sequence numbers go on."""
    client = BlockingClient(server.address)
    assert client.put(b"bk.closed", b"1") is False
    client.close()
    client.close()
    assert client.swap(b"bk.closed", b"2") == b"1"
    client.close()


def read_request(connection: socket.socket) -> bytes:
    """One small request; b"" at the end."""
    received = b""
    while not received.endswith(b"\0\0"):
        data = connection.recv(1 << 16)
        if not data:
            return b""
        received += data
    return received


def requests_on(connection: socket.socket) -> Iterator[Box]:
    """Small requests, one after the other, until the client closes the connection."""
    while request := read_request(connection):
        boxes: list[Box] = []
        parse_boxes(request, boxes)
        yield from boxes


def greet(connection: socket.socket) -> None:
    """Answer the handshake as a server does."""
    read_request(connection)
    fields = codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"node", b"s0") + field(b"boot", b"boot")
    connection.sendall(codec.answer(b"1", fields))


def test_a_try_ends_after_its_time_and_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers; then one that answers the handshake and nothing more."""
    monkeypatch.setattr(router, "TRY_SECONDS_MAX", 0.1)
    tries = 0

    def behave(connection: socket.socket) -> None:
        nonlocal tries
        tries += 1
        if tries > 2:
            greet(connection)
        if tries > 4:
            read_request(connection)
            connection.sendall(codec.answer(b"2", field(b"value", b"at last")))
        while connection.recv(1 << 16):
            pass

    notices: list[str] = []
    with port_that(behave) as address, BlockingClient(address, notice=notices.append) as client:
        assert client.get(b"k") == b"at last"
        assert tries == 5
        assert notices == [f"waiting for {address}: no answer in time"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0",
        codec.answer(b"77", b""),
        codec.answer(b"1", b""),
        codec.answer(b"1", field(b"boot", b"b")) * 2,
        codec.answer(b"1", field(b"boot", b"b"))[:-1],
        b"",
        codec.answer_error_code(b"1", b"UNHEARD_OF", "what?"),
    ],
    ids=["http", "tls", "empty-box", "other-tag", "no-boot", "twice", "cut-short", "closed", "unknown-error"],
)
def test_garbage_instead_of_a_handshake(server: ServerProcess, garbage: bytes) -> None:
    """It tries again until what is there is a server."""
    connections = 0

    def behave(connection: socket.socket) -> None:
        nonlocal connections
        connections += 1
        if connections < 3:
            read_request(connection)
            connection.sendall(garbage)
            return
        greet(connection)
        read_request(connection)
        connection.sendall(codec.answer(b"2", b""))

    notices: list[str] = []
    with port_that(behave) as address, BlockingClient(address, notice=notices.append) as client:
        assert client.get(b"k") is None
    assert connections == 3
    assert len(notices) == 1 and "\n" not in notices[0]


def test_another_version_is_final() -> None:
    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(codec.answer_error_code(b"1", VersionMismatch.code, "this server speaks version 9"))

    with (
        port_that(behave) as address,
        BlockingClient(address) as client,
        pytest.raises(VersionMismatch, match="version 9"),
    ):
        client.get(b"k")


@pytest.mark.parametrize("code", [b"BUSY", b"INTERNAL_ERROR", b"SCAN_EXPIRED"])
def test_refusals_for_now_are_tried_again(code: bytes) -> None:
    def behave(connection: socket.socket) -> None:
        greet(connection)
        for tag in (b"2", b"3"):
            read_request(connection)
            connection.sendall(codec.answer_error_code(tag, code, "not now"))
        read_request(connection)
        connection.sendall(codec.answer(b"4", field(b"pairs", b"")))

    with port_that(behave) as address, BlockingClient(address) as client:
        assert client.scan(b"a", b"z") == []


@pytest.mark.parametrize(
    "wrong",
    [
        codec.answer(b"3", b""),
        codec.answer(b"3", field(b"found", b"maybe")),
        codec.answer_error_code(b"3", b"SCAN_EXPIRED", "of a Put?"),
    ],
    ids=["no-answer", "maybe", "other-error"],
)
def test_a_write_that_is_answered_wrongly_is_made_again(wrong: bytes) -> None:
    """As the same call: the number that it carries stays."""
    sequences: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        for box in requests_on(connection):
            tag = box[b"_ask"]
            if box[b"_command"] == codec.HELLO:
                answer = codec.answer(tag, codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"boot", b"b"))
            elif box[b"_command"] == codec.OPEN_SESSION:
                answer = codec.answer(tag, codec.integer(b"session", 7))
            else:
                sequences.append(box.get(b"sequence", b"-"))
                answer = wrong if len(sequences) == 1 else codec.answer(tag, field(b"found", b"True"))
            connection.sendall(answer)

    with port_that(behave) as address, BlockingClient(address) as client:
        assert client.put(b"k", b"v") is True
    assert sequences[:2] == [b"1", b"1"]


def test_sessions_that_are_lost_at_once_are_not_opened_in_a_hurry() -> None:
    """A server that knows no session: the waits grow, as for everything else that is tried again."""
    waits: list[str] = []

    lost = 0

    def behave(connection: socket.socket) -> None:
        nonlocal lost
        for box in requests_on(connection):
            tag = box[b"_ask"]
            answer = codec.answer(tag, field(b"found", b"False"))
            if box[b"_command"] == codec.HELLO:
                answer = codec.answer(tag, codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"boot", b"b"))
            elif box[b"_command"] == codec.OPEN_SESSION:
                answer = codec.answer(tag, codec.integer(b"session", 7))
            elif box[b"_command"] == codec.PUT and lost < 3:
                lost += 1
                answer = codec.answer_error_code(tag, b"UNKNOWN_SESSION", "which?")
            connection.sendall(answer)

    with port_that(behave) as address, BlockingClient(address, notice=waits.append) as client:
        client._router.pace = 1.0  # another one for each client
        begun = time.monotonic()
        assert client.put(b"k", b"v") is False
        assert time.monotonic() - begun > 2 * RETRY_SECONDS_MIN
    assert waits == [f"waiting for {address}: which?"]


def test_the_reader_of_the_answers_is_gone() -> None:
    """While connected to somebody who never answers, and before; at once, not at the end of the try."""
    reading, writing = os.pipe()
    greeted = threading.Event()

    def behave(connection: socket.socket) -> None:
        greet(connection)
        greeted.set()
        while connection.recv(1 << 16):
            pass

    def leave() -> None:
        greeted.wait(20)
        os.close(reading)

    leaving = threading.Thread(target=leave)
    leaving.start()
    try:
        with port_that(behave) as address, BlockingClient(address, abandon_fd=writing) as client:
            begun = time.monotonic()
            with pytest.raises(Abandoned):
                client.get(b"k")
            with pytest.raises(Abandoned):
                client.get(b"k")
            assert time.monotonic() - begun < 3
    finally:
        leaving.join()
        os.close(writing)


def test_an_interrupted_call_does_not_answer_the_next(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the interrupted call comes later; it must not be taken for another's."""
    with BlockingClient(server.address) as client:
        client.put(b"bk.int", b"1")
        with monkeypatch.context() as patched:

            def interrupt(self: object, *seconds: float) -> None:
                raise KeyboardInterrupt

            patched.setattr(connection.Connection, "_receive", interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.swap(b"bk.int", b"2")
        assert client.get(b"bk.int") in (b"1", b"2")
        assert client.put(b"bk.int.other", b"x") is False
        assert client.get(b"bk.int.other") == b"x"


def test_a_large_value_gets_through_a_slow_link(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time allowed for a try is shorter than the value takes; as long as bytes move, it goes on."""
    monkeypatch.setattr(router, "TRY_SECONDS_MAX", 0.3)
    monkeypatch.setattr(connection, "SLOWEST_BYTES_PER_SECOND", 512 * 1024)
    value = bytes(range(256)) * 4096
    with SlowLink(server.host, server.port, bytes_per_second=1_000_000) as link, BlockingClient(link.address) as client:
        assert client.put(b"bk.slow", value) is False
        assert client.get(b"bk.slow") == value
        assert link.connections == 1
