"""Where the store's blocking calls run: one after another, each whole."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

Work = Callable[[], Any]
Done = Callable[[Any], None]
"""Gets what the work returned, or the exception that it raised."""


class Disk(Protocol):
    """Runs one piece of work after another."""

    @property
    def is_immediate(self) -> bool:
        """Whether `run` returns after `done` was called."""

    def run(self, work: Work, done: Done) -> None:
        """Do `work`, then call `done` on the reactor's thread."""

    def close(self) -> None:
        """Wait for the work under way; its `done` may not be called any more."""


def outcome_of(work: Work) -> Any:
    """What `work` returns or raises."""
    try:
        return work()
    except Exception as error:
        return error


class InlineDisk:
    """For stores in memory, which do not block."""

    is_immediate = True

    def run(self, work: Work, done: Done) -> None:
        """Do it now."""
        done(outcome_of(work))

    def close(self) -> None:
        """Nothing is under way."""


class DiskThread:
    """One thread for all of a store's blocking calls, so that the reactor's timers never wait for a disk."""

    is_immediate = False

    def __init__(self, call_from_thread: Callable[..., None]) -> None:
        """`call_from_thread(function, *arguments)` has the reactor call a function on its thread."""
        self._call_from_thread = call_from_thread
        self._work: queue.SimpleQueue[tuple[Work, Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="madkv-disk", daemon=True)
        self._thread.start()

    def run(self, work: Work, done: Done) -> None:
        """Hand it to the thread."""
        self._work.put((work, done))

    def close(self) -> None:
        """End the thread once it is through with its work."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (given := self._work.get()) is not None:
            work, done = given
            self._call_from_thread(done, outcome_of(work))
