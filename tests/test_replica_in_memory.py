"""The replica of a server without a disk: a group of one that leads from the start, and takes no memory that grows."""

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import Interrupted
from madkv.limits import FLUSH_ENTRIES, KIB, SESSION_SECONDS
from madkv.operations import OpenSession, Operation, Write, WriteKind
from madkv.raft.configuration import Member
from madkv.raft.core import Role
from madkv.server import tap
from madkv.server.tap import replica_in_memory
from madkv.storage.memory import MemoryStore


class ReplicaInMemoryTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore()
        self.failures: list[Exception] = []
        self.replica = replica_in_memory(self.store, Member(0, bytes(16)), self.clock, self.failures.append)
        self.replica.start()

    def tearDown(self) -> None:
        self.replica.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def propose(self, operation: Operation) -> Any:
        answers: list[Any] = []
        self.replica.propose(operation, answers.append)
        (answer,) = answers
        return answer

    def put(self, key: bytes, value: bytes = b"v", **session: int) -> Any:
        return self.propose(Write(WriteKind.PUT, key, value, **session))

    def read(self, key: bytes) -> Any:
        found: list[Any] = []
        self.replica.read(key, lambda pairs: found.append(pairs.get(key)))
        (value,) = found
        return value

    def test_it_serves_from_the_start_and_at_once(self) -> None:
        self.assertIs(self.replica.core.role, Role.LEADER)
        self.assertEqual(self.put(b"k", b"1"), False)
        self.assertEqual(self.read(b"k"), b"1")
        self.assertEqual(self.propose(Write(WriteKind.SWAP, b"k", b"2")), b"1")
        self.assertEqual(self.read(b"k"), b"2")

    def test_calls_made_by_answers_do_not_pile_up(self) -> None:
        """As those of a connection that was held back until it gets an answer. Python's stack is not that deep."""
        count = 5000
        swapped: list[Any] = []
        found: list[Any] = []

        def next_swap(old: Any) -> None:
            swapped.append(old)
            if len(swapped) <= count:
                self.replica.propose(Write(WriteKind.SWAP, b"k", b"%d" % len(swapped)), next_swap)

        def next_get(pairs: MemoryStore) -> None:
            found.append(pairs.get(b"k"))
            if len(found) < count:
                self.replica.read(b"k", next_get)

        next_swap(None)
        self.assertEqual(swapped, [None, None, *(b"%d" % number for number in range(1, count))])
        self.replica.read(b"k", next_get)
        self.assertEqual(found, [b"%d" % count] * count)
        self.assertEqual(self.failures, [])

    def test_it_leads_for_ever(self) -> None:
        for _ in range(1000):
            self.clock.advance(0.06)
        self.assertEqual((self.replica.core.role, self.replica.core.term), (Role.LEADER, 1))
        self.assertEqual(self.put(b"k"), False)

    def test_memory_does_not_grow_with_the_writes(self) -> None:
        session = self.propose(OpenSession(bytes(16)))
        replica, core = self.replica, self.replica.core
        for sequence in range(1, 3 * FLUSH_ENTRIES):
            self.put(b"k", b"v" * 100, session=session, sequence=sequence, floor=sequence)
        self.assertLess(core.log._tail_bytes, tap.TAIL_BYTES_KEPT * 5 // 4 + KIB)
        self.assertLess(len(core.log._tail), 1000)
        self.assertLessEqual(core.log.last_index - replica._storage.applied_index, FLUSH_ENTRIES + 1)
        sessions = replica.state_machine._sessions
        self.assertLessEqual(len(sessions._changed_records), FLUSH_ENTRIES + 1)
        self.assertEqual((len(replica._waiters), replica._waiting_bytes, replica._unwritten_bytes), (0, 0, 0))
        self.assertEqual((len(replica._to_apply), len(replica._released), len(core._leading.rounds)), (0, 0, 0))

    def test_a_value_larger_than_the_tail_is_let_go_of(self) -> None:
        self.put(b"k", b"v" * 1000 * KIB)
        self.put(b"k", b"v")
        self.assertLess(self.replica.core.log._tail_bytes, tap.TAIL_BYTES_KEPT)

    def test_sessions_live_by_its_clock(self) -> None:
        session = self.propose(OpenSession(bytes(16)))
        self.assertEqual(self.put(b"k", session=session, sequence=1, floor=1), False)
        self.clock.rightNow += SESSION_SECONDS / 2
        self.assertEqual(self.put(b"k", session=session, sequence=2, floor=2), True)
        self.clock.rightNow += 2 * SESSION_SECONDS
        self.assertEqual(self.put(b"k", session=session, sequence=3, floor=3).code, b"UNKNOWN_SESSION")

    def test_a_stopped_one_says_so(self) -> None:
        self.replica.stop()
        self.assertIsInstance(self.put(b"k"), Interrupted)
        refused: list[Any] = []
        self.replica.read(b"k", refused.append)
        self.assertIsInstance(refused[0], Interrupted)
        self.assertEqual(len(self.store), 0)

    def test_one_that_fails_answers_nobody(self) -> None:
        def broken(*_: object) -> None:
            raise OSError("broken")

        self.put(b"k")
        self.patch(self.store, "put", broken)
        answers: list[Any] = []
        self.replica.propose(Write(WriteKind.PUT, b"k", b"w"), answers.append)
        self.assertEqual(answers, [])
        (failure,) = self.failures
        self.assertIsInstance(failure, OSError)
        self.clock.advance(10)
        self.assertEqual((answers, len(self.failures)), ([], 1))

    def test_nobody_asks_its_store_for_what_only_peers_want(self) -> None:
        storage = self.replica._storage
        for ask in (lambda: storage.entries(1, 1, 1), storage.open_snapshot):
            with pytest.raises(AssertionError, match="no peers"):
                ask()
