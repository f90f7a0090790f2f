"""A scene: calls that must be answered, and calls that must not be."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from madkv.testing.cases import get, put
from madkv.testing.fleet import Fleet
from madkv.testing.scene import Scene, SceneBroken
from madkv.testing.transcript import Transcript

CLIENT = """
import os, sys, time
for line in sys.stdin:
    words = line.split()
    if words[:2] == ["GET", "slow"]:
        with open(sys.argv[1]):  # a fifo: this waits for whoever writes to it
            print("GET slow at-last", flush=True)
    elif words[:2] == ["GET", "end"]:
        sys.exit(3)
    elif words[0] == "STOP":
        print("STOP", flush=True)
        break
    else:
        print(words[0], words[1], {"GET": "null", "PUT": "found"}[words[0]], flush=True)
"""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Where clients wait that were asked for `slow`."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def scene(fifo: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Scene]:
    """Two clients."""
    with Fleet([sys.executable, "-c", CLIENT, str(fifo)], 2) as fleet, Transcript(None) as out:
        yield Scene(fleet, out)
        fleet.stop(grace_seconds=0)


def test_a_call_in_vain_is_answered_later_and_others_meanwhile(
    scene: Scene, fifo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.ask_in_vain({"A": get(b"slow")}, 0.2)
    scene.ask("B", put(b"k", b"v"), True)
    fifo.write_text("")
    scene.ask("B", get(b"k"), None)
    assert scene.answer("A", b"at-last") == b"at-last"
    scene.enter("C")
    scene.ask("C", get(b"k"), None)
    assert scene.failures == []
    assert "A: GET slow -> no answer within 0.2 s; A goes on waiting" in capsys.readouterr().out
    scene.end()
    assert scene.failures == []


def test_an_answer_to_a_call_in_vain_is_wrong(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.ask("A", get(b"k"), None)  # it has started: what follows it answers at once
    scene.ask_in_vain({"A": get(b"k"), "B": get(b"slow")}, 0.5)
    assert scene.failures == ["A: GET k"]
    assert "A: GET k -> WRONG: an answer, where none can be known" in capsys.readouterr().out


def test_a_late_answer_that_is_wrong_is_told(scene: Scene, fifo: Path) -> None:
    scene.ask_in_vain({"A": get(b"slow")}, 0.1)
    fifo.write_text("")
    scene.answer("A", b"something-else")
    assert scene.failures == ["A: GET slow"]


def test_a_client_that_ends_breaks_the_scene(scene: Scene) -> None:
    with pytest.raises(SceneBroken, match="client A ended without an answer"):
        scene.ask_in_vain({"A": get(b"end")}, 5.0)
