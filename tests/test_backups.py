"""Backups as a server makes them: what a cut shows, its pages, and bounds on how many there are, and for how long."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import NotLeader
from madkv.limits import BACKUP_IDLE_SECONDS_MAX, BACKUP_SECONDS_MAX, BACKUPS_MAX, SCAN_PAGE_PAIRS
from madkv.operations import Own
from madkv.raft.configuration import Configuration, Member
from madkv.ranges import NOTHING, KeyRange, Ownership
from madkv.server.backups import Backups
from madkv.server.disk import InlineDisk
from madkv.server.parts import Tuning
from madkv.server.replica import Replica
from madkv.server.service import ServerFactory
from madkv.state_machine import StateMachine
from madkv.storage.overlay import AppliedPairs, StoredPairs
from madkv.storage.records import Damaged
from madkv.storage.twin import TwinDisk, TwinStorage
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field
from tests.test_service import Client, raise_again

ME = Member(0, bytes(16))
OWNED = Ownership(3, (KeyRange(b"b", b"d"), KeyRange(b"m", None)))
MANY = SCAN_PAGE_PAIRS + 100


class Watched:
    """A store's pairs that count who has them open."""

    def __init__(self, stored: StoredPairs, open_now: list[object]) -> None:
        self._stored = stored
        self._open_now = open_now
        open_now.append(self)

    def __iter__(self) -> Any:
        assert self in self._open_now, "nobody reads what was closed"
        return iter(self._stored)

    def close(self) -> None:
        self._open_now.remove(self)
        self._stored.close()


class Storage(TwinStorage):
    def __init__(self) -> None:
        super().__init__(TwinDisk(), Configuration(frozenset({ME})))
        self.open_now: list[object] = []

    def open_pairs(self) -> Any:
        return Watched(super().open_pairs(), self.open_now)


class BackupsTest(SynchronousTestCase):
    """A server whose replica answers at once, and whose threads read when the test says so."""

    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.storage = Storage()
        pairs = AppliedPairs(self.storage)
        self.machine = StateMachine(pairs, first_ownership=NOTHING)
        # Some of it reaches the tables, and the rest is applied in memory only.
        tuning = Tuning(flush_entries=50)
        self.replica = Replica(
            ME, self.storage, pairs, InlineDisk(), self.clock, lambda message: None, lambda n: 0, raise_again, tuning,
            machine=self.machine,
        )  # fmt: skip
        self.replica.start()
        self.replica.propose(Own(OWNED), lambda outcome: None)
        self.factory = ServerFactory(self.clock, self.replica, b"s0", b"", ownership=lambda: self.machine.ownership)
        host: Any = SimpleNamespace(group="s0", replica=self.replica, machine=self.machine, pairs=pairs)
        self.reads: list[Callable[[], None]] = []
        self.backups = Backups(self.clock, host, lambda: self.machine.ownership, self.in_thread)
        self.holds_reads = False
        self.factory.backups = self.backups
        self.client = Client(self.factory)

    def tearDown(self) -> None:
        for protocol in list(self.factory.connections):
            protocol.connectionLost()
        self.replica.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((self.storage.open_now, len(self.backups), self.factory.in_flight.count), ([], 0, 0))

    def in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        read: Deferred[Any] = Deferred()
        self.reads.append(lambda: read.callback(work()))
        if not self.holds_reads:
            self.reads.pop()()
        return read

    def put(self, key: bytes, value: bytes) -> None:
        self.assertNotIn(b"_error", self.client.call(codec.PUT, field(b"key", key) + blob(b"value", value)))

    def fill(self, count: int = MANY) -> dict[bytes, bytes]:
        pairs = {b"c%05d" % number: b"%d" % number for number in range(count)}
        for key, value in pairs.items():
            self.put(key, value)
        return pairs

    def ask(self, cursor: bytes | None = None, client: Client | None = None) -> Box:
        return (client or self.client).call(codec.BACKUP, b"" if cursor is None else field(b"cursor", cursor))

    def rest(self, box: Box) -> dict[bytes, bytes]:
        pairs = codec.decode_pairs(codec.take_blob(box, b"pairs"))
        while b"cursor" in box:
            box = self.ask(box[b"cursor"])
            pairs += codec.decode_pairs(codec.take_blob(box, b"pairs"))
        self.assertEqual([key for key, _ in pairs], sorted(key for key, _ in pairs))
        return dict(pairs)

    def assert_error(self, box: Box, code: bytes) -> None:
        self.assertEqual(box.get(b"_error_code"), code, box)

    def test_a_cut_shows_what_was_applied_then_and_nothing_later(self) -> None:
        expected = self.fill()
        self.assertLess(self.storage.applied_index, self.machine.last_applied, "some of it is in memory only")
        box = self.ask()
        self.assertEqual((box[b"group"], box[b"index"]), (b"s0", b"%d" % self.machine.last_applied))
        self.assertEqual(box[b"term"], b"%d" % self.replica.core.term)
        self.assertEqual(Ownership.decode(codec.take_blob(box, b"ownership")), OWNED)
        for number in range(200):  # so that what follows reaches the tables, too
            self.put(b"c%05d" % (MANY - 1 - number), b"later")
            self.put(b"m%d" % number, b"later")
        self.client.call(codec.DELETE, field(b"key", b"c%05d" % (MANY - 1)))
        self.assertEqual(self.rest(box), expected)
        self.assertEqual(self.storage.open_now, [], "after its last page it is closed")

    def test_a_group_without_pairs(self) -> None:
        box = self.ask()
        self.assertEqual((box[b"pairs"], b"cursor" in box), (b"", False))

    def test_with_tls_it_is_for_operators(self) -> None:
        self.fill()
        cursor = self.ask()[b"cursor"]
        other = Client(self.factory, "madkv://client/alice")
        for box in (self.ask(client=other), self.ask(cursor, other)):
            self.assert_error(box, b"REFUSED")
            self.assertEqual(
                box[b"_error_description"].decode(),
                "Backup is for operators: the certificate is of client alice; see docs/tls.md",
            )
        self.assertNotIn(b"_error", other.call(codec.GET, field(b"key", b"c1")))
        self.assertIn(b"cursor", self.ask(client=Client(self.factory, "madkv://operator/bob", "madkv://client/bob")))
        self.assertNotIn(b"cursor", self.ask(cursor), "one that is under way goes on")

    def test_only_a_leader_makes_one(self) -> None:
        self.replica.read = lambda key, released: released(NotLeader("another leads", 2))  # type: ignore[method-assign]
        box = self.ask()
        self.assert_error(box, b"NOT_LEADER")
        self.assertEqual(box[b"leader"], b"2")

    def test_a_cursor_is_good_on_its_connection_until_the_end(self) -> None:
        self.fill()
        cursor = self.ask()[b"cursor"]
        self.assert_error(self.ask(cursor, Client(self.factory)), b"SCAN_EXPIRED")
        self.assert_error(self.ask(b"77"), b"SCAN_EXPIRED")
        self.assert_error(self.ask(b"x"), b"INVALID_ARGUMENT")
        self.assertNotIn(b"cursor", self.ask(cursor))
        self.assert_error(self.ask(cursor), b"SCAN_EXPIRED")

    def test_there_are_few_at_a_time(self) -> None:
        self.fill()
        cursors = [self.ask()[b"cursor"] for _ in range(BACKUPS_MAX)]
        self.assert_error(self.ask(), b"BUSY")
        self.assertNotIn(b"cursor", self.ask(cursors[0]))
        self.assertIn(b"cursor", self.ask())

    def test_nobody_who_is_gone_keeps_one(self) -> None:
        self.fill()
        self.ask()
        self.assertEqual(len(self.storage.open_now), 1)
        self.client.protocol.connectionLost()
        self.assertEqual((self.storage.open_now, len(self.backups)), ([], 0))

    def test_one_that_a_thread_still_reads_counts_when_its_owner_is_gone(self) -> None:
        """Each has a place in LMDB's table of readers. Where that is full, the store cannot be read: a leader ends."""
        self.fill()
        clients = [Client(self.factory) for _ in range(BACKUPS_MAX)]
        self.holds_reads = True
        for client in clients:
            client.send(codec.BACKUP, b"")
            client.protocol.connectionLost()
        self.assertEqual(len(self.storage.open_now), BACKUPS_MAX)
        self.assert_error(self.ask(), b"BUSY")
        self.assertEqual(len(self.storage.open_now), BACKUPS_MAX)
        while self.reads:
            self.reads.pop()()
        self.holds_reads = False
        self.assertEqual(self.storage.open_now, [])
        self.assertIn(b"cursor", self.ask())

    def test_none_begins_for_somebody_who_is_gone(self) -> None:
        self.fill()
        read, waiting = self.replica.read, []
        self.replica.read = lambda key, released: waiting.append((key, released))  # type: ignore[method-assign]
        self.client.send(codec.BACKUP, b"")
        self.client.protocol.connectionLost()
        for each in waiting:
            read(*each)
        self.assertEqual((len(waiting), self.storage.open_now, len(self.backups)), (1, [], 0))

    def test_none_that_nobody_reads_lives_for_long(self) -> None:
        self.fill()
        cursor = self.ask()[b"cursor"]
        self.clock.advance(BACKUP_IDLE_SECONDS_MAX)
        self.assertEqual(self.storage.open_now, [])
        self.assert_error(self.ask(cursor), b"SCAN_EXPIRED")

    def test_none_lives_for_very_long(self) -> None:
        self.fill(3 * SCAN_PAGE_PAIRS)
        box = self.ask()
        self.holds_reads = True
        self.client.send(codec.BACKUP, field(b"cursor", box[b"cursor"]))
        self.clock.rightNow += BACKUP_SECONDS_MAX
        self.reads.pop()()
        (box,) = self.client.answers()
        self.assert_error(box, b"SCAN_EXPIRED")
        self.assertEqual(self.storage.open_now, [])

    def test_one_page_at_a_time(self) -> None:
        self.fill()
        cursor = self.ask()[b"cursor"]
        self.holds_reads = True
        self.client.send(codec.BACKUP, field(b"cursor", cursor))
        self.assert_error(self.ask(cursor), b"INVALID_ARGUMENT")
        self.reads.pop()()
        (box,) = self.client.answers()
        self.assertNotIn(b"_error", box)

    def test_what_a_thread_reads_is_closed_when_it_is_through(self) -> None:
        """Also at the end: the store is closed only then."""
        self.fill()
        cursor = self.ask()[b"cursor"]
        self.holds_reads = True
        self.client.send(codec.BACKUP, field(b"cursor", cursor))
        closing: Deferred[None] = Deferred.fromCoroutine(self.backups.close())
        self.assertEqual(len(self.storage.open_now), 1)
        self.assertNoResult(closing)
        self.assert_error(self.ask(), b"BUSY")
        self.reads.pop()()
        self.successResultOf(closing)
        self.assertEqual(self.storage.open_now, [])
        (box,) = self.client.answers()
        self.assert_error(box, b"SCAN_EXPIRED")

    def test_what_cannot_be_read_ends_it(self) -> None:
        self.fill()
        cursor = self.ask()[b"cursor"]
        damaged = Damaged("data.mdb: a record is damaged")
        self.backups._in_thread = lambda work: fail(damaged)
        box = self.ask(cursor)
        self.assert_error(box, b"INTERNAL_ERROR")
        self.assertIn(b"a record is damaged", box[b"_error_description"])
        self.assertEqual(self.storage.open_now, [])

    def test_servers_without_one(self) -> None:
        self.factory.backups = None
        self.assert_error(self.ask(), b"BUSY")
        self.factory.ownership = None
        self.assert_error(self.ask(), b"INVALID_ARGUMENT")
