"""Ranges of keys, and which of them a group owns."""

import struct
from bisect import bisect_right

import attrs

_HEAD = struct.Struct(">QH")  # epoch, number of ranges
_RANGE = struct.Struct(">HBH")  # length of the start, whether there is an end, its length


@attrs.frozen(order=True)
class KeyRange:
    """Keys from `start` on, before `end`; None: there is no end."""

    start: bytes = b""
    end: bytes | None = None

    def __contains__(self, key: bytes) -> bool:
        return self.start <= key and (self.end is None or key < self.end)


@attrs.frozen
class Ownership:
    """What a group owns as of an epoch of the partition map: ranges in key order that do not overlap."""

    epoch: int
    ranges: tuple[KeyRange, ...]
    _starts: tuple[bytes, ...] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_starts", tuple(each.start for each in self.ranges))
        if any(each.end is not None and each.end <= each.start for each in self.ranges):
            raise ValueError("a range that ends where it begins, or before")
        for lower, upper in zip(self.ranges, self.ranges[1:], strict=False):
            if lower.end is None or lower.end > upper.start:
                raise ValueError(f"ranges overlap or stand in no order: {lower}, {upper}")

    def range_of(self, key: bytes) -> KeyRange | None:
        """The range that holds `key`, None when the group does not own it."""
        at = bisect_right(self._starts, key) - 1
        return self.ranges[at] if at >= 0 and key in self.ranges[at] else None

    def stretch_of(self, key: bytes) -> KeyRange | None:
        """As `range_of`, joined with the ranges that follow without a gap."""
        at = bisect_right(self._starts, key) - 1
        if at < 0 or key not in self.ranges[at]:
            return None
        last = at
        while last + 1 < len(self.ranges) and self.ranges[last].end == self.ranges[last + 1].start:
            last += 1
        return KeyRange(self.ranges[at].start, self.ranges[last].end)

    def encode(self) -> bytes:
        """Epoch, number of ranges, and each range's two ends."""
        parts = [_HEAD.pack(self.epoch, len(self.ranges))]
        for each in self.ranges:
            end = each.end or b""
            parts += (_RANGE.pack(len(each.start), each.end is not None, len(end)), each.start, end)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> "Ownership":
        """The inverse of `encode`. Raises ValueError for anything else."""
        try:
            epoch, count = _HEAD.unpack_from(data)
            ranges, at = [], _HEAD.size
            for _ in range(count):
                start_bytes, has_end, end_bytes = _RANGE.unpack_from(data, at)
                at += _RANGE.size
                if has_end > 1 or (end_bytes and not has_end):
                    raise ValueError("a range of keys that is none")
                start, end = data[at : at + start_bytes], data[at + start_bytes : at + start_bytes + end_bytes]
                at += start_bytes + end_bytes
                ranges.append(KeyRange(start, end if has_end else None))
        except struct.error:
            raise ValueError("an ownership cut short") from None
        if at != len(data):
            raise ValueError("an ownership with a wrong length")
        return cls(epoch, tuple(ranges))


EVERYTHING = Ownership(0, (KeyRange(),))
"""What a group owns that is the whole store."""
NOTHING = Ownership(0, ())
"""What a group of a cluster owns until it was said in its log."""
