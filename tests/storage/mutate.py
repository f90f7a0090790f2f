"""Put each known mistake into a copy of the storage, and see which check catches it.

    python -m tests.storage.mutate [PART OF A NAME ...]

Prints, for each mistake, the first tests that fail, those of crashes and damage before the others. Exit status 1 when
none does, or when it no longer fits the code.
"""

import re
import sys
from pathlib import Path

from tests.mutation import go_through, run
from tests.storage.mistakes import MUTATIONS

TESTS_SECONDS_MAX = 200
FAILURES_MAX = 3
CRASHES = ("tests/storage/test_crash.py", "tests/storage/test_damage.py")
STEPS = (CRASHES, ("tests/storage", *(f"--ignore={file}" for file in CRASHES)))
"""The second is taken when the first finds nothing."""


def caught_by(copy: Path) -> str:
    """Which checks find the mistake in this copy; empty when none does."""
    for tests in STEPS:
        command = ("pytest", "-q", "-p", "no:cacheprovider", "--tb=no", f"--maxfail={FAILURES_MAX}", *tests)
        shown = run(copy, *command, seconds_max=TESTS_SECONDS_MAX)
        if shown is not None:
            names = re.findall(r"(?:FAILED|ERROR) tests/storage/test_(\w+)\.py::(?:\w+::)?(\w+(?:\[\S+\])?)", shown)
            found = [f"{file}.{test.removeprefix('test_')}" for file, test in names]
            return ", ".join(found) or shown.strip()[-80:]
    return ""


if __name__ == "__main__":
    sys.exit(go_through(MUTATIONS, "madkv/storage", caught_by, sys.argv[1:]))
