"""What is kept of the inputs that fuzzing has found: for each target a file, of Python bytes literals, one a line.

Short ones come first. An input is added by adding its line; `fuzz::minimise` leaves out those that reach nothing that
others do not reach.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent / "corpus"


def file_of(target: str) -> Path:
    """Where the inputs of a target are."""
    return DIRECTORY / f"{target}.txt"


def load(target: str) -> list[bytes]:
    """All inputs of a target. Raises ValueError for a line that is none."""
    found: list[bytes] = []
    path = file_of(target)
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            data = ast.literal_eval(line)
        except SyntaxError:
            data = None
        if not isinstance(data, bytes):
            raise ValueError(f"{path}, line {number}: not a bytes literal, such as b'\\x00'")
        found.append(data)
    return found


def save(target: str, inputs: Iterable[bytes]) -> None:
    """Replace them."""
    lines = [f"{data!r}\n" for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    DIRECTORY.mkdir(exist_ok=True)
    file_of(target).write_text("".join(lines))
