"""`twistd madkv-manager`: options, and the process of one manager.

Its life. On a blank directory it finds the other managers (`introduction`) and opens its store with what they agreed
on; on any other it takes part at once. The leader founds the cluster with the settings of its command line, which every
manager holds its own against from then on, and brings the managers' group to the disks that it should be on.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.internet.protocol import Factory
from twisted.python import usage

from madkv.addresses import Address, parse_addresses, show_address
from madkv.errors import MadKVError, Rejected
from madkv.limits import CONNECT_SECONDS_MAX, REPLICAS_MAX
from madkv.manager.introduction import Introduced, Introducing, Introduction
from madkv.manager.placement import ClusterMachine, cluster_id, first_cut
from madkv.manager.registrar import Registrar
from madkv.manager.service import ManagerFactory
from madkv.operations import FillManager, Found, Operation
from madkv.raft.configuration import DISK_ID_BYTES, Configuration, Member
from madkv.raft.replacement import next_step
from madkv.server.host import ReplicaHost
from madkv.server.peers import PeerFactory
from madkv.server.process import Process, usage_errors, whole_number
from madkv.settings import MANAGERS, Settings, check_group_size
from madkv.storage.directory import Directory
from madkv.wire import codec
from madkv.wire.boxes import Box
from madkv.wire.caller import CallerProtocol

EVERYWHERE = "0.0.0.0"
GROUP = "m"
NOBODY = Configuration(frozenset())
LOOK_SECONDS = 0.3
"""How often a manager looks whether its group, and what it was founded with, are as they should be."""


@attrs.frozen
class Shape:
    """Which manager of a cluster this is."""

    replica: int | None
    """None for an only manager, which has no number."""
    man_port: int
    p2p_port: int | None
    peers: dict[int, Address]
    """The other managers' p2p addresses by their numbers."""
    settings: Settings
    backer: Path

    @property
    def ports(self) -> tuple[int, ...]:
        """The managers' p2p ports by their numbers; 0 for this one's when it has none."""
        others = {number: port for number, (_, port) in self.peers.items()}
        every = {**others, self.replica or 0: self.p2p_port or 0}
        return tuple(every[number] for number in sorted(every))

    @property
    def node(self) -> str:
        """Its name."""
        return GROUP if self.replica is None else f"{GROUP}.{self.replica}"


class Options(usage.Options):
    """What the command line says."""

    synopsis = "[options]"
    longdesc = (
        "A manager of a MadKV cluster: servers register with it, and clients ask it where keys are. With --replica it "
        "is one of several, which need each other at their first start; later a majority of them is enough. "
        "--server-rf, --servers and --splits are the cluster's for good from its first start on."
    )
    optParameters = [
        ["servers", "s", None, "HOST:PORT of each server, as clients reach them, separated by commas: the replicas of "
                               "partition 0 in the order of their numbers, then those of partition 1, and so on."],
        ["server-rf", "f", "1", "How many replicas each partition has: 1, 3, 5, 7 or 9."],
        ["splits", None, None, "Keys at which partitions 1, 2, ... begin, separated by commas; left out, each gets an "
                               "equal part of the keys of letters and digits."],
        ["man-port", "m", "3666", "Port for servers and clients, on all addresses of this machine."],
        ["replica", "r", None, "Number of this manager, from 0 on; left out when it is the only one."],
        ["p2p-port", None, None, "Port for the other managers, on all addresses; needed with --replica."],
        ["peers", None, "none", "The other managers' HOST:P2P_PORT in the order of their numbers, or none."],
        ["backer", "b", None, "Directory for everything durable; made if it is not there."],
    ]  # fmt: skip

    def postOptions(self) -> None:
        """Check what was given, so that a mistake is one line and a usage text."""
        for name, what in (("servers", "where the servers are"), ("backer", "where to keep the data")):
            if self[name] is None:
                raise usage.UsageError(f"--{name} is needed: {what}")
        if (self["replica"] is None) != (self["p2p-port"] is None):
            raise usage.UsageError("--replica and --p2p-port go together")
        numbers: dict[str, int | None] = {}
        for name, least, most in (
            ("server-rf", 1, REPLICAS_MAX),
            ("man-port", 1, 65_535),
            ("replica", 0, REPLICAS_MAX - 1),
            ("p2p-port", 1, 65_535),
        ):
            with usage_errors(name):
                numbers[name] = None if self[name] is None else whole_number(least, most)(self[name])
        rf, man_port, replica = numbers["server-rf"], numbers["man-port"], numbers["replica"]
        assert rf is not None and man_port is not None
        with usage_errors("server-rf"):
            check_group_size(rf)
        with usage_errors("peers"):
            peers = [] if self["peers"] == "none" else parse_addresses(self["peers"])
            check_group_size(len(peers) + 1)
        if peers and replica is None:
            raise usage.UsageError("--peers goes with --replica")
        if (replica or 0) > len(peers):
            raise usage.UsageError(f"--replica {replica} of {len(peers) + 1} managers: they count from 0")
        with usage_errors("servers"):
            servers = parse_addresses(self["servers"])
            Settings(rf, tuple(servers))
        with usage_errors("splits"):
            splits = () if self["splits"] is None else self["splits"].encode(errors="surrogateescape").split(b",")
            settings = Settings(rf, tuple(servers), tuple(splits))
        others = [number for number in range(len(peers) + 1) if number != (replica or 0)]
        self["shape"] = Shape(
            replica,
            man_port,
            numbers["p2p-port"],
            dict(zip(others, peers, strict=True)),
            settings,
            Path(self["backer"]).absolute(),
        )


class ManagerService(Process):
    """The process of one manager."""

    # Simulations have others.
    open_directory: Callable[..., Directory] = Directory
    host_of: Callable[..., ReplicaHost] = ReplicaHost

    def __init__(self, shape: Shape, reactor: Any) -> None:
        super().__init__("madkv-manager", shape.node, reactor)
        self._shape = shape
        self._ports: list[IListeningPort] = []
        self._directory: Directory | None = None
        self._introduction: Introduction | None = None
        self._host: ReplicaHost | None = None
        self._machine = ClusterMachine()
        self._next_look: IDelayedCall | None = None
        self._service = ManagerFactory(reactor, shape.node.encode(), self._status)
        self._peer_service = PeerFactory(reactor, self._introduce)

    # --- Life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take hold of the directory and the ports; start what can be started."""
        shape = self._shape
        try:
            directory = self._directory = self.open_directory(shape.backer, None, shape.node, os.urandom(DISK_ID_BYTES))
        except MadKVError as error:
            self.refuse(str(error))
        self._ports.append(self.listen((EVERYWHERE, shape.man_port), self._service))
        if shape.p2p_port is not None:
            self._ports.append(self.listen((EVERYWHERE, shape.p2p_port), self._peer_service))
        self.log.info("{node} serves on port {port}", node=shape.node, port=shape.man_port)
        if not directory.is_new:
            self._start_replica(NOBODY)
            return
        member = Member(shape.replica or 0, directory.identity.disk)
        introduction = self._introduction = Introduction(
            self.reactor, member, shape.settings, shape.ports, self._ask, self._decided, self._refused
        )
        introduction.start()

    async def close(self) -> None:
        """Hand over, close ports and connections, close the store."""
        if self._introduction is not None:
            self._introduction.stop()
        if self._next_look is not None and self._next_look.active():
            self._next_look.cancel()
        if self._host is not None:
            await self._host.stop()
        elif self._directory is not None:
            self._directory.close()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        for connection in list(self._service.connections):
            connection.transport.abortConnection()

    def _decided(self, first: Configuration) -> None:
        assert self._directory is not None
        self._introduction = None
        try:
            self._directory.join(cluster_id(first))
            self._start_replica(first)
        except Exception as error:  # also one that is no MadKVError: a manager without its replica is of no use
            self.fail(error)

    def _refused(self, why: str) -> None:
        self.fail(Rejected(why))

    def _start_replica(self, first: Configuration) -> None:
        shape, directory, machine = self._shape, self._directory, self._machine
        assert directory is not None
        try:
            host = self._host = self.host_of(
                self.reactor,
                directory,
                first,
                GROUP,
                shape.replica or 0,
                shape.p2p_port,
                shape.peers,
                lambda pairs: machine,
                self.fail,
                self._leadership_changed,
            )
        except MadKVError as error:
            self.fail(error)
            return
        self._service.cluster = directory.identity.cluster.encode()
        self._service.registrar = Registrar(
            host.replica, machine, host.member, shape.settings, shape.ports, self._first
        )
        self._peer_service.attach(host.links)
        host.start()
        self._look()

    def _first(self) -> Configuration:
        """How the managers' group began. Before the founding it is where the log begins: no change goes before that."""
        assert self._host is not None
        return self._machine.firsts.get(MANAGERS) or self._host.storage.configurations[0][1]

    # --- The first start ----------------------------------------------------------------------------------------------

    def _ask(self, peer: int, claim: Introducing) -> Deferred[Introduced]:
        return Deferred.fromCoroutine(self._ask_at(self._shape.peers[peer], claim))

    async def _ask_at(self, address: Address, claim: Introducing) -> Introduced:
        endpoint = HostnameEndpoint(self.reactor, *address, timeout=CONNECT_SECONDS_MAX)
        factory = Factory.forProtocol(lambda: CallerProtocol(self.reactor))
        factory.noisy = False
        connection: Any = await endpoint.connect(factory)
        try:
            return Introduced.read(await connection.call(codec.INTRODUCE, claim.fields()))
        finally:
            connection.abort()

    async def _introduced(self, claim: Introducing) -> bytes:
        if self._introduction is not None:
            return self._introduction.answer(claim).fields()
        registrar = self._service.registrar
        assert registrar is not None
        return (await registrar.introduce(claim)).fields()

    def _introduce(self, box: Box) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._introduced(Introducing.read(box)))

    # --- What is seen to ----------------------------------------------------------------------------------------------

    def _leadership_changed(self) -> None:
        # Not within the step in which the leadership changed.
        if self._next_look is not None and self._next_look.active():
            self._next_look.reset(0)

    def _look(self) -> None:
        """Again and again: whether this manager fits; as the leader, found the cluster and see to the group."""
        self._next_look = self.reactor.callLater(LOOK_SECONDS, self._look)
        host, settings, machine = self._host, self._shape.settings, self._machine
        assert host is not None
        managers, known = len(self._shape.ports), len(self._first().voters)
        if managers != known:
            self._refused(f"this manager was started with --peers for {managers} managers, not {known} as at first")
        if machine.founded is None:
            if host.leads:
                cut = first_cut(settings.partitions, settings.splits)
                self._propose(Found(settings, self._first(), cut))
            return
        difference = settings.difference(machine.settings)
        if difference is not None:
            self._refused(f"this manager was started with {difference} as the cluster was founded with")
        if host.leads:
            self._see_to_the_group(host)

    def _see_to_the_group(self, host: ReplicaHost) -> None:
        """Go one step nearer to the disks that the managers' group should be on."""
        core = host.replica.core
        step = next_step(
            core.configuration,
            self._machine.wanted(MANAGERS),
            lambda member: member in core.progress and core.progress[member].match_index >= core.commit_index,
        )
        if step is not None:
            host.replica.change_members(step)
        elif core.commit_index >= core.last_configuration_index:
            for member in sorted(core.configuration.voters):
                slot = self._machine.slots[MANAGERS, member.replica]
                if slot.is_catching_up and slot.disk == member.disk:
                    self._propose(FillManager(*member, has_vote=True))

    def _propose(self, operation: Operation) -> None:
        """Whatever becomes of it: the next look finds out."""
        assert self._host is not None
        self._host.replica.propose(operation, lambda outcome: None)

    # --- What is asked of it ------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        machine, host = self._machine, self._host
        facts: dict[str, Any] = {"role": "starting", "cluster": self._service.cluster.decode()}
        if host is not None:
            facts |= host.status()
        if machine.founded is None:
            return facts | {"waiting": "for the other managers" if host is None else "for the cluster to be founded"}
        settings = machine.settings
        facts |= {"epoch": machine.epoch, "server_rf": settings.rf, "waiting": machine.waiting_line() or ""}
        facts["nodes"] = {
            machine.name_of(partition, replica): {
                "disk": slot.disk.hex(),
                "state": "vacant" if slot.is_vacant else "catching up" if slot.is_catching_up else "registered",
                "address": "" if partition == MANAGERS else show_address(settings.address_of(partition, replica)),
            }
            for (partition, replica), slot in sorted(machine.slots.items())
        }
        return facts


def makeService(options: Options) -> ManagerService:
    """The manager that the options describe; nothing is opened yet."""
    from twisted.internet import reactor

    return ManagerService(options["shape"], reactor)
