"""Where a call goes next, and how long to wait before it is tried again. Pure, and light enough for the line client.

The rules. Each key belongs to a partition, by the map that the managers hand out; each partition, and the managers
among themselves, are a group of replicas, of which one leads. A call asks the replica that led when the group was heard
last. When that refuses or cannot be reached, or somebody else is where it should be, the call goes to the one that it
named as leader, or to the next in order, at once; only after it has asked every replica in vain does it wait, longer
each time. The map is asked for before the first call, and again when a group refuses a key by a newer one.
"""

from collections.abc import Iterable

from madkv.addresses import Address, parse_address, parse_addresses, show_address
from madkv.errors import InvalidArgument, NotLeader, ProtocolError, Rejected, shown
from madkv.limits import (
    ELECTION_RETRY_SECONDS_MAX,
    FIRST_TRY_SECONDS,
    RETRY_SECONDS_MAX,
    RETRY_SECONDS_MIN,
    TRY_SECONDS_MAX,
)
from madkv.partitions import PartitionMap
from madkv.wire import codec
from madkv.wire.boxes import Box

MANAGERS = -1
"""Stands for the managers where a number of a partition stands otherwise."""


class Router:
    """The groups of one store, as far as this client knows them.

    A store of a single server has no managers; its map is one partition of one replica, and never changes.
    """

    def __init__(self, server: str | Address | None, managers: str | Iterable[str | Address] | None) -> None:
        """Either the one server, or the managers: as a list, or as text with commas. Raises InvalidArgument."""
        if (server is None) == (managers is None):
            raise InvalidArgument("a client takes either a server or the managers")
        self.is_single = managers is None
        self.map: PartitionMap | None = None
        """None until the managers have told."""
        self.pace = 1.0
        """What its waits are multiplied by: see `pace_of`."""
        self._epoch_needed = 0
        self._managers: list[Address] = []
        self._next: dict[int, int] = {}  # by group: which replica a call asks first
        self._strangers: dict[tuple[int, int], str] = {}  # by group and replica: what was said of who is there instead
        if server is not None:
            address = parse_address(server) if isinstance(server, str) else server
            self.map = PartitionMap(0, "", [b""], [0], [[address]])
        elif managers is not None:
            if not isinstance(managers, str):
                managers = ",".join(each if isinstance(each, str) else show_address(each) for each in managers)
            self._managers = parse_addresses(managers)

    # --- The map ------------------------------------------------------------------------------------------------------

    @property
    def needs_map(self) -> bool:
        """Whether the managers have to be asked before anything else."""
        return self.map is None or self.map.epoch < self._epoch_needed

    def group_of(self, key: bytes) -> int:
        """The partition that owns `key`. There must be a map."""
        assert self.map is not None
        return self.map.partition_of(key)

    def pieces(self, start: bytes, before: bytes | None, end: bytes) -> list[tuple[int, bytes, bytes | None]]:
        """What a scan from `start` to `end` has to ask for of the keys before `before` (None: of all).

        As PartitionMap.pieces: partition, first key, and which key it ends before (None: at the end of the scan).
        """
        assert self.map is not None
        pieces = self.map.pieces(start, end)
        if before is not None:
            pieces = [piece for piece in pieces if piece[1] < before]
            group, begin, following = pieces[-1]
            pieces[-1] = group, begin, before if following is None or following > before else following
        return pieces

    def misplaced(self, epoch: int) -> bool:
        """A group refused a key by the map of that epoch; whether a newer map than the present one is needed for that.

        If not, it is the group that lags behind.
        """
        if self.map is None or epoch <= self.map.epoch or self.is_single:
            return False
        self._epoch_needed = max(self._epoch_needed, epoch)
        return True

    def learn(self, answer: Box) -> None:
        """Take up the map in a manager's answer.

        Raises ProtocolError when a newer one is needed, and Rejected when it is of another cluster than those before.
        """
        partitions = PartitionMap.decode(codec.take_answer_blob(answer, b"map"))
        present = self.map
        if present is not None and partitions.cluster != present.cluster:
            raise Rejected(f"these are managers of cluster {partitions.cluster}; before, it was {present.cluster}")
        if partitions.epoch < self._epoch_needed:
            raise ProtocolError(f"its map is of epoch {partitions.epoch}, and there is one of {self._epoch_needed}")
        self._epoch_needed = partitions.epoch
        self.map = partitions

    # --- Groups and their replicas ------------------------------------------------------------------------------------

    def addresses(self, group: int) -> list[Address]:
        """Where the replicas of a group are."""
        if group == MANAGERS:
            return self._managers
        assert self.map is not None
        return self.map.replicas[group]

    def first(self, group: int) -> int:
        """The replica that a call of the group asks first."""
        return self._next.get(group, 0)

    def turn_from(self, group: int, replica: int, to: int) -> None:
        """That replica was asked in vain, so calls go to another; if they do not by now."""
        if self._next.get(group, 0) == replica:
            self._next[group] = to

    def is_new_stranger(self, group: int, replica: int, what: str) -> bool:
        """Whether it is told for the first time that somebody else, as `what` says, is where this replica should be."""
        is_new = self._strangers.get((group, replica)) != what
        self._strangers[group, replica] = what
        return is_new

    def describe(self, group: int, replica: int) -> str:
        """A replica for people; the managers are one to them."""
        if group == MANAGERS:
            one = "the manager" if len(self._managers) == 1 else "the managers"
            return f"{one} at {','.join(map(show_address, self._managers))}"
        addresses = self.addresses(group)
        where = show_address(addresses[replica])
        if self.is_single:
            return where
        return f"s{group} at {where}" if len(addresses) == 1 else f"s{group}.{replica} at {where}"

    def check_hello(self, group: int, replica: int, hello: Box) -> bytes:
        """Look at how a replica answered the handshake; its boot id.

        Raises Rejected when it is something else than what was expected there; VersionMismatch; ProtocolError, also
        when it does not know its cluster yet.
        """
        boot = codec.take_boot(hello)
        role, node, cluster = (shown(hello.get(name, b"")) for name in (b"role", b"node", b"cluster"))
        where = show_address(self.addresses(group)[replica])
        is_manager = role == "manager"
        if group == MANAGERS:
            if role == "server":
                raise Rejected(
                    f"{where} is server {node}, not a manager: give the client the managers' addresses (--managers)"
                )
            if not is_manager:
                raise Rejected(f"{where} is a server without managers: give the client its address as --server")
        elif self.is_single:
            if is_manager or role == "server":
                what = f"manager {node}" if is_manager else f"server {node} of a cluster"
                raise Rejected(f"{where} is {what}: give the client the managers' addresses (--managers)")
        elif role != "server":
            what = f"manager {node}" if is_manager else "a server without managers"
            raise Rejected(f"{where} is {what}; the managers take it for a server of partition {group}")
        elif not cluster:
            # On this connection it might become a server of another cluster, and take up calls meant for this one.
            raise ProtocolError(f"{node} is starting")
        elif node not in (f"s{group}.{replica}", f"s{group}"):
            raise Rejected(f"{where} is {node}; the managers take it for s{group}.{replica}: see their --servers")
        if self.map is not None and cluster and cluster != self.map.cluster:
            raise Rejected(f"{where} is {node} of cluster {cluster}; the managers are of {self.map.cluster}")
        return boot


def pace_of(client_id: bytes) -> float:
    """From 0.5 to 1. Clients that lost the same servers at the same moment would all come back at the same moments,
    together and up to a second late."""
    return 0.5 + client_id[0] / 510


class Backoff:
    """Waits that double from RETRY_SECONDS_MIN to RETRY_SECONDS_MAX, for one call's retries."""

    def __init__(self) -> None:
        self._next_seconds = RETRY_SECONDS_MIN

    def next_seconds(self, most: float = RETRY_SECONDS_MAX) -> float:
        """How long to wait now; `most` bounds this wait and what later ones grow from."""
        seconds = min(self._next_seconds, most)
        self._next_seconds = min(2 * seconds, RETRY_SECONDS_MAX)
        return seconds


class Tries:
    """One call's tries at one group: whom to ask next, for how long, and when to wait first."""

    __slots__ = ("_backoff", "_is_answered", "_router", "_strangers", "_tried", "asked", "group", "said", "try_seconds")

    def __init__(self, router: Router, group: int) -> None:
        self._router = router
        self._tried: list[int] = []  # since the call waited last
        self._backoff: Backoff | None = None
        self._is_answered = False  # since then, by a replica that does not lead
        self._strangers: set[int] | None = None  # replicas where somebody else was found when they were asked last
        self.group = group
        self.asked = 0
        """The replica that was asked last."""
        self.said = False
        """Whether anybody was told that this call waits."""
        self.try_seconds = TRY_SECONDS_MAX if router.is_single else FIRST_TRY_SECONDS
        """How long the next try may go without a byte of an answer."""

    def choose(self) -> int:
        """Whom to ask now: the group's first choice, or the next one in order that was not asked yet."""
        replica = self._router.first(self.group)
        while replica in self._tried:
            replica = (replica + 1) % len(self._router.addresses(self.group))
        self.asked = replica
        return replica

    def failed(self, why: Exception) -> float:
        """The one chosen was asked in vain; how many seconds to wait before the next try, 0 while others are left.

        One who is not who it should be (Rejected) is like one who is not there: others of the group may be. Only when
        it is so of all, `why` is raised.
        """
        replica, count = self.asked, len(self._router.addresses(self.group))
        if isinstance(why, Rejected):
            self._strangers = self._strangers or set()
            self._strangers.add(replica)
            if len(self._strangers) == count:
                raise why
        elif self._strangers:
            self._strangers.discard(replica)
        self._tried.append(replica)
        all_tried = len(self._tried) >= count
        if isinstance(why, TimeoutError):
            self.try_seconds = min(2 * self.try_seconds, TRY_SECONDS_MAX)
        following = (replica + 1) % count
        if isinstance(why, NotLeader):
            self._is_answered = True
            leader = why.leader
            if leader is not None and leader < count and leader not in self._tried:
                following = leader
            elif all_tried:
                following = replica  # it answers, so it will know who leads next; others may only cost time
        self._router.turn_from(self.group, replica, following)
        return self.wait_seconds() if all_tried else 0.0

    def wait_seconds(self) -> float:
        """How many seconds to wait before everybody may be asked again."""
        self._tried.clear()
        if self._backoff is None:
            self._backoff = Backoff()
        is_answered, self._is_answered = self._is_answered, False
        seconds = self._backoff.next_seconds(ELECTION_RETRY_SECONDS_MAX if is_answered else RETRY_SECONDS_MAX)
        return seconds * self._router.pace

    def news(self, why: Exception) -> str | None:
        """What people are to be told of a try that has failed and is followed by others; None for nothing."""
        if isinstance(why, Rejected) and self._router.is_new_stranger(self.group, self.asked, str(why)):
            return f"going on with others: {why}"
        return None

    def whom(self) -> str:
        """Whom the call waits for."""
        return self._router.describe(self.group, self.asked)
