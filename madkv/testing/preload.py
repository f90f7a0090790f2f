"""Small C libraries, built when they are needed and preloaded into processes, to see or to spoil what these do."""

import shutil
import subprocess
from functools import cache
from pathlib import Path


class NoCompiler(Exception):
    """The library cannot be built here."""


@cache
def compiler() -> str | None:
    """The C compiler of this machine, None where there is none."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build(source: Path, directory: Path) -> Path:
    """Build the library of a source file into a directory. Raises NoCompiler."""
    command = compiler()
    if command is None:
        raise NoCompiler(f"no C compiler (cc, gcc or clang) found: {source.name} cannot be built")
    library = directory / f"{source.stem}.so"
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run([command, *options, "-o", str(library), str(source), "-ldl"], capture_output=True, text=True)
    if done.returncode:
        raise NoCompiler(f"{command} cannot build {source.name}: {done.stderr.strip().splitlines()[-1]}")
    return library
