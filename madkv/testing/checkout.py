"""Where the checkout is, for the tools that work on it and not on an installed MadKV."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or, when MadKV was installed, the directory of all installed packages."""


def checkout() -> Path:
    """The root of the checkout; outside of one the process ends with one line: what is there belongs to others."""
    if not (ROOT / "Justfile").is_file():
        sys.exit(f"madkv: {ROOT} is no checkout of MadKV (it has no Justfile), so there is nothing to do here")
    return ROOT
