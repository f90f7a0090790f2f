"""How managers on empty directories find each other, and agree who the first members of their group are.

A blank disk cannot tell a first boot from the loss of what was on it, and one that lost its votes must not vote again.
So the group begins only when all of its managers are empty at once. Each asks every other, again and again, and is told
the other's disk id, drawn at random and kept through crashes, and which disks the other has *seen*. It decides on a
first configuration once every other one has seen just what it has seen itself. (To have heard from all is not enough:
of two that heard from a third before and after that lost its disk, each would decide on another group.) Who was asked
is believed only in what it answers, one answer after another, so nobody's view goes back to a disk that is gone.

A peer that is not empty says how its group began. If that names this disk, the others have decided while this one was
away. If it does not, this disk is another one in the place of one that was lost: the peer takes it in if that one was
given up (`madkv replace-disk`), and refuses it otherwise.

Managers with other settings do not belong together: the one that was started last ends, with a line that says why.
"""

from collections.abc import Callable

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from madkv.errors import Busy, InvalidArgument, MadKVError, ProtocolError, Rejected
from madkv.manager.placement import cluster_id
from madkv.raft.configuration import DISK_ID_BYTES, Configuration, Member
from madkv.settings import Settings, port_difference
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field

ASK_SECONDS = 0.2
"""From a peer's answer, or the want of one, until it is asked again."""

_FORESEEN = (
    *(MadKVError, ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError, TimeoutError),
    CancelledError,
)


def name_of(replica: int) -> str:
    """A manager as people call it, one of several."""
    return f"m.{replica}"


@attrs.frozen
class Introducing:
    """What a manager on an empty directory says of itself."""

    member: Member
    ports: tuple[int, ...]
    """The p2p ports of all managers by their numbers, by its options; 0 for its own when it has none."""
    age_ms: int
    """How long it has been looking for the others."""
    settings: Settings

    def fields(self) -> bytes:
        """As arguments of Introduce."""
        return (
            codec.integer(b"replica", self.member.replica)
            + field(b"disk", self.member.disk)
            + codec.ports(b"ports", self.ports)
            + codec.integer(b"age", self.age_ms)
            + blob(b"settings", self.settings.encode())
        )

    @classmethod
    def read(cls, box: Box) -> "Introducing":
        """Read the arguments. Raises InvalidArgument."""
        disk = codec.take_bytes(box, b"disk")
        if len(disk) != DISK_ID_BYTES:
            raise InvalidArgument(f"a disk id has {DISK_ID_BYTES} bytes; this one has {len(disk)}")
        try:
            settings = Settings.decode(codec.take_blob(box, b"settings"))
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        member = Member(codec.take_integer(box, b"replica"), disk)
        return cls(member, codec.take_ports(box, b"ports"), codec.take_integer(box, b"age"), settings)

    def check(self, here: int, ports: tuple[int, ...], settings: Settings) -> None:
        """Raise Rejected, with one line, when this one does not belong to manager `here`, which has these options."""
        name, other = name_of(self.member.replica), name_of(here)
        if len(self.ports) != len(ports):
            raise Rejected(f"{name} has --peers for {len(self.ports)} managers, {other} for {len(ports)}")
        if not self.member.replica < len(ports):
            raise Rejected(f"{name} is none of {len(ports)} managers: they count from 0")
        difference = self.settings.difference(settings)
        if difference is not None:
            raise Rejected(f"{name} was started with {difference} as on {other}")
        difference = port_difference(name_of, self.member.replica, self.ports, here, ports)
        if difference is not None:
            raise Rejected(difference)


@attrs.frozen
class Introduced:
    """What a manager answers to Introduce."""

    member: Member
    seen: Configuration
    """The managers on empty directories that it knows of, itself among them; none when it is not empty itself."""
    first: Configuration | None = None
    """How its group began; None while it is empty itself."""

    def fields(self) -> bytes:
        """As the answer's fields."""
        fields = codec.integer(b"replica", self.member.replica) + field(b"disk", self.member.disk)
        fields += field(b"seen", self.seen.encode())
        if self.first is None:
            return fields + field(b"cluster", b"")
        return fields + field(b"cluster", cluster_id(self.first).encode()) + field(b"first", self.first.encode())

    @classmethod
    def read(cls, box: Box) -> "Introduced":
        """Read the answer. Raises ProtocolError."""
        try:
            first = box.get(b"first")
            return cls(
                Member(codec.take_answer_integer(box, b"replica"), codec.take_answer_field(box, b"disk")),
                Configuration.decode(codec.take_answer_field(box, b"seen")),
                None if first is None else Configuration.decode(first),
            )
        except ValueError as error:
            raise ProtocolError(f"a manager's answer that is none: {error}") from None


class Introduction:
    """One manager's part in it, until it is `stop`ped or over. An only manager decides at once."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        member: Member,
        settings: Settings,
        ports: tuple[int, ...],
        ask: Callable[[int, Introducing], Deferred[Introduced]],
        decided: Callable[[Configuration], None],
        failed: Callable[[str], None],
    ) -> None:
        """`ports` are as in Introducing. `ask` puts the question to another manager, in bounded time.

        In the end one of two is called, once: `decided` with the first configuration of the group, or `failed` with
        the line that tells why there will be none.
        """
        self._clock = clock
        self._me = member
        self._settings = settings
        self._ports = ports
        self._peers = frozenset(range(len(ports))) - {member.replica}
        self._ask = ask
        self._decided = decided
        self._failed = failed
        self._began = clock.seconds()
        self._is_over = False
        self._heard: dict[int, Introduced] = {}
        self._asked: dict[int, Deferred[None]] = {}
        self._timers: dict[int, IDelayedCall] = {}
        self._said: dict[int, str] = {}

    def start(self) -> None:
        """Begin to ask."""
        self._decide_if_possible()
        for peer in sorted(self._peers):
            if not self._is_over:
                self._ask_peer(peer)

    def stop(self) -> None:
        """Ask nobody any more."""
        self._is_over = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for asked in list(self._asked.values()):
            asked.cancel()

    # --- What others ask ----------------------------------------------------------------------------------------------

    def answer(self, claim: Introducing) -> Introduced:
        """What this one says to another manager while it is empty. Raises Rejected, or Busy when it is to end."""
        here = name_of(self._me.replica)
        try:
            if claim.member.replica == self._me.replica:
                raise Rejected(f"there is an {here} already: two managers have the same --replica")
            claim.check(self._me.replica, self._ports, self._settings)
        except Rejected as refusal:
            if claim.age_ms > self._age_ms:
                self._fail(f"this is not how m.{claim.member.replica} was started before: {refusal}")
                raise Busy(f"{here} was started with other settings, and ends") from None
            if claim.member.replica in self._peers:  # Of the others there is no end.
                self._say(claim.member.replica, f"refused another manager: {refusal}")
            raise
        return Introduced(self._me, self._seen())

    @property
    def claim(self) -> Introducing:
        """What this one says of itself."""
        return Introducing(self._me, self._ports, self._age_ms, self._settings)

    @property
    def _age_ms(self) -> int:
        return int((self._clock.seconds() - self._began) * 1000)

    # --- What this one asks -------------------------------------------------------------------------------------------

    def _ask_peer(self, peer: int) -> None:
        self._timers.pop(peer, None)
        asked: Deferred[None] = self._ask(peer, self.claim).addCallback(lambda answer: self._answered(peer, answer))
        self._asked[peer] = asked
        asked.addErrback(lambda failure: self._not_answered(peer, failure))
        asked.addBoth(lambda _: self._ask_again(peer))

    def _ask_again(self, peer: int) -> None:
        self._asked.pop(peer, None)
        if not self._is_over:
            self._timers[peer] = self._clock.callLater(ASK_SECONDS, self._ask_peer, peer)

    def _answered(self, peer: int, answer: Introduced) -> None:
        if self._is_over:
            return
        if answer.member.replica != peer:
            raise Rejected(f"m.{answer.member.replica} answers where --peers says that m.{peer} is: see their order")
        if answer.first is not None:
            self._decide(answer.first)
            return
        self._heard[peer] = answer
        self._say(peer, "is there, and empty too")
        self._decide_if_possible()

    def _not_answered(self, peer: int, failure: Failure) -> None:
        if self._is_over:
            failure.trap(*_FORESEEN)
        elif failure.check(Rejected):
            self._fail(failure.getErrorMessage())
        elif failure.check(*_FORESEEN):
            self._say(peer, f"waiting for it: {failure.getErrorMessage()}")
        else:
            self.log.failure("asking m.{peer} went wrong in a way that was not foreseen", failure, peer=peer)

    def _seen(self) -> Configuration:
        return Configuration(frozenset((self._me, *(answer.member for answer in self._heard.values()))))

    def _decide_if_possible(self) -> None:
        seen = self._seen()
        if self._heard.keys() == self._peers and all(answer.seen == seen for answer in self._heard.values()):
            self._decide(seen)

    def _decide(self, first: Configuration) -> None:
        if not self._is_over:
            self.stop()
            self._decided(first)

    def _fail(self, why: str) -> None:
        if not self._is_over:
            self.stop()
            self._failed(why)

    def _say(self, peer: int, text: str) -> None:
        """Once, until something else is to be said of this peer."""
        if self._said.get(peer) != text:
            self._said[peer] = text
            self.log.info("m.{peer}: {text}", peer=peer, text=text)
