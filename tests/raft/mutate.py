"""Put each known mistake into a copy of the Raft core, and see which test catches it.

    python -m tests.raft.mutate [PART OF A NAME ...]

Prints, for each mistake, the paper tests that fail, or the seed of the random schedules that does. Exit status 1 when
one is caught by neither, or no longer fits the code.
"""

import re
import sys
from pathlib import Path

from tests.mutation import go_through, run
from tests.raft.mistakes import MUTATIONS

PAPER_TESTS_SECONDS_MAX = 120
SCHEDULES_SECONDS_MAX = 300
SCHEDULES = 2000
SHOWN = 4


def caught_by(copy: Path) -> str:
    """Which check finds the mistake in this copy; empty when none does."""
    paper = ("pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "--maxfail=40", "tests/raft")
    shown = run(copy, *paper, "--ignore=tests/raft/test_random_schedules.py", seconds_max=PAPER_TESTS_SECONDS_MAX)
    if shown is not None:
        failed = re.findall(r"FAILED tests/raft/test_(\w+)\.py::\w+::test_(\w+)", shown)
        return (
            f"{len(failed)}: " + ", ".join(".".join(each) for each in failed[:SHOWN]) if failed else shown.strip()[-80:]
        )
    shown = run(copy, "tests.raft.test_random_schedules", "0", str(SCHEDULES), seconds_max=SCHEDULES_SECONDS_MAX)
    return (
        ""
        if shown is None
        else f"random schedule {' '.join(re.findall(r'test_random_schedules ([0-9]+)$', shown, re.M))}"
    )


if __name__ == "__main__":
    sys.exit(go_through(MUTATIONS, "madkv/raft", caught_by, sys.argv[1:]))
