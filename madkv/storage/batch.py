"""What one commit writes: everything in it, or nothing."""

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from madkv.raft.messages import Entry, HardState

Table = Mapping[bytes, bytes | None]
"""Changes to a table by key; None removes."""
NO_CHANGES: Table = MappingProxyType({})


@attrs.define
class Batch:
    """One commit.

    `entries` replace everything in the log from the first one's index on. `pairs` and `sessions` bring the tables from
    the previous `applied_index` to this one. The log is cut up to `compact_to`, which is never beyond `applied_index`.
    """

    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()
    pairs: Table = NO_CHANGES
    sessions: Table = NO_CHANGES
    applied_index: int | None = None
    compact_to: int | None = None
