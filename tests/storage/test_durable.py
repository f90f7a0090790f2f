"""The LMDB store: what was written is what is read, now and after opening it again."""

import os
from collections.abc import Iterator
from threading import Thread
from unittest import mock

import lmdb
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import ProtocolError
from madkv.raft.configuration import Member
from madkv.raft.messages import HardState
from madkv.storage import durable, snapshot
from madkv.storage.batch import Batch
from madkv.storage.directory import DATA_FILE
from madkv.storage.durable import DurableStorage, StoreFailed, StoreFull
from madkv.storage.records import Damaged
from madkv.storage.snapshot import SnapshotHead
from tests.storage.stores import (
    change,
    commit,
    configuration,
    entries,
    entry,
    fresh_path,
    install,
    log_of,
    opened,
    pieces_of,
)


class StoreCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = fresh_path(self)
        self.store = opened(self.path)
        self.addCleanup(self.close)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None

    def reopen(self) -> DurableStorage:
        self.close()
        self.store = opened(self.path)
        return self.store

    def commit(self, **parts: object) -> None:
        commit(self.store, Batch(**parts))

    def both(self) -> Iterator[DurableStorage]:
        """Now, and after opening it again."""
        yield self.store
        yield self.reopen()

    def seen(self) -> tuple[object, ...]:
        store = self.store
        facts = (store.hard_state, store.snapshot_index, store.snapshot_term, store.last_index, store.applied_index)
        return (*facts, store.configurations, log_of(store), [*store.pairs(b"", b"\xff" * 512)], store.sessions())


class WritingTest(StoreCase):
    def test_a_new_store(self) -> None:
        for _ in self.both():
            self.assertEqual(self.seen(), (HardState(), 0, 0, 0, 0, [(0, configuration(1, 2, 3))], [], [], []))

    def test_everything_in_a_batch_comes_back(self) -> None:
        vote = HardState(7, Member(2, b"d" * 16))
        self.commit(
            hard_state=vote,
            entries=(*entries(1, 3, 5), change(4, 7, 1, 2), *entries(5, 6, 7)),
            pairs={b"b": b"2", b"a": b"", b"z": None},
            sessions={b"s": b"row"},
            applied_index=5,
        )
        for store in self.both():
            self.assertEqual(store.hard_state, vote)
            self.assertEqual((store.snapshot_index, store.last_index, store.applied_index), (0, 6, 5))
            self.assertEqual([store.term_of(index) for index in range(8)], [0, 5, 5, 5, 7, 7, 7, None])
            self.assertEqual(store.configurations, [(0, configuration(1, 2, 3)), (4, configuration(1, 2))])
            self.assertEqual(log_of(store), [*entries(1, 3, 5), change(4, 7, 1, 2), *entries(5, 6, 7)])
            self.assertEqual([*store.pairs(b"", b"z")], [(b"a", b""), (b"b", b"2")])
            self.assertEqual((store.get(b"a"), store.get(b"b"), store.get(b"z")), (b"", b"2", None))
            self.assertEqual(store.sessions(), [(b"s", b"row")])

    def test_removing_and_ranges(self) -> None:
        self.commit(entries=entries(1, 1), pairs={b"%d" % n: b"v" for n in range(6)}, applied_index=1)
        self.commit(entries=entries(2, 2), pairs={b"2": None, b"3": b"new"}, applied_index=2)
        for store in self.both():
            self.assertEqual([key for key, _ in store.pairs(b"1", b"4")], [b"1", b"3", b"4"])
            self.assertEqual([*store.pairs(b"3", b"3")], [(b"3", b"new")])
            self.assertEqual([*store.pairs(b"4", b"3")], [])
            self.assertEqual([*store.pairs(b"6", b"9")], [])

    def test_entries_are_bounded_in_bytes(self) -> None:
        self.commit(entries=entries(1, 9))
        size = entry(1).size_bytes
        self.assertEqual(len(self.store.entries(1, 9, 1)), 1)
        self.assertEqual(len(self.store.entries(2, 9, 3 * size)), 3)
        self.assertEqual(self.store.entries(3, 5, 10**9), list(entries(3, 5)))

    def test_a_replaced_suffix(self) -> None:
        self.commit(entries=(*entries(1, 300), change(301, 1, 1, 2), *entries(302, 600)))
        self.commit(entries=entries(200, 210, 2))
        for store in self.both():
            self.assertEqual(log_of(store), [*entries(1, 199), *entries(200, 210, 2)])
            self.assertEqual(store.configurations, [(0, configuration(1, 2, 3))])
            self.assertEqual([store.term_of(index) for index in (199, 200, 211)], [1, 2, None])
        self.commit(entries=entries(1, 1, 3))
        for store in self.both():
            self.assertEqual(log_of(store), list(entries(1, 1, 3)))

    def test_what_does_not_fit_is_not_written(self) -> None:
        self.commit(entries=entries(1, 5), applied_index=3)
        before = self.seen()
        for wrong in (
            Batch(entries=entries(7, 8)),  # a gap
            Batch(entries=(entry(6), entry(8))),
            Batch(entries=(entry(7), entry(6))),
            Batch(entries=entries(3, 6, 2)),  # replaces what was applied
            Batch(entries=entries(6, 7, 0)),  # an older term than the entry before
            Batch(entries=(entry(6, 3), entry(7, 2))),
            Batch(applied_index=6),  # which no log covers
            Batch(applied_index=2),
            Batch(pairs={b"a": b"b"}),  # as of which index?
            Batch(compact_to=4),  # which no data covers
            Batch(entries=entries(6, 7), applied_index=7, compact_to=7),
        ):
            with self.assertRaises(AssertionError):
                self.store.write(wrong)
        for _ in self.both():
            self.assertEqual(self.seen(), before)


class CompactionTest(StoreCase):
    def test_the_log_is_cut(self) -> None:
        self.commit(entries=(*entries(1, 9), change(10, 2, 1, 2), *entries(11, 20, 3)), applied_index=15)
        self.assertEqual(self.store.compaction_target(99), 15)
        self.commit(compact_to=12)
        for store in self.both():
            self.assertEqual((store.snapshot_index, store.snapshot_term, store.last_index), (12, 3, 20))
            self.assertEqual(store.configurations, [(12, configuration(1, 2))])
            self.assertEqual(log_of(store), list(entries(13, 20, 3)))
            self.assertEqual((store.term_of(11), store.term_of(12)), (None, 3))
        self.assertEqual(self.store.compaction_target(12), None)
        self.commit(compact_to=15)
        self.commit(entries=entries(16, 17, 4))
        for store in self.both():
            self.assertEqual(log_of(store), list(entries(16, 17, 4)))

    def test_one_commit_removes_a_bounded_number(self) -> None:
        self.patch(durable, "REMOVED_ENTRIES_MAX", 10)

        def stored() -> int:
            with self.store._env.begin() as txn:
                return int(txn.stat(self.store._log_table)["entries"])

        self.commit(entries=entries(1, 35), applied_index=35)
        self.commit(compact_to=32)
        self.assertEqual(stored(), 35)
        left = []
        for index in range(36, 42):
            self.commit(entries=entries(index, index))
            left.append(stored() - (index - 35))
            self.assertEqual(log_of(self.reopen()), list(entries(33, index)))
        self.assertEqual(left, [25, 15, 5, 3, 3, 3])

    def test_a_commit_that_is_done_and_not_taken_over_hides_nothing_that_memory_speaks_of(self) -> None:
        """The writer's commit cuts the log; before the reactor hears of it, a follower asks for an entry of before."""
        self.commit(entries=entries(1, 9), applied_index=9)
        batch = Batch(compact_to=5)
        self.store.write(batch)
        self.assertEqual(self.store.entries(3, 6, 10**9), list(entries(3, 6)))
        self.store.written(batch)
        self.assertEqual(log_of(self.store), list(entries(6, 9)))


class FailureTest(StoreCase):
    def failing(self) -> Batch:
        """A commit that fails in its middle."""
        with mock.patch.object(durable, "encode_entry", side_effect=lmdb.DiskError("No space left on device")):
            batch = Batch(hard_state=HardState(9), entries=entries(1, 1))
            with self.assertRaisesRegex(StoreFailed, "a commit failed: No space left"):
                self.store.write(batch)
        return batch

    def test_nothing_is_half_written(self) -> None:
        self.failing()
        self.assertEqual(self.reopen().hard_state, HardState())

    def test_no_commit_follows_one_that_failed(self) -> None:
        batch = self.failing()
        with self.assertRaisesRegex(StoreFailed, "an earlier commit failed"):
            self.store.write(batch)
        with self.assertRaisesRegex(StoreFailed, "an earlier commit failed"):
            self.store.stage(SnapshotHead(1, 1, configuration(1)), 0, b"")

    def test_near_the_end_of_the_map_writes_are_refused(self) -> None:
        self.patch(durable, "MAP_BYTES", 120_000)
        self.patch(durable, "LOOK_BYTES", 1)
        with self.assertRaisesRegex(StoreFull, "near the limit of 120,000"):
            for number in range(1, 20):
                self.commit(entries=(entry(number, payload=b"x" * 4000),))
        self.assertGreater(self.store.last_index, 3)
        kept = self.seen()
        for _ in self.both():
            self.assertEqual(self.seen(), kept)

    def removing_everything(self) -> int:
        """A commit whose last pages LMDB takes, gives back and never writes; by how much the file is too short then."""
        keys = [(b"%04d" % number).ljust(400, b"k") for number in range(1000)]
        self.commit(entries=entries(1, 2), pairs=dict.fromkeys(keys, bytes(100)), applied_index=1)
        self.commit(hard_state=HardState(2), pairs=dict.fromkeys(keys), applied_index=2)
        return self.store.used_bytes - os.path.getsize(f"{self.path}/{DATA_FILE}")

    def test_a_file_is_never_shorter_than_what_is_checked_at_the_next_start(self) -> None:
        self.assertLess(self.removing_everything(), -durable.FILE_AHEAD_BYTES // 4)
        self.assertEqual(self.reopen().applied_index, 2)

    def test_left_alone_lmdb_leaves_a_file_too_short(self) -> None:
        """What the test before would see if the file were not kept longer: it can fail."""
        self.close()
        self.path = fresh_path(self)
        with mock.patch.object(DurableStorage, "_lengthen"):
            self.store = opened(self.path)
            self.assertGreater(self.removing_everything(), 0)
            self.close()
        self.assertRaisesRegex(Damaged, "was cut short", opened, self.path)

    def test_records_that_changed_are_not_taken_for_data(self) -> None:
        self.commit(entries=entries(1, 3), pairs={b"key": b"value" * 9}, sessions={b"s": b"sess" * 9}, applied_index=3)
        self.close()
        damages = {b"value" * 9: lambda: self.store.get(b"key"), b"sess" * 9: lambda: self.store.sessions()}
        data = f"{self.path}/{DATA_FILE}"
        for found, read in ({b"e2.1": None} | damages).items():
            with open(data, "r+b") as file:
                whole = file.read(1 << 20)
                at = whole.rindex(found) + 2
                file.seek(at)
                file.write(b"?")
                file.flush()
                if read is None:
                    self.assertRaises(Damaged, opened, self.path)
                else:
                    self.store = opened(self.path)
                    self.assertRaises(Damaged, read)
                    self.close()
                file.seek(at)
                file.write(whole[at : at + 1])


class SnapshotTest(StoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(snapshot, "PIECE_BYTES", 100)
        self.source = opened(fresh_path(self))
        self.pairs = {b"key%03d" % n: b"value %d" % n for n in range(60)}
        commit(
            self.source,
            Batch(
                entries=(*entries(1, 6, 2), change(7, 3, 1, 2), *entries(8, 10, 3), change(11, 3, 1)),
                pairs=self.pairs,
                sessions={b"s1": b"one", b"s2": b""},
                applied_index=10,
            ),
        )
        reader = self.source.open_snapshot()
        self.head, self.pieces = reader.head, pieces_of(reader)
        self.source.close()

    def assertInstalled(self, *later: object) -> None:
        for store in self.both():
            self.assertEqual((store.snapshot_index, store.snapshot_term, store.applied_index), (10, 3, 10))
            self.assertEqual(dict(store.pairs(b"", b"z")), self.pairs)
            self.assertEqual(store.sessions(), [(b"s1", b"one"), (b"s2", b"")])
            changes = [(11, configuration(1))] if change(11, 3, 1) in later else []
            self.assertEqual(store.configurations, [(10, configuration(1, 2)), *changes])
            self.assertEqual(log_of(store), list(later))

    def test_its_head_is_of_the_applied_index(self) -> None:
        self.assertEqual(self.head, SnapshotHead(10, 3, configuration(1, 2)))
        self.assertGreater(len(self.pieces), 5)
        self.assertTrue(all(len(piece) < 150 for _, piece in self.pieces))

    def test_into_an_empty_store(self) -> None:
        install(self.store, self.head, self.pieces)
        self.assertInstalled()
        self.commit(entries=entries(11, 12, 4), pairs={b"key000": None}, applied_index=12)
        del self.pairs[b"key000"]
        self.assertEqual(dict(self.reopen().pairs(b"", b"z")), self.pairs)

    def test_over_other_data(self) -> None:
        self.commit(entries=entries(1, 3), pairs={b"other": b"1"}, sessions={b"x": b"y"}, applied_index=2)
        install(self.store, self.head, self.pieces)
        self.assertInstalled()

    def test_entries_after_it_stay_if_the_log_holds_its_last_one(self) -> None:
        later = (change(11, 3, 1), *entries(12, 15, 4))
        self.commit(entries=(*entries(1, 10, 3), *later), applied_index=2)
        install(self.store, self.head, self.pieces)
        self.assertInstalled(*later)
        self.assertEqual(self.store.configurations, [(10, configuration(1, 2)), (11, configuration(1))])
        self.commit(entries=entries(14, 14, 5))
        self.assertInstalled(*later[:3], entry(14, 5))

    def test_entries_after_it_go_if_the_log_holds_another_there(self) -> None:
        self.commit(entries=entries(1, 15, 2), applied_index=2)
        install(self.store, self.head, self.pieces)
        self.assertInstalled()
        self.commit(entries=entries(11, 11, 4))
        self.assertInstalled(entry(11, 4))

    def test_an_install_that_is_done_and_not_taken_over_hides_nothing(self) -> None:
        """Entries that are committed are still applied while the writer installs; they are read from the log."""
        self.commit(entries=entries(1, 5), pairs={b"old": b"1"}, applied_index=2)
        for offset, piece in self.pieces:
            self.store.stage(self.head, offset, piece)
        self.store.install(self.head)
        self.assertEqual(log_of(self.store), list(entries(1, 5)))
        self.assertEqual([*self.store.pairs(b"", b"z")], [(b"old", b"1")])
        reader = self.store.open_snapshot()
        self.assertEqual((reader.head, pieces_of(reader)), (self.head, self.pieces), "all of it from one state")
        self.store.installed(self.head)
        self.assertInstalled()

    def test_a_snapshot_takes_its_configuration_from_the_state_that_it_reads(self) -> None:
        """A commit brings a configuration and applies it, and is done, but not taken over, when a snapshot begins."""
        batch = Batch(entries=(change(1, 1, 7), entry(2)), applied_index=1)
        self.store.write(batch)
        reader = self.store.open_snapshot()
        reader.close()
        self.assertEqual(reader.head, SnapshotHead(1, 1, configuration(7)))
        self.store.written(batch)

    def test_pieces_lost_repeated_and_in_another_order(self) -> None:
        (first, one), (second, two), (third, three), *rest = self.pieces
        self.assertEqual(self.store.stage(self.head, second, two), 0)
        self.assertEqual(self.store.stage(self.head, first, one), second)
        self.assertEqual(self.store.stage(self.head, third, three), second)
        self.assertEqual(self.store.stage(self.head, first, one), second)
        self.assertEqual(self.store.stage(self.head, second, two), third)
        install(self.store, self.head, [(third, three), *rest])
        self.assertInstalled()

    def test_another_snapshot_throws_away_what_was_staged(self) -> None:
        other = SnapshotHead(9, 3, configuration(1))
        record = snapshot._RECORD.pack(snapshot.PAIRS, 3, 1) + b"zzz1"
        self.assertEqual(self.store.stage(other, 0, record), len(record))
        install(self.store, self.head, self.pieces)
        self.assertInstalled()

    def test_start_up_throws_away_what_was_staged(self) -> None:
        for offset, piece in self.pieces[:3]:
            self.store.stage(self.head, offset, piece)
        self.assertEqual(self.seen(), (HardState(), 0, 0, 0, 0, [(0, configuration(1, 2, 3))], [], [], []))
        self.reopen()
        with self.store._env.begin() as txn:
            self.assertEqual([txn.stat(table)["entries"] for table in self.store._state_tables[1]], [0, 0])
        self.assertEqual(self.store.stage(self.head, *self.pieces[3]), 0)
        install(self.store, self.head, self.pieces)
        self.assertInstalled()

    def test_one_snapshot_after_another(self) -> None:
        install(self.store, self.head, self.pieces)
        other = SnapshotHead(20, 4, configuration(2))
        record = snapshot._RECORD.pack(snapshot.PAIRS, 3, 1) + b"zzz1"
        install(self.store, other, [(0, record)])
        for store in self.both():
            self.assertEqual(([*store.pairs(b"", b"zzzz")], store.sessions()), ([(b"zzz", b"1")], []))

    def test_what_is_no_piece_changes_nothing(self) -> None:
        record = snapshot._RECORD.pack(snapshot.PAIRS, 3, 1) + b"zzz1"
        for wrong in (b"\0", record[:-1], b"\7" + record[1:], record + record, snapshot._RECORD.pack(0, 0, 1) + b"1"):
            with self.assertRaises(ProtocolError):
                self.store.stage(self.head, 0, wrong)
        install(self.store, self.head, self.pieces)
        self.assertInstalled()

    def test_it_stands_still_while_the_store_goes_on(self) -> None:
        install(self.store, self.head, self.pieces)
        reader = self.store.open_snapshot()
        for index in range(11, 40):
            changes = {b"key%03d" % (index - 11): None, b"new%d" % index: b"1"}
            sessions = {b"s1": None, b"s%d" % index: b"1"}
            self.commit(entries=entries(index, index, 3), pairs=changes, sessions=sessions, applied_index=index)
        self.assertEqual((reader.head, pieces_of(reader)), (self.head, self.pieces))


class ThreadTest(StoreCase):
    def test_reading_while_another_thread_writes(self) -> None:
        """Every reading sees one commit: the same number under all keys, and it never goes back."""
        keys = [b"%d" % number for number in range(20)]
        self.commit(entries=entries(1, 1), pairs=dict.fromkeys(keys, b"%09d" % 1), applied_index=1)
        last = 1
        for index in range(2, 120):
            batch = Batch(
                entries=entries(index, index), pairs=dict.fromkeys(keys, b"%09d" % index), applied_index=index
            )
            writer = Thread(target=self.store.write, args=(batch,))
            writer.start()
            while writer.is_alive():
                values = {value for _, value in self.store.pairs(b"", b"a")} | {self.store.get(b"7")}
                self.store.end_turn()
                found = int(max(value for value in values if value is not None))
                self.assertEqual((len(values), found in (index - 1, index), found >= last), (1, True, True))
                last = found
            writer.join()
            self.store.written(batch)
            self.assertEqual(self.store.get(b"7"), b"%09d" % index)
