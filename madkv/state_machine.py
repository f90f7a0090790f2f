"""apply(operation) -> outcome, over a mapping: the one place where the meaning of a write is written down.

Deterministic: the same operations with the same indexes and times give the same pairs, sessions and outcomes on every
replica, after every restart.
"""

from typing import Protocol

from madkv.operations import CloseSession, OpenSession, Operation, Outcome, Write, WriteKind
from madkv.sessions import Record, Session, Sessions


class Pairs(Protocol):
    """The mapping that writes act on."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Set the value of `key`; the value it had, or None."""

    def delete(self, key: bytes) -> bytes | None:
        """Remove `key` if it is there; the value it had, or None."""


class StateMachine:
    """Pairs and sessions of one group, changed by `apply` alone."""

    def __init__(self, pairs: Pairs, sessions: Sessions | None = None) -> None:
        self._pairs = pairs
        self._sessions = Sessions() if sessions is None else sessions
        self.last_applied = 0
        """Index of the operation applied last; grows by one."""

    def apply(self, index: int, time_ms: int, operation: Operation) -> Outcome:
        """Execute the operation at `index`, the one after `last_applied`.

        `time_ms` is the proposer's monotonic time; session life is counted in it and in nothing else.
        """
        assert index == self.last_applied + 1, f"operation {index} does not follow {self.last_applied}"
        self.last_applied = index
        self._sessions.expire(time_ms)
        if isinstance(operation, Write):
            if operation.session == 0:
                return self._execute(operation)
            match self._sessions.admit(operation, time_ms):
                case Session() as session:
                    outcome = self._execute(operation)
                    self._sessions.record(session, operation, outcome)
                    return outcome
                case Record() as record:
                    return record.outcome
                case refusal:
                    return refusal
        if isinstance(operation, OpenSession):
            return self._sessions.open(operation.client_id, index, time_ms)
        assert isinstance(operation, CloseSession)
        self._sessions.close(operation.session)
        return None

    def _execute(self, write: Write) -> Outcome:
        if write.kind is WriteKind.PUT:
            return self._pairs.put(write.key, write.value) is not None
        if write.kind is WriteKind.SWAP:
            return self._pairs.put(write.key, write.value)
        assert write.kind is WriteKind.DELETE
        return self._pairs.delete(write.key) is not None
