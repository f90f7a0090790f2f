"""A server's side of its registration: it tells the managers who it is, again and again, and hears what it owns.

Nothing that clients are told depends on the managers being reachable: what a group owns is in its own log.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet import error, task
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as Overdue
from twisted.logger import Logger

from madkv.addresses import Address, show_address
from madkv.errors import InvalidArgument, MadKVError, NotLeader, ProtocolError, Rejected, VersionMismatch, shown
from madkv.limits import CONNECT_SECONDS_MAX
from madkv.raft.configuration import Configuration
from madkv.ranges import Ownership
from madkv.tls import check_hello
from madkv.wire import codec
from madkv.wire.boxes import Box, field, join_blob
from madkv.wire.caller import CallerProtocol
from madkv.wire.endpoint import connect, endpoint_to

if TYPE_CHECKING:
    from madkv.wire.tls import Credentials

AGAIN_SECONDS = 2.0
"""From one registration that was accepted to the next."""
RETRY_SECONDS = 0.3
"""From one that was not to the next, while managers or other replicas are missing."""
CALL_SECONDS_MAX = 2.0


@attrs.frozen
class Claim:
    """What a server says of itself."""

    partition: int
    replica: int
    disk: bytes
    api_port: int
    p2p_port: int
    """0 without peers."""
    peers: str
    """The other replicas' p2p addresses, as they were given, separated by commas."""
    rf: int

    def fields(self, cluster: str, has_vote: bool) -> bytes:
        """As arguments of Register; `has_vote`: whether this very disk is a voter of its group by now."""
        return (
            field(b"cluster", cluster.encode())
            + codec.integer(b"partition", self.partition)
            + codec.integer(b"replica", self.replica)
            + field(b"disk", self.disk)
            + codec.integer(b"api_port", self.api_port)
            + codec.integer(b"p2p_port", self.p2p_port)
            + field(b"peers", self.peers.encode())
            + codec.integer(b"rf", self.rf)
            + field(b"has_vote", b"True" if has_vote else b"False")
        )


@attrs.frozen
class Place:
    """What the managers answer."""

    cluster: str
    ownership: Ownership
    """What the group is to own, with the epoch of the map."""
    first: Configuration | None
    """The group's first configuration; None until all its replicas have registered."""
    wanted: Configuration
    """Its voters are those that the group should have."""

    @classmethod
    def read(cls, box: Box) -> "Place":
        """Read the answer. Raises ProtocolError."""
        try:
            first = box.get(b"first")
            return cls(
                codec.take_answer_field(box, b"cluster").decode(),
                Ownership.decode(join_blob(box, b"ownership") or b""),
                None if first is None else Configuration.decode(first),
                Configuration.decode(codec.take_answer_field(box, b"wanted")),
            )
        except (ValueError, MadKVError) as error_found:
            raise ProtocolError(f"a manager's answer that is none: {error_found}") from None


class Registration:
    """Registers until it is stopped. One call at a time, on one connection to whichever manager leads."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        managers: list[Address],
        claim: Claim,
        cluster: str,
        has_vote: Callable[[], bool],
        accepted: Callable[[Place], None],
        rejected: Callable[[str], None],
        tls: "Credentials | None" = None,
    ) -> None:
        """`has_vote` is asked each time, see Claim. `accepted` hears each answer; `rejected` gets one line when a
        manager says that this server does not fit.
        """
        self._reactor = reactor
        self._managers = managers
        self._claim = claim
        self.cluster = cluster
        self._has_vote = has_vote
        self._accepted = accepted
        self._rejected = rejected
        self._tls = tls
        self._at = 0
        self._failed_in_a_row = 0
        self._connection: CallerProtocol | None = None
        """To the manager at `_at`, which is one and of the cluster that this server knows."""
        self._strangers: set[int] = set()  # managers where somebody else was found when they were asked last
        self._said: dict[int, str] = {}
        """What was said last of each manager, since this was registered."""
        self._is_registered = False
        self._running: Deferred[None] | None = None
        self.hurry = False
        """Whether to register again soon, since a change is under way."""

    def start(self) -> None:
        """Begin."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(lambda failure: failure.trap(CancelledError))

    async def stop(self) -> None:
        """End."""
        if self._running is not None:
            self._running.cancel()
        if self._connection is not None:
            await self._connection.abort()

    async def _run(self) -> None:
        while True:
            try:
                pause = await self._register()
            except (CancelledError, GeneratorExit):
                raise
            except Exception:  # a bug, and not the end of it: this server would never hear of its managers again
                self.log.failure("registering failed in a way that was not foreseen")
                pause = AGAIN_SECONDS
            await task.deferLater(self._reactor, RETRY_SECONDS if pause and self.hurry else pause)

    async def _register(self) -> float:
        """Try once; how long to wait before the next time."""
        is_stranger = True
        try:
            connection = await self._connected()
            is_stranger = False
            self._strangers.discard(self._at)
            called = connection.call(codec.REGISTER, self._claim.fields(self.cluster, self._has_vote()))
            place = Place.read(await called.addTimeout(CALL_SECONDS_MAX, self._reactor))
        except NotLeader as refusal:
            self._failed_in_a_row += 1
            self._say(f"looking for the manager that leads: {refusal}")
            leader, count = refusal.leader, len(self._managers)
            # Hints are numbers of managers, and this list may have another order, or lack some: not for ever by hints.
            is_hint = leader is not None and leader < count and leader != self._at and self._failed_in_a_row <= count
            await self._go_to(leader if leader is not None and is_hint else self._at + 1)
            return 0.0 if self._failed_in_a_row % count else RETRY_SECONDS
        except (Rejected, InvalidArgument, VersionMismatch) as refusal:
            self._say(f"the manager at {show_address(self._address)} refuses this server: {refusal}", is_fault=True)
            if is_stranger:
                # Others of the list may be who they should be, whoever has come to the address of this one.
                self._strangers.add(self._at)
                is_last = len(self._strangers) == len(self._managers)
                self._failed_in_a_row += 1
                await self._go_to(self._at + 1)
                if not is_last:
                    return 0.0 if self._failed_in_a_row % len(self._managers) else RETRY_SECONDS
            self._rejected(str(refusal))
            return AGAIN_SECONDS
        except (error.ConnectError, error.ConnectionClosed, error.DNSLookupError, MadKVError, Overdue) as problem:
            self._failed_in_a_row += 1
            self._strangers.discard(self._at)
            why = problem or type(problem).__name__
            self._say(f"waiting for the manager at {show_address(self._address)}: {why}", is_fault=True)
            # Also from one that is busy: it may wait for the others for as long as it cannot reach them.
            await self._go_to(self._at + 1)
            return 0.0 if self._failed_in_a_row % len(self._managers) else RETRY_SECONDS
        except error.ConnectingCancelledError:
            raise CancelledError from None
        self._failed_in_a_row = 0
        if place.first is not None:
            self.cluster = place.cluster  # Before, nothing binds it to these managers.
        if place.first is None:
            self._say("registered; waiting until every replica of the group has registered")
        elif self._said or not self._is_registered:
            self._said.clear()
            self._is_registered = True
            self.log.info("registered at the manager at {address}", address=show_address(self._address))
        self._accepted(place)
        return AGAIN_SECONDS if place.first is not None else RETRY_SECONDS

    @property
    def _address(self) -> Address:
        return self._managers[self._at]

    async def _connected(self) -> CallerProtocol:
        connection = self._connection
        if connection is not None and connection.open:
            return connection
        endpoint = endpoint_to(self._address, self._reactor, CONNECT_SECONDS_MAX)
        if self._tls is not None:
            endpoint = self._tls.connecting(endpoint, self._reactor, self._address)
        connection = await connect(endpoint, lambda: CallerProtocol(self._reactor))
        try:
            hello = await connection.call(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
            check_hello(connection.certified, hello)
            self._check_manager(hello)
        except Exception:  # cancelled, too
            await connection.abort()
            raise
        self._connection = connection
        return connection

    def _check_manager(self, hello: Box) -> None:
        """Raise Rejected unless this answer to Hello is a manager's, and not of another cluster."""
        role, node, cluster = (shown(hello.get(name, b"")) for name in (b"role", b"node", b"cluster"))
        if role != "manager":
            what = "a server without managers" if role == "solo" else f"server {node or '?'}"
            raise Rejected(
                f"{show_address(self._address)} is {what}, not a manager; --managers is for the managers' addresses"
            )
        if self.cluster and cluster and cluster != self.cluster:
            raise Rejected(
                f"this server's directory belongs to cluster {shown(self.cluster.encode())}; these managers are those "
                f"of cluster {cluster}: see its --backer and its --managers"
            )

    async def _go_to(self, at: int) -> None:
        """Turn to another manager."""
        at %= len(self._managers)
        if at != self._at:
            self._at = at
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.abort()

    def _say(self, text: str, *, is_fault: bool = False) -> None:
        """Once, until something else is to be said of the same manager."""
        if text != self._said.get(self._at):
            self._said[self._at] = text
            (self.log.warn if is_fault else self.log.info)("{text}", text=text)
