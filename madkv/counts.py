"""What a daemon counts of its own work: plain lists, which cost next to nothing to add to. Pure."""

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
"""Bounds for how long calls and commits take."""
ENTRIES = tuple(2**power for power in range(12))
"""Bounds for how many entries go together."""


class Histogram:
    """How many values there were up to each of some ascending bounds, above them all, and their sum.

    One thread at a time may add; any may read, and then sees each list as it is at some moment.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Below what about this share of the values were, as if they were spread evenly between two bounds; None without
    any. Above the last bound nothing is known but that bound."""
    rank = share * sum(counts)
    below = 0
    for at, count in enumerate(counts):
        if count and below + count >= rank:
            if at == len(bounds):
                break
            low = bounds[at - 1] if at else 0.0
            return low + (bounds[at] - low) * (rank - below) / count
        below += count
    return bounds[-1] if below or any(counts) else None
