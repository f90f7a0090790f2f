"""What a cluster is founded with: what is accepted, and the line for what is not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkv.errors import InvalidArgument
from madkv.settings import Settings, check_group_size


def servers(count: int) -> tuple[tuple[str, int], ...]:
    return tuple(("host", 1000 + number) for number in range(count))


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    rf = draw(st.sampled_from([1, 3, 5, 7, 9]))
    partitions = draw(st.integers(1, 50))
    splits = draw(st.sets(st.binary(min_size=1, max_size=511), min_size=partitions - 1, max_size=partitions - 1))
    return Settings(rf, servers(rf * partitions), draw(st.sampled_from([(), tuple(sorted(splits))])))


@given(any_settings())
def test_they_travel(settings: Settings) -> None:
    assert Settings.decode(settings.encode()) == settings
    assert settings.difference(settings) is None


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda value:
       json.dumps({"rf": value, "servers": value, "splits": value}).encode()))  # fmt: skip
def test_garbage_is_none(data: bytes) -> None:
    with pytest.raises(ValueError):
        Settings.decode(data)


@pytest.mark.parametrize(
    ("rf", "where", "splits", "line"),
    [
        (2, servers(2), (), "a group has 1, 3, 5, 7 or 9 replicas, not 2"),
        (0, servers(2), (), "a group has 1, 3, 5, 7 or 9 replicas, not 0"),
        (11, servers(11), (), "a group has 1, 3, 5, 7 or 9 replicas, not 11"),
        (3, servers(4), (), "4 servers are no whole number of partitions with 3 replicas each"),
        (1, (), (), "0 servers are no whole number of partitions with 1 replicas each"),
        (1, servers(51), (), "at most 50 partitions; these are 51"),
        (1, (*servers(2), ("host", 1000)), (), "host:1000 comes twice among the servers"),
        (1, servers(3), (b"a",), "3 partitions are cut at 2 keys, not at 1"),
        (1, servers(3), (b"b", b"a"), "split keys ascend, and none comes twice"),
        (1, servers(3), (b"a", b"a"), "split keys ascend, and none comes twice"),
        (1, servers(3), (b"", b"a"), "a split key has 1 to 511 bytes"),
        (1, servers(2), (b"a" * 512,), "a split key has 1 to 511 bytes"),
    ],
)
def test_what_cannot_be(rf: int, where: tuple[tuple[str, int], ...], splits: tuple[bytes, ...], line: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Settings(rf, where, splits)
    assert str(caught.value) == line


def test_the_sizes_of_groups() -> None:
    for size in (1, 3, 5, 7, 9):
        check_group_size(size)
    for size in (-1, 0, 2, 4, 10, 11):
        with pytest.raises(InvalidArgument):
            check_group_size(size)


def test_fifty_servers_and_nine_replicas_are_not_too_many() -> None:
    assert Settings(1, servers(50)).partitions == 50
    assert Settings(9, servers(450)).partitions == 50
    assert Settings(3, servers(6)).address_of(1, 2) == ("host", 1005)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (Settings(1, servers(3)), "--server-rf 3, not 1"),
        (Settings(3, servers(6)), "3 --servers, not 6"),
        (Settings(3, (*servers(2), ("else", 1))), "host:1002, not else:1, among --servers"),
    ],
)
def test_a_difference_in_words(other: Settings, line: str) -> None:
    assert Settings(3, servers(3)).difference(other) == line


def test_a_difference_of_splits() -> None:
    one, other = Settings(1, servers(3), (b"a", b"\xff")), Settings(1, servers(3))
    assert one.difference(other) == "--splits a,\\xff, not left out"
    assert "\n" not in str(Settings(1, servers(2), (b"a\nb",)).difference(Settings(1, servers(2))))
