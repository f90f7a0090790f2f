"""Records come back as they were, or as damaged."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.configuration import Configuration, Member
from madkv.raft.messages import Entry, EntryKind, HardState
from madkv.storage import records
from madkv.storage.records import (
    Damaged,
    Meta,
    decode_entry,
    decode_hard_state,
    decode_meta,
    encode_entry,
    encode_hard_state,
    encode_meta,
    index_key,
    index_of,
    seal,
    unseal,
)

NUMBERS = st.integers(0, 2**64 - 1)
MEMBERS = st.builds(Member, st.integers(0, 2**16 - 1), st.binary(min_size=16, max_size=16))
BITS = st.integers(0, 1)


def _configuration(members: set[Member], voters: int) -> Configuration:
    ordered = sorted(members)
    return Configuration(frozenset(ordered[:voters]), frozenset(ordered[voters:]))


CONFIGURATIONS = st.builds(_configuration, st.sets(MEMBERS, max_size=9), st.integers(0, 9))
ENTRIES = st.builds(Entry, NUMBERS, NUMBERS, st.sampled_from(EntryKind), st.binary(max_size=60))
HARD_STATES = st.builds(HardState, NUMBERS, st.none() | MEMBERS)
METAS = st.builds(Meta, NUMBERS, NUMBERS, NUMBERS, BITS, BITS, CONFIGURATIONS, CONFIGURATIONS)
KEYS = st.binary(min_size=1, max_size=20)


class RecordsTest(SynchronousTestCase):
    @given(KEYS, st.binary(max_size=60))
    def test_every_damaged_byte_of_a_record_is_noticed(self, key: bytes, data: bytes) -> None:
        record = seal(key, data)
        self.assertEqual(unseal(key, record), data)
        for at in range(len(record)):
            for flipped in (1, 128, 255):
                damaged = record[:at] + bytes([record[at] ^ flipped]) + record[at + 1 :]
                self.assertRaises(Damaged, unseal, key, damaged)
        for at in range(len(key)):
            self.assertRaises(Damaged, unseal, key[:at] + bytes([key[at] ^ 1]) + key[at + 1 :], record)

    def test_a_record_without_room_for_its_checksum(self) -> None:
        for length in range(4):
            self.assertRaises(Damaged, unseal, b"k", bytes(length))

    @given(NUMBERS, NUMBERS)
    def test_keys_stand_in_the_order_of_their_indexes(self, one: int, other: int) -> None:
        self.assertEqual(index_of(index_key(one)), one)
        self.assertEqual(index_key(one) < index_key(other), one < other)
        self.assertRaises(Damaged, index_of, index_key(one)[1:])

    @given(ENTRIES)
    def test_entries(self, entry: Entry) -> None:
        self.assertEqual(decode_entry(index_key(entry.index), encode_entry(entry)), entry)

    @given(HARD_STATES, st.integers(0, 40))
    def test_hard_state(self, state: HardState, length: int) -> None:
        data = encode_hard_state(state)
        self.assertEqual(decode_hard_state(data), state)
        if length < len(data):
            self.assertRaises(Damaged, decode_hard_state, data[:length])
        self.assertRaises(Damaged, decode_hard_state, data + b"x")
        self.assertRaises(Damaged, decode_hard_state, data[:8] + b"\2" + data[9:])
        if state.voted_for is None:
            self.assertRaises(Damaged, decode_hard_state, data[:-1] + b"\1")

    @given(METAS, st.integers(0, 200))
    def test_meta(self, meta: Meta, length: int) -> None:
        data = encode_meta(meta)
        self.assertEqual(decode_meta(data), meta)
        if length < len(data):
            self.assertRaises(Damaged, decode_meta, data[:length])
        self.assertRaises(Damaged, decode_meta, data + b"x")

    def test_what_another_version_may_have_written(self) -> None:
        """Its checksum fits, and yet it is nothing that this version knows."""
        key = index_key(3)
        for data in (b"", b"\0" * 8, records._ENTRY.pack(1, 99)):
            self.assertRaises(Damaged, decode_entry, key, seal(key, data))
        self.assertRaises(Damaged, decode_entry, b"three", seal(b"three", records._ENTRY.pack(1, 1)))
        self.assertRaises(Damaged, decode_meta, encode_meta(Meta(generation=2)))
        self.assertRaises(Damaged, decode_meta, encode_meta(Meta(log_generation=2)))
