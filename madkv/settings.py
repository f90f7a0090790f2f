"""What a cluster is told when it is founded, and keeps for good."""

import json
from collections.abc import Callable, Sequence

import attrs

from madkv.addresses import Address, parse_address, show_address
from madkv.errors import InvalidArgument, shown
from madkv.limits import KEY_BYTES_MAX, PARTITIONS_MAX, REPLICAS_MAX

MANAGERS = 0xFFFF
"""Stands for the managers' own group where a number of a partition stands otherwise."""


def check_group_size(size: int) -> None:
    """A group has an odd number of replicas: an even one survives no more failures than one less. InvalidArgument."""
    if not 1 <= size <= REPLICAS_MAX or size % 2 == 0:
        raise InvalidArgument(f"a group has 1, 3, 5, 7 or {REPLICAS_MAX} replicas, not {size}")


def port_difference(
    name_of: Callable[[int], str], one: int, its: Sequence[int], other: int, others: Sequence[int]
) -> str | None:
    """What two replicas of a group say differently about the group's p2p ports; None when they agree.

    The ports come by replica number, as many on both sides.
    """
    for number, (here, there) in enumerate(zip(its, others, strict=True)):
        if here != there:
            return (
                f"{name_of(one)} and {name_of(other)} do not agree about the p2p port of {name_of(number)}: "
                f"{here} and {there}; see their --p2p-port and --peers"
            )
    return None


@attrs.frozen
class Settings:
    """How many servers there are, where, and how keys are cut. Raises InvalidArgument for what cannot be."""

    rf: int
    """Replicas of each partition."""
    servers: tuple[Address, ...]
    """Where clients reach each server: those of partition 0 in the order of their replica numbers, then partition 1."""
    splits: tuple[bytes, ...] = ()
    """Where each partition but the first begins; empty: left to MadKV."""

    def __attrs_post_init__(self) -> None:
        check_group_size(self.rf)
        count = len(self.servers)
        if not count or count % self.rf:
            raise InvalidArgument(f"{count} servers are no whole number of partitions with {self.rf} replicas each")
        if self.partitions > PARTITIONS_MAX:
            raise InvalidArgument(f"at most {PARTITIONS_MAX} partitions; these are {self.partitions}")
        for number, address in enumerate(self.servers):
            if address in self.servers[:number]:
                raise InvalidArgument(f"{show_address(address)} comes twice among the servers")
        if self.splits:
            if len(self.splits) != self.partitions - 1:
                raise InvalidArgument(
                    f"{self.partitions} partitions are cut at {self.partitions - 1} keys, not at {len(self.splits)}"
                )
            if not all(0 < len(split) <= KEY_BYTES_MAX for split in self.splits):
                raise InvalidArgument(f"a split key has 1 to {KEY_BYTES_MAX} bytes")
            if list(self.splits) != sorted(set(self.splits)):
                raise InvalidArgument("split keys ascend, and none comes twice")

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return len(self.servers) // self.rf

    def address_of(self, partition: int, replica: int) -> Address:
        """Where clients reach a server."""
        return self.servers[partition * self.rf + replica]

    def encode(self) -> bytes:
        """As JSON; split keys in hexadecimal."""
        facts = {
            "rf": self.rf,
            "servers": [show_address(address) for address in self.servers],
            "splits": [split.hex() for split in self.splits],
        }
        return json.dumps(facts).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Settings":
        """The inverse of `encode`. Raises ValueError for anything else."""
        try:
            facts = json.loads(data)
            rf, servers, splits = facts["rf"], facts["servers"], facts["splits"]
            if type(rf) is not int:
                raise ValueError("rf is no number")
            return cls(rf, tuple(map(parse_address, servers)), tuple(map(bytes.fromhex, splits)))
        except (KeyError, TypeError, AttributeError, RecursionError, InvalidArgument) as error:
            raise ValueError(f"not settings of a cluster: {error}") from None

    def difference(self, other: "Settings") -> str | None:
        """What these say and `other` does not, in the words of a manager's options; None when they are the same."""
        if self.rf != other.rf:
            return f"--server-rf {self.rf}, not {other.rf}"
        if self.servers != other.servers:
            if len(self.servers) != len(other.servers):
                return f"{len(self.servers)} --servers, not {len(other.servers)}"
            at = next(at for at, (a, b) in enumerate(zip(self.servers, other.servers, strict=True)) if a != b)
            return f"{show_address(self.servers[at])}, not {show_address(other.servers[at])}, among --servers"
        if self.splits != other.splits:
            return f"--splits {_show(self.splits)}, not {_show(other.splits)}"
        return None


def _show(splits: tuple[bytes, ...]) -> str:
    return ",".join(shown(split, KEY_BYTES_MAX) for split in splits) or "left out"
