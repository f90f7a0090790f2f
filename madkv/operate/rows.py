"""Whether the rows of a node's table of sessions make sense: what its next start would make of them. Pure."""

from madkv.errors import MadKVError
from madkv.manager.placement import ClusterMachine, parse_node
from madkv.ranges import Ownership
from madkv.session_rows import OWNERSHIP_KEY, TIME_KEY, decode_record, decode_session, decode_time, split_key
from madkv.settings import MANAGERS
from madkv.storage.check import Rows


class ServerRows:
    """Those of a server: sessions, their records, the time, what the group owns. Holds the sessions' numbers only."""

    def __init__(self) -> None:
        self.sessions = 0
        self._indexes: set[int] = set()
        self._recorded: set[int] = set()

    def add(self, key: bytes, row: bytes) -> None:
        """The next row. Raises ValueError for what is none."""
        if key == TIME_KEY:
            decode_time(row)
        elif key == OWNERSHIP_KEY:
            Ownership.decode(row)
        else:
            index, sequence = split_key(key)
            if sequence is None:
                decode_session(row)
                self._indexes.add(index)
                self.sessions += 1
            else:
                decode_record(row)
                self._recorded.add(index)

    def finish(self, applied_index: int) -> None:
        """That was all. Raises ValueError for a record without its session, and a session from beyond the data."""
        if lost := self._recorded - self._indexes:
            raise ValueError(f"a record of session {min(lost)}, which is not there")
        if self._indexes and max(self._indexes) > applied_index:
            raise ValueError(f"session {max(self._indexes)} was opened after entry {applied_index}")


class ManagerRows:
    """Those of a manager, which are few: how the cluster began, and which disk has which place."""

    def __init__(self) -> None:
        self.sessions = 0
        self._rows: list[tuple[bytes, bytes]] = []

    def add(self, key: bytes, row: bytes) -> None:
        """The next row. Raises ValueError for what is none."""
        self._rows.append((key, row))
        _restored([(key, row)])

    def finish(self, applied_index: int) -> None:
        """That was all. Raises ValueError where they do not fit together."""
        _restored(self._rows)


def _restored(rows: list[tuple[bytes, bytes]]) -> None:
    try:
        ClusterMachine().restore(rows, 0)
    except MadKVError as error:
        raise ValueError(str(error)) from None


def rows_of(node: str) -> Rows | None:
    """What knows the rows of the node of that name; None for a name that is no node's."""
    try:
        partition, _ = parse_node(node)
    except MadKVError:
        return None
    return ManagerRows() if partition == MANAGERS else ServerRows()
