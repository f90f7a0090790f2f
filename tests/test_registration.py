"""A server registers at whichever manager leads, in whatever order it was told of them."""

from functools import partial
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

import madkv.server.registration as module
from madkv.errors import Busy, NotLeader
from madkv.raft.configuration import Configuration
from madkv.ranges import NOTHING
from madkv.server.registration import Claim, Place, Registration
from madkv.wire import codec
from madkv.wire.boxes import ASK, COMMAND, Box, blob, field
from madkv.wire.protocol import BoxProtocol

NOBODY = Configuration(frozenset())
CLAIM = Claim(0, 0, bytes(16), 1, 0, "", 1)


class Manager(BoxProtocol):
    """Answers as manager `number` of a group that manager 0 leads."""

    number = 0

    def box_received(self, box: Box) -> None:
        tag = box[ASK]
        if box[COMMAND] == codec.HELLO:
            fields = codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"role", b"manager")
            self.send(codec.answer(tag, fields + field(b"boot", b"") + field(b"node", b"m.%d" % self.number)))
        elif self.number:
            self.send(codec.answer_error(tag, NotLeader("this replica does not lead its group; leader: 0", 0)))
        else:
            fields = field(b"cluster", b"c") + codec.integer(b"epoch", 0) + blob(b"ownership", NOTHING.encode())
            self.send(codec.answer(tag, fields + field(b"first", NOBODY.encode()) + field(b"wanted", NOBODY.encode())))


class Stranger(Manager):
    """Somebody else, at the address of a manager."""

    role, cluster = b"server", b"another"
    registered = 0

    def box_received(self, box: Box) -> None:
        if box[COMMAND] == codec.HELLO:
            fields = codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"role", self.role)
            fields += field(b"boot", b"") + field(b"node", b"s0.0") + field(b"cluster", self.cluster)
            self.send(codec.answer(box[ASK], fields))
        else:
            type(self).registered += 1
            super().box_received(box)


class OtherManager(Stranger):
    """A manager of another cluster."""

    role = b"manager"


class WaitingManager(Manager):
    """Has not found the other managers, and never will."""

    def box_received(self, box: Box) -> None:
        if box[COMMAND] == codec.HELLO:
            super().box_received(box)
        else:
            self.send(codec.answer_error(box[ASK], Busy("this manager waits for the others")))


@pytest_twisted.ensureDeferred
async def test_one_that_waits_for_others_keeps_no_server_waiting() -> None:
    from twisted.internet import reactor

    network: Any = reactor
    ports = []
    for kind in (WaitingManager, Manager):
        factory = Factory.forProtocol(partial(kind, network))
        factory.noisy = False
        ports.append(network.listenTCP(0, factory, interface="127.0.0.1"))
    addresses = [("127.0.0.1", port.getHost().port) for port in ports]
    accepted: Deferred[Place] = Deferred()
    registration = Registration(network, addresses, CLAIM, "", lambda: False, accepted.callback, print)
    try:
        registration.start()
        assert (await accepted.addTimeout(10, network)).cluster == "c"
        await deferLater(network, 0)  # not from within its own call
    finally:
        await registration.stop()
        for port in ports:
            await port.stopListening()


async def lines_until(network: Any, kinds: list[type[Manager]], rejections: int = 0) -> list[str]:
    """Register at managers of these kinds until one accepts, or none and there were so many rejections; those."""
    ports = []
    for kind in kinds:
        factory = Factory.forProtocol(partial(kind, network))
        factory.noisy = False
        ports.append(network.listenTCP(0, factory, interface="127.0.0.1"))
    addresses = [("127.0.0.1", port.getHost().port) for port in ports]
    over: Deferred[object] = Deferred()
    lines: list[str] = []

    def rejected(why: str) -> None:
        lines.append(why)
        if len(lines) == rejections:
            over.callback(None)

    registering = Registration(network, addresses, CLAIM, "c", lambda: False, over.callback, rejected)
    try:
        registering.start()
        await over.addTimeout(20, network)
        await deferLater(network, 0)  # not from within its own call
    finally:
        await registering.stop()
        for port in ports:
            await port.stopListening()
    return lines


@pytest_twisted.ensureDeferred
async def test_strangers_at_some_addresses_keep_no_server_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of another cluster, or no managers: whoever listens there since a manager was moved away."""
    from twisted.internet import reactor

    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)
    for kinds in ([Stranger, Manager], [OtherManager, Stranger, Manager], [OtherManager, Manager]):
        assert await lines_until(reactor, kinds) == []


@pytest_twisted.ensureDeferred
async def test_nothing_is_said_to_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the next try, either, on a connection that was found to be one to somebody else."""
    from twisted.internet import reactor

    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)
    for kind, why in (
        (Stranger, "is server s0.0, not a manager"),
        (OtherManager, "these managers are those of cluster"),
    ):
        monkeypatch.setattr(kind, "registered", 0)
        for kinds in ([kind], [kind, kind, kind]):
            lines = await lines_until(reactor, kinds, 3)
            assert len(lines) == 3 and all(why in line for line in lines), lines
        assert kind.registered == 0


class Silent(Manager):
    """Says nothing."""

    made: Deferred["Silent"]
    ended: Deferred[None]

    def connectionMade(self) -> None:
        super().connectionMade()
        self.made.callback(self)

    def connectionLost(self, *reason: Any) -> None:
        super().connectionLost(*reason)
        self.ended.callback(None)

    def box_received(self, box: Box) -> None:
        pass


@pytest_twisted.ensureDeferred
async def test_it_ends_while_it_greets() -> None:
    from twisted.internet import reactor

    network: Any = reactor
    Silent.made, Silent.ended = Deferred(), Deferred()
    factory = Factory.forProtocol(partial(Silent, network))
    factory.noisy = False
    port = network.listenTCP(0, factory, interface="127.0.0.1")
    addresses = [("127.0.0.1", port.getHost().port)]
    registering = Registration(network, addresses, CLAIM, "", lambda: False, print, print)
    try:
        registering.start()
        await Silent.made.addTimeout(20, network)
        await Deferred.fromCoroutine(registering.stop()).addTimeout(20, network)
        await Silent.ended.addTimeout(20, network)
    finally:
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_the_managers_may_be_given_in_any_order() -> None:
    from twisted.internet import reactor

    network: Any = reactor
    ports = []
    for number in range(3):

        def make(number: int = number) -> Manager:
            protocol = Manager(network)
            protocol.number = number
            return protocol

        factory = Factory.forProtocol(make)
        factory.noisy = False
        ports.append(network.listenTCP(0, factory, interface="127.0.0.1"))
    addresses = [("127.0.0.1", port.getHost().port) for port in ports]
    try:
        for order in ((1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (0, 1, 2)):
            accepted: Deferred[Place] = Deferred()
            registration = Registration(
                network, [addresses[number] for number in order], CLAIM, "", lambda: False, accepted.callback, print
            )
            registration.start()
            place = await accepted.addTimeout(10, network)
            assert place.cluster == "c", order
            await deferLater(network, 0)  # not from within its own call
            await registration.stop()
    finally:
        for port in ports:
            await port.stopListening()
