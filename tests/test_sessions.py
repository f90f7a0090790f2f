"""Exactly-once records by themselves: admission, floors, bounds, life."""

from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import Busy, InvalidArgument, StaleCall, UnknownSession
from madkv.limits import MIB, SESSION_CALLS_MAX, SESSION_OWN_RECORD_BYTES_MAX, SESSION_UNUSED_SECONDS
from madkv.operations import Outcome, Write, WriteKind
from madkv.session_rows import encode_session, session_key
from madkv.sessions import RECORD_OVERHEAD_BYTES, Record, Session, Sessions, Tables

ALICE, BOB, CAROL = b"a" * 16, b"b" * 16, b"c" * 16
LIFE_SECONDS = 10.0
LIFE_MS = 10_000


def put(session: int, sequence: int, floor: int = 1, key: bytes = b"key") -> Write:
    return Write(WriteKind.PUT, key, b"value", session, sequence, floor)


class SessionsTest(SynchronousTestCase):
    """A small table with a short life."""

    def setUp(self) -> None:
        self.sessions = Sessions(sessions_max=2, record_bytes_max=1000, life_seconds=LIFE_SECONDS)

    def execute(self, write: Write, outcome: Outcome = True, now_ms: int = 0) -> None:
        """What the state machine does with a write that is admitted."""
        session = self.sessions.admit(write, now_ms)
        assert isinstance(session, Session), session
        self.sessions.record(session, write, outcome)

    def test_the_same_client_gets_the_same_session(self) -> None:
        self.assertEqual(self.sessions.open(ALICE, 5, 0), 5)
        self.assertEqual(self.sessions.open(ALICE, 6, 0), 5)
        self.assertEqual(self.sessions.open(BOB, 7, 0), 7)
        self.assertEqual(len(self.sessions), 2)

    def test_after_closing_it_is_another_session(self) -> None:
        self.sessions.open(ALICE, 5, 0)
        self.sessions.close(5)
        self.assertEqual(self.sessions.open(ALICE, 6, 0), 6)
        self.assertIsInstance(self.sessions.admit(put(5, 1), 0), UnknownSession)
        self.assertIsInstance(self.sessions.admit(put(6, 1), 0), Session)

    def test_closing_what_is_not_there(self) -> None:
        self.sessions.close(99)
        self.assertEqual(len(self.sessions), 0)

    def test_a_full_table_is_busy_and_evicts_nobody(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.sessions.open(BOB, 2, 0)
        self.assertIsInstance(self.sessions.open(CAROL, 3, 1), Busy)
        self.assertEqual(self.sessions.open(ALICE, 4, 1), 1)
        for session in (1, 2):
            self.assertIsInstance(self.sessions.admit(put(session, 1), 1), Session)
        self.sessions.close(1)
        self.assertEqual(self.sessions.open(CAROL, 5, 1), 5)

    def test_clients_that_are_gone_make_room_before_their_time(self) -> None:
        """Nothing but that would: neither of them will ever raise its floor, or close its session."""
        sessions = Sessions(sessions_max=3, record_bytes_max=1000)
        idle_ms = int(SESSION_UNUSED_SECONDS * 1000)
        self.sessions = sessions
        for session, client in ((1, ALICE), (2, BOB)):
            sessions.open(client, session, 10 * session)
            self.execute(put(session, 1), b"v" * 300, 10 * session)
        sessions.open(CAROL, 3, 20)
        self.assertIsInstance(sessions.admit(put(3, 1), 10 + idle_ms), Busy)
        self.assertIsInstance(sessions.admit(put(1, 1), 10 + idle_ms), Record)
        self.assertIsInstance(sessions.admit(put(3, 1), 21 + idle_ms), Session, "that of BOB has made room")
        self.assertIsInstance(sessions.admit(put(2, 1), 21 + idle_ms), UnknownSession)
        self.assertIsInstance(sessions.admit(put(1, 1), 21 + idle_ms), Record, "ALICE was there a moment ago")

    def test_sessions_that_are_gone_make_room_for_others(self) -> None:
        idle_ms = int(SESSION_UNUSED_SECONDS * 1000)
        sessions = self.sessions = Sessions(sessions_max=2)
        for session, client in ((1, ALICE), (2, BOB)):
            sessions.open(client, session, session)
            self.execute(put(session, 1), True, session)
        self.assertIsInstance(sessions.open(CAROL, 3, 1 + idle_ms), Busy)
        self.assertEqual(sessions.open(CAROL, 3, 2 + idle_ms), 3)
        self.assertIsInstance(sessions.admit(put(2, 1), 3 + idle_ms), Record)

    def test_those_of_one_time_make_room_together(self) -> None:
        """Which of them comes first is not part of the state."""
        for first, second in ((1, 2), (2, 1)):
            sessions = self.sessions = Sessions(sessions_max=2)
            for session in (first, second):
                sessions.open(b"%016d" % session, session, 0)
                self.execute(put(session, 1))
            self.assertEqual(sessions.open(CAROL, 3, 1_000_000), 3)
            self.assertEqual(len(sessions), 1)

    def test_a_retry_gets_the_record(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.execute(put(1, 1), b"the old value")
        for _ in range(2):
            record = self.sessions.admit(put(1, 1), 0)
            assert isinstance(record, Record)
            self.assertEqual(record.outcome, b"the old value")
            self.assertEqual(record.key, b"key")

    def test_an_outcome_of_none_is_a_record_too(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.execute(put(1, 1), None)
        self.assertEqual(self.sessions.admit(put(1, 1), 0), Record(b"key", None))

    def test_sessions_do_not_share_sequence_numbers(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.sessions.open(BOB, 2, 0)
        self.execute(put(1, 1))
        self.assertIsInstance(self.sessions.admit(put(2, 1), 0), Session)

    def test_the_same_number_with_another_key(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.execute(put(1, 1, key=b"one"))
        self.assertIsInstance(self.sessions.admit(put(1, 1, key=b"two"), 0), InvalidArgument)

    def test_out_of_order_within_the_window(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        for sequence in (3, 1, 2):
            self.execute(put(1, sequence), now_ms=0)
        self.assertIsInstance(self.sessions.admit(put(1, 2), 0), Record)

    def test_below_the_floor(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.execute(put(1, 1))
        self.execute(put(1, 3, floor=3))
        for sequence in (1, 2):
            self.assertIsInstance(self.sessions.admit(put(1, sequence), 0), StaleCall)
        self.assertIsInstance(self.sessions.admit(put(1, 3, floor=2), 0), Record)

    def test_the_floor_never_falls(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.execute(put(1, 5, floor=5))
        self.execute(put(1, 6, floor=1))
        self.assertIsInstance(self.sessions.admit(put(1, 4, floor=1), 0), StaleCall)

    def test_floors_that_jump(self) -> None:
        """Whichever way the records below are found, they are forgotten, and only they."""
        for floor in (2, 3, 10, 2**62):
            sessions = Sessions()
            sessions.open(ALICE, 1, 0)
            for sequence in (1, 2, 3, 9):
                session = sessions.admit(put(1, sequence), 0)
                assert isinstance(session, Session)
                sessions.record(session, put(1, sequence), True)
            assert isinstance(session, Session)
            sessions.admit(put(1, floor, floor), 0)
            self.assertEqual(list(session.records), [each for each in (1, 2, 3, 9) if each >= floor])
            self.assertEqual(sessions.record_bytes, len(session.records) * (RECORD_OVERHEAD_BYTES + 3))

    def test_the_window(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.assertIsInstance(self.sessions.admit(put(1, SESSION_CALLS_MAX), 0), Session)
        self.assertIsInstance(self.sessions.admit(put(1, SESSION_CALLS_MAX + 1), 0), InvalidArgument)
        self.assertIsInstance(self.sessions.admit(put(1, SESSION_CALLS_MAX + 1, floor=2), 0), Session)

    def test_record_bytes(self) -> None:
        size = RECORD_OVERHEAD_BYTES + len(b"key")
        self.sessions.open(ALICE, 1, 0)
        self.sessions.open(BOB, 2, 0)
        self.execute(put(1, 1))
        self.assertEqual(self.sessions.record_bytes, size)
        self.execute(put(1, 2), b"12345678")
        self.execute(put(2, 1), None)
        self.assertEqual(self.sessions.record_bytes, 3 * size + 8)
        self.execute(put(1, 3, floor=3))
        self.assertEqual(self.sessions.record_bytes, 2 * size)
        self.sessions.close(1)
        self.assertEqual(self.sessions.record_bytes, size)
        self.sessions.expire(LIFE_MS + 1)
        self.assertEqual(self.sessions.record_bytes, 0)

    def test_no_room_for_records(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.sessions.open(BOB, 2, 0)
        self.execute(put(1, 1), b"v" * 1000)
        self.assertIsInstance(self.sessions.admit(put(2, 1), 0), Busy)
        self.assertIsInstance(self.sessions.admit(put(1, 1), 0), Record, "what is recorded is answered all the same")
        self.assertIsInstance(
            self.sessions.admit(put(1, 2, floor=2), 0), Session, "a higher floor makes room by itself"
        )
        self.assertIsInstance(self.sessions.admit(put(2, 1), 0), Session)

    def test_the_oldest_call_is_not_kept_out_by_the_records_of_later_ones(self) -> None:
        """It alone can raise the floor; refused, it would leave the table full for ever. That has its limit, too."""
        self.sessions.open(ALICE, 1, 0)
        self.execute(put(1, 2), b"v" * 1000)
        self.assertIsInstance(self.sessions.admit(put(1, 3), 0), Busy)
        self.assertIsInstance(self.sessions.admit(put(1, 1), 0), Session)
        self.execute(put(1, 1), b"v" * 1000)
        self.sessions.open(BOB, 2, 0)
        self.assertIsInstance(self.sessions.admit(put(2, 1), 0), Busy)

    def test_no_session_takes_all_the_room(self) -> None:
        """A client with many large answers outstanding is held up itself, and nobody else."""
        sessions = Sessions()
        sessions.open(ALICE, 1, 0)
        sessions.open(BOB, 2, 0)
        made = 0
        for sequence in range(2, 20):
            session = sessions.admit(put(1, sequence), 0)
            if isinstance(session, Session):
                sessions.record(session, put(1, sequence), b"v" * MIB)
                made += 1
        self.assertEqual(made, SESSION_OWN_RECORD_BYTES_MAX // MIB)
        self.assertIsInstance(sessions.admit(put(1, 1), 0), Session)
        self.assertIsInstance(sessions.admit(put(2, 5), 0), Session)
        self.assertIsInstance(sessions.admit(put(1, 30, floor=20), 0), Session)
        self.assertEqual(sessions.record_bytes, 0)

    def test_room_for_oldest_calls_is_bounded(self) -> None:
        """Whoever opens session after session cannot fill memory with one large answer in each."""
        sessions = Sessions(record_bytes_max=10_000)
        for index in range(1, 100):
            sessions.open(b"%016d" % index, index, 0)
            for sequence in (2, 1):
                session = sessions.admit(put(index, sequence), 0)
                if isinstance(session, Session):
                    sessions.record(session, put(index, sequence), b"v" * 1000)
        self.assertLess(sessions.record_bytes, 2 * 10_000 + 1500)

    def test_a_session_without_a_write_has_a_short_life(self) -> None:
        """Otherwise whoever opens all there are, and leaves, locks the others out for as long as a session lives."""
        sessions = Sessions(life_seconds=10 * SESSION_UNUSED_SECONDS)
        unused_ms = int(SESSION_UNUSED_SECONDS * 1000)
        sessions.open(ALICE, 1, 0)
        sessions.open(BOB, 2, 0)
        session = sessions.admit(put(2, 1), 5)
        assert isinstance(session, Session)
        sessions.record(session, put(2, 1), True)
        sessions.expire(unused_ms)
        self.assertEqual(len(sessions), 2)
        sessions.expire(unused_ms + 1)
        self.assertIsInstance(sessions.admit(put(1, 1), unused_ms + 1), UnknownSession)
        self.assertEqual(sessions.open(ALICE, 3, unused_ms + 1), 3)
        sessions.expire(10 * unused_ms + 5)
        self.assertIsInstance(sessions.admit(put(2, 1), 10 * unused_ms + 5), Record)
        sessions.expire(10 * unused_ms + 10 * unused_ms + 6)
        self.assertEqual((len(sessions), sessions.record_bytes), (0, 0))

    def test_life_is_counted_from_the_last_write(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.sessions.open(BOB, 2, 0)
        self.execute(put(1, 1), now_ms=4000)
        self.sessions.expire(LIFE_MS)
        self.assertEqual(len(self.sessions), 2)
        self.sessions.expire(LIFE_MS + 1)
        self.assertEqual(len(self.sessions), 1)
        self.assertIsInstance(self.sessions.admit(put(2, 1), LIFE_MS + 1), UnknownSession)
        self.assertIsInstance(self.sessions.admit(put(1, 1), LIFE_MS + 1), Record)
        self.sessions.expire(2 * LIFE_MS + 2)
        self.assertEqual(len(self.sessions), 0)

    def test_opening_again_counts_as_life(self) -> None:
        self.sessions.open(ALICE, 1, 0)
        self.sessions.open(ALICE, 2, 9000)
        self.sessions.expire(LIFE_MS + 1)
        self.assertEqual(len(self.sessions), 1)

    def test_not_too_many_expire_at_once(self) -> None:
        """All may have when a machine wakes up. The rest goes at later times, and does so everywhere."""
        sessions = Sessions(life_seconds=LIFE_SECONDS, rows_expired_max=10)
        for number in range(1, 101):
            sessions.open(b"%016d" % number, number, number)
        left = []
        for late_ms in range(12):
            sessions.expire(2 * LIFE_MS + late_ms)
            left.append(len(sessions))
        self.assertEqual(left, [90, 80, 70, 60, 50, 40, 30, 20, 10, 0, 0, 0])

    def test_records_count_when_sessions_expire(self) -> None:
        sessions = Sessions(life_seconds=LIFE_SECONDS, rows_expired_max=10)
        for index in range(1, 7):
            sessions.open(b"%016d" % index, index, index)
            for sequence in range(1, 6):
                session = sessions.admit(put(index, sequence), index)
                assert isinstance(session, Session)
                sessions.record(session, put(index, sequence), True)
        sessions.take_changes()
        sessions.expire(2 * LIFE_MS)
        self.assertEqual(
            (len(sessions), sessions.has_changed(12, 10**9), sessions.has_changed(13, 10**9)), (4, True, False)
        )

    def test_those_of_one_time_expire_together(self) -> None:
        """Their order may differ between a replica that has run on and one that has restored its state."""
        indexes = [*range(1, 21)]
        expired = []
        for touched_first in (1, 20):
            sessions = Sessions(life_seconds=LIFE_SECONDS, rows_expired_max=5)
            for index in indexes:
                sessions.open(b"%016d" % index, index, 0 if index < 4 else 1)
            # The same state, come to in another order.
            sessions._unused.move_to_end(touched_first if touched_first > 3 else 4)
            sessions.expire(2 * LIFE_MS)
            expired.append({index for index in indexes if sessions._find(index)[0] is None})
        self.assertEqual(expired[0], expired[1])
        self.assertEqual(expired[0], set(indexes))


class RowsTest(SynchronousTestCase):
    def test_a_client_has_one_session(self) -> None:
        """Of two, the end of the first would end the other, too, and fail with it."""
        rows = [(session_key(index), encode_session(b"c" * 16, 1, 0, True)) for index in (1, 2)]
        self.assertRaises(ValueError, Tables.of, rows)
