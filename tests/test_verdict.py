"""Tools that end in a verdict: the last lines that they say, and the status."""

import argparse
from pathlib import Path

import pytest

from madkv.testing.cluster import ClusterError
from madkv.testing.shape import ShapeError
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict, with_cluster

pytestmark = pytest.mark.usefixtures("signals_as_before")
VERDICT = "The result: {}"
FAILED = "The result: FAILED"


@pytest.mark.parametrize(
    ("outcome", "status", "lines"),
    [
        (True, 0, ["at work", "The result: PASSED"]),
        (False, 1, ["at work", FAILED]),
        (ClusterError("s0 ended"), 1, ["at work", "Failed: s0 ended", FAILED]),
        (ShapeError("too many"), 1, ["at work", "Failed: too many", FAILED]),
        (OSError(28, "No space left on device"), 1, ["at work", "Failed: [Errno 28] No space left on device", FAILED]),
        (KeyboardInterrupt(), 130, ["at work", "Interrupted: the clients and the cluster are stopped."]),
    ],
)
def test_the_end_of_a_tool(
    outcome: bool | BaseException, status: int, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(out: Transcript) -> bool:
        out.say("at work")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    log = tmp_path / "logs" / "log"
    assert end_in_verdict(log, run, VERDICT) == status
    assert capsys.readouterr().out.splitlines() == log.read_text().splitlines() == lines


def test_a_mistake_in_a_tool_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        end_in_verdict(None, lambda out: 1 // 0 == 1, VERDICT)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_files_of_a_cluster_are_kept_where_that_is_asked_for(is_kept: bool, tmp_path: Path) -> None:
    roots = []

    def run(options: argparse.Namespace, root: Path, out: Transcript) -> bool:
        root.mkdir(exist_ok=True)
        (root / "s0.log").write_text("")
        roots.append(root)
        return bool(options.passes)

    kept = tmp_path / "kept"
    there = with_cluster(run, argparse.Namespace(passes=True), kept if is_kept else None)
    assert end_in_verdict(None, there, VERDICT) == 0
    (root,) = roots
    assert (root == kept) == root.exists() == is_kept
