"""List the project's files as a tree: what git knows or would add, or without git everything but by-products."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from madkv.testing.checkout import checkout
from madkv.testing.ending import run_tool

BY_PRODUCTS = frozenset(
    ".git .venv .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache __pycache__ build dist report ycsb".split()
)
Tree: TypeAlias = "dict[str, Tree]"


def paths_in_git(root: Path) -> list[str] | None:
    """Paths below `root` that are tracked, or neither tracked nor ignored; None when git cannot tell."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    paths = [os.fsdecode(path) for path in listed.stdout.split(b"\0") if path]
    return [path for path in paths if os.path.lexists(root / path)] or None


def paths_on_disk(root: Path) -> list[str]:
    paths = []
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in BY_PRODUCTS and not name.endswith(".egg-info")]
        paths += [
            os.path.relpath(Path(directory, file), root)
            for file in files
            if not file.endswith((".pyc", "dropin.cache"))
        ]
    return paths


def nested(paths: Iterable[str]) -> Tree:
    tree: Tree = {}
    for path in paths:
        branch = tree
        for part in path.split("/"):
            branch = branch.setdefault(part, {})
    return tree


def lines(tree: Tree, indent: str = "") -> Iterable[str]:
    names = sorted(tree)
    for name in names:
        is_last = name == names[-1]
        yield f"{indent}{'└── ' if is_last else '├── '}{name}{'/' if tree[name] else ''}"
        yield from lines(tree[name], indent + ("    " if is_last else "│   "))


def main() -> None:
    root = checkout()
    paths = paths_in_git(root) or paths_on_disk(root)
    text = "\n".join([f"{root.name}/", *lines(nested(paths))]) + "\n"
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    sys.stdout.flush()


if __name__ == "__main__":
    run_tool("madkv tree", main)
