"""Recipes that change the cluster in one directory, several of them at a time."""

import json
import subprocess
import sys
from pathlib import Path

import attrs
import psutil
import pytest

from madkv.testing import chaos
from madkv.testing.checkout import ROOT
from madkv.testing.cluster import STATE, Cluster
from madkv.testing.shape import Shape

OPERATE = [sys.executable, "-m", "madkv.testing.operate"]
SECONDS_MAX = 120


def test_two_that_make_a_cluster_at_once_make_one(tmp_path: Path) -> None:
    """The second waits, and finds it; both know all of its processes, and nothing is left of it in the end."""
    root = tmp_path / "cluster"
    words = ["up", f"root={root}", "partitions=1", "rf=1", "managers=1"]
    ups = [subprocess.Popen([*OPERATE, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
           for _ in range(2)]  # fmt: skip
    try:
        said = [each.communicate(timeout=SECONDS_MAX)[0] for each in ups]
        assert [each.returncode for each in ups] == [0, 0], said
        assert sum("the cluster is there already" in each for each in said) == 1
        running = [pid for pid, _ in json.loads((root / STATE).read_text())["processes"].values()]
        assert len(running) == 2 and all(map(psutil.pid_exists, running))
    finally:
        down = subprocess.run([*OPERATE, "down", f"root={root}"], cwd=ROOT, timeout=SECONDS_MAX)
    assert down.returncode == 0
    assert not any(map(psutil.pid_exists, running)) and not root.exists()


def test_who_ended_before_has_not_ended_meanwhile(tmp_path: Path) -> None:
    """A killed process stays in the system's table until its parent looks: it must not be taken for one that fell."""
    with subprocess.Popen(["true"]) as ended:
        process = psutil.Process(ended.pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            pass
        shape = Shape.local([1, 2, 3], 1, None, 1)
        state = {"shape": attrs.asdict(shape), "processes": {"s0": (ended.pid, process.create_time())}}
        (tmp_path / STATE).write_text(json.dumps(state))
        cluster = Cluster.load(tmp_path)
        assert cluster.fallen() == []
        cluster.check("while another one was awaited")


@pytest.mark.parametrize("word", ["clients=0", "clients=-1", "clients=101", "rf=-3", "partitions=-1", "managers=0"])
def test_chaos_that_cannot_be_starts_nothing(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        chaos.main([word, "network=no"])
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""
