"""`madkv status`: how a cluster is, by the addresses of its managers."""

import json
from typing import Any

from madkv.addresses import show_address
from madkv.errors import MadKVError
from madkv.operate import health
from madkv.operate.ask import ask_map, check_files
from madkv.operate.ending import fail
from madkv.operate.health import Statuses
from madkv.partitions import PartitionMap

WELL, AILING, NOT_SEEN = 0, 1, 2
COLUMNS = (*health.COLUMNS, "version")


def status(managers: str, *, as_json: bool = False) -> int:
    """Print how every node is, who owns which keys, and what is wrong; the exit status: WELL, AILING or NOT_SEEN."""
    try:
        check_files()
        statuses = health.look_by_managers(managers)
    except MadKVError as error:
        return fail("status", error, NOT_SEEN)
    partition_map = ask_map(managers)
    ailments = health.ailments(statuses, partition_map)
    if as_json:
        print(json.dumps(facts(statuses, partition_map, ailments), indent=2))
    else:
        print("\n".join(health.table(list(health.rows(statuses).values()), COLUMNS)))
        for line in (*owners(partition_map), *(f"unwell: {each}" for each in ailments)):
            print(line)
    return AILING if ailments else WELL


def owners(partition_map: PartitionMap | None) -> list[str]:
    """A line for each partition: the keys that it owns."""
    if partition_map is None:
        return []
    told = []
    for partition, ranges in enumerate(_ranges(partition_map)):
        named = " and ".join(_shown(start, end) for start, end in ranges)
        told.append(f"s{partition} owns {named or 'no keys'}")
    return told


def _ranges(partition_map: PartitionMap) -> list[list[tuple[bytes, bytes | None]]]:
    """By partition: where each of its ranges starts and ends (None: nowhere)."""
    ranges: list[list[tuple[bytes, bytes | None]]] = [[] for _ in partition_map.replicas]
    ends: list[bytes | None] = [*partition_map.starts[1:], None]
    for start, end, owner in zip(partition_map.starts, ends, partition_map.owners, strict=True):
        ranges[owner].append((start, end))
    return ranges


def _shown(start: bytes, end: bytes | None) -> str:
    first, last = (repr(key or b"")[1:] for key in (start, end))
    if end is None:
        return f"keys from {first} on" if start else "all keys"
    return f"keys from {first} to before {last}" if start else f"keys before {last}"


def facts(statuses: Statuses, partition_map: PartitionMap | None, ailments: list[str]) -> dict[str, Any]:
    """All of it as the JSON object that docs/operations.md describes."""
    nodes = []
    for node, found in statuses.items():
        said = found or {}
        leader = health.known_leader(node, said)
        nodes.append(
            {
                "node": str(node),
                "answers": found is not None,
                "leader": None if leader is None else str(leader),
                "lag": health.lag_of(said, health.group_of(statuses, node.group)),
                **{name: said.get(name) for name in ("role", "term", "commit", "applied", "data_bytes", "version")},
            }
        )
    partitions = []
    if partition_map is not None:
        for partition, ranges in enumerate(_ranges(partition_map)):
            partitions.append(
                {
                    "partition": partition,
                    "ranges": [[_text(start), None if end is None else _text(end)] for start, end in ranges],
                    "replicas": [show_address(address) for address in partition_map.replicas[partition]],
                }
            )
    return {
        "cluster": None if partition_map is None else partition_map.cluster,
        "epoch": None if partition_map is None else partition_map.epoch,
        "nodes": nodes,
        "partitions": partitions,
        "ailments": ailments,
        "well": not ailments,
    }


def _text(key: bytes) -> str:
    """A character for each byte, so that every key can be had back."""
    return key.decode("latin-1")
