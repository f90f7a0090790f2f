"""What one call costs: CPU time of the line client and of the server, and how soon a line client answers.

CPU time is what the kernel accounts to the processes themselves, user and system, over a run of half GET and half SWAP
(110 bytes) on 1,000 records. Each client gets its next line when its last answer has arrived, as a driver would do it.
"""

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from madkv.testing.ending import complain, run_tool
from madkv.testing.fleet import Fleet, interrupt_on_terminate
from madkv.testing.options import Parser, whole
from madkv.testing.service import Service, ServiceError

RECORDS = 1000
RECORD_BYTES = 1080
UPDATE_BYTES = 110
CLIENT_US_MAX = 120.0
SERVER_US_MAX = 80.0
START_MS_MAX = 150.0
REPLY_SECONDS_MAX = 30.0


class CallFailed(Exception):
    """A client did not answer as it must."""


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def client_process(pid: int) -> psutil.Process:
    """The Python process of a client that was started by a recipe: the last of the chain."""
    process = psutil.Process(pid)
    while children := process.children():
        process = children[0]
    return process


def exchange(fleet: Fleet, lines: Sequence[list[bytes]]) -> None:
    """Give each client its lines one by one, all clients at once."""
    left = [iter(each) for each in lines]
    for number, mine in enumerate(left):
        fleet.send(number, next(mine))
    active = len(left)
    while active:
        completions = fleet.wait(REPLY_SECONDS_MAX)
        if not completions:
            raise CallFailed(f"no answer within {REPLY_SECONDS_MAX:g} s")
        for completion in completions:
            if completion.reply is None:
                raise CallFailed(f"client {completion.client} ended: {fleet.clients[completion.client].said}")
            line = next(left[completion.client], None)
            if line is None:
                active -= 1
            else:
                fleet.send(completion.client, line)


def measure(just: str, address: str, server: psutil.Process, clients: int, calls: int) -> tuple[float, float, float]:
    """CPU microseconds a call of (a client, the server), and calls a second, at this number of clients."""
    chance = random.Random(clients)
    update = bytes(chance.choices(range(ord("!"), 0x7F), k=UPDATE_BYTES))
    record = bytes(chance.choices(range(ord("!"), 0x7F), k=RECORD_BYTES))
    keys = [b"usertable_user%d" % number for number in range(RECORDS)]
    with Fleet([just, "p1::client", address], clients) as fleet:
        exchange(fleet, [[b"PUT %b %b" % (key, record) for key in keys[number::clients]] for number in range(clients)])
        lines = [
            [
                b"GET %b" % key if chance.random() < 0.5 else b"SWAP %b %b" % (key, update)
                for key in chance.choices(keys, k=calls // clients)
            ]
            for _ in range(clients)
        ]
        processes = [client_process(each.process.pid) for each in fleet.clients]
        before = [cpu_seconds(process) for process in (server, *processes)]
        started = time.monotonic()
        exchange(fleet, lines)
        seconds = time.monotonic() - started
        used = [cpu_seconds(process) - was for process, was in zip((server, *processes), before, strict=True)]
    made = sum(map(len, lines))
    return sum(used[1:]) / made * 1e6, used[0] / made * 1e6, made / seconds


def start_milliseconds(just: str, address: str) -> float:
    """From starting `p1::client` to its first answer."""
    started = time.monotonic()
    command = [just, "p1::client", address]
    answer = subprocess.run(command, input=b"GET a\nSTOP\n", stdout=subprocess.PIPE, check=True)
    if not answer.stdout.startswith(b"GET a "):
        raise CallFailed(f"the client answered {answer.stdout!r}")
    return (time.monotonic() - started) * 1000


def verdict(name: str, value: float, bound: float, unit: str) -> bool:
    """Print one figure beside its bound; whether it keeps it."""
    kept = value <= bound
    print(f"  {name:<44} {value:8.1f} {unit}   bound {bound:g} {unit}: {'kept' if kept else 'NOT KEPT'}")
    return kept


def measure_all(options: argparse.Namespace) -> bool:
    """All figures, with a server of their own; whether each keeps its bound."""
    kept = True
    with Service.solo(options.just) as service:
        address = service.address
        server = client_process(service.pids[0])
        starts = [start_milliseconds(options.just, address) for _ in range(options.starts)]
        print(f"line client, medians (Python {sys.version.split()[0]}):")
        kept &= verdict("start of the recipe to its end after 2 answers", statistics.median(starts), START_MS_MAX, "ms")
        for clients in (1, 10):
            results = [measure(options.just, address, server, clients, options.calls) for _ in range(options.runs)]
            client_us, server_us, rate = (statistics.median(each) for each in zip(*results, strict=True))
            print(f"{clients} client(s), {options.calls:,} calls, half GET, half SWAP: {rate:,.0f} calls/s")
            kept &= verdict("line client, CPU a call", client_us, CLIENT_US_MAX, "us")
            kept &= verdict("server, CPU a call", server_us, SERVER_US_MAX, "us")
    return kept


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; exit status 1 when a bound is not kept."""
    parser = Parser(prog="./justw bench::cpu", description=__doc__)
    parser.add_argument("--calls", type=whole, default=30_000, help="calls in each run (default: %(default)s)")
    parser.add_argument("--runs", type=whole, default=3, help="runs of which the median counts (default: %(default)s)")
    parser.add_argument("--starts", type=whole, default=20, help="client starts (default: %(default)s)")
    parser.add_argument(
        "--just", default=shutil.which("just") or "just", help="the just program (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if min(options.calls, options.runs, options.starts) < 1:
        parser.error("calls, runs and starts must be at least 1")
    interrupt_on_terminate()
    try:
        return 0 if measure_all(options) else 1
    except (CallFailed, ServiceError, subprocess.CalledProcessError) as error:
        complain(f"madkv cpu: {error}")
        return 1


if __name__ == "__main__":
    run_tool("madkv cpu", main)
