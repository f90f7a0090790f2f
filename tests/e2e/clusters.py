"""Command lines of a cluster's nodes with something changed, and how processes end that are refused."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from madkv.testing.cluster import Cluster
from madkv.testing.node import twistd
from tests.processes import ROOT

REFUSED_SECONDS_MAX = 60.0
"""A few seconds, of which most go by until the interpreter has started, on a machine that has other things to do."""


def command(cluster: Cluster, node: str, directory: Path, **changed: object) -> list[str]:
    """The command line of a node, with some options changed, or (None) left out."""
    words = cluster.shape.command(cluster.shape.node(node), str(directory))
    for name, value in changed.items():
        option = f"--{name.replace('_', '-')}"
        if option in words:
            at = words.index(option)
            words[at : at + 2] = [] if value is None else [option, str(value)]
        else:
            words += [option, str(value)]
    return [*twistd(), *words]


def refusal(words: list[str]) -> str:
    """Run a daemon that must end with status 1 and one line on stderr; what that line says after the program's name."""
    done = subprocess.run(
        words,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=REFUSED_SECONDS_MAX,
    )
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in done.stdout
    program, _, said = line.partition(": ")
    assert program in words, line
    return said


def client_refusal(*words: str) -> str:
    """Run a line client that must end with a status other than 0 and one line on stderr; what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "madkv.client", *words],
        cwd=ROOT,
        input="GET key\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=REFUSED_SECONDS_MAX,
    )
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("madkv: ")


@contextmanager
def out_of_the_way(cluster: Cluster, name: str) -> Iterator[None]:
    """End a node, so that others may be put where it was; start it again afterwards."""
    node = cluster.shape.node(name)
    assert cluster.terminate(node)
    try:
        yield
    finally:
        cluster.start(node)
        cluster.wait_until_caught_up(node)
