"""`madkv transfer-leader`: have another replica lead its group, and wait until it does."""

import sys
from collections.abc import Sequence

from madkv.addresses import parse_addresses, show_address
from madkv.errors import InvalidArgument, MadKVError
from madkv.operate.ask import ask, ask_in_turn, ask_map, check_files
from madkv.operate.health import NotSeen
from madkv.operate.nodes import Node, parse_node
from madkv.wire import codec

DONE, FAILED, NOT_SEEN = 0, 1, 2
TRANSFER_SECONDS_MAX = 4.0
"""How long one answer may take: that of a leader which gives up after 1.5 s."""


def transfer_leader(name: str, group: str | None, managers: str) -> int:
    """Do it, and say so; the exit status: DONE, FAILED (another one leads), or NOT_SEEN (no manager answers)."""
    try:
        check_files()
        node = _node(name, group)
        addresses = _addresses(node, managers)
        term = hand_to(node, addresses)
    except (NotSeen, InvalidArgument) as error:
        return _say(str(error), NOT_SEEN)
    except (MadKVError, OSError) as error:
        return _say(str(error), FAILED)
    print(f"{node} leads group {node.group} in term {term}")
    return DONE


def _say(text: str, status: int) -> int:
    print(f"madkv transfer-leader: {text}", file=sys.stderr)
    return status


def _node(name: str, group: str | None) -> Node:
    """The node that is meant: by its id, or by its number in a group that was named."""
    if group is not None:
        named = parse_node(group)
        if named.replica is not None:
            raise InvalidArgument(f"--group {group}: a group is m, s0, s1 and so on")
        if name.isascii() and name.isdigit() and len(name) < 5:
            return named._replace(replica=int(name))
    node = parse_node(name)
    if group is not None and node.group != group:
        raise InvalidArgument(f"{name} is of group {node.group}, not {group}")
    return node


def _addresses(node: Node, managers: str) -> list[str]:
    """Where the replicas of a node's group are. Raises NotSeen, and MadKVError where there is no such group."""
    if node.partition is None:
        return list(map(show_address, parse_addresses(managers)))
    partition_map = ask_map(managers)
    if partition_map is None:
        raise NotSeen(f"no manager at {managers} has a partition map")
    partitions = len(partition_map.replicas)
    if node.partition >= partitions:
        raise MadKVError(f"there is no group {node.group}: the last one is s{partitions - 1}")
    return list(map(show_address, partition_map.replicas[node.partition]))


def hand_to(node: Node, addresses: Sequence[str]) -> int:
    """Have whoever leads the node's group, whose replicas are at these addresses, hand over to it; its term then.

    Asking twice does no harm: a node that leads already says so. Raises MadKVError when it does not come about.
    """
    fields = codec.integer(b"replica", node.replica or 0)
    answer = ask_in_turn(
        f"no replica of group {node.group} leads it",
        addresses,
        lambda address: ask(address, codec.TRANSFER_LEADER, fields, seconds_max=TRANSFER_SECONDS_MAX),
    )
    return codec.take_answer_integer(answer, b"term")
