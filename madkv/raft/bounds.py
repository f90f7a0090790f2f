"""Bounds of what a core sends, applies and keeps in memory; tests and simulations make them small, to reach them."""

import attrs

MIB = 1024 * 1024


@attrs.frozen
class Bounds:
    """All in bytes, as `Entry.size_bytes` counts them, but for what is called entries."""

    append_bytes: int = MIB
    append_entries: int = 1024
    """One Append: a little less than the entry that reaches it, or that one entry."""
    in_flight_bytes: int = 8 * MIB
    """On the way to one peer."""
    turn_bytes: int = MIB
    turn_entries: int = 2048
    """Appends of one Ready, to all peers together, and at most one Append more. Reading entries from the disk takes
    about 5 us each: without this, one Ready for eight peers that are behind would take longer than an election."""
    apply_bytes: int = MIB
    """Committed entries in one Ready."""
    tail_bytes_kept: int = 8 * MIB
    """Entries on the disk are kept in memory too, the newest up to this, and at times a quarter more."""


USUAL = Bounds()
