"""A client's side of exactly-once: which calls wait for their answers, and what may be done when one was lost.

Pure and shared by every face of the client; it sends nothing and never looks at a clock. Imports almost nothing, since
the line client starts with it.

The rules. A write gets a sequence number once and keeps it through every retry. The floor is the lowest number that
still waits. When the server says that it does not know the session, that attempt was not executed; but an earlier
attempt whose answer was lost may have been, and nobody can tell any more: that call's outcome is unknown. A call that
was never sent in the lost session is simply made in a new one. A server that starts anew, empty by contract (another
boot id), knows nothing of any call, so all that wait are made anew.

In a cluster there is one of these for each partition, all with the same client id, and what is true of a server is
true of a partition's group: whichever of its replicas answers, it is the same session. When a group says that a call's
key is not its own any more, that attempt was not executed either; a call of which no earlier attempt may have been is
then made at the group that owns the key, as a new call there. Made there after an attempt whose answer was lost, it
might take effect twice, and the first group does not answer for the key any more: its outcome is unknown.
"""

from madkv.errors import OutcomeUnknown
from madkv.limits import SESSION_CALLS_MAX

_UNKNOWN = "the session ended while the answer to this call was outstanding: the call may or may not have taken effect"

_MOVED = "the key went to other servers while the answer to this call was outstanding: it may or may not have happened"


class Call:
    """One write that waits for its answer."""

    __slots__ = ("sent_in", "sequence", "uncertain")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.sent_in: int | None = None
        """The session, as counted here, in which an attempt may have been executed without our knowing."""
        self.uncertain = False
        """Whether an attempt before the present one may have been executed."""


class Session:
    """The calls of one client, and the server-side session that they are made in once one is open."""

    def __init__(self, client_id: bytes) -> None:
        self.client_id = client_id
        self.index: int | None = None
        """The open session's index, None while there is none."""
        self._boot: bytes | None = None
        self._incarnation = 0  # which session, counted on this side: indexes may repeat over boots
        self._next_sequence = 1
        self._waiting: dict[int, Call] = {}  # in order of sequence numbers

    @property
    def floor(self) -> int:
        """The lowest sequence number whose answer has not come."""
        return next(iter(self._waiting), self._next_sequence)

    @property
    def full(self) -> bool:
        """Whether a further call must wait until the oldest has its answer."""
        return self._next_sequence - self.floor >= SESSION_CALLS_MAX

    def begin(self) -> Call:
        """A new call, with the next sequence number."""
        assert not self.full
        call = Call(self._next_sequence)
        self._next_sequence += 1
        self._waiting[call.sequence] = call
        return call

    def end(self, call: Call) -> None:
        """The call has its answer, or was given up by its caller."""
        del self._waiting[call.sequence]

    def connected(self, boot: bytes) -> None:
        """A server answered the handshake with this boot id (empty: it keeps sessions through restarts)."""
        if self._boot is not None and boot != self._boot:
            self._start_anew()
            for call in self._waiting.values():
                call.sent_in = None
        self._boot = boot

    def opened(self, index: int) -> None:
        """The server opened a session for this client id."""
        self.index = index

    def sending(self, call: Call) -> None:
        """The call is about to be sent in the open session.

        Raises OutcomeUnknown when an attempt in a session that has ended since may have been executed.
        """
        if call.sent_in is not None and call.sent_in != self._incarnation:
            raise OutcomeUnknown(_UNKNOWN)
        call.uncertain = call.sent_in is not None
        call.sent_in = self._incarnation

    def not_executed(self, call: Call) -> None:
        """The server refused the present attempt."""
        if not call.uncertain:
            call.sent_in = None

    def lost(self, call: Call, index: int | None) -> None:
        """The server refused the present attempt, since it does not know session `index`.

        Raises OutcomeUnknown when an earlier attempt may have been executed.
        """
        if self.index == index:
            self._start_anew()
        if call.uncertain:
            raise OutcomeUnknown(_UNKNOWN)
        call.sent_in = None

    def moved(self, call: Call) -> None:
        """The group refused the present attempt (`not_executed`), since it does not own the call's key any more.

        Raises OutcomeUnknown when an earlier attempt may have been executed; else the call may be made elsewhere.
        """
        if call.sent_in is not None:
            raise OutcomeUnknown(_MOVED)

    def _start_anew(self) -> None:
        self.index = None
        self._incarnation += 1
