"""How the tools behind the recipes read their words: `ops=500` means `--ops 500`."""

import argparse
import random
import re
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

from madkv.testing.fleet import CLIENTS_MAX
from madkv.testing.shape import Shape, ShapeError

_ASSIGNMENT = re.compile(r"([a-z][a-z0-9-]*)=(.*)", re.DOTALL)
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_SHOWN = re.compile(r"--([a-z][a-z0-9-]*) ([A-Z_]+|{[^}]*})(   *|$)?", re.MULTILINE)
_BLAMED = re.compile(r"^argument (?:--)?([a-z][a-z0-9-]*): ")
_GIVEN = re.compile(r"--([a-z][a-z0-9-]*)=")


class Parser(argparse.ArgumentParser):
    """Takes and shows options as recipes take them: `root=ROOT`; `--root ROOT` is understood as well."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """What `parse_args` calls, too."""
        return super().parse_known_args(words(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and end with status 2."""
        message = _GIVEN.sub(r"\1=", _BLAMED.sub(r"\1: ", message))
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def format_usage(self) -> str:
        """The usage in a line or two."""
        return _SHOWN.sub(_as_recipes, super().format_usage())

    def format_help(self) -> str:
        """All that `--help` prints."""
        return _SHOWN.sub(_as_recipes, super().format_help())


def _as_recipes(shown: re.Match[str]) -> str:
    """What stands in a column of its own behind it stays there."""
    name, value, gap = shown.groups(default="")
    return f"{name}={value}{gap and gap + '  '}"


def words(argv: Sequence[str]) -> list[str]:
    """Rewrite each `name=value` to `--name=value`, so that recipes can take options the way `just` users write them.

    A recipe hands the word where its address may stand on behind `--address`. If that word is an option, whoever wrote
    it left the address out.
    """
    rewritten = []
    for word, following in zip_longest(argv, argv[1:], fillvalue=""):
        if word == "--address" and (following.startswith("-") or "=" in following):
            continue
        match = _ASSIGNMENT.fullmatch(word)
        rewritten.append(f"--{match[1]}={match[2]}" if match else word)
    return rewritten


def whole(text: str) -> int:
    """A whole number as people write it; Python itself would read `1_0` and the digits of any script."""
    if not _WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


SHARED: dict[str, dict[str, Any]] = {
    "just": {"default": "just", "help": "the just program (default: %(default)s)"},
    "log": {"type": Path, "help": "write what is printed here, too"},
    "root": {"type": Path, "help": "keep the cluster's files and logs here (default: nowhere)"},
    "tls": {"choices": ("yes", "no"), "help": "TLS on all connections (default: no)"},
    "partitions": {"type": whole, "default": 2, "help": "default: %(default)s"},
    "rf": {"type": whole, "default": 3, "help": "replicas of each; 0: as in project 2 (default: %(default)s)"},
    "managers": {"type": whole, "default": 3, "help": "default: %(default)s"},
}
"""Options that mean the same wherever they are."""


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Have a parser take some of these."""
    for name in names:
        parser.add_argument(f"--{name}", **SHARED[name])


def add_seed(parser: argparse.ArgumentParser, text: str) -> None:
    """Have a parser take a seed, which is another one each time where it is not given."""
    parser.add_argument("--seed", type=whole, default=random.SystemRandom().randrange(10**6), help=text)


def check_cluster(
    parser: argparse.ArgumentParser, rf: int | None, partitions: int = 1, managers: int = 1, clients: int = 1
) -> None:
    """Have a parser refuse numbers that make no cluster, without `rf` one of project 2, or no run of clients on it."""
    if not 1 <= clients <= CLIENTS_MAX:
        parser.error(f"clients must be 1 to {CLIENTS_MAX}, not {clients}")
    try:
        Shape.ports_needed(partitions, rf, managers)
    except ShapeError as error:
        parser.error(str(error))
