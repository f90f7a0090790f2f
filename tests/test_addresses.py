"""HOST:PORT as users write it, and as other nodes say it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkv.addresses import parse_address, show_address
from madkv.errors import InvalidArgument
from madkv.limits import AMP_VALUE_BYTES_MAX, HOST_CHARACTERS_MAX

LONG_LABEL = "".join(chr(0x4E00 + number % 20_000) for number in range(AMP_VALUE_BYTES_MAX // 3))


@pytest.mark.parametrize("host", ["h", "a-b.example", "10.0.0.1", "::1", "fe80::1%eth0", "b\u00fccher.example"])
def test_what_is_an_address(host: str) -> None:
    assert parse_address(show_address((host, 3777))) == (host, 3777)


@pytest.mark.parametrize(
    "text",
    ["", "h", ":1", "h:0", "h:65536", "h:\u0663", "h h:1", "a:b:1", "[]:1", "[[]]:1", "[a]b:1", "a,b:1", "\ud800:1"],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not an address; write HOST:PORT"):
        parse_address(text)


def test_a_name_is_no_longer_than_names_are() -> None:
    """Others say addresses, too: one label that fits in a box would hold a manager up for two minutes."""
    assert parse_address("h" * HOST_CHARACTERS_MAX + ":1")[1] == 1
    for host in ("h" * (HOST_CHARACTERS_MAX + 1), "\u00e9." * 20_000, LONG_LABEL):
        with pytest.raises(InvalidArgument, match="…' is not an address"):
            parse_address(f"{host}:1")


@given(st.text(st.sampled_from("ab.:[]%,- 1"), max_size=12))
def test_what_is_read_is_shown_as_something_that_reads_the_same(text: str) -> None:
    try:
        address = parse_address(text)
    except InvalidArgument:
        return
    assert parse_address(show_address(address)) == address
