"""Become a node, as the recipes do that start one in the foreground: find its command line, run it.

`madkv.testing.node run NODE PLUGIN OPTIONS...` runs a plugin of twistd;
`madkv.testing.node p2 NODE MANAGER SERVERS BACKER_PREFIX` and
`madkv.testing.node p3 NODE MANAGERS MANAGER_P2PS SERVER_RF SERVERS SERVER_P2PS BACKER_PREFIX`; what follows is handed
on to twistd's plugin, but for `http=yes` (a free port, which the log names), `http=no` and `http=[ADDR:]PORT`, which
may stand right behind NODE too. Lists that do not fit together are one line on stderr and status 1.

With TLS, by `tls=yes` behind all else or by MADKV_TLS in the environment, a node gets its certificate from there.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from madkv.testing.certificates import DIRECTORY, VARIABLE, CertificatesError, options_of, there
from madkv.testing.checkout import ROOT
from madkv.testing.ending import complain, run_tool
from madkv.testing.shape import Shape, ShapeError

WORDS = {"p2": 4, "p3": 7}
MANAGERS = {"p2": "127.0.0.1:3666", "p3": "127.0.0.1:3666,127.0.0.1:3667,127.0.0.1:3668"}
"""As the recipes have them: whoever writes an option behind the node leaves them out."""


def twistd() -> list[str]:
    """The interpreter and twistd of this environment, by the paths under which `kill` finds them."""
    return [sys.executable, str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile="]


def command(project: str, words: Sequence[str]) -> list[str]:
    """The plugin and its options. Raises ShapeError and CertificatesError."""
    name, *lists, prefix = words[: WORDS[project]]
    options = [*words[WORDS[project] :]]
    if lists[0].startswith("http="):
        options.append(lists[0])
        lists[0] = MANAGERS[project]
    shape = Shape.project_2(*lists) if project == "p2" else Shape.project_3(*lists)
    node = shape.node(name)
    return [*shape.command(node, f"{prefix}.{node}"), *with_certificates(str(node), _for_twistd(options))]


def _for_twistd(options: Sequence[str]) -> list[str]:
    """With `http=` as the daemons take it."""
    given = []
    for option in options:
        name, assigned, value = option.partition("=")
        if name != "http" or not assigned:
            given.append(option)
        elif value != "no":
            given += ["--http", "0" if value == "yes" else value]
    return given


def with_certificates(node: str, options: Sequence[str]) -> list[str]:
    """The options of a node, with those of its certificates in the place of `tls=yes`, or where it is not said.

    Raises CertificatesError when there are none.
    """
    rest = [option for option in options if option not in ("tls=yes", "tls=no")]
    directory = os.environ.get(VARIABLE) or ("tls=yes" in options and ROOT / DIRECTORY)
    if not directory or "tls=no" in options or any(option.startswith("--tls-ca") for option in rest):
        return rest
    return [*options_of(there(Path(directory).absolute()), node), *rest]


def main(argv: Sequence[str] | None = None) -> int:
    """Become the node; returns only when that cannot be."""
    project, *words = sys.argv[1:] if argv is None else argv
    try:
        if project == "run" and len(words) > 1:
            node, plugin, *options = words
            return become([plugin, *with_certificates(node, _for_twistd(options))])
        if project not in WORDS or len(words) < WORDS[project]:
            raise ShapeError("too few words: see `./justw p2` and `./justw p3`")
        options = command(project, words)
    except (ShapeError, CertificatesError) as error:
        complain(f"madkv service: {error}")
        return 1
    return become(options)


def become(options: Sequence[str]) -> int:
    """Have twistd in the place of this process."""
    whole = [*twistd(), *options]
    os.execv(whole[0], whole)


if __name__ == "__main__":
    run_tool("madkv service", main)
