"""The testcases pass with a right client, more than once on the same store, and say what is wrong with a wrong one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, ServerProcess
from tests.wrong_clients import just_script

SECONDS_MAX = 60


def testcase(
    number: int, server: ServerProcess, directory: Path, lie: str, *more: str
) -> subprocess.CompletedProcess[str]:
    words = [str(number), "--address", server.address, "--just", just_script(directory, lie), *more]
    command = [sys.executable, "-m", "madkv.testing.testcase", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX)


testcase.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_right_clients_pass_again_and_again(server: ServerProcess, tmp_path: Path, number: int) -> None:
    log = tmp_path / "logs" / "test.log"
    for _ in range(2):
        done = testcase(number, server, tmp_path, "nothing", "--log", str(log))
        assert done.returncode == 0, done.stdout
        assert done.stdout.splitlines()[-1] == f"Testcase {number}: PASSED"
        assert "WRONG" not in done.stdout
        assert log.read_text() == done.stdout


@pytest.mark.parametrize("numbers", [(1, 2)])
def test_single_client_testcases_cover_every_operation_and_answer(
    server: ServerProcess, tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    text = "".join(testcase(number, server, tmp_path, "nothing").stdout for number in numbers)
    answers = {(row.split()[1], row.split()[-1]) for row in text.splitlines() if " -> " in row}
    for kind, answer in (
        *((kind, answer) for kind in ("PUT", "DELETE") for answer in ("found", "not_found")),
        ("GET", "null"),
        ("GET", "first"),
        ("SWAP", "null"),
        ("SWAP", "second"),
        ("SCAN", "pairs"),
        ("SCAN", "other"),
    ):
        assert (kind, answer) in answers


@pytest.mark.parametrize(
    ("number", "lie"),
    [
        (1, "found"),
        (2, "stale"),
        (2, "skips"),
        (2, "repeats"),
        (3, "lost"),
        (3, "dies"),
        (4, "own"),
        (4, "forgets"),
        (5, "own"),
        (5, "fails"),
    ],
)
def test_wrong_clients_fail(server: ServerProcess, tmp_path: Path, number: int, lie: str) -> None:
    done = testcase(number, server, tmp_path, lie)
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1] == f"Testcase {number}: FAILED"
    assert "WRONG" in done.stdout
    assert "went wrong, marked WRONG above." in done.stdout


def test_a_log_that_cannot_be_made_is_one_line(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = testcase(1, server, tmp_path, "nothing", "--log", str(tmp_path / "file" / "log"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("madkv testcase: ")
