"""The base protocol under every connection that Twisted drives: bytes in, boxes out, within bounds.

What it promises: garbage costs its sender the connection and nobody else anything; memory per connection is bounded
by one box, the boxes of one read, and the transport's write buffer; a peer that does not read is not read from; one
that sends much at once takes turns with the others; half a box does not wait for ever, nor is it looked at for every
byte. What connections hold together is bounded by their port's `Admission`, where they have one. Whoever subclasses it
handles whole boxes and nothing else.
"""

from collections import deque
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from madkv.errors import ProtocolError
from madkv.limits import BOX_BYTES_MAX, BOX_SECONDS_MAX, LONG_BOX_BYTES, UNSENT_BYTES_MAX
from madkv.wire.admission import Admission
from madkv.wire.boxes import Box, Rest, parse_boxes

FLUSH_BYTES = 64 * 1024
"""Boxes sent while one read is being handled leave together, but never more than this are held back."""

SLICE_SECONDS = 0.005
"""Boxes of one read are handled for about this long before the reactor sees to other connections."""

BOX_OVERHEAD = 400
"""Bytes of memory that a parsed box takes beside what arrived, at least: boxes may be tiny."""


def why_lost(reason: Failure) -> str:
    """Why a connection is no more, for a line that somebody reads."""
    if reason.check(ConnectionDone):
        return "closed by the other side"
    return "the connection was lost" if reason.check(ConnectionLost) else reason.getErrorMessage().rstrip(".")


@implementer(IPushProducer)
class BoxProtocol(Protocol):
    """One connection. Subclasses implement `box_received`, and may refuse to go on for now by `hold` and `release`."""

    log = Logger()
    transport: Any
    box_bytes_max = BOX_BYTES_MAX
    """The longest box that is taken."""

    def __init__(self, clock: IReactorTime, admission: Admission | None = None) -> None:
        """`admission`: that of the port that the connection came in at."""
        self._clock = clock
        self._admission = admission
        self.was_heard = False
        """Whether anything has come since this was taken back."""
        self._waiting_bytes = 0  # what has come since no box waited
        self._holds = False  # whether the admission knows of anything
        self._queued_bytes = 0  # what the transport was left with, ever
        self._is_abandoned = False
        self._rest = Rest()
        self._boxes: deque[Box] = deque()
        self._handling = False
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._unread_by_peer = False
        self.is_held = False
        self._next_slice: IDelayedCall | None = None
        self._half_box: IDelayedCall | None = None
        self.open = False

    # --- For subclasses ---------------------------------------------------------------------------------------------

    def box_received(self, box: Box) -> None:
        """Handle one whole box. Raises ProtocolError when the connection is of no more use."""
        raise AssertionError("subclasses handle boxes")

    def send(self, data: bytes) -> None:
        """Send encoded boxes: at once, or with the others of the read that is being handled."""
        if not self._handling:
            self._write(data)
            return
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)
        if self._outgoing_bytes >= FLUSH_BYTES:
            self._flush()

    def hold(self) -> None:
        """Handle no more boxes and read no more bytes until `release`."""
        if not self.is_held:
            self.is_held = True
            self._stop_reading()

    def release(self) -> None:
        """Go on after `hold`."""
        if self.is_held:
            self.is_held = False
            self._go_on()

    def drop(self, why: str) -> None:
        """Close the connection now, with a line in the log; of many connections at once, with one a second for all."""
        if self.open:
            self.tell_closed(f"closed the connection of {self.peer}: {why}")
            self.abandon()

    def tell_closed(self, line: str) -> None:
        """Log it. Subclasses that strangers make do so seldom, if they have no admission that does."""
        if self._admission is not None:
            self._admission.tell_closed(line)
        else:
            self.log.info("{line}", line=line)

    def abandon(self) -> None:
        """Close the connection now."""
        self._is_abandoned = True
        self._boxes.clear()
        self.transport.abortConnection()

    def finish(self) -> None:
        """Handle nothing more, and close the connection once everything sent has left."""
        self._boxes.clear()
        self._flush()
        self.transport.loseConnection()

    @property
    def unsent_bytes(self) -> int:
        """What waits in the transport because the other side reads it too slowly."""
        transport = self.transport
        if getattr(transport, "dataBuffer", None) is None:
            # Not one of Twisted's file descriptors; see `_write`.
            return int(getattr(transport, "unsent_bytes", 0))
        return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)

    @property
    def certified(self) -> frozenset[str] | None:
        """The names in the other side's certificate; None on a connection without TLS. See `madkv.tls`."""
        return getattr(self.transport, "certified_names", None)

    @property
    def held_bytes(self) -> int:
        """What is kept here because of the other side, and waits."""
        waiting_bytes = self._waiting_bytes + BOX_OVERHEAD * len(self._boxes) if self._boxes else 0
        return len(self._rest) + waiting_bytes + self.unsent_bytes

    @property
    def read_bytes(self) -> int | None:
        """How much of what had to wait for it the other side has read so far; None when nothing waits."""
        unsent = self.unsent_bytes
        return self._queued_bytes - unsent if unsent else None

    @property
    def peer(self) -> str:
        """The other side's address for the log."""
        address = self.transport.getPeer()
        return f"{getattr(address, 'host', address)}:{getattr(address, 'port', '')}"

    # --- What Twisted calls -----------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Set the socket up; from here on bytes arrive."""
        self.open = True
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self.transport.registerProducer(self, True)
        if self._admission is not None:
            self._admission.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget what was half received and not yet handled."""
        self.open = False
        if self._admission is not None:
            self._admission.left(self)
        self._boxes.clear()
        self._rest.clear()
        self._watch_half_box()
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None
        transport = self.transport
        if getattr(transport, "dataBuffer", None) is not None:
            # It keeps what could not be sent, and with this protocol it makes a cycle that the garbage collector may
            # find only long after.
            transport.dataBuffer, transport.offset = b"", 0
            transport._tempDataBuffer, transport._tempDataLen = [], 0

    def dataReceived(self, data: bytes) -> None:
        """Cut what arrived into boxes and handle them, in order."""
        self.was_heard = True
        if self._rest:
            joined = self._rest.joined(data, self.box_bytes_max)
            if joined is None:
                self._part_came(len(data))
                return
            data = joined
        waiting_bytes = self._waiting_bytes if self._boxes else 0
        try:
            consumed = parse_boxes(data, self._boxes, self.box_bytes_max)
        except ProtocolError as error:
            # Whole boxes before the garbage are dropped too: their answers could not be read to the end anyway.
            self.drop(str(error))
            return
        if consumed < len(data):
            self._rest.keep(data[consumed:])
        if consumed and self._half_box is not None:
            self._half_box.cancel()
            self._half_box = None
        self._handle()
        if self._rest or self._half_box is not None:
            self._watch_half_box()
        if self._rest or self._boxes or self._holds:
            self._waiting_bytes = waiting_bytes + len(data)
            if len(self._rest) < LONG_BOX_BYTES:
                self._report(got_on=consumed > 0)
            else:
                self._part_came(len(data), got_on=consumed > 0)

    @property
    def _is_paused(self) -> bool:
        return self.is_held or self._unread_by_peer or self._next_slice is not None

    def _handle(self) -> None:
        if self._handling:
            return
        self._handling = True
        boxes = self._boxes
        slice_ends = self._clock.seconds() + SLICE_SECONDS if len(boxes) > 1 else 0.0
        try:
            while boxes and not self._is_paused:
                self.box_received(boxes.popleft())
                if boxes and self._clock.seconds() > slice_ends:
                    self._next_slice = self._clock.callLater(0, self._go_on_with_slice)
                    self._stop_reading()
        except ProtocolError as error:
            self.drop(str(error))
        finally:
            self._handling = False
            if self._outgoing:
                self._flush()

    def _go_on_with_slice(self) -> None:
        self._next_slice = None
        self._go_on()

    # --- Bounds on time ---------------------------------------------------------------------------------------------

    def _watch_half_box(self) -> None:
        """Arm or disarm the clock of a box that has begun; it stands still while it is we who do not read."""
        wanted = bool(self._rest) and self.open and not self._is_paused
        if wanted and self._half_box is None:
            self._half_box = self._clock.callLater(BOX_SECONDS_MAX, self._half_box_overdue)
        elif not wanted and self._half_box is not None:
            self._half_box.cancel()
            self._half_box = None

    def _half_box_overdue(self) -> None:
        self._half_box = None
        self.drop(f"half a box for {BOX_SECONDS_MAX:g} seconds")

    # --- Bounds on memory: whoever does not read is not read from ---------------------------------------------------

    def _report(self, *, got_on: bool) -> None:
        """Tell the admission what this connection holds."""
        if self._admission is None or not self.open or self._is_abandoned:
            return
        held_bytes = self.held_bytes
        self._holds = held_bytes > 0
        if self._holds:
            self._admission.holds(self, held_bytes, got_on=got_on)
        else:
            self._admission.holds_nothing(self)

    def pauseProducing(self) -> None:
        """The transport holds more than its peer reads: handle no more of what would be answered."""
        self._unread_by_peer = True
        self._stop_reading()

    def resumeProducing(self) -> None:
        """The peer has read it all: go on."""
        self._unread_by_peer = False
        self._go_on()

    def stopProducing(self) -> None:
        """The transport is closing; connectionLost follows."""

    def _stop_reading(self) -> None:
        if self.open:
            self.transport.pauseProducing()
            self._watch_half_box()

    def _go_on(self) -> None:
        if not self.open or self._is_abandoned or self._is_paused:
            return
        self._handle()
        if self.open and not self._is_abandoned and not self._is_paused:
            self.transport.resumeProducing()
            self._watch_half_box()
            if self._holds:
                self._report(got_on=True)

    def _part_came(self, size_bytes: int, *, got_on: bool = False) -> None:
        """More of a long box, and not its end: connections with long boxes leave time for those with short ones."""
        self._report(got_on=got_on)
        if self._admission is None or self._next_slice is not None:
            return
        seconds = self._admission.pace(size_bytes)
        if seconds > 0:
            self._next_slice = self._clock.callLater(seconds, self._go_on_with_slice)
            self._stop_reading()

    # --- Writing ----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._write(data)

    def _write(self, data: bytes) -> None:
        """Write through to the socket if nothing waits before it, and leave to the transport what does not fit.

        A Twisted transport alone would wait for the reactor's next turn and two more system calls.
        """
        if not self.open:
            return
        transport = self.transport
        # `_tempDataLen` is how Twisted's file descriptors know of data they have not looked at yet; TLS has neither.
        if getattr(transport, "dataBuffer", None) == b"" and transport._tempDataLen == 0 and transport.connected:
            sent = transport.writeSomeData(data)
            if not isinstance(sent, int):
                return  # the connection is lost; the reactor is about to find out by itself
            if sent == len(data):
                return
            data = data[sent:]
        if self._is_abandoned:
            return
        transport.write(data)
        self._queued_bytes += len(data)
        if self._admission is not None and (unsent_bytes := self.unsent_bytes):
            if unsent_bytes > UNSENT_BYTES_MAX:
                self.drop(f"more than {UNSENT_BYTES_MAX:,} bytes wait for it to read them")
            else:
                self._report(got_on=False)
