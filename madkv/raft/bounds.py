"""How long a core waits, in ticks, and how much it sends, applies and keeps in memory, which tests make small."""

import attrs

MIB = 1024 * 1024

ELECTION_TICKS = 10
"""The shortest election time-out; each one is drawn from this to twice this, less one."""
ASK_AGAIN_TICKS = ELECTION_TICKS // 2
"""The same for one that has asked for PreVotes and did not get enough, or stands beside others."""
HEARTBEAT_TICKS = 2
FIRST_TICKS = HEARTBEAT_TICKS + 1
"""The same for one that has just started, and up to as much longer as for one that asks again: all of a group may have
been down, and where a leader is, it has been heard by then, or those who hear it refuse their PreVotes."""
STALLED_TICKS = 2 * ELECTION_TICKS
"""A disk that has had something to do and done nothing for so long hangs: its replica should not lead."""

assert HEARTBEAT_TICKS * 3 <= ELECTION_TICKS


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
