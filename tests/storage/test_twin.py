"""The LMDB store and its twin in memory give the same answers, whatever is done with them."""

from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from madkv.raft.configuration import Member
from madkv.raft.messages import HardState
from madkv.storage import durable, snapshot
from madkv.storage.batch import Batch
from madkv.storage.records import Damaged
from madkv.storage.snapshot import SnapshotHead, SnapshotReader
from madkv.storage.twin import TwinDisk, TwinStorage
from tests.storage.stores import change, configuration, entry, opened, pieces_of

KEYS = st.sampled_from([b"a", b"b", b"ba", b"c", b"d"])
TABLES = st.dictionaries(KEYS, st.none() | st.binary(max_size=30), max_size=4)


class Twins(RuleBasedStateMachine):
    """`under_way`: a batch is written, or a snapshot installed, and that is not taken over yet."""

    def __init__(self) -> None:
        super().__init__()
        self.path = mkdtemp(prefix="madkv-twins-")
        self.limits = durable.REMOVED_ENTRIES_MAX, snapshot.PIECE_BYTES
        durable.REMOVED_ENTRIES_MAX, snapshot.PIECE_BYTES = 3, 40
        self.real = opened(self.path)
        self.twin = TwinStorage(TwinDisk(), configuration(1, 2, 3))
        self.under_way: Batch | SnapshotHead | None = None
        self.incoming: tuple[SnapshotHead, list[tuple[int, bytes]]] | None = None
        self.cuts: tuple[SnapshotReader, SnapshotReader] | None = None
        self.opened: tuple[Any, Any] | None = None
        self.seen: list[tuple[bytes, bytes]] = []
        self.term = 1

    def teardown(self) -> None:
        try:
            self.let_go_of_cuts()
        finally:
            self.real.close()
            durable.REMOVED_ENTRIES_MAX, snapshot.PIECE_BYTES = self.limits
            rmtree(self.path)

    def both(self, method: str, *arguments: Any) -> Any:
        answers = []
        for store in (self.real, self.twin):
            try:
                answers.append(getattr(store, method)(*arguments))
            except Damaged:
                answers.append(Damaged)
        assert answers[0] == answers[1], (method, arguments)
        return answers[0]

    def let_go_of_cuts(self) -> None:
        cuts, self.cuts = self.cuts, None
        if cuts is not None:
            assert pieces_of(cuts[0]) == pieces_of(cuts[1])

    @precondition(lambda self: self.under_way is None)
    @rule(data=st.data(), pairs=TABLES, sessions=TABLES, taken_over=st.booleans())
    def write(self, data: st.DataObject, pairs: Any, sessions: Any, taken_over: bool) -> None:
        twin = self.twin
        first = data.draw(st.integers(twin.applied_index + 1, twin.last_index + 1), "first")
        count = data.draw(st.integers(0, 6), "count")
        self.term += data.draw(st.integers(0, 1), "newer")
        kinds = data.draw(st.lists(st.booleans(), min_size=count, max_size=count), "configurations")
        entries = tuple(
            change(first + at, self.term, first + at, 1) if kind and first + at > 1 else entry(first + at, self.term)
            for at, kind in enumerate(kinds)
        )
        last = entries[-1].index if entries else twin.last_index
        applied = data.draw(st.none() | st.integers(twin.applied_index, last), "applied")
        compact_to = data.draw(st.none() | st.integers(twin.snapshot_index, twin.applied_index), "compact")
        voted = data.draw(st.none() | st.just(HardState(self.term, Member(1, b"m" * 16))), "voted")
        if applied is None:
            pairs, sessions = {}, {}
        self.under_way = Batch(voted, entries, pairs, sessions, applied, compact_to)
        self.both("write", self.under_way)
        if taken_over:
            self.take_over()

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def take_over(self) -> None:
        self.both("written" if isinstance(self.under_way, Batch) else "installed", self.under_way)
        self.under_way = None

    @rule()
    def crash(self) -> None:
        """Both are opened again; a commit that was done is there, whether it was taken over or not."""
        self.let_go_of_cuts()
        self.opened = None
        self.real.close()
        self.real, self.twin, self.under_way = opened(self.path), self.twin.crash(), None

    @precondition(lambda self: self.cuts is None)
    @rule()
    def open_snapshot(self) -> None:
        self.cuts = self.real.open_snapshot(), self.twin.open_snapshot()
        assert self.cuts[0].head == self.cuts[1].head

    @precondition(lambda self: self.cuts is not None)
    @rule()
    def read_snapshot(self) -> None:
        self.let_go_of_cuts()

    @precondition(lambda self: self.opened is None)
    @rule()
    def open_pairs(self) -> None:
        """What is read at once, and later, is what memory speaks of now."""
        self.opened = self.real.open_pairs(), self.twin.open_pairs()
        self.seen = list(self.twin.pairs(b"", b"\xff"))

    @precondition(lambda self: self.opened is not None)
    @rule()
    def read_pairs(self) -> None:
        opened, self.opened = self.opened, None
        assert opened is not None
        for pairs in opened:
            assert list(pairs) == self.seen
            pairs.close()

    @rule(ahead=st.integers(-3, 4), pairs=TABLES, sessions=TABLES, same_term=st.booleans())
    def snapshot_comes(self, ahead: int, pairs: Any, sessions: Any, same_term: bool) -> None:
        index = max(self.twin.applied_index + 1, self.twin.last_index + ahead)
        term = self.twin.term_of(index) if same_term else None
        if term is None:
            self.term += 1
            term = self.term
        head = SnapshotHead(index, term, configuration(1, 9))

        class Source:
            def __init__(self) -> None:
                self.head = head

            def records(self, table: int) -> Any:
                rows = (pairs, sessions)[table].items()
                return iter(sorted((key, value) for key, value in rows if value is not None))

            def close(self) -> None:
                pass

        self.incoming = head, pieces_of(SnapshotReader(Source()))

    @precondition(lambda self: self.incoming is not None and self.under_way is None)
    @rule(data=st.data())
    def stage_any(self, data: st.DataObject) -> None:
        """Repeated, skipped, or the next."""
        head, pieces = self.incoming
        self.both("stage", head, *data.draw(st.sampled_from(pieces)))

    @precondition(lambda self: self.incoming is not None and self.under_way is None)
    @rule(taken_over=st.booleans())
    def stage_all_and_install(self, taken_over: bool) -> None:
        head, pieces = self.incoming
        if head.last_index <= self.twin.applied_index:
            return
        for offset, piece in pieces:
            self.both("stage", head, offset, piece)
        self.both("install", head)
        self.under_way, self.incoming = head, None
        if taken_over:
            self.take_over()

    @rule(start=KEYS, end=KEYS)
    def scan(self, start: bytes, end: bytes) -> None:
        if self.under_way is None:
            assert [*self.real.pairs(start, end)] == [*self.twin.pairs(start, end)]

    @invariant()
    def they_know_the_same(self) -> None:
        real, twin = self.real, self.twin
        for name in ("hard_state", "snapshot_index", "snapshot_term", "last_index", "applied_index", "configurations"):
            assert getattr(real, name) == getattr(twin, name), name
        for index in range(real.snapshot_index - 1, real.last_index + 2):
            self.both("term_of", index)
        self.both("compaction_target", real.last_index)

    @invariant()
    def they_read_the_same(self) -> None:
        """Of the log also while a commit is done and not taken over, but for what it replaces."""
        real = self.real
        last = real.last_index
        if isinstance(self.under_way, Batch) and self.under_way.entries:
            last = self.under_way.entries[0].index - 1
        if last > real.snapshot_index:
            found = self.both("entries", real.snapshot_index + 1, last, 10**9)
            assert [each.index for each in found] == list(range(real.snapshot_index + 1, last + 1))
            self.both("entries", last, last, 1)
        if self.under_way is None:
            assert [*real.pairs(b"", b"z")] == [*self.twin.pairs(b"", b"z")]
            self.both("sessions")
            for key in (b"a", b"ba"):
                self.both("get", key)
        real.end_turn()


TestTwins = Twins.TestCase
TestTwins.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
