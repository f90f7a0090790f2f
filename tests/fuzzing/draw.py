"""What targets share: structured input out of a fuzzer's bytes, and what counts as a refusal."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from madkv.errors import MadKVError

T = TypeVar("T")


def refused(declared: type[Exception] | tuple[type[Exception], ...], decode: Callable[[], T]) -> T | None:
    """What a decoder gives, or None when it refused; anything but an error that it declares passes through."""
    try:
        return decode()
    except declared as error:
        # A MadKVError is a line for people as it is; a ValueError is put into one by whoever asked.
        assert not isinstance(error, MadKVError) or (str(error) and "\n" not in str(error)), repr(error)
        return None


class Draw:
    """Takes choices off the front of the bytes: the same bytes are always the same choices.

    When they are used up, every choice is the first, every number 0 and every text empty.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """That many bytes, or all that are left."""
        found = self._data[self._at : self._at + count]
        self._at += len(found)
        return found

    def rest(self) -> bytes:
        """All that are left."""
        return self.take(len(self._data))

    def byte(self) -> int:
        """0 to 255."""
        return (self.take(1) or b"\0")[0]

    def number(self, size_bytes: int) -> int:
        """A whole number of that many bytes at most."""
        return int.from_bytes(self.take(size_bytes))

    def choice(self, options: Sequence[T]) -> T:
        """One of at most 256 options."""
        return options[self.byte() % len(options)]

    def text(self) -> bytes:
        """Bytes of any length; a first byte of 252 or more stands for a long one, so that bounds come within reach."""
        size = self.byte()
        if size < 252:
            return self.take(size)
        repeated = self.take(1) or b"x"
        return repeated * (508 + self.byte() if size < 254 else 65_500 + self.byte())
