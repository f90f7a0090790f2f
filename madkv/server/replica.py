"""What stands between the service and the pairs: operations are proposed, reads are released at a point.

`SoloReplica` is a single replica in memory that applies each operation as it comes.
"""

import time
from collections.abc import Callable
from typing import Protocol

from madkv.errors import MadKVError
from madkv.operations import Operation, Outcome
from madkv.state_machine import StateMachine
from madkv.storage.memory import MemoryStore

Answered = Callable[[Outcome], None]
Released = Callable[[MemoryStore | MadKVError], None]


class Replica(Protocol):
    """How the service sees its replica. Both calls may answer before they return, or any time later, exactly once."""

    def propose(self, operation: Operation, answered: Answered) -> None:
        """Order and apply `operation`; `answered` gets its outcome, or the error that kept it from being applied."""

    def read(self, released: Released) -> None:
        """`released` gets the pairs at a moment when reading them is linearizable; they are good for that moment."""


class SoloReplica:
    """The only replica of its group, without a log: what it has not lost, it has applied."""

    def __init__(self, store: MemoryStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._state_machine = StateMachine(store)
        self._monotonic = monotonic

    def propose(self, operation: Operation, answered: Answered) -> None:
        """Apply at once."""
        index = self._state_machine.last_applied + 1
        answered(self._state_machine.apply(index, int(self._monotonic() * 1000), operation))

    def read(self, released: Released) -> None:
        """Every operation that was answered has been applied, so any moment will do."""
        released(self._store)
