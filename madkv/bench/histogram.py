"""Latencies of many calls in bounded memory: an HDR histogram, and beside it what can be kept exactly.

HDR histograms merge without loss, so the percentiles of many clients are those of all their calls together. Their own
minimum, maximum and mean are only as exact as a bucket is narrow; those are kept here to the last nanosecond.
"""

from typing import Self

from hdrh.histogram import HdrHistogram

LATENCY_NS_MAX = 24 * 3600 * 10**9
"""A call that took longer is counted as this long in the percentiles; the exact figures are not affected."""
SIGNIFICANT_DIGITS = 3


class Latencies:
    """What calls of one kind took, in nanoseconds."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS)
        self.count = 0
        self.sum_ns = 0
        self.min_ns = 0
        self.max_ns = 0

    def record(self, latency_ns: int) -> None:
        """One call more."""
        if latency_ns < 0:
            raise ValueError(f"a call cannot have taken {latency_ns} ns")
        self._histogram.record_value(min(latency_ns, LATENCY_NS_MAX))
        self.min_ns = min(self.min_ns, latency_ns) if self.count else latency_ns
        self.max_ns = max(self.max_ns, latency_ns)
        self.count += 1
        self.sum_ns += latency_ns

    def merge(self, other: Self) -> None:
        """Every call of `other` too, as if each had been recorded here."""
        if not other.count:
            return
        self._histogram.add(other._histogram)
        self.min_ns = min(self.min_ns, other.min_ns) if self.count else other.min_ns
        self.max_ns = max(self.max_ns, other.max_ns)
        self.count += other.count
        self.sum_ns += other.sum_ns

    @property
    def mean_ns(self) -> float:
        """The exact mean; 0 when nothing was recorded."""
        return self.sum_ns / self.count if self.count else 0.0

    def percentile_ns(self, percentile: float) -> int:
        """The call whose rank is nearest to `percentile` percent of all, to three digits; within the exact extremes."""
        if not self.count:
            return 0
        value = int(self._histogram.get_value_at_percentile(percentile))
        return max(self.min_ns, min(self.max_ns, value))
