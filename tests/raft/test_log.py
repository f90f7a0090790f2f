"""The log of one replica: what is on disk, what is on its way there, and what is in memory only."""

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.configuration import Configuration
from madkv.raft.log import RaftLog
from madkv.raft.messages import Entry
from tests.raft.group import Disk, entry, members

BIG = 10**9


def disk(*terms: int) -> Disk:
    found = Disk(Configuration(members(1)))
    found.log = [entry(index, term) for index, term in enumerate(terms, 1)]
    return found


def write(log: RaftLog, on: Disk, entries: list[Entry]) -> None:
    """What a persist of these does."""
    if entries:
        del on.log[entries[0].index - on.snapshot_index - 1 :]
        on.log += entries
        log.persisted(entries[-1].index, entries[-1].term)


class RaftLogTest(SynchronousTestCase):
    """One log on one disk."""

    def test_an_empty_log(self) -> None:
        log = RaftLog(disk())
        self.assertEqual((log.first_index, log.last_index, log.last_term, log.stable_index), (1, 0, 0, 0))
        self.assertEqual((log.term_of(0), log.term_of(1)), (0, None))
        self.assertTrue(log.holds(0, 0))
        self.assertFalse(log.holds(1, 0))
        self.assertEqual(log.take_unpersisted(log.last_index), [])

    def test_it_takes_up_where_the_disk_left_off(self) -> None:
        log = RaftLog(disk(1, 1, 2))
        self.assertEqual((log.last_index, log.last_term, log.stable_index, log.taken_index), (3, 2, 3, 3))
        self.assertEqual(log.entries(2, 3, BIG), [entry(2, 1), entry(3, 2)])

    def test_up_to_date(self) -> None:
        """5.4.1: the later last term, or with the same term the longer log."""
        log = RaftLog(disk(1, 1, 2))
        for last_index, last_term, is_up_to_date in ((3, 2, True), (2, 2, False), (9, 1, False), (1, 3, True)):
            self.assertEqual(log.is_up_to_date(last_index, last_term), is_up_to_date)

    def test_entries_over_disk_and_memory(self) -> None:
        log = RaftLog(disk(1, 1))
        log.append(entry(3, 2))
        log.append(entry(4, 2))
        self.assertEqual(log.entries(3, 4, BIG), [entry(3, 2), entry(4, 2)])
        self.assertEqual(log.entries(1, 4, BIG), [entry(1, 1), entry(2, 1)])
        self.assertEqual(log.entries(4, 4, BIG), [entry(4, 2)])

    def test_entries_are_bounded_and_at_least_one(self) -> None:
        for log in (RaftLog(disk(1, 1, 1, 1)), RaftLog(disk())):
            while log.last_index < 4:
                log.append(entry(log.last_index + 1, 1))
            size = entry(1, 1).size_bytes
            for bytes_max, count in ((1, 1), (size, 1), (size + 1, 2), (3 * size, 3), (BIG, 4)):
                self.assertEqual(len(log.entries(1, 4, bytes_max)), count)
            self.assertEqual(len(log.entries(2, 3, BIG)), 2)

    def test_what_is_taken_is_taken_once(self) -> None:
        log = RaftLog(disk(1))
        log.append(entry(2, 1))
        self.assertEqual(log.take_unpersisted(log.last_index), [entry(2, 1)])
        self.assertEqual((log.take_unpersisted(log.last_index), log.taken_index, log.stable_index), ([], 2, 1))
        log.append(entry(3, 1))
        self.assertEqual(log.take_unpersisted(log.last_index), [entry(3, 1)])
        log.persisted(2, 1)
        self.assertEqual(log.stable_index, 2)
        log.persisted(3, 1)
        log.persisted(2, 1)
        self.assertEqual(log.stable_index, 3)

    def test_truncating_what_is_on_disk(self) -> None:
        """The disk holds the old entries until the next write; the log must not see them any more."""
        log = RaftLog(disk(1, 1, 1, 1))
        log.truncate(3)
        self.assertEqual((log.last_index, log.taken_index, log.stable_index), (2, 2, 2))
        self.assertIsNone(log.term_of(3))
        log.append(entry(3, 2))
        self.assertEqual((log.term_of(3), log.term_of(4)), (2, None))
        self.assertEqual(log.take_unpersisted(log.last_index), [entry(3, 2)])

    def test_truncating_what_is_on_its_way(self) -> None:
        """A completion names index and term: that of entries which were replaced since says nothing."""
        log = RaftLog(disk(1))
        for index in (2, 3, 4):
            log.append(entry(index, 1))
        log.take_unpersisted(log.last_index)
        log.truncate(3)
        log.append(entry(3, 2))
        log.append(entry(4, 2))
        log.persisted(4, 1)
        self.assertEqual(log.stable_index, 1)
        self.assertEqual(log.take_unpersisted(log.last_index), [entry(3, 2), entry(4, 2)])
        log.persisted(4, 1)
        self.assertEqual(log.stable_index, 1)
        log.persisted(4, 2)
        self.assertEqual(log.stable_index, 4)

    def test_memory_is_bounded_by_what_is_not_on_disk(self) -> None:
        on = disk()
        log = RaftLog(on)
        for index in range(1, 101):
            log.append(entry(index, 1))
            if index % 10 == 0:
                write(log, on, log.take_unpersisted(log.last_index))
                log.forget(index - 5, 200)
                self.assertLessEqual(log._tail_first, index - 4, "what is not applied stays")
        self.assertLess(len(log._tail), 8)
        self.assertEqual(log._tail_bytes, sum(each.size_bytes for each in log._tail))
        self.assertEqual([each.index for each in log.entries(1, 100, BIG)], list(range(1, log._tail_first)))

    def test_compaction_below(self) -> None:
        on = disk(1, 1, 2, 2)
        log = RaftLog(on)
        on.compact(3, bytes(32))
        self.assertEqual((log.first_index, log.last_index, log.last_term), (4, 4, 2))
        self.assertEqual((log.term_of(3), log.term_of(2)), (2, None))
        on.compact(4, bytes(32))
        self.assertEqual((log.first_index, log.last_index, log.last_term), (5, 4, 2))

    def test_it_equals_a_list(self) -> None:
        """Whatever happens in whatever order: the same entries as in a plain list, and the disk as it was told."""
        for seed in range(300):
            self.random_log(Random(seed))

    def random_log(self, random: Random) -> None:
        bytes_kept = random.choice([0, 150, 10**6])
        on = disk(*[1] * random.randrange(4))
        log = RaftLog(on)
        plain = list(on.log)
        under_way: list[Entry] = []
        committed = 0
        for _ in range(60):
            match random.randrange(6):
                case 0 | 1:
                    term = max([random.randrange(1, 5), *(each.term for each in plain)])
                    plain.append(entry(len(plain) + 1, term))
                    log.append(plain[-1])
                case 2 if committed < len(plain):
                    first = random.randrange(committed + 1, len(plain) + 1)
                    del plain[first - 1 :]
                    log.truncate(first)
                    plain.append(entry(first, 9))
                    log.append(plain[-1])
                    if first > 1:
                        committed = first
                case 3 if not under_way:
                    under_way = log.take_unpersisted(log.last_index)
                case 4:
                    write(log, on, under_way)
                    under_way = []
                case 5:
                    committed = max(committed, random.randrange(log.stable_index + 1))
                    log.forget(committed, bytes_kept)
                    durable = [each.term for each in on.log]
                    self.assertLessEqual(log.stable_index, len(durable))
            self.assertEqual(log.last_index, len(plain))
            self.assertEqual([log.term_of(each.index) for each in plain], [each.term for each in plain])
            self.assertIsNone(log.term_of(len(plain) + 1))
            self.assertEqual(on.log[: log.stable_index], plain[: log.stable_index])
            if plain:
                first = random.randrange(1, len(plain) + 1)
                got = log.entries(first, len(plain), random.choice([1, 100, BIG]))
                self.assertEqual(got, plain[first - 1 : first - 1 + len(got)])
