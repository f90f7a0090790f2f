"""How a whole cluster is, asked node by node as `madkv status` asks; it blocks, so it is done on a thread."""

import time
from collections.abc import Sequence
from typing import Any

import attrs

from madkv.errors import MadKVError
from madkv.operate import health
from madkv.operate.ask import Status, ask_map, ask_statuses
from madkv.operate.nodes import Node, parse_node
from madkv.partitions import PartitionMap
from madkv.tls import TLSFiles


@attrs.frozen
class Look:
    """What was seen at one moment."""

    at: float
    """On the clock that nobody sets, in seconds."""
    statuses: dict[Node, Status | None]
    partition_map: PartitionMap | None
    ailments: list[str]


class Looker:
    """Looks again and again, and remembers where everybody is. One thread at a time."""

    def __init__(self, files: TLSFiles | None) -> None:
        """`files` are TLS's, if the cluster has it."""
        self._files = files
        self._addresses: dict[Node, str] = {}
        self._map: PartitionMap | None = None
        self._managers: tuple[str, ...] = ()

    def look(self, node: str, own: Status, managers: Sequence[str], servers: Sequence[str]) -> Look:
        """How the cluster is of which `node` is a part, which says `own` of itself and knows where `managers` are, or
        where the `servers` are that know it, or, of no cluster, nobody."""
        me = parse_node(node)
        if not managers and not servers:
            return Look(time.monotonic(), {me: own}, None, [])
        if not self._addresses:
            self._managers = tuple(managers) or self._managers or _managers_by(servers, self._files)
            self._addresses = _addresses_by(self._managers, self._files)
        statuses: dict[Node, Status | None] = {}
        cluster = str(own.get("cluster", ""))
        others = {each: address for each, address in self._addresses.items() if each.place != me.place}
        asked = dict(zip(others, ask_statuses(others.values(), self._files), strict=True))
        for each in self._addresses or (me,):
            # It may have one name here and another one itself: `s0.0` and `s0` are the same.
            statuses[each] = own if each.place == me.place else health.said_by(each, asked[each], cluster)
        self._see_to_the_map(statuses)
        found = health.ailments(statuses, self._map)
        if not self._addresses:
            found = ["this node does not know where the others are yet"]
        return Look(time.monotonic(), statuses, self._map, found)

    def _see_to_the_map(self, statuses: dict[Node, Status | None]) -> None:
        """Have it asked for again when a manager says that there is a newer one, of a manager that answers."""
        for node, status in statuses.items():
            if status is None or node.partition is not None or node not in self._addresses:
                continue
            if self._map is None or status.get("epoch", 0) > self._map.epoch:
                self._map = ask_map(self._addresses[node], self._files) or self._map


def _managers_by(servers: Sequence[str], files: TLSFiles | None) -> tuple[str, ...]:
    """Where the managers are, by the first of these servers that answers; empty when none does."""
    for status in ask_statuses(servers, files):
        if status is not None and isinstance(managers := status.get("managers"), list):
            return tuple(map(str, managers))
    return ()


def _addresses_by(managers: Sequence[str], files: TLSFiles | None) -> dict[Node, str]:
    """Where every node is, managers first; empty as long as no manager says which servers there are.

    Managers that do not answer get the numbers that are left: lists count from 0 on.
    """
    statuses = ask_statuses(managers, files)
    known: dict[Node, str] = {}
    silent: list[str] = []
    for address, status in zip(managers, statuses, strict=True):
        try:
            node = None if status is None else parse_node(str(status.get("node")))
            if node is None or node.partition is not None:
                raise MadKVError
            known[node] = address
        except MadKVError:
            silent.append(address)
    having = [status for status in statuses if status and status.get("nodes")]
    if not having:
        return {}
    named: dict[str, Any] = max(having, key=lambda status: int(status["applied"]))["nodes"]
    taken = {each.place for each in known}
    places = {parse_node(name): str(slot["address"]) for name, slot in named.items()}
    free = [each for each in places if each.partition is None and each.place not in taken]
    known |= dict(zip(free, silent, strict=False))
    managers_first = sorted(known.items(), key=lambda each: each[0].place)
    return dict(managers_first) | {each: address for each, address in places.items() if address}
