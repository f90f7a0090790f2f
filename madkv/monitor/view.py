"""What the page shows of a look at a cluster, as JSON: groups and their nodes, rates since the look before, events.

All texts in it are data. Some come from nodes, as names and lines that they say: the page takes none for markup.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from madkv import __version__
from madkv.counts import SECONDS, quantile
from madkv.monitor.look import Look
from madkv.operate import health
from madkv.operate.ask import Status
from madkv.operate.nodes import Node, parse_node
from madkv.operate.status import owners

READS, WRITES = ("get", "scan"), ("put", "swap", "delete")
HISTORY_POINTS = 120
GAP_SECONDS = 10.0
"""When nobody has looked for so long, rates begin anew."""
EVENTS_SHOWN = 60
SAME_SECONDS = 4.0
"""What several nodes say of one thing happens within this time."""

_AGO_SECONDS_MAX = 1e9
_KINDS = {
    **dict.fromkeys(("role", "version"), str),
    **dict.fromkeys(("term", "commit", "applied", "data_bytes", "log_bytes", "connections", "in_flight"), int),
    **dict.fromkeys(("first", "last"), int),
    "uptime": float,
}
Point = dict[str, Any]


class View:
    """What was seen so far, as far as the page shows it."""

    def __init__(self, node: str) -> None:
        """`node` is whose page this is."""
        self._node = node
        self._place = parse_node(node).place  # it may have another name where its group is of one
        self._last: Look | None = None
        self._history: deque[Point] = deque(maxlen=HISTORY_POINTS)
        self._seen: deque[dict[str, Any]] = deque(maxlen=EVENTS_SHOWN)  # what was seen from here

    def told(self, look: Look) -> dict[str, Any]:
        """All of it, after one more look."""
        look = attrs.evolve(look, statuses={node: status and read(status) for node, status in look.statuses.items()})
        last, self._last = self._last, look
        if last is not None and look.at - last.at > GAP_SECONDS:
            last = None
            self._history.clear()
        now = time.time()
        if last is not None:
            self._note_changes(last, look, now)
        groups = [self._group(name, look, last) for name in dict.fromkeys(node.group for node in look.statuses)]
        if last is not None:
            rates = {each["group"]: [each["reads_per_second"], each["writes_per_second"]] for each in groups}
            self._history.append({"at": round(now * 1000), "rates": rates})
        partition_map = look.partition_map
        return {
            "here": self._node,
            "version": __version__,
            "at": round(now * 1000),
            "cluster": None if partition_map is None else partition_map.cluster,
            "epoch": None if partition_map is None else partition_map.epoch,
            "well": not look.ailments,
            "ailments": look.ailments,
            "groups": groups,
            "history": list(self._history),
            "events": merged([*self._seen, *_events(look.statuses, now)]),
        }

    # --- Groups and nodes -------------------------------------------------------------------------------------------

    def _group(self, name: str, look: Look, last: Look | None) -> dict[str, Any]:
        statuses = health.group_of(look.statuses, name)
        leader = health.leader_of(statuses)
        status = (statuses[leader] if leader is not None else None) or {}
        owned = {} if look.partition_map is None else dict(zip(_names(look), owners(look.partition_map), strict=True))
        reads, writes = (_counts(statuses, last, calls) for calls in (READS, WRITES))
        seconds = 0.0 if last is None else look.at - last.at
        return {
            "group": name,
            "leader": None if leader is None else str(leader),
            "term": status.get("term"),
            "commit": status.get("commit"),
            "owns": owned.get(name, ""),
            "voters": len(status.get("voters", ())),
            "reads_per_second": round(sum(reads) / seconds, 1) if seconds else None,
            "writes_per_second": round(sum(writes) / seconds, 1) if seconds else None,
            "reads_ms": _milliseconds(reads),
            "writes_ms": _milliseconds(writes),
            "nodes": [self._shown(node, each, statuses) for node, each in statuses.items()],
        }

    def _shown(self, node: Node, status: Status | None, group: dict[Node, Status | None]) -> dict[str, Any]:
        said = status or {}
        known = health.known_leader(node, said)
        names = ("role", "term", "commit", "applied", "data_bytes", "log_bytes", "uptime", "connections", "in_flight")
        first, last = said.get("first"), said.get("last")
        return {
            "node": str(node),
            "here": node.place == self._place,
            "answers": status is not None,
            "leader": None if known is None else str(known),
            "lag": health.lag_of(said, group),
            "log_entries": None if first is None or last is None else max(0, last - first + 1),
            **{name: said.get(name) for name in (*names, "version")},
        }

    # --- Events -----------------------------------------------------------------------------------------------------

    def _note_changes(self, last: Look, look: Look, now: float) -> None:
        """Who answers no more, or again: also where no peer is left to say so."""
        for node, status in look.statuses.items():
            if node in last.statuses and (status is None) != (last.statuses[node] is None):
                self._seen.append(_event(now, node.group, "lost" if status is None else "back", str(node)))


def read(status: Status) -> Status:
    """What of a status the page shows, as far as it is what it should be: a node may be of another version, or lie."""
    found = {name: status[name] for name, kind in _KINDS.items() if type(status.get(name)) is kind}
    found["leader"] = status.get("leader")  # has been looked at, as it was asked for
    found["voters"] = status["voters"] if type(status.get("voters")) is list else []
    calls, events = status.get("calls"), status.get("events")
    found["calls"] = {
        name: counts
        for name, counts in (calls.items() if type(calls) is dict else ())
        if type(counts) is list and all(type(count) is int for count in counts)
    }
    found["events"] = [each for each in (events if type(events) is list else ()) if _is_event(each)]
    return found


def _is_event(said: Any) -> bool:
    """Whether a node may have said this of something that has happened."""
    if type(said) is not dict or type(said.get("ago")) not in (int, float) or not 0 <= said["ago"] < _AGO_SECONDS_MAX:
        return False
    numbers = [said.get(name) for name in ("peer", "term", "leader")]
    is_leader_known = said.get("what") != "leader" or type(said.get("term")) is int
    return is_leader_known and all(number is None or type(number) is int for number in numbers)


def _names(look: Look) -> Iterable[str]:
    assert look.partition_map is not None
    return (f"s{partition}" for partition in range(len(look.partition_map.replicas)))


def _counts(statuses: Mapping[Node, Status | None], last: Look | None, calls: Iterable[str]) -> list[int]:
    """How many calls of these kinds took how long since the last look; empty where that cannot be said."""
    total: list[int] = []
    for node, status in statuses.items():
        before = None if last is None else last.statuses.get(node)
        if status is None or before is None or status.get("uptime", 0.0) < before.get("uptime", 0.0):
            continue  # it was not there, or has begun anew since
        for name in calls:
            counts, were = status.get("calls", {}).get(name, []), before.get("calls", {}).get(name, [])
            if len(counts) == len(were) == len(SECONDS) + 1:
                total = [
                    sum(each) - were_ for *each, were_ in zip(total or [0] * len(counts), counts, were, strict=True)
                ]
    return total


def _milliseconds(counts: list[int]) -> list[float] | None:
    """Below what half of these calls, and 99 of 100, were answered; None without any."""
    found = [quantile(SECONDS, counts, share) for share in (0.5, 0.99)]
    return None if None in found else [round((each or 0.0) * 1000, 3) for each in found]


def _events(statuses: Mapping[Node, Status | None], now: float) -> list[dict[str, Any]]:
    """What all nodes say has happened."""
    found = []
    for node, status in statuses.items():
        for said in (status or {}).get("events", ()):
            at = now - said["ago"]
            peer = "" if said.get("peer") is None else str(Node(node.partition, said["peer"]))
            match said.get("what"):
                case "leader" if said.get("leader") is None:
                    found.append(_event(at, node.group, "no leader", ""))
                case "leader":
                    leader = Node(node.partition, None if node.replica is None else said["leader"])
                    found.append(_event(at, node.group, "leader", str(leader), term=said["term"]))
                case "lost" | "back" as what:
                    found.append(_event(at, node.group, what, peer))
                case "snapshot begun" | "snapshot sent" | "snapshot given up" as what:
                    found.append(_event(at, node.group, what, peer, by=str(node)))
                case "snapshot installed" as what:
                    found.append(_event(at, node.group, what, str(node)))
    return found


def _event(at: float, group: str, what: str, node: str, **facts: Any) -> dict[str, Any]:
    return {"at": round(at * 1000), "group": group, "what": what, "node": node, **facts}


def merged(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each thing that happened, the latest first: of all who tell of it, the first to have seen it."""
    kept: list[dict[str, Any]] = []
    latest: dict[tuple[Any, ...], int] = {}
    for event in sorted(events, key=lambda each: int(each["at"])):
        key = tuple(event[name] for name in ("group", "what", "node") if name in event), event.get("term")
        if key not in latest or (event["at"] - latest[key] > SAME_SECONDS * 1000 and "term" not in event):
            kept.append(event)
        latest[key] = event["at"]
    return kept[: -EVENTS_SHOWN - 1 : -1]
