"""The service of a server in a cluster: what its group owns, scans page by page, and where else to go."""

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.limits import SCAN_PAGE_PAIRS
from madkv.operations import Own
from madkv.raft.configuration import Configuration, Member
from madkv.ranges import NOTHING, KeyRange, Ownership
from madkv.server.disk import InlineDisk
from madkv.server.replica import Replica
from madkv.server.service import ServerFactory
from madkv.state_machine import StateMachine
from madkv.storage.overlay import AppliedPairs
from madkv.storage.twin import TwinDisk, TwinStorage
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field
from tests.test_service import Client, raise_again

ME = Member(0, bytes(16))
OWNED = Ownership(3, (KeyRange(b"b", b"d"), KeyRange(b"d", b"f"), KeyRange(b"m", None)))
"""Two ranges that touch, and one that has no end."""


class ClusteredServiceTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        storage = TwinStorage(TwinDisk(), Configuration(frozenset({ME})))
        pairs = AppliedPairs(storage)
        self.machine = StateMachine(pairs, first_ownership=NOTHING)
        clock: Any = self.clock
        self.replica = Replica(
            ME, storage, pairs, InlineDisk(), clock, lambda message: None, lambda n: 0, raise_again,
            machine=self.machine,
        )  # fmt: skip
        self.replica.start()
        self.factory = ServerFactory(
            clock, self.replica, b"s0", b"", status=lambda: {"term": 1}, ownership=lambda: self.machine.ownership
        )
        self.client = Client(self.factory)

    def own(self, ownership: Ownership = OWNED) -> None:
        self.replica.propose(Own(ownership), lambda outcome: self.assertIsNone(outcome))

    def put(self, key: bytes, value: bytes = b"v") -> Box:
        return self.client.call(codec.PUT, field(b"key", key) + blob(b"value", value))

    def scan(self, start: bytes, end: bytes, cursor: bytes | None = None) -> tuple[list[bytes], Box]:
        fields = field(b"start", start) + field(b"end", end)
        box = self.client.call(codec.SCAN, fields if cursor is None else fields + field(b"cursor", cursor))
        self.assertNotIn(b"_error", box)
        return [key for key, _ in codec.take_page(box)[0]], box

    def test_it_owns_nothing_until_its_log_says_so(self) -> None:
        for answer in (
            self.put(b"c"),
            self.client.call(codec.GET, field(b"key", b"c")),
            self.client.call(codec.SCAN, field(b"start", b"c") + field(b"end", b"c")),
        ):
            self.assertEqual((answer[b"_error_code"], answer[b"epoch"]), (b"WRONG_PARTITION", b"0"))
        self.own()
        self.assertEqual(self.put(b"c")[b"found"], b"False")
        self.assertEqual(self.put(b"g")[b"epoch"], b"3")

    def test_a_scan_goes_no_further_than_what_is_owned_without_a_gap(self) -> None:
        self.own()
        for key in (b"b", b"c", b"d", b"e~", b"m", b"z"):
            self.put(key)
        keys, box = self.scan(b"b", b"z")
        self.assertEqual((keys, box[b"until"], box.get(b"cursor")), ([b"b", b"c", b"d", b"e~"], b"f", None))
        keys, box = self.scan(b"c", b"d")
        self.assertEqual((keys, box.get(b"until"), box.get(b"cursor")), ([b"c", b"d"], None, None))
        self.assertEqual(self.scan(b"b", b"f")[1][b"until"], b"f")
        self.assertNotIn(b"until", self.scan(b"b", b"e~~")[1])
        keys, box = self.scan(b"m", b"\xff")
        self.assertEqual((keys, box.get(b"until")), ([b"m", b"z"], None))
        self.assertEqual(self.scan(b"c", b"b"), ([], {b"_answer": b"12", b"pairs": b""}))

    def test_a_long_scan_comes_in_pages_each_of_a_point_of_its_own(self) -> None:
        self.own()
        count = SCAN_PAGE_PAIRS + 10
        for number in range(count):
            self.put(b"c%05d" % number)
        first, box = self.scan(b"b", b"z")
        cursor = box[b"cursor"]
        self.assertEqual((len(first), cursor), (SCAN_PAGE_PAIRS, first[-1]))
        self.assertNotIn(b"until", box)
        self.put(b"c%05d" % (count - 1), b"changed")
        self.put(b"d")
        again = Client(self.factory)  # the cursor is good anywhere
        fields = field(b"start", b"b") + field(b"end", b"z") + field(b"cursor", cursor)
        box = again.call(codec.SCAN, fields)
        pairs, rest = codec.take_page(box)
        self.assertEqual([key for key, _ in pairs], [b"c%05d" % n for n in range(SCAN_PAGE_PAIRS, count)] + [b"d"])
        self.assertEqual((pairs[-2][1], rest, box[b"until"]), (b"changed", None, b"f"))

    def test_a_page_whose_range_was_taken_away_is_refused(self) -> None:
        self.own()
        self.put(b"c")
        self.own(Ownership(4, (KeyRange(b"m", None),)))
        fields = field(b"start", b"b") + field(b"end", b"z") + field(b"cursor", b"c")
        answer = self.client.call(codec.SCAN, fields)
        self.assertEqual((answer[b"_error_code"], answer[b"epoch"]), (b"WRONG_PARTITION", b"4"))

    def test_a_cursor_that_is_none(self) -> None:
        self.own()
        for cursor in (b"", b"x" * 512):
            fields = field(b"start", b"b") + field(b"end", b"z") + field(b"cursor", cursor)
            self.assertEqual(self.client.call(codec.SCAN, fields)[b"_error_code"], b"INVALID_ARGUMENT")

    def test_who_it_is_and_how(self) -> None:
        self.factory.cluster = b"c0ffee"
        hello = self.client.call(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
        self.assertEqual((hello[b"role"], hello[b"cluster"], hello[b"boot"]), (b"server", b"c0ffee", b""))
        status = json.loads(self.client.call(codec.STATUS)[b"status"])
        self.assertEqual((status["node"], status["term"]), ("s0", 1))
