"""Let a writer fill a real disk, a small one, and see that nothing is lost.

    python -m tests.storage.full_disk DIRECTORY

DIRECTORY becomes a tmpfs of its own; so this must be run by who may mount, as `unshare -m` makes everybody with -U -r.
"""

import errno
import subprocess
import sys
from pathlib import Path

from madkv.errors import MadKVError
from madkv.storage.durable import READERS_FILE
from tests.processes import ROOT
from tests.storage.crash import Expected, check_directory, check_that_it_goes_on, writer_command
from tests.storage.writer import open_store

SIZE, LARGER_SIZE = "500k", "64m"
TOO_SMALL = ("20k", "28k", "36k")
"""Too small for a store at all; LMDB says one thing or another about that."""
SEED = 5


def mount(path: str, *options: str) -> None:
    """Mount, or mount again, a tmpfs."""
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", path], check=True)


def fill(path: Path) -> None:
    """Leave not a byte."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error


def opened(path: Path, how: str) -> None:
    """Open a store, or have that refused by one line."""
    try:
        open_store(path).close()
        print(f"{how}: opens")
    except MadKVError as error:
        print(f"{how}: {error}")


def main(directory: str) -> int:
    """The command; its exit status."""
    mount(directory, "-o", f"size={SIZE}")
    store = Path(directory, "store")
    done = subprocess.run(
        writer_command(store, SEED, 1 << 40), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    acknowledged = int(done.stdout.split()[-1])
    print(f"the writer: status {done.returncode}, {acknowledged} acknowledged, said {done.stderr.strip()!r}")
    fill(Path(directory, "fill"))
    opened(store, "while it is full")
    (store / READERS_FILE).unlink()
    fill(Path(directory, "fill more"))
    opened(store, "without LMDB's table of readers")
    opened(Path(directory, "new"), "as a new one")
    mount(directory, "-o", f"remount,size={LARGER_SIZE}")
    for size in TOO_SMALL:
        small = Path(directory, f"of {size}")
        small.mkdir()
        mount(str(small), "-o", f"size={size}")
        opened(small / "new", f"a new one in {size}")
    steps = check_directory(store, Expected(SEED), acknowledged)
    check_that_it_goes_on(store)
    print(f"with more room: opens, holds {steps} steps, and goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
