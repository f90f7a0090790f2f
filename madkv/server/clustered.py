"""One server of a cluster: a replica on its disk, registered with the managers, in front of it the service for clients.

Its life. On a blank directory it registers until the managers say how its group began, and opens its store with that.
On a directory that knows its cluster it takes part at once, whether managers are there or not. Either way it goes on
registering: so it hears what its group is to own, and which disks are to be in it, and if it leads, it sees to both.
"""

from pathlib import Path
from typing import Any

import attrs
from twisted.internet.threads import deferToThread

from madkv.addresses import Address, show_address
from madkv.errors import Busy, Rejected
from madkv.operations import Operation, Own
from madkv.ranges import NOTHING, Ownership
from madkv.server.backups import Backups
from madkv.server.host import ReplicaHost
from madkv.server.node import Node, Seat
from madkv.server.parts import Machine
from madkv.server.registration import Claim, Place, Registration
from madkv.server.replica import Answered
from madkv.server.service import ServerFactory
from madkv.state_machine import StateMachine
from madkv.storage.overlay import AppliedPairs
from madkv.tls import TLSFiles


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

    @property
    def seat(self) -> Seat:
        """Where it is in its group."""
        peers = self.peers_by_number
        return Seat(self.node, self.group, self.number, self.api_port, self.p2p_port, peers, self.backer)

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


class ClusteredServer(Node):
    """The process of one server."""

    _service: ServerFactory

    def __init__(self, shape: Shape, reactor: Any, tls: TLSFiles | None = None) -> None:
        service = ServerFactory(
            reactor, _Starting(), shape.node.encode(), b"", status=self._status, ownership=self._owned
        )
        super().__init__("madkv-server", shape.seat, service, None, reactor, tls)
        self._shape = shape
        self._registration: Registration | None = None
        self._place: Place | None = None
        self._lacks_vote = False  # whether its disk was found to have none
        self._is_known = False  # whether a manager has accepted this server in this life of it

    # --- Life -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """As every node; and register, for as long as it lives."""
        super().open()
        shape, directory = self._shape, self._directory
        assert directory is not None
        self._registration = Registration(
            self.reactor,
            shape.managers,
            shape.claim(directory.identity.disk),
            directory.identity.cluster,
            self._has_vote,
            self._accepted,
            self._rejected,
            self.tls,
        )
        self._registration.start()

    async def close(self) -> None:
        """Register no more, and end as every node."""
        if self._registration is not None:
            await self._registration.stop()
        if self._service.backups is not None:
            await self._service.backups.close()
        await super().close()

    def machine_on(self, pairs: AppliedPairs) -> Machine:
        """Pairs and sessions. A group owns nothing before the managers say so."""
        return StateMachine(pairs, first_ownership=NOTHING)

    def attach(self, host: ReplicaHost) -> None:
        """Serve clients by it."""
        self._service.replica = host.replica
        self._service.backups = Backups(self.reactor, host, self._owned, deferToThread)

    def reached(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The managers, who know the other servers."""
        return tuple(map(show_address, self._shape.managers)), ()

    # --- What the managers say ----------------------------------------------------------------------------------------

    def _accepted(self, place: Place) -> None:
        directory = self._directory
        assert directory is not None
        self._place = place
        if directory.is_new and place.first is not None:
            self._join(place.cluster, place.first)
        self._is_known = True
        self._see_to_the_group()

    def _has_vote(self) -> bool:
        """Whether this disk counts in its group, by a configuration that is committed."""
        core = None if self._host is None else self._host.replica.core
        if core is None or core.commit_index < core.last_configuration_index:
            return False
        if core.is_voter and self._lacks_vote:
            self.log.info("{node} has caught up, and has a vote on its new disk", node=self.node)
        self._lacks_vote = not core.is_voter
        return core.is_voter

    def _rejected(self, why: str) -> None:
        if not self._is_known:
            self.fail(Rejected(why))

    def leadership_changed(self) -> None:
        """See to it soon, and not within that step."""
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
        stepped = self._step_towards(place.wanted)
        # As long as a learner is to get a vote: one look after another, so that what it is behind is little.
        learners = host.replica.core.configuration.learners
        self._registration.hurry = stepped or not learners.isdisjoint(place.wanted.voters)

    # --- What is asked of it ------------------------------------------------------------------------------------------

    def _owned(self) -> Ownership:
        if self._host is None:
            return NOTHING
        machine = self._host.machine
        assert isinstance(machine, StateMachine)
        return machine.ownership

    def _status(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"role": "starting", "cluster": self._service.cluster.decode()}
        facts["managers"] = self.reached()[0]
        if self._host is not None:
            facts |= self._host.status()
            owned = self._owned()
            facts["epoch"] = owned.epoch
            facts["ranges"] = [[each.start.decode("latin-1"), None if each.end is None else each.end.decode("latin-1")]
                               for each in owned.ranges]  # fmt: skip
        return facts
