"""One cell of a comparison: one store, one kind of work, measured once with fresh processes and fresh data."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import psutil

from madkv.bench.cpu import cpu_seconds
from madkv.bench.disk import sync_us
from madkv.bench.peers.launch import Deployment
from madkv.bench.percentiles import summary_of, together
from madkv.bench.results import Phase
from madkv.bench.run import Bench, BenchError
from madkv.bench.systems import System
from madkv.bench.workload import Call, CoreWorkload, read_properties, workload_text
from madkv.errors import MadKVError
from madkv.testing.fleet import Fleet
from madkv.testing.service import ServiceError

CALLS_PER_SECOND_MAX = 20_000
SCANS_PER_SECOND_MAX = 4_000
"""A run phase has as many operations as a store at this rate would do in its time. It may end a little early then; more
would have zipfian requests spread over records that are never inserted."""
PIPELINE_SECONDS_MORE = 180.0
"""How much longer than its measurement a pipelined client may take, to load and to start."""
STALL_SECONDS = 60.0


class CellFailed(Exception):
    """A cell has no figures: what went wrong."""


@attrs.frozen
class Settings:
    """What all cells of a comparison have in common."""

    seconds: float
    """Of the run phase."""
    load_seconds: float
    """The load phase ends then, and the run phase has to do with the records that are there."""
    records: int
    clients: int
    data: Path
    """Where the stores keep their data, each in a directory of its own."""
    seed: int


@attrs.frozen
class Cell:
    """One kind of work."""

    name: str
    title: str
    workload: str = ""
    """A letter of YCSB; empty for a pipelined cell."""
    properties: Mapping[str, str] = attrs.field(factory=dict)
    clients: int | None = None
    """None: as many as the settings say."""
    pipelined: tuple[str, ...] = ()
    """The options of `madkv.bench.pipelined`."""

    def suits(self, system: System) -> bool:
        """Whether the system takes part."""
        if system.only is not None:
            return self.name in system.only
        return not self.pipelined or system.name in PIPELINED

    @property
    def by_latency(self) -> bool:
        """Whether its figure is the median latency rather than the throughput."""
        return self.name == "put-1"


PIPELINED = ("madkv-rf3", "etcd-thin")
"""Those with a client that keeps many calls in flight on one connection, and whose durability is alike."""
_ONLY_PUTS = {
    "readproportion": "0",
    "updateproportion": "0",
    "insertproportion": "1",
    "requestdistribution": "uniform",
    "recordcount": "100",
}
CELLS: tuple[Cell, ...] = (
    *(Cell(letter, f"YCSB {letter.upper()}", letter) for letter in "abcdef"),
    Cell("put-1", "Put 1 KB, 1 client", "a", _ONLY_PUTS, clients=1),
    Cell("pipe-write", "64 Puts in flight", pipelined=("kind=write", "in-flight=64", "size=1024")),
    Cell("pipe-read", "64 Gets in flight", pipelined=("kind=read", "in-flight=64", "size=1024")),
)
CELLS_BY_NAME = {cell.name: cell for cell in CELLS}


class Loading:
    """The load phase of a workload, which may be cut short: how many records are there then, without a gap."""

    def __init__(self, core: CoreWorkload) -> None:
        self._core = core
        self._stored: set[int] = set()

    def load(self) -> Iterator[Call]:
        """The inserts."""
        return self._core.load()

    def calls(self, client: int) -> Iterator[Call]:
        """None: loading is inserts alone."""
        return iter(())

    def acknowledged(self, call: Call) -> None:
        """An insert was answered."""
        self._stored.add(call.number)

    @property
    def count(self) -> int:
        """Records 0 to this one, left out, are stored."""
        number = 0
        while number in self._stored:
            number += 1
        return number


def measure(system: System, cell: Cell, repetition: int, settings: Settings) -> dict[str, Any]:
    """Start the store, measure, end it, remove its data; the figures. Raises CellFailed."""
    began = time.monotonic()
    before_us = sync_us(settings.data)
    with tempfile.TemporaryDirectory(prefix=f"madkv-{system.name}-", dir=settings.data) as root:
        try:
            with system.start(Path(root), cell.workload == "e") as deployment:
                run = pipelined if cell.pipelined else lined
                figures = run(deployment, cell, repetition, settings)
                figures.update(deployment.extra())
        except (BenchError, CellFailed, MadKVError, OSError, ServiceError) as error:
            raise CellFailed(f"{system.name}, {cell.name}: {error}") from error
    return {
        "system": system.name,
        "cell": cell.name,
        "repetition": repetition,
        **figures,
        "sync_us": before_us,
        "whole_seconds": round(time.monotonic() - began, 1),
    }


def cpu_of(pids: Iterable[int]) -> float:
    """CPU seconds of these processes so far; one that has ended counts as nothing."""
    total = 0.0
    for pid in pids:
        try:
            total += cpu_seconds(psutil.Process(pid))
        except psutil.NoSuchProcess:
            pass
    return total


def lined(deployment: Deployment, cell: Cell, repetition: int, settings: Settings) -> dict[str, Any]:
    """Line clients, each a process, driven through YCSB's load phase and run phase."""
    clients = cell.clients or settings.clients
    most = SCANS_PER_SECOND_MAX if cell.workload == "e" else CALLS_PER_SECOND_MAX
    properties = {
        **read_properties(workload_text(cell.workload)),
        "recordcount": str(settings.records),
        "operationcount": str(max(1, int(settings.seconds * most / clients))),
        **cell.properties,
    }
    seed = settings.seed + repetition
    core = CoreWorkload(properties, seed, clients)
    loading = Loading(core)
    with Fleet(deployment.client, clients) as fleet:
        bench = Bench(fleet, loading, STALL_SECONDS)
        bench.ready()
        loads = loading.load()
        load = bench.phase("Load", [loads] * clients, core.record_count, settings.load_seconds)
        if not (stored := loading.count):
            raise CellFailed("no record was stored")
        core = CoreWorkload({**properties, "recordcount": str(stored)}, seed, clients)
        for call in core.load():
            core.acknowledged(call)
        bench = Bench(fleet, core, STALL_SECONDS)
        pids = [client.process.pid for client in fleet.clients]
        cpu_before = cpu_of(deployment.pids), cpu_of(pids)
        run = bench.phase("Run", [core.calls(client) for client in range(clients)], seconds=settings.seconds)
        cpu_after = cpu_of(deployment.pids), cpu_of(pids)
        bench.stop()
    servers_us, clients_us = (
        (after - before) / max(1, run.calls) * 1e6 for before, after in zip(cpu_before, cpu_after, strict=True)
    )
    return {
        "clients": clients,
        "records": stored,
        "load": {"calls": load.calls, "throughput": load.throughput},
        **_figures_of(run),
        "latency_us": summary_of(together(bench.latencies.values())),
        "by_kind_us": {kind: summary_of(each) for kind, each in bench.latencies.items()},
        "server_cpu_us": servers_us,
        "client_cpu_us": clients_us,
        "driver_cpu_us": bench.cpu_us_per_call,
    }


def _figures_of(run: Phase) -> dict[str, Any]:
    return {"calls": run.calls, "seconds": run.milliseconds / 1000, "throughput": run.throughput}


def pipelined(deployment: Deployment, cell: Cell, repetition: int, settings: Settings) -> dict[str, Any]:
    """One process with many calls in flight."""
    options = (*cell.pipelined, f"seconds={settings.seconds}", f"seed={settings.seed + repetition}")
    return run_pipelined(deployment, options, settings.seconds)


def run_pipelined(deployment: Deployment, options: Iterable[str], seconds: float) -> dict[str, Any]:
    """Run the pipelined client against a store; its figures. Raises CellFailed."""
    if not deployment.pipelined:
        raise CellFailed("there is no client of it with many calls in flight")
    command = [sys.executable, "-m", "madkv.bench.pipelined", *deployment.pipelined, *options]
    cpu_began = cpu_of(deployment.pids)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + PIPELINE_SECONDS_MORE)
    except subprocess.TimeoutExpired:
        raise CellFailed("the pipelined client did not come to its end") from None
    if done.returncode:
        raise CellFailed(f"the pipelined client failed: {done.stderr.strip() or done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout)
    calls = figures["calls"] + figures["keys"]  # loading is in what the servers used, too
    return {**figures, "server_cpu_us": (cpu_of(deployment.pids) - cpu_began) / max(1, calls) * 1e6}
