"""Put each known mistake into a copy of what lies around the Raft core, and see whether simulations catch it.

    python -m tests.simulation.mutate [PART OF A NAME ...]

Prints the first seed that fails for each. Exit status 1 when one is not caught, or no longer fits the code.
"""

import re
import sys
from pathlib import Path

from tests.mutation import go_through, run
from tests.simulation.mistakes import MUTATIONS

SEEDS = 2000
SEEDS_AT_A_TIME = 100
SECONDS_MAX = 300


def caught_by(copy: Path) -> str:
    """The seed that finds the mistake in this copy, and what it shows; empty when none does."""
    for first in range(0, SEEDS, SEEDS_AT_A_TIME):
        shown = run(
            copy, "madkv.testing.sim", "run", str(SEEDS_AT_A_TIME), "--first", str(first), seconds_max=SECONDS_MAX
        )
        if shown is not None:
            found = re.search(r"seed (\d+) FAILED: (.*)", shown)
            failed = re.search(r"(\d+) FAILED$", shown, re.M)
            share = f"{failed[1]} of {SEEDS_AT_A_TIME}; " if failed else ""
            return f"{share}seed {found[1]}: {found[2][:90]}" if found else shown.strip()[-90:]
    return ""


if __name__ == "__main__":
    sys.exit(go_through(MUTATIONS, "madkv", caught_by, sys.argv[1:]))
