"""What the managers replicate: the settings, who is registered where, and which partition owns which keys.

Theory of operation. `ClusterMachine` is to the managers' group what `StateMachine` is to a group of servers: entries of
the log change it, alike on every manager, and nothing else does. It knows *slots*: a replica number of a partition, or
of the managers (`MANAGERS`). A slot goes through

    nobody --Register--> a disk --Vacate--> vacant --Register, FillManager--> another disk, catching up --> a disk

A group's *first configuration* is fixed when the last of its slots has registered, and never changes: a disk that is
named there may begin with an empty log, and any other may not, since it would not know what it once promised.

One disk of a group at a time is replaced, and none in a group of one: there is nobody to get its data from.
"""

import re
import struct
from collections.abc import Iterable
from hashlib import sha256

import attrs

from madkv.errors import InvalidArgument, MadKVError, Rejected
from madkv.operations import FillManager, Found, Operation, Outcome, Register, Vacate, decode, encode
from madkv.partitions import PartitionMap
from madkv.raft.configuration import DISK_ID_BYTES, Configuration, Member
from madkv.ranges import KeyRange, Ownership
from madkv.session_rows import TIME_KEY, decode_time, encode_time
from madkv.settings import MANAGERS, Settings, port_difference

CHARACTERS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
YCSB_PREFIX = b"usertable_user"
"""All keys of YCSB begin like this, with decimal digits after it."""
YCSB_END = b"usertable_uses"
NAMES_SHOWN = 8

_FOUND_KEY = b"f"
_SLOT_KEY = struct.Struct(">cHH")
_FIRST_KEY = struct.Struct(">cH")
_SLOT = struct.Struct(f">{DISK_ID_BYTES}s??B")

Cut = tuple[tuple[bytes, int], ...]
Rows = list[tuple[bytes, bytes]]


def first_cut(partitions: int, splits: tuple[bytes, ...] = ()) -> Cut:
    """Ranges as (start, partition), from the empty key on.

    With `splits`, partition i is what lies between two of them. Otherwise each partition gets an equal part of the
    keyspace of letters and digits, and of YCSB's block of keys an equal part by the digits.
    """
    if splits or partitions == 1:
        return tuple(zip((b"", *splits), range(partitions), strict=True))
    starts = [b"", *(_key_at(CHARACTERS, number, partitions) for number in range(1, partitions))]
    before = max(number for number in range(partitions) if starts[number] <= YCSB_PREFIX)
    cut = [(start, number) for number, start in enumerate(starts) if number <= before]
    cut.append((YCSB_PREFIX, 0))
    for number in range(1, partitions):
        cut.append((YCSB_PREFIX + _key_at(b"0123456789", number, partitions), number))
    cut.append((YCSB_END, before))
    cut += [(start, number) for number, start in enumerate(starts) if number > before]
    # Neighbours of one owner are one range.
    return tuple(cut[at] for at in range(len(cut)) if not at or cut[at][1] != cut[at - 1][1])


def _key_at(characters: bytes, number: int, of: int) -> bytes:
    """The key of at most three characters that has number/of of all such keys before it."""
    base = len(characters)
    place = round(base**3 * number / of)
    key = bytes(characters[place // base**power % base] for power in (2, 1, 0))
    return key.rstrip(characters[:1])


def cluster_id(managers: Configuration) -> str:
    """A cluster's name, from its managers' first configuration."""
    return sha256(managers.encode()).hexdigest()[:16]


def parse_node(name: str) -> tuple[int, int | None]:
    """Partition (or MANAGERS) and replica, if it is said, of `s0`, `s0.1`, `m` or `m.1`. Raises InvalidArgument."""
    found = re.fullmatch(r"(?:s([0-9]{1,4})|m)(?:\.([0-9]{1,4}))?", name, re.ASCII)
    if found is None:
        raise InvalidArgument(f"{name!r} is no node; write s0, s0.1, m or m.1")
    return MANAGERS if found[1] is None else int(found[1]), None if found[2] is None else int(found[2])


@attrs.frozen
class Slot:
    """The disk that holds a replica's place."""

    disk: bytes
    ports: tuple[int, ...] = ()
    """P2p ports of its group as this replica was told of them, by replica number."""
    is_vacant: bool = False
    """The disk was given up, and no other has come."""
    is_catching_up: bool = False
    """The disk has come in the place of another, and does not count in its group yet."""

    def encode(self) -> bytes:
        """As a row."""
        head = _SLOT.pack(self.disk, self.is_vacant, self.is_catching_up, len(self.ports))
        return head + struct.pack(f">{len(self.ports)}H", *self.ports)

    @classmethod
    def decode(cls, row: bytes) -> "Slot":
        """The inverse of `encode`. Raises ValueError for anything else."""
        try:
            disk, is_vacant, is_catching_up, count = _SLOT.unpack_from(row)
            ports = struct.unpack(f">{count}H", row[_SLOT.size :])
        except struct.error:
            raise ValueError("a slot's row of a wrong length") from None
        slot = cls(disk, ports, is_vacant, is_catching_up)
        if slot.encode() != row:
            raise ValueError("a slot's row that is none")
        return slot


class ClusterMachine:
    """The managers' state, changed by `apply` alone."""

    def __init__(self) -> None:
        self.founded: Found | None = None
        """How the cluster began; None until it has."""
        self.slots: dict[tuple[int, int], Slot] = {}
        """By partition (or MANAGERS) and replica; a slot in which nobody ever was is not there."""
        self.firsts: dict[int, Configuration] = {}
        """First configurations, by partition or MANAGERS, of the groups that have one."""
        self.epoch = 0
        """Of the partition map: 1 from the founding on."""
        self.time_ms = 0
        self.last_applied = 0
        self._changed: dict[bytes, bytes | None] = {}

    # --- As `Replica` uses it -----------------------------------------------------------------------------------------

    def apply(self, index: int, time_ms: int, operation: Operation) -> Outcome:
        """Execute the operation at `index`, the one after `last_applied`. A refusal is returned."""
        self.skip(index)
        self.time_ms = max(self.time_ms, time_ms)
        if isinstance(operation, Found):
            return self._found(operation)
        if self.founded is None:
            return Rejected("the cluster is not founded yet")
        if isinstance(operation, Register):
            slot = self.judge_registration(operation)
            return self._take(operation.partition, operation.replica, slot)
        if isinstance(operation, FillManager):
            slot = self.judge_manager(operation)
            return self._take(MANAGERS, operation.replica, slot)
        assert isinstance(operation, Vacate)
        return self._vacate(operation.partition, operation.replica)

    def skip(self, index: int) -> None:
        """Go past an entry that holds no operation."""
        assert index == self.last_applied + 1, f"entry {index} does not follow {self.last_applied}"
        self.last_applied = index

    def misplaced(self, key: bytes) -> None:
        """Nothing is out of place here: there are no keys."""
        return

    def take_changes(self) -> dict[bytes, bytes | None]:
        """The rows that differ from when this was last called; None for one that is gone."""
        rows, self._changed = self._changed, {}
        rows[TIME_KEY] = encode_time(self.time_ms)
        return rows

    def has_changed(self, rows: int, size_bytes: int) -> bool:
        """Whether `take_changes` would give so many rows; of few bytes each."""
        return len(self._changed) >= rows

    def decode_rows(self, rows: Iterable[tuple[bytes, bytes]]) -> Rows:
        """They are few: `restore` decodes them."""
        return list(rows)

    def restore(self, rows: Rows, last_applied: int) -> None:
        """Take up a state from its rows. Raises ValueError for what is none."""
        self.founded, self.epoch, self.time_ms = None, 0, 0
        self.slots, self.firsts, self._changed = {}, {}, {}
        for key, row in rows:
            if key == TIME_KEY:
                self.time_ms = decode_time(row)
            elif key == _FOUND_KEY:
                _, founded = decode(row)
                if not isinstance(founded, Found):
                    raise ValueError("not the row of a founding")
                self.founded, self.epoch = founded, 1
            elif key[:1] == b"s" and len(key) == _SLOT_KEY.size:
                _, partition, replica = _SLOT_KEY.unpack(key)
                self.slots[partition, replica] = Slot.decode(row)
            elif key[:1] == b"c" and len(key) == _FIRST_KEY.size:
                self.firsts[_FIRST_KEY.unpack(key)[1]] = Configuration.decode(row)
            else:
                raise ValueError(f"a row of the managers' with the key {key!r}")
        self.last_applied = last_applied

    # --- What there is ------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """Those that the cluster was founded with."""
        assert self.founded is not None
        return self.founded.settings

    @property
    def cluster(self) -> str:
        """The cluster's id."""
        assert self.founded is not None
        return cluster_id(self.founded.managers)

    def group_size(self, partition: int) -> int:
        """Replicas of a partition, or of the managers."""
        assert self.founded is not None
        return len(self.founded.managers.voters) if partition == MANAGERS else self.settings.rf

    def name_of(self, partition: int, replica: int) -> str:
        """As people call a node."""
        group = "m" if partition == MANAGERS else f"s{partition}"
        return f"{group}.{replica}" if self.group_size(partition) > 1 else group

    def wanted(self, partition: int) -> Configuration:
        """Its voters are the disks that the group should be on; a vacant slot has none."""
        return Configuration(
            frozenset(
                Member(replica, slot.disk)
                for (group, replica), slot in self.slots.items()
                if group == partition and not slot.is_vacant
            )
        )

    def ownership_of(self, partition: int) -> Ownership:
        """What a partition owns as of this epoch."""
        assert self.founded is not None
        cut = self.founded.cut
        ends = [start for start, _ in cut[1:]]
        ranges = [
            KeyRange(start, end) for (start, owner), end in zip(cut, [*ends, None], strict=True) if owner == partition
        ]
        return Ownership(self.epoch, tuple(ranges))

    def partition_map(self) -> PartitionMap:
        """Where every key is. Only of use once nobody is `missing`."""
        assert self.founded is not None
        settings = self.settings
        replicas = [
            [settings.address_of(partition, replica) for replica in range(settings.rf)]
            for partition in range(settings.partitions)
        ]
        starts, owners = zip(*self.founded.cut, strict=True)
        return PartitionMap(self.epoch, self.cluster, list(starts), list(owners), replicas)

    def missing(self) -> list[str]:
        """The servers that were never there."""
        settings = self.settings
        return [
            self.name_of(partition, replica)
            for partition in range(settings.partitions)
            for replica in range(settings.rf)
            if (partition, replica) not in self.slots
        ]

    def waiting_line(self) -> str | None:
        """Who is missing, for people; None when everybody was there."""
        missing, count = self.missing(), len(self.settings.servers)
        if not missing:
            return None
        names = ", ".join(missing[:NAMES_SHOWN])
        more = f" and {len(missing) - NAMES_SHOWN} more" if len(missing) > NAMES_SHOWN else ""
        return f"waiting for {names}{more} ({count - len(missing)} of {count} registered)"

    # --- Judgement, also before anything is proposed ------------------------------------------------------------------

    def judge_registration(self, claim: Register) -> Slot | Rejected:
        """The slot as it would be after a server's registration, or the refusal of it."""
        settings = self.settings
        partition, replica = claim.partition, claim.replica
        if partition >= settings.partitions:
            return Rejected(
                f"there is no partition {partition}: the managers' --servers are {len(settings.servers)} with "
                f"--server-rf {settings.rf}, so partitions go from 0 to {settings.partitions - 1}"
            )
        if replica >= settings.rf:
            return Rejected(f"there is no replica {replica}: the managers' --server-rf is {settings.rf}")
        name = self.name_of(partition, replica)
        size = len(claim.ports) or 1
        if size != settings.rf:
            return Rejected(f"{name} has --peers for {size} replicas; the managers' --server-rf is {settings.rf}")
        for other in range(settings.rf):
            theirs = self.slots.get((partition, other))
            if other == replica or theirs is None:
                continue
            difference = port_difference(
                lambda number: self.name_of(partition, number), replica, claim.ports, other, theirs.ports
            )
            if difference is not None:
                return Rejected(difference)
        return self._judge_disk(partition, replica, Slot(claim.disk, claim.ports), claim.has_vote)

    def judge_manager(self, claim: FillManager) -> Slot | Rejected:
        """The slot as it would be after a manager on another disk has come, or the refusal of it."""
        if claim.replica >= self.group_size(MANAGERS):
            return Rejected(f"there is no manager {claim.replica}: this cluster has {self.group_size(MANAGERS)}")
        return self._judge_disk(MANAGERS, claim.replica, Slot(claim.disk), claim.has_vote)

    def _judge_disk(self, partition: int, replica: int, claimed: Slot, has_vote: bool) -> Slot | Rejected:
        present = self.slots.get((partition, replica))
        name = self.name_of(partition, replica)
        if present is None:
            return claimed
        if present.disk == claimed.disk:
            if present.is_vacant:
                return Rejected(f"the disk of {name} was given up by replace-disk: start it on an empty directory")
            return attrs.evolve(claimed, is_catching_up=present.is_catching_up and not has_vote)
        if present.is_vacant:
            return attrs.evolve(claimed, is_catching_up=not has_vote)
        if self.group_size(partition) == 1:
            return Rejected(
                f"{name} is registered on another disk, which has all of its data: start it on the directory it had"
            )
        return Rejected(
            f"{name} is registered on another disk. If that disk is lost for good: "
            f"`madkv replace-disk {name} --managers …`, then start this again"
        )

    # --- Changes ------------------------------------------------------------------------------------------------------

    def _found(self, found: Found) -> MadKVError | None:
        if self.founded is not None:
            difference = self.settings.difference(found.settings)
            return None if difference is None else Rejected(f"this cluster was founded with {difference}")
        self.founded, self.epoch = found, 1
        self._changed[_FOUND_KEY] = encode(0, found)
        for member in found.managers.voters:
            self._set_slot(MANAGERS, member.replica, Slot(member.disk))
        self._set_first(MANAGERS, found.managers)
        return None

    def _take(self, partition: int, replica: int, slot: Slot | Rejected) -> Rejected | None:
        if isinstance(slot, Rejected):
            return slot
        self._set_slot(partition, replica, slot)
        everybody = self.wanted(partition)
        if partition not in self.firsts and len(everybody.voters) == self.group_size(partition):
            self._set_first(partition, everybody)
        return None

    def _vacate(self, partition: int, replica: int) -> Rejected | None:
        if (partition != MANAGERS and partition >= self.settings.partitions) or replica >= self.group_size(partition):
            return Rejected("this cluster has no such node")
        name = self.name_of(partition, replica)
        if self.group_size(partition) == 1:
            return Rejected(f"{name} has no other replica to get its data from: its disk cannot be replaced")
        slot = self.slots.get((partition, replica))
        if slot is None:
            return Rejected(f"{name} has never registered: it needs no replacement, just start it")
        if partition not in self.firsts:
            # The group has not begun: nothing is on that disk, and no other is to get anything from it.
            del self.slots[partition, replica]
            self._changed[_SLOT_KEY.pack(b"s", partition, replica)] = None
            return None
        for (group, other), theirs in sorted(self.slots.items()):
            if group == partition and other != replica and (theirs.is_vacant or theirs.is_catching_up):
                why = "is catching up on another" if theirs.is_catching_up else "is vacant"
                return Rejected(f"one disk at a time: that of {self.name_of(group, other)} {why}")
        self._set_slot(partition, replica, attrs.evolve(slot, is_vacant=True, is_catching_up=False))
        return None

    def _set_slot(self, partition: int, replica: int, slot: Slot) -> None:
        self.slots[partition, replica] = slot
        self._changed[_SLOT_KEY.pack(b"s", partition, replica)] = slot.encode()

    def _set_first(self, partition: int, first: Configuration) -> None:
        self.firsts[partition] = first
        self._changed[_FIRST_KEY.pack(b"c", partition)] = first.encode()
