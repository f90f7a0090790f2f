"""Targets for what stands in logs, in rows and in snapshots: operations, configurations, sessions, slots, pieces."""

from madkv import session_rows
from madkv.errors import InvalidArgument, MadKVError, ProtocolError
from madkv.manager.placement import ClusterMachine, Slot, parse_node
from madkv.operations import CloseSession, Found, Operation, Register, Write, WriteKind, decode, encode
from madkv.raft.configuration import Configuration
from madkv.ranges import Ownership
from madkv.settings import MANAGERS, Settings
from madkv.state_machine import StateMachine
from madkv.storage.memory import MemoryStore
from madkv.storage.snapshot import SESSIONS, SnapshotHead, SnapshotReader, records_of
from madkv.storage.twin import TwinDisk, TwinStorage
from tests.fuzzing.draw import Draw, refused

NOBODY = Configuration(frozenset())


def operations(data: bytes) -> None:
    """Payloads of entries: one way to write each, but for the text of a cluster's settings."""
    decoded = refused(ValueError, lambda: decode(data))
    if decoded is not None:
        payload = encode(*decoded)
        assert decode(payload) == decoded
        assert payload == data or isinstance(decoded[1], Found)


def configurations(data: bytes) -> None:
    """Configurations of a group, and what a group owns: one way to write each."""
    configuration = refused(ValueError, lambda: Configuration.decode(data))
    assert configuration is None or configuration.encode() == data
    ownership = refused(ValueError, lambda: Ownership.decode(data))
    if ownership is not None:
        assert ownership.encode() == data
        for each in ownership.ranges:
            assert ownership.range_of(each.start) == each
            assert ownership.stretch_of(each.start) is not None


def sessions(data: bytes) -> None:
    """Rows of a server's sessions: what is taken up goes on working, and ends with nothing left over."""
    draw = Draw(data)
    rows: dict[bytes, bytes] = {}
    while draw.more:
        rows[_session_key(draw)] = _session_row(draw)
    machine = StateMachine(MemoryStore())
    decoded = refused(ValueError, lambda: machine.decode_rows(rows.items()))
    if decoded is None:
        return
    machine.restore(decoded, 0)
    done: list[Operation] = []
    for index in sorted({session_rows.split_key(key)[0] for key in rows if key[:1] in b"sr"}):
        for sequence, floor in ((1, 1), (7, 2), (2**62, 2**62)):
            done.append(Write(WriteKind.SWAP, b"k", b"v", index, sequence, floor))
        done.append(CloseSession(index))
    for number, operation in enumerate(done, 1):
        machine.apply(number, 0, operation)
    assert (len(machine._sessions), machine._sessions.record_bytes) == (0, 0)
    assert all(row is None for key, row in machine.take_changes().items() if key[:1] in b"sr")


def _session_key(draw: Draw) -> bytes:
    kind, index = draw.byte(), draw.byte() % 4
    if kind < 100:
        return session_rows.session_key(index)
    if kind < 200:
        return session_rows.record_key(index, draw.byte())
    return draw.choice((session_rows.TIME_KEY, session_rows.OWNERSHIP_KEY, b"")) or draw.take(draw.byte())


def _session_row(draw: Draw) -> bytes:
    kind = draw.byte()
    if kind < 100:
        client_id = draw.take(1).ljust(16)
        return session_rows.encode_session(client_id, draw.byte(), draw.byte(), draw.byte() % 2 == 1)
    if kind < 200:
        return session_rows.encode_record(draw.take(2), draw.choice((None, True, False, b"", b"old")))
    return draw.take(draw.byte())


def cluster_rows(data: bytes) -> None:
    """Rows of the managers' state, and names of nodes."""
    draw = Draw(data)
    name = draw.take(draw.byte() % 12).decode("latin-1")
    node = refused(InvalidArgument, lambda: parse_node(name))
    assert node is None or (0 <= node[0] <= MANAGERS and (node[1] is None or 0 <= node[1] <= 9999))
    rows: list[tuple[bytes, bytes]] = []
    while draw.more:
        rows.append((_cluster_key(draw), draw.take(draw.byte())))
    machine = ClusterMachine()
    for key, row in rows:
        slot = refused(ValueError, lambda: Slot.decode(row))  # noqa: B023 called at once
        assert slot is None or slot.encode() == row
        one = refused((ValueError, MadKVError), lambda: machine.restore([(key, row)], 0) or True)  # noqa: B023
        if one is None:
            assert refused((ValueError, MadKVError), lambda: machine.restore(rows, 0) or True) is None
            return
    machine.restore(rows, 0)
    if machine.founded is not None:
        for partition in range(machine.settings.partitions):
            assert machine.ownership_of(partition).epoch == machine.epoch
        machine.partition_map()
        machine.waiting_line()
        machine.apply(1, 0, Register(0, 0, b"d" * 16, ()))
        machine.take_changes()


def _cluster_key(draw: Draw) -> bytes:
    kind = draw.byte() % 8
    if kind == 0:
        return draw.take(draw.byte() % 8)
    if kind < 4:
        return b"t" if kind == 1 else b"f"
    partition = draw.choice((b"\0\0", b"\0\1", b"\xff\xff"))
    return b"c" + partition if kind == 4 else b"s" + partition + bytes((0, kind % 3))


def settings(data: bytes) -> None:
    """A cluster's settings, as managers tell each other and keep them."""
    found = refused(ValueError, lambda: Settings.decode(data))
    if found is not None:
        assert Settings.decode(found.encode()) == found
        assert found.difference(found) is None and 1 <= found.partitions <= 50


class _Rows:
    """A table of rows as the source of a snapshot."""

    head = SnapshotHead(1, 1, NOBODY)

    def __init__(self, tables: list[list[tuple[bytes, bytes]]]) -> None:
        self._tables = tables

    def records(self, table: int):
        return iter(self._tables[table])

    def close(self) -> None:
        """Nothing is held."""


def snapshots(data: bytes) -> None:
    """A snapshot on its way, in pieces: staged whole or refused, never half a piece, and the same whatever the cuts."""
    draw = Draw(data)
    storage = TwinStorage(TwinDisk(), NOBODY)
    stream, taken = -1, b""
    while draw.more:
        offset, number = draw.byte() - 250, draw.byte() % 2
        offset = len(taken) if offset < 0 else offset
        piece = draw.take(draw.byte() << draw.byte() % 3)
        head = SnapshotHead(1, 1, NOBODY, (1, number))
        staged = refused(ProtocolError, lambda: storage.stage(head, offset, piece))  # noqa: B023 called at once
        if number != stream:
            if offset:
                assert staged == 0
                continue
            stream, taken = number, b""
        if staged is not None:
            taken += piece if offset == len(taken) else b""
            assert staged == len(taken)
    found = refused(ProtocolError, lambda: list(records_of(taken)))
    assert found is not None, "what was staged can be read"
    tables = [[(key, value) for table, key, value in found if table == number] for number in (0, SESSIONS)]
    reader = SnapshotReader(_Rows(tables), 64)
    pieces = [reader.piece]
    while not reader.done:
        reader.next()
        pieces.append(reader.piece)
    assert sorted(found) == sorted(record for piece in pieces for record in records_of(piece))
