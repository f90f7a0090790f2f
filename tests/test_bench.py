"""The benchmark as a process: what it prints, what it refuses to measure, and what it leaves behind."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import psutil
import pytest

from madkv.bench import run
from madkv.bench.histogram import Latencies
from madkv.bench.official import OfficialWorkload
from madkv.bench.results import HEADING, Latency, Phase, format_results, parse_results
from madkv.bench.workload import DEFAULTS, CoreWorkload, WorkloadError
from madkv.testing.fleet import Completion
from tests import standin
from tests.benches import EXAMPLE, STANDIN

BENCH = [sys.executable, "-m", "madkv.bench.run"]


@pytest.fixture
def address() -> Iterator[str]:
    """A stand-in service with an empty store."""
    store = type("Fresh", (standin.Store,), {"data": {}})
    with standin.Server(("127.0.0.1", 0), store) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def bench(address: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*BENCH, *words, "--just", STANDIN, "--address", address]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )


# --- the results as text ----------------------------------------------------------------------------------------------


def test_results_look_as_report_scripts_expect() -> None:
    read, update = Latency(5012, 812.34, 201, 9876, 3210), Latency(4988, 901.22, 301, 12345, 4567)
    phases = {
        "Load": Phase(2345, 1234.56, {"INSERT": attrs.evolve(read, count=2895)}),
        "Run": Phase(1234, 10012.0, {"READ": read, "UPDATE": update}),
    }
    assert format_results(phases) == EXAMPLE
    assert parse_results(f"# a remark\n{EXAMPLE}\n") == phases


@pytest.mark.parametrize("lines", range(len(EXAMPLE.splitlines()) - 1))
def test_half_results_do_not_count(lines: int) -> None:
    if lines < 7:
        assert parse_results("\n".join(EXAMPLE.splitlines()[:lines])) is None


def test_figures_come_from_all_calls_of_a_phase() -> None:
    kinds = {"READ": Latencies(), "UPDATE": Latencies(), "SCAN": Latencies()}
    for microseconds in (100, 200, 600):
        kinds["READ"].record(microseconds * 1000)
    kinds["UPDATE"].record(1_100_000)
    phase = Phase.of(500_000_000, kinds)
    assert (phase.milliseconds, phase.throughput, phase.calls) == (500, 8.0, 4)
    assert list(phase.latencies) == ["READ", "UPDATE"]
    assert phase.latencies["READ"] == Latency(3, 300.0, 100, 600, 600)
    assert phase.mean_us == 500.0


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workload", "kinds"),
    [("a", {"READ", "UPDATE"}), ("d", {"INSERT", "READ"}), ("e", {"INSERT", "SCAN"}), ("f", {"READ", "UPDATE"})],
)
def test_a_run_counts_every_call(address: str, tmp_path: Path, workload: str, kinds: set[str]) -> None:
    log = tmp_path / "deep" / "bench.log"
    done = bench(address, "3", workload, "ops=100", "records=200", "--log", str(log))
    assert (done.returncode, log.read_text()) == (0, done.stdout)
    phases = parse_results(done.stdout)
    assert phases is not None, done.stderr
    assert {kind: each.count for kind, each in phases["Load"].latencies.items()} == {"INSERT": 200}
    latencies = phases["Run"].latencies
    assert set(latencies) == kinds
    calls = phases["Run"].calls
    assert calls == (300 if workload != "f" else 300 + latencies["UPDATE"].count)
    assert phases["Run"].throughput * phases["Run"].milliseconds / 1000 == pytest.approx(calls, rel=0.05)
    for each in latencies.values():
        assert 0 < each.min_us <= each.mean_us <= each.max_us
        assert each.min_us <= each.p99_us <= each.max_us
    assert re.search(r"^# driver: [\d.]+ us of CPU a call", done.stdout, re.MULTILINE)


def test_a_store_that_holds_data_already_will_do(address: str) -> None:
    for seed in ("1", "2"):
        done = bench(address, "2", "e", "ops=50", f"records={300 // int(seed)}", f"seed={seed}")
        assert (done.returncode, HEADING in done.stdout) == (0, True), done.stderr


def test_properties_can_be_set(address: str) -> None:
    words = ["-p", "readproportion=0", "-p", "updateproportion=1", "-p", "operationcount=30", "records=10"]
    done = bench(address, "1", "a", *words)
    phases = parse_results(done.stdout)
    assert phases is not None, done.stderr
    assert {kind: each.count for kind, each in phases["Run"].latencies.items()} == {"UPDATE": 30}


def test_a_run_can_be_limited_in_time(address: str) -> None:
    done = bench(address, "2", "c", "ops=100000000", "records=10", "seconds=0.2")
    phases = parse_results(done.stdout)
    assert phases is not None, done.stderr
    assert 200 <= phases["Run"].milliseconds < 2000


@pytest.mark.parametrize(
    ("standin_is", "workload", "message"),
    [
        ("null:20", "a", "gave a wrong answer: the key was stored before, but the answer is null"),
        ("echo:5", "a", "gave a wrong answer: it does not repeat the call"),
        ("skip", "e", "records known to be stored are missing"),
        ("die:30", "a", "client 0 ended (with status 3) in the middle of a call; last on stderr:\n"),
        ("die", "a", "standin: that is all"),
        ("hang:30", "a", "no client has answered for 0 s; last on stderr:\n  client 0: standin: no answer"),
        ("status", "a", "client 0 exited with status 4 after STOP"),
    ],
)
def test_wrong_clients_are_not_measured(
    address: str, tmp_path: Path, standin_is: str, workload: str, message: str
) -> None:
    log = tmp_path / "bench.log"
    log.write_text("an older result")
    words = ["1", workload, "ops=50", "records=20", "--log", str(log)]
    if standin_is.startswith("hang"):
        words.append("stall=0.3")
    done = bench(address, *words, STANDIN=standin_is)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert not log.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1", "g"], "no workload 'g'"),
        (["1", "a", "-p", "recordkount=3"], "not a property: 'recordkount=3'"),
        (["1", "a", "records=-1"], "recordcount is -1"),
        (["1", "/etc/passwd"], "/etc/passwd is no YCSB property file"),
        (["1", sys.executable], "madkv bench: "),
        (["0", "a"], "the number of clients must be 1 to 100"),
        (["101", "a"], "the number of clients must be 1 to 100"),
        (["1", "a", "seconds=-1"], "a time is negative"),
        (["1", "a", "ycsb=yes", "--ycsb-home", "/nowhere"], "the official YCSB is not at /nowhere"),
    ],
)
def test_bad_arguments_are_one_clear_line(words: list[str], message: str) -> None:
    done = bench("127.0.0.1:1", *words)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]


def test_a_program_that_is_not_there_is_one_line() -> None:
    done = subprocess.run([*BENCH, "1", "a", "--just", "/nonexistent"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:] == ["madkv bench: [Errno 2] No such file or directory: '/nonexistent'"]


def test_a_log_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = bench("127.0.0.1:1", "1", "a", "--log", str(tmp_path / "file" / "bench.log"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("madkv bench: ")


def test_too_few_files_for_so_many_clients_is_one_line(address: str) -> None:
    command = [*BENCH, "50", "a", "--just", STANDIN, "--address", address]
    limited = ["/bin/sh", "-c", 'ulimit -n 40 && exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:] == ["madkv bench: [Errno 24] Too many open files"]


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_neither_clients_nor_a_log(
    address: str, tmp_path: Path, with_signal: signal.Signals
) -> None:
    log = tmp_path / "bench.log"
    command = [*BENCH, "3", "c", "ops=100000000", "records=10", "--just", STANDIN, "--address", address]
    # A shell that runs the tests in the background has told them to ignore SIGINT, and their children would too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*command, "--log", str(log)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stderr
    assert process.stderr.readline().startswith("starting 3 clients")
    clients = children_of(process, 3)
    process.send_signal(with_signal)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, log.exists()) == (130, "", False)
    assert err.endswith("interrupted\n")
    assert psutil.wait_procs(clients, timeout=5)[1] == []


def children_of(process: "subprocess.Popen[str]", count: int) -> list[psutil.Process]:
    """The clients of a run, once all of them are there."""
    watched = psutil.Process(process.pid)
    while len(clients := watched.children()) < count:
        assert process.poll() is None
    return clients


class Scripted:
    """A fleet of two whose `wait` does what a list says: the client whose answer or end is seen, and which of these."""

    def __init__(self, *steps: tuple[int, str]) -> None:
        self.clients = [SimpleNamespace(number=number, pending=False, ended=False, said=["bye"]) for number in (0, 1)]
        for client in self.clients:
            client.process = SimpleNamespace(wait=lambda timeout: 7)
        self._steps = iter(steps)

    def send(self, number: int, line: bytes) -> None:
        self.clients[number].pending = True

    def wait(self, timeout_seconds: float) -> list[Completion]:
        number, what = next(self._steps, (0, "nothing"))
        if what == "answers":
            self.clients[number].pending = False
            return [Completion(number, 0, 1, run.READY.line + b" null")]
        if what == "ends":
            self.clients[number].ended = True
        return []


def test_a_client_whose_end_is_seen_before_its_next_call_is_missed() -> None:
    fleet: Any = Scripted((0, "answers"), (1, "ends"))
    with pytest.raises(run.BenchError, match=r"client 1 ended \(with status 7\) in the middle of a call"):
        run.Bench(fleet, CoreWorkload(DEFAULTS)).ready()


def test_words_and_properties_are_told_apart() -> None:
    arguments = run.parse_arguments(["3", "a", "ops=5", "-p", "table=t", "--records", "7"])
    assert run.overrides(arguments) == {"table": "t", "operationcount": "5", "recordcount": "7"}


# --- the official program ------------------------------------------------------------------------------------------

OFFICIAL = r"""#!/bin/sh
# Prints what YCSB 0.17's basic binding prints.
echo "Command line: $*"
case $1 in
load)
    echo 'INSERT usertable user1 [ field0=a b"c field1=d ]'
    echo 'INSERT usertable user3 [ field0=x ]'
    echo 'INSERT usertable user2 [ field0=y ]' ;;
run)
    echo 'READ usertable user1 [ <all fields>]'
    echo 'UPDATE usertable user2 [ field1=new  value ]'
    echo 'SCAN usertable user1 2 [ <all fields>]'
    echo 'INSERT usertable user4 [ field0=z ]'
    [ -n "$STANDIN_BREAKS" ] && { echo 'out of memory' >&2; exit 9; } ;;
esac
echo '[OVERALL], RunTime(ms), 5'
"""


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as the official release has it, with a program that prints a few operations."""
    program = tmp_path / "ycsb" / "bin" / "ycsb.sh"
    program.parent.mkdir(parents=True)
    program.write_text(OFFICIAL)
    program.chmod(0o755)
    java = tmp_path / "path" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
    return program.parent.parent


def test_the_official_program_becomes_calls(official: Path) -> None:
    source = OfficialWorkload(official, "", {}, 2)
    loaded = list(source.load())
    for call in loaded:
        source.acknowledged(call)
    assert [call.line for call in loaded] == [
        b'PUT usertable_user1 [field0=ab"cfield1=d]',
        b"PUT usertable_user3 [field0=x]",
        b"PUT usertable_user2 [field0=y]",
    ]
    streams = [source.calls(0), source.calls(1)]
    assert streams[0] is streams[1]
    ran = list(streams[0])
    assert [(call.kind, call.line, call.stored) for call in ran] == [
        ("READ", b"GET usertable_user1", True),
        ("UPDATE", b"SWAP usertable_user2 [field1=newvalue]", True),
        ("SCAN", b"SCAN usertable_user1 usertable_user2", True),
        ("INSERT", b"PUT usertable_user4 [field0=z]", False),
    ]


def test_a_run_with_the_official_program(address: str, official: Path) -> None:
    words = ["2", "e", "ycsb=yes", "--ycsb-home", str(official), "records=3", "ops=2"]
    done = bench(address, *words)
    phases = parse_results(done.stdout)
    assert phases is not None, done.stderr
    assert {kind: each.count for kind, each in phases["Run"].latencies.items()} == {
        "INSERT": 1,
        "READ": 1,
        "UPDATE": 1,
        "SCAN": 1,
    }
    broken = bench(address, *words, STANDIN_BREAKS="yes")
    assert broken.returncode == 1
    assert "ended with status 9; it said:\nout of memory" in broken.stderr


def test_the_official_program_needs_java(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(official))
    with pytest.raises(WorkloadError, match="needs `java`"):
        OfficialWorkload(official, "", {}, 1)
