"""A server as a real process that is asked too much of: connections, half boxes, answers that nobody reads."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

from madkv.client.aio import AsyncClient
from madkv.client.blocking import BlockingClient
from madkv.limits import (
    BOX_BYTES_MAX,
    CALL_BYTES_MAX,
    CONNECTIONS_MIN,
    FILES_KEPT,
    HELD_BYTES_MAX,
    KIB,
    MIB,
    TLS_CONNECTIONS_MAX,
)
from madkv.wire import codec
from madkv.wire.boxes import blob, field, join_blob
from tests.certified import Certificates
from tests.processes import SAY_SECONDS_MAX, Process, ServerProcess, server_command, with_files
from tests.test_server_process import RawConnection, load, raw, witness

CONNECTIONS = 100
KEYS = [b"large-%d" % number for number in range(100)]
LARGE = b"v" * MIB


def test_connections_beyond_the_bound_are_closed_and_those_within_stay() -> None:
    with ServerProcess(files=FILES_KEPT + CONNECTIONS) as server, ExitStack() as stack, witness(server):
        assert server.wait_for(r"676 open files allow 100 connections of clients, not 12,000: see ulimit -Hn")
        connections = [stack.enter_context(raw(server)) for _ in range(CONNECTIONS - 1)]
        for connection in connections:
            connection.send(codec.request(1, codec.GET, field(b"key", b"k")))
            assert connection.box() == {b"_answer": b"1"}
        for _ in range(300):
            with raw(server) as refused:
                assert refused.closed_by_server()
        for connection in connections:
            connection.send(codec.request(2, codec.GET, field(b"key", b"k")))
            assert connection.box() == {b"_answer": b"2"}
        lines = [line for line in server.output.splitlines() if "refused a connection" in line]
        seconds = {line[: len("2000-01-01T00:00:00")] for line in lines}
        assert 0 < len(lines) <= len(seconds) + 1, lines
        connections[0].close()
        with BlockingClient(server.address) as client:  # Refused at first, maybe, it tries again.
            assert client.get(b"k") is None
    assert "Traceback" not in server.output


def test_there_are_fewer_connections_with_tls(tmp_path: Path) -> None:
    """Each takes ten times the memory."""
    words = Certificates(tmp_path, ["s0"]).words("s0")
    with ServerProcess(*words, files=FILES_KEPT + CONNECTIONS) as server:
        assert server.wait_for(r"676 open files allow 100 connections of clients, not 6,000: see ulimit -Hn")
    with ServerProcess(*words, files=FILES_KEPT + TLS_CONNECTIONS_MAX) as server:
        assert "open files" not in server.output


def test_a_server_with_too_few_files_does_not_start() -> None:
    files = FILES_KEPT + CONNECTIONS_MIN - 1
    with Process(with_files(files, server_command("--listen", "127.0.0.1:0"))) as server:
        assert server.wait() == 1
    assert server.lines["stderr"][-1] == "madkv-server: 639 open files are too few, 640 are needed: see ulimit -Hn"


def test_half_boxes_of_many_connections_leave_memory_bounded() -> None:
    half = codec.request(1, codec.PUT, field(b"key", b"half") + blob(b"value", b"v" * (BOX_BYTES_MAX - 8 * KIB)))[:-9]
    count = 2 * HELD_BYTES_MAX // len(half)
    with ServerProcess() as server, ExitStack() as stack, witness(server):
        before = server.memory_bytes()
        connections = [stack.enter_context(raw(server)) for _ in range(count)]
        for connection in connections:
            connection.send(half)
        server.wait_for(r"all together had too much here, .* more since the last such line", 4 * SAY_SECONDS_MAX)
        with BlockingClient(server.address) as client:
            client.put(b"k", LARGE)
            assert client.get(b"k") == LARGE
        assert server.memory_bytes() - before < HELD_BYTES_MAX + 48 * MIB


def test_swaps_whose_answers_nobody_reads_leave_memory_bounded() -> None:
    """Small calls whose answers are large."""
    with ServerProcess() as server, witness(server), raw(server) as connection:
        load(server, [(key, LARGE) for key in KEYS])
        before = server.memory_bytes()
        swaps = [field(b"key", key) + blob(b"value", b"small") for key in KEYS]
        connection.send(b"".join(codec.request(tag, codec.SWAP, swap) for tag, swap in enumerate(swaps, 1)))
        with BlockingClient(server.address) as client:
            assert client.get(KEYS[0]) == b"small"
        assert server.memory_bytes() - before < 64 * MIB
        for tag in range(1, len(KEYS) + 1):
            answer = connection.box()
            assert (answer[b"_answer"], join_blob(answer, b"value")) == (b"%d" % tag, LARGE)


def test_one_that_floods_with_large_values_leaves_room_for_others() -> None:
    """It sends as fast as it can, and reads nothing."""
    with ServerProcess() as server, ExitStack() as stack, witness(server):
        put = field(b"key", b"large") + blob(b"value", LARGE)
        connections = [stack.enter_context(raw(server)) for _ in range(10)]
        for number in range(20):
            for connection in connections:
                connection.send(codec.request(number + 1, codec.PUT, put))
        for connection in connections:
            assert [connection.box()[b"_answer"] for _ in range(20)] == [b"%d" % (n + 1) for n in range(20)]
        assert server.memory_bytes() < HELD_BYTES_MAX + CALL_BYTES_MAX + 200 * MIB


def test_clients_that_are_refused_at_first_get_in_when_there_is_room() -> None:
    noticed: list[str] = []
    with ServerProcess(files=FILES_KEPT + CONNECTIONS_MIN) as server, ExitStack() as stack:
        connections: list[RawConnection] = []

        def fill() -> None:
            while len(connections) < CONNECTIONS_MIN:
                connection = stack.enter_context(raw(server))
                try:
                    connection.send(codec.request(1, codec.GET, field(b"key", b"nothing")))
                    connection.box()
                except (AssertionError, ConnectionError):
                    continue  # The server has yet to see that a client before has closed.
                connections.append(connection)

        def make_room(line: str) -> None:
            noticed.append(line)
            connections.pop().close()

        async def put_and_get() -> bytes | None:
            async with AsyncClient(server.address, notice=make_room) as client:
                await client.put(b"k", b"v")
                return await client.get(b"k")

        fill()
        assert asyncio.run(put_and_get()) == b"v"
        server.wait_for("refused a connection: there are 64, and no more are taken")
        assert len(noticed) == 1
        fill()
        with BlockingClient(server.address, notice=make_room) as client:
            assert client.get(b"k") == b"v"
        assert len(noticed) == 2
