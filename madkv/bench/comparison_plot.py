"""The plot of a comparison: calls a second and the 99th percentile of YCSB, and beside them what other cells tell."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from madkv.bench.cells import Cell
from madkv.bench.comparison import Record, Run, latency, measured_cells, median_of, runs_of, throughput
from madkv.bench.plots import DOTS_PER_INCH, STYLE, bars

WIDTH_INCHES, HEIGHT_INCHES = 13.0, 8.4
YCSB_SHARE, OTHERS_SHARE = 3, 1

Heights = Mapping[str, Mapping[str, float]]
"""By store and place on the x axis."""


def draw(record: Record, path: Path) -> None:
    """Write the plot as PNG."""
    cells = measured_cells(record)
    ycsb = [cell for cell in cells if not cell.pipelined and not cell.by_latency]
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        FigureCanvasAgg(canvas)
        form = " (a quick look)" if record["form"] == "quick" else ""
        canvas.suptitle(f"MadKV beside others, medians{form}")
        grid = canvas.subplots(2, 2, width_ratios=[YCSB_SHARE, OTHERS_SHARE])
        clients = f"YCSB, {record['settings']['clients']} clients"
        panel(grid[0][0], f"{clients}: calls a second", *heights(record, ycsb, throughput), count)
        panel(grid[1][0], f"{clients}: 99th percentile, ms", *heights(record, ycsb, latency("p99"), 1000))
        pipelined = [cell for cell in cells if cell.pipelined]
        panel(grid[0][1], "calls a second", *heights(record, pipelined, throughput), count)
        single = [cell for cell in cells if cell.by_latency]
        panel(grid[1][1], "median, us", *heights(record, single, latency("p50")), count)
        legend: dict[str, Artist] = {}
        for axes in canvas.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                legend.setdefault(label, handle)
        canvas.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=4, frameon=False)
        canvas.savefig(path, dpi=DOTS_PER_INCH)


def count(value: float) -> str:
    """A number above its bar."""
    return f"{value:,.0f}"


def panel(
    axes: Axes, title: str, places: Sequence[str], groups: Heights, number: Callable[[float], str] | None = None
) -> None:
    """One of the four; without its axes when it would be empty."""
    axes.set_title(title)
    shown = [height for group in groups.values() for height in group.values()]
    if not shown:
        axes.set_axis_off()
        axes.set_title("")
        return
    bars(axes, places, groups, number=number, has_legend=False)
    if number is None:
        axes.set_ylim(bottom=min(shown) / 2, top=max(shown) * 1.5)
        axes.set_yscale("log")


def heights(
    record: Record, cells: Sequence[Cell], figure: Callable[[Run], float | None], unit: float = 1
) -> tuple[list[str], Heights]:
    """The places on the x axis, and what each store has at them; one without any keeps its colour for other panels."""
    places = [cell.title.removeprefix("YCSB ") for cell in cells]
    found: dict[str, dict[str, float]] = {}
    for name, system in record["systems"].items():
        medians = [median_of(runs_of(record, name, cell.name), figure) for cell in cells]
        found[system["title"]] = {
            place: middle / unit for place, middle in zip(places, medians, strict=True) if middle is not None
        }
    return places, found
