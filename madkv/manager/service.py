"""The AMP service on a manager's port, for clients, servers and operators. What it answers is in `registrar`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.interfaces import IAddress, IReactorTime

from madkv.counts import Histogram
from madkv.errors import Busy, InvalidArgument, Rejected
from madkv.manager.registrar import Claim, Registrar
from madkv.tls import check_claim
from madkv.wire import codec
from madkv.wire.answering import AnsweringFactory, AnsweringProtocol
from madkv.wire.boxes import Box, blob
from madkv.wire.codec import take_bytes


class ManagerProtocol(AnsweringProtocol):
    """One connection."""

    _service: "ManagerFactory"

    def __init__(self, service: "ManagerFactory", clock: IReactorTime) -> None:
        super().__init__(service, clock)
        self._responders |= {
            codec.GET_MAP: partial(self._start, self._get_map, service.times["get_map"]),
            codec.REGISTER: partial(self._start, self._register, service.times["register"]),
            codec.REPLACE_DISK: partial(self._start_for_operator, self._replace_disk, service.times["replace_disk"]),
        }

    async def _get_map(self, box: Box) -> bytes:
        return blob(b"map", self._registrar.partition_map().encode())

    async def _register(self, box: Box) -> bytes:
        claim = Claim.read(box)
        partition, replica = claim.register.partition, claim.register.replica
        try:
            # An only replica goes by either name.
            names = [f"s{partition}.{replica}", *([f"s{partition}"] if replica == 0 else [])]
            check_claim(self.certified, *names)
        except Rejected as refusal:
            self._service.refusals.say(str(refusal), f"refused the registration of {self.peer}: {refusal}")
            raise
        return await self._registrar.register(claim)

    async def _replace_disk(self, box: Box) -> bytes:
        try:
            node = take_bytes(box, b"node").decode()
        except UnicodeDecodeError:
            raise InvalidArgument("the argument 'node' is text") from None
        await self._registrar.replace_disk(node)
        return b""

    @property
    def _registrar(self) -> Registrar:
        registrar = self._service.registrar
        if registrar is None:
            raise Busy("this manager waits for the others")
        return registrar


class ManagerFactory(AnsweringFactory):
    """The service of one manager: its registrar, and all connections."""

    kind = "manager"
    role = b"manager"

    def __init__(self, clock: IReactorTime, node: bytes, status: Callable[[], dict[str, Any]]) -> None:
        super().__init__(clock, node, b"", status)
        self.times = {name: Histogram() for name in ("get_map", "register", "replace_disk")}
        self.registrar: Registrar | None = None
        """None until the managers have found each other."""

    def buildProtocol(self, addr: IAddress | None) -> ManagerProtocol | None:
        """A protocol for one connection; None when there is no room for it."""
        return ManagerProtocol(self, self._clock) if self.admission.admits() else None
