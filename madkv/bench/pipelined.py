"""One measurement with many calls in flight on one connection, in a process of its own: its figures as JSON on stdout.

`madkv.bench.pipelined madkv MANAGERS` uses MadKV's Deferred client; `madkv.bench.pipelined etcd HOST:PORT` its equal
for etcd, gRPC's bytes by hand (`peers/http2.py`): both under the same reactor and the same loop. The reactor is
Twisted's on select(), whose waits are exact to microseconds; that of the others is a millisecond, too much for an open
loop.
"""

import argparse
import json
import time
from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

from twisted.internet import selectreactor, task
from twisted.internet.defer import Deferred, gatherResults

from madkv.bench.pipeline import Figures, Pipeline
from madkv.bench.workload import VALUE_CHARACTERS
from madkv.client.api import Client
from madkv.testing.ending import complain, run_tool
from madkv.testing.options import Parser, whole

KINDS = ("write", "read")
KEYS_DEFAULT = 10_000
STORED_BYTES_MAX = 64 << 20
"""Of large values fewer keys are stored, so that loading does not take longer than measuring."""
LOADING_IN_FLIGHT = 64
IN_FLIGHT_MAX = 1024
SIZE_MAX = 1 << 20


class WrongAnswer(Exception):
    """An answer that cannot be right; figures about those would be worth nothing."""


class Target(Protocol):
    """A store, as it is called here."""

    async def connect(self) -> None: ...

    def put(self, key: bytes, value: bytes) -> Deferred[bool]: ...

    def get(self, key: bytes) -> Deferred[bytes | None]: ...

    def close(self) -> Deferred[None]: ...


class MadKV(Client):
    """MadKV's own client, as it is."""

    def __init__(self, reactor: Any, managers: str) -> None:
        super().__init__(reactor, managers=managers)

    async def connect(self) -> None:
        """It connects by itself."""


def target_of(kind: str, reactor: Any, address: str) -> Target:
    """The client of that kind."""
    if kind == "madkv":
        return MadKV(reactor, address)
    # Only here: what it needs may not be installed.
    from madkv.bench.peers.etcd_pipelined import PipelinedEtcd

    return PipelinedEtcd(reactor, address)


def key_of(number: int) -> bytes:
    """The key of a record; all are as long."""
    return b"madkv-load-%010d" % number


def keys_stored(size: int) -> int:
    """How many records there are, by the size of their values."""
    return max(1, min(KEYS_DEFAULT, STORED_BYTES_MAX // size))


async def loaded(target: Target, count: int, values: Sequence[bytes]) -> None:
    """Store every record."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await target.put(key_of(number), values[number % len(values)])

    await gatherResults([Deferred.fromCoroutine(work()) for _ in range(min(LOADING_IN_FLIGHT, count))])


async def measured(reactor: Any, options: argparse.Namespace) -> Figures:
    """Connect, load, measure."""
    random = Random(options.seed)
    table = bytes(VALUE_CHARACTERS[octet % len(VALUE_CHARACTERS)] for octet in range(256))
    values = [random.randbytes(options.size).translate(table) for _ in range(16)]
    count = keys_stored(options.size)
    target = target_of(options.target, reactor, options.address)
    await target.connect()
    await loaded(target, count, values)
    draw = random.random

    def check(answer: bytes | None) -> None:
        if answer is None or len(answer) != options.size:
            raise WrongAnswer(f"a record of {options.size} bytes was read as {answer and len(answer)} bytes")

    def check_found(found: bool) -> None:
        if not found:
            raise WrongAnswer("a record that was stored before was said not to exist")

    def write() -> Deferred[Any]:
        return target.put(key_of(int(draw() * count)), values[int(draw() * 16)]).addCallback(check_found)

    def read() -> Deferred[Any]:
        return target.get(key_of(int(draw() * count))).addCallback(check)

    pipeline = Pipeline(reactor, write if options.kind == "write" else read, options.in_flight)
    cpu_began = time.process_time()
    running = pipeline.open(options.rate, options.seconds) if options.rate else pipeline.closed(options.seconds)
    figures = await running
    cpu_us = (time.process_time() - cpu_began) / max(1, figures["calls"]) * 1e6
    if not figures["unfinished"]:
        await target.close()
    return {**figures, "keys": count, "client_cpu_us": cpu_us}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="madkv.bench.pipelined", description=__doc__)
    parser.add_argument("target", choices=("madkv", "etcd"))
    parser.add_argument("address", help="managers of MadKV, or a member of etcd")
    parser.add_argument("--kind", choices=KINDS, default="write", help="(default: %(default)s)")
    parser.add_argument("--size", type=whole, default=1024, help="of a value, in bytes (default: %(default)s)")
    parser.add_argument("--in-flight", type=whole, default=64, help="calls at the same time (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0, help="calls a second, 0 for a closed loop (the default)")
    parser.add_argument("--seconds", type=float, default=20, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=whole, default=1, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    if not (1 <= options.in_flight <= IN_FLIGHT_MAX and 1 <= options.size <= SIZE_MAX):
        parser.error(f"in-flight must be 1 to {IN_FLIGHT_MAX}, size 1 to {SIZE_MAX}")
    if options.rate < 0 or options.seconds <= 0:
        parser.error("the rate is negative, or the time is not positive")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = parse_arguments(argv)
    selectreactor.install()
    from twisted.internet import reactor

    status = 1

    async def run(reactor: Any) -> None:
        nonlocal status
        try:
            print(json.dumps(await measured(reactor, options)), flush=True)
            status = 0
        except Exception as error:
            complain(f"madkv load: {type(error).__name__}: {error}")

    try:
        task.react(lambda reactor: Deferred.fromCoroutine(run(reactor)), _reactor=reactor)
    except SystemExit as ended:
        status = status or int(ended.code or 0)
    return status


if __name__ == "__main__":
    run_tool("madkv load", main)
