"""`twistd madkv-server`: options, and the wiring of one server."""

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.python import usage

from madkv.addresses import Address, parse_address, parse_addresses, show_address
from madkv.limits import KIB, PARTITIONS_MAX, REPLICAS_MAX
from madkv.monitor.option import OPTION, read_http, with_http
from madkv.raft.bounds import Bounds
from madkv.raft.configuration import DISK_ID_BYTES, Member
from madkv.raft.messages import Message
from madkv.server.clustered import ClusteredServer, Shape
from madkv.server.disk import InlineDisk
from madkv.server.logs import OPTIONS, check_log_options, observed, observer_of
from madkv.server.parts import Tuning
from madkv.server.process import TLS_PARAMETERS, DaemonOptions, Inside, Process, take_tls, usage_errors, whole_number
from madkv.server.reactor import installed_reactor
from madkv.server.replica import Replica
from madkv.server.service import ServerFactory
from madkv.storage.memory import MemoryStore
from madkv.storage.volatile import VolatileStorage
from madkv.tls import TLSFiles

SOLO = "s0"
"""The name of a server without managers."""
BOOT_BYTES = DISK_ID_BYTES
TAIL_BYTES_KEPT = 64 * KIB
"""No peer asks for what is applied, and letting go of it entry by entry would cost more."""


class Options(DaemonOptions):
    """What the command line says."""

    program = "madkv-server"

    synopsis = "[options]"
    longdesc = (
        "A MadKV server. Without --managers it is a single server that keeps its pairs in memory. With them it is one "
        "of a cluster: it keeps its pairs in --backer, learns from the managers which keys its partition owns, and, "
        "with --replica, replicates them with its --peers."
    )
    optParameters = [
        ["listen", "l", "0.0.0.0:3777", "HOST:PORT to listen on for clients, without managers."],
        ["managers", "m", None, "HOST:PORT of each manager, separated by commas: makes this a server of a cluster."],
        ["partition", "p", "0", "Number of the partition that this server is of, from 0 on."],
        ["replica", "r", None, "Number of this replica of the partition, from 0 on; left out when it has no replicas."],
        ["api-port", "a", "3777", "Port for clients, on all addresses of this machine."],
        ["p2p-port", None, None, "Port for the other replicas, on all addresses; needed with --replica."],
        ["peers", None, "none", "The other replicas' HOST:P2P_PORT in the order of their numbers, or none."],
        ["backer", "b", None, "Directory for everything durable; made if it is not there."],
        *TLS_PARAMETERS,
        OPTION,
        *OPTIONS,
    ]

    def postOptions(self) -> None:
        """Check what was given, so that a mistake is one line."""
        take_tls(self)
        check_log_options(self)
        with usage_errors("listen"):
            self["listen"] = parse_address(self["listen"], port_min=0)
        with usage_errors("http"):
            self["http"] = None if self["http"] is None else read_http(self["http"])
        if self["managers"] is None:
            for name in ("replica", "p2p-port", "backer"):
                if self[name] is not None:
                    raise usage.UsageError(f"--{name} goes with --managers")
            self["shape"] = None
            return
        if not self["backer"]:
            raise usage.UsageError("--backer is needed with --managers: where to keep the data")
        if (self["replica"] is None) != (self["p2p-port"] is None):
            raise usage.UsageError("--replica and --p2p-port go together")
        numbers: dict[str, int | None] = {}
        for name, least, most in (
            ("partition", 0, PARTITIONS_MAX - 1),
            ("replica", 0, REPLICAS_MAX - 1),
            ("api-port", 1, 65_535),
            ("p2p-port", 1, 65_535),
        ):
            with usage_errors(name):
                numbers[name] = None if self[name] is None else whole_number(least, most)(self[name])
        with usage_errors("managers"):
            managers = parse_addresses(self["managers"])
        with usage_errors("peers"):
            peers = [] if self["peers"] == "none" else parse_addresses(self["peers"])
        if peers and numbers["replica"] is None:
            raise usage.UsageError("--peers goes with --replica")
        if (numbers["replica"] or 0) > len(peers):
            raise usage.UsageError(f"--replica {numbers['replica']} of {len(peers) + 1} replicas: they count from 0")
        assert numbers["partition"] is not None and numbers["api-port"] is not None
        self["shape"] = Shape(
            numbers["partition"],
            numbers["replica"],
            managers,
            numbers["api-port"],
            numbers["p2p-port"],
            peers,
            Path(self["backer"]).absolute(),
        )


def replica_in_memory(
    store: MemoryStore,
    member: Member,
    clock: IReactorTime,
    failed: Callable[[Exception], None],
) -> Replica:
    """A new group of one whose pairs are in `store` and nowhere else; it leads as soon as it is started."""
    return Replica(
        member,
        VolatileStorage(member),
        store,
        InlineDisk(),
        clock,
        _send_to_peers,
        random.SystemRandom().randrange,
        failed,
        Tuning(bounds=Bounds(tail_bytes_kept=TAIL_BYTES_KEPT)),
    )


def _send_to_peers(messages: Sequence[Message]) -> None:
    raise AssertionError(f"a group of one has nobody to send {messages} to")


class ServerService(Process):
    """A server without a manager: everything is in memory."""

    certified_as = SOLO

    def __init__(self, listen: Address, reactor: Any, tls: TLSFiles | None = None) -> None:
        super().__init__("madkv-server", "this server", reactor, tls)
        self._listen = listen
        self._port: IListeningPort | None = None
        self._factory: ServerFactory | None = None
        self._replica: Replica | None = None

    def open(self) -> None:
        """Listen, and lead."""
        boot = os.urandom(BOOT_BYTES)
        # Each start is a blank disk, and so another member.
        member = Member(0, boot)
        replica = self._replica = replica_in_memory(MemoryStore(), member, self.reactor, self.fail)
        self._factory = ServerFactory(self.reactor, replica, SOLO.encode(), boot.hex().encode(), self._status)
        self._factory.admission.connections_max = self.connections_max
        port = self._port = self.listen(self._listen, self._factory)
        replica.start()  # It leads before the reactor looks at the port for the first time.
        where: Any = port.getHost()
        self.log.info("serving clients on {address}", address=show_address((where.host, where.port)))

    def inside(self) -> Inside | None:
        """A replica without a disk or peers."""
        return None if self._factory is None else Inside(self._factory, self._replica)

    def _status(self) -> dict[str, Any]:
        """In the words of a replica of a cluster, as far as they fit."""
        assert self._replica is not None
        core = self._replica.core
        return {
            "group": "s0",
            "role": core.role.value,
            "term": core.term,
            "leader": None if core.leader is None else core.leader.replica,
            "commit": core.commit_index,
            "applied": self._replica.state_machine.last_applied,
            "last": core.log.last_index,
            "events": self._replica.events.told(),
        }

    async def close(self) -> None:
        """Close the port, end the replica, and close every connection."""
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        if self._replica is not None:
            self._replica.stop()
        if self._factory is not None:
            self._factory.close_connections()


def makeService(options: Options) -> IService:
    """The server that the options describe; nothing is opened yet."""
    reactor = installed_reactor()
    shape: Shape | None = options["shape"]
    tls = options["tls"]
    process = ServerService(options["listen"], reactor, tls) if shape is None else ClusteredServer(shape, reactor, tls)
    return observed(with_http(process, options["http"]), observer_of(options, "s0" if shape is None else shape.node))
