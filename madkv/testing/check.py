"""Everything that must hold before a change is good: lint, format, types, tests, and how much the tests reach.

All steps run, also after one that failed; the last lines say which did.
"""

import argparse
import glob
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from madkv.testing.checkout import checkout
from madkv.testing.options import words

NOT_PRODUCTION = "madkv/testing/*,madkv/bench/*"
COVERAGE_PERCENT_MIN = 90


class Outcome(NamedTuple):
    step: str
    status: int
    seconds: float


def coverage_environment() -> dict[str, str]:
    """How to measure: from Python 3.12 on by sys.monitoring, which costs little and sees every greenlet."""
    environment = dict(os.environ)
    if sys.version_info >= (3, 12):
        return environment | {"COVERAGE_CORE": "sysmon"}
    return environment | {"MADKV_COVERAGE_CONCURRENCY": "greenlet"}


def run(step: str, command: Sequence[str], environment: dict[str, str] | None = None) -> Outcome:
    """Run one step with this interpreter's modules, its output going where ours goes."""
    print(f"\n== {step}", flush=True)
    began = time.monotonic()
    status = subprocess.run([sys.executable, "-m", *command], cwd=checkout(), env=environment, check=False).returncode
    return Outcome(step, status, time.monotonic() - began)


def forget_measurements() -> None:
    for path in glob.glob(f"{glob.escape(str(checkout()))}/.coverage*"):
        Path(path).unlink()


def check(is_fast: bool, pytest_options: Sequence[str]) -> list[Outcome]:
    if is_fast:
        return [run("pytest", ["pytest", "tests", *pytest_options])]
    environment = coverage_environment()
    forget_measurements()
    outcomes = [
        run("ruff", ["ruff", "check", "."]),
        run("format", ["ruff", "format", "--check", "."]),
        run("types", ["mypy"]),
        run("pytest", ["coverage", "run", "-m", "pytest", "tests", *pytest_options], environment),
        run("coverage data", ["coverage", "combine", "--quiet"], environment),
        run(
            f"coverage of production code >= {COVERAGE_PERCENT_MIN} %",
            ["coverage", "report", f"--omit={NOT_PRODUCTION}", f"--fail-under={COVERAGE_PERCENT_MIN}"],
            environment,
        ),
    ]
    with tempfile.TemporaryDirectory(prefix="madkv-trial-") as scratch:
        outcomes.append(run("trial", ["twisted.trial", "--temp-directory", f"{scratch}/trial", "tests"]))
    return outcomes


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="just test", description=__doc__)
    parser.add_argument("--fast", choices=("yes", "no"), default="no", help="run pytest alone (default: %(default)s)")
    options, pytest_options = parser.parse_known_args(words(argv))
    outcomes = check(options.fast == "yes", pytest_options)
    print(f"\n== summary, Python {sys.version.split()[0]}")
    for outcome in outcomes:
        verdict = "failed" if outcome.status else "ok"
        print(f"  {verdict:<8}{outcome.step:<36}{outcome.seconds:6.1f} s")
    failed = [outcome.step for outcome in outcomes if outcome.status]
    print(f"FAILED: {', '.join(failed)}" if failed else "all green", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
