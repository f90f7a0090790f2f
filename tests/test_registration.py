"""A server registers at whichever manager leads, in whatever order it was told of them."""

from functools import partial
from typing import Any

import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

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
