"""What a server of a cluster and a manager have in common: a directory, ports, and a replica as soon as it may begin.

On a directory that has a store the replica begins at once. On a blank one it waits until its `first` configuration is
known: who began the group, which all its stores must agree on.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort

from madkv.addresses import Address
from madkv.errors import MadKVError
from madkv.raft.configuration import DISK_ID_BYTES, Configuration, Member
from madkv.raft.core import RaftCore
from madkv.raft.replacement import next_step
from madkv.server.host import ReplicaHost
from madkv.server.parts import Machine
from madkv.server.peer_port import Introduce, PeerFactory
from madkv.server.process import Inside, Process
from madkv.storage.directory import Directory
from madkv.storage.overlay import AppliedPairs
from madkv.tls import TLSFiles, name_of, roles_of
from madkv.wire.answering import AnsweringFactory

EVERYWHERE = "0.0.0.0"
NOBODY = Configuration(frozenset())
"""Stands for the first configuration where the store knows it."""


@attrs.frozen
class Seat:
    """Which replica of which group a node is, and where it is reached."""

    node: str
    """Its name."""
    group: str
    number: int
    """In the group, from 0 on."""
    port: int
    """Where whoever calls reaches it."""
    p2p_port: int | None
    """Where the other replicas reach it; None without any."""
    peers: dict[int, Address]
    """The other replicas' p2p addresses by their numbers."""
    backer: Path


class Node(Process):
    """The process. Subclasses say what is replicated, and what begins and ends beside the replica."""

    # Simulations have others.
    open_directory: Callable[..., Directory] = Directory
    host_of: Callable[..., ReplicaHost] = ReplicaHost

    def __init__(
        self,
        program: str,
        seat: Seat,
        service: AnsweringFactory,
        introduce: Introduce | None,
        reactor: Any,
        tls: TLSFiles | None = None,
    ) -> None:
        """`service` answers on the node's port; `introduce` what is asked for before PeerHello on the other one."""
        super().__init__(program, seat.node, reactor, tls)
        self._seat = seat
        self._service = service
        self._peer_service = PeerFactory(reactor, introduce, seat.node)
        self._ports: list[IListeningPort] = []
        self._directory: Directory | None = None
        self._host: ReplicaHost | None = None
        self._targets: dict[Member, tuple[int, int]] = {}  # of learners: (term, index), see `_has_caught_up`

    # --- For subclasses -----------------------------------------------------------------------------------------------

    def machine_on(self, pairs: AppliedPairs) -> Machine:
        """What is replicated."""
        raise AssertionError("subclasses replicate something")

    def attach(self, host: ReplicaHost) -> None:
        """The replica is about to begin."""
        raise AssertionError("subclasses use their replica")

    def leadership_changed(self) -> None:
        """Another member of the group leads, or none, or this one: within the step in which that came about."""
        raise AssertionError("subclasses follow who leads")

    def reached(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Where the managers are, and where the servers, as far as it knows without asking."""
        raise AssertionError("subclasses know others of the cluster")

    # --- Life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take hold of the directory and the ports; start what can be started."""
        seat = self._seat
        try:
            directory = self._directory = self.open_directory(seat.backer, None, seat.node, os.urandom(DISK_ID_BYTES))
        except MadKVError as error:
            self.refuse(str(error))
        self._service.admission.connections_max = self.connections_max
        self._ports.append(self.listen((EVERYWHERE, seat.port), self._service))
        if seat.p2p_port is not None:
            self._ports.append(
                self.listen((EVERYWHERE, seat.p2p_port), self._peer_service, roles_of([name_of(seat.node)]))
            )
        self.log.info("{node} serves on port {port}", node=seat.node, port=seat.port)
        if not directory.is_new:
            self._start_replica(NOBODY)

    async def close(self) -> None:
        """Hand over, close the store, the ports and every connection."""
        if self._host is not None:
            await self._host.stop()
        elif self._directory is not None:
            self._directory.close()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        self._service.close_connections()

    def inside(self) -> Inside:
        """A replica on its disk, between its peers."""
        if (host := self._host) is None:
            return Inside(self._service, None, None, None, *self.reached())
        return Inside(self._service, host.replica, host.storage, host.links, *self.reached())

    def _join(self, cluster: str, first: Configuration) -> None:
        """Begin on the blank directory, as a member of a cluster from now on."""
        assert self._directory is not None and self._directory.is_new
        try:
            self._directory.join(cluster)
        except Exception as error:
            self.fail(error)
        else:
            self._start_replica(first)

    def _start_replica(self, first: Configuration) -> None:
        seat, directory = self._seat, self._directory
        assert directory is not None
        try:
            host = self._host = self.host_of(
                self.reactor,
                directory,
                first,
                seat.group,
                seat.number,
                seat.p2p_port,
                seat.peers,
                self.machine_on,
                self.fail,
                self.leadership_changed,
                self.tls,
            )
            self._service.cluster = directory.identity.cluster.encode()
            self._service.transfer_leader = host.transfer_leader
            self.attach(host)
            self._peer_service.attach(host.links)
            host.start()
        except Exception as error:  # also one that is no MadKVError: a node without its replica is of no use
            self.fail(error)

    # --- Of the group -------------------------------------------------------------------------------------------------

    def _step_towards(self, wanted: Configuration) -> bool:
        """As the leader: bring the group one step nearer to the disks that it should be on. Whether there was one."""
        assert self._host is not None
        replica = self._host.replica
        core = replica.core
        step = next_step(core.configuration, wanted, lambda member: self._has_caught_up(core, member))
        if step is not None:
            replica.change_members(step)
        return step is not None

    def _has_caught_up(self, core: RaftCore, learner: Member) -> bool:
        """Whether it holds what was committed when it was looked at last: what it lacks has come since then, as in the
        rounds of the dissertation's section 4.2.1.

        Not what is committed by now: while calls keep coming, one that is a moment behind is so at every look.
        """
        progress = core.progress.get(learner)
        if progress is None:
            return False
        term, target = self._targets.get(learner, (0, 0))
        if term == core.term and progress.match_index >= target:
            return True
        self._targets[learner] = core.term, core.commit_index
        return progress.match_index >= core.commit_index
