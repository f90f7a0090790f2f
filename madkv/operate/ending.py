"""How a command ends that does not do what it was asked to: with one line on stderr, and its status."""

import sys


def fail(command: str, why: object, status: int) -> int:
    """Say why; the exit status."""
    print(f"madkv {command}: {why}", file=sys.stderr)
    return status
