"""What the fuzzer's clients call, and on which keys: all of it follows from a seed, but for the run's id in the keys.

Theory of operation. Keys come in groups of four with a common prefix, so that a Scan over a group meets nothing but
keys of this run. Two groups in three start with alphanumeric characters that are spread evenly from `0` to `z`, the
third looks like YCSB's (`usertable_user` and a digit): wherever the keyspace is cut, both sides are called upon. When
clients share their keys, most calls at any time go to a few hot groups, about two clients a key, and which groups
are hot changes every few dozen calls: so there is contention on every key, yet never too much to be judged.
"""

import random
import string
from collections.abc import Iterator, Sequence
from itertools import pairwise

from madkv.testing.lines import Call

ALPHANUMERIC = string.digits + string.ascii_uppercase + string.ascii_lowercase
KEYS_PER_GROUP = 4
GROUPS_PER_CLIENT = 3
"""Without conflict; with it, there are SHARED_GROUPS and one more for each CLIENTS_PER_HOT_GROUP."""
SHARED_GROUPS = 12
CLIENTS_PER_HOT_GROUP = 8
GROUPS_PER_PARTITION = 3
"""At least: two of them alphanumeric, so that each partition, of an even share of the keyspace, is called upon."""
HOT_CALLS = 40
"""Calls of one client from one change of the hot groups to the next."""
HOT_SHARE = 0.8

KINDS_AND_WEIGHTS = {"PUT": 30, "SWAP": 15, "GET": 30, "DELETE": 12, "SCAN": 13}
SIZES_AND_WEIGHTS = {(4, 30): 8000, (100, 120): 1500, (1000, 1100): 480, (3000, 5000): 18, (70_000, 100_000): 2}
"""Bytes of a value: short ones; YCSB's update and insert; some longer; and some that no single AMP value holds."""
_POOL_BYTES = 1 << 18


class Group:
    """Keys with a common prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.keys = [self.prefix + b"%d" % number for number in range(KEYS_PER_GROUP)]


def make_groups(count: int, run: str, offset: int) -> list[Group]:
    """`count` groups over the keyspace, in no particular order, that start at an `offset`; each key holds `run`."""
    alphanumeric = count - count // 3
    groups = []
    for number in range(count):
        if number % 3 == 2:
            start = f"usertable_user{(number // 3 + offset) % 10}"
        else:
            place = (number - number // 3) * len(ALPHANUMERIC) // alphanumeric
            start = ALPHANUMERIC[(place + offset) % len(ALPHANUMERIC)]
        groups.append(Group(f"{start}{run}{number:03}"))
    return groups


class Values:
    """Values that are never twice the same within a run."""

    def __init__(self, chance: random.Random) -> None:
        printable = bytes(range(0x21, 0x80))
        self._alphanumeric = bytes(chance.choices(ALPHANUMERIC.encode(), k=_POOL_BYTES))
        self._printable = bytes(chance.choices(printable, k=_POOL_BYTES))

    def make(self, client: int, number: int, chance: random.Random) -> bytes:
        """The value of a client's call of this number."""
        (least, most), *_ = chance.choices(list(SIZES_AND_WEIGHTS), list(SIZES_AND_WEIGHTS.values()))
        size = chance.randint(least, most)
        pool = self._printable if chance.random() < 0.1 else self._alphanumeric
        start = chance.randrange(_POOL_BYTES - size)
        return b"c%dn%dx" % (client, number) + pool[start : start + size]


class Plan:
    """The calls of all clients of one run."""

    def __init__(
        self, clients: int, conflict: bool, calls: int, seed: int, run: str, keys: int | None, partitions: int = 1
    ) -> None:
        self.mark = run.encode()
        """What each key of this run holds, and no other."""
        self._conflict = conflict
        self._calls = calls
        self._seed = seed
        chance = random.Random(f"{seed}")
        least = 1 if conflict else clients
        usual = SHARED_GROUPS + clients // CLIENTS_PER_HOT_GROUP if conflict else GROUPS_PER_CLIENT * clients
        usual = max(usual, GROUPS_PER_PARTITION * partitions)
        count = usual if keys is None else max(least, -(-keys // KEYS_PER_GROUP))
        self.groups = make_groups(count, run, chance.randrange(len(ALPHANUMERIC)))
        self._order = chance.sample(self.groups, count)
        self._hot = min(count, -(-clients // CLIENTS_PER_HOT_GROUP))
        self._clients = clients
        self._values = Values(chance)
        alphanumeric = sorted((group for number, group in enumerate(self.groups) if number % 3 != 2), key=_prefix)
        # A Scan that leaves its group goes no further than the next, and never over what others keep in `usertable`.
        self._next = {
            one.prefix: other for one, other in pairwise(alphanumeric) if not one.prefix[:1] <= b"u" <= other.prefix[:1]
        }

    @property
    def keys(self) -> list[bytes]:
        """Every key that may be written, in order."""
        return sorted(key for group in self.groups for key in group.keys)

    def share(self, client: int) -> list[bytes]:
        """Of all keys those that this client reads at the end: its own, or a part of those that all share."""
        return [key for group in self.groups[client :: self._clients] for key in group.keys]

    def first_key(self, client: int) -> bytes:
        """A key that this client may call for."""
        return self.groups[client % len(self.groups)].keys[0]

    def calls(self, client: int) -> Iterator[Call]:
        """One client's calls; the same for the same seed, but for the run's id."""
        chance = random.Random(f"{self._seed} {client}")
        kinds, weights = list(KINDS_AND_WEIGHTS), list(KINDS_AND_WEIGHTS.values())
        for number in range(self._calls):
            group = self._group(client, number, chance)
            kind = chance.choices(kinds, weights)[0]
            key = chance.choice(group.keys)
            if kind in ("PUT", "SWAP"):
                yield Call("PUT" if kind == "PUT" else "SWAP", key, self._values.make(client, number, chance))
            elif kind == "SCAN":
                yield Call("SCAN", *self._range(group, chance))
            else:
                yield Call("GET" if kind == "GET" else "DELETE", key)

    def _group(self, client: int, number: int, chance: random.Random) -> Group:
        if not self._conflict:
            return chance.choice(self.groups[client :: self._clients])
        if chance.random() >= HOT_SHARE:
            return chance.choice(self._order)
        start = number // HOT_CALLS * self._hot
        return self._order[(start + chance.randrange(self._hot)) % len(self._order)]

    def _range(self, group: Group, chance: random.Random) -> tuple[bytes, bytes]:
        first, last = sorted(chance.choices(group.keys, k=2))
        shape = chance.random()
        if shape < 0.5:
            return first, last
        if shape < 0.85:
            return group.prefix, group.prefix + b"~"
        if shape < 0.9:
            return first, first
        if shape < 0.95:
            return last + b"x", first
        beyond = self._next.get(group.prefix) if self._conflict else None
        return (first, chance.choice(beyond.keys)) if beyond else (first + b"x", last + b"x")


def _prefix(group: Group) -> bytes:
    return group.prefix


def sample(keys: Sequence[bytes]) -> str:
    """The first and the last of some keys, for people."""
    return f"{keys[0].decode()} to {keys[-1].decode()}"
