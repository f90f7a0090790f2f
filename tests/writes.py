"""Writes at random and what each must answer, for tests of what lies between a caller and the store."""

import random
from collections.abc import Iterator


class Model:
    """What each call must answer when it takes effect once."""

    def __init__(self) -> None:
        self.pairs: dict[bytes, bytes] = {}

    def put(self, key: bytes, value: bytes) -> bool:
        return self.swap(key, value) is not None

    def swap(self, key: bytes, value: bytes) -> bytes | None:
        old = self.pairs.get(key)
        self.pairs[key] = value
        return old

    def delete(self, key: bytes) -> bool:
        return self.pairs.pop(key, None) is not None


def calls(seed: int, prefix: bytes, number: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Writes on a few keys, each with a value of its own."""
    rng = random.Random(seed)
    for count in range(number):
        yield rng.choice(["put", "swap", "swap", "delete"]), b"%b%d" % (prefix, rng.randrange(4)), b"v%d" % count
