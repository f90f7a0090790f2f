"""What the tools behind the recipes have in common: how they read their words, and how they end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from madkv.bench import run
from madkv.testing import fuzz, testcase
from madkv.testing.options import Parser, whole, words
from madkv.testing.sim import __main__ as simulations
from madkv.testing.transcript import Progress
from tests.processes import ROOT

JUST = Path(sys.executable).with_name("just")
SECONDS_MAX = 30
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "read"),
    [
        ([], []),
        (["3", "ops=5", "--seed", "1"], ["3", "--ops=5", "--seed", "1"]),
        (["--address", "h:1", "ops=5"], ["--address", "h:1", "--ops=5"]),
        (["--address", "--help"], ["--help"]),
        (["--address", "ops=5", "seed=1"], ["--ops=5", "--seed=1"]),
        (["--address", "--ops", "5"], ["--ops", "5"]),
        (["--address", "-ptable=t"], ["-ptable=t"]),
    ],
)
def test_an_option_is_no_address(argv: Sequence[str], read: Sequence[str]) -> None:
    assert words(argv) == read


@pytest.mark.parametrize(
    ("recipe", "log"),
    [
        (("testcase", "1"), "tests/test1.log"),
        (("fuzz", "3", "yes"), "fuzz/fuzz-3-yes.log"),
        (("bench", "1", "A"), "bench/bench-1-a.log"),
        (("bench", "1", "../../etc/X"), "bench/bench-1-..-..-etc-x.log"),
    ],
)
def test_recipes_put_options_behind_the_address_and_logs_in_their_folder(recipe: Sequence[str], log: str) -> None:
    name, *arguments = recipe
    command = [JUST, "--dry-run", f"p1::{name}", *arguments, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=SECONDS_MAX).stderr
    assert f"--log '/tmp/madkv-p1/{log}'" in shown
    assert shown.rstrip().endswith("""--address '--help' "$@\"""")


def test_help_shows_options_as_recipes_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    """And each text still stands in its column."""
    parser = Parser(prog="tool")
    parser.add_argument("--root", help="where")
    parser.add_argument("--a-long-name-of-an-option", help="what")
    parser.add_argument("--network", choices=("yes", "no"), help="which")
    parser.add_argument("--keep", action="store_true", help="whether")
    _, *shown = parser.format_help().partition("options:\n")[2].splitlines()
    assert shown == [
        "  root=ROOT             where",
        "  a-long-name-of-an-option=A_LONG_NAME_OF_AN_OPTION",
        "                        what",
        "  network={yes,no}      which",
        "  --keep                whether",
    ]
    assert "[root=ROOT]" in parser.format_usage()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["network=perhaps"])
    assert ended.value.code == 2
    said = "tool: error: network: invalid choice: 'perhaps' (choose from 'yes', 'no') (see --help)\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("text", ["1_0", "１０", "٣", "", " 1", "1.0", "0x1", "1e3", "9" * 5000])
def test_whole_numbers_are_written_in_digits(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a whole number"):
        whole(text)
    for attempt in (
        lambda: fuzz.parse_options([text, "no"]),
        lambda: run.parse_arguments(["1", "a", "--ops", text]),
        lambda: testcase.main([text]),
    ):
        with pytest.raises(SystemExit):
            attempt()
        assert capsys.readouterr().err.endswith("is not a whole number (see --help)\n")


def test_a_workload_is_the_same_in_capitals() -> None:
    assert run.parse_arguments(["1", "A"]).wload == "a"
    assert run.parse_arguments(["1", "some/File"]).wload == "some/File"


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["testing.tree", "testing.fuzz --help", "bench.report p1"])
def test_a_stdout_that_takes_nothing_is_one_line(tool: str) -> None:
    command = [sys.executable, "-m", *f"madkv.{tool}".split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=ROOT, env=BUFFERED, stdout=full, stderr=subprocess.PIPE, text=True, timeout=SECONDS_MAX
        )
    assert done.returncode == 1
    assert done.stderr.startswith("madkv ") and done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_a_reader_that_is_gone_is_no_news() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "madkv.testing.tree"]
    done = subprocess.run(command, cwd=ROOT, env=BUFFERED, stdout=writer, stderr=subprocess.PIPE, timeout=SECONDS_MAX)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def interrupted(script: str, *arguments: str) -> tuple[int, str]:
    """Run a script that says `up` on stdout, interrupt it alone; its status, and what it said on stderr."""
    # A shell that runs the tests in the background has told them to ignore SIGINT, and their children would too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout
    while line := process.stdout.readline():
        if line == "up\n":
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=SECONDS_MAX)
    return process.returncode, said


def test_an_interrupted_report_is_one_line() -> None:
    script = """
from madkv.bench import report
from madkv.testing.ending import run_tool
def listing(*_):
    print("up", flush=True)
    while True:
        pass
report.listing = listing
run_tool("madkv report", lambda: report.main(["p1"]))
"""
    assert interrupted(script) == (130, "madkv report: interrupted\n")


def test_interrupted_simulations_end_at_once_with_their_processes() -> None:
    """There would be hours of work left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "madkv.testing.sim", "run", "100000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    tool = psutil.Process(process.pid)
    workers: list[psutil.Process] = []
    try:
        while not any(worker.cpu_times().user > 0.5 for worker in workers):  # they are at work
            assert process.poll() is None
            workers = tool.children(recursive=True)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS_MAX)
    finally:
        process.kill()
        for worker in workers:
            worker.kill() if worker.is_running() else None
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "madkv sim: interrupted" and "Traceback" not in err
    assert not any(worker.is_running() for worker in workers)


def test_simulations_that_nobody_listens_to_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Progress):
        def __init__(self) -> None:
            super().__init__()
            self.due_ns = 0

        def show(self, text: str) -> None:
            raise OSError("no space left on device")

    monkeypatch.setattr(simulations, "Progress", Full)
    began = time.monotonic()
    with pytest.raises(OSError, match="no space"):
        simulations.run(0, 1000)
    assert time.monotonic() - began < SECONDS_MAX
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        (("sim", "run", "0"), "at least one seed, not 0"),
        (("sim", "run", "-1"), "at least one seed, not -1"),
        (("chaos", "seconds=0"), "seconds must be more than 0, not 0"),
        (("chaos", "seconds=-1"), "seconds must be more than 0, not -1"),
        (("chaos", "seconds=nan"), "seconds must be more than 0, not nan"),
        (("chaos", "rounds=3", "x"), "unrecognized arguments: rounds=3 x"),
        (("chaos", "network=perhaps"), "network: invalid choice: 'perhaps' (choose from 'yes', 'no')"),
        (("killall", "rounds=0"), "rounds must be at least 1, not 0"),
        (("killall", "clients=1000000"), "clients must be 1 to 100, not 1000000"),
        (("killall", "partitions=0"), "partitions: 0 is none of 1 to 50"),
        (("rolling", "clients=0"), "clients must be 1 to 100, not 0"),
        (("rolling", "rf=4"), "rf: 4 is none of 1, 3, 5, 7 or 9"),
        (("catchup", "rf=4"), "rf: 4 is none of 1, 3, 5, 7 or 9"),
        (("catchup", "clients=101"), "clients must be 1 to 100, not 101"),
        (("leaderkills", "rf=4"), "rf: 4 is none of 1, 3, 5, 7 or 9"),
        (("flood", "rf=4"), "rf: 4 is none of 1, 3, 5, 7 or 9"),
        (("machine", "rf=4"), "rf: 4 is none of 1, 3, 5, 7 or 9"),
        (("operate", "up", "sheep=3"), "unrecognized arguments: sheep=3"),
        (("certificates", "p3", "days=0"), "days must be 1 to 3650, not 0"),
        (("bench.profile", "rf=2"), "rf: 2 is none of 1, 3, 5, 7 or 9"),
        (("bench.cpu", "runs=0"), "calls, runs and starts must be at least 1"),
    ],
)
def test_who_is_to_do_nothing_does_not_pass(tool: Sequence[str], why: str) -> None:
    module = tool[0] if "." in tool[0] else f"testing.{tool[0]}"
    command = [sys.executable, "-m", f"madkv.{module}", *tool[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"error: {why} (see --help)\n") and done.stderr.count("\n") == 1


STEP = """
import os
from pathlib import Path
try:
    Path(".coverage.{name}").write_text("")
    Path("{name}-pid").write_text(str(os.getpid()))
    {say}
    while True:  # no call that waits: a signal that comes right before it would be slept over
        pass
except KeyboardInterrupt:
    Path("{name}-ended").write_text("")
"""


def test_interrupted_checks_end_their_steps_and_leave_no_measurements(tmp_path: Path) -> None:
    """Stand-ins for the first step and for what runs beside it: a step finds modules in the checkout first."""
    (tmp_path / "twisted").mkdir()
    (tmp_path / "twisted" / "__init__.py").write_text("")
    os.mkfifo(tmp_path / "fifo")  # the step says it when both are up
    (tmp_path / "twisted" / "trial.py").write_text(STEP.format(name="trial", say='Path("fifo").write_text("up")'))
    (tmp_path / "ruff.py").write_text(STEP.format(name="ruff", say='print(Path("fifo").read_text(), flush=True)'))
    script = """
import sys
from pathlib import Path
from madkv.testing import check
from madkv.testing.ending import run_tool
check.checkout = lambda: Path(sys.argv[1])
run_tool("madkv test", lambda: check.main([]))
"""
    assert interrupted(script, str(tmp_path)) == (130, "madkv test: interrupted\n")
    assert (tmp_path / "ruff-ended").exists()
    for name in ("ruff", "trial"):
        assert not psutil.pid_exists(int((tmp_path / f"{name}-pid").read_text()))
    assert list(tmp_path.glob(".coverage*")) == []
