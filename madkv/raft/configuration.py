"""Who is a member of a group, and what a majority of them is."""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import attrs

DISK_ID_BYTES = 16
_HEAD = struct.Struct(">BHH")
_REPLICA = struct.Struct(">H")
_VERSION = 1


class Member(NamedTuple):
    """A replica on one disk. A replica that comes back on a blank disk is another member: it remembers no vote.

    (A tuple, since it is compared or looked up with every message, and Python compares tuples without running code.)
    """

    replica: int
    disk: bytes

    def __str__(self) -> str:
        return f"{self.replica}/{self.disk.hex()[:4]}"


def quorum_value(reached: list[int]) -> int:
    """The largest number that a majority has reached; `reached`, which this sorts, has one for each voter."""
    reached.sort(reverse=True)
    return reached[len(reached) // 2] if reached else 0


@attrs.frozen
class Configuration:
    """Voters decide; learners receive the log and count for nothing. No member is both."""

    voters: frozenset[Member]
    learners: frozenset[Member] = frozenset()

    members: frozenset[Member] = attrs.field(init=False, eq=False, repr=False)
    """Everybody who receives the log."""

    def __attrs_post_init__(self) -> None:
        assert not self.voters & self.learners
        object.__setattr__(self, "members", self.voters | self.learners)

    def is_quorum(self, members: Iterable[Member]) -> bool:
        """Whether these hold a majority of the voters."""
        return 2 * len(self.voters.intersection(members)) > len(self.voters)

    def differs_by_one_voter(self, other: "Configuration") -> bool:
        """Whether any majority of the one shares a voter with any majority of the other (dissertation, section 4.1)."""
        return len(self.voters ^ other.voters) <= 1

    def encode(self) -> bytes:
        """Version, numbers of voters and learners, then replica number and disk id of each, in order."""
        parts = [_HEAD.pack(_VERSION, len(self.voters), len(self.learners))]
        for member in (*sorted(self.voters), *sorted(self.learners)):
            parts += (_REPLICA.pack(member.replica), member.disk)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> "Configuration":
        """The inverse of `encode`. Raises ValueError for anything else."""
        if len(data) < _HEAD.size:
            raise ValueError("a configuration cut short")
        version, voters, learners = _HEAD.unpack_from(data)
        member_bytes = _REPLICA.size + DISK_ID_BYTES
        if version != _VERSION or len(data) != _HEAD.size + (voters + learners) * member_bytes:
            raise ValueError("not a configuration")
        members = []
        for at in range(_HEAD.size, len(data), member_bytes):
            (replica,) = _REPLICA.unpack_from(data, at)
            members.append(Member(replica, data[at + _REPLICA.size : at + member_bytes]))
        if len(set(members)) != len(members):
            raise ValueError("a member twice in a configuration")
        if [*sorted(members[:voters]), *sorted(members[voters:])] != members:
            raise ValueError("members of a configuration in no order")
        return cls(voters=frozenset(members[:voters]), learners=frozenset(members[voters:]))
