"""A benchmark's figures as text, in the form that report scripts parse, and back."""

import re
from collections.abc import Mapping

import attrs

from madkv.bench.histogram import Latencies

HEADING = "Benchmarking results:"
KINDS = ("INSERT", "READ", "UPDATE", "SCAN")
PHASES = ("Load", "Run")

_PHASE = re.compile(r"\s*\[(Load|Run)\]\s+(\d+) ms\s*")
_THROUGHPUT = re.compile(r"\s*Throughput:\s+([\d.]+) ops/sec\s*")
_LATENCY = re.compile(
    r"\s*(?:Latency:)?\s+([A-Z]+)\s+ops\s+(\d+)\s+avg\s+([\d.]+)\s+min\s+(\d+)\s+max\s+(\d+)\s+p99\s+(\d+)\s+us\s*"
)


@attrs.frozen
class Latency:
    """What the calls of one kind took, in microseconds."""

    count: int
    mean_us: float
    min_us: int
    max_us: int
    p99_us: int

    @classmethod
    def of(cls, latencies: Latencies) -> "Latency":
        """The figures of a histogram."""
        return cls(
            latencies.count,
            latencies.mean_ns / 1000,
            round(latencies.min_ns / 1000),
            round(latencies.max_ns / 1000),
            round(latencies.percentile_ns(99) / 1000),
        )


@attrs.frozen
class Phase:
    """One phase of one benchmark. `throughput` counts calls, and is theirs over the time from the first to the last."""

    milliseconds: int
    throughput: float
    latencies: Mapping[str, Latency]
    """By kind of call; a kind that did not occur is not here."""

    @classmethod
    def of(cls, elapsed_ns: int, latencies: Mapping[str, Latencies]) -> "Phase":
        """The figures of what was measured."""
        calls = sum(kind.count for kind in latencies.values())
        return cls(
            round(elapsed_ns / 1e6),
            calls / (max(1, elapsed_ns) / 1e9),
            {kind: Latency.of(latencies[kind]) for kind in KINDS if kind in latencies and latencies[kind].count},
        )

    @property
    def calls(self) -> int:
        """How many calls the phase made."""
        return sum(latency.count for latency in self.latencies.values())

    @property
    def mean_us(self) -> float:
        """The mean over all calls, whatever their kind."""
        return sum(each.mean_us * each.count for each in self.latencies.values()) / max(1, self.calls)


def format_results(phases: Mapping[str, Phase]) -> str:
    """The block of the phases `Load` and `Run`, heading included."""
    lines = [HEADING]
    for name in PHASES:
        phase = phases[name]
        lines.append(f"{f'[{name}]':<6} {phase.milliseconds:>7} ms")
        lines.append(f"  Throughput: {phase.throughput:>10.2f} ops/sec")
        label = "  Latency:"
        for kind, figures in phase.latencies.items():
            lines.append(
                f"{label:<14}{kind:<6}  ops {figures.count:>6}  avg {figures.mean_us:>8.2f}  min {figures.min_us:>6}"
                f"  max {figures.max_us:>6}  p99 {figures.p99_us:>6}  us"
            )
            label = ""
    return "\n".join(lines)


def parse_results(text: str) -> dict[str, Phase] | None:
    """The phases in a log; None unless both are there, each with its throughput and at least one latency."""
    phases: dict[str, Phase] = {}
    name, milliseconds, throughput = "", 0, -1.0
    heading_seen = False
    for line in text.splitlines():
        if HEADING in line:
            heading_seen = True
            phases.clear()
            name = ""
        elif not heading_seen:
            continue
        elif match := _PHASE.fullmatch(line):
            name, milliseconds, throughput = match[1], int(match[2]), -1.0
        elif name and (match := _THROUGHPUT.fullmatch(line)):
            throughput = float(match[1])
        elif name and throughput >= 0 and (match := _LATENCY.fullmatch(line)):
            latency = Latency(int(match[2]), float(match[3]), int(match[4]), int(match[5]), int(match[6]))
            before = phases[name].latencies if name in phases else {}
            phases[name] = Phase(milliseconds, throughput, {**before, match[1]: latency})
    return phases if set(phases) == set(PHASES) else None
