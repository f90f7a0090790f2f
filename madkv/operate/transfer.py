"""`madkv transfer-leader`: have another replica lead its group, and wait until it does."""

import sys
import time
from collections.abc import Sequence

from madkv.addresses import parse_addresses, show_address
from madkv.errors import Interrupted, InvalidArgument, MadKVError, Refused
from madkv.operate.ask import ask, check_files
from madkv.operate.health import NotSeen, map_of
from madkv.operate.nodes import Node, parse_node
from madkv.wire import codec

DONE, FAILED, NOT_SEEN = 0, 1, 2
TRANSFER_SECONDS_MAX = 4.0
"""How long one answer may take: that of a leader which gives up after 1.5 s."""
LOOK_SECONDS_MAX = 10.0
"""How long to look for the leader of a group that has none at the moment."""
PAUSE_SECONDS = 0.2


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
    partition_map = map_of(managers)
    partitions = len(partition_map.replicas)
    if node.partition >= partitions:
        raise MadKVError(f"there is no group {node.group}: the last one is s{partitions - 1}")
    return list(map(show_address, partition_map.replicas[node.partition]))


def hand_to(node: Node, addresses: Sequence[str]) -> int:
    """Have whoever leads the node's group, whose replicas are at these addresses, hand over to it; its term then.

    Asking twice does no harm: a node that leads already says so. Raises MadKVError when it does not come about.
    """
    fields = codec.integer(b"replica", node.replica or 0)
    ends = time.monotonic() + LOOK_SECONDS_MAX
    while True:
        problems: list[str] = []
        for address in addresses:
            try:
                answer = ask(address, codec.TRANSFER_LEADER, fields, seconds_max=TRANSFER_SECONDS_MAX)
            except (Refused, Interrupted, OSError) as error:
                problems.append(f"{address}: {error}")
            else:
                return codec.take_answer_integer(answer, b"term")
        if time.monotonic() >= ends:
            raise MadKVError(f"no replica of group {node.group} leads it: {'; '.join(problems)}")
        time.sleep(PAUSE_SECONDS)
