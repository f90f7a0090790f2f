"""What recipes say of a cluster: the table of its nodes with their processes, what is wrong, and how to call it."""

import os
from collections.abc import Mapping

from madkv.operate import health
from madkv.operate.ask import ask_map
from madkv.operate.health import Statuses
from madkv.operate.nodes import Node
from madkv.testing.certificates import VARIABLE


def table(statuses: Statuses, pids: Mapping[Node, int | None] | None) -> list[str]:
    """One line a node, with a heading. Without `pids` nobody knows whether the processes of those that do not answer
    are there.
    """
    rows = health.rows(statuses)
    for node, row in rows.items():
        pid = None if pids is None else pids[node]
        row["pid"] = "-" if pid is None else str(pid)
        if pids is not None and pid is None and statuses[node] is None:
            row["role"] = "down"
    return health.table(list(rows.values()), (*health.COLUMNS, "pid"))


def report(statuses: Statuses, pids: Mapping[Node, int | None] | None, managers: str) -> int:
    """Print how a cluster is; the exit status: 1 when something is wrong."""
    print("\n".join(table(statuses, pids)))
    found = health.ailments(statuses, ask_map(managers))
    for line in found:
        print(f"unwell: {line}")
    project = "p2" if all(node.replica is None for node in statuses) else "p3"
    directory = os.environ.get(VARIABLE)
    print(f"clients: {f'{VARIABLE}={directory} ' if directory else ''}./justw {project}::client {managers}")
    return 1 if found else 0
