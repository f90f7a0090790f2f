"""The AMP service on a manager's port, for clients, servers and operators. What it answers is in `registrar`."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from madkv import __version__
from madkv.errors import Busy, InternalError, InvalidArgument, MadKVError, ProtocolError, VersionMismatch
from madkv.limits import CALLS_PER_CONNECTION_MAX
from madkv.manager.registrar import Claim, Registrar
from madkv.wire import codec
from madkv.wire.boxes import ASK, COMMAND, Box, blob, field
from madkv.wire.codec import take_bytes, take_integer
from madkv.wire.protocol import BoxProtocol

UNHANDLED = b"UNHANDLED"
"""AMP's own code for a command that the other side does not know."""
ROLE = b"manager"


class ManagerProtocol(BoxProtocol):
    """One connection."""

    log = Logger()

    def __init__(self, service: "ManagerFactory", clock: IReactorTime) -> None:
        super().__init__(clock)
        self._service = service
        self._in_flight = 0
        self._responders: dict[bytes, Callable[[Box], Coroutine[Deferred[Any], Any, bytes]]] = {
            codec.HELLO: self._hello,
            codec.GET_MAP: self._get_map,
            codec.REGISTER: self._register,
            codec.REPLACE_DISK: self._replace_disk,
            codec.STATUS: self._status,
        }

    def connectionMade(self) -> None:
        """Count the connection in."""
        super().connectionMade()
        self._service.connections.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Count the connection out."""
        super().connectionLost(reason)
        self._service.connections.discard(self)

    def box_received(self, box: Box) -> None:
        """Begin one call; at the bound of calls in flight the connection waits."""
        command = box.get(COMMAND)
        if command is None:
            raise ProtocolError("a box that is no command")
        self._in_flight += 1
        if self._in_flight >= CALLS_PER_CONNECTION_MAX:
            self.hold()
        Deferred.fromCoroutine(self._answer(command, box.get(ASK, b""), box)).addErrback(
            lambda failure: self.log.failure("an answer went wrong in a way that was not foreseen", failure)
        )

    async def _answer(self, command: bytes, tag: bytes, box: Box) -> None:
        try:
            answer = await self._answer_to(command, tag, box)
        finally:
            self._in_flight -= 1
            if self._in_flight == CALLS_PER_CONNECTION_MAX - 1:
                self.release()
        if tag:  # a call without a tag wants no answer
            self.send(answer)

    async def _answer_to(self, command: bytes, tag: bytes, box: Box) -> bytes:
        responder = self._responders.get(command)
        if responder is None:
            shown = command[:40].decode("ascii", "backslashreplace")
            return codec.answer_error_code(tag, UNHANDLED, f"a manager has no command {shown!r}")
        try:
            return codec.answer(tag, await responder(box))
        except MadKVError as error:
            return codec.answer_error(tag, error)
        except Exception:
            self.log.failure("a call failed in a way that was not foreseen")
            return codec.answer_error(tag, InternalError("the manager failed; its log says how"))

    async def _hello(self, box: Box) -> bytes:
        version = take_integer(box, b"version")
        if version != codec.PROTOCOL_VERSION:
            raise VersionMismatch(f"this manager speaks version {codec.PROTOCOL_VERSION}, the client version {version}")
        service = self._service
        return (
            codec.integer(b"version", version)
            + field(b"node", service.node)
            + field(b"boot", b"")
            + field(b"role", ROLE)
            + field(b"cluster", service.cluster)
        )

    async def _get_map(self, box: Box) -> bytes:
        return blob(b"map", self._registrar.partition_map().encode())

    async def _register(self, box: Box) -> bytes:
        return await self._registrar.register(Claim.read(box))

    async def _replace_disk(self, box: Box) -> bytes:
        try:
            node = take_bytes(box, b"node").decode()
        except UnicodeDecodeError:
            raise InvalidArgument("the argument 'node' is text") from None
        await self._registrar.replace_disk(node)
        return b""

    async def _status(self, box: Box) -> bytes:
        service = self._service
        facts = {"node": service.node.decode(), "version": __version__, **service.status()}
        return blob(b"status", json.dumps(facts).encode())

    @property
    def _registrar(self) -> Registrar:
        registrar = self._service.registrar
        if registrar is None:
            raise Busy("this manager waits for the others")
        return registrar


class ManagerFactory(Factory):
    """All connections of one manager."""

    noisy = False

    def __init__(self, clock: IReactorTime, node: bytes, status: Callable[[], dict[str, Any]]) -> None:
        """`status` gives the facts for Status, as JSON may hold them."""
        self._clock = clock
        self.node = node
        self.status = status
        self.cluster = b""
        """The cluster's id, empty until it is known."""
        self.registrar: Registrar | None = None
        """None until the managers have found each other."""
        self.connections: set[ManagerProtocol] = set()

    def buildProtocol(self, addr: IAddress | None) -> ManagerProtocol:
        """A protocol for one connection."""
        return ManagerProtocol(self, self._clock)
