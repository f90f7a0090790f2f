"""Measure one store under many calls in flight on one connection: MadKV's Deferred client, or etcd's equal of it.

For each size of values, kind of call, number in flight and rate: fresh processes, fresh data, one run. Without a rate
the loop is closed, and shows what the store can do; with rates it is open, and shows what its callers would wait at
that many calls a second (see `pipeline.py`). Figures go to stdout as they come; all of them are kept in load.json, and
the tables in load.md.
"""

import argparse
import datetime
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from madkv.bench.cells import PIPELINED, CellFailed, run_pipelined
from madkv.bench.comparison import shown, table
from madkv.bench.disk import filesystem_of, sync_us, why_no_disk
from madkv.bench.machine import machine_facts
from madkv.bench.percentiles import PERCENTILES, name_of
from madkv.bench.pipelined import IN_FLIGHT_MAX, KINDS, SIZE_MAX
from madkv.bench.systems import BY_NAME, System, chosen, why_no_tls
from madkv.testing import certificates
from madkv.testing.ending import complain, run_tool
from madkv.testing.fleet import interrupt_on_terminate
from madkv.testing.options import Parser, add_shared, whole
from madkv.testing.service import ServiceError

SYSTEM, SYSTEM_WITH_TLS = "madkv-rf3", "madkv-rf3-tls"
"""Where none is named."""
SYSTEMS = ["madkv-rf1", SYSTEM_WITH_TLS, *PIPELINED]
SECONDS, QUICK_SECONDS = 20.0, 2.0
IN_FLIGHT = [1, 4, 16, 64, 256]
SIZES, QUICK_SIZES = [100, 1024, 16384, 65536], [1024]
RATED_IN_FLIGHT = 256
"""In an open loop, unless another number is given: enough not to be what calls wait for."""
HEAD = [
    "",
    "calls/s",
    *(f"{name_of(each)} ms" for each in PERCENTILES),
    "max ms",
    "unfinished",
    "started late, p99 ms",
    "CPU us, servers / client",
]

Run = dict[str, Any]


def numbers(least: int, most: int) -> Callable[[str], list[int]]:
    """What reads whole numbers with commas between them."""

    def read(text: str) -> list[int]:
        found = [whole(word) for word in text.split(",")]
        if wrong := [number for number in found if not least <= number <= most]:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {least} to {most}")
        return found

    return read


def kinds(text: str) -> list[str]:
    """What reads kinds of calls."""
    found = text.split(",")
    if unknown := [kind for kind in found if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return found


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what `quick` stands for is filled in."""
    parser = Parser(prog="./justw bench::load", description=__doc__)
    parser.add_argument("--quick", choices=("yes", "no"), default="no", help="a look, not figures (default: no)")
    parser.add_argument("--system", choices=SYSTEMS, help=f"(default: {SYSTEM}, or {SYSTEM_WITH_TLS})")
    add_shared(parser, "tls")
    parser.add_argument("--kind", type=kinds, default=list(KINDS), help="write, read, or both (the default)")
    parser.add_argument("--size", type=numbers(1, SIZE_MAX), help=f"bytes of a value (default: {SIZES})")
    parser.add_argument(
        "--in-flight",
        type=numbers(1, IN_FLIGHT_MAX),
        help=f"calls at the same time (default: {IN_FLIGHT}; with a rate at most {RATED_IN_FLIGHT})",
    )
    parser.add_argument(
        "--rate", type=numbers(1, 1_000_000), default=[0], help="calls a second of an open loop (default: a closed one)"
    )
    parser.add_argument("--seconds", type=float, help=f"of each run (default: {SECONDS:g})")
    parser.add_argument("--seed", type=whole, default=1, help="of the requests (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the store keeps its data meanwhile, on a disk (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("report/load"), help="where results go (default: %(default)s)")
    options = parser.parse_args(argv)
    is_quick = options.quick == "yes"
    with_tls = certificates.are_wanted(options)
    options.system = options.system or (SYSTEM_WITH_TLS if with_tls else SYSTEM)
    if with_tls and (why := why_no_tls([options.system])):
        parser.error(why)
    if options.seconds is None:
        options.seconds = QUICK_SECONDS if is_quick else SECONDS
    options.size = options.size or (QUICK_SIZES if is_quick else SIZES)
    options.in_flight = options.in_flight or ([RATED_IN_FLIGHT] if options.rate != [0] else IN_FLIGHT)
    if options.seconds <= 0:
        parser.error("seconds must be more than 0")
    if why := why_no_disk(options.data):
        parser.error(why)
    return options


def measure(system: System, options: argparse.Namespace, kind: str, size: int, in_flight: int, rate: int) -> Run:
    """One run. Raises CellFailed."""
    settings = {"kind": kind, "size": size, "in-flight": in_flight, "rate": rate, "seed": options.seed}
    before_us = sync_us(options.data)
    with tempfile.TemporaryDirectory(prefix=f"madkv-{system.name}-", dir=options.data) as root:
        try:
            with system.start(Path(root), False) as deployment:
                given = [f"{name}={value}" for name, value in settings.items()]
                figures = run_pipelined(deployment, [*given, f"seconds={options.seconds}"], options.seconds)
        except (OSError, ServiceError) as error:
            raise CellFailed(str(error)) from error
    return {**settings, **figures, "sync_us": before_us}


def row(run: Run) -> list[str]:
    """A run as a line of a table."""

    def milliseconds(figures: dict[str, float], name: str) -> str:
        return f"{figures[name] / 1000:.2f}" if name in figures else "–"

    latency = run["latency_us"]
    return [
        f"{run['in-flight']} in flight" + (f", {run['rate']:,} calls/s due" if run["rate"] else ""),
        shown(run["throughput"]),
        *(milliseconds(latency, name_of(each)) for each in PERCENTILES),
        milliseconds(latency, "max"),
        str(run["unfinished"]),
        milliseconds(run["started_late_us"], "p99"),
        f"{run['server_cpu_us']:.0f} / {run['client_cpu_us']:.0f}",
    ]


def document(record: dict[str, Any]) -> str:
    """All runs as Markdown."""
    quick = " **A quick look: too short to be quoted.**" if record["form"] == "quick" else ""
    parts = [
        f"# {record['title']} with many calls in flight",
        f"Made by `just bench::load` on {record['date']}; {record['seconds']:g} s each, one connection.{quick} In an "
        "open loop (calls are due at a rate) latency counts from when a call was due.",
        "\n".join(f"* {name}: {fact}" for name, fact in record["machine"].items()),
        f"* durable when acknowledged: {record['durability']}",
    ]
    for kind, size in dict.fromkeys((run["kind"], run["size"]) for run in record["runs"]):
        rows = [row(run) for run in record["runs"] if (run["kind"], run["size"]) == (kind, size)]
        parts += [f"## {kind.capitalize()}s, values of {size:,} bytes", table(HEAD, rows)]
    return "\n\n".join(parts) + "\n"


def save(record: dict[str, Any], out: Path) -> None:
    """Keep the figures and the tables."""
    for name, text in (("load.json", json.dumps(record, indent=1) + "\n"), ("load.md", document(record))):
        scratch = out / f"{name}.new"
        scratch.write_text(text)
        scratch.replace(out / name)


def load(options: argparse.Namespace) -> int:
    """All runs; the exit status."""
    there, skipped = chosen([options.system])
    if not there:
        complain(f"madkv load: {options.system}: {skipped[options.system]}")
        return 1
    system = BY_NAME[options.system]
    options.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "form": "quick" if options.quick == "yes" else "full",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "title": system.title,
        "durability": system.durability,
        "version": system.version(),
        "seconds": options.seconds,
        "machine": {**machine_facts(), "niceness": str(os.nice(0)), "file system": filesystem_of(options.data)},
        "runs": [],
    }
    status = 0
    for settings in product(options.kind, options.size, options.in_flight, options.rate):
        kind, size, _, _ = settings
        try:
            run = measure(system, options, *settings)
        except CellFailed as error:
            print(f"{kind} {size} B: FAILED: {error}", flush=True)
            status = 1
            continue
        record["runs"].append(run)
        cells = [f"{name} {cell}" for name, cell in zip(HEAD[1:], row(run)[1:], strict=True)]
        print(f"{kind} {size} B, {row(run)[0]}: {', '.join(cells)}", flush=True)
        save(record, options.out)
    print(f"{options.out}/load.md, load.json", flush=True)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = parse_arguments(argv)
    interrupt_on_terminate()
    return load(options)


if __name__ == "__main__":
    run_tool("madkv load", main)
