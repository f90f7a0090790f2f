"""Put each of a list of known mistakes into a copy of the project, one at a time, and see which check catches it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

Mistake = tuple[str, str, list[tuple[str, str]]]
"""A name, a file below the package, and pairs of a text that stands there once and what is put in its place."""


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


def mutated(original: str, changes: Iterable[tuple[str, str]]) -> str | None:
    """A text with a mistake in it; None when the mistake does not fit it."""
    text = original
    for old, new in changes:
        if text.count(old) != 1:
            return None
        text = text.replace(old, new)
    return text


def go_through(
    mistakes: Sequence[Mistake], package: str, caught_by: Callable[[Path], str], wanted: Sequence[str]
) -> int:
    """Print for each mistake (or those whose names have a part of `wanted` in them) what catches it; the exit status.

    `package` is where the mistakes' files are. `caught_by` looks at a copy of the project; empty when nothing is found.
    """
    missed = 0
    with tempfile.TemporaryDirectory(prefix="madkv-mutate-") as directory:
        copy = Path(directory)
        for name in ("madkv", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name, file, changes in mistakes:
            if wanted and not any(part in name for part in wanted):
                continue
            path = copy / package / file
            original = path.read_text()
            text = mutated(original, changes)
            if text is None:
                found, verdict = "", "DOES NOT FIT THE CODE ANY MORE"
            else:
                path.write_text(text)
                found = verdict = caught_by(copy)
                path.write_text(original)
            missed += not found
            print(f"{name} -> {verdict or 'NOT CAUGHT'}", flush=True)
    return 1 if missed else 0
