"""Each target on all inputs that fuzzing has found worth keeping, and on those with a fault or two."""

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing import corpus
from tests.fuzzing.run import ATHERIS
from tests.fuzzing.targets import TARGETS
from tests.processes import ROOT

FAULTS_MAX = 3
OBJECTS_MORE_MAX = 30
"""What Python may come to keep by itself; less than a connection, or one object for each input."""
COUNT = """
import gc
from twisted.logger import globalLogBeginner
globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
from tests.fuzzing import corpus
from tests.fuzzing.targets import TARGETS

def objects_after(check, inputs, rounds):
    for _ in range(rounds):
        for data in inputs:
            check(data)
    gc.collect()
    return len(gc.get_objects())

for name, check in TARGETS.items():
    inputs = corpus.load(name)
    print(name, -objects_after(check, inputs, 2) + objects_after(check, inputs, 3))
"""
PIECES = (b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\0\0\0\1", b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7), b"\n")


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_were_kept(target: str) -> None:
    inputs = corpus.load(target)
    assert inputs, "fuzz it, and keep what is found"
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_with_faults(target: str) -> None:
    inputs = corpus.load(target)
    pieces = st.sampled_from(PIECES) | st.binary(max_size=12) | st.sampled_from(inputs)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.sampled_from(inputs), st.lists(st.tuples(st.integers(0), st.integers(0, 12), pieces), max_size=FAULTS_MAX)
    )
    def check(data: bytes, faults: list[tuple[int, int, bytes]]) -> None:
        for at, gone, piece in faults:
            at %= len(data) + 1
            data = data[:at] + piece + data[at + gone :]
        TARGETS[target](data)

    check()


def test_nothing_is_kept() -> None:
    """Whatever was said, nothing of it stays in memory when it is over.

    In a process that logs: until logging begins, Twisted keeps what is logged, and with it whoever logs.
    """
    done = subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kept = {name: int(more) for name, more in map(str.split, done.stdout.splitlines())}
    assert kept.keys() == TARGETS.keys()
    assert not {name: more for name, more in kept.items() if more >= OBJECTS_MORE_MAX}


def test_every_file_of_inputs_has_its_target() -> None:
    assert {path.stem for path in corpus.DIRECTORY.iterdir()} == TARGETS.keys()


def test_a_line_that_is_no_input(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DIRECTORY", tmp_path)
    corpus.save("boxes", [b"b\n", b"", b"a\xff"])
    assert corpus.load("boxes") == [b"", b"a\xff", b"b\n"]
    for wrong in ("'text'", "b'", "1 +"):
        corpus.file_of("boxes").write_text(f"b''\n{wrong}\n")
        with pytest.raises(ValueError, match="line 2: not a bytes literal"):
            corpus.load("boxes")


def test_the_command_without_fuzzing() -> None:
    listed = _fuzz("--list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(TARGETS)
    for wrong, line in (
        (("nothing",), "there is no target 'nothing'"),
        (("boxes", "seconds=0"), "seconds must be at least 1, not 0"),
    ):
        done = _fuzz(*wrong)
        assert done.returncode == 2 and line in done.stderr


def test_what_it_installs_is_what_the_package_names() -> None:
    assert f'FUZZ = ["{ATHERIS}"]' in (ROOT / "setup.py").read_text()


def _fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzzing.run", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
