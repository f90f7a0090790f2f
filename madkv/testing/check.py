"""Everything that must hold before a change is good: lint, format, types, tests, and how much the tests reach.

All steps run, also after one that failed; the last lines say which did.
"""

import glob
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from madkv.testing.checkout import checkout
from madkv.testing.ending import run_tool
from madkv.testing.fleet import interrupt_on_terminate
from madkv.testing.options import Parser

NOT_PRODUCTION = "madkv/testing/*,madkv/bench/*"
COVERAGE_PERCENT_MIN = 90
RUN_BY_TRIAL = ("--ignore=tests/raft/test_random_schedules.py", "--ignore=tests/test_linearizability.py")
"""Long, cover no production code that others do not, and as good without being measured: trial runs them, beside."""
ON_TWO_CORES = ("-n", "2", "--dist", "loadfile")
"""Half of the time goes by in waiting for processes. The tests of one file may share a server: they stay together."""
END_SECONDS_MAX = 5.0
"""How long an interrupted step may take to end what it started."""


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


class Steps:
    """The steps, each a process group of its own, so that an interrupt comes to each once: from here."""

    def __init__(self) -> None:
        self._processes: list[tuple[subprocess.Popen[str], signal.Signals]] = []
        """Each with the signal that ends it."""

    def run(self, step: str, command: Sequence[str], environment: dict[str, str] | None = None) -> Outcome:
        """Run one step with this interpreter's modules, its output going where ours goes."""
        print(f"\n== {step}", flush=True)
        return self._run(step, command, signal.SIGINT, environment=environment)[0]

    def run_quietly(self, step: str, command: Sequence[str]) -> tuple[Outcome, str]:
        """Run one step beside others, one that starts no processes; its output for when they are done."""
        # Trial takes an interrupt for a failure of the test that it hits, and goes on.
        return self._run(step, command, signal.SIGTERM, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def _run(
        self,
        step: str,
        command: Sequence[str],
        end_signal: signal.Signals,
        stdout: int | None = None,
        stderr: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> tuple[Outcome, str]:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=checkout(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._processes.append((process, end_signal))
        output, _ = process.communicate()
        return Outcome(step, process.returncode, time.monotonic() - began), output

    def end(self) -> None:
        """Interrupt what still runs, give it time to end what it started, then end all of it."""
        alive = [each for each in self._processes if each[0].poll() is None]
        for process, end_signal in alive:
            process.send_signal(end_signal)
        deadline = time.monotonic() + END_SECONDS_MAX
        for process, _ in alive:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second interrupt: no patience is left
                pass
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def forget_measurements() -> None:
    for path in glob.glob(f"{glob.escape(str(checkout()))}/.coverage*"):
        Path(path).unlink()


def check(is_fast: bool, pytest_options: Sequence[str]) -> list[Outcome]:
    """Run all steps. An interrupt ends them, and leaves no measurements behind."""
    steps = Steps()
    # The pool waits for trial at its end, so an interrupt must have ended that before.
    with tempfile.TemporaryDirectory(prefix="madkv-trial-") as scratch, ThreadPoolExecutor(1) as beside:
        try:
            if is_fast:
                return [steps.run("pytest", ["pytest", "tests", *ON_TWO_CORES, *pytest_options])]
            forget_measurements()
            # What trial runs is pure and driven by clocks, so it does not mind company.
            command = ["twisted.trial", "--temp-directory", f"{scratch}/trial", "tests"]
            trial = beside.submit(steps.run_quietly, "trial", command)
            outcomes = check_but_trial(steps, pytest_options, coverage_environment())
            outcome, output = trial.result()
        except BaseException:
            steps.end()
            if not is_fast:
                forget_measurements()
            raise
    print(f"\n== trial\n{output}", flush=True)
    return [*outcomes, outcome]


def check_but_trial(steps: Steps, pytest_options: Sequence[str], environment: dict[str, str]) -> list[Outcome]:
    run = steps.run
    return [
        run("ruff", ["ruff", "check", "."]),
        run("format", ["ruff", "format", "--check", "."]),
        run("types", ["mypy"]),
        run(
            "pytest",
            ["coverage", "run", "-m", "pytest", "tests", *ON_TWO_CORES, *RUN_BY_TRIAL, *pytest_options],
            environment,
        ),
        run("coverage data", ["coverage", "combine", "--quiet"], environment),
        run(
            f"coverage of production code >= {COVERAGE_PERCENT_MIN} %",
            ["coverage", "report", f"--omit={NOT_PRODUCTION}", f"--fail-under={COVERAGE_PERCENT_MIN}"],
            environment,
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="./justw test", description=__doc__)
    parser.add_argument("--fast", choices=("yes", "no"), default="no", help="run pytest alone (default: %(default)s)")
    options, pytest_options = parser.parse_known_args(argv)
    interrupt_on_terminate()
    outcomes = check(options.fast == "yes", pytest_options)
    print(f"\n== summary, Python {sys.version.split()[0]}")
    for outcome in outcomes:
        verdict = "failed" if outcome.status else "ok"
        print(f"  {verdict:<8}{outcome.step:<36}{outcome.seconds:6.1f} s")
    failed = [outcome.step for outcome in outcomes if outcome.status]
    print(f"FAILED: {', '.join(failed)}" if failed else "all green", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    run_tool("madkv test", main)
