"""Put a known mistake into a copy of the project, and see which check catches it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[1]
DOES_NOT_FIT = "DOES NOT FIT THE CODE ANY MORE"
TESTS_SECONDS_MAX = 600
SEARCH_SECONDS_MAX = 1800
FAILURES_MAX = 2
SEEDS = 2000
REASON_CHARACTERS_MAX = 90
FAILED_TEST = r"^(?:FAILED|ERROR) tests/(?:\w+/)?test_(\w+)\.py::(?:(\w+)::)?(\w+(?:\[\S+\])?)"
"""In pytest's summary: the file, the test case if there is one, the test. Some test cases have one nameless test."""

Mistake = tuple[str, str, list[tuple[str, str]]]
"""A name, a file below the list's package, and pairs of a text that stands there once and what is put in its place."""


@attrs.frozen
class Verdict:
    """What became of one mistake: which checks caught it, or none, or that it could not be put in."""

    caught_by: tuple[str, ...]
    why_not: str = "NOT CAUGHT"

    def __str__(self) -> str:
        return "; ".join(self.caught_by) or self.why_not


Step = Callable[[Path], str]
"""Looks at a copy of the project; what it finds wrong, or ""."""


@attrs.frozen
class MistakeList:
    """Mistakes of one part of the code, and the checks that are to catch them.

    `package` is where their files are. `tests` are run first, one after another until something fails; then `search`,
    if nothing did or it `searches_always`.
    """

    name: str
    package: str
    mistakes: list[Mistake]
    tests: tuple[Step, ...]
    search: Step | None = None
    searches_always: bool = False

    def judge(self, copy: Path, mistake: Mistake) -> Verdict:
        """Put a mistake into a copy of the project, see what catches it, and take it out again."""
        _, file, changes = mistake
        path = copy / self.package / file
        original = path.read_text()
        text = mutated(original, changes)
        if text is None:
            return Verdict((), DOES_NOT_FIT)
        path.write_text(text)
        try:
            failed = self.run_tests(copy)
            found = self.search(copy) if self.search and (self.searches_always or not failed) else ""
        except CheckBroken as error:
            return Verdict((), f"THE CHECK BROKE DOWN: {str(error).strip()[-REASON_CHARACTERS_MAX:]}")
        finally:
            path.write_text(original)
        return Verdict(tuple(each for each in (failed, found) if each))

    def run_tests(self, copy: Path) -> str:
        """Which tests fail in a copy of the project."""
        return next((found for found in (step(copy) for step in self.tests) if found), "")


class CheckBroken(Exception):
    """A check did not come to a verdict: what it says of a mistake would mean nothing."""


def mutated(original: str, changes: Iterable[tuple[str, str]]) -> str | None:
    """A text with a mistake in it; None when the mistake does not fit it."""
    text = original
    for old, new in changes:
        if text.count(old) != 1:
            return None
        text = text.replace(old, new)
    return text


def copy_project(to: Path) -> None:
    """What is needed to run checks there."""
    for name in ("madkv", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)


def tests(*arguments: str) -> Step:
    """Run tests: the names of the first that fail."""

    def look(copy: Path) -> str:
        command = ("pytest", "-q", "-p", "no:cacheprovider", "--tb=no", f"--maxfail={FAILURES_MAX}", *arguments)
        shown = _run(copy, *command, seconds_max=TESTS_SECONDS_MAX)
        if shown is None:
            return ""
        failed = re.findall(FAILED_TEST, shown, re.M)
        if not failed:
            raise CheckBroken(shown)
        return ", ".join(
            f"{file}.{case if test == 'runTest' else test.removeprefix('test_')}" for file, case, test in failed
        )

    return look


def search(module: str, what: str) -> Step:
    """Run a module on the seeds from 0 on, until one fails: which, and why."""

    def look(copy: Path) -> str:
        shown = _run(copy, module, "0", str(SEEDS), seconds_max=SEARCH_SECONDS_MAX)
        if shown is None:
            return ""
        found = re.search(r"^seed (\d+) FAILED: (.*)", shown, re.M)
        if found is None:
            raise CheckBroken(shown)
        return f"{what} {found[1]} ({found[2][:REASON_CHARACTERS_MAX]})"

    return look


def _run(copy: Path, *command: str, seconds_max: float) -> str | None:
    """What a Python module prints when it fails; None when it succeeds. Raises CheckBroken when it takes too long."""
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=copy,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckBroken(f"{' '.join(command)} does not end within {seconds_max} s") from None
    return done.stdout + done.stderr if done.returncode else None
