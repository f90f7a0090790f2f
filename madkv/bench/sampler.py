"""Run a Python program, and note where it is at each tick of a clock: of the CPU time that it uses, or of real time.

`python -m madkv.bench.sampler OUT CLOCK PROGRAM [ARGUMENT]...`; PROGRAM is a script, or `-m` and a module. CLOCK is
`cpu` or `wall`. Ticks are counted between SIGUSR1 and SIGUSR2, which also has the counts written to OUT: a JSON object
of the seconds sampled, the CPU seconds used in them (`user`, `system`), and of `[thread, file, function, ticks]` rows.
File and function are those of the innermost Python frame; what C code and the system do for it counts as its.

The interpreter runs signal handlers on the main thread, which may have waited while another one used the CPU: when it
waits, a tick of CPU time is that of the other thread.
"""

import json
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

TICK_SECONDS = 0.002
WAITING = frozenset({"doPoll", "sigwait", "wait", "poll", "get", "_wait", "_run", "_lines"})
"""Functions of the main thread, or of one with a queue, that do nothing but wait when a tick finds them."""


class Sampler:
    """Counts where each thread is."""

    def __init__(self, out: Path, clock: str) -> None:
        self._out = out
        self._is_cpu = clock == "cpu"
        self._timer = signal.ITIMER_PROF if self._is_cpu else signal.ITIMER_REAL
        self._ticks: Counter[tuple[str, str, str]] = Counter()
        self._began = (0.0, os.times())
        number = signal.SIGPROF if self._is_cpu else signal.SIGALRM
        for each, handler in ((number, self._tick), (signal.SIGUSR1, self._begin), (signal.SIGUSR2, self._end)):
            signal.signal(each, handler)

    def _begin(self, number: int, frame: FrameType | None) -> None:
        self._ticks.clear()
        self._began = (time.monotonic(), os.times())
        signal.setitimer(self._timer, TICK_SECONDS, TICK_SECONDS)

    def _end(self, number: int, frame: FrameType | None) -> None:
        signal.setitimer(self._timer, 0)
        began, before = self._began
        after = os.times()
        facts = {
            "seconds": time.monotonic() - began,
            "user": after.user - before.user,
            "system": after.system - before.system,
            "ticks": [[*where, count] for where, count in self._ticks.items()],
        }
        scratch = self._out.with_suffix(".new")
        scratch.write_text(json.dumps(facts))
        scratch.replace(self._out)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        frames = sys._current_frames()
        main = threading.main_thread().ident
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        if frame is not None and main is not None:
            frames[main] = frame
        if self._is_cpu:
            at_work = [ident for ident, each in frames.items() if each.f_code.co_name not in WAITING]
            # One thread uses the CPU at a time, nearly: the main one, unless that waits.
            chosen = [main] if main in at_work or not at_work else at_work[:1]
        else:
            chosen = list(frames)
        for ident in chosen:
            if ident is not None and ident in frames:
                code = frames[ident].f_code
                self._ticks[names.get(ident, "?"), code.co_filename, code.co_name] += 1


def main() -> None:
    """Become the program."""
    out, clock, *program = sys.argv[1:]
    Sampler(Path(out), clock)
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
