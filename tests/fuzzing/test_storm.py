"""Garbage at every port of real processes, for a moment; `fuzz::processes` does it for longer."""

from pathlib import Path

import pytest

from madkv.testing import certificates
from tests.fuzzing.storm import Harmed, at_a_cluster, at_a_server, judge_log

SECONDS = 4


def test_a_server() -> None:
    at_a_server(SECONDS, seed=1)


def test_a_server_with_tls(tmp_path: Path) -> None:
    certificates.make(tmp_path / "tls", {certificates.SOLO: ["127.0.0.1"]}, [certificates.USUAL_CLIENT])
    at_a_server(SECONDS, seed=1, tls=tmp_path / "tls")


def test_a_cluster(tmp_path: Path) -> None:
    at_a_cluster(tmp_path, SECONDS, seed=1, managers=1)


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "a call failed in a way that was not foreseen"])
def test_what_is_harm_in_a_log(line: str) -> None:
    judge_log("closed the connection of 127.0.0.1:1: an empty box\n")
    with pytest.raises(Harmed, match="the log says"):
        judge_log(f"one\n{line}\ntwo")
