"""How a cluster is, by what its nodes say: who they are, a table of them, and what is wrong."""

import time
from collections.abc import Mapping, Sequence

from madkv.addresses import parse_addresses, show_address
from madkv.errors import InvalidArgument, MadKVError, ProtocolError, TLSError, shown
from madkv.operate.ask import (
    LOOK_SECONDS_MAX,
    PAUSE_SECONDS,
    Status,
    Stranger,
    ask_at_once,
    ask_hello,
    ask_map,
    ask_statuses,
    why_silent,
)
from madkv.operate.nodes import Node, is_node, parse_node
from madkv.partitions import PartitionMap
from madkv.wire import codec
from madkv.wire.boxes import Box

COLUMNS = ("node", "role", "term", "leader", "commit", "applied", "lag", "size")
LEFT_ALIGNED = ("node", "role", "leader", "version")

Statuses = Mapping[Node, Status | None]
"""How each node is, as it says itself; None for those that do not answer. Managers come first."""


class NotSeen(MadKVError):
    """Nothing can be said of a cluster: those who are asked do not answer, or are not its managers."""


def leader_of(statuses: Statuses) -> Node | None:
    """Of a group's statuses: who leads it. One that was cut off may still think so, in an earlier term."""
    leaders = [(status["term"], node) for node, status in statuses.items() if status and status.get("role") == "leader"]
    return max(leaders)[1] if leaders else None


def rows(statuses: Statuses) -> dict[Node, dict[str, str]]:
    """What the table says of each node, by its columns and `version`. Lag counts log entries behind the group's
    leader; `-` stands for what is not known."""
    return {node: _row(node, status, group_of(statuses, node.group)) for node, status in statuses.items()}


def table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[str]:
    """One line a row, with a heading."""
    all_rows = [dict(zip(columns, columns, strict=True)), *rows]
    widths = {name: max(len(row[name]) for row in all_rows) for name in columns}
    return [
        "  ".join(
            row[name].ljust(widths[name]) if name in LEFT_ALIGNED else row[name].rjust(widths[name]) for name in columns
        ).rstrip()
        for row in all_rows
    ]


def group_of(statuses: Statuses, group: str) -> dict[Node, Status | None]:
    """Those of one group."""
    return {node: status for node, status in statuses.items() if node.group == group}


def _row(node: Node, status: Status | None, group: dict[Node, Status | None]) -> dict[str, str]:
    row = dict.fromkeys((*COLUMNS, "version"), "-") | {"node": str(node)}
    if status is None:
        return row | {"role": "silent"}
    for name in ("role", "term", "commit", "applied", "version"):
        if name in status:
            row[name] = str(status[name])
    if (known := known_leader(node, status)) is not None:
        row["leader"] = "itself" if known == node else str(known)
    if (lag := lag_of(status, group)) is not None:
        row["lag"] = str(lag)
    if "data_bytes" in status:
        row["size"] = size(status["data_bytes"])
    return row


def known_leader(node: Node, status: Status) -> Node | None:
    """Who leads the group, as this node knows it."""
    leader = status.get("leader")
    return None if leader is None else Node(node.partition, None if node.replica is None else leader)


def lag_of(status: Status, group: Statuses) -> int | None:
    """How many entries a node is behind the leader of its group; None where nobody leads."""
    leader = leader_of(group)
    committed = ((group[leader] if leader else None) or {}).get("commit")
    return None if committed is None or "applied" not in status else max(0, committed - status["applied"])


def size(count: int) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.1f} GiB"


def slot_state(statuses: Statuses, node: Node) -> str | None:
    """What the leading manager holds of a node's disk: `registered`, `vacant` or `catching up`; None when none says."""
    for name, slot in _slots(statuses).items():
        if parse_node(name).place == node.place:
            return str(slot["state"])
    return None


def ailments(statuses: Statuses, partition_map: PartitionMap | None) -> list[str]:
    """What is wrong, a line each; none when all nodes answer, each on its disk, every group has a leader, and there is
    a map."""
    silent = [str(node) for node, status in statuses.items() if status is None]
    found = [f"{', '.join(silent)} {'do' if len(silent) > 1 else 'does'} not answer"] if silent else []
    for group in dict.fromkeys(node.group for node in statuses):
        if leader_of(group_of(statuses, group)) is None:
            found.append(f"group {group} has no leader: {'nothing can be registered' if group == 'm' else 'it waits'}")
    for name, slot in _slots(statuses).items():
        if slot["state"] == "catching up":
            found.append(f"{name} is catching up on an empty disk")
        elif slot["state"] == "vacant":
            found.append(f"the disk of {name} was given up: start {name} on an empty directory")
    if waiting := _leading_manager(statuses).get("waiting"):
        found.append(waiting if waiting.startswith("waiting") else f"waiting {waiting}")
    if partition_map is None:
        found.append("no manager has a partition map")
    return found


def map_of(managers: str) -> PartitionMap:
    """The partition map of the first of these managers that has it. Raises NotSeen: when none does, or when those that
    do are of several clusters."""
    addresses = managers.split(",")
    found = zip(addresses, ask_at_once(addresses, ask_map), strict=True)
    maps = {address: partition_map for address, partition_map in found if partition_map is not None}
    _one_cluster({address: partition_map.cluster for address, partition_map in maps.items()})
    if not maps:
        why = why_silent(addresses, codec.GET_MAP)
        problem = f"no manager at {managers} has a partition map{why}" if why else f"no manager answers at {managers}"
        raise NotSeen(problem)
    return next(iter(maps.values()))


def cluster_of(managers: Sequence[str]) -> str:
    """The id of the cluster whose managers are at these addresses: most of them say so, and none says otherwise.

    That is for what only a leader of the managers does, who needs most of them as well. They are asked again for
    LOOK_SECONDS_MAX, since some may be starting, but not where too many are no managers. Raises NotSeen.
    """
    ends = time.monotonic() + LOOK_SECONDS_MAX
    while True:
        said = dict(zip(managers, ask_at_once(managers, _cluster_at), strict=True))
        known = {address: each for address, each in said.items() if isinstance(each, str) and each}
        cluster = _one_cluster(known)
        if len(known) > len(said) / 2:
            return cluster
        strangers = sum(isinstance(each, ProtocolError) and not isinstance(each, TLSError) for each in said.values())
        if strangers >= len(said) / 2 or time.monotonic() >= ends:
            rest = (f"{address}: {each or 'it is starting'}" for address, each in said.items() if address not in known)
            raise NotSeen(f"it is not clear whose managers these are: {'; '.join(rest)}")
        time.sleep(PAUSE_SECONDS)


def cluster_in(hello: Box) -> str:
    """The id of the cluster of the manager that answers so, empty as long as it is in none. Raises Stranger for who is
    no manager."""
    if hello.get(b"role") != b"manager":
        raise Stranger("it is a server; --managers is for the managers' addresses")
    return shown(hello.get(b"cluster", b""))


def _cluster_at(address: str) -> str | Exception:
    try:
        return cluster_in(ask_hello(address))
    except (OSError, MadKVError) as error:
        return error


def _one_cluster(said: Mapping[str, str]) -> str:
    """The cluster of managers, by what they say at their addresses; empty when they do not know it yet. Raises NotSeen
    when they are of several: then nobody knows which is meant, and the first in a list is no better than others."""
    places = {cluster: address for address, cluster in said.items() if cluster}
    if len(places) > 1:
        named = ", ".join(f"{address} of {cluster}" for cluster, address in places.items())
        raise NotSeen(f"managers: name those of one cluster, and not of several: {named}")
    return "".join(places)


def look_by_managers(text: str) -> dict[Node, Status | None]:
    """The nodes of a cluster of which only the managers' addresses are known, separated by commas.

    Raises InvalidArgument and NotSeen: when these are none, or not all of them, or none of them answers.
    """
    known = _addresses(text)
    managers: dict[Node, Status | None] = {}
    clusters = {}
    silent = []
    strangers = []
    for number, (address, status) in enumerate(zip(known, ask_statuses(known), strict=True)):
        if status is None:
            silent.append(number)
            continue
        name = str(status.get("node"))
        if not is_node(name) or parse_node(name).partition is not None:
            strangers.append(f"managers: at {address} is no manager, but {name}")
            silent.append(number)
            continue
        managers[parse_node(name)] = status
        clusters[address] = str(status.get("cluster", ""))
    _one_cluster(clusters)
    if not managers and strangers:
        raise NotSeen(strangers[0])
    if not managers:
        raise NotSeen(f"no manager answers at {','.join(known)}{why_silent(known)}")
    # Lists count managers from 0 on; where this one has another order, the silent ones are those that are left.
    free = [number for number in range(len(known)) if Node(None, number) not in managers]
    for number in silent:
        left = number if number in free else free[0]
        free.remove(left)
        managers[Node(None, left)] = None
    statuses: dict[Node, Status | None] = dict(sorted(managers.items(), key=lambda each: each[0].place))
    slots = _slots(statuses) or _any_slots(statuses)
    count = sum(parse_node(name).partition is None for name in slots)
    if slots and count != len(managers):
        raise NotSeen(f"managers: name all {count} of this cluster, each once, and not {len(managers)}")
    cluster = str(_leading_manager(statuses).get("cluster", ""))
    servers = {name: slot["address"] for name, slot in slots.items() if slot["address"]}
    for name, status in zip(servers, ask_statuses(servers.values()), strict=True):
        node = parse_node(name)
        status = said_by(node, status, cluster)
        statuses[node if status is None else parse_node(str(status["node"]))] = status
    return statuses


def said_by(node: Node, status: Status | None, cluster: str) -> Status | None:
    """What is said at a node's address, if the node says it; None for another process that has come to it, with another
    name or of another cluster, as far as either is known."""
    if status is None or not is_node(name := str(status.get("node"))) or parse_node(name).place != node.place:
        return None
    return status if status.get("cluster", "") in ("", cluster) or not cluster else None


def _addresses(text: str) -> list[str]:
    if not text.strip():
        raise InvalidArgument("managers: at least one address is needed")
    try:
        return list(map(show_address, parse_addresses(text)))
    except InvalidArgument as error:
        raise InvalidArgument(f"managers: {error}") from None


def _leading_manager(statuses: Statuses) -> Status:
    managers = group_of(statuses, "m")
    leader = leader_of(managers)
    return (managers[leader] if leader else None) or {}


def _slots(statuses: Statuses) -> dict[str, dict[str, str]]:
    slots: dict[str, dict[str, str]] = _leading_manager(statuses).get("nodes", {})
    return slots


def _any_slots(statuses: Statuses) -> dict[str, dict[str, str]]:
    """Of the manager that has applied most: without a leader nobody knows better."""
    having = [status for status in statuses.values() if status and "nodes" in status]
    slots: dict[str, dict[str, str]] = max(having, key=lambda status: int(status["applied"]))["nodes"] if having else {}
    return slots
