"""`/metrics`: everything that a daemon counts, as Prometheus asks for it.

Nothing is counted here but the collector's own pauses: who does the work keeps plain integers and lists, and they are
read when somebody asks. Each metric, its unit and its meaning are in docs/seeing.md.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from madkv import __version__
from madkv.counts import Histogram
from madkv.limits import METRICS_SECONDS
from madkv.raft.core import RaftCore
from madkv.server.parts import TICK_SECONDS
from madkv.server.process import Inside

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

SNAPSHOTS = {
    "snapshots_begun": "Snapshots that this leader has begun to stream to a peer.",
    "snapshots_sent": "Snapshots that a peer has taken to the end.",
    "snapshots_given_up": "Snapshots that were not streamed to the end.",
    "snapshot_bytes_sent": "Bytes of snapshots sent, with what was repeated.",
    "snapshot_bytes_received": "Bytes of snapshots received, with what was repeated.",
    "snapshots_installed": "Snapshots that this replica has put in the place of its own state.",
}
WAITING = {
    "proposals_waiting": "Proposals whose outcome is not known yet.",
    "proposal_bytes_waiting": "Bytes of the proposals whose outcome is not known yet.",
    "applied_bytes_waiting": "Bytes of pairs that are applied and not in the tables on disk yet.",
    "snapshots_under_way": "Snapshots that are being streamed just now.",
}


class Metrics:
    """All of one process."""

    def __init__(self, node: str, inside: Callable[[], Inside | None], seconds: Callable[[], float]) -> None:
        """`seconds` is a clock."""
        self._seconds = seconds
        self._text = b""
        self._made = float("-inf")
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._pauses = _Pauses()
        for each in (self._pauses, _Daemon(node, inside)):
            self._registry.register(each)

    def start(self) -> None:
        """Watch the garbage collector, too."""
        gc.callbacks.append(self._pauses.note)

    def stop(self) -> None:
        """Watch it no more."""
        gc.callbacks.remove(self._pauses.note)

    def text(self) -> bytes:
        """As Prometheus reads it; the same for all who ask within METRICS_SECONDS."""
        now = self._seconds()
        if now - self._made >= METRICS_SECONDS:
            self._text, self._made = generate_latest(self._registry), now
        return self._text


class _Pauses(Collector):
    """How long the garbage collector has held everything up."""

    def __init__(self) -> None:
        self._began = 0.0
        self._seconds = [0.0] * len(gc.get_stats())
        self._longest = 0.0

    def note(self, phase: str, info: Mapping[str, int]) -> None:
        """As `gc.callbacks` asks for it."""
        if phase == "start":
            self._began = time.monotonic()
            return
        took = time.monotonic() - self._began
        self._seconds[info["generation"]] += took
        self._longest = max(self._longest, took)

    def collect(self) -> Iterator[Metric]:
        """Seconds by generation."""
        pauses = CounterMetricFamily(
            "madkv_gc_pause_seconds", "Time that went to the garbage collector.", labels=["generation"]
        )
        for generation, seconds in enumerate(self._seconds):
            pauses.add_metric([str(generation)], seconds)
        yield pauses
        yield GaugeMetricFamily("madkv_gc_longest_pause_seconds", "The longest of its pauses so far.", self._longest)


class _Daemon(Collector):
    """What the parts of the process have counted."""

    def __init__(self, node: str, inside: Callable[[], Inside | None]) -> None:
        self._node = node
        self._inside = inside

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: what there is to tell depends on how far the process has begun."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All of it, by now."""
        inside = self._inside()
        if inside is None:
            return
        facts = inside.service.status()
        named = {"node": self._node, "version": __version__}
        named |= {name: str(facts.get(name, "")) for name in ("group", "cluster")}
        yield InfoMetricFamily("madkv", "Which node this is.", named)
        yield from _of_service(inside)
        yield from _of_placement(facts)
        if inside.replica is not None:
            yield from _of_raft(inside.replica.core, inside.replica.leader_changes)
            yield from _of_replica(inside.replica.counted)
        if inside.storage is not None:
            yield from _of_storage(inside.storage)
        if inside.links is not None:
            yield from _of_links(inside.links)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"madkv_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"madkv_{name}", text, value)


def _histogram(name: str, text: str, found: Histogram) -> Metric:
    family = HistogramMetricFamily(f"madkv_{name}", text)
    family.add_metric([], *_buckets(found))
    return family


def _buckets(found: Histogram) -> tuple[list[tuple[str, float]], float]:
    """As the library takes them: how many there were up to each bound, and the sum."""
    counts, total = found.counts.copy(), found.total
    buckets, below = [], 0
    for bound, count in zip((*found.bounds, None), counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound is None else str(float(bound)), float(below)))
    return buckets, total


def _of_service(inside: Inside) -> Iterator[Metric]:
    service = inside.service
    calls = HistogramMetricFamily(
        "madkv_call_seconds", "From reading a call to its answer, of calls that succeeded.", labels=["call"]
    )
    for name, times in service.times.items():
        calls.add_metric([name], *_buckets(times))
    yield calls
    errors = CounterMetricFamily("madkv_call_errors", "Calls that were answered with an error.", labels=["error"])
    for name, count in service.errors.items():
        errors.add_metric([name], count)
    yield errors
    yield _gauge("connections", "Connections of clients.", len(service.connections))
    yield _gauge("calls_in_flight", "Calls accepted and not yet answered.", service.in_flight.count)
    yield _gauge(
        "call_bytes_in_flight", "Bytes of the calls accepted and not yet answered.", service.in_flight.size_bytes
    )


def _of_placement(facts: Mapping[str, Any]) -> Iterator[Metric]:
    """What the partition map says, as this node knows it."""
    if "epoch" in facts:
        yield _gauge("partition_map_epoch", "Epoch of the partition map that this node acts on.", facts["epoch"])
    if "ranges" in facts:
        yield _gauge("ranges_owned", "Ranges of keys that this group owns.", len(facts["ranges"]))
    if "nodes" in facts:
        disks = GaugeMetricFamily("madkv_disks", "Disks of the cluster, as this manager knows them.", labels=["state"])
        states = [slot["state"] for slot in facts["nodes"].values()]
        for state in ("registered", "catching up", "vacant"):
            disks.add_metric([state], states.count(state))
        yield disks


def _of_raft(core: RaftCore, leader_changes: int) -> Iterator[Metric]:
    yield _gauge("raft_term", "Current term.", core.term)
    yield _gauge("raft_is_leader", "1 while this replica leads its group.", core.led_term is not None)
    yield _gauge("raft_has_leader", "1 while this replica knows a leader.", core.leader is not None)
    yield _gauge("raft_is_voter", "1 while this replica's disk has a vote.", core.is_voter)
    yield _counter("raft_leader_changes", "How often who leads has changed, also to nobody.", leader_changes)
    yield _counter("raft_campaigns", "How often this replica has stood for election.", core.campaigns)
    yield _counter("raft_elections_won", "How often it was elected.", core.elections_won)
    yield _gauge("raft_commit_index", "The last entry that is committed, as far as is known here.", core.commit_index)
    yield _gauge("raft_applied_index", "The last entry that was handed out to be applied.", core.applied_index)
    yield _gauge(
        "raft_lag_entries", "Entries that the leader has committed and this has not applied.", core.lag_entries
    )
    yield _gauge("log_first_index", "The first entry in the log.", core.log.first_index)
    yield _gauge("log_last_index", "The last entry in the log.", core.log.last_index)
    stalled = core.stalled_ticks * TICK_SECONDS
    yield _gauge("disk_stalled_seconds", "For how long the disk has had work and done none.", stalled)
    if core.led_term is None:
        heard = core.elapsed * TICK_SECONDS
        yield _gauge("raft_leader_silent_seconds", "Since a leader was heard or a vote given.", heard)
        return
    lag = GaugeMetricFamily("madkv_raft_peer_lag_entries", "Entries that a peer of a leader lacks.", labels=["replica"])
    silent = GaugeMetricFamily(
        "madkv_raft_peer_silent_seconds", "Since a peer of a leader was heard.", labels=["replica"]
    )
    for member, progress in core.progress.items():
        labels = [str(member.replica)]
        lag.add_metric(labels, core.log.last_index - progress.match_index)
        silent.add_metric(labels, (core.ticks - progress.heard_tick) * TICK_SECONDS)
    yield lag
    yield silent


def _of_replica(counted: Mapping[str, int]) -> Iterator[Metric]:
    for name, text in WAITING.items():
        yield _gauge(name, text, counted[name])
    for name, text in SNAPSHOTS.items():
        yield _counter(name, text, counted[name])


def _of_storage(storage: Any) -> Iterator[Metric]:
    yield _histogram("commit_seconds", "Commits of the store, from their beginning to their end.", storage.commit_times)
    yield _histogram("sync_seconds", "LMDB's part of commits: to write pages and sync them.", storage.sync_times)
    yield _histogram("commit_entries", "Entries of the log in one commit, where there were any.", storage.batch_entries)
    yield _gauge("log_bytes", "About how large the log on disk is.", storage.log_bytes)
    yield _gauge("store_bytes", "What of the data file is in use, or was and will be used again.", storage.used_bytes)


def _of_links(links: Any) -> Iterator[Metric]:
    connected = GaugeMetricFamily(
        "madkv_peer_connected", "1 while there is a connection to a peer.", labels=["replica"]
    )
    for replica, is_connected in links.connected.items():
        connected.add_metric([str(replica)], is_connected)
    yield connected
    yield _counter("peer_messages_dropped", "Messages that found too much waiting for their peer.", links.dropped)
