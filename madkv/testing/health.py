"""How a cluster is, by what its nodes say: a table of them, and what is wrong. Also of one that was started by hand."""

from collections.abc import Mapping

from madkv.testing.ask import Status, ask_map, ask_statuses
from madkv.testing.cluster import ClusterError, leader_of
from madkv.testing.shape import Node, ShapeError, addresses, parse_node

COLUMNS = ("node", "role", "term", "leader", "commit", "applied", "lag", "size", "pid")
LEFT_ALIGNED = ("node", "role", "leader")

Statuses = Mapping[Node, Status | None]
"""How each node is, as it says itself; None for those that do not answer. Managers come first."""


def table(statuses: Statuses, pids: Mapping[Node, int | None] | None) -> list[str]:
    """One line a node, with a heading. Lag counts log entries behind the group's leader. Without `pids` nobody knows
    whether the processes of those that do not answer are there.
    """
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True))]
    for node, status in statuses.items():
        rows.append(_row(node, status, group_of(statuses, node.group)))
        pid = None if pids is None else pids[node]
        if pid is not None:
            rows[-1]["pid"] = str(pid)
        elif pids is not None and status is None:
            rows[-1]["role"] = "down"
    widths = {name: max(len(row[name]) for row in rows) for name in COLUMNS}
    return [
        "  ".join(
            row[name].ljust(widths[name]) if name in LEFT_ALIGNED else row[name].rjust(widths[name]) for name in COLUMNS
        ).rstrip()
        for row in rows
    ]


def group_of(statuses: Statuses, group: str) -> dict[Node, Status | None]:
    """Those of one group."""
    return {node: status for node, status in statuses.items() if node.group == group}


def _row(node: Node, status: Status | None, group: dict[Node, Status | None]) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "-") | {"node": str(node)}
    if status is None:
        return row | {"role": "silent"}
    row["role"] = str(status.get("role", "-"))
    leader = leader_of(group)
    committed = ((group[leader] if leader else None) or {}).get("commit")
    for name in ("term", "commit", "applied"):
        if name in status:
            row[name] = str(status[name])
    if status.get("leader") is not None:
        known = Node(node.partition, None if node.replica is None else status["leader"])
        row["leader"] = "itself" if known == node else str(known)
    if committed is not None and "applied" in status:
        row["lag"] = str(max(0, committed - status["applied"]))
    if "data_bytes" in status:
        row["size"] = size(status["data_bytes"])
    return row


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
        if _place(parse_node(name)) == _place(node):
            return str(slot["state"])
    return None


def ailments(statuses: Statuses) -> list[str]:
    """What is wrong, a line each; none when all nodes answer, each on its disk, and every group has a leader."""
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
    return found


def report(statuses: Statuses, pids: Mapping[Node, int | None] | None, managers: str) -> int:
    """Print how a cluster is; the exit status: 1 when something is wrong."""
    print("\n".join(table(statuses, pids)))
    found = ailments(statuses)
    if ask_map(managers) is None:
        found.append("no manager has a partition map")
    for line in found:
        print(f"unwell: {line}")
    project = "p2" if all(node.replica is None for node in statuses) else "p3"
    print(f"clients: ./justw {project}::client {managers}")
    return 1 if found else 0


def look_by_managers(text: str) -> dict[Node, Status | None]:
    """The nodes of a cluster of which only the managers' addresses are known, separated by commas.

    Raises ShapeError and ClusterError: when these are none, or not all of them, or none of them answers.
    """
    known = addresses("managers", text)
    if not known:
        raise ShapeError("managers: at least one address is needed")
    managers: dict[Node, Status | None] = {}
    silent = []
    for number, (address, status) in enumerate(zip(known, ask_statuses(known), strict=True)):
        if status is None:
            silent.append(number)
            continue
        name = str(status.get("node"))
        if not name.startswith("m"):
            raise ClusterError(f"managers: at {address} is no manager, but {name}")
        managers[parse_node(name)] = status
    if not managers:
        raise ClusterError(f"no manager answers at {','.join(known)}")
    # Lists count managers from 0 on; where this one has another order, the silent ones are those that are left.
    free = [number for number in range(len(known)) if Node(None, number) not in managers]
    for number in silent:
        left = number if number in free else free[0]
        free.remove(left)
        managers[Node(None, left)] = None
    statuses: dict[Node, Status | None] = dict(sorted(managers.items(), key=lambda each: _place(each[0])))
    slots = _slots(statuses) or _any_slots(statuses)
    count = sum(parse_node(name).partition is None for name in slots)
    if slots and count != len(managers):
        raise ClusterError(f"managers: name all {count} of this cluster, each once, and not {len(managers)}")
    servers = {name: slot["address"] for name, slot in slots.items() if slot["address"]}
    for name, status in zip(servers, ask_statuses(servers.values()), strict=True):
        node = parse_node(name)
        if status is not None and _place(parse_node(str(status.get("node")))) != _place(node):
            status = None  # another process has come to its address
        statuses[node if status is None else parse_node(str(status["node"]))] = status
    return statuses


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


def _place(node: Node) -> tuple[int, int]:
    """A group of one is called `s0` by its managers, and perhaps `s0.0` by itself."""
    return -1 if node.partition is None else node.partition, node.replica or 0
