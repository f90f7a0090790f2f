"""Run a server whose disk is slow: `python -m madkv.bench.slowed MICROSECONDS PROGRAM [ARGUMENT]...`.

Each commit of its store takes so much longer. It waits as a sync waits: without the interpreter, on the thread that
commits, before anybody is told.
"""

import runpy
import sys
import time

from madkv.storage.batch import Batch
from madkv.storage.durable import DurableStorage


def slow_down(seconds: float) -> None:
    """From now on, in this process."""
    write = DurableStorage.write

    def slow_write(storage: DurableStorage, batch: Batch) -> None:
        write(storage, batch)
        time.sleep(seconds)

    DurableStorage.write = slow_write  # type: ignore[assignment, method-assign]


def main() -> None:
    """Become the program."""
    _, microseconds, *program = sys.argv
    slow_down(int(microseconds) / 1e6)
    sys.argv = program
    runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
