"""The report's plots, drawn so that they can be read without colour.

Lines differ in marker and dashes and carry their name at their end; bars differ in hatching. Whatever has no result yet
is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullLocator

from madkv.bench.projects import Figure, Result, Series
from madkv.bench.results import KINDS, Phase

DOTS_PER_INCH = 160
WIDTH_INCHES = 9.0
COLOURS = ("#0b3c5d", "#b5651d", "#4c8c4a", "#7a3b69", "#888888", "#c2a300", "#c0392b", "#2a9d8f")
"""Dark to light in grey as well."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (9, 3)))
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++", "oo", "--")
LABEL_SHARE = 0.03
"""How much of the x axis is left free at its end, for the names of the lines."""
LEGEND_POINTS = 27.0
"""Left free for a legend between the axes and their title."""
LABEL_GAP = 0.055
"""What lies at least between the heights of two of these names, as a share of the y axis."""
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "hatch.linewidth": 0.7,
}

Points = list[tuple[str, Phase]]


def points_of(series: Series, results: Mapping[str, Result]) -> Points:
    """What is known of a series: its places on the x axis and the run phase at each."""
    return [(x, results[each.name].run) for x, each in series.points if each.name in results]


def draw(figure: Figure, results: Mapping[str, Result], directory: Path) -> bool:
    """Write the figure to `directory` as PNG; False, and nothing written, when it would be empty."""
    with matplotlib.rc_context(STYLE):
        canvas = compose(figure, results)
        if canvas is None:
            return False
        canvas.savefig(directory / f"{figure.name}.png", dpi=DOTS_PER_INCH)
    return True


def compose(figure: Figure, results: Mapping[str, Result]) -> Canvas | None:
    """The figure with all that is known; None when it would be empty."""
    series = [(each.label, points_of(each, results)) for each in figure.series]
    if not any(points for _, points in series):
        return None
    forms: dict[str, Callable[[Canvas, Figure, Sequence[tuple[str, Points]]], None]] = {
        "workloads": draw_workloads,
        "throughput": draw_throughput,
        "latency": draw_latency,
    }
    canvas = Canvas(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.suptitle(figure.title)
    forms[figure.form](canvas, figure, series)
    return canvas


def draw_workloads(canvas: Canvas, figure: Figure, series: Sequence[tuple[str, Points]]) -> None:
    """Throughput by workload on the left; on the right latency, by kind of call if there is but one series."""
    left, right = canvas.subplots(1, 2)
    places = [x for x, _ in figure.series[0].points]
    throughputs = {label: {x: run.throughput for x, run in points} for label, points in series}
    bars(left, places, throughputs, number=lambda value: f"{value:,.0f}")
    left.set_title("Throughput", pad=LEGEND_POINTS)
    left.set(xlabel=figure.x_label, ylabel="calls a second")
    if len(series) == 1:
        runs = series[0][1]
        kinds = [kind for kind in KINDS if any(kind in run.latencies for _, run in runs)]
        by_kind = {
            kind: {x: run.latencies[kind].mean_us / 1000 for x, run in runs if kind in run.latencies} for kind in kinds
        }
        worst = {
            kind: {x: run.latencies[kind].p99_us / 1000 for x, run in runs if kind in run.latencies} for kind in kinds
        }
        bars(right, places, by_kind, whiskers=worst)
        right.set_title("Latency: average (bar), 99th percentile (tick)", pad=LEGEND_POINTS)
    else:
        means = {label: {x: run.mean_us / 1000 for x, run in points} for label, points in series}
        bars(right, places, means)
        right.set_title("Latency, average over all calls", pad=LEGEND_POINTS)
    right.set(xlabel=figure.x_label, ylabel="milliseconds")


def draw_throughput(canvas: Canvas, figure: Figure, series: Sequence[tuple[str, Points]]) -> None:
    """One line a series."""
    axes = canvas.subplots()
    _lines(axes, [(label, [(float(x), run.throughput) for x, run in points]) for label, points in series])
    axes.set(xlabel=figure.x_label, ylabel="calls a second")


def draw_latency(canvas: Canvas, figure: Figure, series: Sequence[tuple[str, Points]]) -> None:
    """The average on the left, the 99th percentile of the slowest kind of call on the right."""
    left, right = canvas.subplots(1, 2)
    means = [(label, [(float(x), run.mean_us / 1000) for x, run in points]) for label, points in series]
    worst = [(label, [(float(x), worst_p99_us(run) / 1000) for x, run in points]) for label, points in series]
    for axes, lines in ((left, means), (right, worst)):
        axes.set_yscale("log")
        _lines(axes, lines)
    left.set(title="Average over all calls", xlabel=figure.x_label, ylabel="milliseconds")
    right.set(title="99th percentile of the slower kind of call", xlabel=figure.x_label, ylabel="milliseconds")


def worst_p99_us(run: Phase) -> int:
    """The 99th percentile of the kind of call whose one is the highest. (Percentiles of kinds cannot be averaged.)"""
    return max(each.p99_us for each in run.latencies.values())


def _lines(axes: Axes, lines: Sequence[tuple[str, list[tuple[float, float]]]]) -> None:
    ends = []
    for number, (label, points) in enumerate(lines):
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        axes.plot(
            xs,
            ys,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=DASHES[number % len(DASHES)],
            markerfacecolor="white" if number % 2 else None,
            markersize=6,
            linewidth=1.6,
        )
        ends.append((ys[-1], xs[-1], label, COLOURS[number % len(COLOURS)]))
    is_log = axes.get_yscale() == "log"
    if is_log:
        heights = [y for _, points in lines for _, y in points]
        axes.set_ylim(bottom=min(heights) / 1.5, top=max(heights) * 1.8)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.05)
    axes.set_xlim(right=axes.get_xlim()[1] + LABEL_SHARE * (axes.get_xlim()[1] - axes.get_xlim()[0]))
    axes.set_xticks(sorted({x for _, points in lines for x, _ in points}))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}")
    # Names at the ends of the lines, pushed apart where they would lie on one another; heights are shares of the axis.
    to_share = axes.transScale.transform
    (_, bottom), (_, top) = to_share([(1, each) for each in axes.get_ylim()])
    lowest = -1.0
    for y, x, label, colour in sorted(ends):
        lowest = max((to_share((1, y))[1] - bottom) / (top - bottom), lowest + LABEL_GAP)
        axes.annotate(
            label,
            (x, lowest),
            xycoords=("data", "axes fraction"),
            xytext=(9, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=colour,
            fontweight="bold",
        )


def bars(
    axes: Axes,
    places: Sequence[str],
    groups: Mapping[str, Mapping[str, float]],
    whiskers: Mapping[str, Mapping[str, float]] | None = None,
    number: Callable[[float], str] | None = None,
    has_legend: bool = True,
) -> None:
    """Bars side by side at each place: only those that exist there, centred on it."""
    width = 0.8 / max(1, max(sum(place in group for group in groups.values()) for place in places))
    labelled: set[str] = set()
    for at, place in enumerate(places):
        here = [(order, name) for order, name in enumerate(groups) if place in groups[name]]
        for slot, (order, name) in enumerate(here):
            x = at + (slot - (len(here) - 1) / 2) * width
            height = groups[name][place]
            axes.bar(
                x,
                height,
                width * 0.88,
                color="white",
                edgecolor=COLOURS[order % len(COLOURS)],
                hatch=HATCHES[order % len(HATCHES)],
                linewidth=1.2,
                label=None if name in labelled else name,
            )
            labelled.add(name)
            if whiskers is not None:
                top = whiskers[name][place]
                axes.plot([x, x], [height, top], color="black", linewidth=0.8)
                axes.plot([x], [top], color="black", marker="_", markersize=9)
            if number is not None:
                # Upright beside its neighbours' numbers, which are as wide as several bars.
                rotation = 90 if len(groups) > 1 else 0
                axes.annotate(
                    number(height),
                    (x, height),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=8,
                    rotation=rotation,
                )
    axes.set_xticks(range(len(places)), labels=list(places))
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * (1.12 if number is not None and len(groups) > 1 else 1.05))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}")
    if len(groups) > 1 and has_legend:
        handles, labels = axes.get_legend_handles_labels()
        in_order = sorted(zip(labels, handles, strict=True), key=lambda each: list(groups).index(each[0]))
        # Above the axes and below their title: inside it would hide bars.
        axes.legend(
            [handle for _, handle in in_order],
            [label for label, _ in in_order],
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            borderaxespad=0.3,
            ncols=len(in_order),
            columnspacing=1.2,
            handlelength=1.6,
            frameon=False,
        )
