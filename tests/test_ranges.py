"""Ranges of keys as they travel: there and back, and one way to write them."""

import pytest

from madkv.ranges import KeyRange, Ownership

TWO = Ownership(7, (KeyRange(b"b", b"d"), KeyRange(b"m", None)))


def test_there_and_back() -> None:
    assert Ownership.decode(TWO.encode()) == TWO


@pytest.mark.parametrize("ranges", [(KeyRange(b"c", b"b"),), (KeyRange(b"b", b"b"),), (KeyRange(), KeyRange(b"b"))])
def test_ranges_that_are_none(ranges: tuple[KeyRange, ...]) -> None:
    with pytest.raises(ValueError):
        Ownership(1, ranges)


def test_there_is_one_way_to_write_it() -> None:
    data = Ownership(1, (KeyRange(b"b", b"d"),)).encode()
    has_end = data.index(b"\0\1\1\0\1") + 2
    for flag in (0, 2, 255):  # an end that is not there, and flags that are neither
        with pytest.raises(ValueError):
            Ownership.decode(data[:has_end] + bytes([flag]) + data[has_end + 1 :])
    with pytest.raises(ValueError):
        Ownership.decode(TWO.encode() + b"x")
