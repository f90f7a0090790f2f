"""Operations come out of the log as they went in, and nothing else does."""

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from madkv.manager.placement import first_cut
from madkv.operations import (
    CloseSession,
    FillManager,
    Found,
    OpenSession,
    Operation,
    Own,
    Register,
    Vacate,
    Write,
    WriteKind,
    decode,
    encode,
)
from madkv.raft.configuration import Configuration, Member
from madkv.ranges import KeyRange, Ownership
from madkv.settings import Settings

SHORT = st.integers(0, 2**16 - 1)
LONG = st.integers(0, 2**64 - 1)
SIXTEEN = st.binary(min_size=16, max_size=16)
KEYS = st.binary(max_size=511)
MEMBERS = st.builds(Member, SHORT, SIXTEEN)


@st.composite
def foundings(draw: st.DrawFn) -> Found:
    rf, partitions = draw(st.sampled_from([1, 3])), draw(st.integers(1, 50))
    settings = Settings(rf, tuple(("host", 1000 + number) for number in range(rf * partitions)))
    return Found(settings, Configuration(draw(st.frozensets(MEMBERS, max_size=9))), first_cut(partitions))


OPERATIONS = st.one_of(
    st.builds(Write, st.sampled_from(WriteKind), KEYS, st.binary(max_size=99), LONG, LONG, LONG),
    st.builds(OpenSession, SIXTEEN),
    st.builds(CloseSession, LONG),
    st.builds(lambda epoch, start: Own(Ownership(epoch, (KeyRange(start),))), LONG, KEYS),
    foundings(),
    st.builds(Register, SHORT, SHORT, SIXTEEN, st.lists(SHORT, max_size=9).map(tuple), st.booleans()),
    st.builds(Vacate, SHORT, SHORT),
    st.builds(FillManager, SHORT, SIXTEEN, st.booleans()),
)
KINDS = {OpenSession: 16, CloseSession: 17, Own: 18, Found: 19, Register: 20, Vacate: 21, FillManager: 22}


class OperationsTest(SynchronousTestCase):
    @given(LONG, OPERATIONS)
    def test_they_come_back(self, time_ms: int, operation: Operation) -> None:
        payload = encode(time_ms, operation)
        self.assertEqual(decode(payload), (time_ms, operation))
        self.assertEqual(payload[1], operation.kind if isinstance(operation, Write) else KINDS[type(operation)])

    @given(OPERATIONS, st.data())
    def test_a_part_of_one_is_none(self, operation: Operation, data: st.DataObject) -> None:
        """But a Write whose value is cut is a Write, and a founding may lose whole ranges at its end."""
        payload = encode(7, operation)
        cut = data.draw(st.integers(0, len(payload) - 1))
        try:
            _, found = decode(payload[:cut])
        except ValueError:
            return
        if isinstance(operation, Found):
            assert isinstance(found, Found)
            self.assertEqual(found.cut, operation.cut[: len(found.cut)])
        else:
            self.assertIsInstance(operation, Write)

    @given(OPERATIONS.filter(lambda operation: not isinstance(operation, Write)), st.binary(min_size=1, max_size=3))
    def test_more_than_one_is_none(self, operation: Operation, more: bytes) -> None:
        self.assertRaises(ValueError, decode, encode(7, operation) + more)

    @given(st.integers(0, 25), st.binary(max_size=120))
    @example(23, b"")
    def test_garbage_raises_nothing_else(self, kind: int, rest: bytes) -> None:
        payload = bytes((1, kind)) + rest
        try:
            time_ms, operation = decode(payload)
        except ValueError:
            return
        self.assertEqual(encode(time_ms, operation), payload)

    def test_another_version(self) -> None:
        self.assertRaises(ValueError, decode, b"\x02" + encode(0, Vacate(0, 0))[1:])

    def test_a_flag_is_one_or_the_other(self) -> None:
        payload = encode(0, FillManager(1, b"d" * 16, True))
        self.assertRaises(ValueError, decode, payload[:-1] + b"\x02")

    def test_cuts_that_are_none(self) -> None:
        settings, managers = Settings(1, (("a", 1), ("b", 2))), Configuration(frozenset())
        for cut in ((), ((b"a", 0),), ((b"", 0), (b"b", 1), (b"a", 0)), ((b"", 0), (b"", 1)), ((b"", 2),)):
            self.assertRaises(ValueError, decode, encode(0, Found(settings, managers, cut)))
