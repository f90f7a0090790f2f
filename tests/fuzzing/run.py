"""Fuzz the doors of MadKV with atheris, guided by the coverage of its code: what `just fuzz::…` calls.

    python -m tests.fuzzing.run TARGET ... [--seconds 60] [--keep]        no TARGET: each of them, one after another
    python -m tests.fuzzing.run --minimise [TARGET ...]
    python -m tests.fuzzing.run --list

An input that breaks a target is printed as the line to add to its file in tests/fuzzing/corpus, with what it raised;
exit status 1. With --keep the inputs that reach code which those that are kept do not are added there.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from madkv.testing.options import Parser, whole
from tests.fuzzing import corpus
from tests.fuzzing.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
ATHERIS = "atheris>=3,<4"
INPUT_BYTES_MAX = 4096
INPUT_SECONDS_MAX = 20
"""An input that takes longer counts as one that hangs."""
MEMORY_MB_MAX = 1024
TRACE_CHARACTERS_MAX = 4000
STATUS = re.compile(r"#(\d+)\s+\S+\s+cov: (\d+) ft: \d+ corp: (\d+).* rss: (\d+)Mb")


class Broken(Exception):
    """A target broke, or could not be run; says how."""


def main(argv: Sequence[str]) -> int:
    """The command; its exit status."""
    parser = Parser(prog="./justw fuzz::run", description="fuzz the doors of MadKV")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="see --list (default: all)")
    parser.add_argument("--target", action="append", default=[], help="the same, as an option")
    parser.add_argument("--seconds", type=whole, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus")
    parser.add_argument("--minimise", action="store_true", help="do not look for more; see which inputs are needed")
    parser.add_argument("--list", action="store_true", help="say which targets there are")
    given = parser.parse_args(argv)
    if given.list:
        for name, check in TARGETS.items():
            print(f"{name:20} {(check.__doc__ or '').splitlines()[0]}")
        return 0
    chosen = [*given.targets, *given.target] or list(TARGETS)
    for name in chosen:
        if name not in TARGETS:
            parser.error(f"there is no target {name!r}; there are {', '.join(TARGETS)}")
    if given.seconds < 1:
        parser.error(f"seconds must be at least 1, not {given.seconds}")
    if find_spec("atheris") is None and not _install():
        print(f"fuzz: atheris is not installed, and cannot be: `pip install '{ATHERIS}'` says why", file=sys.stderr)
        return 1
    broken = 0
    for name in chosen:
        try:
            print(
                f"{name:20} {_minimise(name) if given.minimise else _fuzz(name, given.seconds, given.keep)}", flush=True
            )
        except Broken as error:
            print(f"{name:20} BROKEN\n{error}", flush=True)
            broken += 1
    return 1 if broken else 0


def _install() -> bool:
    print("fuzz: installing atheris …", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ATHERIS]
    return subprocess.run(pip, stdin=subprocess.DEVNULL).returncode == 0


def _fuzz(target: str, seconds: int, keep: bool) -> str:
    """Fuzz for so long; the line that says what came of it. Raises Broken."""
    with tempfile.TemporaryDirectory(prefix="madkv-fuzz-") as name:
        known, found, broken = (Path(name, each) for each in ("known", "found", "broken"))
        for directory in (known, found, broken):
            directory.mkdir()
        _unpack(target, known)
        done = _engine(
            Path(name),
            target,
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_BYTES_MAX}",
            "-len_control=20",
            f"-timeout={INPUT_SECONDS_MAX}",
            f"-report_slow_units={INPUT_SECONDS_MAX}",  # else it leaves there what took half as long on a busy machine
            f"-rss_limit_mb={MEMORY_MB_MAX}",
            f"-artifact_prefix={broken}/",
            str(found),
            str(known),
        )
        _raise_if_broken(done, broken)
        statuses = [tuple(map(int, match.groups())) for match in STATUS.finditer(done.stdout)]
        runs, edges, _, memory_mb = statuses[-1]
        early_mb = next((rss for count, _, _, rss in statuses if count >= runs // 10), memory_mb)
        new = len(list(found.iterdir()))
        line = (
            f"{runs:,} inputs, {runs // seconds:,} a second; {edges:,} edges; memory {early_mb} MB after a tenth of "
            f"them, {memory_mb} MB at the end"
        )
        return f"{line}; {_merge(Path(name), target, [known, found])} kept" if keep and new else line


def _minimise(target: str) -> str:
    with tempfile.TemporaryDirectory(prefix="madkv-fuzz-") as name:
        known = Path(name, "known")
        known.mkdir()
        _unpack(target, known)
        before = len(corpus.load(target))
        return f"{_merge(Path(name), target, [known])} of {before} inputs kept"


def _merge(directory: Path, target: str, inputs: list[Path]) -> int:
    """Keep the fewest of these inputs that reach all that they reach; how many there are."""
    merged = directory / "merged"
    merged.mkdir()
    # Without counters an input counts for the code that it reaches, and not for how often: fewer are enough.
    done = _engine(directory, target, "-merge=1", "-use_counters=0", str(merged), *map(str, inputs))
    kept = [path.read_bytes() for path in merged.iterdir()]
    if done.returncode or not kept:
        raise Broken(f"the corpus could not be minimised:\n{done.stdout[-2000:]}")
    corpus.save(target, kept)
    return len(kept)


def _unpack(target: str, directory: Path) -> None:
    for data in corpus.load(target):
        (directory / sha256(data).hexdigest()[:32]).write_bytes(data)


def _engine(directory: Path, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run atheris; libFuzzer starts itself again, by the name of the script, when it merges."""
    script = directory / "engine"
    command = [sys.executable, "-m", "tests.fuzzing.engine", target]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o700)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "MADKV_FUZZ": str(script)}
    return subprocess.run(
        [script, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # atheris says what was raised on the one, libFuzzer how far it is on the other
        text=True,
        errors="replace",
    )


def _raise_if_broken(done: subprocess.CompletedProcess[str], broken: Path) -> None:
    inputs = sorted(broken.iterdir())
    if done.returncode == 0 and not inputs:
        return
    _, _, raised = done.stdout.rpartition("=== Uncaught Python exception: ===")
    trace = raised.partition("\n==")[0].strip()[-TRACE_CHARACTERS_MAX:]
    lines = [f"{path.name.partition('-')[0]}: {path.read_bytes()!r}" for path in inputs]
    raise Broken("\n".join((trace, *lines)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
