"""How much of the log there is, in bytes, without asking the disk."""

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.configuration import Configuration
from madkv.raft.messages import Entry, EntryKind
from madkv.storage.index import LogIndex

NOBODY = Configuration(frozenset())
OFF_MAX = 64 * 1024 + 2000
"""A mark is set after so many bytes at most, and the entry that reaches it."""


def index_with(sizes: list[int], term: int = 1) -> LogIndex:
    index = LogIndex(0, 0, NOBODY)
    for at, size in enumerate(sizes, 1):
        index.append(Entry(at, term, EntryKind.OPERATION, bytes(size)))
    return index


class SizesTest(SynchronousTestCase):
    def test_a_log_is_cut_by_count(self) -> None:
        index = index_with([10] * 1000)
        self.assertEqual(index.cut(100, 1 << 30), 900)
        self.assertEqual(index.cut(5000, 1 << 30), 0, "all of it fits")

    def test_a_log_is_cut_by_bytes(self) -> None:
        index = index_with([872] * 1000)
        cut = index.cut(5000, 100_000)
        self.assertGreaterEqual(cut, 900)
        self.assertLess(cut, 900 + 64)
        self.assertEqual(index.cut(5000, 2_000_000), 0)

    def test_large_entries_are_marked_one_by_one(self) -> None:
        index = index_with([1_000_000] * 20)
        self.assertEqual(index.cut(5000, 5_500_000), 15)

    def test_what_is_replaced_is_not_counted_twice(self) -> None:
        """A new leader's entries take the place of others, again and again."""
        index = index_with([872] * 500)
        for term in range(2, 40):
            for at in range(301, 501):
                index.append(Entry(at, term, EntryKind.OPERATION, bytes(872)))
        self.assertEqual(index.cut(5000, 520_000), 0)
        self.assertGreater(index.cut(5000, 480_000), 0)

    def test_against_a_log_that_is_counted(self) -> None:
        """Any mixture of appending, replacing and cutting."""
        for seed in range(60):
            random = Random(seed)
            index, log, first, term = LogIndex(0, 0, NOBODY), [], 1, 1
            for _ in range(600):
                what = random.random()
                if what < 0.9 or not log:
                    entry = Entry(first + len(log), term, EntryKind.OPERATION, bytes(random.choice((5, 300, 1500))))
                    log.append(entry)
                    index.append(entry)
                elif what < 0.95:
                    term += 1
                    del log[random.randrange(len(log)) :]
                    entry = Entry(first + len(log), term, EntryKind.OPERATION, bytes(20))
                    log.append(entry)
                    index.append(entry)
                elif random.random() < 0.3:
                    gone = random.randrange(len(log))
                    del log[:gone]
                    first += gone
                    index.compact(first - 1)
                bytes_kept = random.choice((1000, 30_000, 200_000))
                cut = index.cut(1 << 30, bytes_kept)
                self.assertGreaterEqual(cut, first - 1)
                self.assertLessEqual(cut, index.last_index)
                kept = sum(entry.size_bytes for entry in log[cut - first + 1 :])
                one_less = sum(entry.size_bytes for entry in log[max(0, cut - first - 63) :])
                self.assertLess(kept, bytes_kept + OFF_MAX)
                if cut > first - 1:
                    self.assertGreater(one_less, bytes_kept - OFF_MAX)
