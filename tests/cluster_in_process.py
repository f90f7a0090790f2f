"""A cluster within the test's own process: real services on real sockets, and a leadership that the test hands round.

Each partition is one real replica with its state machine, in front of which stand as many seats as it has replicas,
each a real service on a port of its own. The seat that leads hands calls on; the others refuse them. So what a client
sees of a change of leaders is here at once, and without any wait for an election.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThread

from madkv.addresses import Address, parse_address, show_address
from madkv.client.aio import AsyncClient
from madkv.client.api import Client
from madkv.client.blocking import BlockingClient
from madkv.errors import Busy, Interrupted, MadKVError, NotLeader
from madkv.manager.service import ManagerFactory
from madkv.operations import CloseSession, OpenSession, Operation, Own
from madkv.partitions import PartitionMap
from madkv.raft.configuration import Configuration, Member
from madkv.ranges import NOTHING, KeyRange, Ownership
from madkv.server.disk import InlineDisk
from madkv.server.replica import Answered, Replica
from madkv.server.service import ServerFactory
from madkv.state_machine import StateMachine
from madkv.storage.overlay import AppliedPairs
from madkv.storage.twin import TwinDisk, TwinStorage
from tests.proxy import Proxy, always_pass

CLUSTER = "c0ffee0123456789"
ME = Member(0, bytes(16))
network: Any = reactor
FACES = pytest.mark.parametrize("face", ["blocking", "deferred", "asyncio"])
IN_FLIGHT = pytest.mark.parametrize("face", ["deferred", "asyncio"])
"""Those with many calls in flight."""
THREE: Any = [b"", b"h", b"p"], [0, 1, 2]
MANY: Any = [b"", b"c", b"f", b"k", b"r"], [0, 1, 0, 2, 1]
"""Some partitions own several ranges."""


def _raise_again(error: Exception) -> None:
    raise error


class Listening:
    """A service on a port that can be closed and opened again."""

    def __init__(self, factory: Any) -> None:
        self.factory = factory
        self._port: IListeningPort | None = network.listenTCP(0, factory, interface="127.0.0.1")
        self.address: Address = "127.0.0.1", self._port.getHost().port  # type: ignore[union-attr]

    def up(self) -> None:
        """Listen again."""
        self._port = network.listenTCP(self.address[1], self.factory, interface="127.0.0.1")

    def break_connections(self) -> None:
        """Close every connection."""
        for connection in list(self.factory.connections):
            connection.transport.abortConnection()

    async def down(self) -> None:
        """As a crash: nobody listens any more, and every connection breaks."""
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        self.break_connections()
        while self.factory.connections:
            await turn()


class Seat:
    """One of a group's replicas, as the service sees it."""

    def __init__(self, group: "Group", number: int) -> None:
        self._group = group
        self._number = number

    def propose(self, operation: Operation, answered: Answered) -> None:
        if refusal := self._group.refusal_of(self._number):
            answered(refusal)
            return
        self._group.sessions_opened += isinstance(operation, OpenSession)
        self._group.sessions_closed += isinstance(operation, CloseSession)
        if self._group.interrupts:
            self._group.interrupts -= 1
            self._group.replica.propose(operation, lambda outcome: answered(Interrupted("it was, and is not any more")))
            return
        self._group.replica.propose(operation, answered)

    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        if refusal := self._group.refusal_of(self._number):
            released(refusal)
        else:
            self._group.replica.read(key, released)


class Group:
    """One partition."""

    def __init__(self, partition: int, replicas: int) -> None:
        self.leader: int | None = 0
        self.hints = True
        self.interrupts = 0
        """How many of the next operations are executed and answered Interrupted."""
        self.refusals: list[MadKVError] = []
        """What the next calls are refused with, whoever is asked."""
        self.sessions_opened = self.sessions_closed = 0
        storage = TwinStorage(TwinDisk(), Configuration(frozenset({ME})))
        pairs = AppliedPairs(storage)
        self.machine = StateMachine(pairs, first_ownership=NOTHING)
        self.replica = Replica(
            ME, storage, pairs, InlineDisk(), network, lambda message: None, lambda n: 0, _raise_again,
            machine=self.machine,
        )  # fmt: skip
        self.replica.start()
        self.servers: list[Listening] = []
        for number in range(replicas):
            node = f"s{partition}.{number}".encode()
            factory = ServerFactory(network, Seat(self, number), node, b"", ownership=lambda: self.machine.ownership)
            factory.cluster = CLUSTER.encode()
            self.servers.append(Listening(factory))

    def refusal_of(self, number: int) -> MadKVError | None:
        """What that seat answers instead of asking the replica."""
        if self.refusals:
            return self.refusals.pop(0)
        if number == self.leader:
            return None
        return NotLeader(f"replica {number} does not lead", self.leader if self.hints else None)

    def own(self, ownership: Ownership) -> None:
        """As when the leader has heard from the managers."""
        self.replica.propose(Own(ownership), lambda outcome: None)

    async def move_lead(self, to: int) -> None:
        """Another replica leads; whoever was connected to the old one finds its connection broken."""
        assert self.leader is not None
        old, self.leader = self.servers[self.leader], to
        await old.down()
        old.up()


class Manager(Listening):
    """One manager: the real service in front of a map that the test sets."""

    def __init__(self) -> None:
        factory = ManagerFactory(network, b"m", dict)
        factory.cluster = CLUSTER.encode()
        registrar: Any = self
        factory.registrar = registrar
        self.map: PartitionMap | None = None
        self.asked = 0
        super().__init__(factory)

    def partition_map(self) -> PartitionMap:
        """What the registrar answers."""
        self.asked += 1
        if self.map is None:
            raise Busy("waiting for s0.1 (3 of 4 registered)")
        return self.map


class Cluster:
    """Groups and managers; each key range belongs to the group that `owners` names."""

    def __init__(self, starts: list[bytes], owners: list[int], *, replicas: int = 1, managers: int = 1) -> None:
        self.groups = [Group(partition, replicas) for partition in range(max(owners) + 1)]
        self.managers = [Manager() for _ in range(managers)]
        self.addresses = [[server.address for server in group.servers] for group in self.groups]
        """Where clients are told that the servers are; a test may put a proxy there before it calls `cut`."""
        self.epoch = 0
        self.cut(starts, owners)

    async def __aenter__(self) -> "Cluster":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def managers_text(self) -> str:
        """As a client is given them."""
        return ",".join(show_address(manager.address) for manager in self.managers)

    def cut(self, starts: list[bytes], owners: list[int], *, told: bool = True) -> list[Ownership]:
        """Cut the keys anew, by a map of the next epoch. The groups hear of it at once, or when the test tells them."""
        self.epoch += 1
        for manager in self.managers:
            manager.map = PartitionMap(self.epoch, CLUSTER, starts, owners, self.addresses)
        ends = [*starts[1:], None]
        owned = [
            Ownership(
                self.epoch,
                tuple(KeyRange(*ends) for owner, *ends in zip(owners, starts, ends, strict=True) if owner == number),
            )
            for number in range(len(self.groups))
        ]
        if told:
            for group, ownership in zip(self.groups, owned, strict=True):
                group.own(ownership)
        return owned

    async def stop(self) -> None:
        """Close every port and connection."""
        for group in self.groups:
            for server in group.servers:
                await server.down()
            group.replica.stop()
        for manager in self.managers:
            await manager.down()


class Threaded:
    """The blocking client with the Deferred client's methods. It makes one call at a time, in a thread."""

    def __init__(self, **given: Any) -> None:
        self.notices: list[str] = []
        self._reading, self._writing = os.pipe()
        self._client = BlockingClient(notice=self.notices.append, abandon_fd=self._writing, **given)

    def end(self, *, abandon: bool) -> Deferred[None]:
        """Close the client; first give up the call that it is in, which would go on for ever when a test has failed."""
        if abandon:
            os.close(self._reading)
        ended = deferToThread(self._client.close)
        for fd in (self._writing,) if abandon else (self._reading, self._writing):
            ended.addBoth(lambda result, fd=fd: os.close(fd))
        return ended

    def __getattr__(self, name: str) -> Callable[..., Deferred[Any]]:
        method = getattr(self._client, name)
        return lambda *arguments: deferToThread(method, *arguments)


class InLoop:
    """The asyncio client with the Deferred client's methods, on an event loop of its own in a thread."""

    def __init__(self, **given: Any) -> None:
        self.notices: list[str] = []
        self._client = AsyncClient(notice=self.notices.append, **given)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def end(self) -> None:
        """Close the client, and see to it that nothing of it is left in its loop."""
        try:
            await self._run(self._client.close())
            left = await self._run(_tasks_that_stay())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            await deferToThread(self._thread.join)
            self._loop.close()
        assert left == []

    def __getattr__(self, name: str) -> Callable[..., Deferred[Any]]:
        method = getattr(self._client, name)
        return lambda *arguments: self._run(method(*arguments))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        result: Deferred[Any] = Deferred(lambda _: future.cancel())

        def tell() -> None:
            if result.called:
                return  # it was cancelled
            if error := future.exception():
                result.errback(error)
            else:
                result.callback(future.result())

        future.add_done_callback(lambda _: network.callFromThread(tell))
        return result


async def _tasks_that_stay() -> list[str]:
    """What else still runs, and does not end by itself."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, others = await asyncio.wait(others, timeout=5)
    return [repr(each) for each in others]


class ClientOf:
    """A client of one face, as FACES names them, that is closed in the end: use it in an `async with`."""

    def __init__(self, face: str, **given: Any) -> None:
        make: Any = {"blocking": Threaded, "deferred": lambda **given: Client(reactor, **given), "asyncio": InLoop}
        self._client: Any = make[face](**given)

    async def __aenter__(self) -> Any:
        return self._client

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if isinstance(self._client, Threaded):
            await self._client.end(abandon=kind is not None)
        elif isinstance(self._client, InLoop):
            await self._client.end()
        else:
            await self._client.close()


async def turn() -> None:
    """One turn of the reactor."""
    passed: Deferred[None] = Deferred()
    network.callLater(0.001, passed.callback, None)
    await passed


async def wait_in_thread(event: threading.Event) -> None:
    """Wait for what a thread, such as a proxy's, brings about."""
    assert await deferToThread(event.wait, 20)


def proxy_before(cluster: Cluster, partition: int, replica: int, decide: Any = always_pass) -> Proxy:
    """Put a proxy before a server; the next map names it instead."""
    proxy = Proxy(*cluster.addresses[partition][replica], decide)
    cluster.addresses[partition][replica] = parse_address(proxy.address)
    return proxy


async def failure_of(deferred: Deferred[Any]) -> Any:
    """The exception that it fails with."""
    return await deferred.addCallbacks(lambda result: pytest.fail(f"it gave {result!r}"), lambda failed: failed.value)
