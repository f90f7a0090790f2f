"""One server of a cluster: a replica on its disk, registered with the managers, in front of it the service for clients.

Its life. On a blank directory it registers until the managers say how its group began, and opens its store with that.
On a directory that knows its cluster it takes part at once, whether managers are there or not. Either way it goes on
registering: so it hears what its group is to own, and which disks are to be in it, and if it leads, it sees to both.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort

from madkv.addresses import Address, show_address
from madkv.errors import Busy, MadKVError, Rejected
from madkv.operations import Operation, Own
from madkv.raft.configuration import DISK_ID_BYTES, Configuration
from madkv.raft.replacement import next_step
from madkv.ranges import NOTHING, Ownership
from madkv.server.host import ReplicaHost
from madkv.server.peers import PeerFactory
from madkv.server.process import Process
from madkv.server.registration import Claim, Place, Registration
from madkv.server.replica import Answered
from madkv.server.service import ServerFactory
from madkv.state_machine import StateMachine
from madkv.storage.directory import Directory

EVERYWHERE = "0.0.0.0"
NOBODY = Configuration(frozenset())


@attrs.frozen
class Shape:
    """Which server of a cluster this is."""

    partition: int
    replica: int | None
    """None in project 2, where a partition has one server and that no number."""
    managers: list[Address]
    api_port: int
    p2p_port: int | None
    peers: list[Address]
    """The other replicas' p2p addresses, in the order of their numbers."""
    backer: Path

    @property
    def group(self) -> str:
        """The name of its group."""
        return f"s{self.partition}"

    @property
    def node(self) -> str:
        """Its own name."""
        return self.group if self.replica is None else f"{self.group}.{self.replica}"

    @property
    def number(self) -> int:
        """Its number in the group."""
        return self.replica or 0

    @property
    def peers_by_number(self) -> dict[int, Address]:
        """The other replicas' addresses by their numbers."""
        others = [number for number in range(len(self.peers) + 1) if number != self.number]
        return dict(zip(others, self.peers, strict=True))

    def claim(self, disk: bytes) -> Claim:
        """What it says of itself to the managers."""
        peers = ",".join(map(show_address, self.peers))
        rf = len(self.peers) + 1
        return Claim(self.partition, self.number, disk, self.api_port, self.p2p_port or 0, peers, rf)


class _Starting:
    """Stands for the replica until there is one."""

    def propose(self, operation: Operation, answered: Answered) -> None:
        """Not now."""
        answered(Busy("this server is starting"))

    def read(self, key: bytes, released: Any) -> None:
        """Not now."""
        released(Busy("this server is starting"))


class ClusteredServer(Process):
    """The process of one server."""

    # Simulations have others.
    open_directory: Callable[..., Directory] = Directory
    host_of: Callable[..., ReplicaHost] = ReplicaHost

    def __init__(self, shape: Shape, reactor: Any) -> None:
        super().__init__("madkv-server", shape.node, reactor)
        self._shape = shape
        self._ports: list[IListeningPort] = []
        self._directory: Directory | None = None
        self._host: ReplicaHost | None = None
        self._registration: Registration | None = None
        self._place: Place | None = None
        self._is_known = False  # whether a manager has accepted this server in this life of it
        self._service = ServerFactory(
            reactor, _Starting(), shape.node.encode(), b"", status=self._status, ownership=self._owned
        )
        self._peer_service = PeerFactory(reactor, None)

    # --- Life -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take hold of the directory and the ports; start what can be started."""
        shape = self._shape
        try:
            directory = self._directory = self.open_directory(shape.backer, None, shape.node, os.urandom(DISK_ID_BYTES))
        except MadKVError as error:
            self.refuse(str(error))
        self._ports.append(self.listen((EVERYWHERE, shape.api_port), self._service))
        if shape.p2p_port is not None:
            self._ports.append(self.listen((EVERYWHERE, shape.p2p_port), self._peer_service))
        self.log.info("{node} serves clients on port {port}", node=shape.node, port=shape.api_port)
        if not directory.is_new:
            self._start_replica(NOBODY)
        self._registration = Registration(
            self.reactor,
            shape.managers,
            shape.claim(directory.identity.disk),
            directory.identity.cluster,
            self._has_vote,
            self._accepted,
            self._rejected,
        )
        self._registration.start()

    async def close(self) -> None:
        """Hand over, close ports and connections, close the store."""
        if self._registration is not None:
            await self._registration.stop()
        if self._host is not None:
            await self._host.stop()
        elif self._directory is not None:
            self._directory.close()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        for connection in list(self._service.connections):
            connection.transport.abortConnection()

    def _start_replica(self, first: Configuration) -> None:
        shape, directory = self._shape, self._directory
        assert directory is not None
        try:
            host = self._host = self.host_of(
                self.reactor,
                directory,
                first,
                shape.group,
                shape.number,
                shape.p2p_port,
                shape.peers_by_number,
                lambda pairs: StateMachine(pairs, first_ownership=NOTHING),
                self.fail,
                self._leadership_changed,
            )
        except MadKVError as error:
            self.fail(error)
            return
        self._service.cluster = directory.identity.cluster.encode()
        self._service.replica = host.replica
        self._peer_service.attach(host.links)
        host.start()

    # --- What the managers say ----------------------------------------------------------------------------------------

    def _accepted(self, place: Place) -> None:
        directory = self._directory
        assert directory is not None
        self._place = place
        try:
            if directory.is_new and place.first is not None:
                directory.join(place.cluster)
                self._start_replica(place.first)
        except Exception as error:  # also one that is no MadKVError: a server without its replica is of no use
            self.fail(error)
        self._is_known = True
        self._see_to_the_group()

    def _has_vote(self) -> bool:
        """Whether this disk counts in its group, by a configuration that is committed."""
        core = None if self._host is None else self._host.replica.core
        return core is not None and core.is_voter and core.commit_index >= core.last_configuration_index

    def _rejected(self, why: str) -> None:
        if not self._is_known:
            self.fail(Rejected(why))

    def _leadership_changed(self) -> None:
        # Not within the step in which the leadership changed.
        self.reactor.callLater(0, self._see_to_ownership)

    def _see_to_ownership(self) -> None:
        """As the leader: have it in the log what the group owns. An older answer does no harm: epochs only grow."""
        host, place = self._host, self._place
        if host is not None and place is not None and host.leads and place.ownership.epoch > self._owned().epoch:
            host.replica.propose(Own(place.ownership), lambda outcome: None)

    def _see_to_the_group(self) -> None:
        """As the leader: bring what the group owns, and who is in it, nearer to what the managers say just now.

        Not by an older answer, such as the last one that a follower had: it may name a disk that was given up since.
        """
        assert self._registration is not None
        self._registration.hurry = False
        self._see_to_ownership()
        host, place = self._host, self._place
        if host is None or place is None or not host.leads:
            return
        core = host.replica.core
        step = next_step(
            core.configuration,
            place.wanted,
            lambda member: member in core.progress and core.progress[member].match_index >= core.commit_index,
        )
        if step is not None:
            host.replica.change_members(step)
            self._registration.hurry = True

    # --- What is asked of it ------------------------------------------------------------------------------------------

    def _owned(self) -> Ownership:
        if self._host is None:
            return NOTHING
        machine = self._host.machine
        assert isinstance(machine, StateMachine)
        return machine.ownership

    def _status(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"role": "starting", "cluster": self._service.cluster.decode()}
        if self._host is not None:
            facts |= self._host.status()
            owned = self._owned()
            facts["epoch"] = owned.epoch
            facts["ranges"] = [[each.start.decode("latin-1"), None if each.end is None else each.end.decode("latin-1")]
                               for each in owned.ranges]  # fmt: skip
        return facts
