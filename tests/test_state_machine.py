"""What each operation means, exactly-once through the whole of `apply`, and that replicas come to the same."""

from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import Busy, InvalidArgument, MadKVError, StaleCall, UnknownSession
from madkv.operations import CloseSession, OpenSession, Operation, Outcome, Write, WriteKind
from madkv.sessions import Sessions
from madkv.state_machine import StateMachine
from madkv.storage.memory import MemoryStore

ALICE, BOB = b"a" * 16, b"b" * 16
PUT, SWAP, DELETE = WriteKind


class StateMachineTest(SynchronousTestCase):
    """One state machine on the real store; `apply` gives the next index."""

    def setUp(self) -> None:
        self.store = MemoryStore()
        self.sessions = Sessions(sessions_max=2, life_seconds=10.0)
        self.machine = StateMachine(self.store, self.sessions)
        self.now_ms = 0

    def apply(self, operation: Operation) -> Outcome:
        return self.machine.apply(self.machine.last_applied + 1, self.now_ms, operation)

    def open(self, client_id: bytes = ALICE) -> int:
        session = self.apply(OpenSession(client_id))
        assert isinstance(session, int)
        return session

    def test_put(self) -> None:
        self.assertIs(self.apply(Write(PUT, b"k", b"1")), False)
        self.assertIs(self.apply(Write(PUT, b"k", b"2")), True)
        self.assertEqual(self.store.get(b"k"), b"2")

    def test_swap(self) -> None:
        self.assertIsNone(self.apply(Write(SWAP, b"k", b"1")))
        self.assertEqual(self.apply(Write(SWAP, b"k", b"2")), b"1")
        self.assertEqual(self.store.get(b"k"), b"2")

    def test_delete(self) -> None:
        self.assertIs(self.apply(Write(DELETE, b"k")), False)
        self.apply(Write(PUT, b"k", b"1"))
        self.assertIs(self.apply(Write(DELETE, b"k")), True)
        self.assertIsNone(self.store.get(b"k"))
        self.assertIs(self.apply(Write(DELETE, b"k")), False)

    def test_an_empty_value_is_a_value(self) -> None:
        self.assertIs(self.apply(Write(PUT, b"k", b"")), False)
        self.assertEqual(self.store.get(b"k"), b"")
        self.assertIs(self.apply(Write(PUT, b"k", b"1")), True)
        self.apply(Write(PUT, b"k", b""))
        self.assertEqual(self.apply(Write(SWAP, b"k", b"2")), b"")
        self.apply(Write(PUT, b"k", b""))
        self.assertIs(self.apply(Write(DELETE, b"k")), True)

    def test_a_session_is_named_by_its_index(self) -> None:
        self.apply(Write(PUT, b"k", b"1"))
        self.assertEqual(self.apply(OpenSession(ALICE)), 2)
        self.assertEqual(self.apply(OpenSession(BOB)), 3)
        self.assertEqual(self.apply(OpenSession(ALICE)), 2)

    def test_a_retry_changes_nothing_and_gets_the_first_answer(self) -> None:
        session = self.open()
        self.apply(Write(PUT, b"k", b"first"))
        swap = Write(SWAP, b"k", b"second", session, 1, 1)
        delete = Write(DELETE, b"k", b"", session, 2, 1)
        put = Write(PUT, b"k", b"third", session, 3, 1)
        self.assertEqual([self.apply(each) for each in (swap, delete, put)], [b"first", True, False])
        self.apply(Write(PUT, b"k", b"somebody else's"))
        self.assertEqual([self.apply(each) for each in (swap, delete, put)], [b"first", True, False])
        self.assertEqual(self.store.get(b"k"), b"somebody else's")

    def test_without_a_session_each_arrival_counts(self) -> None:
        swap = Write(SWAP, b"k", b"v")
        self.assertEqual([self.apply(swap), self.apply(swap)], [None, b"v"])

    def refused(self, write: Write, error: type[MadKVError]) -> None:
        """Refused with this error, and not executed."""
        before = dict(self.store._live)
        self.assertIsInstance(self.apply(write), error)
        self.assertEqual(self.store._live, before)

    def test_refusals_execute_nothing(self) -> None:
        session = self.open()
        self.apply(Write(PUT, b"k", b"1", session, 5, 5))
        self.refused(Write(PUT, b"k", b"2", session, 4, 4), StaleCall)
        self.refused(Write(DELETE, b"k", b"", session, 4, 4), StaleCall)
        self.refused(Write(PUT, b"k", b"2", session + 1, 1, 1), UnknownSession)
        self.refused(Write(SWAP, b"other", b"2", session, 5, 5), InvalidArgument)
        self.refused(Write(PUT, b"k", b"2", session, 5 + 1024, 5), InvalidArgument)
        self.assertIsNone(self.apply(CloseSession(session)))
        self.refused(Write(PUT, b"k", b"2", session, 6, 6), UnknownSession)
        self.assertIsNone(self.apply(CloseSession(session)))

    def test_a_full_table_is_busy_and_evicts_nobody(self) -> None:
        first, second = self.open(ALICE), self.open(BOB)
        self.assertIsInstance(self.apply(OpenSession(b"c" * 16)), Busy)
        for session in (first, second):
            self.assertIs(self.apply(Write(PUT, b"%d" % session, b"", session, 1, 1)), False)

    def test_a_session_expires_by_carried_time_alone(self) -> None:
        session = self.open()
        for _ in range(1000):
            self.apply(Write(PUT, b"k", b"v"))
        self.now_ms = 10_000
        self.assertIs(self.apply(Write(PUT, b"k", b"v", session, 1, 1)), True)
        self.now_ms = 20_000
        self.assertIs(self.apply(Write(PUT, b"k", b"v", session, 2, 1)), True)
        self.now_ms = 30_001
        self.refused(Write(PUT, b"k", b"w", session, 3, 1), UnknownSession)
        self.refused(Write(PUT, b"k", b"w", session, 1, 1), UnknownSession)
        self.assertEqual(self.sessions.record_bytes, 0)
        self.assertNotEqual(self.open(), session)

    def test_time_does_not_go_back(self) -> None:
        """A new leader may say an earlier one: a write at that time keeps its session as long as any other."""
        session = self.open()
        self.now_ms = 10_000
        self.apply(Write(PUT, b"k", b"v"))
        self.now_ms = 5_000
        self.assertIs(self.apply(Write(PUT, b"k", b"v", session, 1, 1)), True)
        self.assertEqual(self.machine.time_ms, 10_000)
        self.now_ms = 20_000
        self.assertIs(self.apply(Write(PUT, b"k", b"v", session, 2, 1)), True)

    def test_an_operation_out_of_turn_stops(self) -> None:
        self.apply(Write(PUT, b"k", b"v"))
        for index in (0, 1, 3):
            with self.assertRaises(AssertionError):
                self.machine.apply(index, 0, Write(PUT, b"k", b"w"))
        self.assertEqual(self.store.get(b"k"), b"v")


few_keys = st.sampled_from([b"a", b"b", b"c"])
session_numbers = st.integers(1, 12)
writes = st.builds(
    lambda kind, key, value, session, floor, ahead: Write(kind, key, value, session, floor + ahead, floor),
    st.sampled_from(WriteKind),
    few_keys,
    st.binary(max_size=3),
    session_numbers,
    st.integers(1, 6),
    st.integers(0, 4),
)
plain_writes = st.builds(Write, st.sampled_from(WriteKind), few_keys, st.binary(max_size=3))
operations = (
    writes
    | plain_writes
    | st.builds(OpenSession, st.sampled_from([ALICE, BOB, b"c" * 16]))
    | st.builds(CloseSession, session_numbers)
)
history = st.lists(st.tuples(st.integers(0, 4000), operations), max_size=60)


def run(steps: list[tuple[int, Operation]]) -> tuple[list[Any], Any, int]:
    """Outcomes, everything that is kept, and the record bytes."""
    store, sessions = MemoryStore(), Sessions(sessions_max=2, record_bytes_max=1500, life_seconds=10.0)
    machine = StateMachine(store, sessions)
    now_ms = 0
    outcomes: list[Any] = []
    for index, (passed_ms, operation) in enumerate(steps, 1):
        now_ms += passed_ms
        outcome = machine.apply(index, now_ms, operation)
        outcomes.append((type(outcome), str(outcome)))
        kept = [record.size_bytes for each in sessions._by_index.values() for record in each.records.values()]
        assert sessions.record_bytes == sum(kept)
        assert set(sessions._index_of.values()) == set(sessions._by_index) | set(sessions._unused)
        for session in sessions._by_index.values():
            assert all(number >= session.floor for number in session.records)
    state = (
        dict(store._live),
        list(sessions._by_index.items()),
        list(sessions._unused.items()),
        dict(sessions._index_of),
    )
    for session_index in [*sessions._by_index, *sessions._unused]:
        sessions.close(session_index)
    return outcomes, state, sessions.record_bytes


@settings(deadline=None)
@given(history)
def test_replicas_come_to_the_same(steps: list[tuple[int, Operation]]) -> None:
    outcomes, state, record_bytes = run(steps)
    assert run(steps)[0] == outcomes
    assert repr(run(steps)[1]) == repr(state)
    assert record_bytes == 0


@settings(deadline=None)
@given(st.lists(st.tuples(writes, st.integers(1, 3)), max_size=30))
def test_every_write_sent_several_times_takes_effect_once(sent: list[tuple[Write, int]]) -> None:
    """Against the same calls sent once: the same answers, the same pairs."""

    def pairs_and_answers(times: bool) -> tuple[dict[bytes, bytes], list[Outcome]]:
        store = MemoryStore()
        machine = StateMachine(store)
        session = machine.apply(1, 0, OpenSession(ALICE))
        assert isinstance(session, int)
        answers: list[Outcome] = []
        for sequence, (write, count) in enumerate(sent, 1):
            call = attrs.evolve(write, session=session, sequence=sequence, floor=max(1, sequence - 3))
            for _ in range(count if times else 1):
                answer = machine.apply(machine.last_applied + 1, 0, call)
            answers.append(answer)
        return dict(store._live), answers

    assert pairs_and_answers(True) == pairs_and_answers(False)
