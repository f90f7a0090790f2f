"""Remove what building and testing leave in the checkout.

The environment stays (so the next recipe starts at once, without a network too), and so do logs, reports and ycsb/.
"""

import shutil
from pathlib import Path

from madkv.testing.checkout import checkout
from madkv.testing.ending import run_tool

AT_THE_ROOT = (
    *("*.egg-info", "build", "dist", "twistd.pid", "_trial_temp*"),
    *(".coverage", ".coverage.*", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
)
SOURCES = ("justmod", "madkv", "tests", "twisted")


def by_products(root: Path) -> list[Path]:
    found = [path for pattern in AT_THE_ROOT for path in root.glob(pattern)]
    for source in SOURCES:
        found += (root / source).glob("**/__pycache__")
        found += (root / source).glob("**/dropin.cache")
    return found


def main() -> None:
    found = by_products(checkout())
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    print(f"removed {len(found)} by-products" if found else "nothing to remove")


if __name__ == "__main__":
    run_tool("madkv clean", main)
