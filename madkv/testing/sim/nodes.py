"""Managers and servers of a simulated cluster: the processes that twistd runs, on simulated machines.

Only what touches the world is another: the reactor, the directory, the disk, and the links that carry messages of Raft,
which are lost, repeated and overtaken here as no connection would.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, succeed

from madkv.addresses import Address
from madkv.errors import MadKVError, Rejected, WrongPartition
from madkv.manager import tap as manager
from madkv.manager.placement import ClusterMachine
from madkv.operations import Operation, Outcome, Own, Write
from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Message
from madkv.ranges import KeyRange
from madkv.server import clustered as server
from madkv.server.disk import Done, Work
from madkv.server.host import Parts, ReplicaHost
from madkv.server.parts import Tuning
from madkv.settings import MANAGERS, Settings
from madkv.state_machine import StateMachine
from madkv.storage.directory import Identity
from madkv.storage.twin import TwinDisk, TwinStorage
from madkv.testing.sim.group import Group, Machine
from madkv.testing.sim.reactor import Ended, Internet, Reactor
from madkv.testing.sim.world import Network, World

MAN_PORT = 3666
API_PORT = 3777
P2P_PORT = 3707
POWER_LOST_CHANCE = 0.3
"""How often a machine loses power, so that nobody is told, when its process ends without being asked to."""


class Node(Machine):
    """A machine of a cluster."""

    group: "NodeGroup"

    def __init__(self, group: "NodeGroup", number: int) -> None:
        super().__init__(group, number)
        self.member = self._member_on(0)
        self.host = f"10.{1 if group.is_managers else 2}.{0 if group.is_managers else group.partition}.{number}"
        self.is_new = True
        self.cluster = ""
        """The id of the cluster that its directory belongs to."""
        self.first: Configuration | None = None
        """How its group began, by the store on its disk."""
        self.reactor: Reactor | None = None
        self.process: Any = None
        self.is_ending = False
        """Whether its process was asked to end, and has not yet."""
        self.goes_on = False
        """Whether it is to start again when it has."""
        self.ended: Callable[[Node, str], None] = lambda node, why: None
        """Hears why the process has ended by itself."""

    def _member_on(self, generation: int) -> Member:
        partition = 255 if self.group.is_managers else self.group.partition
        return Member(self.number, bytes((partition, self.number, generation, 0)) * 4)

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self.reactor is not None

    def start(self) -> None:
        """Start the process on what is on the disk."""
        assert self.reactor is None
        self.group.internet.dark.discard(self.host)
        reactor = self.reactor = Reactor(self.group.internet, self.host, self.clock, self.touch)
        self.process = self.group.process(self, reactor)
        self.group.graves.append(self.process)
        reactor.run(self.process.open)

    def begun(self, host: "SimulatedHost") -> None:
        """Its replica is about to begin."""
        self.pairs = host.pairs
        self._begin(host.replica, host.storage)

    def crash(self) -> None:
        """Lose everything that is not on the disk; sometimes without a word to those who are connected."""
        if self.group.world.chance.random() < POWER_LOST_CHANCE:
            self.group.internet.dark.add(self.host)
        self.end()

    def end(self) -> None:
        """The process is no more."""
        reactor, self.reactor, self.process = self.reactor, None, None
        self.is_ending = False
        assert reactor is not None
        replica, self.replica, self.pairs = self.replica, None, None
        if replica is not None:
            replica.halt()
        self.disk.crash()
        reactor.kill()

    def stop(self) -> None:
        """Ask the process to end in good order."""
        reactor = self.reactor

        def stopped(_: Any) -> None:
            if self.reactor is reactor:
                self.group.world.note("stopped", lambda: str(self))
                self.end()
                if self.goes_on:
                    self.start()

        if reactor is not None and not self.is_ending:
            self.is_ending, self.goes_on = True, False
            reactor.run(lambda: self.process.stopService().addBoth(stopped))

    def failed(self, error: Exception) -> NoReturn:
        """The process ends by itself."""
        if not isinstance(error, Rejected):
            self.group.broken.append(error)
        self.group.world.note("ended by itself", lambda: f"{self}: {error}")
        self.end()
        self.ended(self, str(error))
        raise Ended

    def wipe(self, generation: int) -> None:
        """Put a blank disk in place of the one it had, which makes it another member."""
        assert self.reactor is None
        self.platter = TwinDisk()
        self.member = self._member_on(generation)
        self.is_new, self.cluster, self.first = True, "", None

    def state(self) -> tuple[Any, ...]:
        """All of the replicated state."""
        assert self.replica is not None
        machine = self.replica.state_machine
        if isinstance(machine, ClusterMachine):
            return machine.founded, machine.slots, machine.firsts, machine.epoch, machine.time_ms
        return super().state()

    def __str__(self) -> str:
        return f"{self.group.name}.{self.number}"


class SimulatedDirectory:
    """As `storage.directory.Directory`, of a machine that nobody else uses."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.is_new = node.is_new
        self.identity = Identity(node.cluster, str(node), node.member.disk)

    def join(self, cluster: str) -> None:
        """Give a new directory its cluster."""
        assert self.is_new or cluster == self.identity.cluster
        self.identity = Identity(cluster, self.identity.node, self.identity.disk)

    def made(self) -> None:
        """There is a store in it."""
        self.is_new = self._node.is_new = False
        self._node.cluster = self.identity.cluster

    def close(self) -> None:
        """Nobody else waits for it."""


class _Links:
    """As PeerLinks, over the group's network."""

    def __init__(self, node: Node) -> None:
        self.send: Callable[[Sequence[Message]], None] = node._send

    def start(self) -> None:
        """There is nothing to connect."""

    async def stop(self) -> None:
        """Nothing is sent any more."""


class _Disk:
    """The machine's disk as one process sees it."""

    is_immediate = False

    def __init__(self, node: Node, reactor: Reactor) -> None:
        self._node = node
        self._reactor = reactor

    def run(self, work: Work, done: Done, *, is_short: bool = False) -> None:
        """As Disk has it."""
        self._node.disk.run(work, lambda result: self._reactor.run(done, result), is_short=is_short)

    def close(self) -> None:
        """Nothing is held."""


class SimulatedHost(ReplicaHost):
    """What holds a replica, on a simulated machine."""

    def __init__(self, node: Node, *arguments: Any) -> None:
        self._node = node
        super().__init__(*arguments)
        node.begun(self)

    def parts_of(self, reactor: Any, directory: Any, first: Configuration) -> Parts:
        """Those of this machine."""
        node = self._node
        if directory.is_new:
            node.group.begins(node, first)
        storage = TwinStorage(node.platter, first)
        directory.made()
        group = node.group
        return Parts(
            storage,
            _Disk(node, reactor),
            lambda *_: _Links(node),
            group.world.chance.randrange,
            group.tuning,
        )

    def _close_disk(self) -> Deferred[None]:
        return succeed(None)


class _Simulated:
    """What makes a process one of a simulated machine."""

    place: Node

    def open_directory(self, *_: Any) -> Any:
        """The directory of the machine."""
        return SimulatedDirectory(self.place)

    def host_of(self, *arguments: Any) -> Any:
        """A replica on the machine."""
        return SimulatedHost(self.place, *arguments)

    def fail(self, error: Exception) -> NoReturn:
        """End now."""
        self.place.failed(error)

    def refuse(self, why: str) -> NoReturn:
        """End before anything has begun."""
        self.place.failed(MadKVError(why))


class SimulatedServer(_Simulated, server.ClusteredServer):
    """A server."""

    def __init__(self, place: Node, shape: server.Shape, reactor: Reactor, scan_page_pairs: int) -> None:
        self.place = place
        super().__init__(shape, reactor)
        self._service.scan_page_pairs = scan_page_pairs


class SimulatedManager(_Simulated, manager.ManagerService):
    """A manager."""

    def __init__(self, place: Node, shape: manager.Shape, reactor: Reactor) -> None:
        self.place = place
        super().__init__(shape, reactor)


class NodeGroup(Group):
    """The managers, or the servers of a partition."""

    machines: list[Any]

    def __init__(
        self,
        world: World,
        internet: Internet,
        count: int,
        tuning: Tuning,
        partition: int,
        managers: list[Address],
        settings: Settings,
        scan_page_pairs: int = 1,
    ) -> None:
        """`partition` is MANAGERS for the managers."""
        self.internet = internet
        self.partition = partition
        self.is_managers = partition == MANAGERS
        self.name = "m" if self.is_managers else f"s{partition}"
        self._managers = managers
        self._settings = settings
        self._scan_page_pairs = scan_page_pairs
        self.broken: list[Exception] = []
        """What should not have ended a process, but did."""
        self.graves: list[Any] = []
        """Processes of this simulation: nothing of them may be collected while it goes on, and do what that does."""
        self.first: Configuration | None = None
        """How the group began, by whoever opened a store last."""
        self._disks: dict[tuple[int, int], list[bytes]] = {}
        self._firsts: dict[int, Configuration] = {}
        self._furthest = 0
        self._calls: set[tuple[int, int]] = set()
        self.owned: dict[int, tuple[KeyRange, ...]] = {}
        """What the group ever owned, by epoch."""
        self.owns: Callable[[NodeGroup], None] = lambda group: None
        """Hears when that has changed."""
        super().__init__(world, Network(world), count, tuning)

    def _machine(self, number: int) -> Machine:
        return Node(self, number)

    @property
    def nodes(self) -> list[Node]:
        """The machines."""
        return self.machines

    def process(self, node: Node, reactor: Reactor) -> Any:
        """A process on one of them."""
        size = len(self.machines)
        number = None if size == 1 else node.number
        port = None if size == 1 else P2P_PORT
        peers = {other.number: (other.host, P2P_PORT) for other in self.nodes if other is not node}
        backer = Path("/nowhere")
        if self.is_managers:
            managers = manager.Shape(number, MAN_PORT, port, peers, self._settings, backer)
            return SimulatedManager(node, managers, reactor)
        shape = server.Shape(self.partition, number, self._managers, API_PORT, port, [*peers.values()], backer)
        return SimulatedServer(node, shape, reactor, self._scan_page_pairs)

    def deliver(self, message: Message) -> None:
        """A message arrives at its machine, if something runs there."""
        node = self.nodes[message.to.replica]
        if node.replica is not None and node.reactor is not None:
            node.reactor.run(node.replica.receive, message)

    def check(self) -> None:
        """Hold the invariants of each replica where something has happened."""
        if self.touched:
            for number in self.touched:
                replica = self.nodes[number].replica
                if replica is not None:
                    numbers = [member.replica for member in replica.core.configuration.voters]
                    assert len(numbers) == len(set(numbers)), f"two disks of one slot of {self.name} have votes"
            super().check()

    def begins(self, node: Node, first: Configuration) -> None:
        """A store of the group is made, on that configuration. All stores that there are began with the same.

        A manager that is the first to decide, and loses its disk before any other has decided, may have had another
        one for itself: nobody has heard a word of Raft from it.
        """
        known = {each.first for each in self.nodes if each.first is not None}
        if not self.is_managers and self.first is not None:
            known.add(self.first)
        if known - {first}:
            self.broken.append(AssertionError(f"{self.name} began with {known}, and {node} with {first}"))
        self.first = node.first = first

    def applied(self, index: int, time_ms: int, operation: Operation, outcome: Outcome, by: Member) -> None:
        """As Group has it; and when an entry is applied for the first time, what must hold of what stands then."""
        super().applied(index, time_ms, operation, outcome, by)
        if index <= self._furthest:
            return
        self._furthest = index
        self._count(operation, outcome)
        replica = self.nodes[by.replica].replica
        if replica is None:
            return
        machine = replica.state_machine
        if isinstance(machine, ClusterMachine):
            self._check_cluster(machine)
        elif isinstance(operation, Own):
            assert isinstance(machine, StateMachine)
            ownership = machine.ownership
            known = self.owned.setdefault(ownership.epoch, ownership.ranges)
            assert known == ownership.ranges, f"{self.name} owns this and that in epoch {ownership.epoch}"
            self.owns(self)
        elif isinstance(operation, Write) and not isinstance(outcome, WrongPartition):
            assert isinstance(machine, StateMachine)
            ranges = self.owned.get(machine.ownership.epoch, ())
            assert any(operation.key in each for each in ranges), f"{self.name} took {operation.key!r}, not its own"

    def _count(self, operation: Operation, outcome: Outcome) -> None:
        counts = self.world.counts
        if isinstance(operation, Write):
            call = operation.session, operation.sequence
            counts["cluster: retries"] += call in self._calls
            self._calls.add(call)
            if isinstance(outcome, MadKVError):
                counts[f"cluster: {type(outcome).__name__}"] += 1
        elif self.is_managers:
            kind = f"cluster: {type(operation).__name__}"
            counts[f"{kind} refused" if isinstance(outcome, MadKVError) else kind] += 1

    def _check_cluster(self, machine: ClusterMachine) -> None:
        for partition, first in machine.firsts.items():
            known = self._firsts.setdefault(partition, first)
            assert known == first, f"the first configuration of {partition} was {known}, and is {first}"
        for at, slot in machine.slots.items():
            disks = self._disks.setdefault(at, [])
            if not disks or disks[-1] != slot.disk:
                assert slot.disk not in disks, f"a disk of slot {at} counts again after another came in its place"
                disks.append(slot.disk)
