"""Clients that lie, as the tools start them: in place of `just`."""

import sys
from pathlib import Path

from tests import processes

LIAR = Path(__file__).with_name("liar.py")


def just_script(directory: Path, lie: str) -> str:
    """Write a script that stands for `just` and starts clients with this lie; its path."""
    return processes.just_script(directory / f"just-{lie}", sys.executable, str(LIAR), lie)
