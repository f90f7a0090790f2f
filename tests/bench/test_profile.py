"""Where the time of a call goes, by a sampler in each process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from madkv.bench import profile
from madkv.bench.profile import OTHER, ROOMS, Sampled, room_of
from madkv.testing.checkout import ROOT

BUSY = """
import sys, threading, time
def busy(seconds):
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass
print("ready", flush=True)
sys.stdin.readline()
busy(1.0)
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_a_busy_function_is_found(tmp_path: Path, clock: str) -> None:
    """A second of work in one function, and what CPU it took."""
    program, out = tmp_path / "busy.py", tmp_path / "samples"
    program.write_text(BUSY)
    command = [sys.executable, "-m", "madkv.bench.sampler", str(out), clock, str(program)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGUSR1)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        os.kill(process.pid, signal.SIGUSR2)
        deadline = time.monotonic() + 30
        while not out.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two looks; the deadline is above
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(30) == 0
    sampled = Sampled.of(out)
    assert 0.9 < sampled.user + sampled.system < 1.5
    ticks = sum(count for _, _, _, count in sampled.ticks)
    busy = sum(count for _, file, function, count in sampled.ticks if (file, function) == (str(program), "busy"))
    assert ticks > 100 and busy > 0.9 * ticks


def test_every_file_of_the_product_has_a_room() -> None:
    """But those that no call comes through."""
    roomless = {
        path.relative_to(ROOT / "madkv").as_posix()
        for path in (ROOT / "madkv").rglob("*.py")
        if room_of(str(path)) == OTHER
    }
    for name in roomless:
        assert name.split("/")[0] not in ("client", "wire", "raft", "storage", "server"), name
    assert len({room for room, _ in ROOMS}) == len(ROOMS)


def test_cpu_is_shared_out_by_ticks() -> None:
    sampled = Sampled(
        1.0, 0.3, 0.1, [("MainThread", "/x/madkv/raft/core.py", "step", 3), ("x", "/lib/json.py", "d", 1)]
    )
    assert sampled.cpu_us(1000) == {"raft": pytest.approx(300), OTHER: pytest.approx(100)}


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Short, on real processes: the parts of a Put, and what they waited for."""
    assert profile.main(["kind=put", "clients=2", "seconds=1", f"data={tmp_path}"]) == 0
    said = capsys.readouterr().out
    head = next(line for line in said.splitlines() if line.startswith("| CPU us a call"))
    assert head.count("follower") == 2 and "| client | " in head and " leader " in head
    rooms = {line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| ")}
    assert {"storage", "raft", "wire", "reactor", "**all**"} <= rooms
    assert "disk: in a commit" in said
    assert all(
        "main: waits for sockets" in line for line in said.splitlines() if line.startswith(("* leader", "* foll"))
    )
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == "[]"
