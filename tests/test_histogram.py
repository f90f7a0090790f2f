"""Latencies: exact where they can be, close where they cannot, and merged without loss."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkv.bench.histogram import LATENCY_NS_MAX, Latencies

LATENCIES = st.lists(st.integers(0, LATENCY_NS_MAX), max_size=50)


def recorded(values: list[int]) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.record(value)
    return latencies


def exact_percentile(values: list[int], percentile: float) -> int:
    """The value of the nearest rank."""
    return sorted(values)[max(1, int(percentile * len(values) / 100 + 0.5)) - 1]


def test_of_nothing_everything_is_zero() -> None:
    nothing = Latencies()
    assert (nothing.count, nothing.mean_ns, nothing.min_ns, nothing.max_ns, nothing.percentile_ns(99)) == (
        0,
        0,
        0,
        0,
        0,
    )


@given(LATENCIES.filter(bool))
def test_count_sum_and_extremes_are_exact(values: list[int]) -> None:
    latencies = recorded(values)
    assert (latencies.count, latencies.sum_ns) == (len(values), sum(values))
    assert (latencies.min_ns, latencies.max_ns) == (min(values), max(values))
    assert latencies.mean_ns == sum(values) / len(values)


@given(LATENCIES.filter(bool), st.sampled_from([1.0, 50.0, 90.0, 99.0, 100.0]))
def test_percentiles_are_right_to_three_digits(values: list[int], percentile: float) -> None:
    found = recorded(values).percentile_ns(percentile)
    assert found == pytest.approx(exact_percentile(values, percentile), rel=1e-3, abs=1)
    assert min(values) <= found <= max(values)


@settings(max_examples=20)  # each looks through a wide histogram many times
@given(LATENCIES, LATENCIES)
def test_merged_is_as_if_recorded_together(ones: list[int], others: list[int]) -> None:
    merged = recorded(ones)
    merged.merge(recorded(others))
    together = recorded(ones + others)
    for percentile in (0, 25, 50, 99, 99.9, 100):
        assert merged.percentile_ns(percentile) == together.percentile_ns(percentile)
    assert (merged.count, merged.sum_ns) == (together.count, together.sum_ns)
    assert (merged.min_ns, merged.max_ns) == (together.min_ns, together.max_ns)


def test_a_percentile_of_many_is_not_the_average_of_their_percentiles() -> None:
    random = Random(1)
    fast, slow = [random.randrange(1000) for _ in range(1000)], [random.randrange(10**9) for _ in range(10)]
    merged = recorded(fast)
    merged.merge(recorded(slow))
    assert merged.percentile_ns(99) < 1000 < (recorded(fast).percentile_ns(99) + recorded(slow).percentile_ns(99)) / 2


def test_beyond_the_range_only_percentiles_are_capped() -> None:
    latencies = recorded([1, 3 * LATENCY_NS_MAX])
    assert (latencies.max_ns, latencies.sum_ns) == (3 * LATENCY_NS_MAX, 3 * LATENCY_NS_MAX + 1)
    assert latencies.percentile_ns(100) == pytest.approx(LATENCY_NS_MAX, rel=1e-3)


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="-1 ns"):
        Latencies().record(-1)
