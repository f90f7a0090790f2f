"""A comparison as a document: medians, ratios and spreads of its runs, in Markdown.

`Record` is what is kept as JSON: the machine, the settings, what each store is, and every run with all its figures. All
that is printed is made from it, so that a table can always be made again.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from madkv.bench.cells import CELLS, Cell

Record = dict[str, Any]
Run = Mapping[str, Any]
BASELINE = "madkv-rf3"
OWN_BASELINE = {"redis": "madkv-rf1"}
"""What a peer is held against, where that is not BASELINE: a store on one disk against one on one disk."""
NONE = "–"


def median_of(runs: Sequence[Run], figure: Callable[[Run], float | None]) -> float | None:
    """The median of a figure over the runs that have it; None when none has."""
    values = [value for run in runs if (value := figure(run)) is not None]
    return statistics.median(values) if values else None


def spread_of(runs: Sequence[Run], figure: Callable[[Run], float | None]) -> float | None:
    """How far apart the least and the greatest are, as a share of the median; None for fewer than two."""
    values = [value for run in runs if (value := figure(run)) is not None]
    middle = statistics.median(values) if values else 0
    return (max(values) - min(values)) / middle if len(values) > 1 and middle else None


def throughput(run: Run) -> float | None:
    """Calls a second."""
    value: float | None = run.get("throughput")
    return value


def load_throughput(run: Run) -> float | None:
    """Calls a second of the load phase."""
    value: float | None = run.get("load", {}).get("throughput")
    return value


def latency(name: str) -> Callable[[Run], float | None]:
    """A percentile of all calls, in microseconds."""
    return lambda run: run.get("latency_us", {}).get(name)


def figure_of(cell: Cell) -> Callable[[Run], float | None]:
    """What a cell is judged by."""
    return latency("p50") if cell.by_latency else throughput


def runs_of(record: Record, system: str, cell: str) -> list[Run]:
    """The runs of one store and cell."""
    return [run for run in record["runs"] if (run["system"], run["cell"]) == (system, cell)]


def cpu(who: str) -> Callable[[Run], float | None]:
    """CPU of the `server` processes or the `client`, in microseconds a call."""
    return lambda run: run.get(f"{who}_cpu_us")


def shown(value: float | None) -> str:
    """A figure for people."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(own: float | None, other: float | None) -> str:
    """How many times the other's."""
    return f"{own / other:.2f}x" if own and other else NONE


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured_cells(record: Record) -> list[Cell]:
    """The cells that have runs, in order."""
    names = {run["cell"] for run in record["runs"]}
    return [cell for cell in CELLS if cell.name in names]


def by_system(record: Record, value: Callable[[str, Cell], str]) -> tuple[list[str], list[list[str]]]:
    """A head and rows: a row for each cell, a column for each store."""
    systems = list(record["systems"])
    titles = [record["systems"][name]["title"] for name in systems]
    rows = [[title_of(cell, record), *(value(name, cell) for name in systems)] for cell in measured_cells(record)]
    return ["", *titles], rows


def title_of(cell: Cell, record: Record) -> str:
    """The name of a row."""
    if cell.pipelined or cell.clients:
        return cell.title
    clients = record["settings"]["clients"]
    return f"{cell.title}, {clients} client{'s' if clients > 1 else ''}"


def main_table(record: Record) -> str:
    """Medians: calls a second, and where a cell is judged by latency, that."""

    def value(system: str, cell: Cell) -> str:
        middle = median_of(runs_of(record, system, cell.name), figure_of(cell))
        return shown(middle) + (" us" if cell.by_latency and middle is not None else "")

    head, rows = by_system(record, value)
    loads = [median_of(runs_of(record, name, "a"), load_throughput) for name in record["systems"]]
    if any(each is not None for each in loads):
        rows.insert(0, [f"YCSB load (of A), {record['settings']['clients']} clients", *map(shown, loads)])
    return table(head, rows)


def ratio_table(record: Record) -> str:
    """MadKV's median over each peer's."""

    def value(system: str, cell: Cell) -> str:
        base = OWN_BASELINE.get(system, BASELINE)
        if system.startswith("madkv-"):
            return NONE if system == base else ratio(*medians(base, system, cell))
        return ratio(*medians(base, system, cell))

    def medians(base: str, system: str, cell: Cell) -> tuple[float | None, float | None]:
        own, other = (median_of(runs_of(record, name, cell.name), figure_of(cell)) for name in (base, system))
        return own, other

    head, rows = by_system(record, value)
    head = [
        f"{title} ({record['systems'][OWN_BASELINE[name]]['title']})"
        if name in OWN_BASELINE and OWN_BASELINE[name] in record["systems"]
        else title
        for name, title in zip(["", *record["systems"]], head, strict=True)
    ]
    return table(head, rows)


def latency_table(record: Record) -> str:
    """Median and 99th percentile of all calls, in milliseconds."""

    def value(system: str, cell: Cell) -> str:
        runs = runs_of(record, system, cell.name)
        both = [median_of(runs, latency(name)) for name in ("p50", "p99")]
        return " / ".join(NONE if each is None else f"{each / 1000:.2f}" for each in both)

    return table(*by_system(record, value))


def cpu_table(record: Record) -> str:
    """CPU of all server processes together and of the client, in microseconds a call."""

    def value(system: str, cell: Cell) -> str:
        runs = runs_of(record, system, cell.name)
        both = [median_of(runs, cpu(who)) for who in ("server", "client")]
        return " / ".join(map(shown, both))

    return table(*by_system(record, value))


def spread_table(record: Record) -> str:
    """How many runs there are, and how far they lie apart."""

    def value(system: str, cell: Cell) -> str:
        runs = runs_of(record, system, cell.name)
        apart = spread_of(runs, figure_of(cell))
        return NONE if not runs else f"{len(runs)}" if apart is None else f"{len(runs)}, {apart:.0%}"

    return table(*by_system(record, value))


def document(record: Record) -> str:
    """The whole comparison in Markdown; `compare.png` is beside it."""
    settings = record["settings"]
    systems = [
        [each["title"], each["version"], each["durability"], each["remarks"]] for each in record["systems"].values()
    ]
    quick = " **A quick look: too short to be quoted.**" if record["form"] == "quick" else ""
    lines = [
        "# MadKV beside others",
        f"Made by `just bench::compare` on {record['date']}.{quick} Each figure is a median of runs with fresh "
        f"processes and fresh data, {settings['seconds']:g} s each, the stores in turn; YCSB with "
        f"{settings['records']:,} records and {settings['clients']} clients, each a process on a pipe that makes one "
        "call at a time. Every answer was checked. Everything runs on this one machine:",
        "\n".join(f"* {name}: {fact}" for name, fact in [*record["machine"].items(), synced(record)]),
        "## The stores",
        table(["", "version", "durable when acknowledged", "settings and clients"], systems),
        *[f"* {name} was left out: {why}" for name, why in record["skipped"].items()],
        *[f"* failed: {why}" for why in record["failed"]],
        "## Calls a second (for Put with 1 client: median latency)",
        main_table(record),
        "## MadKV, rf 3, over each (Redis: rf 1)",
        "Throughput over throughput; for Put with 1 client latency over latency, where less is better. The "
        "pipelined rows are one connection and values of 1 KiB.",
        ratio_table(record),
        *floor_lines(record),
        "## Latency of all calls, median / 99th percentile, ms",
        latency_table(record),
        "## CPU a call, all server processes / client, us",
        "In the pipelined rows the servers' share is over loading and measuring together.",
        cpu_table(record),
        "## Runs, and how far the least and the greatest lie apart, in parts of the median",
        spread_table(record),
        *cut_short(record),
        "![calls a second](compare.png)",
    ]
    return "\n\n".join(lines) + "\n"


def synced(record: Record) -> tuple[str, str]:
    """What a sync cost before each run: where that varies much, so do the figures, and others used the disk."""
    took = [run["sync_us"] for run in record["runs"]]
    return "append and sync 1 KiB", f"{statistics.median(took):,.0f} us ({min(took):,.0f} to {max(took):,.0f})"


def floor_lines(record: Record) -> list[str]:
    """What the floor's own clock says."""
    inside = median_of(runs_of(record, "floor", "put-1"), lambda run: run.get("inside_p50_us"))
    if inside is None:
        return []
    return [f"The floor's Put takes {inside:,.0f} us inside its leader, without the client and its socket (median)."]


def cut_short(record: Record) -> list[str]:
    """Who had not loaded all records when the time for loading was over."""
    wanted = record["settings"]["records"]
    cells = {cell.name for cell in CELLS if not cell.pipelined and "recordcount" not in cell.properties}
    found: dict[str, int] = {}
    for run in record["runs"]:
        if run["cell"] in cells and run["records"] < wanted:
            found[run["system"]] = min(found.get(run["system"], wanted), run["records"])
    return [
        f"{record['systems'][name]['title']} had loaded only {least:,} records (the fewest) when its time was over."
        for name, least in found.items()
    ]
