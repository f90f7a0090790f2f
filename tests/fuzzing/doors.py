"""Targets for ports: whole conversations with servers, managers and replicas, and with clients that call them.

Each runs the production protocol on a transport in memory, and beside whoever talks garbage somebody honest, who must
notice nothing. After every conversation nothing may be left: no call in flight, no timer, no failure in the log.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent, globalLogPublisher

from madkv.limits import BOX_SECONDS_MAX, SESSION_UNUSED_SECONDS, STRANGER_SECONDS_MAX
from madkv.manager.introduction import Introducing, Introduction
from madkv.operations import Own
from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Heartbeat, Message
from madkv.ranges import NOTHING, KeyRange, Ownership
from madkv.server.disk import InlineDisk
from madkv.server.peer_port import PeerFactory
from madkv.server.peers import PeerLinks
from madkv.server.replica import Replica
from madkv.server.service import ServerFactory
from madkv.state_machine import StateMachine
from madkv.storage.memory import MemoryStore
from madkv.storage.overlay import AppliedPairs
from madkv.storage.twin import TwinDisk, TwinStorage
from madkv.wire import codec, commands
from madkv.wire.answering import AnsweringFactory
from madkv.wire.boxes import Box, blob, field, parse_boxes
from tests.fuzzing.draw import Draw
from tests.fuzzing.wire import drawn_box
from tests.manager.test_service import SETTINGS, Manager, register_fields
from tests.peers import CLUSTER, hello_fields, member, raft_box, snapshot_piece
from tests.test_service import raise_again, started_replica

COMMANDS = {command.commandName: command for command in commands.COMMANDS}
CODES = {name: {*command.errors.values()} for name, command in COMMANDS.items()}


@contextmanager
def nothing_unforeseen() -> Iterator[None]:
    """No failure goes to the log meanwhile: those are what nobody foresaw."""
    failures: list[LogEvent] = []
    observer = lambda event: failures.append(event) if event.get("log_failure") is not None else None  # noqa: E731
    globalLogPublisher.addObserver(observer)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observer)
    assert not failures, failures[0]["log_failure"].getTraceback()


class Talker:
    """One connection to a door."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self.tag = 0
        self.protocol: Any = None
        self.connect()

    def connect(self) -> None:
        """A new connection in the place of the one there is."""
        self.close()
        self.protocol, self.transport = self._factory.buildProtocol(None), StringTransport()
        self.protocol.makeConnection(self.transport)
        self.is_half = False

    def close(self) -> None:
        if self.protocol is not None and self.protocol.open:
            self.protocol.connectionLost()

    @property
    def is_dropped(self) -> bool:
        return self.transport.disconnecting

    def say(self, data: bytes) -> None:
        """Send bytes as long as anybody reads them."""
        if not self.is_dropped and self.transport.producerState != "paused":
            self.protocol.dataReceived(data)

    def heard(self) -> list[Box]:
        """What was answered since the last time: whole boxes, whatever was said."""
        found: list[Box] = []
        data = self.transport.value()
        self.transport.clear()
        assert parse_boxes(data, found) == len(data)
        return found

    def call(self, command: bytes, fields: bytes = b"") -> Box:
        """One honest call; its answer."""
        self.tag += 1
        self.say(codec.request(self.tag, command, fields))
        (answer,) = self.heard()
        assert answer.get(b"_answer") == b"%d" % self.tag, answer
        return answer


class Garbage(Talker):
    """The connection of somebody who says anything, and what must be true of the answers."""

    def __init__(self, factory: Any) -> None:
        self._asked: dict[bytes, bytes] = {}
        super().__init__(factory)

    def connect(self) -> None:
        super().connect()
        self._asked.clear()

    def ask(self, command: bytes, fields: bytes, *, tagged: bool = True, last: int | None = None) -> bytes:
        """Say a call; its tag. `last`: only so many bytes of it."""
        self.tag += 1
        tag = b"%d" % self.tag
        box = (field(b"_ask", tag) if tagged else b"") + field(b"_command", command) + fields + b"\0\0"
        self.is_half = self.is_half or last is not None
        if tagged and not self.is_half:
            self._asked[tag] = command
        self.say(box[:last])
        return tag

    def judge(self) -> dict[bytes, Box]:
        """The answers by their tags: each to a call that was made, in the words that its command declares."""
        found: dict[bytes, Box] = {}
        for box in self.heard():
            tag = box.get(b"_answer") or box.get(b"_error") or b""
            code = box.get(b"_error_code")
            assert code != b"INTERNAL_ERROR", box
            if self.is_half and tag not in self._asked:
                continue  # to what other bytes have made of that half
            command = self._asked.pop(tag)
            found[tag] = box
            if code is not None:
                assert code in CODES.get(command, ()) or code in (b"UNHANDLED", b"REFUSED"), (command, box)
                line = box[b"_error_description"].decode(errors="replace")
                assert line and line.isprintable(), line
        return found


def _check_ended(factory: AnsweringFactory, clock: Clock) -> None:
    assert (factory.in_flight.count, factory.in_flight.size_bytes, len(factory.connections)) == (0, 0, 0)
    assert not clock.getDelayedCalls(), clock.getDelayedCalls()


# --- Servers ----------------------------------------------------------------------------------------------------------

OWNED = Ownership(1, (KeyRange(b"", b"m"), KeyRange(b"m", b"t")))
KEYS = (b"a", b"b", b"m", b"s\xff", b"z", b"k" * 511, b"k" * 512, b"")
HONEST = b"honest"


def solo_server(data: bytes) -> None:
    """A server without a manager, at its port for clients."""
    clock: Any = Clock()
    replica = started_replica(MemoryStore(), clock)
    _server(data, clock, replica, ServerFactory(clock, replica, b"s0", b"boot"))


def clustered_server(data: bytes) -> None:
    """A server of a cluster, which owns some keys, at its port for clients."""
    clock: Any = Clock()
    storage = TwinStorage(TwinDisk(), Configuration(frozenset({member(0)})))
    pairs = AppliedPairs(storage)
    machine = StateMachine(pairs, first_ownership=NOTHING)
    replica = Replica(
        member(0), storage, pairs, InlineDisk(), clock, lambda message: None, lambda n: 0, raise_again, machine=machine
    )
    replica.start()
    replica.propose(Own(OWNED), lambda outcome: None)
    _server(data, clock, replica, ServerFactory(clock, replica, b"s0", b"", dict, lambda: machine.ownership))


def _server(data: bytes, clock: Clock, replica: Replica, factory: ServerFactory) -> None:
    if HONEST in data or b"session" in data:
        return  # whoever guesses another's key or session is as good as that client: neither is a secret
    factory.scan_page_pairs = 2
    draw = Draw(data)
    pairs: dict[bytes, bytes] = {}
    with nothing_unforeseen():
        garbage, honest = Garbage(factory), Talker(factory)
        session = codec.take_answer_integer(honest.call(codec.OPEN_SESSION, field(b"client_id", b"h" * 16)), b"session")
        sequence, seconds_left = 0, SESSION_UNUSED_SECONDS
        while draw.more:
            what = draw.byte() % 16
            if what < 8:
                _simple_call(draw, garbage, pairs, OWNED if factory.ownership else None)
            elif what < 11:
                command = draw.choice((*COMMANDS, b"None", b""))
                box = drawn_box(draw)
                if box.get(b"session") == b"%d" % session:
                    continue
                is_whole = draw.byte() < 200
                names = sorted(box, key=lambda name: name in (b"_ask", b"_command"))
                fields = b"".join(field(name, box[name]) for name in names if name not in (b"_ask", b"_command"))
                garbage.ask(command, fields, tagged=draw.byte() < 200, last=None if is_whole else draw.byte())
                pairs = _all_pairs(honest)
            elif what == 11:
                garbage.is_half = True
                garbage.say(draw.text())
                pairs = _all_pairs(honest)
            elif what == 12:
                seconds = min(draw.byte(), seconds_left)
                seconds_left -= seconds
                clock.advance(seconds)
            elif what == 13:
                garbage.protocol.pauseProducing()
                garbage.ask(codec.GET, field(b"key", b"a"))
                garbage.protocol.resumeProducing()
            else:
                sequence += 1
                fields = field(b"key", HONEST) + blob(b"value", b"%d" % sequence)
                answer = honest.call(codec.SWAP, fields + codec.session_fields(session, sequence, sequence))
                assert codec.take_value(answer) == (b"%d" % (sequence - 1) if sequence > 1 else None)
            garbage.judge()
            if garbage.is_dropped:
                garbage.connect()
        if garbage.is_half:
            clock.advance(BOX_SECONDS_MAX)
            clock.advance(1)
        assert not honest.is_dropped
        expected = None if not sequence else b"%d" % sequence
        assert codec.take_value(honest.call(codec.GET, field(b"key", HONEST))) == expected
        garbage.close()
        honest.close()
        replica.stop()
    assert not len(factory.cuts)
    _check_ended(factory, clock)


def _all_pairs(honest: Talker) -> dict[bytes, bytes]:
    """All pairs of others than the honest client, by an honest scan of what the server owns."""
    found: list[tuple[bytes, bytes]] = []
    fields = field(b"start", b"") + field(b"end", b"\xff" * 511)
    cursor: bytes | None = None
    while True:
        page, cursor = codec.take_page(
            honest.call(codec.SCAN, fields if cursor is None else fields + field(b"cursor", cursor))
        )
        found += page
        if cursor is None:
            assert [key for key, _ in found] == sorted({key for key, _ in found})
            return {key: value for key, value in found if key != HONEST}


def _simple_call(draw: Draw, garbage: Garbage, pairs: dict[bytes, bytes], owned: Ownership | None) -> None:
    """A call that has what it needs: its answer is known, unless something before it was garbage."""
    command = draw.choice((codec.PUT, codec.SWAP, codec.GET, codec.DELETE, codec.SCAN))
    key, value = draw.choice(KEYS), draw.text()
    garbage.judge()
    if command == codec.SCAN:
        tag = garbage.ask(command, field(b"start", key[:511]) + field(b"end", draw.choice(KEYS)[:511]))
    else:
        has_value = command in (codec.PUT, codec.SWAP)
        tag = garbage.ask(command, field(b"key", key) + (blob(b"value", value) if has_value else b""))
    answer = garbage.judge().get(tag)
    if garbage.is_half:
        return
    assert answer is not None and not garbage.is_dropped
    if command == codec.SCAN:
        assert b"_error" not in answer or answer[b"_error_code"] == b"WRONG_PARTITION"
        return
    code = answer.get(b"_error_code")
    if not 1 <= len(key) <= 511:
        assert code == b"INVALID_ARGUMENT"
        return
    if owned is not None and owned.range_of(key) is None:
        assert code == b"WRONG_PARTITION"
        return
    assert code is None
    old = pairs.get(key)
    if command == codec.GET:
        assert codec.take_value(answer) == old
    elif command == codec.SWAP:
        assert codec.take_value(answer) == old
        pairs[key] = value
    elif command == codec.PUT:
        assert codec.take_found(answer) is (old is not None)
        pairs[key] = value
    else:
        assert codec.take_found(answer) is (old is not None)
        pairs.pop(key, None)


# --- Managers ---------------------------------------------------------------------------------------------------------


def manager(data: bytes) -> None:
    """A manager of three, at its port for clients, servers and operators."""
    draw = Draw(data)
    with nothing_unforeseen():
        door = Manager()
        if draw.byte() % 8:
            door.found()
            door.register_all(*range(draw.byte() % 3))
        clock, factory = door.factory._clock, door.factory
        garbage, honest = Garbage(factory), Talker(factory)
        door.client.protocol.connectionLost()
        honest.call(codec.STATUS)  # whoever says nothing at all is soon taken for nobody
        firsts = dict(door.machine.firsts)
        while draw.more:
            what = draw.byte() % 8
            if what < 3:
                garbage.ask(codec.REGISTER, _registration(draw))
            elif what == 3:
                node = draw.choice((b"m.1", b"s0.0", b"s1", b"m", b""))
                garbage.ask(codec.REPLACE_DISK, field(b"node", node or draw.text()[:65_535]))
            elif what < 6:
                box = drawn_box(draw)
                fields = b"".join(field(name, box[name]) for name in box if name not in (b"_ask", b"_command"))
                is_whole = draw.byte() < 200
                command = draw.choice((*COMMANDS, b"None"))
                garbage.ask(command, fields, tagged=draw.byte() < 200, last=None if is_whole else draw.byte())
            elif what == 6:
                garbage.is_half = True
                garbage.say(draw.text())
            else:
                clock.advance(draw.byte())
            garbage.judge()
            if garbage.is_dropped:
                garbage.connect()
            assert b"status" in honest.call(codec.STATUS)
        for partition, first in firsts.items():
            assert door.machine.firsts[partition] == first, "how a group began never changes"
        for (partition, replica), slot in door.machine.slots.items():
            assert door.machine.group_size(partition) > replica and len(slot.disk) == 16
        assert not honest.is_dropped
        garbage.close()
        honest.close()
        door.replica.stop()
    _check_ended(factory, clock)


REGISTER_NAMES = ("cluster", "disk", "api_port", "p2p_port", "peers", "rf", "has_vote", "partition", "replica")


def _registration(draw: Draw) -> bytes:
    """A server that fits, but for some of what it says."""
    changed: dict[str, Any] = {}
    for _ in range(draw.byte() % 4):
        name = draw.choice(REGISTER_NAMES)
        changed[name] = draw.text()[:65_535] if draw.byte() % 2 else draw.choice((None, b"0", b"1", b"3", b"True"))
    partition, replica = draw.byte() % 3, draw.byte() % 4
    return register_fields(SETTINGS, partition, replica, **changed)


# --- Replicas ---------------------------------------------------------------------------------------------------------

_MANAGERS = (1000, 1001, 1002)


def peers(data: bytes) -> None:
    """The p2p port of a replica that has two peers, or of a manager that looks for the others."""
    draw = Draw(data)
    clock: Any = MemoryReactorClock()
    received: list[Message] = []
    with nothing_unforeseen():
        introduction = Introduction(
            clock, member(0), SETTINGS, _MANAGERS, lambda peer, claim: Deferred(), lambda first: None, lambda why: None
        )
        factory = PeerFactory(clock, lambda box: introduction.answer(Introducing.read(box)).fields())
        addresses = {1: ("127.0.0.1", 1001), 2: ("127.0.0.1", 1002)}
        links = PeerLinks(clock, CLUSTER, "s0", member(0), 1000, addresses, received.append, lambda why: None)
        if draw.byte() % 8:
            factory.attach(links)
        garbage, honest = Garbage(factory), Talker(factory)
        sent = 0
        if factory.links is not None:
            honest.call(codec.PEER_HELLO, hello_fields(replica=2, disk=b"h" * 16))
        while draw.more:
            what = draw.byte() % 8
            if what < 2:
                garbage.ask(codec.PEER_HELLO, hello_fields(**_hello(draw)))
            elif what == 2:
                garbage.say(field(b"_command", codec.RAFT) + blob(b"message", draw.text()) + b"\0\0")
            elif what == 3:
                garbage.say(_message(draw))
            elif what == 4:
                claim = Introducing(member(draw.byte() % 4), _MANAGERS, draw.byte(), SETTINGS).fields()
                garbage.ask(codec.INTRODUCE, claim[: len(claim) - draw.byte() % 2 * draw.byte()])
            elif what == 5:
                box = drawn_box(draw)
                fields = b"".join(field(name, box[name]) for name in box if name not in (b"_ask", b"_command"))
                garbage.ask(draw.choice((*COMMANDS, b"None")), fields)
            elif what == 6:
                garbage.is_half = True
                garbage.say(draw.text())
            elif sent < 8 and factory.links is not None:
                sent += 1
                honest.say(raft_box(Heartbeat(Member(2, b"h" * 16), member(0), sent, 0, 0)))
            garbage.judge()
            if garbage.is_dropped:
                garbage.connect()
        assert [each.term for each in received if each.sender == Member(2, b"h" * 16)] == list(range(1, sent + 1))
        assert all(each.to == member(0) and each.sender.replica in (1, 2) for each in received)
        assert len(links.incoming) <= 2
        assert not honest.is_dropped
        clock.advance(STRANGER_SECONDS_MAX + BOX_SECONDS_MAX)
        garbage.close()
        honest.close()
        introduction.stop()
    assert not links.incoming and not factory.connections
    assert not clock.getDelayedCalls()


def _hello(draw: Draw) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for _ in range(draw.byte() % 3):
        name = draw.choice(("version", "cluster", "group", "replica", "disk", "to", "ports"))
        changed[name] = draw.text()[:65_535] if draw.byte() % 2 else draw.choice((None, b"0", b"1", b"2", b"x" * 16))
    return changed


def _message(draw: Draw) -> bytes:
    """A message that a peer may say, or with a changed byte."""
    sender, to = member(draw.byte() % 4, draw.choice((b"d", b"x"))), member(0, draw.choice((b"d", b"x")))
    heartbeat = Heartbeat(sender, to, draw.number(8), draw.number(8), draw.number(8))
    box = bytearray(raft_box(heartbeat if draw.byte() % 2 else snapshot_piece(sender.replica, 0, draw.take(9))))
    if draw.byte() % 2:
        box[draw.byte() % len(box)] ^= draw.byte()
    return bytes(box)
