"""Clients that lie, as the tools start them: in place of `just`."""

import shlex
import sys
from pathlib import Path

LIAR = Path(__file__).with_name("liar.py")


def just_script(directory: Path, lie: str) -> str:
    """Write a script that stands for `just` and starts clients with this lie; its path."""
    script = directory / f"just-{lie}"
    script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(LIAR), lie])} "$@"\n')
    script.chmod(0o700)
    return str(script)
