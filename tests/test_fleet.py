"""Many line clients at once: their replies whole, their ends noticed, nobody left behind."""

import os
import sys
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


def test_a_client_that_ended_completes_without_a_reply_and_can_be_replaced(fleet: Fleet) -> None:
    fleet.send(0, b"GET |")
    fleet.clients[0].kill()
    (completion,) = completed(fleet)
    assert completion.reply is None
    fleet.restart(0)
    fleet.send(0, b"GET again~")
    assert completed(fleet)[0].reply == b"again"
    assert fleet.stop() == [0, 0]


def test_what_nobody_asked_for_is_kept() -> None:
    with Fleet([sys.executable, "-S", "-c", "import os; os.write(2, b'hello\\n'); os.write(1, b'hm\\n')"], 1) as fleet:
        while not fleet.clients[0].ended:
            assert fleet.wait(SECONDS_MAX) == []
        assert fleet.clients[0].stray == b"hm\n"
        assert fleet.clients[0].said[-1] == "hello"


def test_a_failure_ends_all() -> None:
    with pytest.raises(RuntimeError), Fleet([sys.executable, "-S", "-c", ECHO], 2) as fleet:
        raise RuntimeError
    for client in fleet.clients:
        with pytest.raises(ProcessLookupError):
            os.killpg(client.process.pid, 0)
