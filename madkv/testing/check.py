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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from madkv.testing.checkout import checkout
from madkv.testing.options import words

NOT_PRODUCTION = "madkv/testing/*,madkv/bench/*"
COVERAGE_PERCENT_MIN = 90
RUN_BY_TRIAL = "--ignore=tests/raft/test_random_schedules.py"
"""Long, covers nothing that other tests do not, and is as good without being measured: it runs with trial, beside."""


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


def run_quietly(step: str, command: Sequence[str]) -> tuple[Outcome, str]:
    """Run one step beside others; its output for when they are done."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=checkout(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Outcome(step, done.returncode, time.monotonic() - began), done.stdout


def forget_measurements() -> None:
    for path in glob.glob(f"{glob.escape(str(checkout()))}/.coverage*"):
        Path(path).unlink()


def check(is_fast: bool, pytest_options: Sequence[str]) -> list[Outcome]:
    if is_fast:
        return [run("pytest", ["pytest", "tests", *pytest_options])]
    environment = coverage_environment()
    forget_measurements()
    with tempfile.TemporaryDirectory(prefix="madkv-trial-") as scratch, ThreadPoolExecutor(1) as beside:
        # What trial runs is pure and driven by clocks, so it does not mind company.
        trial = beside.submit(run_quietly, "trial", ["twisted.trial", "--temp-directory", f"{scratch}/trial", "tests"])
        outcomes = check_but_trial(pytest_options, environment)
        outcome, output = trial.result()
    print(f"\n== trial\n{output}", flush=True)
    return [*outcomes, outcome]


def check_but_trial(pytest_options: Sequence[str], environment: dict[str, str]) -> list[Outcome]:
    return [
        run("ruff", ["ruff", "check", "."]),
        run("format", ["ruff", "format", "--check", "."]),
        run("types", ["mypy"]),
        run("pytest", ["coverage", "run", "-m", "pytest", "tests", RUN_BY_TRIAL, *pytest_options], environment),
        run("coverage data", ["coverage", "combine", "--quiet"], environment),
        run(
            f"coverage of production code >= {COVERAGE_PERCENT_MIN} %",
            ["coverage", "report", f"--omit={NOT_PRODUCTION}", f"--fail-under={COVERAGE_PERCENT_MIN}"],
            environment,
        ),
    ]


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
