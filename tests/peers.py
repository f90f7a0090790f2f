"""Replicas as their peers know them, for tests of the connections between them: members, messages, hellos."""

from typing import Any

from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Heartbeat, Message, SnapshotPiece
from madkv.wire import codec
from madkv.wire.boxes import COMMAND, blob, field
from madkv.wire.peer import Encoder

CLUSTER = "0123456789abcdef"


def member(replica: int, disk: bytes = b"d") -> Member:
    return Member(replica, disk * 16)


def heartbeat(sender: int, to: int, number: int = 1) -> Heartbeat:
    return Heartbeat(sender=member(sender), to=member(to), term=number, commit_index=0, round=0)


def raft_box(message: Message) -> bytes:
    return field(COMMAND, codec.RAFT) + blob(b"message", Encoder().encode(message)) + b"\0\0"


def hello_fields(**changed: Any) -> bytes:
    values = {"version": codec.PROTOCOL_VERSION, "cluster": CLUSTER, "group": "s0", "replica": 1, "disk": b"d" * 16}
    fields = b""
    for name, value in {**values, "to": 0, "ports": "1000,1001,1002", **changed}.items():
        if isinstance(value, int):
            value = b"%d" % value
        if value is not None:
            fields += field(name.encode(), value if isinstance(value, bytes) else value.encode())
    return fields


def snapshot_piece(sender: int, to: int, data: bytes) -> SnapshotPiece:
    return SnapshotPiece(
        sender=member(sender),
        to=member(to),
        term=1,
        stream=1,
        last_index=1,
        last_term=1,
        configuration=Configuration(frozenset([member(0)])),
        offset=0,
        data=data,
        done=False,
    )


class LogCase(SynchronousTestCase):
    """Keeps the lines of the log."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self._observe)
        self.addCleanup(globalLogPublisher.removeObserver, self._observe)

    def _observe(self, event: LogEvent) -> None:
        self.lines.append(formatEvent(event))

    def logged(self, words: str) -> int:
        return sum(words in line for line in self.lines)
