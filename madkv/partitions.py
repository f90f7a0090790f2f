"""The partition map as it travels: which range of keys belongs to which partition, and where its replicas are.

Pure, and light: the line client imports it before its first call.
"""

import struct
from bisect import bisect_right
from itertools import pairwise

from madkv.addresses import Address, parse_address, show_address
from madkv.errors import InvalidArgument, ProtocolError

_HEAD = struct.Struct(">QHHH")  # epoch, length of the cluster id, numbers of ranges and of partitions
_RANGE = struct.Struct(">HH")  # owner, length of the start
_COUNT = struct.Struct(">H")


class PartitionMap:
    """A list of ranges in key order that cover every key, each with its partition; a partition may own several."""

    __slots__ = ("cluster", "epoch", "owners", "replicas", "starts")

    def __init__(
        self, epoch: int, cluster: str, starts: list[bytes], owners: list[int], replicas: list[list[Address]]
    ) -> None:
        """Range number i begins at `starts[i]` (the first at the empty key), ends where the next begins, and belongs
        to partition `owners[i]`. `replicas[p][r]` is where clients reach replica r of partition p.

        Raises ValueError for ranges in no order, or an owner that is no partition.
        """
        if not starts or starts[0] or any(a >= b for a, b in pairwise(starts)):
            raise ValueError("ranges of a partition map begin at the empty key and ascend")
        if len(owners) != len(starts) or not all(0 <= owner < len(replicas) for owner in owners):
            raise ValueError("a range of a partition map has no owner")
        if not all(replicas):
            raise ValueError("a partition without replicas")
        self.epoch = epoch
        self.cluster = cluster
        self.starts = starts
        self.owners = owners
        self.replicas = replicas

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartitionMap):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def partition_of(self, key: bytes) -> int:
        """The partition that owns `key`."""
        return self.owners[bisect_right(self.starts, key) - 1]

    def pieces(self, start: bytes, end: bytes) -> list[tuple[int, bytes, bytes | None]]:
        """What a scan from `start` to `end`, both included, has to ask for, in key order: partition, first key, and
        where the next piece begins (None: nowhere before the end). Neighbouring ranges of one owner are one piece.
        """
        if start > end:
            return []
        first, last = bisect_right(self.starts, start) - 1, bisect_right(self.starts, end) - 1
        begins = [(self.owners[first], start)]
        for at in range(first + 1, last + 1):
            if self.owners[at] != begins[-1][0]:
                begins.append((self.owners[at], self.starts[at]))
        nexts: list[bytes | None] = [begin for _, begin in begins[1:]]
        return [(owner, begin, following) for (owner, begin), following in zip(begins, [*nexts, None], strict=True)]

    def encode(self) -> bytes:
        """Epoch, cluster, ranges, then each partition's addresses as text."""
        cluster = self.cluster.encode()
        parts = [_HEAD.pack(self.epoch, len(cluster), len(self.starts), len(self.replicas)), cluster]
        for start, owner in zip(self.starts, self.owners, strict=True):
            parts += (_RANGE.pack(owner, len(start)), start)
        for addresses in self.replicas:
            text = ",".join(map(show_address, addresses)).encode()
            parts += (_COUNT.pack(len(text)), text)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> "PartitionMap":
        """The inverse of `encode`. Raises ProtocolError for anything else."""
        try:
            epoch, cluster_bytes, ranges, partitions = _HEAD.unpack_from(data)
            at = _HEAD.size + cluster_bytes
            cluster = data[_HEAD.size : at].decode()
            starts, owners = [], []
            for _ in range(ranges):
                owner, start_bytes = _RANGE.unpack_from(data, at)
                at += _RANGE.size + start_bytes
                starts.append(data[at - start_bytes : at])
                owners.append(owner)
            replicas = []
            for _ in range(partitions):
                (text_bytes,) = _COUNT.unpack_from(data, at)
                at += _COUNT.size + text_bytes
                replicas.append([parse_address(text) for text in data[at - text_bytes : at].decode().split(",")])
            if at != len(data):
                raise ValueError("a wrong length")
            return cls(epoch, cluster, starts, owners, replicas)
        except (struct.error, ValueError, InvalidArgument) as error:
            raise ProtocolError(f"not a partition map: {error}") from None
