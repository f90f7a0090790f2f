"""Checks of what callers pass in, the same on both sides of the wire; each raises InvalidArgument with one line."""

from madkv.errors import InvalidArgument
from madkv.limits import KEY_BYTES_MAX, KEY_BYTES_MIN, VALUE_BYTES_MAX


def check_key(key: bytes) -> None:
    """A key has 1 to 511 bytes."""
    if not isinstance(key, bytes):
        raise InvalidArgument(f"keys and values are bytes; this key is of type {type(key).__name__}")
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise InvalidArgument(f"a key has {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes; this one has {len(key):,}")


def check_value(value: bytes) -> None:
    """A value has at most 1 MiB."""
    if not isinstance(value, bytes):
        raise InvalidArgument(f"keys and values are bytes; this value is of type {type(value).__name__}")
    if len(value) > VALUE_BYTES_MAX:
        raise InvalidArgument(f"a value has at most {VALUE_BYTES_MAX:,} bytes; this one has {len(value):,}")


def check_scan(start: bytes, end: bytes) -> None:
    """The bounds of a scan need not be keys, and may be empty, but are no longer than keys."""
    if not (isinstance(start, bytes) and isinstance(end, bytes)):
        raise InvalidArgument("the bounds of a scan are bytes")
    longest = max(len(start), len(end))
    if longest > KEY_BYTES_MAX:
        raise InvalidArgument(f"the bounds of a scan have at most {KEY_BYTES_MAX} bytes; one has {longest:,}")
