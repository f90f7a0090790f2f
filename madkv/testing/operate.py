"""Run a cluster on this machine: `just cluster::up`, and then `status`, `kill-node`, `start-node` and so on."""

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from madkv.testing.ask import Status, ask_map
from madkv.testing.checkout import ROOT
from madkv.testing.cluster import STATE, Cluster, ClusterError, leader_of
from madkv.testing.ending import run_tool
from madkv.testing.fleet import interrupt_on_terminate
from madkv.testing.options import whole, words
from madkv.testing.service import ServiceError
from madkv.testing.shape import Node, Shape, ShapeError

COLUMNS = ("node", "role", "term", "leader", "commit", "applied", "lag", "size", "pid")
LEFT_ALIGNED = ("node", "role", "leader")
REPLACED_SECONDS_MAX = 60.0


def table(statuses: Mapping[Node, Status | None], pids: Mapping[Node, int | None]) -> list[str]:
    """One line a node, with a heading. Lag counts log entries behind the group's leader."""
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True))]
    for node, status in statuses.items():
        group = {each: status for each, status in statuses.items() if each.group == node.group}
        rows.append(_row(node, status, group, pids.get(node)))
    widths = {name: max(len(row[name]) for row in rows) for name in COLUMNS}
    return [
        "  ".join(
            row[name].ljust(widths[name]) if name in LEFT_ALIGNED else row[name].rjust(widths[name]) for name in COLUMNS
        ).rstrip()
        for row in rows
    ]


def _row(node: Node, status: Status | None, group: dict[Node, Status | None], pid: int | None) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "-")
    row |= {"node": str(node), "pid": "-" if pid is None else str(pid)}
    if status is None:
        return row | {"role": "down" if pid is None else "silent"}
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


def ailments(shape: Shape, statuses: Mapping[Node, Status | None]) -> list[str]:
    """What is wrong, a line each; none when all nodes answer and every group has a leader."""
    silent = [str(node) for node, status in statuses.items() if status is None]
    found = [f"{', '.join(silent)} {'do' if len(silent) > 1 else 'does'} not answer"] if silent else []
    for group in shape.groups:
        if leader_of({node: status for node, status in statuses.items() if node.group == group}) is None:
            found.append(f"group {group} has no leader: {'nothing can be registered' if group == 'm' else 'it waits'}")
    return found


def report(cluster: Cluster) -> int:
    """Print how the cluster is; the exit status."""
    statuses = cluster.statuses()
    print("\n".join(table(statuses, {node: cluster.pid(node) for node in statuses})))
    found = ailments(cluster.shape, statuses)
    if ask_map(cluster.address) is None:
        found.append("no manager has a partition map")
    for line in found:
        print(f"unwell: {line}")
    print(f"clients: just {cluster.shape.project}::client {cluster.address}")
    return 1 if found else 0


def up(options: argparse.Namespace) -> int:
    """Start a cluster, or what does not run of the one that is there; wait until it serves."""
    root: Path = options.root
    if (root / STATE).exists():
        cluster = Cluster.load(root)
    else:
        rf = options.rf or None
        cluster = Cluster.local(root, options.partitions, rf, options.managers if rf else 1)
    began = time.monotonic()
    cluster.start_all()
    cluster.wait_until_serving()
    print(f"the cluster serves after {time.monotonic() - began:.1f} s; files and logs are in {root}")
    return report(cluster)


def down(options: argparse.Namespace) -> int:
    """End a cluster; unless it is kept, remove its files."""
    cluster = Cluster.load(options.root)
    in_order = cluster.stop()
    if options.keep == "no":
        shutil.rmtree(options.root)
    print(f"ended{'' if in_order else ', some by force'}; files {'kept' if options.keep == 'yes' else 'removed'}")
    return 0 if in_order else 1


def kill_node(options: argparse.Namespace) -> int:
    """End one node without asking it."""
    cluster = Cluster.load(options.root)
    node = cluster.shape.node(options.node)
    if not cluster.is_running(node):
        raise ClusterError(f"{node} does not run")
    cluster.kill(node)
    print(f"killed {node}")
    return 0


def start_node(options: argparse.Namespace) -> int:
    """Start one node again."""
    cluster = Cluster.load(options.root)
    node = cluster.shape.node(options.node)
    if cluster.is_running(node):
        raise ClusterError(f"{node} runs already")
    cluster.start(node)
    cluster.wait_until_caught_up(node)
    print(f"{node} has caught up")
    return 0


def replace_disk(options: argparse.Namespace) -> int:
    """Take one node's disk for lost: end it, empty its directory, have it replaced, wait until it has caught up."""
    cluster = Cluster.load(options.root)
    node = cluster.shape.node(options.node)
    if why := cluster.replace_disk(node):
        raise ClusterError(why)
    cluster.kill(node)
    cluster.wipe(node)
    cluster.start(node)
    cluster.wait_until_caught_up(node, seconds=REPLACED_SECONDS_MAX)
    print(f"{node} has caught up on an empty disk")
    return 0


def status(options: argparse.Namespace) -> int:
    """Print how every node is; 1 when something is wrong."""
    return report(Cluster.load(options.root))


COMMANDS = {
    "up": up,
    "status": status,
    "kill-node": kill_node,
    "start-node": start_node,
    "replace-disk": replace_disk,
    "down": down,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("node", nargs="?", help="a node id, such as m.0 or s1.2")
    parser.add_argument("--root", type=Path, default=ROOT / "backer.cluster", help="default: %(default)s")
    parser.add_argument("--partitions", type=whole, default=2, help="of a new cluster (default: %(default)s)")
    parser.add_argument(
        "--rf", type=whole, default=3, help="replicas of each; 0: as in project 2 (default: %(default)s)"
    )
    parser.add_argument("--managers", type=whole, default=3, help="default: %(default)s")
    parser.add_argument("--keep", choices=("yes", "no"), default="no", help="the files, when it ends (default: no)")
    options = parser.parse_args(words(sys.argv[1:] if argv is None else argv))
    if (options.node is None) != (options.command in ("up", "status", "down")):
        parser.error("the name of a node goes with kill-node, start-node and replace-disk")
    interrupt_on_terminate()
    try:
        return COMMANDS[options.command](options)
    except (ServiceError, ShapeError) as error:
        print(f"madkv cluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    run_tool("madkv cluster", main)
