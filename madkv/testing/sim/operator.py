"""The operator of a simulated cluster: gives up disks that are lost, as `madkv replace-disk` does."""

from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.python.failure import Failure

from madkv.addresses import Address
from madkv.errors import Interrupted, NotLeader, ProtocolError, Refused, Rejected
from madkv.limits import CONNECT_SECONDS_MAX
from madkv.manager.placement import ClusterMachine, Slot
from madkv.testing.sim.nodes import Node, NodeGroup
from madkv.testing.sim.reactor import Reactor
from madkv.testing.sim.world import LocalClock
from madkv.wire import codec
from madkv.wire.boxes import field
from madkv.wire.caller import CallerProtocol
from madkv.wire.endpoint import connect, endpoint_to

HOST = "10.4.0.0"
PAUSE_SECONDS = 0.3
UNKNOWN_SECONDS = 6.0
"""How long to wait after a question whose answer was lost, before looking what became of it."""


class Operator:
    """Sees to nodes whose process has ended since their disk is another one than the managers know."""

    def __init__(self, managers: NodeGroup, addresses: list[Address]) -> None:
        self._managers = managers
        self._addresses = addresses
        self._world = managers.world
        self._reactor = Reactor(managers.internet, HOST, LocalClock(self._world, lambda: None), lambda: None)
        self._under_way: set[Node] = set()

    def ended(self, node: Node, why: str) -> None:
        """A process has ended by itself."""
        if "replace-disk" not in why or "given up" in why:
            self._managers.broken.append(Rejected(f"{node} has ended: {why}"))
        elif node not in self._under_way:
            self._under_way.add(node)
            Deferred.fromCoroutine(self._see_to(node)).addErrback(self._failed)

    def _failed(self, why: Failure) -> None:
        assert isinstance(why.value, Exception)
        self._managers.broken.append(why.value)

    async def _see_to(self, node: Node) -> None:
        """Until another disk may come, and then start it."""
        slot = (node.group.partition, node.number)
        disk = node.member.disk
        at = 0
        while True:
            machine = self._what_stands()
            present = None if machine is None else machine.slots.get(slot)
            if machine is not None and (present is None or present.is_vacant or present.disk == disk):
                break
            if machine is not None:
                assert isinstance(present, Slot)
                try:
                    await self._ask(self._addresses[at], str(node))
                    self._world.note("disk given up", lambda: str(node))
                    break
                except (_AnswerLost, Interrupted):
                    self._world.note("answer lost", lambda: f"to replace-disk {node}")
                    await task.deferLater(self._reactor, UNKNOWN_SECONDS)
                except Rejected as error:
                    why = f"{node}: {error}"
                    self._world.note("replace-disk refused", lambda why=why: why)  # type: ignore[misc]
                except Refused as error:
                    leader = error.leader if isinstance(error, NotLeader) else None
                    at = leader if leader is not None else (at + 1) % len(self._addresses)
                except (ConnectError, ConnectionClosed, ProtocolError):
                    at = (at + 1) % len(self._addresses)
            await task.deferLater(self._reactor, PAUSE_SECONDS)
        self._under_way.discard(node)
        if not node.is_up:
            node.start()

    async def _ask(self, address: Address, name: str) -> None:
        endpoint = endpoint_to(address, self._reactor, CONNECT_SECONDS_MAX)
        connection = await connect(endpoint, lambda: CallerProtocol(self._reactor))
        try:
            await connection.call(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
            try:
                await connection.call(codec.REPLACE_DISK, field(b"node", name.encode()))
            except ConnectionClosed:
                raise _AnswerLost from None
        finally:
            await connection.abort()

    def _what_stands(self) -> ClusterMachine | None:
        """The managers' state, if nothing is in any of their logs that may change it yet: nothing is asked twice."""
        last = 0
        for node in self._managers.nodes:
            if node.replica is not None:
                last = max(last, node.replica.core.log.last_index)
            elif node.platter.meta is not None:
                last = max(last, node.platter.meta.snapshot_index + len(node.platter.log))
        leader = self._managers.leader
        if leader is None or leader.replica is None or leader.replica.state_machine.last_applied < last:
            return None
        machine = leader.replica.state_machine
        assert isinstance(machine, ClusterMachine)
        return None if machine.founded is None else machine


class _AnswerLost(Exception):
    """The question was sent, and nobody knows what became of it."""
