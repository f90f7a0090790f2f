"""Reads through three layers answer like one mapping, whenever the layers move."""

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from madkv.storage.batch import Table
from madkv.storage.overlay import PAIR_OVERHEAD_BYTES, AppliedPairs, PairsCut

KEYS = st.sampled_from([b"a", b"b", b"ba", b"c", b"d"])
BOUNDS = KEYS | st.sampled_from([b"", b"bb", b"\xff"])
VALUES = st.binary(max_size=3)


class DictStore:
    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def pairs(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted((key, value) for key, value in self.held.items() if start <= key <= end))

    def open_pairs(self) -> "HeldPairs":
        return HeldPairs(sorted(self.held.items()))


class HeldPairs(list[tuple[bytes, bytes]]):
    """What a DictStore held at one moment."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Layers(RuleBasedStateMachine):
    """`model` is what was applied; `frozen` is with a commit, which the store shows from some moment before `thaw`."""

    def __init__(self) -> None:
        super().__init__()
        self.store = DictStore()
        self.applied = AppliedPairs(self.store)
        self.model: dict[bytes, bytes] = {}
        self.frozen: Table | None = None
        self.cut: PairsCut | None = None
        self.expected: list[tuple[bytes, bytes]] = []

    @initialize(held=st.dictionaries(KEYS, VALUES))
    def begin(self, held: dict[bytes, bytes]) -> None:
        self.store.held, self.model = dict(held), dict(held)

    @rule(key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> None:
        assert self.applied.put(key, value) == self.model.get(key)
        self.model[key] = value

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        assert self.applied.delete(key) == self.model.pop(key, None)

    @rule(start=BOUNDS, end=BOUNDS)
    def scan(self, start: bytes, end: bytes) -> None:
        expected = sorted((key, value) for key, value in self.model.items() if start <= key <= end)
        assert list(self.applied.pairs(start, end)) == expected

    @precondition(lambda self: self.cut is None)
    @rule()
    def take_a_cut(self) -> None:
        self.cut, self.expected = self.applied.cut(), sorted(self.model.items())

    @precondition(lambda self: self.cut is not None)
    @rule()
    def read_the_cut(self) -> None:
        """Whatever was applied and committed since it was taken."""
        cut, self.cut = self.cut, None
        assert cut is not None and list(cut) == self.expected
        cut.close()

    @precondition(lambda self: self.frozen is None)
    @rule()
    def freeze(self) -> None:
        self.frozen = self.applied.freeze()
        assert self.applied.waiting_bytes == 0

    @precondition(lambda self: self.frozen is not None)
    @rule(done=st.booleans())
    def commit(self, done: bool) -> None:
        """The store shows what is committed, either before it is let go of or at that moment."""
        for key, value in self.frozen.items():
            if value is None:
                self.store.held.pop(key, None)
            else:
                self.store.held[key] = value
        if done:
            self.applied.thaw()
            self.frozen = None

    @rule(held=st.dictionaries(KEYS, VALUES))
    def snapshot(self, held: dict[bytes, bytes]) -> None:
        self.store.held, self.model, self.frozen = dict(held), dict(held), None
        self.applied.forget()

    @invariant()
    def every_key_reads_as_applied(self) -> None:
        for key in (b"a", b"b", b"ba", b"c", b"d"):
            assert self.applied.get(key) == self.model.get(key)
        found = [key for key, _ in self.applied.pairs(b"", b"\xff")]
        assert all(one < other for one, other in pairwise(found))

    @invariant()
    def its_size_is_what_it_holds(self) -> None:
        held = self.applied._filling.values.items()
        assert self.applied.waiting_bytes == sum(
            PAIR_OVERHEAD_BYTES + len(key) + len(value or b"") for key, value in held
        )


TestLayers = Layers.TestCase
TestLayers.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
