"""`madkv transfer-leader`: have another replica lead its group, and wait until it does."""

from collections.abc import Sequence

from madkv.addresses import parse_addresses, show_address
from madkv.errors import InvalidArgument, MadKVError, shown
from madkv.operate.ask import Stranger, ask, ask_hello, ask_in_turn, check_files
from madkv.operate.ending import fail
from madkv.operate.health import NotSeen, cluster_of, map_of
from madkv.operate.nodes import Node, is_node, parse_node
from madkv.tls import TLSFiles
from madkv.wire import codec
from madkv.wire.boxes import Box

DONE, FAILED, NOT_SEEN = 0, 1, 2
TRANSFER_SECONDS_MAX = 4.0
"""How long one answer may take: that of a leader which gives up after 1.5 s."""


def transfer_leader(name: str, group: str | None, managers: str) -> int:
    """Do it, and say so; the exit status: DONE, FAILED (another one leads), or NOT_SEEN (no manager answers)."""
    try:
        check_files()
        node = _node(name, group)
        addresses, cluster = _addresses(node, managers)
        term = hand_to(node, addresses, cluster)
    except (NotSeen, InvalidArgument) as error:
        return fail("transfer-leader", error, NOT_SEEN)
    except (MadKVError, OSError) as error:
        return fail("transfer-leader", error, FAILED)
    print(f"{node} leads group {node.group} in term {term}")
    return DONE


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


def _addresses(node: Node, managers: str) -> tuple[list[str], str]:
    """Where the replicas of a node's group are, and of which cluster. Raises NotSeen, and MadKVError where there is no
    such group."""
    if node.partition is None:
        addresses = list(map(show_address, parse_addresses(managers)))
        return addresses, cluster_of(addresses)
    partition_map = map_of(managers)
    partitions = len(partition_map.replicas)
    if node.partition >= partitions:
        raise MadKVError(f"there is no group {node.group}: the last one is s{partitions - 1}")
    return list(map(show_address, partition_map.replicas[node.partition])), partition_map.cluster


def hand_to(node: Node, addresses: Sequence[str], cluster: str = "", files: TLSFiles | None = None) -> int:
    """Have whoever leads the node's group, whose replicas are at these addresses, hand over to it; its term then.

    Nobody else is asked who has come to one of them, of another group or, where it is known, of another `cluster`.
    Asking twice does no harm: a node that leads already says so. `files` are TLS's, as `ask` takes them. Raises
    MadKVError when it does not come about.
    """
    fields = codec.integer(b"replica", node.replica or 0)

    def transfer(address: str) -> Box:
        _check_group(address, node, cluster, files)
        return ask(address, codec.TRANSFER_LEADER, fields, files, TRANSFER_SECONDS_MAX)

    answer = ask_in_turn(f"no replica of group {node.group} leads it", addresses, transfer)
    return codec.take_answer_integer(answer, b"term")


def _check_group(address: str, node: Node, cluster: str, files: TLSFiles | None) -> None:
    hello = ask_hello(address, files)
    name, theirs = shown(hello.get(b"node", b"")), shown(hello.get(b"cluster", b""))
    if not is_node(name) or parse_node(name).group != node.group or (cluster and theirs and theirs != cluster):
        raise Stranger(f"it is {name or 'no node'} of cluster {theirs or 'no name'}")
