"""The p2p port: connections that the other replicas of a group open, and managers that introduce themselves.

What PeerHello is for, and who is wrong when two do not fit, is told in peers.py.
"""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from madkv.addresses import show_address
from madkv.errors import (
    Busy,
    InternalError,
    InvalidArgument,
    MadKVError,
    ProtocolError,
    Rejected,
    VersionMismatch,
    shown,
)
from madkv.limits import (
    MEMBER_CONNECTIONS_MAX,
    PEER_BOX_BYTES_MAX,
    PEER_REFUSALS_KEPT,
    STRANGER_BOX_BYTES_MAX,
    STRANGER_SECONDS_MAX,
    STRANGERS_MAX,
)
from madkv.raft.configuration import DISK_ID_BYTES, Member
from madkv.server.peers import PeerLinks
from madkv.settings import port_difference
from madkv.tls import check_claim
from madkv.wire import codec
from madkv.wire.boxes import ASK, COMMAND, Box, field
from madkv.wire.codec import take_blob, take_bytes, take_integer, take_ports
from madkv.wire.lines import FirstLine, SeldomLine
from madkv.wire.peer import decode
from madkv.wire.protocol import BoxProtocol

Introduce = Callable[[Box], Any]
"""Gets the box of an Introduce. The answer's fields, encoded, or a Deferred of them; a MadKVError is answered."""


class PeerProtocol(BoxProtocol):
    """A connection on which a peer sends its messages, or a manager introduces itself."""

    box_bytes_max = STRANGER_BOX_BYTES_MAX

    def __init__(self, factory: "PeerFactory", reactor: Any) -> None:
        super().__init__(reactor)
        self._factory = factory
        self._links: PeerLinks | None = None
        self._sender: Member | None = None
        self._stranger: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Give whoever it is some time to say so."""
        super().connectionMade()
        self._factory.joined(self)
        self._stranger = self._clock.callLater(STRANGER_SECONDS_MAX, self._still_a_stranger)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget it."""
        super().connectionLost(reason)
        self._factory.left(self)
        self._no_stranger()
        if self._links is not None and self._sender is not None and self._links.incoming.get(self._sender) is self:
            del self._links.incoming[self._sender]

    def tell_closed(self, line: str) -> None:
        """Log it, but not each."""
        self._factory.tell_closed(line)

    def box_received(self, box: Box) -> None:
        """A message, mostly."""
        command = box.get(COMMAND)
        if command == codec.RAFT:
            self._raft(box)
            return
        tag = box.get(ASK)
        if command is None or tag is None:
            raise ProtocolError("a box that is no call")
        if command == codec.PEER_HELLO:
            self._peer_hello(tag, box)
        elif command == codec.INTRODUCE and self._factory.introduce is not None:
            self._introduce(tag, box)
        elif command == codec.HELLO:
            here = self.transport.getHost()
            address, node = show_address((here.host, here.port)), self._factory.node
            why = f"{address} is the p2p port of {node}, for other replicas; clients connect to another port"
            self.send(codec.answer_error(tag, Rejected(why)))
            self.finish()
        else:
            self.send(
                codec.answer_error_code(tag, codec.UNHANDLED, "this port is for replicas; clients connect to another")
            )
            self.finish()

    def _raft(self, box: Box) -> None:
        links = self._links
        if links is None:
            raise ProtocolError("a message before PeerHello")
        try:
            data = take_blob(box, b"message")
        except InvalidArgument as error:
            raise ProtocolError(str(error)) from None
        message = decode(data)
        if message.sender != self._sender:
            raise ProtocolError(f"a message of {message.sender} from {self._sender}")
        if message.to == links.member and not links.is_stopped:  # Otherwise it is for a disk that was here before.
            links.receive(message)

    # --- PeerHello --------------------------------------------------------------------------------------------------

    def _peer_hello(self, tag: bytes, box: Box) -> None:
        if self._sender is not None:
            raise ProtocolError("a second PeerHello")
        factory = self._factory
        links = factory.links
        replica = -1
        try:
            if links is None or links.is_stopped:
                raise Busy("it is starting" if links is None else "it is ending")
            replica = _check_hello(links, box, self.certified)
            disk = take_bytes(box, b"disk")
            if len(disk) != DISK_ID_BYTES:
                raise InvalidArgument(f"a disk id has {DISK_ID_BYTES} bytes; this one has {len(disk)}")
        except MadKVError as error:
            if not isinstance(error, Busy):
                factory.tell_refused(self.peer, str(error))
            self.send(codec.answer_error(tag, error))
            self.finish()
            return
        self._no_stranger()
        factory.met(self)
        self.box_bytes_max = PEER_BOX_BYTES_MAX
        self._links = links
        self._sender = Member(replica, disk)
        former = links.incoming.pop(self._sender, None)
        links.incoming[self._sender] = self
        if former is not None:
            former.drop("its replica has opened another one")
        theirs = [member for member in links.incoming if member.replica == replica]
        if len(theirs) > MEMBER_CONNECTIONS_MAX:
            links.incoming.pop(theirs[0]).drop("its replica has opened others, on other disks")
        self.send(codec.answer(tag, field(b"disk", links.member.disk)))
        links.met(replica)

    def _still_a_stranger(self) -> None:
        self._stranger = None
        self.drop(f"no PeerHello for {STRANGER_SECONDS_MAX:g} seconds")

    def _no_stranger(self) -> None:
        if self._stranger is not None:
            self._stranger.cancel()
            self._stranger = None

    # --- Introduce --------------------------------------------------------------------------------------------------

    def _introduce(self, tag: bytes, box: Box) -> None:
        if self._stranger is not None:
            self._stranger.reset(STRANGER_SECONDS_MAX)
        self.hold()  # One at a time: its answer may wait for the group.
        maybeDeferred(self._introduction, box).addCallbacks(
            lambda fields: self.send(codec.answer(tag, fields)), lambda failure: self._introduce_failed(tag, failure)
        ).addBoth(lambda _: self.release())

    def _introduction(self, box: Box) -> Any:
        assert self._factory.introduce is not None
        try:
            if self.certified is not None:
                check_claim(self.certified, f"m.{take_integer(box, b'replica')}")
        except Rejected as refusal:
            self._factory.tell_refused(self.peer, str(refusal))
            raise
        return self._factory.introduce(box)

    def _introduce_failed(self, tag: bytes, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, MadKVError):
            self.log.failure("an introduction failed in a way that was not foreseen", failure)
            error = InternalError("the manager failed; its log says how")
        self.send(codec.answer_error(tag, error))


def _check_hello(links: PeerLinks, box: Box, certified: frozenset[str] | None) -> int:
    """The replica number in a PeerHello that fits. Raises Rejected, VersionMismatch or InvalidArgument."""
    version = take_integer(box, b"version")
    if version != codec.PROTOCOL_VERSION:
        raise VersionMismatch(f"this replica speaks version {codec.PROTOCOL_VERSION}, the other one version {version}")
    cluster, group = shown(take_bytes(box, b"cluster")), shown(take_bytes(box, b"group"))
    replica, to = take_integer(box, b"replica"), take_integer(box, b"to")
    me, other = links.name_of(links.member.replica), f"{group}.{replica}"
    ports = take_ports(box, b"ports")
    check_claim(certified, other)
    if cluster != links.cluster:
        raise Rejected(
            f"{me} is of cluster {links.cluster}, {other} of cluster {cluster}; see their --backer and --peers"
        )
    if group != links.group:
        raise Rejected(f"this is {me}; {other} has its address for that of {group}.{to}; see its --peers")
    if replica not in links.replicas or len(ports) != len(links.ports):
        raise Rejected(f"{me} has no {other} of {len(ports)} replicas among its peers; see their --peers")
    difference = port_difference(links.name_of, replica, ports, links.member.replica, links.ports)
    if difference is not None:
        links.disagreed(replica, difference)
        raise Rejected(difference)
    if to != links.member.replica:
        raise Rejected(f"this is {me}; {other} has its address for that of {group}.{to}; see its --peers")
    return replica


class PeerFactory(Factory):
    """The side that listens on the p2p port. When the port is closed, so are its connections."""

    noisy = False
    log = Logger()

    def __init__(self, reactor: Any, introduce: Introduce | None = None, node: str = "a node") -> None:
        """`introduce` answers what a manager asks another at its first start; servers have none. `node` is who this is
        to a client that comes to the wrong port."""
        self._reactor = reactor
        self.node = node
        self.introduce = introduce
        self.links: PeerLinks | None = None
        self.connections: set[PeerProtocol] = set()
        self._strangers: dict[PeerProtocol, None] = {}  # in the order in which they came
        self._refusals = FirstLine(reactor, self.log, PEER_REFUSALS_KEPT)
        self._closings = SeldomLine(reactor, self.log)

    def attach(self, links: PeerLinks) -> None:
        """From now on PeerHello is answered in this replica's name; before, it is answered Busy."""
        assert self.links is None
        self.links = links

    def buildProtocol(self, addr: IAddress | None) -> PeerProtocol:
        """A protocol for one connection."""
        return PeerProtocol(self, self._reactor)

    def joined(self, protocol: PeerProtocol) -> None:
        """Take a connection of somebody who has not said yet who it is.

        A replica says it at once. So when there are many of them, it is the oldest that has to go: nobody who connects
        and says nothing keeps a replica out.
        """
        self.connections.add(protocol)
        if len(self._strangers) >= STRANGERS_MAX:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            self.tell_closed(f"closed the connection of {oldest.peer}: too many others say as little who they are")
            oldest.abandon()
        self._strangers[protocol] = None

    def met(self, protocol: PeerProtocol) -> None:
        """It has said who it is."""
        self._strangers.pop(protocol, None)

    def left(self, protocol: PeerProtocol) -> None:
        """It is closed."""
        self.connections.discard(protocol)
        self._strangers.pop(protocol, None)

    def stopFactory(self) -> None:
        """The port is closed."""
        for protocol in list(self.connections):
            protocol.transport.abortConnection()

    def tell_refused(self, peer: str, why: str) -> None:
        """Log a refusal, but not again what is refused again and again."""
        self._refusals.say(why, f"refused a connection of {peer}: {why}")

    def tell_closed(self, line: str) -> None:
        """Log that a connection was closed, and why; but not each, since strangers may open many."""
        self._closings.say(line)
