"""Where the checkout is, for the tools that work on it and not on an installed MadKV."""

import subprocess
import sys
from pathlib import Path

import madkv

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or, when MadKV was installed, the directory of all installed packages."""


def checkout() -> Path:
    """The root of the checkout; outside of one the process ends with one line: what is there belongs to others."""
    if not (ROOT / "Justfile").is_file():
        sys.exit(f"madkv: {ROOT} is no checkout of MadKV (it has no Justfile), so there is nothing to do here")
    return ROOT


def revision() -> str:
    """The commit of the checkout; of changes on top of it, only that there are some."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def origin() -> str:
    """The line by which a log says who made it: logs of all checkouts lie in the same place."""
    return f"# MadKV {madkv.__version__}, revision {revision()}, checkout {ROOT}"
