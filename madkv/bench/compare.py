"""Measure MadKV beside the stores that one would pick instead: the same work, the same driver, everything on the disk.

Each cell of the comparison is one store and one kind of work, with fresh processes and fresh data. The stores take
turns, in another order each time, so that whatever else happens on the machine meets them all. After each cell all
figures are kept in compare.json; compare.md and compare.png are made from it at the end, also of an interrupted run.
"""

import argparse
import datetime
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from madkv.bench.cells import CELLS_BY_NAME, Cell, CellFailed, Settings, measure
from madkv.bench.comparison import Record, document, figure_of, shown
from madkv.bench.comparison_plot import draw
from madkv.bench.disk import filesystem_of, why_no_disk
from madkv.bench.machine import machine_facts
from madkv.bench.systems import BY_NAME, DEFAULTS, System, chosen, why_no_tls
from madkv.testing import certificates
from madkv.testing.ending import complain, run_tool
from madkv.testing.fleet import CLIENTS_MAX, interrupt_on_terminate
from madkv.testing.options import Parser, add_shared, whole

SECONDS, QUICK_SECONDS = 20.0, 2.0
LOAD_SECONDS, QUICK_LOAD_SECONDS = 60.0, 5.0
RECORDS, QUICK_RECORDS = 10_000, 1000
REPEATS, QUICK_REPEATS = 5, 1


def in_turn(systems: Sequence[System], cells: Sequence[Cell], repeats: int) -> Iterator[tuple[int, Cell, System]]:
    """Every run, in order: within a repetition all cells, within a cell all stores, each time another one first."""
    for repetition in range(repeats):
        for cell in cells:
            for place in range(len(systems)):
                system = systems[(place + repetition) % len(systems)]
                if cell.suits(system):
                    yield repetition, cell, system


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """What reads a list of names with commas between them."""

    def read(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not known; there are {', '.join(known)}")
        if not found:
            raise argparse.ArgumentTypeError("none is named")
        return found

    return read


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what `quick` stands for is filled in."""
    parser = Parser(prog="./justw bench::compare", description=__doc__)
    parser.add_argument("--quick", choices=("yes", "no"), default="no", help="a look, not figures (default: no)")
    parser.add_argument(
        "--systems",
        type=names(list(BY_NAME)),
        default=DEFAULTS,
        help=f"of {','.join(BY_NAME)} (default: %(default)s)",
    )
    parser.add_argument(
        "--cells",
        type=names(list(CELLS_BY_NAME)),
        default=list(CELLS_BY_NAME),
        help=f"of {','.join(CELLS_BY_NAME)} (default: all)",
    )
    parser.add_argument("--repeats", type=whole, help=f"runs of each cell (default: {REPEATS})")
    parser.add_argument("--seconds", type=float, help=f"of each run phase (default: {SECONDS:g})")
    parser.add_argument("--load-seconds", type=float, help=f"of each load phase, at most (default: {LOAD_SECONDS:g})")
    parser.add_argument("--records", type=whole, help=f"to load (default: {RECORDS})")
    parser.add_argument("--clients", type=whole, default=10, help="in YCSB cells (default: %(default)s)")
    parser.add_argument("--seed", type=whole, default=1, help="of the requests (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the stores keep their data meanwhile, on a disk (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report/compare"), help="where results go (default: %(default)s)"
    )
    add_shared(parser, "tls")
    options = parser.parse_args(argv)
    if certificates.are_wanted(options) and (why := why_no_tls(options.systems)):
        parser.error(why)
    is_quick = options.quick == "yes"
    for name, full, quick in (
        ("repeats", REPEATS, QUICK_REPEATS),
        ("seconds", SECONDS, QUICK_SECONDS),
        ("load_seconds", LOAD_SECONDS, QUICK_LOAD_SECONDS),
        ("records", RECORDS, QUICK_RECORDS),
    ):
        if getattr(options, name) is None:
            setattr(options, name, quick if is_quick else full)
        if getattr(options, name) <= 0:
            parser.error(f"{name.replace('_', '-')} must be more than 0")
    if not 1 <= options.clients <= CLIENTS_MAX:
        parser.error(f"clients must be 1 to {CLIENTS_MAX}")
    if why := why_no_disk(options.data):
        parser.error(why)
    return options


def begun(
    options: argparse.Namespace, settings: Settings, systems: Sequence[System], skipped: dict[str, str]
) -> Record:
    """The record of a comparison that has not measured anything yet."""
    return {
        "form": "quick" if options.quick == "yes" else "full",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {**machine_facts(), "niceness": str(os.nice(0)), "file system": filesystem_of(options.data)},
        "settings": {**attrs.asdict(settings), "data": str(settings.data), "repeats": options.repeats},
        "systems": {
            system.name: {
                "title": system.title,
                "version": system.version(),
                "durability": system.durability,
                "remarks": system.remarks,
            }
            for system in systems
        },
        "skipped": skipped,
        "failed": [],
        "runs": [],
    }


def save(record: Record, out: Path) -> None:
    """Keep all figures; never half of them."""
    scratch = out / "compare.json.new"
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    scratch.replace(out / "compare.json")


def compare(options: argparse.Namespace) -> int:
    """All of it; the exit status."""
    systems, skipped = chosen(options.systems)
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}", flush=True)
    settings = Settings(
        options.seconds, options.load_seconds, options.records, options.clients, options.data, options.seed
    )
    todo = list(in_turn(systems, [CELLS_BY_NAME[name] for name in options.cells], options.repeats))
    if not todo:
        complain("madkv compare: none of these stores takes part in any of these cells")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    record = begun(options, settings, systems, skipped)
    print(f"{len(todo)} runs of {settings.seconds:g} s, and some seconds each to start and load", flush=True)
    status = 0
    try:
        for number, (repetition, cell, system) in enumerate(todo, 1):
            where = f"[{number} of {len(todo)}] {cell.name:<10} {system.name:<18}"
            try:
                run = measure(system, cell, repetition, settings)
            except CellFailed as error:
                record["failed"].append(str(error))
                status = 1
                print(f"{where} FAILED: {error}", flush=True)
            else:
                record["runs"].append(run)
                unit = "us" if cell.by_latency else "calls/s"
                print(f"{where} {shown(figure_of(cell)(run)):>8} {unit}", flush=True)
            save(record, options.out)
    except KeyboardInterrupt:
        complain("madkv compare: interrupted; what was measured is kept")
        status = 130
    if record["runs"]:
        (options.out / "compare.md").write_text(document(record))
        draw(record, options.out / "compare.png")
        print(f"{options.out}/compare.md, compare.png, compare.json", flush=True)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = parse_arguments(argv)
    interrupt_on_terminate()
    return compare(options)


if __name__ == "__main__":
    run_tool("madkv compare", main)
