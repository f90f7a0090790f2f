"""Rows of sessions come back as they were; anything else is refused."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from madkv import session_rows as rows
from madkv.operations import Outcome

NUMBERS = st.integers(0, 2**64 - 1)
OUTCOMES = st.none() | st.booleans() | st.binary(max_size=60)


class SessionRowsTest(SynchronousTestCase):
    @given(NUMBERS, NUMBERS)
    def test_keys(self, index: int, sequence: int) -> None:
        self.assertEqual(rows.split_key(rows.session_key(index)), (index, None))
        self.assertEqual(rows.split_key(rows.record_key(index, sequence)), (index, sequence))
        self.assertLess(rows.record_key(index, sequence), rows.session_key(0))
        self.assertLess(rows.session_key(index), rows.TIME_KEY)

    @given(st.binary(max_size=20))
    def test_what_is_no_key(self, key: bytes) -> None:
        if (key[:1], len(key)) not in ((b"s", 9), (b"r", 17)):
            self.assertRaises(ValueError, rows.split_key, key)

    @given(st.binary(min_size=16, max_size=16), NUMBERS, NUMBERS, st.booleans())
    def test_sessions(self, client_id: bytes, floor: int, last_write_ms: int, is_used: bool) -> None:
        row = rows.encode_session(client_id, floor, last_write_ms, is_used)
        self.assertEqual(rows.decode_session(row), (client_id, floor, last_write_ms, is_used))
        for wrong in (row[:-1], row + b"x", b"", row[:-1] + b"\2"):
            self.assertRaises(ValueError, rows.decode_session, wrong)

    @given(st.binary(max_size=511), OUTCOMES)
    def test_records(self, key: bytes, outcome: Outcome) -> None:
        row = rows.encode_record(key, outcome)
        found = rows.decode_record(row)
        self.assertEqual(found, (key, outcome))
        self.assertIs(type(found[1]), type(outcome))
        self.assertRaises(ValueError, rows.decode_record, row[: rows._RECORD.size + len(key) - 1])
        if not isinstance(outcome, bytes):
            self.assertRaises(ValueError, rows.decode_record, row + b"x")
        self.assertRaises(ValueError, rows.decode_record, b"\x04" + row[1:])

    @given(NUMBERS)
    def test_time(self, time_ms: int) -> None:
        row = rows.encode_time(time_ms)
        self.assertEqual(rows.decode_time(row), time_ms)
        for wrong in (row[:-1], row + b"x"):
            self.assertRaises(ValueError, rows.decode_time, wrong)
