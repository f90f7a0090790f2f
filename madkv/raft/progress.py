"""What a leader knows of one peer, and how fast it may send to it."""

from collections import deque
from enum import Enum, auto

import attrs


class Flow(Enum):
    """How entries go to a peer."""

    PROBE = auto()
    """One message at a time, until one is accepted and it is known where the logs agree."""
    REPLICATE = auto()
    """Message after message without waiting, up to the end of the batch and a number of bytes in flight."""
    SNAPSHOT = auto()
    """What it needs is compacted away: it gets the snapshot first, and no entries meanwhile."""


@attrs.define
class Progress:
    """One peer. `match_index` only grows while this leader leads; match_index < next_index always."""

    next_index: int
    match_index: int = 0
    flow: Flow = Flow.PROBE
    is_waiting: bool = False
    """In PROBE: whether a message is out that has been neither answered nor given up."""
    heard_tick: int = 0
    """The leader's tick when it was last heard from, or when it became a peer."""
    acked_round: int = 0
    """The latest heartbeat round it has answered."""
    snapshot_index: int = 0
    """In SNAPSHOT: the index up to which the snapshot goes; 0 while the storage is being asked."""
    _in_flight: deque[tuple[int, int]] = attrs.Factory(deque)  # (last index, bytes), oldest first
    in_flight_bytes: int = 0

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Entries up to `last_index` are on their way."""
        if self.flow is Flow.PROBE:
            self.is_waiting = True
            return
        self.next_index = last_index + 1
        self._in_flight.append((last_index, size_bytes))
        self.in_flight_bytes += size_bytes

    def acknowledged(self, match_index: int) -> bool:
        """The peer holds everything up to `match_index`; whether that is news. An old reply changes nothing."""
        if match_index <= self.match_index:
            # A reply to a probe without entries is no news about the log, but it ends the probing.
            if self.flow is Flow.PROBE and match_index == self.match_index and self.next_index == match_index + 1:
                self.replicate()
            return False
        self.match_index = match_index
        self.next_index = max(self.next_index, match_index + 1)
        while self._in_flight and self._in_flight[0][0] <= match_index:
            self.in_flight_bytes -= self._in_flight.popleft()[1]
        if self.flow is Flow.PROBE or (self.flow is Flow.SNAPSHOT and match_index >= self.snapshot_index):
            self.replicate()
        return True

    def refused(self, previous_index: int, next_index: int) -> bool:
        """The peer does not hold the entry at `previous_index`; go on from `next_index`. False for an old reply."""
        if previous_index <= self.match_index or self.flow is Flow.SNAPSHOT:
            return False
        if self.flow is Flow.PROBE and previous_index != self.next_index - 1:
            return False
        self.probe(max(self.match_index + 1, min(next_index, previous_index)))
        return True

    def probe(self, next_index: int) -> None:
        """Find out again where the logs agree."""
        self._change(Flow.PROBE)
        self.next_index = next_index

    def replicate(self) -> None:
        """The logs agree up to match_index."""
        self._change(Flow.REPLICATE)
        self.next_index = self.match_index + 1

    def snapshot(self) -> None:
        """Entries at next_index are gone."""
        self._change(Flow.SNAPSHOT)

    def _change(self, flow: Flow) -> None:
        self.flow = flow
        self.is_waiting = False
        self.snapshot_index = 0
        self._in_flight.clear()
        self.in_flight_bytes = 0
