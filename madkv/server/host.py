"""A replica on its disk and between its peers, as servers and managers run it: put together, started, and stopped."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from madkv.addresses import Address
from madkv.errors import Rejected
from madkv.limits import TRANSFER_LAG_ENTRIES_MAX
from madkv.raft.configuration import Configuration, Member
from madkv.raft.progress import Flow
from madkv.server.disk import Disk, DiskThread
from madkv.server.parts import Machine, Tuning
from madkv.server.peers import PeerLinks
from madkv.server.replica import Replica
from madkv.storage.directory import Directory
from madkv.storage.durable import DurableStorage
from madkv.storage.overlay import AppliedPairs
from madkv.wire.lines import SeldomLine

if TYPE_CHECKING:
    from madkv.wire.tls import Credentials

HAND_OVER_SECONDS_MAX = 1.5
"""How long a leader that hands over waits for another one."""


@attrs.frozen
class Parts:
    """What a replica has of the world."""

    storage: Any
    """A DurableStorage, or its twin in memory."""
    disk: Disk
    links: Callable[..., Any]
    """Makes the PeerLinks."""
    draw: Callable[[int], int]
    tuning: Tuning | None = None


def _out_of_step(draw: Callable[[int], int]) -> Tuning:
    """The usual tuning, but that each replica brings its tables up to date after another number of entries.

    That takes tens of milliseconds, in which its log waits: all at the same index would keep the whole group waiting.
    """
    percent = 75 + draw(51)
    usual = Tuning()
    return attrs.evolve(
        usual, flush_entries=usual.flush_entries * percent // 100, flush_bytes=usual.flush_bytes * percent // 100
    )


class ReplicaHost:
    """One running replica. It holds its directory from the moment when it is made until `stop`."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        directory: Directory,
        first: Configuration,
        group: str,
        replica: int,
        p2p_port: int | None,
        peers: dict[int, Address],
        machine_of: Callable[[AppliedPairs], Machine],
        failed: Callable[[Exception], None],
        leadership_changed: Callable[[], None] = lambda: None,
        tls: "Credentials | None" = None,
    ) -> None:
        """Open the store, on a new directory with the group's `first` configuration. Raises MadKVError.

        `p2p_port` is where the other replicas reach this one, None without any; `peers` are their addresses by their
        numbers. `failed` is called when this replica cannot go on; the process must end then.
        """
        self._reactor = reactor
        self.group = group
        self._change_heard = leadership_changed
        self._waiting_for_change: list[Deferred[None]] = []
        self._transfers = SeldomLine(reactor, self.log)
        self.member = Member(replica, directory.identity.disk)
        parts = self.parts_of(reactor, directory, first)
        self.storage = parts.storage
        self.pairs = AppliedPairs(self.storage)
        self.machine = machine_of(self.pairs)
        self._disk = parts.disk
        self.links = parts.links(
            reactor,
            directory.identity.cluster,
            group,
            self.member,
            p2p_port or 0,
            peers,
            lambda message: self.replica.receive(message),
            lambda why: failed(Rejected(why)),
            tls,
        )
        self.replica: Replica = Replica(
            self.member,
            self.storage,
            self.pairs,
            self._disk,
            reactor,
            self.links.send,
            parts.draw,
            failed,
            parts.tuning,
            machine=self.machine,
            leadership_changed=self._leadership_changed,
        )
        self.links.noted = lambda what, replica: self.replica.events.add(what, peer=replica)

    def parts_of(self, reactor: Any, directory: Directory, first: Configuration) -> Parts:
        """Those of a real replica; simulations have others."""
        disk = DiskThread(reactor.callFromThread)
        draw = random.SystemRandom().randrange
        return Parts(DurableStorage(directory, first), disk, PeerLinks, draw, _out_of_step(draw))

    def start(self) -> None:
        """Take part."""
        self.links.start()
        self.replica.start()

    async def stop(self) -> None:
        """Hand the leadership over if there is somebody, then end: nobody hears anything more; the store is closed."""
        if self.replica.hand_over():
            await self._until(lambda: not self.leads)
        self.replica.stop()
        await self.links.stop()
        await self._close_disk()
        self.storage.close()

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until a change of the leader has brought this about, for HAND_OVER_SECONDS_MAX at the most."""
        ends = self._reactor.seconds() + HAND_OVER_SECONDS_MAX
        while not holds() and (seconds_left := ends - self._reactor.seconds()) > 0:
            change: Deferred[None] = Deferred()
            self._waiting_for_change.append(change)
            change.addTimeout(seconds_left, self._reactor, lambda result, seconds: None)
            await change

    async def transfer_leader(self, number: int) -> int:
        """Hand the leadership to the replica of that number; the term in which it leads.

        Raises NotLeader where this replica does not lead, and Rejected, with one line, when that one is no voter, does
        not answer, is behind by more than TRANSFER_LAG_ENTRIES_MAX, or when it has not come about in time.
        """
        replica, group, core = self.replica, self.group, self.replica.core
        if not self.leads:
            raise replica.not_leader()
        to = next((member for member in sorted(core.configuration.members) if member.replica == number), None)
        if to is None:
            numbers = ", ".join(str(member.replica) for member in sorted(core.configuration.members))
            raise Rejected(f"group {group} has no replica {number}, but {numbers}")
        if to == self.member:
            return core.term
        if to not in core.configuration.voters:
            raise Rejected(f"replica {number} of group {group} has no vote yet: it is catching up on a new disk")
        progress = core.progress[to]
        lag = core.log.last_index - progress.match_index
        if progress.flow is Flow.SNAPSHOT or lag > TRANSFER_LAG_ENTRIES_MAX:
            raise Rejected(f"replica {number} of group {group} is {lag:,} entries behind: wait until it has caught up")
        if not replica.transfer_leadership(to):
            raise Rejected(f"replica {number} of group {group} does not answer its leader")
        self._transfers.say(f"asked to hand group {group} over to replica {number}")
        await self._until(lambda: core.leader not in (None, self.member))
        if replica.leads:
            raise Rejected(f"replica {number} of group {group} has not taken over in time: the lead stays where it was")
        if core.leader != to:
            raise replica.not_leader()
        return core.term

    def _close_disk(self) -> Deferred[None]:
        return deferToThread(self._disk.close)

    @property
    def leads(self) -> bool:
        """Whether this replica leads its group, as far as it knows."""
        return self.replica.leads

    def status(self) -> dict[str, Any]:
        """How the replica is, for tools; all numbers are indexes or bytes."""
        core = self.replica.core
        return {
            "group": self.group,
            "replica": self.member.replica,
            "disk": self.member.disk.hex(),
            "role": core.role.value,
            "term": core.term,
            "leader": None if core.leader is None else core.leader.replica,
            "commit": core.commit_index,
            "applied": self.machine.last_applied,
            "last": core.log.last_index,
            "first": core.log.first_index,
            "durable_applied": self.storage.applied_index,
            "voters": sorted(str(member) for member in core.configuration.voters),
            "learners": sorted(str(member) for member in core.configuration.learners),
            "match": {str(member): progress.match_index for member, progress in core.progress.items()},
            "data_bytes": self.storage.used_bytes,
            "log_bytes": self.storage.log_bytes,
            "events": self.replica.events.told(),
        }

    def _leadership_changed(self) -> None:
        core = self.replica.core
        if core.leader is not None:
            self.log.info(
                "replica {leader} leads group {group} in term {term}{here}",
                leader=core.leader.replica,
                group=self.group,
                term=core.term,
                here=" (this one)" if core.leader == self.member else "",
            )
        waiting, self._waiting_for_change = self._waiting_for_change, []
        for change in waiting:
            if not change.called:  # by its time-out
                change.callback(None)
        self._change_heard()
