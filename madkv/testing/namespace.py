"""Namespaces of the system's that a tool runs in: what it mounts or connects there is its own, and goes with it."""

import os
import sys
from collections.abc import Sequence


def is_entered(mark: str) -> bool:
    """Whether this program is in namespaces of its own that bear this mark."""
    return mark in os.environ


def enter(mark: str, kinds: Sequence[str], prepare: str = "true") -> None:
    """Become the same program in new namespaces of these kinds (as `unshare` calls them), after the shell has run what
    prepares them; returns in there, and at once when it is there. `mark` names a variable of the environment.
    """
    if is_entered(mark):
        return
    os.environ[mark] = "entered"
    words = ["unshare", *kinds, "sh", "-c", f'{prepare} && exec "$0" "$@"', *sys.orig_argv]
    os.execvp(words[0], words)
