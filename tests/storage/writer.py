"""A process that takes a store through a workload and says what is acknowledged, until it is through or is ended.

    python -m tests.storage.writer DIRECTORY SEED STEPS [CRASHED_AT ...]

Prints the number of steps that the store has acknowledged, a line each time, 0 first. The steps up to the last
CRASHED_AT were taken by earlier processes that ended there; they are not taken again. A store that fails ends the
process at once, as it must a server: one line on stderr, exit status 1. Under the recorder each number goes into the
recording too.

MADKV_STORAGE_MISTAKE names a mistake that is made on purpose, to show that it is noticed: `sync` and `metasync` open
LMDB with that switched off.
"""

import os
import sys
from pathlib import Path
from typing import Any

import lmdb

from madkv.errors import MadKVError
from madkv.storage import durable
from madkv.storage.directory import Directory
from madkv.storage.durable import DurableStorage
from tests.storage.recording import RECORDING_VARIABLE, acknowledgement
from tests.storage.workload import FIRST_CONFIGURATION, Workload, take

MISTAKE_VARIABLE = "MADKV_STORAGE_MISTAKE"
MISTAKES = ("sync", "metasync")
FILE_AHEAD_BYTES = 1 << 20
"""Small, so that the file is lengthened while it is being crashed."""
REMOVED_ENTRIES_MAX = 7
CLUSTER, NODE, DISK = "crash", "1", bytes(range(16))


def open_store(path: Path, *, sync: bool = True) -> DurableStorage:
    """The store in `path`, as the writer opens it."""
    directory = Directory(path, CLUSTER, NODE, DISK)
    try:
        return DurableStorage(directory, FIRST_CONFIGURATION, sync=sync)
    except BaseException:
        directory.close()
        raise


class Acknowledgements:
    """Where the numbers go."""

    def __init__(self) -> None:
        path = os.environ.get(RECORDING_VARIABLE)
        self._recording = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644) if path else None

    def say(self, count: int) -> None:
        """`count` steps are acknowledged."""
        if self._recording is not None:
            os.write(self._recording, acknowledgement(count))
        os.write(1, b"%d\n" % count)


def make_mistake(name: str) -> None:
    """From now on LMDB is opened with one of its safeguards switched off."""
    if name not in MISTAKES:
        raise SystemExit(f"{MISTAKE_VARIABLE} is {name!r}, not one of {', '.join(MISTAKES)}")
    opened_rightly: Any = lmdb.open

    def opened_wrongly(*arguments: Any, **named: Any) -> Any:
        return opened_rightly(*arguments, **named | {name: False})

    setattr(lmdb, "open", opened_wrongly)  # noqa: B010 (to mypy it is a class)


def main(path: Path, seed: int, steps: int, crashed_at: list[int]) -> int:
    """Run the writer; the exit status."""
    if mistake := os.environ.get(MISTAKE_VARIABLE):
        make_mistake(mistake)
    durable.FILE_AHEAD_BYTES, durable.REMOVED_ENTRIES_MAX = FILE_AHEAD_BYTES, REMOVED_ENTRIES_MAX
    workload = Workload(seed)
    count = 0
    for crash in crashed_at:
        while count < crash:
            workload.taken(workload.next())
            count += 1
        workload.crashed()
    acknowledgements = Acknowledgements()
    try:
        store = open_store(path)
        acknowledgements.say(count)
        while count < steps:
            step = workload.next()
            take(store, step)
            count += 1
            acknowledgements.say(count)
            workload.taken(step)
    except MadKVError as error:
        print(f"madkv: {error}", file=sys.stderr, flush=True)
        return 1
    store.close()
    return 0


if __name__ == "__main__":
    directory, *numbers = sys.argv[1:]
    seed, steps, *crashes = map(int, numbers)
    sys.exit(main(Path(directory), seed, steps, crashes))
