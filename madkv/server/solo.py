"""The replica of a server without a manager: alone, in memory, without a log. What it has not lost, it has applied."""

import time
from collections.abc import Callable
from typing import Any

from madkv.operations import Operation
from madkv.server.replica import Answered
from madkv.state_machine import StateMachine
from madkv.storage.memory import MemoryStore

CHANGES_DROPPED_EACH = 4096
"""Operations after which the record of what changed is thrown away: no store asks for it."""


class SoloReplica:
    """As `Replica`, for a group of one that keeps nothing: each operation is applied as it comes.

    A Replica on a store in memory does the same, at half as much CPU time again for each call (`bench::cpu`).
    """

    def __init__(self, store: MemoryStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._state_machine = StateMachine(store)
        self._monotonic = monotonic

    def propose(self, operation: Operation, answered: Answered) -> None:
        """Apply at once."""
        machine = self._state_machine
        index = machine.last_applied + 1
        answered(machine.apply(index, int(self._monotonic() * 1000), operation))
        if index % CHANGES_DROPPED_EACH == 0:
            machine.take_changes()

    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        """Every operation that was answered has been applied, so any moment will do."""
        released(self._store)
