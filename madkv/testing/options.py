"""How the tools behind the recipes read their words: `ops=500` means `--ops 500`."""

import argparse
import re
from collections.abc import Sequence
from itertools import zip_longest

_ASSIGNMENT = re.compile(r"([a-z][a-z0-9-]*)=(.*)", re.DOTALL)
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


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
