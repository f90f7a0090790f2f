"""`twistd madkv-manager`: options, and the process of one manager.

Its life. On a blank directory it finds the other managers (`introduction`) and opens its store with what they agreed
on; on any other it takes part at once. The leader founds the cluster with the settings of its command line, which every
manager holds its own against from then on, and brings the managers' group to the disks that it should be on.
"""

from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python import usage

from madkv.addresses import Address, parse_addresses, show_address
from madkv.errors import Rejected
from madkv.limits import CONNECT_SECONDS_MAX, REPLICAS_MAX
from madkv.manager.introduction import Introduced, Introducing, Introduction
from madkv.manager.placement import ClusterMachine, cluster_id, first_cut
from madkv.manager.registrar import Registrar
from madkv.manager.service import ManagerFactory
from madkv.monitor.option import OPTION, read_http, with_http
from madkv.operations import FillManager, Found, Operation
from madkv.raft.configuration import Configuration, Member
from madkv.server.host import ReplicaHost
from madkv.server.logs import OPTIONS, check_log_options, observed, observer_of
from madkv.server.node import Node, Seat
from madkv.server.parts import Machine
from madkv.server.process import TLS_PARAMETERS, DaemonOptions, take_tls, usage_errors, whole_number
from madkv.server.reactor import installed_reactor
from madkv.settings import MANAGERS, Settings, check_group_size
from madkv.storage.overlay import AppliedPairs
from madkv.tls import TLSFiles
from madkv.wire import codec
from madkv.wire.boxes import Box
from madkv.wire.caller import CallerProtocol
from madkv.wire.endpoint import connect, endpoint_to

GROUP = "m"
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

    @property
    def seat(self) -> Seat:
        """Where it is in the managers' group."""
        return Seat(self.node, GROUP, self.replica or 0, self.man_port, self.p2p_port, self.peers, self.backer)


class Options(DaemonOptions):
    """What the command line says."""

    program = "madkv-manager"

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
        *TLS_PARAMETERS,
        OPTION,
        *OPTIONS,
    ]  # fmt: skip

    def postOptions(self) -> None:
        """Check what was given, so that a mistake is one line."""
        take_tls(self)
        check_log_options(self)
        for name, what in (("servers", "where the servers are"), ("backer", "where to keep the data")):
            if not self[name]:
                raise usage.UsageError(f"--{name} is needed: {what}")
        with usage_errors("http"):
            self["http"] = None if self["http"] is None else read_http(self["http"])
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


class ManagerService(Node):
    """The process of one manager."""

    _service: ManagerFactory

    def __init__(self, shape: Shape, reactor: Any, tls: TLSFiles | None = None) -> None:
        service = ManagerFactory(reactor, shape.node.encode(), self._status)
        super().__init__("madkv-manager", shape.seat, service, self._introduce, reactor, tls)
        self._shape = shape
        self._machine = ClusterMachine()
        self._introduction: Introduction | None = None
        self._next_look: IDelayedCall | None = None

    # --- Life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """As every node; and find the other managers, on a blank directory."""
        super().open()
        shape, directory = self._shape, self._directory
        assert directory is not None
        if directory.is_new:
            member = Member(shape.replica or 0, directory.identity.disk)
            introduction = self._introduction = Introduction(
                self.reactor, member, shape.settings, shape.ports, self._ask, self._decided, self._refused
            )
            introduction.start()

    async def close(self) -> None:
        """Look after nothing any more, and end as every node."""
        if self._introduction is not None:
            self._introduction.stop()
        if self._next_look is not None and self._next_look.active():
            self._next_look.cancel()
        await super().close()

    def reached(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The servers, which know where clients reach all managers: this one knows their p2p ports alone."""
        return (), tuple(map(show_address, self._shape.settings.servers))

    def machine_on(self, pairs: AppliedPairs) -> Machine:
        """The cluster: it has no pairs."""
        return self._machine

    def attach(self, host: ReplicaHost) -> None:
        """Answer by it, and look after it."""
        shape = self._shape
        self._service.registrar = Registrar(
            host.replica, self._machine, host.member, shape.settings, shape.ports, self._first
        )
        self._next_look = self.reactor.callLater(0, self._look)

    def _decided(self, first: Configuration) -> None:
        self._introduction = None
        self._join(cluster_id(first), first)

    def _refused(self, why: str) -> None:
        self.fail(Rejected(why))

    def _first(self) -> Configuration:
        """How the managers' group began. Before the founding it is where the log begins: no change goes before that."""
        assert self._host is not None
        return self._machine.firsts.get(MANAGERS) or self._host.storage.configurations[0][1]

    # --- The first start ----------------------------------------------------------------------------------------------

    def _ask(self, peer: int, claim: Introducing) -> Deferred[Introduced]:
        return Deferred.fromCoroutine(self._ask_at(peer, self._shape.peers[peer], claim))

    async def _ask_at(self, peer: int, address: Address, claim: Introducing) -> Introduced:
        endpoint = endpoint_to(address, self.reactor, CONNECT_SECONDS_MAX)
        if self.tls is not None:
            endpoint = self.tls.connecting(endpoint, self.reactor, address, f"{GROUP}.{peer}")
        connection = await connect(endpoint, lambda: CallerProtocol(self.reactor))
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

    def leadership_changed(self) -> None:
        """See to it soon, and not within that step."""
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
        if self._step_towards(self._machine.wanted(MANAGERS)):
            return
        core = host.replica.core
        if core.commit_index >= core.last_configuration_index:
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


def makeService(options: Options) -> IService:
    """The manager that the options describe; nothing is opened yet."""
    process = ManagerService(options["shape"], installed_reactor(), options["tls"])
    return observed(with_http(process, options["http"]), observer_of(options, process.node))
