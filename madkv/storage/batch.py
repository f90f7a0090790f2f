"""What one commit writes: everything in it, or nothing."""

from collections.abc import Mapping

import attrs

from madkv.raft.messages import Entry, HardState

Table = Mapping[bytes, bytes | None]
"""Changes to a table by key; None removes."""


@attrs.frozen
class Batch:
    """One commit.

    `entries` replace everything in the log from the first one's index on. `pairs` and `sessions` bring the tables from
    the previous `applied_index` to this one. The log is cut up to `compact_to`, which is never beyond `applied_index`.
    """

    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()
    pairs: Table = attrs.Factory(dict)
    sessions: Table = attrs.Factory(dict)
    applied_index: int | None = None
    compact_to: int | None = None
