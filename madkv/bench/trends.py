"""Sentences about the figures, made from the figures, so that they are true of every report."""

from collections.abc import Mapping
from typing import Literal

from madkv.bench.plots import Points, points_of, worst_p99_us
from madkv.bench.projects import Figure, Result

KIND_NAMES = {"INSERT": "an insert", "READ": "a read", "UPDATE": "an update", "SCAN": "a scan"}
SAME_PERCENT = 10
"""Differences below this are called none: repeated runs differ by as much."""


def trend(figure: Figure, results: Mapping[str, Result]) -> str:
    """One paragraph, or a list, about the figure."""
    match figure.form:
        case "workloads":
            return _workloads(figure, results)
        case "throughput":
            return _by_series(figure, results, "throughput")
        case "latency":
            return _by_series(figure, results, "latency")


def _by_series(figure: Figure, results: Mapping[str, Result], what: Literal["throughput", "latency"]) -> str:
    sentence = _throughput if what == "throughput" else _latency
    lines = [
        f"* **{series.label}**: {sentence(points)}"
        for series in figure.series
        if len(points := points_of(series, results)) > 1
    ]
    return "\n".join(lines) or "*Too few results to compare.*"


def _throughput(points: Points) -> str:
    first_x, first = points[0]
    last_x, last = points[-1]
    best_x, best = max(points, key=lambda point: point[1].throughput)
    enough_x = next(x for x, run in points if run.throughput >= best.throughput * (1 - SAME_PERCENT / 100))
    text = f"{first.throughput:,.0f} calls a second with {_clients(first_x)}; "
    if best_x == first_x:
        text += "more clients never make it more"
    else:
        gain = best.throughput / first.throughput
        text += f"the most, {best.throughput:,.0f} ({gain:.1f} times as many), with {best_x}"
    if enough_x not in (best_x, first_x):
        text += f", though {enough_x} clients already reach that within {SAME_PERCENT} %"
    elif enough_x == first_x and best_x != first_x:
        text += f", which is within {SAME_PERCENT} % of where it began"
    change = (last.throughput / best.throughput - 1) * 100
    if last_x != best_x:
        held = change > -SAME_PERCENT
        text += (
            f". With {last_x} it " + ("holds" if held else "falls to") + f" {last.throughput:,.0f} ({change:+.0f} %)"
        )
    return text + "."


def _latency(points: Points) -> str:
    first_x, first = points[0]
    last_x, last = points[-1]
    text = (
        f"a call takes {_us(first.mean_us)} on average with {_clients(first_x)} and {_us(last.mean_us)} with {last_x},"
        f" {last.mean_us / first.mean_us:.0f} times as long"
    )
    text += "; the 99th percentile, of whichever kind of call is slower, goes "
    text += f"from {_us(worst_p99_us(first))} to {_us(worst_p99_us(last))}"
    waiting = last.throughput * last.mean_us / 1e6
    text += (
        f". In a closed loop clients = throughput x latency: {last.throughput:,.0f} a second times"
        f" {_us(last.mean_us)} is {waiting:.1f} of {last_x} clients awaiting an answer at any time"
    )
    return text + "."


def _compared(figure: Figure, results: Mapping[str, Result]) -> str:
    """Of several series over the same workloads: how each of the later ones compares with the first."""
    first, *others = [(each.label, dict(points_of(each, results))) for each in figure.series]
    lines = []
    for label, points in others:
        ratios = {x: run.throughput / first[1][x].throughput for x, run in points.items() if x in first[1]}
        if not ratios:
            continue
        listed = [f"{x} {ratio:.2f}" for x, ratio in ratios.items()]
        least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
        text = f"* **{label}**, calls a second as a multiple of those with {first[0]}: {_listed(listed)}"
        if len(ratios) > 1:
            text += f"; {least} has the least of it, {most} the most"
        lines.append(text + ".")
    return "\n".join(lines) or "*Too few results to compare.*"


def _workloads(figure: Figure, results: Mapping[str, Result]) -> str:
    if len(figure.series) > 1:
        return _compared(figure, results)
    points = points_of(figure.series[0], results)
    if len(points) < 2:
        return "*Too few results to compare.*"
    fastest_x, fastest = max(points, key=lambda point: point[1].throughput)
    slowest_x, slowest = min(points, key=lambda point: point[1].throughput)
    lines = [
        f"{figure.series[0].label}: workload {fastest_x} runs fastest with {fastest.throughput:,.0f} calls a second,"
        f" {slowest_x} slowest with {slowest.throughput:,.0f}."
    ]
    means: dict[str, list[float]] = {}
    for _, run in points:
        for kind, latency in run.latencies.items():
            means.setdefault(kind, []).append(latency.mean_us)
    spans = []
    for kind, name in KIND_NAMES.items():
        if kind in means:
            low, high = min(means[kind]), max(means[kind])
            spans.append(f"{name} {_us(low)}" + (f" to {_us(high)}" if high > low * 1.02 else ""))
    lines.append(f"On average, over the workloads that have it, {_listed(spans)}.")
    if "SCAN" in means and "READ" in means:
        ratio = min(means["SCAN"]) / (sum(means["READ"]) / len(means["READ"]))
        lines.append(
            f"A scan takes {ratio:.1f} times as long as a read, and answers up to a hundred records (about fifty on"
            " average) where a read answers one."
        )
    return "\n".join(lines)


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _clients(count: str) -> str:
    return "one client" if count == "1" else f"{count} clients"


def _us(microseconds: float) -> str:
    return f"{microseconds:.0f} us" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"
