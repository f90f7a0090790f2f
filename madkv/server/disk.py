"""Where the store's blocking calls run: one after another, each whole."""

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

Work = Callable[[], Any]
Done = Callable[[Any], None]
"""Gets what the work returned, or the exception that it raised."""


class Disk(Protocol):
    """Runs one piece of work after another."""

    @property
    def is_immediate(self) -> bool:
        """Whether `run` returns after `done` was called."""

    def run(self, work: Work, done: Done, *, is_short: bool = False) -> None:
        """Do `work`, then call `done` on the reactor's thread, maybe before this returns.

        `is_short`: on a disk that is well it takes no longer than a hand-over to another thread and back.
        """

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

    def run(self, work: Work, done: Done, *, is_short: bool = False) -> None:
        """Do it now."""
        done(outcome_of(work))

    def close(self) -> None:
        """Nothing is under way."""


QUICK_SECONDS = 0.002
"""What short work may take on average, the latest dozen or so, for the reactor to do it by itself."""
STALL_SECONDS = 0.1
CAREFUL_WORKS = 10_000
"""After a piece of work that took so long, so many follow on the thread whatever they take."""
_WEIGHT = 1 / 16


class DiskThread:
    """One thread for a store's blocking calls, so that the reactor's timers never wait long for a disk.

    Short work is done by the reactor itself as long as the disk is quick. To hand it over would cost two switches of
    threads, which moreover take turns at the interpreter: about as much as a small commit. A disk that stalls stops the
    whole process, as if it were stopped by a signal, and not again for long: from then on all work is the thread's.
    """

    is_immediate = False

    def __init__(self, call_from_thread: Callable[..., None]) -> None:
        """`call_from_thread(function, *arguments)` has the reactor call a function on its thread."""
        self._call_from_thread = call_from_thread
        self._average_seconds = 0.0
        self._careful_left = 0
        self._work: queue.SimpleQueue[tuple[Work, Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="madkv-disk", daemon=True)
        self._thread.start()

    def run(self, work: Work, done: Done, *, is_short: bool = False) -> None:
        """Do it now, or hand it to the thread."""
        if is_short and not self._careful_left and self._average_seconds < QUICK_SECONDS:
            done(self._watched(work))
        else:
            self._work.put((partial(self._watched, work) if is_short else work, done))

    def close(self) -> None:
        """End the thread once it is through with its work."""
        self._work.put(None)
        self._thread.join()

    def _watched(self, work: Work) -> Any:
        """Do short work, and see how long it takes. On either thread, but never on both at once."""
        began = time.monotonic()
        result = outcome_of(work)
        took = time.monotonic() - began
        self._average_seconds += (took - self._average_seconds) * _WEIGHT
        if took > STALL_SECONDS:
            self._careful_left = CAREFUL_WORKS
        elif self._careful_left:
            self._careful_left -= 1
        return result

    def _run(self) -> None:
        while (given := self._work.get()) is not None:
            work, done = given
            self._call_from_thread(done, outcome_of(work))
