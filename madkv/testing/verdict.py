"""Tools that end in a verdict: how they begin, what stops them, and the last line that they say."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from madkv.testing.ending import EXIT_INTERRUPTED
from madkv.testing.fleet import interrupt_on_terminate
from madkv.testing.service import ServiceError
from madkv.testing.shape import ShapeError
from madkv.testing.transcript import Transcript


def end_in_verdict(
    log: Path | None,
    run: Callable[[Transcript], bool],
    verdict: str,
    *,
    failed: str = "Failed",
    interrupted: str = "the clients and the cluster are stopped.",
) -> int:
    """Run a tool, which says whether it passed, and end with its `verdict`, in which `{}` stands for that; the status.

    What stops it is said before, behind the word `failed`, or for what stopped it by hand what was `interrupted`.
    Raises OSError when the log cannot be made or stdout takes nothing: `run_tool` says so.
    """
    interrupt_on_terminate()
    with Transcript(log) as out:
        try:
            passed = run(out)
        except KeyboardInterrupt:
            out.say(f"Interrupted: {interrupted}")
            return EXIT_INTERRUPTED
        except (OSError, UnicodeError, ServiceError, ShapeError) as error:  # not every word given can be printed
            out.say(f"{failed}: {error}")
            passed = False
        out.say(verdict.format("PASSED" if passed else "FAILED"))
    return 0 if passed else 1


def with_cluster(
    run: Callable[[argparse.Namespace, Path, Transcript], bool], options: argparse.Namespace, root: Path | None = None
) -> Callable[[Transcript], bool]:
    """A run that gets a directory for a cluster of its own: `root`, or one that goes when the run ends."""

    def run_there(out: Transcript) -> bool:
        with tempfile.TemporaryDirectory(prefix="madkv-cluster-") as scratch:
            return run(options, root or Path(scratch), out)

    return run_there
