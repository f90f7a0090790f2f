"""Become one node of a cluster, as `./justw p2::service` and `./justw p3::service` do: find its command line, run it.

`madkv.testing.node p2 NODE MANAGER SERVERS BACKER_PREFIX` and
`madkv.testing.node p3 NODE MANAGERS MANAGER_P2PS SERVER_RF SERVERS SERVER_P2PS BACKER_PREFIX`; what follows is handed
on to twistd's plugin. Lists that do not fit together are one line on stderr and status 1.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from madkv.testing.ending import complain, run_tool
from madkv.testing.shape import Shape, ShapeError

WORDS = {"p2": 4, "p3": 7}


def twistd() -> list[str]:
    """The interpreter and twistd of this environment, by the paths under which `kill` finds them."""
    return [sys.executable, str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile="]


def command(project: str, words: Sequence[str]) -> list[str]:
    """The plugin and its options. Raises ShapeError."""
    name, *lists, prefix = words[: WORDS[project]]
    shape = Shape.project_2(*lists) if project == "p2" else Shape.project_3(*lists)
    node = shape.node(name)
    return [*shape.command(node, f"{prefix}.{node}"), *words[WORDS[project] :]]


def main(argv: Sequence[str] | None = None) -> int:
    """Become the node; returns only when that cannot be."""
    project, *words = sys.argv[1:] if argv is None else argv
    try:
        if project not in WORDS or len(words) < WORDS[project]:
            raise ShapeError("too few words: see `./justw p2` and `./justw p3`")
        whole = [*twistd(), *command(project, words)]
    except ShapeError as error:
        complain(f"madkv service: {error}")
    else:
        os.execv(whole[0], whole)
    return 1


if __name__ == "__main__":
    run_tool("madkv service", main)
