"""Latencies of one run as a few figures, in microseconds."""

from collections.abc import Iterable, Sequence
from math import ceil

from madkv.bench.histogram import Latencies

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
Summary = dict[str, float]
"""`p50`, `p90`, `p99`, `p99.9`, `mean` and `max`, in microseconds; empty when there was no call."""


def name_of(percentile: float) -> str:
    """`p50`, `p99.9`."""
    return f"p{percentile:g}"


def summary_of(latencies: Latencies) -> Summary:
    """The figures of a histogram."""
    if not latencies.count:
        return {}
    figures = {name_of(each): latencies.percentile_ns(each) / 1000 for each in PERCENTILES}
    return {**figures, "mean": latencies.mean_ns / 1000, "max": latencies.max_ns / 1000}


def exact_summary(nanoseconds: Iterable[int]) -> Summary:
    """The figures of single latencies: each percentile is one of them, that of the nearest rank from above."""
    ordered = sorted(nanoseconds)
    if not ordered:
        return {}
    figures = {name_of(each): ranked(ordered, each) / 1000 for each in PERCENTILES}
    return {**figures, "mean": sum(ordered) / len(ordered) / 1000, "max": ordered[-1] / 1000}


def ranked(ordered: Sequence[int], percentile: float) -> int:
    """The smallest of these sorted numbers that at least `percentile` percent of them do not exceed."""
    # Rounded first: 99.9 percent of 1,000 is 999, and not what floating point makes of it.
    return ordered[max(1, ceil(round(len(ordered) * percentile / 100, 6))) - 1]


def together(latencies: Iterable[Latencies]) -> Latencies:
    """All of these in one."""
    whole = Latencies()
    for each in latencies:
        whole.merge(each)
    return whole
