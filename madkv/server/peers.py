"""Connections between the replicas of a group, which carry Raft's messages and nothing that anybody waits for.

Each replica opens one connection to every other, and sends on it; what others send comes on those that they opened. A
connection begins with PeerHello: cluster, group and replica number must fit, or the answer is one line that says what
does not, and the connection is closed. Then boxes `Raft` follow, which are not answered. What cannot be sent now is
dropped: Raft asks again by itself.

Nobody listens for silence. An idle group has heartbeats and their answers on its connections; where they are not
acknowledged by the other machine in time, the system ends the connection, and attempts to make another one follow, a
second apart: so a peer that was cut off is found about a second after it can be reached again, and at once when it is
the first to connect. A connection that only the other side has lost is replaced when its member connects anew.

Who is wrong when two do not fit? Each says in PeerHello which p2p ports it takes all replicas to have, so a wrong
address shows at every peer, also at one that it does not lead to. A replica that no peer has taken yet, and that a
majority of its group disagrees with, is the one that is wrong: it ends. Any other logs it, and goes on trying.
"""

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionLost, DNSLookupError
from twisted.internet.interfaces import IAddress, IDelayedCall, ISystemHandle
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from madkv.addresses import Address, show_address
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
    CLOSE_SECONDS_MAX,
    KEY_BYTES_MAX,
    MEMBER_CONNECTIONS_MAX,
    PEER_BOX_BYTES_MAX,
    PEER_BUFFER_BYTES_MAX,
    PEER_CONNECT_SECONDS_MAX,
    PEER_HELLO_SECONDS_MAX,
    PEER_REFUSALS_KEPT,
    PEER_UNACKNOWLEDGED_SECONDS_MAX,
    RETRY_SECONDS_MAX,
    RETRY_SECONDS_MIN,
    STRANGER_BOX_BYTES_MAX,
    STRANGER_SECONDS_MAX,
    STRANGERS_MAX,
    VALUE_BYTES_MAX,
)
from madkv.raft.bounds import USUAL
from madkv.raft.configuration import DISK_ID_BYTES, Member
from madkv.raft.messages import Message, SnapshotPiece
from madkv.settings import port_difference
from madkv.storage.snapshot import PIECE_BYTES
from madkv.tls import check_claim
from madkv.wire import codec
from madkv.wire.admission import FirstLine, SeldomLine
from madkv.wire.boxes import ASK, COMMAND, Box, blob, field
from madkv.wire.caller import CallerProtocol
from madkv.wire.codec import take_answer_field, take_blob, take_bytes, take_integer, take_ports
from madkv.wire.endpoint import connect, endpoint_to
from madkv.wire.peer import Encoder, decode
from madkv.wire.protocol import BoxProtocol, why_lost

if TYPE_CHECKING:  # at run time OpenSSL comes in only where there is TLS
    from madkv.wire.tls import Credentials

_OVERHEAD_BYTES = 64 * 1024  # of a message, of one operation or record in it, and of the fields that carry it
assert USUAL.append_bytes + KEY_BYTES_MAX + VALUE_BYTES_MAX + _OVERHEAD_BYTES <= PEER_BOX_BYTES_MAX
assert PIECE_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX + _OVERHEAD_BYTES <= PEER_BOX_BYTES_MAX
assert USUAL.in_flight_bytes + PEER_BOX_BYTES_MAX <= PEER_BUFFER_BYTES_MAX

_RAFT = field(COMMAND, codec.RAFT)
_END = b"\0\0"

Introduce = Callable[[Box], Any]
"""Gets the box of an Introduce. The answer's fields, encoded, or a Deferred of them; a MadKVError is answered."""


class PeerLinks:
    """One replica's connections with the other replicas of its group. `start` it, and `stop` it once."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        cluster: str,
        group: str,
        member: Member,
        port: int,
        addresses: dict[int, Address],
        receive: Callable[[Message], None],
        misfit: Callable[[str], None],
        tls: "Credentials | None" = None,
    ) -> None:
        """`port` is where this replica listens for the others; `addresses` are theirs, by replica number.

        `receive` gets every message to this member that a peer sends, in the order of each connection. `misfit` gets
        the line that says why this replica does not belong where it was put, when it is the one that is wrong.
        """
        assert member.replica not in addresses
        self.cluster = cluster
        self.group = group
        self.member = member
        self.replicas = frozenset(addresses)
        every = {member.replica: port} | {replica: port for replica, (_, port) in addresses.items()}
        self.ports = tuple(every[replica] for replica in sorted(every))
        """Of the whole group, by replica number."""
        self.receive = receive
        self._misfit = misfit
        self._was_taken = False
        self._disagreeing: set[int] = set()
        self.incoming: dict[Member, PeerProtocol] = {}
        """Connections that others have opened, after their PeerHello."""
        self.noted: Callable[[str, int], None] = lambda what, replica: None
        """Told of a peer that is `lost`, since the connection to it has ended, or `back` after that."""
        self.dropped = 0
        """Messages that were not sent, since too much waited for the same peer before them."""
        self.is_stopped = False
        self._encoder = Encoder()
        self._links = {replica: _Link(self, reactor, replica, address, tls) for replica, address in addresses.items()}

    def start(self) -> None:
        """Connect to the others, and again whenever a connection is lost."""
        for link in self._links.values():
            link.start()

    def send(self, messages: Sequence[Message]) -> None:
        """Post messages, at once; those to one peer leave together. They may never arrive."""
        boxes: dict[_OutgoingProtocol, list[bytes]] = {}
        waiting: dict[_OutgoingProtocol, int] = {}  # bytes, these boxes among them
        for message in messages:
            to = message.to
            link = self._links.get(to.replica)
            protocol = None if link is None else link.protocol
            if protocol is None or protocol.disk != to.disk:
                continue
            if protocol not in boxes:
                boxes[protocol], waiting[protocol] = [], protocol.unsent_bytes
            # A piece of a snapshot is repeated until it is answered: over a slow link, copies of it would only pile up.
            is_piece = isinstance(message, SnapshotPiece)
            if not protocol.unsent_bytes if is_piece else waiting[protocol] <= PEER_BUFFER_BYTES_MAX:
                box = _raft_box(self._encoder.encode(message))
                boxes[protocol].append(box)
                waiting[protocol] += len(box)
            else:
                self.dropped += 1
        for protocol, theirs in boxes.items():
            if theirs:
                protocol.send(theirs[0] if len(theirs) == 1 else b"".join(theirs))

    def stop(self) -> Deferred[None]:
        """Close every connection. Fires when those that it opened are closed, after what was sent has left."""
        self.is_stopped = True
        for protocol in list(self.incoming.values()):
            protocol.transport.abortConnection()
        return _when_all([link.stop() for link in self._links.values()])

    @property
    def connected(self) -> dict[int, bool]:
        """By replica number: whether there is a connection to it that it has taken."""
        return {replica: link.protocol is not None for replica, link in self._links.items()}

    def met(self, replica: int) -> None:
        """A peer has connected, so it can be connected to: after a restart of all, votes are not to wait for that."""
        self._links[replica].hurry()

    def taken(self) -> None:
        """A peer has taken this replica for what it says it is."""
        self._was_taken = True
        self._disagreeing.clear()

    def disagreed(self, replica: int, why: str) -> None:
        """A peer and this replica do not fit together."""
        if not self._was_taken and not self.is_stopped:
            self._disagreeing.add(replica)
            if len(self._disagreeing) > len(self.ports) // 2:
                self._misfit(why)

    def name_of(self, replica: int) -> str:
        """The name of a replica of this group's."""
        return f"{self.group}.{replica}"


def _raft_box(message: bytes) -> bytes:
    return b"".join((_RAFT, blob(b"message", message), _END))


def _when_all(deferreds: Iterable[Deferred[None]]) -> Deferred[None]:
    """Fires when all have fired; a failure of one is the failure of all."""
    return DeferredList(list(deferreds), fireOnOneErrback=True, consumeErrors=True).addCallback(lambda _: None)


# --- Connections that this replica opens ----------------------------------------------------------------------------

_FORESEEN = (MadKVError, ConnectError, ConnectingCancelledError, ConnectionLost, DNSLookupError)


class _OutgoingProtocol(CallerProtocol):
    """A connection to a peer: PeerHello and its answer, then boxes in one direction."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.disk = b""
        """The disk on the other side."""
        self._waiting_for_end: list[Deferred[str]] = []

    def connectionMade(self) -> None:
        """Have the system look after a peer whose machine says nothing any more."""
        super().connectionMade()
        transport = self.transport
        if ISystemHandle.providedBy(transport) and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(PEER_UNACKNOWLEDGED_SECONDS_MAX * 1000)
            handle: Any = transport.getHandle()
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def ended(self) -> Deferred[str]:
        """Fires with the reason when the connection is no more. To be called while it is there."""
        assert self.open
        self._waiting_for_end.append(Deferred())
        return self._waiting_for_end[-1]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell those who wait for this."""
        super().connectionLost(reason)
        for waiting in self._waiting_for_end:
            waiting.callback(why_lost(reason))


class _Link:
    """The way to one peer: an attempt to connect, a connection, another attempt, until it is stopped."""

    def __init__(
        self, links: PeerLinks, reactor: Any, replica: int, address: Address, tls: "Credentials | None"
    ) -> None:
        self._links = links
        self._reactor = reactor
        self._replica = replica
        self._peer = f"{links.name_of(replica)} ({show_address(address)})"
        # The time between attempts is also what finding takes that the last address of a name does not answer.
        self._endpoint = endpoint_to(address, reactor, PEER_CONNECT_SECONDS_MAX, RETRY_SECONDS_MIN)
        if tls is not None:
            self._endpoint = tls.connecting(self._endpoint, reactor, address, links.name_of(replica))
        self._told = ""
        self._was_lost = False
        self._delay = RETRY_SECONDS_MIN
        self._next_attempt: IDelayedCall | None = None
        self._running: Deferred[None] | None = None
        self.protocol: _OutgoingProtocol | None = None
        """The connection, once the peer has taken it."""

    def start(self) -> None:
        self._running = Deferred.fromCoroutine(self._run())

    def stop(self) -> Deferred[None]:
        running = self._running
        if running is None:
            return succeed(None)
        running.cancel()
        return running

    async def _run(self) -> None:
        try:
            await self._keep_connected()
        except CancelledError:
            pass

    async def _keep_connected(self) -> None:
        clock = self._reactor
        while True:
            began = clock.seconds()
            why = await self._connect_once()
            if self._links.is_stopped:
                return
            self._tell(why)
            # From the beginning of one attempt to that of the next, however long an attempt takes.
            seconds = max(0.0, began + self._delay - clock.seconds())
            self._delay = min(2 * self._delay, RETRY_SECONDS_MAX)
            await self._rest(seconds)

    async def _rest(self, seconds: float) -> None:
        over: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._next_attempt = self._reactor.callLater(seconds, over.callback, None)
        await over

    def hurry(self) -> None:
        """Make the next attempt now, if one is being waited for."""
        if self._next_attempt is not None and self._next_attempt.active():
            self._next_attempt.reset(0)

    async def _connect_once(self) -> str:
        """Connect, and stay until the connection ends; the line that says why there is none."""
        try:
            attempt = connect(self._endpoint, lambda: _OutgoingProtocol(self._reactor))
            # The endpoint bounds each address that the name has, and not the search for them.
            protocol: Any = await attempt.addTimeout(2 * PEER_CONNECT_SECONDS_MAX, self._reactor)
            try:
                return f"no connection to {self._peer}: {await self._use(protocol)}"
            finally:
                self.protocol = None
                if protocol.open:
                    await self._close(protocol)
        except (Rejected, VersionMismatch) as error:
            self._delay = RETRY_SECONDS_MAX
            why = f"{self._peer} does not take this replica: {error}"
            if isinstance(error, Rejected):
                self._links.disagreed(self._replica, why)
            return why
        except DeferredTimeout:
            return f"no connection to {self._peer}: no answer"
        except _FORESEEN as error:
            return f"no connection to {self._peer}: {error}"
        except CancelledError:
            raise
        except Exception:
            self._links.log.failure("a connection to {peer} failed in a way that was not foreseen", peer=self._peer)
            return f"no connection to {self._peer}"

    async def _use(self, protocol: _OutgoingProtocol) -> str:
        links = self._links
        hello = (
            codec.integer(b"version", codec.PROTOCOL_VERSION)
            + field(b"cluster", links.cluster.encode())
            + field(b"group", links.group.encode())
            + codec.integer(b"replica", links.member.replica)
            + field(b"disk", links.member.disk)
            + codec.integer(b"to", self._replica)
            + codec.ports(b"ports", links.ports)
        )
        answer = await protocol.call(codec.PEER_HELLO, hello).addTimeout(PEER_HELLO_SECONDS_MAX, self._reactor)
        protocol.disk = take_answer_field(answer, b"disk")
        self.protocol = protocol
        links.taken()
        if self._was_lost:
            links.noted("back", self._replica)
        self._tell(f"connected to {self._peer}", is_fault=False)
        since = self._reactor.seconds()
        why = await protocol.ended()
        self._was_lost = True
        links.noted("lost", self._replica)
        if self._reactor.seconds() - since >= RETRY_SECONDS_MAX:
            self._delay = RETRY_SECONDS_MIN
        return why

    async def _close(self, protocol: _OutgoingProtocol) -> None:
        """Close a connection; one that was in use gets time for what it has sent."""
        ended = protocol.ended()
        if self._links.is_stopped:
            protocol.transport.loseConnection()
            overdue = self._reactor.callLater(CLOSE_SECONDS_MAX, protocol.transport.abortConnection)
            await ended
            if overdue.active():
                overdue.cancel()
        else:
            protocol.transport.abortConnection()
            await ended

    def _tell(self, text: str, *, is_fault: bool = True) -> None:
        """Log what changes, and not every attempt."""
        if text != self._told:
            self._told = text
            log = self._links.log
            (log.warn if is_fault else log.info)("{text}", text=text)


# --- Connections that others open -----------------------------------------------------------------------------------


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
