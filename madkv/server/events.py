"""The latest things that happened to a replica, for people who look: elections, peers lost and back, snapshots."""

from collections import deque
from typing import Any

from twisted.internet.interfaces import IReactorTime

EVENTS_KEPT = 32


class Events:
    """Few and small, whatever happens: the oldest make room."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, dict[str, Any]]] = deque(maxlen=EVENTS_KEPT)

    def add(self, what: str, **facts: Any) -> None:
        """Something happened just now; `facts` as JSON may hold them."""
        self._kept.append((self._clock.seconds(), {"what": what, **facts}))

    def told(self) -> list[dict[str, Any]]:
        """All of them, the oldest first. `ago`: seconds since then, which need no two clocks that agree."""
        now = self._clock.seconds()
        return [{"ago": round(now - at, 3), **facts} for at, facts in self._kept]
