"""How the tools behind the recipes read their words: `ops=500` means `--ops 500`."""

import re
from collections.abc import Sequence

_ASSIGNMENT = re.compile(r"([a-z][a-z0-9-]*)=(.*)", re.DOTALL)


def words(argv: Sequence[str]) -> list[str]:
    """Rewrite each `name=value` to `--name=value`, so that recipes can take options the way `just` users write them."""
    rewritten = []
    for word in argv:
        match = _ASSIGNMENT.fullmatch(word)
        rewritten.append(f"--{match[1]}={match[2]}" if match else word)
    return rewritten
