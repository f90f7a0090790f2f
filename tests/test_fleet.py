"""Many line clients at once: their replies whole, their ends noticed, nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from madkv.testing.fleet import Completion, Fleet

SECONDS_MAX = 20.0
ECHO = """
import os, sys
for line in sys.stdin.buffer:
    for part in line.rstrip(b"\\n").partition(b" ")[2].split(b"|"):
        os.write(1, part.replace(b"~", b"\\n"))
"""
"""Writes what follows the first word, `~` as an end of line, in as many writes as `|` cuts it into."""


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet([sys.executable, "-S", "-c", ECHO], 2) as two:
        yield two


def completed(fleet: Fleet, count: int = 1) -> list[Completion]:
    completions: list[Completion] = []
    for _ in range(100):
        if len(completions) >= count:
            break
        completions += fleet.wait(SECONDS_MAX)
    return completions


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"GET GET k v~", b"GET k v"),
        (b"GET GET k| v|~", b"GET k v"),
        (b"GET GET k v~more~", b"GET k v\nmore"),
        (b"SCAN SCAN a b BEGIN~SCAN END~", b"SCAN a b BEGIN\nSCAN END"),
        (b"SCAN SCAN a b BEGIN~|  a x~|SCAN END~", b"SCAN a b BEGIN\n  a x\nSCAN END"),
        (b"SCAN SCAN a b BEGIN~  a x~SCAN |END|~", b"SCAN a b BEGIN\n  a x\nSCAN END"),
        (b"SCAN SCAN a b BEGIN~SCAN END~more~", b"SCAN a b BEGIN\nSCAN END\nmore"),
        (b"SCAN ERROR~", b"ERROR"),
    ],
)
def test_replies_come_whole(fleet: Fleet, line: bytes, reply: bytes) -> None:
    fleet.send(1, line)
    (completion,) = completed(fleet)
    assert (completion.client, completion.reply) == (1, reply)
    assert completion.called_ns < completion.returned_ns


def test_each_client_has_a_call_of_its_own(fleet: Fleet) -> None:
    fleet.send(0, b"GET zero~")
    fleet.send(1, b"GET one~")
    replies = {completion.client: completion.reply for completion in completed(fleet, 2)}
    assert replies == {0: b"zero", 1: b"one"}


def test_a_client_that_ended_completes_without_a_reply(fleet: Fleet) -> None:
    fleet.send(0, b"GET |")
    fleet.clients[0].kill()
    (completion,) = completed(fleet)
    assert completion.reply is None
    assert fleet.stop() == [-signal.SIGKILL, 0]


def test_what_nobody_asked_for_is_kept() -> None:
    with Fleet([sys.executable, "-S", "-c", "import os; os.write(2, b'hello\\n'); os.write(1, b'hm\\n')"], 1) as fleet:
        while not fleet.clients[0].ended:
            assert fleet.wait(SECONDS_MAX) == []
        assert fleet.clients[0].stray == b"hm\n"
        assert fleet.clients[0].said == ["hello"]


def test_lines_on_stderr_are_whole_however_they_come() -> None:
    talks = "import os; os.write(2, b'hel'); os.read(0, 9); os.write(2, b'lo\\nyou\\n')"
    with Fleet([sys.executable, "-S", "-c", talks], 1) as fleet:
        (client,) = fleet.clients
        while not client.said:
            assert fleet.wait(SECONDS_MAX) == []
        assert client.said == ["hel"]
        os.write(client.stdin_fd, b"go on")
        while len(client.said) < 2:
            assert fleet.wait(SECONDS_MAX) == []
        assert client.said == ["hello", "you"]


def test_a_failure_ends_all() -> None:
    with pytest.raises(RuntimeError), Fleet([sys.executable, "-S", "-c", ECHO], 2) as fleet:
        raise RuntimeError
    for client in fleet.clients:
        with pytest.raises(ProcessLookupError):
            os.killpg(client.process.pid, 0)


def test_the_first_word_of_waiting_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else, once for all clients, with the recipe that would help."""
    talks = "import os; [os.write(2, line) for line in (b'hello\\n', b'madkv: waiting for h:1: no\\n') * 2]"
    with Fleet([sys.executable, "-S", "-c", talks, "p1::client"], 2) as fleet:
        while not all(len(client.said) == 4 for client in fleet.clients):
            assert fleet.wait(SECONDS_MAX) == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "madkv: waiting for h:1: no (`./justw p1::service` starts a service)\n"


# --- interrupts ------------------------------------------------------------------------------------------------------


def terminated(script: str, times: int) -> tuple[int, str, str]:
    """Run a script that says a line for each SIGTERM that it wants; its status, and what it said then."""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tool:
        assert tool.stdout
        for _ in range(times):
            assert tool.stdout.readline() == "ready\n"
            tool.send_signal(signal.SIGTERM)
        out, err = tool.communicate(timeout=SECONDS_MAX)
    return tool.returncode, out, err


def test_a_second_sigterm_does_not_break_the_ending_off() -> None:
    script = """
import time
from madkv.testing.ending import run_tool
from madkv.testing.fleet import interrupt_on_terminate

def main():
    interrupt_on_terminate()
    try:
        print("ready", flush=True)
        while True:
            pass
    finally:
        print("ready", flush=True)
        ends = time.monotonic() + 0.5
        while time.monotonic() < ends:
            pass
        print("ended", flush=True)

run_tool("madkv tool", main)
"""
    assert terminated(script, 2) == (130, "ended\n", "madkv tool: interrupted\n")


def test_an_interrupt_waits_for_what_must_not_be_cut_in_two() -> None:
    script = """
import time
from madkv.testing.ending import run_tool
from madkv.testing.fleet import hold_interrupts, interrupt_on_terminate

def main():
    interrupt_on_terminate()
    with hold_interrupts():
        print("ready", flush=True)
        ends = time.monotonic() + 0.5
        while time.monotonic() < ends:
            pass
        print("whole", flush=True)
    print("and more", flush=True)

run_tool("madkv tool", main)
"""
    assert terminated(script, 1) == (130, "whole\n", "madkv tool: interrupted\n")


# --- STOP ------------------------------------------------------------------------------------------------------------
STOPPING = "import os, sys; sys.stdin.readline(); "
"""How a client begins that is told STOP and nothing else."""


def dismissed(then: str, answer_seconds: float = SECONDS_MAX) -> dict[int, str]:
    """What is wrong with two clients that are told STOP and then do this."""
    with Fleet([sys.executable, "-S", "-c", STOPPING + then], 2) as fleet:
        return fleet.dismiss(answer_seconds)


def test_stop_is_answered_and_then_the_clients_end() -> None:
    assert dismissed("os.write(1, b'STOP\\n')") == {}


@pytest.mark.parametrize(
    ("then", "fault"),
    [
        ("os.write(1, b'WHAT\\n')", "answered STOP with WHAT"),
        ("os.write(1, b'STOP\\nmore\\n')", "answered STOP with STOP\\nmore"),
        ("", "answered STOP with nothing"),
        ("sys.exit('ouch')", "answered STOP with nothing; its last words: ouch"),
        ("os.write(1, b'STOP\\n'); sys.exit(4)", "exited with status 4 after STOP"),
        ("os.write(1, b'STOP\\n'); sys.exit('ouch')", "exited with status 1 after STOP; its last words: ouch"),
    ],
)
def test_what_is_wrong_with_a_client_that_is_told_to_stop(then: str, fault: str) -> None:
    assert dismissed(then) == {0: fault, 1: fault}


def test_a_client_that_does_not_answer_stop_is_ended() -> None:
    began = time.monotonic()
    assert dismissed("sys.stdin.read()", 0.2) == dict.fromkeys((0, 1), "did not answer STOP: 0.2 s were not enough")
    assert time.monotonic() - began < SECONDS_MAX


def test_a_client_that_ended_before_stop_is_not_waited_for() -> None:
    with Fleet([sys.executable, "-S", "-c", "print('hm')"], 1) as fleet:
        while not fleet.clients[0].ended:
            fleet.wait(SECONDS_MAX)
        began = time.monotonic()
        assert fleet.dismiss(SECONDS_MAX) == {0: "did not answer STOP: it had ended before"}
        assert time.monotonic() - began < SECONDS_MAX


def test_what_nobody_asked_for_is_a_fault() -> None:
    talks = "import os; os.write(1, b'hm\\n'); os.read(0, 9); os.write(1, b'STOP\\n')"
    with Fleet([sys.executable, "-S", "-c", talks], 1) as fleet:
        while not fleet.clients[0].stray:
            assert fleet.wait(SECONDS_MAX) == []
        assert fleet.dismiss() == {0: "wrote unasked: hm\\n"}
