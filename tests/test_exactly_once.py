"""Connections that break before, during and after a call never change a result."""

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from madkv.client.blocking import BlockingClient
from madkv.errors import OutcomeUnknown
from madkv.wire.boxes import ERROR_CODE, Box
from tests.cluster_in_process import IN_FLIGHT, ClientOf, wait_in_thread
from tests.line_client import LineClient, run
from tests.processes import Process, ServerProcess
from tests.proxy import Fate, LoseOnce, Proxy, at_random, is_write, split_boxes
from tests.writes import Model, calls

SHARE = 0.2


def late_duplicates(server: ServerProcess, requests: list[bytes]) -> list[bytes]:
    """Send each write again on a connection of its own; the errors that the server answers (empty: none)."""
    codes = []
    with socket.create_connection((server.host, server.port)) as connection:
        for raw in requests:
            connection.sendall(raw)
            received = b""
            while not (boxes := split_boxes(received)[0]):
                data = connection.recv(1 << 18)
                assert data, "the server closed the connection"
                received += data
            codes.append(boxes[0][1].get(ERROR_CODE, b""))
    return codes


def breaks(seed: int, share: float, calls_made: int) -> int:
    """How many boxes are broken at the least until so many calls are answered.

    Which box meets which fate depends on the moment, but the fates themselves follow from the seed; and each call
    takes at least two boxes, its request and its reply.
    """
    decide = at_random(seed, share)
    return sum(decide("", {}) is not Fate.PASS for _ in range(2 * calls_made))


def writes_of(proxy: Proxy) -> list[bytes]:
    return [raw for raw in proxy.requests if is_write(split_boxes(raw)[0][0][1])]


# --- All faces behind a proxy that breaks a fifth of all boxes --------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_the_line_client(server: ServerProcess, seed: int) -> None:
    prefix = b"line%d." % seed
    model = Model()
    asked = expected = b""
    for operation, key, value in calls(seed, prefix, 80):
        if operation == "delete":
            asked += b"DELETE %b\n" % key
            expected += b"DELETE %b %b\n" % (key, b"found" if model.delete(key) else b"not_found")
        elif operation == "put":
            asked += b"PUT %b %b\n" % (key, value)
            expected += b"PUT %b %b\n" % (key, b"found" if model.put(key, value) else b"not_found")
        else:
            asked += b"SWAP %b %b\n" % (key, value)
            expected += b"SWAP %b %b\n" % (key, model.swap(key, value) or b"null")
    bounds = prefix, prefix + b"~"
    asked += b"SCAN %b %b\nSTOP\n" % bounds
    pairs = b"".join(b"  %b %b\n" % pair for pair in sorted(model.pairs.items()))
    expected += b"SCAN %b %b BEGIN\n%bSCAN END\nSTOP\n" % (*bounds, pairs)
    with Proxy(server.host, server.port, at_random(seed, SHARE / 2)) as proxy:
        result = run(proxy.address, asked)
        assert proxy.broken > 5
    assert result.stdout == expected
    assert result.returncode == 0
    assert all(line.startswith(b"madkv: waiting for ") for line in result.stderr.splitlines())


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_blocking_client(server: ServerProcess, impatient: None, seed: int) -> None:
    model = Model()
    prefix = b"blocking%d." % seed
    with Proxy(server.host, server.port, at_random(seed, SHARE)) as proxy, BlockingClient(proxy.address) as client:
        for operation, key, value in calls(seed, prefix, 300):
            arguments = (key,) if operation == "delete" else (key, value)
            assert getattr(client, operation)(*arguments) == getattr(model, operation)(*arguments)
            if operation == "put":
                assert client.get(key) == value
        assert client.scan(prefix, prefix + b"~") == sorted(model.pairs.items())
        assert proxy.broken > 50
        writes = writes_of(proxy)
        assert len(writes) > 300
        # The network delivers everything that was ever sent once more. Only the last call's record is still there.
        codes = late_duplicates(server, writes)
        assert set(codes) == {b"STALE_CALL", b""}
        last = split_boxes(writes[-1])[0][0][1][b"sequence"]
        answered = [raw for raw, code in zip(writes, codes, strict=True) if not code]
        assert {split_boxes(raw)[0][0][1][b"sequence"] for raw in answered} == {last}
        proxy.decide = at_random(seed, 0)
        assert client.scan(prefix, prefix + b"~") == sorted(model.pairs.items())
        client.close()
        assert set(late_duplicates(server, writes)) == {b"UNKNOWN_SESSION"}
        assert client.scan(prefix, prefix + b"~") == sorted(model.pairs.items())


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_many_workers_on_one_client(face: str, server: ServerProcess, impatient: None) -> None:
    """Each on keys of its own, so that each knows what its answers must be."""
    prefix = b"workers.%b." % face.encode()
    finals: dict[bytes, bytes] = {}

    async def work(client: Any, number: int) -> None:
        model = Model()
        for operation, key, value in calls(number, b"%b%d." % (prefix, number), 30):
            arguments = (key,) if operation == "delete" else (key, value)
            assert await getattr(client, operation)(*arguments) == getattr(model, operation)(*arguments)
        finals.update(model.pairs)

    with Proxy(server.host, server.port, at_random(6, 0.01)) as proxy:
        async with ClientOf(face, server=proxy.address) as client:
            workers = [Deferred.fromCoroutine(work(client, number)) for number in range(20)]
            await gatherResults(workers, consumeErrors=True)
            assert proxy.broken >= breaks(6, 0.01, 20 * 30) > 0
            proxy.decide = at_random(6, 0)
            assert await client.scan(prefix, prefix + b"~") == sorted(finals.items())


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_swaps_on_one_key_form_a_chain(face: str, server: ServerProcess, impatient: None) -> None:
    """In flight together they may take effect in any order, but each value is found by exactly one other swap."""
    values = [b"%d" % number for number in range(800)]
    with Proxy(server.host, server.port, at_random(7, 0.005)) as proxy:
        async with ClientOf(face, server=proxy.address) as client:
            key = b"chain." + face.encode()
            found = await gatherResults([client.swap(key, value) for value in values], consumeErrors=True)
            proxy.decide = at_random(7, 0)
            last = await client.get(key)
        assert proxy.broken >= breaks(7, 0.005, len(values)) > 0
    assert sorted([*found, last], key=lambda value: value or b"") == sorted([None, *values], key=lambda v: v or b"")


# --- The reply that was lost, by name ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", [Fate.CUT, Fate.HALF])
@pytest.mark.parametrize("direction", ["request", "reply"])
@pytest.mark.parametrize("command", [b"Hello", b"OpenSession", b"Swap"])
def test_each_box_of_a_first_swap_is_lost_once(
    server: ServerProcess, command: bytes, direction: str, fate: Fate
) -> None:
    key = b"lost.%b.%b.%b" % (command, direction.encode(), fate.name.encode())
    with BlockingClient(server.address) as direct:
        direct.put(key, b"old")
    losing = LoseOnce(command, direction, fate)
    with Proxy(server.host, server.port, losing) as proxy, LineClient(proxy.address) as client:
        assert client.ask(b"SWAP %b new" % key) == b"SWAP %b old" % key
        assert client.ask(b"SWAP %b newer" % key) == b"SWAP %b new" % key
        assert losing.lost
        assert client.stderr().count(b"\n") == 1


# --- Away for longer than a session lives -----------------------------------------------------------------------------

SERVER_WHOSE_TIME_IS_OURS = """
import signal, time
from twisted.internet import reactor
from madkv.raft.configuration import Member
from madkv.server.service import ServerFactory
from madkv.server.tap import replica_in_memory
from madkv.storage.memory import MemoryStore

skipped_seconds = 0
def skip(*_):
    global skipped_seconds
    skipped_seconds += 2 * 3600
    print("two hours later", flush=True)
signal.signal(signal.SIGUSR1, skip)
def monotonic():
    return time.monotonic() + skipped_seconds
reactor.seconds = monotonic
replica = replica_in_memory(MemoryStore(), Member(0, bytes(16)), reactor, print)
replica.start()
port = reactor.listenTCP(0, ServerFactory(reactor, replica, b"s0", b"boot"), interface="127.0.0.1")
print("serving on", port.getHost().port, flush=True)
reactor.run()
"""


@pytest.fixture
def timed() -> Iterator[Process]:
    with Process([sys.executable, "-c", SERVER_WHOSE_TIME_IS_OURS]) as process:
        yield process


def port_of(process: Process) -> int:
    return int(process.wait_for(r"serving on (\d+)")[1])


def two_hours_pass(process: Process) -> None:
    before = process.output.count("later")
    process.signal(signal.SIGUSR1)
    for _ in range(before + 1):
        process.wait_for("two hours later")


def test_a_lost_answer_and_a_lost_session_are_an_unknown_outcome(timed: Process) -> None:
    losing = LoseOnce(b"Put", "reply", Fate.CUT)
    with Proxy("127.0.0.1", port_of(timed), losing) as proxy, LineClient(proxy.address) as client:
        client.send(b"PUT away 1", b"GET away", b"STOP")
        assert losing.happened.wait(20)
        proxy.refuse.set()
        client.wait_for_stderr(b"waiting for")
        two_hours_pass(timed)
        proxy.refuse.clear()
        assert client.wait() == 3
        assert client.read_line() == b"", "no answer, neither to this call nor to the next"
        waiting, unknown = client.stderr().splitlines()
        assert waiting.startswith(b"madkv: waiting for ")
        assert unknown.startswith(b"madkv: line 1: ") and b"may or may not" in unknown


def test_an_expired_session_alone_is_no_trouble(timed: Process) -> None:
    with LineClient(f"127.0.0.1:{port_of(timed)}") as client:
        assert client.ask(b"PUT idle 1") == b"PUT idle not_found"
        two_hours_pass(timed)
        assert client.ask(b"SWAP idle 2") == b"SWAP idle 1"
        assert client.ask(b"GET idle") == b"GET idle 2"
        assert client.stderr() == b""


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_unknown_outcomes_with_many_calls_in_flight(face: str, timed: Process, impatient: None) -> None:
    """Those whose answers were lost with the session end as unknown; those that come after are served."""
    swallowed = threading.Event()

    def lose_all_replies(direction: str, box: Box) -> Fate:
        if direction == "reply" and b"found" in box:
            proxy.refuse.set()
            swallowed.set()
            return Fate.CUT
        return Fate.PASS

    with Proxy("127.0.0.1", port_of(timed), lose_all_replies) as proxy:
        async with ClientOf(face, server=proxy.address) as client:
            outcomes = [
                client.put(b"many.%d" % number, b"x").addErrback(lambda failure: failure.value) for number in range(50)
            ]
            await wait_in_thread(swallowed)
            two_hours_pass(timed)
            proxy.decide = at_random(0, 0)
            proxy.refuse.clear()
            for outcome in await gatherResults(outcomes):
                assert isinstance(outcome, OutcomeUnknown)
            assert await client.swap(b"many.0", b"y") == b"x"


# --- kill -9 of the client in the middle of a call --------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "after"), [("request", b"old"), ("reply", b"new")])
def test_a_client_killed_in_the_middle_of_a_call(server: ServerProcess, direction: str, after: bytes) -> None:
    key = b"killed.%b" % direction.encode()
    with LineClient(server.address) as witness:
        witness.ask(b"PUT %b old" % key)
        holding = LoseOnce(b"Swap", direction, Fate.HOLD)
        with Proxy(server.host, server.port, holding) as proxy, LineClient(proxy.address) as client:
            client.send(b"SWAP %b new" % key)
            assert proxy.holds.wait(20)
            client.process.kill()
            client.wait()
            assert client.read_line() == b""
            assert witness.ask(b"GET %b" % key) == b"GET %b %b" % (key, after)
        # Everything of the dead client is gone by now; what was seen stays seen.
        assert witness.ask(b"GET %b" % key) == b"GET %b %b" % (key, after)
        assert witness.ask(b"SWAP %b end" % key) == b"SWAP %b %b" % (key, after)
        assert witness.ask(b"GET %b" % key) == b"GET %b end" % key


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_a_call_given_up_is_not_executed_after_the_next(face: str, server: ServerProcess) -> None:
    """Its request was on its way when it was given up. Once the next call is answered, it comes too late."""
    losing = LoseOnce(b"Put", "request", Fate.CUT)
    with Proxy(server.host, server.port, losing) as proxy:
        async with ClientOf(face, server=proxy.address) as client:
            key = b"late." + face.encode()
            given_up = client.put(key, b"given up")
            ended = given_up.addErrback(lambda failure: failure.value)
            await wait_in_thread(losing.happened)
            given_up.cancel()
            assert isinstance(await ended, CancelledError)
            assert await client.put(key, b"next") is False
            assert late_duplicates(server, writes_of(proxy)[:1]) == [b"STALE_CALL"]
            assert await client.get(key) == b"next"
