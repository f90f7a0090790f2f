"""The partition map: whose a key is, what a scan has to ask for, and its encoding."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import ProtocolError
from madkv.partitions import PartitionMap

ADDRESSES = [[("10.0.0.1", 1), ("::1", 2)], [("host", 3)], [("10.0.0.1", 4)]]
MAP = PartitionMap(7, "c0ffee", [b"", b"d", b"m", b"p"], [0, 1, 0, 2], ADDRESSES)

keys = st.binary(max_size=3)


@st.composite
def maps(draw: st.DrawFn) -> PartitionMap:
    starts = [b"", *sorted(draw(st.sets(st.binary(min_size=1, max_size=3), max_size=6)))]
    owners = draw(st.lists(st.integers(0, 2), min_size=len(starts), max_size=len(starts)))
    return PartitionMap(draw(st.integers(0, 2**64 - 1)), draw(st.text("0123456789abcdef")), starts, owners, ADDRESSES)


class PartitionMapTest(SynchronousTestCase):
    def test_a_key_belongs_to_the_range_that_begins_at_or_before_it(self) -> None:
        for key, owner in ((b"", 0), (b"c~", 0), (b"d", 1), (b"lz", 1), (b"m", 0), (b"p", 2), (b"\xff" * 9, 2)):
            self.assertEqual(MAP.partition_of(key), owner, key)

    def test_a_scan_asks_each_owner_for_its_piece(self) -> None:
        self.assertEqual(MAP.pieces(b"a", b"b"), [(0, b"a", None)])
        self.assertEqual(MAP.pieces(b"a", b"d"), [(0, b"a", b"d"), (1, b"d", None)])
        self.assertEqual(MAP.pieces(b"", b"z"), [(0, b"", b"d"), (1, b"d", b"m"), (0, b"m", b"p"), (2, b"p", None)])
        self.assertEqual(MAP.pieces(b"z", b"a"), [])

    def test_neighbouring_ranges_of_one_owner_are_one_piece(self) -> None:
        joined = PartitionMap(1, "", [b"", b"d", b"m"], [0, 0, 1], ADDRESSES)
        self.assertEqual(joined.pieces(b"a", b"z"), [(0, b"a", b"m"), (1, b"m", None)])

    @given(maps(), keys, keys, keys)
    def test_every_key_of_a_scan_is_asked_for_once_and_of_its_owner(
        self, partitions: PartitionMap, start: bytes, end: bytes, key: bytes
    ) -> None:
        asked = [
            owner
            for owner, begin, following in partitions.pieces(start, end)
            if begin <= key <= end and (following is None or key < following)
        ]
        self.assertEqual(asked, [partitions.partition_of(key)] if start <= key <= end else [])

    @given(maps())
    def test_it_comes_back_from_its_encoding(self, partitions: PartitionMap) -> None:
        self.assertEqual(PartitionMap.decode(partitions.encode()), partitions)

    @given(st.integers(0, 200), st.integers(0, 255))
    def test_garbage_is_no_map(self, at: int, byte: int) -> None:
        data = MAP.encode()
        self.assertRaises(ProtocolError, PartitionMap.decode, data[: at % len(data)])
        self.assertRaises(ProtocolError, PartitionMap.decode, data + b"x")
        changed = bytearray(data)
        changed[at % len(data)] = byte
        try:
            PartitionMap.decode(bytes(changed))
        except ProtocolError:
            pass

    def test_what_does_not_fit_together_is_refused(self) -> None:
        for starts, owners in (([], []), ([b"a"], [0]), ([b"", b"b", b"b"], [0, 1, 2]), ([b""], [3]), ([b""], [])):
            self.assertRaises(ValueError, PartitionMap, 1, "", starts, owners, ADDRESSES)
