"""Testcases, crashing fuzz runs and chaos against clusters of their own: right clients pass, wrong ones do not."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from madkv.testing import rolling
from madkv.testing.history import Operation
from madkv.testing.mischief import Fault
from madkv.testing.shape import Node
from madkv.testing.transcript import Transcript
from tests.processes import ROOT
from tests.wrong_clients import just_script

SECONDS_MAX = 150


def environment(directory: Path) -> dict[str, str]:
    """With scratch files in this directory."""
    checkout = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return {"PATH": os.defpath, "TMPDIR": str(directory), **checkout}


def nothing_is_left(directory: Path) -> bool:
    """Neither processes that were started with this directory for scratch files, nor files in it."""
    processes = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    files = [path.name for path in directory.iterdir() if path.name.startswith("madkv-")]
    return not files and not any(str(directory) in " ".join(words) for words in processes)


def run(tool: str, directory: Path, lie: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a tool with clients that lie; nothing that it started may be left."""
    command = [sys.executable, "-m", f"madkv.testing.{tool}", *words, "--just", just_script(directory, lie)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(directory), capture_output=True, text=True, timeout=SECONDS_MAX
    )
    assert nothing_is_left(directory)
    return done


@pytest.mark.parametrize(("module", "number"), [("p2", 1), ("p3", 4)])
def test_right_clients_pass(tmp_path: Path, module: str, number: int) -> None:
    log = tmp_path / "logs" / "test.log"
    done = run("testcase", tmp_path, "nothing", str(number), "--module", module, "--log", str(log))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1] == f"Testcase {number}: PASSED"
    assert "* killed (SIGKILL): s" in done.stdout and "* started again: s" in done.stdout
    assert "WRONG" not in done.stdout
    assert log.read_text() == done.stdout


def test_a_testcase_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run("testcase", tmp_path, "nothing", "2", "--module", "p2")
    assert (done.returncode, done.stderr) == (2, "testcase: error: p2 has testcases 1 to 1 (see --help)\n")


def test_every_node_is_restarted_and_clients_do_not_notice(tmp_path: Path) -> None:
    done = run("rolling", tmp_path, "nothing", "partitions=1", "clients=4")
    assert done.returncode == 0, done.stdout
    said = done.stdout.splitlines()
    assert said[-1] == "Rolling restart result: PASSED"
    assert sum(" restarted; it has caught up after " in line for line in said) == 6
    handed_over = [re.sub(r".*\] (.*) in term \d+", r"\1", line) for line in said if "] " in line and " leads " in line]
    assert [line.split(" leads ")[1] for line in handed_over] == ["group m", "group s0"]
    (longest,) = (float(line.split()[2]) for line in said if line.startswith("Longest call: "))
    assert longest <= 2


@pytest.mark.parametrize(("answered", "passes"), [(9, True), (11, False)])
def test_calls_count_from_the_first_restart_on(answered: int, passes: bool) -> None:
    """The first of a client waits for its interpreter, however long that takes."""
    second = 1_000_000_000
    fault = Fault("restarted", (Node(0, 0),), 10 * second, 11 * second, 11 * second)
    calls = [(2 * second, answered * second), (answered * second, answered * second + 1), (12 * second, 13 * second)]
    history = [Operation(0, "GET", b"key", None, called, returned) for called, returned in calls]
    assert rolling.judge([fault], None, history, Transcript(None)) is passes


def test_a_restart_of_a_group_of_one_is_no_such_run(tmp_path: Path) -> None:
    done = run("rolling", tmp_path, "nothing", "rf=1")
    assert done.returncode == 2 and "a group of one cannot do without its node" in done.stderr


def test_a_crash_in_the_middle_is_survived(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "fuzz-2-yes.log"
    done = run("crashfuzz", tmp_path, "nothing", "p2", "2", "--log", str(log), "ops=300")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "Fuzz testing result: PASSED"
    assert "killed (SIGKILL): s0" in done.stdout and "over after" in done.stdout
    assert "By partition: s0 " in done.stdout
    assert "Some are killed at a quarter of 1,500 calls; " in done.stdout
    assert log.read_text() == done.stdout


def test_a_lie_among_crashes_is_found(tmp_path: Path) -> None:
    done = run("crashfuzz", tmp_path, "stale", "p2", "2", "ops=300")
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1] == "Fuzz testing result: FAILED"
    assert "no order explains the answers" in done.stdout


def test_an_interrupted_run_ends_what_it_started(tmp_path: Path) -> None:
    """In the middle of a fault: while a server is down, and the clients wait for it."""
    just = just_script(tmp_path, "nothing")
    command = [sys.executable, "-m", "madkv.testing.crashfuzz", "p2", "2", "--just", just]
    tool = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    assert tool.stdout
    for line in tool.stdout:
        if "killed (SIGKILL)" in line:
            tool.send_signal(signal.SIGTERM)
            break
    rest, _ = tool.communicate(timeout=SECONDS_MAX)
    assert rest.endswith("Interrupted: the clients and the cluster are stopped, nothing was judged.\n")
    assert tool.returncode == 130
    assert nothing_is_left(tmp_path)


def test_a_cluster_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    for words, why in (
        (("p2", "2", "3"), "1 to 2"),
        (("p3", "4"), "rf: 4 is none of"),
        (("p2", "2", "s7"), "no s7"),
        (("p2", "51"), "1 to 50"),
        (("p3", "3"), "2 servers cannot be killed here, but 1 to 1"),
        (("p3", "3", "1", "sheep=3"), "unrecognized arguments: sheep=3"),
    ):
        done = run("crashfuzz", tmp_path, "nothing", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr and done.stderr.count("\n") == 1


def test_a_little_chaos_passes(tmp_path: Path) -> None:
    done = run("chaos", tmp_path, "nothing", "rf=0", "partitions=2", "seconds=5", "seed=1", "clients=3", "network=no")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "Chaos result: PASSED"
    assert "longest, in seconds:" in done.stdout
