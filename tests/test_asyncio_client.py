"""The asyncio face of the client: its connection, and what cancelling, closing and time-outs mean to asyncio's tasks.

What it shares with the Deferred face is tried on both, in test_calls_in_flight, test_exactly_once, test_cluster_clients
and test_old_maps.
"""

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from madkv.client import aio_connection
from madkv.client.aio import AsyncClient
from madkv.client.aio_connection import CallLost, Connection, connect
from madkv.errors import Abandoned, Busy, InvalidArgument, ProtocolError, Rejected
from madkv.limits import BOX_BYTES_MAX, KEY_BYTES_MAX, MIB, SESSION_CALLS_MAX, TRY_SECONDS_MAX, VALUE_BYTES_MAX
from madkv.wire import codec
from madkv.wire.boxes import COMMAND, Box, blob, field, parse_boxes
from tests.processes import ServerProcess, free_address
from tests.proxy import Fate, LoseOnce, Proxy

HELLO_FIELDS = codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"node", b"s0") + field(b"boot", b"boot")


class Peer:
    """The other side of one connection: it does what the test says and nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._rest = b""
        self._boxes: list[Box] = []

    async def asked(self) -> Box:
        """The next call."""
        while not self._boxes:
            data = await self._reader.read(1 << 16)
            assert data, "the client closed the connection"
            self._rest += data
            self._rest = self._rest[parse_boxes(self._rest, self._boxes) :]
        return self._boxes.pop(0)

    async def answer(self, box: Box, fields: bytes = b"") -> None:
        """Answer a call."""
        self.writer.write(codec.answer(box[b"_ask"], fields))
        await self.writer.drain()

    async def is_left(self) -> None:
        """Wait until the client has closed the connection, whatever it says before that."""
        try:
            while await self._reader.read(1 << 16):
                pass
        except ConnectionError:
            pass


class Port:
    """A port, and those who came."""

    def __init__(self) -> None:
        self.address = ("", 0)
        self._came: asyncio.Queue[Peer] = asyncio.Queue()

    @property
    def text(self) -> str:
        """As a client is given it."""
        return f"{self.address[0]}:{self.address[1]}"

    async def peer(self) -> Peer:
        """The next one that came."""
        return await self._came.get()

    async def greeted(self) -> Peer:
        """The next one, its handshake answered as a server does."""
        peer = await self.peer()
        hello = await peer.asked()
        assert hello[COMMAND] == codec.HELLO
        await peer.answer(hello, HELLO_FIELDS)
        return peer

    def came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody has."""
        self._came.put_nowait(Peer(reader, writer))


@asynccontextmanager
async def a_port() -> AsyncIterator[Port]:
    port = Port()
    server = await asyncio.start_server(port.came, "127.0.0.1", 0)
    port.address = server.sockets[0].getsockname()
    try:
        yield port
    finally:
        server.close()


@asynccontextmanager
async def a_connection(try_seconds: float = TRY_SECONDS_MAX) -> AsyncIterator[tuple[Connection, Peer]]:
    async with a_port() as port:
        connection = await connect(port.address, try_seconds)
        peer = await port.peer()
        try:
            yield connection, peer
        finally:
            await connection.abort()
            peer.writer.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test; nothing may go on after it, and nobody may have had to report anything to the event loop."""
    reported: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        async with asyncio.timeout(60):
            await test()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left or not (await asyncio.wait(left, timeout=5))[1]

    asyncio.run(main())
    assert reported == []


def skipper() -> Callable[[float], None]:
    """Have the running event loop's time be ours: what is returned skips so many seconds of it."""
    loop: Any = asyncio.get_running_loop()
    skipped_seconds = 0.0

    def skip(seconds: float) -> None:
        nonlocal skipped_seconds
        skipped_seconds += seconds

    loop.time = lambda: time.monotonic() + skipped_seconds
    return skip


# --- One connection ---------------------------------------------------------------------------------------------------


def test_answers_come_to_their_calls_in_any_order() -> None:
    async def test() -> None:
        async with a_connection() as (connection, peer):
            calls = [connection.call(codec.GET, field(b"key", b"%d" % number)) for number in range(3)]
            asked = [await peer.asked() for _ in calls]
            assert [box[b"key"] for box in asked] == [b"0", b"1", b"2"]
            for number in (2, 0, 1):
                await peer.answer(asked[number], field(b"value", b"%d" % number))
            assert [(await call)[b"value"] for call in calls] == [b"0", b"1", b"2"]

    run(test)


def test_declared_errors_leave_the_connection() -> None:
    async def test() -> None:
        async with a_connection() as (connection, peer):
            busy, unheard = connection.call(codec.GET, b""), connection.call(codec.GET, b"")
            peer.writer.write(codec.answer_error(b"1", Busy("later")))
            peer.writer.write(codec.answer_error_code(b"2", b"UNHEARD_OF", "what?"))
            with pytest.raises(Busy, match="later"):
                await busy
            with pytest.raises(ProtocolError):
                await unheard
            assert connection.open

    run(test)


@pytest.mark.parametrize(
    "garbage",
    [
        codec.answer(b"9", b""),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0",
        # A box that would never end: what is kept of it is bounded.
        codec.answer(b"1", blob(b"value", b"v" * BOX_BYTES_MAX)),
        b"",
    ],
    ids=["no-call", "http", "empty-box", "too-long", "end"],
)
def test_what_is_no_answer_ends_the_connection(garbage: bytes) -> None:
    async def test() -> None:
        async with a_connection() as (connection, peer):
            calls = [connection.call(codec.GET, b"") for _ in range(3)]
            peer.writer.write(garbage)
            if not garbage:
                peer.writer.write_eof()
            for call in calls:
                with pytest.raises(CallLost, match="." if garbage else "closed by the other side"):
                    await call
            assert not connection.open and not connection.is_overdue
            with pytest.raises(CallLost, match="is closed"):
                await connection.call(codec.GET, b"")

    run(test)


def test_an_answer_that_comes_in_pieces() -> None:
    """A large one and the next in pieces that end anywhere; each that comes is a sign of life."""

    async def test() -> None:
        skip = skipper()
        async with a_connection() as (connection, peer):
            first, second = connection.call(codec.GET, b""), connection.call(codec.GET, b"")
            value = bytes(range(256)) * (VALUE_BYTES_MAX // 256)
            data = codec.answer_value(b"1", value) + codec.answer_value(b"2", b"last")
            for at in range(0, len(data), 65_537):
                piece = data[at : at + 65_537]
                peer.writer.write(piece)
                while len(connection._rest) < at + len(piece) and not first.done():
                    await asyncio.sleep(0)
                if at < 3 * 65_537:
                    skip(TRY_SECONDS_MAX / 2)  # together more than a call may wait in silence
            assert codec.take_value(await first) == value
            assert codec.take_value(await second) == b"last"

    run(test)


def test_no_answer_in_time() -> None:
    async def test() -> None:
        async with a_connection(try_seconds=0.05) as (connection, _):
            with pytest.raises(CallLost, match=r"no answer within 0\.05 seconds"):
                await connection.call(codec.GET, b"")
            assert connection.is_overdue

    run(test)


def test_a_large_call_gets_the_time_that_a_slow_link_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madkv.wire.unanswered.SLOWEST_BYTES_PER_SECOND", 4 * MIB)

    async def test() -> None:
        async with a_connection(try_seconds=0.05) as (connection, _):
            begun = asyncio.get_running_loop().time()
            with pytest.raises(CallLost, match="no answer"):
                await connection.call(codec.PUT, blob(b"value", b"v" * MIB))
            assert asyncio.get_running_loop().time() - begun > 0.25

    run(test)


def test_an_answer_to_a_cancelled_call_is_no_surprise() -> None:
    async def test() -> None:
        async with a_connection() as (connection, peer):
            cancelled, kept = connection.call(codec.GET, b""), connection.call(codec.GET, b"")
            cancelled.cancel()
            await peer.answer(await peer.asked())
            await peer.answer(await peer.asked(), field(b"value", b"kept"))
            assert (await kept)[b"value"] == b"kept"
            assert connection.open

    run(test)


def test_an_error_that_nobody_sees_is_nobodys_business() -> None:
    """As when its task is cancelled in the turn in which the connection goes: asyncio would report it."""

    async def test() -> None:
        async with a_connection() as (connection, _):
            call = connection.call(codec.GET, b"")
            await connection.abort()
            assert call.done()
            del call
            gc.collect()

    run(test)


def test_nobody_listens_and_nobody_answers_a_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        host, _, port = free_address().partition(":")
        with pytest.raises(ConnectionRefusedError):
            await connect((host, int(port)), 1.0)
        monkeypatch.setattr(aio_connection, "CONNECT_SECONDS_MAX", 0.1)
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            # As many as the system takes without anybody who accepts; the next one is left to wait.
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            with pytest.raises(TimeoutError, match=r"no connection to 127\.0\.0\.1"):
                await connect(full.getsockname(), 1.0)
            for filler in fillers:
                filler.close()

    run(test)


# --- The client -------------------------------------------------------------------------------------------------------


def test_bounds_are_checked_before_anything_is_sent() -> None:
    long_key, long_value = b"k" * (KEY_BYTES_MAX + 1), b"v" * (VALUE_BYTES_MAX + 1)

    async def test() -> None:
        async with a_port() as port, AsyncClient(port.text) as store:
            wrong: list[Coroutine[Any, Any, Any]] = [
                *(store.get(b""), store.get(long_key), store.delete(b""), store.delete(long_key)),
                *(store.put(b"", b""), store.put(long_key, b""), store.put(b"k", long_value)),
                *(store.swap(b"", b""), store.swap(long_key, b""), store.swap(b"k", long_value)),
                *(store.scan(long_key, b"z"), store.scan(b"a", long_key)),
                *(store.get("text"), store.put(b"k", "text")),  # type: ignore[arg-type]
            ]
            for call in wrong:
                with pytest.raises(InvalidArgument):
                    await call
            assert await store.scan(b"z", b"a") == []
            assert port._came.empty()

    run(test)


@pytest.mark.parametrize("given", [{}, {"server": "a:1", "managers": "a:2"}, {"server": "host"}, {"managers": "a:1,"}])
def test_arguments_are_checked_at_once(given: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        AsyncClient(**given)  # type: ignore[arg-type]


def test_a_server_of_another_kind_is_final(server: ServerProcess) -> None:
    async def test() -> None:
        async with AsyncClient(managers=server.address) as store:
            for _ in range(2):
                with pytest.raises(Rejected, match="give the client its address as --server"):
                    await store.get(b"k")

    run(test)


def test_all_calls_of_one_turn_share_a_connection(server: ServerProcess) -> None:
    async def test() -> None:
        with Proxy(server.host, server.port) as proxy:
            async with AsyncClient(proxy.address) as store:
                keys = [b"aio.one.%d" % number for number in range(300)]
                await asyncio.gather(*(store.put(key, key) for key in keys), *(store.get(key) for key in keys))
                assert await asyncio.gather(*map(store.get, keys)) == keys
            assert proxy.connections == 1

    run(test)


def test_a_client_may_be_made_before_there_is_a_loop(server: ServerProcess) -> None:
    store = AsyncClient(server.address)

    async def test() -> None:
        async with store:
            assert await store.get(b"aio.none") is None

    run(test)


def test_it_says_once_that_it_waits() -> None:
    """A server that accepts and never answers, then one that does: for all calls together one line."""
    notices: list[str] = []

    async def test() -> None:
        skip = skipper()
        async with a_port() as port, AsyncClient(port.text, notice=notices.append) as store:
            gets = [asyncio.create_task(store.get(b"k")) for _ in range(10)]
            for _ in range(3):
                peer = await port.peer()
                await peer.asked()
                skip(TRY_SECONDS_MAX)
                await peer.is_left()
            peer = await port.greeted()
            for _ in gets:
                await peer.answer(await peer.asked(), field(b"value", b"at last"))
            assert await asyncio.gather(*gets) == [b"at last"] * len(gets)
            assert notices == [f"waiting for {port.text}: no answer within 5 seconds"]

    run(test)


def test_a_time_out_gives_up_its_call_and_no_other(server: ServerProcess) -> None:
    """Also the first one, which had the connection made; and a scan."""

    async def test() -> None:
        async with a_port() as port, AsyncClient(port.text) as store:
            kept = asyncio.create_task(store.get(b"kept"))
            for call in (store.get(b"given up"), store.put(b"given up", b""), store.scan(b"a", b"z")):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await call
            peer = await port.greeted()
            box = await peer.asked()
            assert (box[COMMAND], box[b"key"]) == (codec.GET, b"kept")
            await peer.answer(box, field(b"value", b"v"))
            assert await kept == b"v"

    run(test)


def test_a_write_given_up_in_flight_does_not_hold_the_floor() -> None:
    async def test() -> None:
        async with a_port() as port, AsyncClient(port.text) as store:
            given_up = asyncio.create_task(store.put(b"k", b"1"))
            peer = await port.greeted()
            await peer.answer(await peer.asked(), codec.integer(b"session", 7))
            first = await peer.asked()
            assert (first[b"sequence"], first[b"floor"]) == (b"1", b"1")
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            put = asyncio.create_task(store.put(b"k", b"2"))
            second = await peer.asked()
            assert (second[b"session"], second[b"sequence"], second[b"floor"]) == (b"7", b"2", b"2")
            # The first one's answer comes all the same, and is nobody's.
            await peer.answer(first, field(b"found", b"False"))
            await peer.answer(second, field(b"found", b"True"))
            assert await put is True
            closing = asyncio.create_task(store.close())
            await peer.answer(await peer.asked())
            await closing

    run(test)


def test_room_that_a_cancelled_write_was_given_goes_to_the_next(server: ServerProcess) -> None:
    """It is cancelled in the very turn in which it was given its room, before it could notice."""

    def hold_the_oldest(direction: str, box: Box) -> Fate:
        return Fate.HOLD if direction == "reply" and b"found" in box else Fate.PASS

    async def test() -> None:
        with Proxy(server.host, server.port, hold_the_oldest) as proxy:
            async with AsyncClient(proxy.address) as store:
                in_flight = [asyncio.create_task(store.put(b"aio.room", b"")) for _ in range(SESSION_CALLS_MAX)]
                await asyncio.to_thread(proxy.holds.wait, 20)
                waiting = [asyncio.create_task(store.put(b"aio.room", b"")) for _ in range(3)]
                await asyncio.sleep(0)
                partition = store._partitions[0]
                assert partition.session.full and len(partition._rooms) == 3
                # In one turn: the oldest is given up, the first that waits gets its room and is given up, too.
                in_flight[0].cancel()
                while len(partition._rooms) == 3:
                    await asyncio.sleep(0)
                waiting[0].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting[0]
                # One that waits may be given up as well, and leaves nothing behind.
                assert len(partition._rooms) == 2
                waiting[2].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting[2]
                assert len(partition._rooms) == 1
                in_flight[1].cancel()
                while partition._rooms:
                    await asyncio.sleep(0)
                # Nobody keeps what was given up: the oldest two, and what the first that waited had got.
                assert partition.session.floor == 3
                assert len(partition.session._waiting) == SESSION_CALLS_MAX - 2 + 1
                await store.close()
                outcomes = await asyncio.gather(*in_flight, *waiting, return_exceptions=True)
                kinds = [asyncio.CancelledError] * 2 + [Abandoned] * (SESSION_CALLS_MAX - 2)
                kinds += [asyncio.CancelledError, Abandoned, asyncio.CancelledError]
                assert [type(outcome) for outcome in outcomes] == kinds

    run(test)


def test_calls_that_are_given_up_leave_nothing_behind() -> None:
    """However many, while nobody is there: those that wait for managers, and those that wait for room."""

    async def test() -> None:
        async with AsyncClient(managers=free_address()) as store:
            tasks = [asyncio.create_task(store.put(b"k", b"")) for _ in range(100)]
            await asyncio.sleep(0)
            assert len(store._learning._waiting) == 100
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert len(store._learning._waiting) == 0
            # They had begun to ask the managers; whoever comes next waits for that, and does not begin anew.
            work = store._learning._work
            task = asyncio.create_task(store.get(b"k"))
            await asyncio.sleep(0)
            assert store._learning._work is work
            await store.close()
            with pytest.raises(Abandoned):
                await task

    run(test)


@pytest.mark.parametrize("where", ["not begun", "connecting", "greeting", "waiting"])
def test_closed_wherever_a_call_is(where: str) -> None:
    async def test() -> None:
        waits = asyncio.Event()
        async with a_port() as port:
            address = free_address() if where == "waiting" else port.text
            async with AsyncClient(address, notice=lambda line: waits.set()) as store:
                calls: list[Coroutine[Any, Any, Any]] = [store.get(b"k"), store.put(b"k", b""), store.scan(b"a", b"z")]
                tasks = [asyncio.create_task(call) for call in calls]
                if where == "connecting":
                    await asyncio.sleep(0)  # one turn
                elif where == "greeting":
                    await (await port.peer()).asked()
                elif where == "waiting":
                    await waits.wait()
                await store.close()
                assert [type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)] == [Abandoned] * 3
                for late in (store.get(b"k"), store.put(b"k", b"")):
                    with pytest.raises(Abandoned):
                        await late

    run(test)


def test_closing_takes_a_second_at_most(server: ServerProcess) -> None:
    """A server that does not answer CloseSession is left to let the session expire."""
    holding = LoseOnce(codec.CLOSE_SESSION, "request", Fate.HOLD)

    async def test() -> None:
        with Proxy(server.host, server.port, holding) as proxy:
            store = AsyncClient(proxy.address)
            await store.put(b"aio.close", b"")
            begun = asyncio.get_running_loop().time()
            await store.close()
            assert holding.lost
            assert 0.9 < asyncio.get_running_loop().time() - begun < 3

    run(test)


def test_the_loop_ends_around_a_client_that_nobody_closes() -> None:
    """As when a program is interrupted: asyncio cancels all tasks, ours too, and none of them hangs or complains."""
    reported: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        waits = asyncio.Event()
        store = AsyncClient(managers=free_address(), notice=lambda line: waits.set())
        calls: list[Coroutine[Any, Any, Any]] = [store.get(b"k"), store.put(b"k", b""), store.scan(b"a", b"z")]
        tasks = [asyncio.create_task(call) for call in calls]
        await waits.wait()
        assert not any(task.done() for task in tasks)

    asyncio.run(main())
    assert reported == []
