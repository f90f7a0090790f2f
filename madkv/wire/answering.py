"""The side of a connection that answers calls: dispatch, handshake and failures.

Servers and managers differ in what they can be asked, and in nothing of this.
"""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from madkv import __version__
from madkv.counts import Histogram
from madkv.errors import Busy, InternalError, MadKVError, ProtocolError, Rejected, VersionMismatch
from madkv.limits import CONNECTIONS_MAX, PEER_REFUSALS_KEPT
from madkv.tls import check_operator
from madkv.wire import codec
from madkv.wire.admission import Admission
from madkv.wire.boxes import ASK, COMMAND, Box, blob, field
from madkv.wire.codec import take_integer
from madkv.wire.in_flight import CallsInFlight, NotNow, Share
from madkv.wire.lines import FirstLine
from madkv.wire.protocol import BoxProtocol

Answer = Callable[[Box], Coroutine[Deferred[Any], Any, bytes]]
"""Gives the fields of the answer to a call, or raises."""


class AnsweringProtocol(BoxProtocol):
    """One client's connection. Subclasses add to `_responders` what else can be asked.

    A responder gets the tag and the box of a call; it answers, now or later, or raises.
    """

    log = Logger()

    def __init__(self, service: "AnsweringFactory", clock: IReactorTime) -> None:
        super().__init__(clock, service.admission)
        self._service = service
        self._share = Share(service.in_flight, self)
        self._responders: dict[bytes, Callable[[bytes, Box], None]] = {
            codec.HELLO: self._hello,
            codec.STATUS: self._status,
            codec.TRANSFER_LEADER: partial(self._start_for_operator, self._transfer_leader, None),
        }

    def connectionMade(self) -> None:
        """Count the connection in."""
        super().connectionMade()
        self._service.connections.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Count the connection out."""
        super().connectionLost(reason)
        self._service.connections.discard(self)
        self._share.leave()

    def box_received(self, box: Box) -> None:
        """Dispatch one call."""
        command = box.get(COMMAND)
        if command is None:
            raise ProtocolError("a box that is no command")
        tag = box.get(ASK, b"")
        responder = self._responders.get(command)
        if responder is None:
            shown = command[:40].decode("ascii", "backslashreplace")
            line = f"this {self._service.kind} has no command {shown!r}"
            self._answer(tag, codec.answer_error_code(tag, codec.UNHANDLED, line))
            return
        try:
            responder(tag, box)
        except NotNow:
            self._boxes.appendleft(box)
            self.hold()
        except Exception as error:
            self._answer(tag, self._failure_answer(tag, error))

    def _answer(self, tag: bytes, box: bytes) -> None:
        if tag:  # a call without a tag wants no answer
            self.send(box)

    def _failure_answer(self, tag: bytes, error: Exception) -> bytes:
        if not isinstance(error, MadKVError):
            self.log.failure("a call failed in a way that was not foreseen", Failure(error))
            error = InternalError(f"the {self._service.kind} failed; its log says how")
        self._service.errors[type(error).__name__] += 1
        return codec.answer_error(tag, error)

    def _hello(self, tag: bytes, box: Box) -> None:
        service = self._service
        version = take_integer(box, b"version")
        if version != codec.PROTOCOL_VERSION:
            raise VersionMismatch(
                f"this {service.kind} speaks version {codec.PROTOCOL_VERSION}, the client version {version}"
            )
        fields = codec.integer(b"version", version) + field(b"node", service.node) + field(b"boot", service.boot)
        fields += field(b"role", service.role) + field(b"cluster", service.cluster)
        self._answer(tag, codec.answer(tag, fields))

    def _status(self, tag: bytes, box: Box) -> None:
        service = self._service
        facts = {"node": service.node.decode(), "version": __version__, **service.counted(), **service.status()}
        self._answer(tag, codec.answer(tag, blob(b"status", json.dumps(facts).encode())))

    async def _transfer_leader(self, box: Box) -> bytes:
        replica = take_integer(box, b"replica")
        transfer = self._service.transfer_leader
        if transfer is None:
            raise Busy(f"this {self._service.kind} takes part in no group")
        return codec.integer(b"term", await transfer(replica))

    # --- Calls whose answer takes time ------------------------------------------------------------------------------

    def _start(self, answer_to: Answer, times: Histogram | None, tag: bytes, box: Box) -> None:
        """Answer a call, counted in, as soon as its coroutine is done; how long that took is added to `times`."""
        self._share.begin(0)
        Deferred.fromCoroutine(self._finish(answer_to, times, tag, box)).addErrback(
            lambda failure: self.log.failure("an answer went wrong in a way that was not foreseen", failure)
        )

    def _start_for_operator(self, answer_to: Answer, times: Histogram | None, tag: bytes, box: Box) -> None:
        """The same for what only operators may ask; raises Rejected for others, and says so in the log."""
        try:
            check_operator(self.certified, box[COMMAND].decode())
        except Rejected as refusal:
            self._service.refusals.say(str(refusal), f"refused a call of {self.peer}: {refusal}")
            raise
        self._start(answer_to, times, tag, box)

    async def _finish(self, answer_to: Answer, times: Histogram | None, tag: bytes, box: Box) -> None:
        began = self._clock.seconds()
        try:
            answer = codec.answer(tag, await answer_to(box))
            if times is not None:
                times.add(self._clock.seconds() - began)
        except Exception as error:
            answer = self._failure_answer(tag, error)
        finally:
            self._share.end(0)
        self._answer(tag, answer)


class AnsweringFactory(Factory):
    """All connections to one node, and what is in flight on them together."""

    log = Logger()
    noisy = False
    kind: str
    """What the node is, in lines for people."""
    role: bytes
    """What it is, in the answer to Hello."""

    def __init__(self, clock: IReactorTime, node: bytes, boot: bytes, status: Callable[[], dict[str, Any]]) -> None:
        """`status` gives the facts for Status, as JSON may hold them."""
        self._clock = clock
        self.node = node
        self.boot = boot
        self.status = status
        self.cluster = b""
        """The cluster's id, empty until it is known."""
        self.admission = Admission(clock, CONNECTIONS_MAX)
        self.in_flight = CallsInFlight(clock, self.kind)
        self.refusals = FirstLine(clock, self.log, PEER_REFUSALS_KEPT)
        """Of calls by those whose certificates are not for them."""
        self.transfer_leader: Callable[[int], Coroutine[Deferred[Any], Any, int]] | None = None
        """Hands the leadership of the node's group to the replica of that number; the term in which that leads. None
        while the node takes part in no group."""
        self.connections: set[AnsweringProtocol] = set()
        self.times: dict[str, Histogram] = {}
        """How long calls took that were answered, by their kinds."""
        self.errors: Counter[str] = Counter()
        """How many were answered with an error, by its name."""
        self._began = 0.0

    def startFactory(self) -> None:
        """The port is open. Not earlier: a process sets its reactor's clock when it starts."""
        self._began = self._clock.seconds()

    def counted(self) -> dict[str, Any]:
        """What was counted, for Status."""
        return {
            "uptime": round(self._clock.seconds() - self._began, 3),
            "connections": len(self.connections),
            "in_flight": self.in_flight.count,
            "calls": {name: times.counts.copy() for name, times in self.times.items()},
        }

    def close_connections(self) -> None:
        """At once, whatever they wait for."""
        for connection in list(self.connections):
            connection.transport.abortConnection()
