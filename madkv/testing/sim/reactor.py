"""A reactor for each process of a simulated cluster: its delayed calls, its ports, and TCP over a simulated network.

What runs on it is what runs under twistd: endpoints, protocols, Deferreds. A process that is killed is a reactor on
which nothing happens any more. TCP loses nothing and keeps the order, so cuts and losses only hold it up; what breaks a
connection is the end of a process, an abort, or that the other side knows nothing of it any more.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
    UserError,
)
from twisted.internet.interfaces import IReactorPluggableNameResolver, IReactorTCP, IReactorTime, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

from madkv.testing.sim.world import LocalClock, Planned, World

RESEND_SECONDS_MIN = 0.2
RESEND_SECONDS_MAX = 1.6
DELAY_SECONDS_MIN = 0.0001


class Ended(BaseException):
    """Leaves a process that has just ended, from wherever it is."""


class Internet:
    """Hosts by their addresses, what listens there, and what lies between them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.listening: dict[tuple[str, int], tuple[Reactor, Any]] = {}
        self.cut: set[frozenset[str]] = set()
        """Pairs of hosts between which nothing goes."""
        self.dark: set[str] = set()
        """Hosts without power: nothing there says that a process has ended."""
        self.loss = 0.0
        self.delay_max = 0.003
        self.connections: dict[Transport, None] = {}
        """Client ends of those that are open, in the order in which they were made."""
        self._ports = 0

    def delay(self) -> float:
        """How long something is on its way."""
        return self.world.chance.uniform(DELAY_SECONDS_MIN, self.delay_max)

    def passes(self, one: str, other: str) -> bool:
        """Whether something sent now arrives."""
        return (
            not self.dark & {one, other}
            and frozenset((one, other)) not in self.cut
            and not (self.loss and self.world.chance.random() < self.loss)
        )

    def break_connections(self, host: str) -> None:
        """Something before a host forgets about the connections there."""
        for end in list(self.connections):
            if host in (end.getHost().host, end.getPeer().host):
                end.reset()
                end.other.reset()

    def new_port(self) -> int:
        """One that no connection has had."""
        self._ports += 1
        return 10_000 + self._ports


class _Delayed:
    """As IDelayedCall has it."""

    def __init__(self, reactor: "Reactor", delay: float, work: Callable[[], None]) -> None:
        self._reactor = reactor
        self._work = work
        self._planned: Planned = reactor.plan(delay, work)

    def active(self) -> bool:
        """Whether it is still to come."""
        return self._planned.active()

    def cancel(self) -> None:
        """It is not to come."""
        self._planned.cancel()

    def reset(self, seconds_from_now: float) -> None:
        """It is to come then."""
        self._planned.cancel()
        self._planned = self._reactor.plan(seconds_from_now, self._work)


@implementer(IReactorTime, IReactorTCP, IReactorPluggableNameResolver)
class Reactor:
    """What one process runs on, until `kill`."""

    def __init__(self, internet: Internet, host: str, clock: LocalClock, touched: Callable[[], None]) -> None:
        """`touched` is called when something is about to happen here."""
        self.internet = internet
        self.host = host
        self._clock = clock
        self._touched = touched
        self.is_alive = True
        self._ends: dict[Transport, None] = {}
        self.nameResolver = self

    # --- Life -----------------------------------------------------------------------------------------------------

    def run(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Have the process do something, if there still is one."""
        if self.is_alive:
            self._touched()
            try:
                work(*arguments)
            except Ended:
                pass

    def kill(self) -> None:
        """Nothing happens here any more. Others hear of it, unless the host is without power or cut off."""
        self.is_alive = False
        internet = self.internet
        internet.listening = {at: port for at, port in internet.listening.items() if port[0] is not self}
        for end in list(self._ends):
            end.die()

    # --- IReactorTime ---------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Monotonic time."""
        return self._clock.seconds()

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """As IReactorTime has it."""
        return _Delayed(self, delay, lambda: callable(*args, **kw))

    def plan(self, delay: float, work: Callable[[], None]) -> Planned:
        """Have something done here later."""
        return self._clock.callLater(delay, self.run, work)

    def getDelayedCalls(self) -> list[Any]:
        """Whoever asks wants to know whether anything was begun too early."""
        return []

    # --- Names ----------------------------------------------------------------------------------------------------

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *_: Any, **__: Any) -> Any:
        """Hosts have no names but their addresses."""
        receiver.resolutionBegan(None)
        receiver.addressResolved(IPv4Address("TCP", hostName, portNumber))
        receiver.resolutionComplete()
        return receiver

    def installNameResolver(self, resolver: Any) -> Any:
        """Nobody does."""
        raise AssertionError

    # --- IReactorTCP ----------------------------------------------------------------------------------------------

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """As IReactorTCP has it."""
        return Port(self, port, factory)

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        """As IReactorTCP has it."""
        return Connector(self, (host, port), factory, timeout)

    def opened(self, end: "Transport") -> None:
        """A connection of this process."""
        self._ends[end] = None

    def closed(self, end: "Transport") -> None:
        """It is gone."""
        self._ends.pop(end, None)


class Port:
    """As IListeningPort has it."""

    def __init__(self, reactor: Reactor, port: int, factory: Any) -> None:
        self._at = reactor.host, port
        self._reactor = reactor
        self._factory = factory
        assert self._at not in reactor.internet.listening
        reactor.internet.listening[self._at] = reactor, factory
        factory.doStart()

    def stopListening(self) -> None:
        """Nobody comes any more."""
        if self._reactor.internet.listening.pop(self._at, None) is not None:
            self._factory.doStop()


class Connector:
    """As IConnector has it: an attempt to connect."""

    def __init__(self, reactor: Reactor, to: tuple[str, int], factory: Any, timeout: float) -> None:
        self._reactor = reactor
        self._to = to
        self._factory = factory
        self._is_over = False
        self._made: Transport | None = None
        factory.doStart()
        factory.startedConnecting(self)
        self._timeout = reactor.callLater(timeout, lambda: self._fail(TimeoutError()))
        self._resend_seconds = RESEND_SECONDS_MIN
        self._knock()

    def stopConnecting(self) -> None:
        """Give up."""
        if not self._is_over:
            self._fail(UserError())

    def disconnect(self) -> None:
        """Give up, or close what was made."""
        self.stopConnecting()
        if self._made is not None:
            self._made.loseConnection()

    def getDestination(self) -> IPv4Address:
        """Where it leads."""
        return IPv4Address("TCP", *self._to)

    def _knock(self) -> None:
        internet, reactor = self._reactor.internet, self._reactor
        if not internet.passes(reactor.host, self._to[0]):
            seconds, self._resend_seconds = self._resend_seconds, min(2 * self._resend_seconds, RESEND_SECONDS_MAX)
            internet.world.later(seconds, self._knock_again)
            return
        internet.world.later(internet.delay(), self._arrive)

    def _knock_again(self) -> None:
        if not self._is_over and self._reactor.is_alive:
            self._knock()

    def _arrive(self) -> None:
        if self._is_over or not self._reactor.is_alive:
            return
        internet = self._reactor.internet
        found = internet.listening.get(self._to)
        if found is None:
            internet.world.later(internet.delay(), self._reactor.run, self._fail, ConnectionRefusedError())
            return
        there, factory = found
        here = IPv4Address("TCP", self._reactor.host, internet.new_port())
        ours = Transport(self._reactor, here, IPv4Address("TCP", *self._to))
        theirs = Transport(there, IPv4Address("TCP", *self._to), here)
        ours.other, theirs.other = theirs, ours
        internet.connections[ours] = None
        there.run(lambda: theirs.connect(factory.buildProtocol(here)))
        internet.world.later(internet.delay(), self._reactor.run, self._succeed, ours)

    def _succeed(self, ours: "Transport") -> None:
        if self._is_over:
            ours.abortConnection()
            return
        self._is_over = True
        self._timeout.cancel()
        self._made = ours
        ours.connect(self._factory.buildProtocol(ours.getPeer()))

    def _fail(self, why: Exception) -> None:
        if not self._is_over:
            self._is_over = True
            if self._timeout.active():
                self._timeout.cancel()
            self._factory.clientConnectionFailed(self, Failure(why))
            self._factory.doStop()


@implementer(ITransport)
class Transport:
    """One end of a connection, as ITCPTransport has it, but that writing never has to wait."""

    other: "Transport"

    def __init__(self, reactor: Reactor, here: IPv4Address, there: IPv4Address) -> None:
        self._reactor = reactor
        self._internet = reactor.internet
        self._here = here
        self._there = there
        self._protocol: Any = None
        self._is_open = True
        self._is_paused = False
        self._is_ending = False
        self._sent: deque[bytes | None] = deque()  # what the other end has not got; None is the end
        self._is_carrying = False
        self._resend_seconds = RESEND_SECONDS_MIN
        self._arrived: deque[bytes | None] = deque()  # what the protocol has not taken
        reactor.opened(self)

    def connect(self, protocol: Any) -> None:
        """Let the protocol begin."""
        self._protocol = protocol
        if self._is_open:
            protocol.makeConnection(self)
            self._hand_over()
        else:
            # It is gone already: the protocol hears so as soon as it has begun.
            self._is_open = True
            protocol.makeConnection(self)
            self._lose(ConnectionLost())

    # --- As protocols see it --------------------------------------------------------------------------------------

    def getPeer(self) -> IPv4Address:
        """The other end's address."""
        return self._there

    def getHost(self) -> IPv4Address:
        """This end's address."""
        return self._here

    def write(self, data: bytes) -> None:
        """Send this."""
        if self._is_open and not self._is_ending:
            self._sent.append(data)
            self._carry()

    def loseConnection(self, *_: Any) -> None:
        """Close once everything is sent."""
        if self._is_open and not self._is_ending:
            self._is_ending = True
            self._sent.append(None)
            self._carry()

    def abortConnection(self) -> None:
        """Close now."""
        if self._is_open and not self._is_ending:
            self._is_ending = True
            self._sent.clear()
            self._tell_other()
            self._reactor.callLater(0, lambda: self._lose(ConnectionAborted()))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send these."""
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Nothing that is written has to wait."""

    def pauseProducing(self) -> None:
        """Hand nothing over for now."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """Go on."""
        if self._is_paused:
            self._is_paused = False
            self._reactor.callLater(0, self._hand_over)

    # --- On the way -----------------------------------------------------------------------------------------------

    def _carry(self) -> None:
        """Bring the next thing to the other end, when nothing is on the way."""
        if not self._is_carrying and self._sent:
            self._is_carrying = True
            self._internet.world.later(self._internet.delay(), self._arrive)

    def _arrive(self) -> None:
        self._is_carrying = False
        if not self._sent:
            return
        if not self._internet.passes(self._here.host, self._there.host):
            self._is_carrying = True
            self._internet.world.later(self._resend_seconds, self._arrive)
            self._resend_seconds = min(2 * self._resend_seconds, RESEND_SECONDS_MAX)
            return
        self._resend_seconds = RESEND_SECONDS_MIN
        other, pieces = self.other, list(self._sent)
        self._sent.clear()
        if not other._is_open:
            self.reset()
            return
        other._reactor.run(other._take, pieces)
        if pieces[-1] is None:
            self._reactor.run(self._lose, ConnectionDone())

    def _take(self, pieces: list[bytes | None]) -> None:
        self._arrived += pieces
        self._hand_over()

    def _hand_over(self) -> None:
        while self._arrived and self._protocol is not None and self._is_open and not self._is_paused:
            data = self._arrived.popleft()
            if data is None:
                self._lose(ConnectionDone())
            elif not self._is_ending:
                self._protocol.dataReceived(data)

    # --- The end --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The other end knows nothing of this connection."""
        self._internet.world.later(self._internet.delay(), self._reactor.run, self._lose, ConnectionLost())

    def die(self) -> None:
        """The process is gone."""
        if self._is_open:
            self._close()
            self._tell_other()

    def _tell_other(self) -> None:
        if self._internet.passes(self._here.host, self._there.host):
            self.other.reset()  # Said once. If it is lost, the other end finds out when it sends something.

    def _close(self) -> None:
        self._is_open = False
        self._sent.clear()
        self._arrived.clear()
        self._reactor.closed(self)
        self._internet.connections.pop(self, None)

    def _lose(self, why: Exception) -> None:
        if self._is_open:
            self._close()
            if self._protocol is not None:
                self._protocol.connectionLost(Failure(why))
