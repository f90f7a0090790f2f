"""One YCSB benchmark against a running service: a load phase, a run phase, and the figures of both.

Theory of operation. Every client is a process of its own that speaks the line interface. The loop is closed: a client
gets its next call as soon as its answer is here. That next call is made while the previous one is awaited, so what it
costs to make it lies in no call's latency; a call's own clock starts right before its line is written and ends right
after its answer was read. Every answer is checked: figures about wrong answers would be worth nothing.
"""

import argparse
import gc
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from madkv.bench.histogram import Latencies
from madkv.bench.official import OfficialWorkload
from madkv.bench.results import Phase, format_results
from madkv.bench.workload import DEFAULTS, Call, CoreWorkload, WorkloadError, fault, read_properties, workload_text
from madkv.operate.ask import ask_map
from madkv.partitions import PartitionMap
from madkv.testing import certificates
from madkv.testing.checkout import origin
from madkv.testing.ending import complain, run_tool
from madkv.testing.fleet import CLIENTS_MAX, Completion, Fleet, interrupt_on_terminate
from madkv.testing.options import Parser, add_shared, whole
from madkv.testing.transcript import Progress, print_result

READY = Call("READ", b"GET madkv-bench-ready", b"madkv-bench-ready", False, -1, [])
"""The call that every client answers before the clock starts: by then it is started and connected."""
STALL_SECONDS_DEFAULT = 120.0
SHOWN_CHARACTERS = 200


class BenchError(Exception):
    """The benchmark cannot go on: a client ended, or an answer is wrong, or none comes any more."""


class Source(Protocol):
    """What makes the calls."""

    def load(self) -> Iterator[Call]: ...

    def calls(self, client: int) -> Iterator[Call]: ...

    def acknowledged(self, call: Call) -> None: ...


class PhaseProgress(Progress):
    """How far a phase is."""

    def __init__(self, name: str, calls_expected: int | None) -> None:
        super().__init__()
        self._name = name
        self._expected = calls_expected
        self._shown_ns = time.monotonic_ns()
        self._shown_calls = 0

    def show_calls(self, now_ns: int, calls: int, recent: Latencies) -> None:
        """Say where the phase is, with the rate and the latency since the last time."""
        rate = (calls - self._shown_calls) / max(1e-9, (now_ns - self._shown_ns) / 1e9)
        of = f" of {self._expected}" if self._expected else ""
        p99_us = recent.percentile_ns(99) / 1000
        self.show(f"[{self._name}] {calls}{of} calls, {rate:.0f} a second, p99 {p99_us:.0f} us")
        self._shown_ns, self._shown_calls = now_ns, calls


class Bench:
    """A fleet of line clients, and what they were asked."""

    def __init__(
        self,
        fleet: Fleet,
        source: Source,
        stall_seconds: float = STALL_SECONDS_DEFAULT,
        partition_map: PartitionMap | None = None,
    ) -> None:
        self._fleet = fleet
        self._source = source
        self._stall_seconds = stall_seconds
        self._map = partition_map
        self.by_partition: Counter[int] = Counter()
        """Calls of the last phase, where there are partitions; a scan counts where it begins."""
        self.latencies: dict[str, Latencies] = {}
        """Those of the last phase, by kind of call."""
        self.cpu_us_per_call = 0.0
        """What this process itself used for each call of the last phase."""

    def ready(self) -> None:
        """Wait until each client has answered a call."""
        for number in range(len(self._fleet.clients)):
            self._fleet.send(number, READY.line)
        waited = len(self._fleet.clients)
        while waited:
            for completion in self._answers():
                waited -= 1
                assert completion.reply is not None
                if wrong := fault(READY, completion.reply):
                    raise self._wrong(completion.client, READY.line, completion.reply, wrong)

    def stop(self) -> None:
        """End the clients by STOP."""
        for number, wrong in self._fleet.dismiss().items():
            raise BenchError(f"client {number} {wrong}")

    def phase(
        self, name: str, streams: Sequence[Iterator[Call]], calls_expected: int | None = None, seconds: float = 0
    ) -> Phase:
        """Run each client's stream to its end, or for `seconds` if that is not 0. Streams may be one and the same."""
        send = self._fleet.send
        partition_of = self._map.partition_of if self._map else None
        by_partition = self.by_partition = Counter()
        totals = self.latencies = {}
        recent: dict[str, Latencies] = {}
        progress = PhaseProgress(name, calls_expected)
        following = [next(stream, None) for stream in streams]
        current = list(following)
        calls = 0
        # Nothing in the loop makes a cycle; a collection in the middle would only be seen as latency.
        gc.collect()
        gc.disable()
        cpu_began = time.process_time()
        began_ns = ended_ns = time.monotonic_ns()
        stop_ns = began_ns + int(seconds * 1e9) if seconds else None
        try:
            in_flight = 0
            for number, call in enumerate(current):
                if call is not None:
                    send(number, call.line)
                    in_flight += 1
            for number, stream in enumerate(streams):
                following[number] = next(stream, None)
            while in_flight:
                for number, called_ns, returned_ns, reply in self._answers():
                    call, upcoming = current[number], following[number]
                    if upcoming is not None and (stop_ns is None or returned_ns < stop_ns):
                        send(number, upcoming.line)
                    else:
                        upcoming = None
                        in_flight -= 1
                    current[number] = upcoming
                    assert call is not None and reply is not None
                    if wrong := fault(call, reply):
                        raise self._wrong(number, call.line, reply, wrong)
                    if call.kind not in recent:
                        recent[call.kind] = Latencies()
                    recent[call.kind].record(returned_ns - called_ns)
                    if partition_of is not None:
                        by_partition[partition_of(call.key)] += 1
                    if call.kind == "INSERT":
                        self._source.acknowledged(call)
                    calls += 1
                    ended_ns = returned_ns
                    if upcoming is not None:
                        following[number] = next(streams[number], None)
                if ended_ns > progress.due_ns:
                    progress.show_calls(ended_ns, calls, merged(totals, recent))
        finally:
            self.cpu_us_per_call = (time.process_time() - cpu_began) / max(1, calls) * 1e6
            progress.clear()
            gc.enable()
        merged(totals, recent)
        return Phase.of(ended_ns - began_ns, totals)

    def _answers(self) -> list[Completion]:
        """At least one completion, each with a reply."""
        completions = self._fleet.wait(self._stall_seconds)
        deadline = time.monotonic() + self._stall_seconds
        while not completions:
            self._check_alive()
            if time.monotonic() >= deadline:
                raise BenchError(f"no client has answered for {self._stall_seconds:.0f} s{self._said()}")
            completions = self._fleet.wait(self._stall_seconds)
        for completion in completions:
            if completion.reply is None:
                raise self._ended(completion.client)
        return completions

    def _check_alive(self) -> None:
        """A client that ended between two calls never completes the second."""
        for client in self._fleet.clients:
            if client.ended and client.pending:
                raise self._ended(client.number)

    def _ended(self, number: int) -> BenchError:
        client = self._fleet.clients[number]
        try:
            status = f"with status {client.process.wait(1.0)}"
        except subprocess.TimeoutExpired:
            status = "its output"
        for _ in range(3):  # what it said last may still be in the pipe
            self._fleet.wait(0.05)
        return BenchError(f"client {number} ended ({status}) in the middle of a call{self._said(number)}")

    def _said(self, number: int | None = None) -> str:
        said = [
            f"\n  client {client.number}: {line}"
            for client in self._fleet.clients
            if number in (None, client.number)
            for line in client.said[-5:]
        ]
        return ("; last on stderr:" + "".join(said[:20])) if said else "; it said nothing on stderr"

    @staticmethod
    def _wrong(number: int, line: bytes, reply: bytes, why: str) -> BenchError:
        call, answer = (repr(text[:SHOWN_CHARACTERS])[2:-1] for text in (line, reply))
        return BenchError(f"client {number} gave a wrong answer: {why}\n  call:   {call}\n  answer: {answer}")


def merged(totals: dict[str, Latencies], recent: dict[str, Latencies]) -> Latencies:
    """Move what is in `recent` to `totals`, kind by kind; all of it together is returned."""
    together = Latencies()
    for kind, latencies in recent.items():
        totals.setdefault(kind, Latencies()).merge(latencies)
        together.merge(latencies)
    recent.clear()
    return together


def counted(clients: int) -> str:
    """So many clients, in words."""
    return "1 client" if clients == 1 else f"{clients} clients"


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, with `name=value` words as options and `-p name=value` for properties."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "-p":
            joined[-1] = "-p" + word
        else:
            joined.append(word)
    parser = Parser(prog="madkv.bench.run", description="Run one YCSB workload against a service.")
    parser.add_argument("nclis", type=whole, help=f"number of clients, 1 to {CLIENTS_MAX}, each a process of its own")
    parser.add_argument("wload", help="a letter from a to f, or the path of a YCSB property file")
    parser.add_argument("--module", default="p1", help="whose `client` recipe starts the clients (default: p1)")
    parser.add_argument("--address", default="127.0.0.1:3777", help="passed to it (default: 127.0.0.1:3777)")
    parser.add_argument("--just", default="just", help="the command that runs recipes (default: just)")
    parser.add_argument("--log", type=Path, help="also write what goes to stdout to this file")
    add_shared(parser, "tls")
    parser.add_argument("--ops", type=whole, help="operations a client (default: the workload's operationcount, 10000)")
    parser.add_argument("--records", type=whole, help="records to load (default: the workload's recordcount, 10000)")
    parser.add_argument("--seed", type=whole, default=1, help="the same seed gives the same requests (default: 1)")
    parser.add_argument("--seconds", type=float, default=0, help="end the run phase after so long (default: 0, never)")
    parser.add_argument(
        "--stall",
        type=float,
        default=STALL_SECONDS_DEFAULT,
        help="give up when no client has answered for so many seconds (default: 120)",
    )
    parser.add_argument(
        "--ycsb", choices=("yes", "no"), default="no", help="requests from the official YCSB in ycsb/ (default: no)"
    )
    parser.add_argument("--ycsb-home", type=Path, default=Path("ycsb"), help="where that is (default: ycsb)")
    parser.add_argument(
        "-p",
        dest="properties",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a property of the workload; may be repeated",
    )
    arguments = parser.parse_args(joined)
    if len(arguments.wload) == 1:
        arguments.wload = arguments.wload.lower()
    if not 1 <= arguments.nclis <= CLIENTS_MAX:
        parser.error(f"the number of clients must be 1 to {CLIENTS_MAX}")
    if arguments.seconds < 0 or arguments.stall <= 0:
        parser.error("a time is negative, or zero where it must not be")
    return arguments


def overrides(arguments: argparse.Namespace) -> dict[str, str]:
    """The properties that the command line sets."""
    properties = {}
    for word in arguments.properties:
        name, equals, value = word.partition("=")
        if not equals or name not in DEFAULTS:
            raise WorkloadError(f"not a property: {word!r} (known: {', '.join(DEFAULTS)})")
        properties[name] = value
    if arguments.ops is not None:
        properties["operationcount"] = str(arguments.ops)
    if arguments.records is not None:
        properties["recordcount"] = str(arguments.records)
    return properties


def run(arguments: argparse.Namespace) -> str:
    """The whole benchmark; what is printed at its end."""
    text = workload_text(arguments.wload)
    properties = {**read_properties(text), **overrides(arguments)}
    clients: int = arguments.nclis
    core = CoreWorkload(properties, arguments.seed, clients)  # judges the properties in either case
    official = arguments.ycsb == "yes"
    source: Source = OfficialWorkload(arguments.ycsb_home, text, properties, clients) if official else core
    command = [arguments.just, f"{arguments.module}::client", arguments.address]
    partition_map = ask_map(arguments.address)
    print(f"starting {counted(clients)}: {shlex.join(command)}", file=sys.stderr)
    with Fleet(command, clients) as fleet:
        bench = Bench(fleet, source, arguments.stall, partition_map)
        bench.ready()
        load = source.load()
        load_phase = bench.phase("Load", [load] * clients, core.record_count)
        streams = [source.calls(client) for client in range(clients)]
        run_phase = bench.phase("Run", streams, core.operation_count * clients, arguments.seconds)
        cpu_us = bench.cpu_us_per_call
        bench.stop()
    partitions = (
        [f"s{number} {bench.by_partition[number]:,}" for number in range(len(partition_map.replicas))]
        if partition_map
        else []
    )
    name = f"workload {arguments.wload}" if len(arguments.wload) == 1 else arguments.wload
    of = "the official YCSB" if official else f"the built-in generator, seed {arguments.seed}"
    return "\n".join(
        [
            f"# YCSB {name}: {counted(clients)}, {core.record_count} records, {core.operation_count} operations each",
            f"# requests from {of}; every answer was checked",
            origin(),
            f"# driver: {cpu_us:.1f} us of CPU a call in the run phase",
            *(
                [f"# calls of the run phase by partition, a scan where it begins: {', '.join(partitions)}"]
                if partitions
                else []
            ),
            format_results({"Load": load_phase, "Run": run_phase}),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    interrupt_on_terminate()
    try:
        if arguments.log:
            arguments.log.parent.mkdir(parents=True, exist_ok=True)
            arguments.log.unlink(missing_ok=True)  # an old result must not pass for that of a run which fails
        certificates.take(arguments)
        output = run(arguments)
        if arguments.log:
            arguments.log.write_text(output + "\n")
        print_result(output)
    except (BenchError, WorkloadError, certificates.CertificatesError) as error:
        complain(f"madkv bench: {error}")
        return 1
    return 0


if __name__ == "__main__":
    run_tool("madkv bench", main)
