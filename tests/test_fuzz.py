"""The fuzzer with real clients and a real server: it passes what is right, and lets no lie through."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from madkv.client.blocking import BlockingClient
from madkv.testing.calls import ALPHANUMERIC, Plan
from madkv.testing.fuzz import parse_options
from madkv.testing.history import read_history
from madkv.testing.lines import Call, MalformedReply, line, parse
from tests.processes import ROOT, Process, ServerProcess
from tests.wrong_clients import just_script

PASSED = "Fuzz testing result: PASSED"
FAILED = "Fuzz testing result: FAILED"
SECONDS_MAX = 60


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "madkv.testing.fuzz", *arguments]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server of our own: a Scan between our keys would answer with megabytes that other tests have stored."""
    with ServerProcess() as process:
        yield process


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX)


def with_lie(server: ServerProcess, directory: Path, lie: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return fuzz("3", "yes", "--address", server.address, "--just", just_script(directory, lie), "seed=1", *arguments)


@pytest.mark.parametrize(("clients", "conflict", "keys"), [("1", "no", 12), ("3", "no", 36), ("3", "yes", 48)])
def test_a_right_service_passes(server: ServerProcess, tmp_path: Path, clients: str, conflict: str, keys: int) -> None:
    log = tmp_path / "logs" / "fuzz.log"
    just = just_script(tmp_path, "nothing")
    done = fuzz(clients, conflict, "--address", server.address, "--just", just, "--log", str(log), "ops=200")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1] == PASSED
    assert log.read_text() == done.stdout
    about, history = read_history(log.with_suffix(".history.jsonl"))
    assert len(history) == int(clients) * 201 + keys  # one each to see whether they are there; each key at the end
    read_back = history[-keys:]
    assert {each.kind for each in read_back} == {"GET"} and len({each.key for each in read_back}) == keys
    assert about["conflict"] == conflict
    by_client = {key: {each.client for each in history if each.key == key} for key in {each.key for each in history}}
    assert any(len(clients) > 1 for clients in by_client.values()) == (conflict == "yes")


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ("stale", "the key holds"),
        ("lost", "the key"),
        ("own", "the key"),
        ("forgets", "the key holds"),
        ("found", "found)"),
        ("skips", "holds nothing)"),
        ("repeats", "repeated"),
    ],
)
def test_a_wrong_client_fails(server: ServerProcess, tmp_path: Path, lie: str, words: str) -> None:
    done = with_lie(server, tmp_path, lie, "ops=150")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == FAILED
    assert words in done.stdout
    assert "Failed:" not in done.stdout  # it was the checker that found out


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ("dies", "exited with status 1 before it answered"),
        ("dies", "its last words: the session of this client is too old"),
        ("mumbles", "was answered ERROR"),
        ("confuses", " other "),
        ("chatters", "anything else?"),
        ("babbles", "was answered with the line Traceback (most recent call last):"),
        ("fails", "exited with status 4 after STOP"),
        ("hangs", "gave no answer to"),
    ],
)
def test_a_client_that_does_not_answer_fails(server: ServerProcess, tmp_path: Path, lie: str, words: str) -> None:
    # The time for an answer counts from the start of a client: it must not be short on a busy machine.
    done = with_lie(server, tmp_path, lie, "ops=60", f"call-seconds={2 if lie == 'hangs' else 30}")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == FAILED
    assert words in done.stdout


def test_a_check_without_time_is_no_pass(server: ServerProcess, tmp_path: Path) -> None:
    done = with_lie(server, tmp_path, "nothing", "ops=50", "check-seconds=0")
    assert done.returncode == 1
    assert "Not decided" in done.stdout
    assert done.stdout.splitlines()[-1] == FAILED


def test_a_history_can_be_checked_again(server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = with_lie(server, tmp_path, "nothing", "ops=100", f"history={path}")
    assert first.stdout.splitlines()[-1] == PASSED
    again = fuzz("--check-only", f"history={path}")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, PASSED)
    records = [json.loads(text) for text in path.read_text().splitlines()]
    wrong = next(record for record in records if record.get("kind") == "PUT")
    wrong["result"] = not wrong["result"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    changed = fuzz("--check-only", f"history={path}")
    assert (changed.returncode, changed.stdout.splitlines()[-1]) == (1, FAILED)
    path.write_text("{}")
    strange = fuzz("--check-only", f"history={path}")
    assert (strange.returncode, strange.stdout.splitlines()[-1]) == (1, FAILED)
    assert strange.stdout.startswith(f"Failed: {path}: not a history")
    missing = fuzz("--check-only", f"history={tmp_path / 'none'}")
    assert (missing.returncode, missing.stdout.splitlines()[-1]) == (1, FAILED)


@pytest.mark.parametrize("recipe", ["p2::fuzz", "p3::fuzz"])
@pytest.mark.parametrize("words", [["--help"], ["1", "--help"], ["ops=500"]])
def test_an_option_where_a_word_names_the_log_is_an_option(recipe: str, words: list[str]) -> None:
    """Otherwise `just p3::fuzz --help` would run the fuzzer, into a log of that name."""
    just = shutil.which("just", path=Path(sys.executable).parent)
    assert just is not None
    shown = subprocess.run([just, "-n", recipe, *words], cwd=ROOT, capture_output=True, text=True, check=True).stderr
    script = re.sub(r"exec \S+", "printf '%s\\n'", shown)
    command = subprocess.run(
        ["sh", "-c", script, "recipe", *words, *[""] * (3 - len(words))], capture_output=True, text=True, check=True
    )
    assert command.stdout.splitlines()[-1] == words[-1]


def test_without_a_just_program_it_fails(tmp_path: Path) -> None:
    done = fuzz("1", "no", "--just", str(tmp_path / "none"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, FAILED)
    assert "No such file" in done.stdout


@pytest.mark.parametrize("option", ["--log", "--history"])
def test_a_log_that_cannot_be_made_is_one_line(server: ServerProcess, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    done = with_lie(server, tmp_path, "nothing", "ops=1", option, str(tmp_path / "file" / "log"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    if option == "--log":  # before there is anything to say
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
        assert done.stderr.startswith("madkv fuzz: ")
    else:
        assert done.stdout.splitlines()[-1] == FAILED


@pytest.fixture
def announcements(tmp_path: Path) -> Iterator[int]:
    """The pipe to which clients write when they have answered once."""
    os.mkfifo(tmp_path / "announcements")
    pipe = os.open(tmp_path / "announcements", os.O_RDWR)
    yield pipe
    os.close(pipe)


def wait_for_bytes(pipe: int, count: int) -> None:
    received = b""
    while len(received) < count:
        ready, _, _ = select.select([pipe], [], [], SECONDS_MAX)
        assert ready, f"{len(received)} of {count} clients have answered"
        received += os.read(pipe, count)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_clients(server: ServerProcess, tmp_path: Path, number: int, announcements: int) -> None:
    just = just_script(tmp_path, "announces")
    environment = {**os.environ, "MADKV_ANNOUNCE": str(tmp_path / "announcements")}
    arguments = ("3", "yes", "--address", server.address, "--just", just, "ops=1000000")
    bystander = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        with Process(command(*arguments), environment) as process:
            wait_for_bytes(announcements, 3)
            clients = psutil.Process(process.pid).children(recursive=True)
            assert len(clients) == 6, "three clients, each around a real one"
            process.signal(number)
            assert process.wait() == 130
            assert process.lines["stdout"][-1].startswith("Interrupted: ")
            _, alive = psutil.wait_procs(clients, timeout=5)
            assert not alive
            assert "Traceback" not in process.output
        assert bystander.poll() is None
    finally:
        bystander.communicate()
    assert server.is_running


@pytest.mark.parametrize(
    "arguments",
    [(), ("3",), ("0", "no"), ("101", "no"), ("3", "maybe"), ("3", "no", "ops=0"), ("3", "no", "run=x"), ("x", "no")],
)
def test_arguments_that_make_no_sense(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        parse_options(arguments)
    assert exited.value.code == 2
    assert capsys.readouterr().err.startswith("fuzz: error: ")


def test_a_used_store_passes_and_so_does_one_with_strangers(server: ServerProcess, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        done = with_lie(server, tmp_path, "nothing", "ops=100", "keys=8")
        assert done.returncode == 0, done.stdout
        seen.append(next(text for text in done.stdout.splitlines() if text.startswith("Keys: ")))
    assert seen[0] != seen[1]


# --- The plan --------------------------------------------------------------------------------------------------------
def test_a_seed_makes_the_same_calls_again() -> None:
    def calls(seed: int, run: str) -> list[list[Call]]:
        plan = Plan(3, True, 300, seed, run, None)
        return [list(plan.calls(client)) for client in range(3)]

    one = calls(1, "0" * 12)
    assert calls(1, "0" * 12) == one
    assert calls(2, "0" * 12) != one
    other_run = calls(1, "9" * 12)
    assert other_run != one
    assert [[call.kind for call in each] for each in other_run] == [[call.kind for call in each] for each in one]


def test_values_are_never_the_same_twice() -> None:
    plan = Plan(5, True, 2000, 3, "0" * 12, None)
    values = [call.value for client in range(5) for call in plan.calls(client) if call.kind in ("PUT", "SWAP")]
    assert len(values) == len(set(values))
    assert max(len(value or b"") for value in values) > 65_535


@pytest.mark.parametrize("conflict", [False, True])
def test_keys_are_spread_over_the_keyspace(conflict: bool) -> None:
    run = "123456789012"
    plan = Plan(10, conflict, 1, 4, run, None)
    assert all(run.encode() in key for key in plan.keys)
    own = [key[:1].decode() for key in plan.keys if not key.startswith(b"usertable_user")]
    assert len(own) * 3 == len(plan.keys) * 2 or abs(len(own) / len(plan.keys) - 2 / 3) < 0.05
    for third in range(3):
        part = ALPHANUMERIC[third * 62 // 3 : (third + 1) * 62 // 3]
        assert len(own) / 4 <= sum(first in part for first in own) <= len(own) / 2
    assert len({key[:15] for key in plan.keys if key.startswith(b"usertable_user")}) >= 4


def test_scans_meet_few_keys_but_ours() -> None:
    plan = Plan(10, True, 1000, 5, "123456789012", None)
    scans = [call for client in range(10) for call in plan.calls(client) if call.kind == "SCAN"]
    assert not any(scan.key <= b"usertable_user0" and (scan.value or b"") >= b"usertable_user9~" for scan in scans)
    leaving = [scan for scan in scans if scan.value and scan.key[:-1] != scan.value[: len(scan.key) - 1]]
    across = [scan for scan in leaving if scan.value and scan.key[:1] != scan.value[:1] and scan.key < scan.value]
    assert 0 < len(across) < len(scans) / 10
    assert any(scan.value and scan.key > scan.value for scan in scans)


def test_without_conflict_nobody_calls_for_the_keys_of_others() -> None:
    plan = Plan(4, False, 500, 6, "123456789012", None)
    prefixes = [{call.key[:17] for call in plan.calls(client)} for client in range(4)]
    for number, one in enumerate(prefixes):
        assert not any(one & other for other in prefixes[number + 1 :])


# --- Replies ---------------------------------------------------------------------------------------------------------
def test_replies_that_answer() -> None:
    for call, reply, result in (
        (Call("PUT", b"k", b"v"), b"PUT k found", True),
        (Call("PUT", b"k", b"v"), b"PUT k not_found", False),
        (Call("DELETE", b"k"), b"DELETE k found", True),
        (Call("SWAP", b"k", b"v"), b"SWAP k old", b"old"),
        (Call("GET", b"k"), b"GET k null", None),
        (Call("SCAN", b"a", b"b"), b"SCAN a b BEGIN\nSCAN END", ()),
        (Call("SCAN", b"a", b"b"), b"SCAN a b BEGIN\n  a x\n  b y\nSCAN END", ((b"a", b"x"), (b"b", b"y"))),
    ):
        assert parse(call, reply) == result
    assert line(Call("SCAN", b"a", b"b")) == b"SCAN a b"


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        (Call("PUT", b"k", b"v"), b"PUT k null"),
        (Call("PUT", b"k", b"v"), b"PUT j found"),
        (Call("PUT", b"k", b"v"), b"SWAP k found"),
        (Call("PUT", b"k", b"v"), b"put k found"),
        (Call("GET", b"k"), b"GET k"),
        (Call("GET", b"k"), b"GET k "),
        (Call("GET", b"k"), b"GET k  v"),
        (Call("GET", b"k"), b"GET k v w"),
        (Call("GET", b"k"), b"GET k v\nGET k v"),
        (Call("GET", b"k"), b"GET k v\r"),
        (Call("DELETE", b"k"), b""),
        (Call("SCAN", b"a", b"b"), b"SCAN a b BEGIN"),
        (Call("SCAN", b"a", b"b"), b"SCAN a c BEGIN\nSCAN END"),
        (Call("SCAN", b"a", b"b"), b"SCAN a b BEGIN\n a x\nSCAN END"),
        (Call("SCAN", b"a", b"b"), b"SCAN a b BEGIN\n  a  x\nSCAN END"),
        (Call("SCAN", b"a", b"b"), b"SCAN a b BEGIN\n  a\nSCAN END"),
        (Call("SCAN", b"a", b"b"), b"SCAN a b BEGIN\n\nSCAN END"),
    ],
)
def test_replies_that_do_not_answer(call: Call, reply: bytes) -> None:
    with pytest.raises(MalformedReply):
        parse(call, reply)


def test_a_store_that_others_filled_with_any_bytes_passes(tmp_path: Path) -> None:
    """The line interface prints foreign values as they are, so a Scan may show lines that are no pairs of ours."""
    with ServerProcess() as server:
        with BlockingClient(server.address) as store:
            for first in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
                store.put(first.encode(), b"two\nlines, and words")
                store.put(b"%b with spaces" % first.encode(), b"")
        done = fuzz("3", "yes", "--address", server.address, "--just", just_script(tmp_path, "nothing"), "ops=100")
        assert done.returncode == 0, done.stdout


def test_a_broken_pair_of_our_own_is_malformed() -> None:
    """With our mark in it, a line must be a pair."""
    scan = Call("SCAN", b"a", b"z")
    assert parse(scan, b"SCAN a z BEGIN\n  b two words\nline\n  c7 v\nSCAN END", b"7") == ((b"c7", b"v"),)
    with pytest.raises(MalformedReply):
        parse(scan, b"SCAN a z BEGIN\n  c7 v w\nSCAN END", b"7")


@pytest.mark.parametrize("row", [b"Traceback (most recent call last):", b"key value", b"  a b c d e", b""])
def test_where_nobody_else_can_have_keys_every_line_is_a_pair(row: bytes) -> None:
    """Between ends that begin alike, mark included, every key holds the mark."""
    with pytest.raises(MalformedReply):
        parse(Call("SCAN", b"c70", b"c79"), b"SCAN c70 c79 BEGIN\n%b\nSCAN END" % row, b"7")
    for scan in (Call("SCAN", b"c7", b"d7"), Call("SCAN", b"c", b"c7"), Call("SCAN", b"c7", b"c")):
        head = b"SCAN %b %b BEGIN\n" % (scan.key, scan.value or b"")
        assert parse(scan, head + row + b"\nSCAN END", b"7") == ()
