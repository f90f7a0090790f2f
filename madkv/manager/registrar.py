"""What a manager answers to servers, clients, operators and other managers, out of its replica and by its replica.

Servers and operators are answered by the leader alone, from a state that is not older than their question: so nobody is
sent away, or told to drop a disk, by a manager that was overtaken. The partition map comes from any manager's state: an
older one does no harm, since servers check each call against what they own.
"""

from collections.abc import Callable
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from madkv.addresses import parse_addresses, show_address
from madkv.errors import Busy, InvalidArgument, MadKVError, Rejected, shown
from madkv.limits import REPLICAS_MAX
from madkv.manager.introduction import Introduced, Introducing, name_of
from madkv.manager.placement import ClusterMachine, Slot, parse_node
from madkv.operations import FillManager, Operation, Outcome, Register, Vacate
from madkv.partitions import PartitionMap
from madkv.raft.configuration import DISK_ID_BYTES, Configuration, Member
from madkv.server.replica import Answered
from madkv.settings import MANAGERS, Settings
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field


class Replica(Protocol):
    """How this sees its replica; as `madkv.server.replica.Replica`."""

    def propose(self, operation: Operation, answered: Answered) -> None: ...
    def read(self, key: bytes, released: Callable[[Any], None]) -> None: ...


@attrs.frozen
class Claim:
    """What a server says of itself in Register."""

    cluster: str
    """Empty from a blank disk."""
    api_port: int
    register: Register

    @classmethod
    def read(cls, box: Box) -> "Claim":
        """Read the arguments. Raises InvalidArgument."""
        disk, peers_text = codec.take_bytes(box, b"disk"), codec.take_bytes(box, b"peers")
        if len(disk) != DISK_ID_BYTES:
            raise InvalidArgument(f"a disk id has {DISK_ID_BYTES} bytes; this one has {len(disk)}")
        if peers_text.count(b",") >= REPLICAS_MAX:
            raise InvalidArgument(f"a group has at most {REPLICAS_MAX} replicas")
        try:
            cluster = codec.take_bytes(box, b"cluster").decode()
            peers = parse_addresses(peers_text.decode()) if peers_text else []
        except UnicodeDecodeError:
            raise InvalidArgument("the arguments 'cluster' and 'peers' are text") from None
        if codec.take_integer(box, b"rf") != len(peers) + 1:
            raise InvalidArgument(f"a group of {len(peers)} peers and this one is not what 'rf' says")
        replica = codec.take_integer(box, b"replica")
        ports = [port for _, port in peers]
        if peers:
            ports.insert(replica, codec.take_integer(box, b"p2p_port"))
            if not 0 < ports[min(replica, len(peers))] < 65_536:
                raise InvalidArgument("the argument 'p2p_port' is no port")
        register = Register(
            codec.take_integer(box, b"partition"),
            replica,
            disk,
            tuple(ports),
            has_vote=box.get(b"has_vote") == b"True",
        )
        return cls(cluster, codec.take_integer(box, b"api_port"), register)


class Registrar:
    """One manager's answers. Those of `async` methods end when the replica's do, and the replica's always end."""

    def __init__(
        self,
        replica: Replica,
        machine: ClusterMachine,
        member: Member,
        settings: Settings,
        ports: tuple[int, ...],
        first: Callable[[], Configuration],
    ) -> None:
        """`settings` and the managers' p2p ports by their numbers are those of the command line. `first` tells how
        the managers' group began.
        """
        self._replica = replica
        self._machine = machine
        self._member = member
        self._settings = settings
        self._ports = ports
        self._first = first

    def partition_map(self) -> PartitionMap:
        """The map, once every server has registered. Raises Busy."""
        machine = self._founded()
        waiting = machine.waiting_line()
        if waiting is not None:
            raise Busy(waiting)
        return machine.partition_map()

    async def register(self, claim: Claim) -> bytes:
        """Take a server in, if it is not yet; the answer's fields. Raises Rejected, NotLeader, Busy, Interrupted."""
        await self._released()
        machine, register = self._founded(), claim.register
        if claim.cluster and claim.cluster != machine.cluster:
            raise Rejected(
                f"this server's directory belongs to cluster {shown(claim.cluster.encode())}; these managers are those "
                f"of cluster {machine.cluster}: see its --backer and its --managers"
            )
        await self._take(machine.judge_registration(register), register, self._address_line(claim))
        partition = register.partition
        fields = (
            field(b"cluster", machine.cluster.encode())
            + codec.integer(b"epoch", machine.epoch)
            + blob(b"ownership", machine.ownership_of(partition).encode())
            + field(b"wanted", machine.wanted(partition).encode())
        )
        first = machine.firsts.get(partition)
        return fields if first is None else fields + field(b"first", first.encode())

    async def replace_disk(self, name: str) -> None:
        """Give up a node's disk. Raises InvalidArgument, Rejected, NotLeader, Busy, Interrupted."""
        partition, replica = parse_node(name)
        await self._released()
        size = self._founded().group_size(partition)
        if replica is None and size > 1:
            raise InvalidArgument(f"{name} has {size} replicas; say which, such as {name}.1")
        await self._propose(Vacate(partition, replica or 0))

    async def introduce(self, claim: Introducing) -> Introduced:
        """Say to a manager on an empty directory how the group began, if it is to be one of it.

        Raises Rejected, NotLeader, Busy, Interrupted.
        """
        machine, member, here = self._machine, claim.member, self._member.replica
        first = self._first()
        founded = machine.founded
        claim.check(here, self._ports, self._settings if founded is None else founded.settings)
        answer = Introduced(self._member, Configuration(frozenset()), first)
        if founded is None:
            if member in first.voters:
                return answer  # the others have decided while it was away
            raise Busy(f"{name_of(here)} is about to found the cluster")
        if machine.slots[MANAGERS, member.replica] in (Slot(member.disk), Slot(member.disk, is_catching_up=True)):
            return answer
        await self._released()
        fill = FillManager(*member)
        await self._take(machine.judge_manager(fill), fill, None)
        return answer

    def _founded(self) -> ClusterMachine:
        if self._machine.founded is None:
            raise Busy("the managers are about to found the cluster")
        return self._machine

    def _address_line(self, claim: Claim) -> str | None:
        """What is wrong with a server's port for clients; None when nothing is, or it is no server here at all."""
        settings, register = self._machine.settings, claim.register
        if register.partition >= settings.partitions or register.replica >= settings.rf:
            return None
        address = settings.address_of(register.partition, register.replica)
        if address[1] == claim.api_port:
            return None
        name = self._machine.name_of(register.partition, register.replica)
        return f"{name} has --api-port {claim.api_port}; the managers' --servers says {show_address(address)}"

    async def _take(self, judged: Slot | Rejected, operation: Register | FillManager, why_not: str | None) -> None:
        """Do what was judged, if it would change anything."""
        if isinstance(judged, Rejected):
            raise judged
        if why_not is not None:
            raise Rejected(why_not)
        partition = operation.partition if isinstance(operation, Register) else MANAGERS
        if self._machine.slots.get((partition, operation.replica)) != judged:
            await self._propose(operation)

    async def _released(self) -> None:
        """Go on at a moment at which the state is not older than this call."""
        released: Deferred[Any] = Deferred()
        self._replica.read(b"", released.callback)
        result = await released
        if isinstance(result, MadKVError):
            raise result

    async def _propose(self, operation: Operation) -> None:
        answered: Deferred[Outcome] = Deferred()
        self._replica.propose(operation, answered.callback)
        outcome = await answered
        if isinstance(outcome, MadKVError):
            raise outcome
