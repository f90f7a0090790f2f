"""Scan cursors: whose they are, how many, and for how long."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import ScanExpired
from madkv.limits import SCAN_CURSOR_SECONDS_MAX, SCAN_CURSORS_MAX, SCAN_CURSORS_PER_CONNECTION_MAX
from madkv.server.cuts import Cuts
from madkv.storage.memory import Cut, MemoryStore, Pair


class CutsTest(SynchronousTestCase):
    """Cursors by themselves, for owners that are any objects."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.cuts = Cuts(self.clock)
        self.store = MemoryStore()
        for number in range(100):
            self.store.put(b"%02d" % number, b"v")

    def tearDown(self) -> None:
        self.assertEqual(len(self.clock.getDelayedCalls()), 1 if len(self.cuts) else 0)

    def cut(self) -> Cut:
        return self.store.cut(b"", b"99")

    def test_a_cursor_is_good_for_one_page(self) -> None:
        cut, owner = self.cut(), object()
        cursor = self.cuts.keep(cut, owner)
        self.assertIs(self.cuts.take(cursor, owner), cut)
        self.assertTrue(cut.open)
        with self.assertRaises(ScanExpired):
            self.cuts.take(cursor, owner)
        self.assertEqual(len(self.cuts), 0)

    def test_a_cursor_of_another_connection_is_refused_and_kept(self) -> None:
        cut, owner = self.cut(), object()
        cursor = self.cuts.keep(cut, owner)
        for wrong_cursor, wrong_owner in ((cursor, object()), (cursor + 1, owner), (0, owner)):
            with self.assertRaises(ScanExpired):
                self.cuts.take(wrong_cursor, wrong_owner)
        self.assertIs(self.cuts.take(cursor, owner), cut)

    def test_bound_per_connection(self) -> None:
        owner, other = object(), object()
        others = self.cut()
        kept_for_other = self.cuts.keep(others, other)
        kept = [self.cuts.keep(self.cut(), owner) for _ in range(SCAN_CURSORS_PER_CONNECTION_MAX)]
        one_more = self.cuts.keep(self.cut(), owner)
        self.assertEqual(len(self.cuts), SCAN_CURSORS_PER_CONNECTION_MAX + 1)
        with self.assertRaises(ScanExpired):
            self.cuts.take(kept[0], owner)
        for cursor in (*kept[1:], one_more):
            self.assertTrue(self.cuts.take(cursor, owner).open)
        self.assertIs(self.cuts.take(kept_for_other, other), others)
        self.assertTrue(others.open)

    def test_bound_in_all(self) -> None:
        owners = [object() for _ in range(SCAN_CURSORS_MAX)]
        kept = [(self.cuts.keep(self.cut(), owner), owner) for owner in owners]
        newest_owner = object()
        newest = self.cuts.keep(self.cut(), newest_owner)
        self.assertEqual(len(self.cuts), SCAN_CURSORS_MAX)
        with self.assertRaises(ScanExpired):
            self.cuts.take(*kept[0])
        self.assertEqual(len(self.store._cuts), SCAN_CURSORS_MAX, "a cut that is given up is closed")
        for cursor, owner in kept[1:]:
            self.assertTrue(self.cuts.take(cursor, owner).open)
        self.assertTrue(self.cuts.take(newest, newest_owner).open)

    def test_a_cursor_nobody_asks_for_expires(self) -> None:
        owner = object()
        first, second = self.cut(), self.cut()
        first_cursor = self.cuts.keep(first, owner)
        self.clock.advance(SCAN_CURSOR_SECONDS_MAX / 2)
        second_cursor = self.cuts.keep(second, owner)
        self.clock.advance(SCAN_CURSOR_SECONDS_MAX / 2 - 0.1)
        self.assertTrue(first.open)
        self.clock.advance(0.2)
        self.assertFalse(first.open)
        self.assertTrue(second.open)
        with self.assertRaises(ScanExpired):
            self.cuts.take(first_cursor, owner)
        self.clock.advance(SCAN_CURSOR_SECONDS_MAX / 2)
        self.assertFalse(second.open)
        with self.assertRaises(ScanExpired):
            self.cuts.take(second_cursor, owner)
        self.assertEqual((len(self.cuts), self.store._undo_bytes), (0, 0))

    def test_each_page_begins_the_time_anew(self) -> None:
        owner, cut = object(), self.cut()
        cursor = self.cuts.keep(cut, owner)
        for _ in range(5):
            self.clock.advance(SCAN_CURSOR_SECONDS_MAX - 1)
            cursor = self.cuts.keep(self.cuts.take(cursor, owner), owner)
        self.assertTrue(cut.open)

    def test_a_lost_connection_closes_its_cuts_alone(self) -> None:
        owner, other = object(), object()
        mine, others = [self.cut(), self.cut()], self.cut()
        for cut in mine:
            self.cuts.keep(cut, owner)
        cursor = self.cuts.keep(others, other)
        self.cuts.close_all_of(owner)
        self.cuts.close_all_of(owner)
        self.assertEqual([cut.open for cut in (*mine, others)], [False, False, True])
        self.assertIs(self.cuts.take(cursor, other), others)

    def test_a_scan_of_many_pages_is_one_cut_while_writes_go_on(self) -> None:
        owner = object()
        before = sorted(self.store._live.items())
        cut = self.cut()
        pages: list[list[Pair]] = []
        number = 0
        while True:
            pages.append(cut.page(pairs_max=7))
            if cut.done:
                break
            cursor = self.cuts.keep(cut, owner)
            self.store.delete(b"%02d" % (99 - number))
            self.store.put(b"%02d" % number, b"changed")
            self.store.put(b"%02d+" % number, b"new")
            number += 1
            cut = self.cuts.take(cursor, owner)
        self.assertEqual([pair for page in pages for pair in page], before)
        self.assertGreater(len(pages), 10)
        cut.close()
        self.assertEqual(self.store._undo_bytes, 0)
