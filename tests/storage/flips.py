"""Flip bits of a data file, one at a time, and see what a process that opens it and reads all of it makes of them.

    python -m tests.storage.flips FLIPS [SEED]

Half of them hit LMDB's own structure, which has no checksums. Prints how often each of these came of it: `same`
(nothing that is read had that bit), `refused` (one clear line), `signal` (LMDB trusted a page, and that ended the
process), `unwritable` (a commit of the start failed: LMDB's list of free pages, or what it throws away, had that
bit), `different` (other data, and no word of it), `error` (anything else). `madkv check` looks at each as well:
`found` counts what it called damaged, `missed` what it called sound although it was not `same`.
Exit status 1 when there are any `different`, `error` or `missed`.
"""

import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from madkv.errors import MadKVError
from madkv.operate.check import look
from madkv.storage import durable
from madkv.storage.directory import DATA_FILE, IDENTITY_FILE
from tests.storage.recording import PAGE_BYTES, write_image
from tests.storage.workload import Facts, Workload, facts, take
from tests.storage.writer import FILE_AHEAD_BYTES, open_store

STEPS = 150
PAGE_HEAD_BYTES = 48
OUTCOMES = ("same", "refused", "unwritable", "different", "error")


def make(path: Path) -> Facts:
    """A store with something of everything; what it says."""
    store, workload = open_store(path, sync=False), Workload(3)
    for _ in range(STEPS):
        step = workload.next()
        take(store, step)
        workload.taken(step)
    found = facts(store)
    store.close()
    return found


def outcome(path: Path, expected: Facts) -> str:
    """What becomes of reading it in a process of its own."""
    child = os.fork()
    if child == 0:
        result = "error"
        try:
            store = open_store(path, sync=False)
            for _ in store.open_snapshot()._records:
                pass
            result = "same" if facts(store) == expected else "different"
        except durable.StoreFailed:
            result = "unwritable"
        except MadKVError as error:
            result = "refused" if "\n" not in str(error) else "error"
        finally:
            os._exit(OUTCOMES.index(result))
    _, status = os.waitpid(child, 0)
    return "signal" if os.WIFSIGNALED(status) else OUTCOMES[os.WEXITSTATUS(status)]


def main(flips: int, seed: int) -> int:
    """The command; its exit status."""
    durable.FILE_AHEAD_BYTES = FILE_AHEAD_BYTES
    random, counts = Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="madkv-flips-") as name:
        path, copy = Path(name, "store"), Path(name, "copy")
        expected = make(path)
        assert not look(path, lambda table, done, total: None).damage
        data = bytearray((path / DATA_FILE).read_bytes())
        used = len(data.rstrip(b"\0"))
        for _ in range(flips):
            at, bit = random.randrange(used), 1 << random.randrange(8)
            if random.random() < 0.5:  # where LMDB's own structure begins
                at = at // PAGE_BYTES * PAGE_BYTES + random.randrange(PAGE_HEAD_BYTES)
            copy.mkdir()
            shutil.copy(path / IDENTITY_FILE, copy)
            data[at] ^= bit
            write_image(copy / DATA_FILE, data[:used], len(data))
            data[at] ^= bit
            is_damaged = bool(look(copy, lambda table, done, total: None).damage)
            result = outcome(copy, expected)
            counts[result] += 1
            counts["found"] += is_damaged
            counts["missed"] += result != "same" and not is_damaged
            shutil.rmtree(copy)
    print(*(f"{result}={counts[result]}" for result in (*OUTCOMES, "signal", "found", "missed")))
    return 1 if counts["different"] or counts["error"] or counts["missed"] else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int((sys.argv[2:] or ["1"])[0])))
