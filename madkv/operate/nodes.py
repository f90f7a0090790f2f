"""Nodes by their ids: `m` and `s0`, `s1`, … of groups of one, `m.0`, `s1.0` and so on of replicated ones. Pure."""

import re
from typing import NamedTuple

from madkv.errors import InvalidArgument

_NODE = re.compile(r"m(?:\.([0-9]{1,4}))?|s([0-9]{1,4})(?:\.([0-9]{1,4}))?")


class Node(NamedTuple):
    """One process of a cluster."""

    partition: int | None
    """None for a manager."""
    replica: int | None
    """None in project 2."""

    @property
    def group(self) -> str:
        """The name of its Raft group."""
        return "m" if self.partition is None else f"s{self.partition}"

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in lists, managers first; the same for `s0` and `s0.0`: by the one name its managers know a
        group of one, by the other perhaps it knows itself."""
        return -1 if self.partition is None else self.partition, self.replica or 0

    def __str__(self) -> str:
        return self.group if self.replica is None else f"{self.group}.{self.replica}"


def is_node(text: str) -> bool:
    """Whether this is a node id."""
    return _NODE.fullmatch(text) is not None


def parse_node(text: str) -> Node:
    """Read a node id. Raises InvalidArgument."""
    match = _NODE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"{text!r} is no node id; m or s0 in project 2, m.0 or s0.1 in project 3")
    manager_replica, partition, replica = match.groups()
    if partition is None:
        return Node(None, None if manager_replica is None else int(manager_replica))
    return Node(int(partition), None if replica is None else int(replica))
