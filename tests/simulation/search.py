"""Simulate one seed after another until one fails: `python -m tests.simulation.search FIRST LAST`; 1 when one did.

`./justw sim::run` is for code that is to be right; this is for code that is known to be wrong.
"""

import signal
import sys
from types import FrameType

from madkv.testing.sim.__main__ import attempt, be_silent
from madkv.testing.sim.storm import Outcome

SEED_SECONDS_MAX = 60
"""A simulation takes less than a second; a wrong one may never end."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("it does not end")


def main() -> int:
    """The command; its exit status."""
    be_silent()
    signal.signal(signal.SIGALRM, _ring)
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        signal.alarm(SEED_SECONDS_MAX)
        outcome = attempt(seed)
        if not isinstance(outcome, Outcome):
            print(f"seed {seed} FAILED: {outcome[1]}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
