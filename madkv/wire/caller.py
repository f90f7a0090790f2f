"""The calling side of a connection under Twisted: many calls in flight, each answered by its tag."""

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from madkv.limits import TRY_SECONDS_MAX
from madkv.wire import codec
from madkv.wire.boxes import Box
from madkv.wire.protocol import BoxProtocol, why_lost
from madkv.wire.unanswered import Unanswered


class CallLost(ConnectionLost):
    """The connection went while a call waited for its answer: whether it was executed is unknown. Says why."""

    def __str__(self) -> str:
        return str(self.args[0])


class CallerProtocol(BoxProtocol):
    """One connection to a server. `call` may be called any number of times without waiting."""

    def __init__(self, clock: IReactorTime, try_seconds: float = TRY_SECONDS_MAX) -> None:
        """See `call` for `try_seconds`."""
        super().__init__(clock)
        self.try_seconds = try_seconds
        self.is_overdue = False
        """Whether the connection was dropped because no answer came in time."""
        self._unanswered: Unanswered[Deferred[Box]] = Unanswered(try_seconds)
        self._overdue: IDelayedCall | None = None
        self._why_dropped = ""
        self._closed: Deferred[None] = Deferred()

    def call(self, command: bytes, fields: bytes) -> Deferred[Box]:
        """Send one call. The Deferred fires with the answer, or fails with the error that the answer declares.

        When nothing at all has come for `try_seconds` since the call should have reached the other side, even over the
        slowest link, the connection is dropped. Every call that waits when the connection goes fails with
        CallLost: whether it was executed is unknown.
        """
        answered: Deferred[Box] = Deferred()
        if not self.open:
            answered.errback(CallLost("the connection is closed"))
            return answered
        data = self._unanswered.add(self._clock.seconds(), command, fields, answered)
        if self._overdue is None:
            self._overdue = self._clock.callLater(self.try_seconds, self._check_overdue)
        self.send(data)
        return answered

    def _check_overdue(self) -> None:
        """One timer for all calls: it looks at the oldest, and again when that would be overdue."""
        self._overdue = None
        seconds_left = self._unanswered.seconds_left(self._clock.seconds())
        if seconds_left is not None:
            if seconds_left <= 0:
                self.is_overdue = True
                self.drop(f"no answer within {self.try_seconds:g} seconds")
            else:
                self._overdue = self._clock.callLater(seconds_left, self._check_overdue)

    def drop(self, why: str) -> None:
        """Close the connection now; every call that waits fails with this reason."""
        self._why_dropped = why
        super().drop(why)

    def abort(self) -> Deferred[None]:
        """Close the connection now; fires when it is closed and every call that waited has failed."""
        if not self.open:
            return succeed(None)
        self.transport.abortConnection()
        return self._closed

    def pauseProducing(self) -> None:
        """Go on reading answers however many calls are still to be sent.

        A server does not read calls while its answers are not read: with both sides waiting for the other to read,
        large calls with large answers would stand still for ever.
        """

    def resumeProducing(self) -> None:
        """Nothing was paused."""

    def dataReceived(self, data: bytes) -> None:
        """Note that the other side is alive, and take in what it says."""
        self._unanswered.heard(self._clock.seconds())
        super().dataReceived(data)

    def box_received(self, box: Box) -> None:
        """Hand an answer to whom it belongs."""
        command, answered = self._unanswered.take(box)
        try:
            codec.raise_if_error(box, command)
        except Exception:
            answered.errback(Failure())
        else:
            answered.callback(box)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail every call that waits."""
        super().connectionLost(reason)
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        for answered in self._unanswered.take_all():
            answered.errback(CallLost(self._why_dropped or why_lost(reason)))
        self._closed.callback(None)
