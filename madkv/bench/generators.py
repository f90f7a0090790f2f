"""YCSB's number generators: which record a request touches, and how a key number becomes a key.

The constants and the order of the steps are those of YCSB 0.17 (`site.ycsb.generator`), so that a request stream has
the same shape: Gray et al., "Quickly Generating Billion-Record Synthetic Databases", SIGMOD 1994, for the zipfian; FNV
over the eight octets of the number, lowest first, for the scattering. Randomness always comes in as an argument.
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random

FNV_OFFSET_BASIS_64 = 0xCBF29CE484222325
FNV_PRIME_64 = 0x100000001B3
MASK_64 = (1 << 64) - 1
FNV_PRIME_POWERS = [pow(FNV_PRIME_64, octets, 1 << 64) for octets in range(9)]
"""An octet of zero only multiplies by the prime, so that all leading zeros of a number are one multiplication."""

ZIPFIAN_CONSTANT = 0.99
SCRAMBLED_ITEMS = 10_000_000_000
"""The scrambled zipfian draws from this fixed number of items, whatever the number of records."""
SCRAMBLED_ZETA = 26.46902820178302
"""zeta(SCRAMBLED_ITEMS, ZIPFIAN_CONSTANT), which would take minutes to add up."""


def fnv_hash_64(number: int) -> int:
    """YCSB's 64-bit FNV hash of a non-negative number below 2**63: the absolute value of the signed result."""
    hashed = FNV_OFFSET_BASIS_64
    octets_left = 8
    while number:
        hashed = ((hashed ^ (number & 0xFF)) * FNV_PRIME_64) & MASK_64
        number >>= 8
        octets_left -= 1
    hashed = (hashed * FNV_PRIME_POWERS[octets_left]) & MASK_64
    return hashed if hashed < 1 << 63 else (1 << 64) - hashed


@lru_cache(maxsize=256)
def zeta(count: int, theta: float, start: int = 0, total: float = 0.0) -> float:
    """The sum of 1 / i**theta for i from 1 to `count`; `total` is that sum up to `start`, when it is already known.

    Remembered, since every client of a benchmark asks for the same sums, over as many items as there are records.
    """
    for index in range(start, count):
        total += 1 / (index + 1) ** theta
    return total


class Zipfian:
    """Numbers from 0 on, the lower the likelier: item i is drawn about as often as 1 / (i + 1)**theta says."""

    def __init__(self, random: Random, items: int, zeta_items: float | None = None) -> None:
        if items < 1:
            raise ValueError("a zipfian distribution needs at least one item")
        self._random = random.random
        self._theta = ZIPFIAN_CONSTANT
        self._alpha = 1 / (1 - self._theta)
        self._zeta_2 = zeta(2, self._theta)
        self._second = 1 + 0.5**self._theta
        self._items = items
        self._zeta = zeta(items, self._theta) if zeta_items is None else zeta_items
        self._eta = self._eta_now()

    def _eta_now(self) -> float:
        if self._items <= 2:
            return 0.0  # the first two items are told apart before eta is used
        return (1 - (2 / self._items) ** (1 - self._theta)) / (1 - self._zeta_2 / self._zeta)

    def grow(self, items: int) -> None:
        """Go on with more items. Fewer are ignored, as YCSB does: the sum would have to start anew."""
        if items > self._items:
            self._zeta = zeta(items, self._theta, self._items, self._zeta)
            self._items = items
            self._eta = self._eta_now()

    def __call__(self) -> int:
        drawn = self._random()
        scaled = drawn * self._zeta
        if scaled < 1:
            return 0
        if scaled < self._second:
            return 1
        return int(self._items * (self._eta * (drawn - 1) + 1) ** self._alpha)


class ScrambledZipfian:
    """Numbers from 0 to `items` - 1 with a zipfian popularity whose favourites are scattered over the whole range."""

    def __init__(self, random: Random, items: int) -> None:
        self._zipfian = Zipfian(random, SCRAMBLED_ITEMS + 1, SCRAMBLED_ZETA)
        self._items = items

    def __call__(self) -> int:
        return fnv_hash_64(self._zipfian()) % self._items


class AcknowledgedCounter:
    """Hands out consecutive numbers and knows up to which of them *all* have been acknowledged."""

    def __init__(self, start: int) -> None:
        self._next = start
        self.last = start - 1
        """Every number up to this one is acknowledged. It only grows, and stays below the next number."""
        self._ahead: set[int] = set()

    def __call__(self) -> int:
        self._next += 1
        return self._next - 1

    def acknowledge(self, number: int) -> None:
        """That `number`, which was handed out before, is done. Others may still be under way below it."""
        assert self.last < number < self._next, "acknowledged twice, or never handed out"
        self._ahead.add(number)
        while self.last + 1 in self._ahead:
            self._ahead.remove(self.last + 1)
            self.last += 1


class SkewedLatest:
    """Acknowledged numbers of a counter, the newest the likeliest."""

    def __init__(self, random: Random, counter: AcknowledgedCounter) -> None:
        self._counter = counter
        # YCSB starts from the last number, not from how many there are: one item fewer, at the unlikely end.
        self._zipfian = Zipfian(random, max(1, counter.last))

    def __call__(self) -> int:
        newest = self._counter.last
        self._zipfian.grow(newest)
        return newest - self._zipfian()


def uniform(random: Random, low: int, high: int) -> Callable[[], int]:
    """Numbers from `low` to `high`, both included, all equally likely."""
    draw, span = random.random, high - low + 1
    return lambda: low + int(draw() * span)


def length(random: Random, distribution: str, low: int, high: int) -> Callable[[], int]:
    """How long a field or a scan is: `constant` (always `high`), `uniform`, or `zipfian` (the short ones likelier)."""
    match distribution:
        case "constant":
            return lambda: high
        case "uniform":
            return uniform(random, low, high)
        case "zipfian":
            zipfian = Zipfian(random, high - low + 1)
            return lambda: low + zipfian()
    raise ValueError(f"unknown length distribution {distribution!r} (known: constant, uniform, zipfian)")
