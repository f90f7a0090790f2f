"""The faces of the client that have many calls in flight, on the real server and on what is none."""

import socket
from typing import Any

import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.protocol import Factory, Protocol

from madkv.errors import Abandoned, VersionMismatch
from madkv.limits import SCAN_PAGE_PAIRS, SESSION_CALLS_MAX, VALUE_BYTES_MAX
from madkv.wire import codec
from madkv.wire.boxes import Box
from tests.cluster_in_process import IN_FLIGHT, ClientOf, turn
from tests.processes import ServerProcess
from tests.proxy import Fate, Proxy


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_every_operation(face: str, server: ServerProcess) -> None:
    of = face.encode()  # keys of its own, on a server that all share
    async with ClientOf(face, server=server.address) as client:
        assert await client.get(of + b".a") is None
        assert await client.put(of + b".a", b"1") is False
        assert await client.put(of + b".a", b"2") is True
        assert await client.swap(of + b".a", b"3") == b"2"
        assert await client.swap(of + b".b", b"4") is None
        assert await client.scan(of + b".", of + b".~") == [(of + b".a", b"3"), (of + b".b", b"4")]
        assert await client.scan(of + b".c", of + b".~") == []
        assert await client.delete(of + b".a") is True
        assert await client.delete(of + b".a") is False
        for value in (b"", b"\0", b"\n", bytes(range(256)), b"v" * 65_535, b"w" * VALUE_BYTES_MAX):
            await client.put(of + b".\0\xff", value)
            assert await client.get(of + b".\0\xff") == value
            assert await client.swap(of + b".\0\xff", b"") == value


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_more_calls_in_flight_than_the_window_takes(face: str, server: ServerProcess) -> None:
    of = face.encode()  # keys of its own, on a server that all share
    async with ClientOf(face, server=server.address) as client:
        number = 3 * SESSION_CALLS_MAX
        puts = [client.put(of + b".window.%d" % each, b"%d" % each) for each in range(number)]
        gets = [client.get(of + b".none") for _ in range(number)]
        assert await gatherResults(puts) == [False] * number
        assert await gatherResults(gets) == [None] * number
        assert len(await client.scan(of + b".window.", of + b".window.~")) == number


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_large_calls_with_large_answers_in_flight(face: str, server: ServerProcess) -> None:
    """Both directions are full at once: each side must go on reading while it cannot write."""
    of = face.encode()  # keys of its own, on a server that all share
    async with ClientOf(face, server=server.address) as client:
        old, new = b"o" * VALUE_BYTES_MAX, b"n" * VALUE_BYTES_MAX
        keys = [of + b".large.%d" % number for number in range(24)]
        assert await gatherResults([client.swap(key, old) for key in keys]) == [None] * len(keys)
        assert await gatherResults([client.swap(key, new) for key in keys]) == [old] * len(keys)
        await gatherResults([client.delete(key) for key in keys])


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_concurrent_scans_over_many_pages(face: str, server: ServerProcess) -> None:
    of = face.encode()  # keys of its own, on a server that all share
    async with ClientOf(face, server=server.address) as client:
        pairs = [(of + b".scan.%05d" % number, b"%d" % number) for number in range(2 * SCAN_PAGE_PAIRS + 1)]
        await gatherResults([client.put(*pair) for pair in pairs])
        scans = [client.scan(of + b".scan.", of + b".scan.~") for _ in range(5)]
        later = client.put(of + b".scan.00000x", b"in no scan, or as a whole")
        results = await gatherResults(scans)
        await later
        with_later = sorted([*pairs, (of + b".scan.00000x", b"in no scan, or as a whole")])
        assert all(result in (pairs, with_later) for result in results)


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_a_cancelled_call_hurts_no_other(face: str, server: ServerProcess) -> None:
    of = face.encode()  # keys of its own, on a server that all share
    async with ClientOf(face, server=server.address) as client:
        puts = [client.put(of + b".cancel.%d" % number, b"") for number in range(SESSION_CALLS_MAX + 200)]
        # Before the connection is there; in flight; and those that wait for room in the window.
        for put in puts[::3]:
            put.cancel()
        await client.get(of + b".cancel")
        for put in puts[1::3]:
            put.cancel()
        for position, put in enumerate(puts):
            if position % 3 == 2:
                assert await put is False
            else:
                assert await put.addErrback(lambda failure: failure.trap(CancelledError)) in (False, CancelledError)
        assert await client.put(of + b".cancel.after", b"") is False


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_close_abandons_those_that_wait(face: str, server: ServerProcess) -> None:
    """And leaves nothing scheduled."""

    of = face.encode()  # keys of its own, on a server that all share

    def hold_answers(direction: str, box: Box) -> Fate:
        return Fate.HOLD if direction == "reply" and b"found" in box else Fate.PASS

    with Proxy(server.host, server.port, hold_answers) as proxy:
        async with ClientOf(face, server=proxy.address) as client:
            puts = [client.put(of + b".close.%d" % number, b"") for number in range(SESSION_CALLS_MAX + 50)]
            outcomes = [put.addErrback(lambda failure: failure.value) for put in puts]
            while not proxy.holds.is_set():
                await turn()
            await client.close()
            assert {type(outcome) for outcome in await gatherResults(outcomes)} == {Abandoned}


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_a_server_that_comes_up_later_and_is_replaced(face: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with ClientOf(face, server=address) as client:
        puts = [client.put(b"k%d" % number, b"1") for number in range(100)]
        with ServerProcess(listen=address):
            assert await gatherResults(puts) == [False] * 100
            assert await client.put(b"k1", b"2") is True
        swaps = [client.swap(b"k%d" % number, b"3") for number in range(100)]
        with ServerProcess(listen=address):
            assert await gatherResults(swaps) == [None] * 100
            assert await client.get(b"k1") == b"3"
            await client.close()


class Says(Protocol):
    """A server that says the same thing to whatever it hears."""

    def dataReceived(self, data: bytes) -> None:
        self.factory.heard += 1
        self.transport.write(self.factory.text)  # type: ignore[union-attr]


class SaysFactory(Factory):
    protocol = Says
    noisy = False

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.heard = 0


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_a_port_that_speaks_something_else(face: str) -> None:
    factory = SaysFactory(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    network: Any = reactor
    port = network.listenTCP(0, factory, interface="127.0.0.1")
    async with ClientOf(face, server=f"127.0.0.1:{port.getHost().port}") as client:
        got = client.get(b"k").addErrback(lambda failure: failure.value)
        while factory.heard < 3:
            await turn()
        assert not got.called
        await client.close()
        assert isinstance(await got, Abandoned)
    await port.stopListening()


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_another_version_is_final(face: str) -> None:
    factory = SaysFactory(codec.answer_error_code(b"1", VersionMismatch.code, "this server speaks version 9"))
    network: Any = reactor
    port = network.listenTCP(0, factory, interface="127.0.0.1")
    async with ClientOf(face, server=f"127.0.0.1:{port.getHost().port}") as client:
        for _ in range(2):
            outcome = await client.put(b"k", b"v").addErrback(lambda failure: failure.value)
            assert isinstance(outcome, VersionMismatch) and "version 9" in str(outcome)
    await port.stopListening()
