"""The side of a connection that answers calls: dispatch, handshake, failures, and bounds on what is in flight.

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
from madkv.errors import Busy, InternalError, MadKVError, ProtocolError, VersionMismatch
from madkv.limits import (
    CALL_BYTES_MAX,
    CALL_BYTES_SHARE,
    CALLS_MAX,
    CALLS_SHARE,
    CONNECTIONS_MAX,
    LARGE_CALL_BYTES,
)
from madkv.wire import codec
from madkv.wire.admission import Admission
from madkv.wire.boxes import ASK, COMMAND, Box, blob, field
from madkv.wire.codec import take_integer
from madkv.wire.large import LargeCalls
from madkv.wire.protocol import BoxProtocol

Answer = Callable[[Box], Coroutine[Deferred[Any], Any, bytes]]
"""Gives the fields of the answer to a call, or raises."""


class _NotNow(Exception):
    """A large call has to wait for its turn."""


class AnsweringProtocol(BoxProtocol):
    """One client's connection. Subclasses add to `_responders` what else can be asked.

    A responder gets the tag and the box of a call; it answers, now or later, or raises.
    """

    log = Logger()

    def __init__(self, service: "AnsweringFactory", clock: IReactorTime) -> None:
        super().__init__(clock, service.admission)
        self._service = service
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._in_flight_large = 0
        self._responders: dict[bytes, Callable[[bytes, Box], None]] = {
            codec.HELLO: self._hello,
            codec.STATUS: self._status,
            codec.TRANSFER_LEADER: partial(self._start, self._transfer_leader, None),
        }

    def connectionMade(self) -> None:
        """Count the connection in."""
        super().connectionMade()
        self._service.connections.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Count the connection out."""
        super().connectionLost(reason)
        self._service.connections.discard(self)
        self._service.large.left(self)

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
        except _NotNow:
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
        self._begin(0)
        Deferred.fromCoroutine(self._finish(answer_to, times, tag, box)).addErrback(
            lambda failure: self.log.failure("an answer went wrong in a way that was not foreseen", failure)
        )

    async def _finish(self, answer_to: Answer, times: Histogram | None, tag: bytes, box: Box) -> None:
        began = self._clock.seconds()
        try:
            answer = codec.answer(tag, await answer_to(box))
            if times is not None:
                times.add(self._clock.seconds() - began)
        except Exception as error:
            answer = self._failure_answer(tag, error)
        finally:
            self._end(0)
        self._answer(tag, answer)

    # --- Bounds on work in flight -----------------------------------------------------------------------------------

    def _begin(self, size_bytes: int) -> None:
        """Count a call in; Busy when too much is in flight in all. With its share in flight a connection waits."""
        service = self._service
        calls_left = CALLS_MAX - service.calls - 1
        bytes_left = CALL_BYTES_MAX - service.call_bytes - size_bytes
        if calls_left < 0 or bytes_left < 0:
            raise Busy(f"the {service.kind} has as many calls in flight as it takes")
        if size_bytes >= LARGE_CALL_BYTES:
            if not service.large.begins(self, self._others):
                raise _NotNow
            self._in_flight_large += 1
        service.calls += 1
        service.call_bytes += size_bytes
        self._in_flight += 1
        self._in_flight_bytes += size_bytes
        if self._in_flight * CALLS_SHARE >= calls_left or self._in_flight_bytes * CALL_BYTES_SHARE >= bytes_left:
            self.hold()

    def _end(self, size_bytes: int) -> None:
        service = self._service
        if size_bytes >= LARGE_CALL_BYTES:
            service.large.ended(self._others)
            self._in_flight_large -= 1
        service.calls -= 1
        service.call_bytes -= size_bytes
        self._in_flight -= 1
        self._in_flight_bytes -= size_bytes
        if (
            self._held
            and self._in_flight * CALLS_SHARE < CALLS_MAX - service.calls
            and self._in_flight_bytes * CALL_BYTES_SHARE <= CALL_BYTES_MAX - service.call_bytes
        ):
            self.release()

    @property
    def _others(self) -> int:
        """Calls of other connections in flight that are not large, between calls of this one."""
        service = self._service
        return service.calls - self._in_flight - (service.large.in_flight - self._in_flight_large)


class AnsweringFactory(Factory):
    """All connections to one node, and what is in flight on them together."""

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
        self.large = LargeCalls(clock)
        self.transfer_leader: Callable[[int], Coroutine[Deferred[Any], Any, int]] | None = None
        """Hands the leadership of the node's group to the replica of that number; the term in which that leads. None
        while the node takes part in no group."""
        self.connections: set[AnsweringProtocol] = set()
        self.calls = 0
        self.call_bytes = 0
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
            "in_flight": self.calls,
            "calls": {name: times.counts.copy() for name, times in self.times.items()},
        }

    def close_connections(self) -> None:
        """At once, whatever they wait for."""
        for connection in list(self.connections):
            connection.transport.abortConnection()
