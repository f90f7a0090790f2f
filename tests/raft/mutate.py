"""Put each known mistake into a copy of the Raft core, and see which test catches it.

    python -m tests.raft.mutate [PART OF A NAME ...]

Prints, for each mistake, the paper tests that fail, or the seed of the random schedules that does. Exit status 1 when
one is caught by neither, or no longer fits the code.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.raft.mistakes import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]
PAPER_TESTS_SECONDS_MAX = 120
SCHEDULES_SECONDS_MAX = 300
SCHEDULES = 2000
SHOWN = 4


def run(copy: Path, *command: str, seconds_max: float) -> str | None:
    """What a Python module prints when it fails; None when it succeeds. Too long counts as a failure."""
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it hangs"
    return done.stdout + done.stderr if done.returncode else None


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


def main(wanted: list[str]) -> int:
    """Go through the mistakes; the exit status."""
    missed = 0
    with tempfile.TemporaryDirectory(prefix="madkv-mutate-") as directory:
        copy = Path(directory)
        for name in ("madkv", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name, file, changes in MUTATIONS:
            if wanted and not any(part in name for part in wanted):
                continue
            path = copy / "madkv/raft" / file
            original = text = path.read_text()
            for old, new in changes:
                if text.count(old) != 1:
                    text = original
                    break
                text = text.replace(old, new)
            path.write_text(text)
            found = "" if text == original else caught_by(copy)
            path.write_text(original)
            missed += not found
            fits = "NOT CAUGHT" if text != original else "DOES NOT FIT THE CODE ANY MORE"
            print(f"{name} -> {found or fits}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
