"""The in-memory store and its cuts, against a plain dict and copies of it."""

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from sortedcontainers import SortedList

from madkv.errors import ScanExpired
from madkv.limits import SCAN_PAGE_BYTES, SCAN_PAGE_KEYS_WALKED, SCAN_PAGE_PAIRS
from madkv.storage.memory import NOTE_OVERHEAD_BYTES, NOTES_DROPPED_PER_WRITE, Cut, MemoryStore, Pair

keys = st.binary(min_size=1, max_size=2) | st.sampled_from([b"a", b"b", b"c", b"ab", b"a\0", b"\xff"])
small_values = st.binary(max_size=3)
bounds = st.binary(max_size=2)


def between(pairs: dict[bytes, bytes], start: bytes, end: bytes) -> list[Pair]:
    return sorted((key, value) for key, value in pairs.items() if start <= key <= end)


def read_all(cut: Cut, pairs_max: int = SCAN_PAGE_PAIRS) -> list[Pair]:
    """Every page that is left, and then nothing more."""
    found: list[Pair] = []
    while not cut.done:
        page = cut.page(pairs_max=pairs_max)
        assert page or cut.done, "an empty page is the last one"
        found += page
    assert cut.page() == []
    return found


@attrs.define
class Expected:
    """A cut beside what it has still to give."""

    cut: Cut
    left: list[Pair]


class StoreMachine(RuleBasedStateMachine):
    """Writes and cuts in any order; every cut keeps to the copy made when it was taken."""

    cuts = Bundle("cuts")

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.pairs: dict[bytes, bytes] = {}
        self.open: list[Expected] = []
        self.taken = 0

    @rule(key=keys, value=small_values)
    def put(self, key: bytes, value: bytes) -> None:
        assert self.store.put(key, value) == self.pairs.get(key)
        self.pairs[key] = value

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        assert self.store.delete(key) == self.pairs.pop(key, None)

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert self.store.get(key) == self.pairs.get(key)

    @rule(target=cuts, start=bounds, end=bounds | st.just(b"\xff\xff\xff"))
    def take(self, start: bytes, end: bytes) -> Expected:
        expected = Expected(self.store.cut(start, end), between(self.pairs, start, end))
        self.open.append(expected)
        self.taken += 1
        return expected

    @rule(target=cuts, expected=consumes(cuts), bytes_max=st.integers(1, 12), pairs_max=st.integers(1, 5))
    def page(self, expected: Expected, bytes_max: int, pairs_max: int) -> Expected:
        page = expected.cut.page(bytes_max, pairs_max)
        assert page == expected.left[: len(page)]
        del expected.left[: len(page)]
        sizes = [len(key) + len(value) for key, value in page]
        assert len(page) <= pairs_max and sum(sizes[:-1]) < bytes_max
        if expected.cut.done:
            assert expected.left == []
        else:
            assert len(page) == pairs_max or sum(sizes) >= bytes_max
        return expected

    @rule(target=cuts, expected=consumes(cuts))
    def close(self, expected: Expected) -> object:
        expected.cut.close()
        expected.cut.close()
        self.open = [each for each in self.open if each is not expected]
        with pytest.raises(ScanExpired):
            expected.cut.page()
        return multiple()

    @rule(target=cuts, expected=consumes(cuts))
    def finish(self, expected: Expected) -> object:
        assert read_all(expected.cut, pairs_max=2) == expected.left
        expected.left = []
        return self.close(expected)

    @invariant()
    def holds(self) -> None:
        store = self.store
        assert len(store) == len(self.pairs)
        assert list(store._keys) == sorted(self.pairs)
        assert (store._undo_bytes == 0) or self.open
        assert bool(store._noted) == bool(store._replaced) == bool(store._undo_bytes)
        notes = sum(map(len, store._replaced.values()))
        assert notes == len(store._noted)
        assert notes <= len(store._replaced) * self.taken, "one note of a key for each cut is enough"

    def teardown(self) -> None:
        for expected in self.open:
            assert read_all(expected.cut) == expected.left
            expected.cut.close()
        assert not self.store._cuts and not self.store._noted and not self.store._replaced
        assert self.store._undo_bytes == 0
        whole = self.store.cut(b"", b"\xff" * 9)
        assert read_all(whole) == sorted(self.pairs.items())


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStore = StoreMachine.TestCase


def filled(count: int) -> MemoryStore:
    store = MemoryStore()
    # As `put` for each would leave it, in a tenth of the time.
    store._live = {b"user%07d" % number: b"v" for number in range(count)}
    store._keys = SortedList(store._live)
    return store


def test_the_pages_of_the_documented_bounds() -> None:
    store = MemoryStore()
    for number in range(10):
        store.put(b"%d" % number, b"v" * (SCAN_PAGE_BYTES // 2 - 1))
    assert len(store.cut(b"", b"9").page()) == 2
    store.put(b"", b"v" * SCAN_PAGE_BYTES)
    assert len(store.cut(b"", b"9").page()) == 1
    assert len(filled(SCAN_PAGE_PAIRS + 1).cut(b"", b"v").page()) == SCAN_PAGE_PAIRS


def test_bounds_are_inclusive_and_crossed_ones_empty() -> None:
    store = filled(5)
    assert [key for key, _ in read_all(store.cut(b"user0000001", b"user0000003"))] == [
        b"user0000001",
        b"user0000002",
        b"user0000003",
    ]
    assert read_all(store.cut(b"user0000002", b"user0000002")) == [(b"user0000002", b"v")]
    crossed = store.cut(b"user0000003", b"user0000001")
    assert crossed.done and crossed.page() == []


def test_what_outgrows_the_bound_costs_the_oldest_cut() -> None:
    room_for = 5
    store = MemoryStore(undo_bytes_max=room_for * (NOTE_OVERHEAD_BYTES + 11 + 1))
    store._live, store._keys = filled(20)._live, filled(20)._keys
    before = sorted(store._live.items())
    oldest, second = store.cut(b"", b"v"), store.cut(b"", b"v")
    for number in range(3):
        store.put(b"user%07d" % number, b"x")
    newest = store.cut(b"", b"v")
    after_three = sorted(store._live.items())
    for number in range(3, 5):
        store.put(b"user%07d" % number, b"x")
    assert oldest.open and second.open
    store.put(b"user0000005", b"x")
    assert len(store._cuts) == 1, "the two need the same notes, so giving up one alone would not help"
    for gone in (oldest, second):
        with pytest.raises(ScanExpired):
            gone.page()
        gone.close()
    assert newest.open and read_all(newest) == after_three != before
    newest.close()
    assert store._undo_bytes == 0 and not store._noted and not store._replaced


def test_a_value_larger_than_the_bound() -> None:
    store = MemoryStore(undo_bytes_max=1000)
    store.put(b"k", b"v" * 2000)
    cut = store.cut(b"", b"z")
    assert store.put(b"k", b"w") == b"v" * 2000
    assert store._undo_bytes == 0
    with pytest.raises(ScanExpired):
        cut.page()
    assert store.get(b"k") == b"w"


def test_a_hot_key_costs_one_note_for_each_cut() -> None:
    """Otherwise a client that rewrites one key while a scan is open fills memory and makes every page slow."""
    store = filled(3)
    first = store.cut(b"", b"v")
    for number in range(1000):
        store.put(b"user0000001", b"%d" % number)
    second = store.cut(b"", b"v")
    for number in range(1000):
        store.put(b"user0000001", b"again %d" % number)
    assert len(store._noted) == 2
    assert dict(read_all(first))[b"user0000001"] == b"v"
    assert dict(read_all(second))[b"user0000001"] == b"999"
    first.close()
    store.put(b"user0000002", b"another")
    assert [key for _, key, _ in store._noted] == [b"user0000001", b"user0000002"], (
        "what the first alone needed is gone"
    )


def test_no_write_pays_for_all_notes_of_a_cut_that_was_closed() -> None:
    """There may be hundreds of thousands; the writes that follow drop a few each, until none is left over."""
    store = filled(1000)
    old = store.cut(b"", b"v")
    for number in range(1000):
        store.put(b"user%07d" % number, b"new")
    young = store.cut(b"", b"v")
    old.close()
    assert len(store._noted) == 1000
    store.put(b"user0000000", b"newer")
    assert 1000 - len(store._noted) < 2 * NOTES_DROPPED_PER_WRITE
    for number in range(1000):
        store.put(b"user%07d" % number, b"newest")
    assert dict(read_all(young)) == {b"user%07d" % number: b"new" for number in range(1000)}
    assert len(store._noted) == 1000, "those that the young one needs, and no others"


def test_a_page_looks_at_a_bounded_number_of_keys() -> None:
    """Keys that are gone but kept for an older cut cost as much to pass over as keys that are there."""
    store = filled(3 * SCAN_PAGE_KEYS_WALKED)
    old = store.cut(b"", b"v")
    for number in range(3 * SCAN_PAGE_KEYS_WALKED):
        store.delete(b"user%07d" % number)
    store.put(b"user9", b"the only one")
    young = store.cut(b"", b"v")
    pages = []
    while not young.done:
        pages.append(young.page())
    assert [len(page) for page in pages] == [0, 0, 0, 1]
    assert len(read_all(old)) == 3 * SCAN_PAGE_KEYS_WALKED


def test_tiny_notes_are_counted_with_what_they_cost() -> None:
    store = MemoryStore(undo_bytes_max=100_000)
    cut = store.cut(b"", b"\xff")
    written = 0
    while cut.open:
        store.put(b"%d" % written, b"")
        written += 1
    assert written < 100_000 / 200, "a note without its overhead would count for five bytes, and cost some hundred"


class CountingList(SortedList):
    """Counts the keys that are walked over."""

    steps = 0

    def irange(self, *arguments: object) -> object:
        for key in super().irange(*arguments):
            self.steps += 1
            yield key


@pytest.mark.parametrize("with_notes", [False, True])
def test_a_scan_of_100_pairs_touches_no_others(with_notes: bool) -> None:
    store = filled(1_000_000)
    store._keys = CountingList(store._keys)
    older = store.cut(b"", b"v")
    if with_notes:
        for number in range(0, 1_000_000, 1000):
            store.put(b"user%07d" % number, b"x")
    cut = store.cut(b"user0500000", b"user0500099")
    assert store._keys.steps == 0, "taking a cut copies nothing"
    assert len(cut.page()) == 100 and cut.done
    assert store._keys.steps <= 101
    assert older.open


def test_taking_a_cut_of_everything_leaves_everything_alone() -> None:
    store = filled(1_000_000)
    store._keys = CountingList(store._keys)
    cuts = [store.cut(b"", b"v") for _ in range(1000)]
    assert store._keys.steps == 0 and store._undo_bytes == 0 and not store._replaced
    assert cuts[-1].page(pairs_max=1) == [(b"user0000000", b"v")]
    assert store._keys.steps == 1
