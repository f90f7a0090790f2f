"""Is there an order that explains what every client was told? Key by key, by search.

Theory of operation. A store of independent keys is linearizable when each key is (Herlihy and Wing, 1990), so each
key is judged alone, as one cell that holds a value or nothing. An operation becomes a *step*: what it expects of the
cell and what it leaves there. A Scan is one reading step for each key in its range. Four moves make the search short,
and each is exact: none accepts what no order explains, none refuses what some order does.

1. Values nobody observed are all alike, and become one mark, UNSEEN.
2. A value that was written once ties its writer and all who observed it together: nothing else fits between them. The
   writer, its readers, the Swap that took the value, the readers of what that Swap left, and so on, become one *item*,
   with the latest call and the earliest return of its members (the zones of Gibbons and Korach, 1997).
3. Of the items that could come next, one that leaves the cell as it is comes at once; of those that expect and leave
   the same, the one with the earliest return comes first (exchange the two in any order that works: it still works).
4. A write of unknown outcome is placed only right before a step that needs it. Anywhere else it may as well not be.

What is left is the search of Wing and Gong (1993) with Lowe's memory of configurations (2017): which items are placed,
and what the cell holds. With unique values and known outcomes nothing is left to choose, and the search is one walk.
It is iterative and bounded; when a bound is met the verdict is UNDECIDED, which is not a pass.
"""

import enum
import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

import attrs

from madkv.testing.history import Operation, Ours
from madkv.testing.lines import show

CONFIGURATIONS_MAX = 1_000_000
"""Configurations remembered for one key, about 200 bytes each; beyond it the verdict on the key is UNDECIDED."""
STEPS_BETWEEN_LOOKS = 256
"""Moves of the search between two looks at the clock."""


class Verdict(enum.Enum):
    """What a check found. UNDECIDED is not a pass."""

    OK = "linearizable"
    VIOLATION = "not linearizable"
    UNDECIDED = "undecided"


class Mark(enum.Enum):
    """What a step may expect or leave, and what a cell may hold at first, beside a value or None (no value)."""

    ANY = "expects nothing in particular"
    PRESENT = "expects some value"
    KEEP = "leaves what it finds"
    UNKNOWN = "holds nobody knows what"


class Step(NamedTuple):
    """What one operation says about one key.

    A reading step, which leaves Mark.KEEP, expects a certain value or none; only writes may expect a Mark. An optional
    step may never have taken effect; it writes, and expects nothing in particular. When the outcome of an operation is
    unknown, `returned` is infinite as well: it may still take effect.
    """

    called: float
    returned: float
    expects: bytes | Mark | None
    leaves: bytes | Mark | None
    source: Operation | None = None
    optional: bool = False


@attrs.frozen
class Finding:
    """The verdict on a history.

    `why` says in a few words what a verdict other than OK rests on; `broken` holds, for a VIOLATION, the steps of each
    key whose answers no order explains; a Scan that breaks the rules of its own answer needs no steps.
    """

    verdict: Verdict
    why: str = ""
    broken: dict[bytes, list[Step]] = attrs.field(factory=dict)


def _never() -> bool:
    return False


def check(
    history: Iterable[Operation],
    ours: Ours = lambda key: True,
    out_of_time: Callable[[], bool] = _never,
    checked: Callable[[int, int], None] = lambda done, total: None,
) -> Finding:
    """Judge a history of any number of keys, none of which holds a value at first.

    Keys in the answer of a Scan that are not `ours` are left alone. `out_of_time` is asked now and then, and ends the
    check; `checked` is told of progress.
    """
    history = list(history)
    for operation in history:
        fault = scan_fault(operation)
        if fault:
            return Finding(Verdict.VIOLATION, f"client {operation.client}: {fault}")
    steps_of = steps_by_key(history, ours)
    broken: dict[bytes, list[Step]] = {}
    undecided = 0
    for number, (key, steps) in enumerate(steps_of.items()):
        checked(number, len(steps_of))
        verdict = check_key(steps, None, out_of_time)
        if verdict is Verdict.VIOLATION:
            broken[key] = steps
        elif verdict is Verdict.UNDECIDED:
            undecided += 1
    checked(len(steps_of), len(steps_of))
    if broken:
        return Finding(Verdict.VIOLATION, f"no order explains the answers for {len(broken)} of the keys", broken)
    if undecided:
        return Finding(Verdict.UNDECIDED, f"the check of {undecided} of {len(steps_of)} keys ran out of time or memory")
    return Finding(Verdict.OK)


def scan_fault(operation: Operation) -> str | None:
    """What is wrong with a Scan's answer whatever the store held: order, repetition, bounds; None when nothing is."""
    if operation.kind != "SCAN" or operation.returned_ns is None:
        return None
    start, end, pairs = operation.key, operation.value, operation.result
    assert isinstance(pairs, tuple) and end is not None
    name = f"SCAN {show(start)} {show(end)}"
    previous: bytes | None = None
    for key, _ in pairs:
        if start > end:
            return f"{name} has its start after its end, and yet answered {show(key)}"
        if not start <= key <= end:
            return f"{name} answered {show(key)}, outside its bounds"
        if previous is not None and key <= previous:
            fault = "repeated" if key == previous else f"answered {show(previous)} before"
            return f"{name} {fault} {show(key)}"
        previous = key
    return None


def steps_by_key(history: Sequence[Operation], ours: Ours = lambda key: True) -> dict[bytes, list[Step]]:
    """Each key's steps. A Scan reads every key of the history in its range: the keys it did not answer as absent."""
    steps_of: defaultdict[bytes, list[Step]] = defaultdict(list)
    scans: list[tuple[Operation, dict[bytes, bytes]]] = []
    for operation in history:
        if operation.kind != "SCAN":
            step = _step(operation)
            if step:
                steps_of[operation.key].append(step)
            else:
                steps_of.setdefault(operation.key, [])
        elif operation.returned_ns is not None:
            assert isinstance(operation.result, tuple)
            found = dict(operation.result)
            scans.append((operation, found))
            for key in found:
                if key not in steps_of and ours(key):
                    steps_of[key] = []
    known = sorted(steps_of)
    for scan, found in scans:
        assert scan.value is not None and scan.returned_ns is not None
        for key in known[bisect_left(known, scan.key) : bisect_right(known, scan.value)]:
            steps_of[key].append(Step(scan.called_ns, scan.returned_ns, found.get(key), Mark.KEEP, scan))
    return steps_of


def _step(operation: Operation) -> Step | None:
    """The step of a single-key operation; None for a Get of unknown outcome, which says nothing."""
    kind, result = operation.kind, operation.result
    leaves = Mark.KEEP if kind == "GET" else None if kind == "DELETE" else operation.value
    if operation.returned_ns is None:
        return None if kind == "GET" else Step(operation.called_ns, math.inf, Mark.ANY, leaves, operation, True)
    expects: bytes | Mark | None
    if kind in ("PUT", "DELETE"):
        assert isinstance(result, bool)
        expects = Mark.PRESENT if result else None
        if kind == "DELETE" and not result:
            leaves = Mark.KEEP
    else:
        assert result is None or isinstance(result, bytes)
        expects = result
    return Step(operation.called_ns, operation.returned_ns, expects, leaves, operation)


def check_key(
    steps: Sequence[Step], initial: bytes | Mark | None = None, out_of_time: Callable[[], bool] = _never
) -> Verdict:
    """Judge the steps of one key, which holds `initial` at first: a value, or None for no value, or Mark.UNKNOWN."""
    if initial is not Mark.UNKNOWN:
        return _check_from(steps, initial, out_of_time)
    written = {step.leaves for step in steps}
    unwritten = {step.expects for step in steps if isinstance(step.expects, bytes)} - written
    if unwritten:
        candidates: list[bytes | None] = [*sorted(unwritten)]
    else:
        # Nothing, or something that nobody saw, or a value written again later, seen before any write.
        certain_writes = [step for step in steps if step.leaves is not Mark.KEEP and not step.optional]
        horizon = min((step.returned for step in certain_writes), default=math.inf)
        early = {step.expects for step in steps if isinstance(step.expects, bytes) and step.called <= horizon}
        candidates = [None, _fresh(written), *sorted(early)]
    verdict = Verdict.VIOLATION
    for candidate in candidates:
        now = _check_from(steps, candidate, out_of_time)
        if now is Verdict.OK:
            return now
        if now is Verdict.UNDECIDED:
            verdict = now
    return verdict


def _fresh(written: set[bytes | Mark | None]) -> bytes:
    value = b"?"
    while value in written:
        value += b"?"
    return value


# --- From steps to items ---------------------------------------------------------------------------------------------
# Inside the search, values are numbers, so that configurations are quick to compare.
_ANY: Final = -1
_PRESENT: Final = -2
_KEEP: Final = -3
_ABSENT: Final = 0
_UNSEEN: Final = 1


class _Item(NamedTuple):
    """Steps that must stand next to each other, or one write that may be left out."""

    called: float
    """The latest call of its steps: no item that returned before it may come after this one."""
    returned: float
    """The earliest return; infinite for one that may be left out, since nobody has to wait for it."""
    expects: int
    leaves: int
    expires: float = math.inf
    """For one that may be left out: its return. What was called later cannot come before it."""


def _items(steps: Iterable[Step]) -> list[_Item] | None:
    """Tie steps into items (move 2); None when that alone shows that no order exists."""
    writers: defaultdict[bytes, int] = defaultdict(int)
    readers: defaultdict[bytes, list[Step]] = defaultdict(list)
    takers: defaultdict[bytes, list[Step]] = defaultdict(list)
    for step in steps:
        if isinstance(step.leaves, bytes):
            writers[step.leaves] += 1
        # A reader that is content with any value could stand between a write and those that observed that very value,
        # where an item has no room for it.
        assert step.leaves is not Mark.KEEP or not isinstance(step.expects, Mark), "a reading step expects what it read"
        if isinstance(step.expects, bytes):
            (readers if step.leaves is Mark.KEEP else takers)[step.expects].append(step)
    for value in (*readers, *takers):
        if value not in writers or (writers[value] == 1 and len(takers[value]) > 1):
            return None  # seen and never written, or written once and taken twice

    numbers: dict[bytes, int] = {}
    items: list[_Item] = []
    observed = readers.keys() | takers.keys()
    tied = 0
    writes = 0
    for step in steps:
        expects = step.expects
        once = isinstance(expects, bytes) and writers[expects] == 1
        if step.leaves is Mark.KEEP:
            if not once:
                items.append(_Item(step.called, step.returned, _number(expects, numbers), _KEEP))
            continue
        writes += 1
        if once:
            continue  # part of the item of the write it observed
        called, returned = step.called, step.returned
        leaves: bytes | Mark | None = step.leaves
        tied += 1
        while isinstance(leaves, bytes) and writers[leaves] == 1:
            latest_call = called
            for reader in readers[leaves]:
                if reader.returned < latest_call:
                    return None
                called, returned = max(called, reader.called), min(returned, reader.returned)
            if not takers[leaves]:
                break
            taker = takers[leaves][0]
            if taker.returned < called:
                return None
            called, returned, leaves = max(called, taker.called), min(returned, taker.returned), taker.leaves
            tied += 1
        unseen = isinstance(leaves, bytes) and (writers[leaves] == 1 or leaves not in observed)
        left = _UNSEEN if unseen else _number(leaves, numbers)
        certain = isinstance(step.leaves, bytes) and writers[step.leaves] == 1 and step.leaves in observed
        if step.optional and not certain:
            items.append(_Item(called, math.inf, _ANY, left, returned))
        else:
            items.append(_Item(called, returned, _number(expects, numbers), left))
    # Swaps that only took from one another have no beginning.
    return items if tied == writes else None


def _number(value: bytes | Mark | None, numbers: dict[bytes, int]) -> int:
    if value is None:
        return _ABSENT
    if isinstance(value, bytes):
        return numbers.setdefault(value, _UNSEEN + 1 + len(numbers))
    return _PRESENT if value is Mark.PRESENT else _ANY


def _fits(expects: int, cell: int) -> bool:
    return expects in (cell, _ANY) or (expects == _PRESENT and cell != _ABSENT)


# --- The search ------------------------------------------------------------------------------------------------------
def _check_from(steps: Sequence[Step], initial: bytes | Mark | None, out_of_time: Callable[[], bool]) -> Verdict:
    if initial is not None:
        assert isinstance(initial, bytes)
        steps = [Step(-math.inf, -math.inf, Mark.ANY, initial), *steps]
    items = _items(steps)
    if items is None:
        return Verdict.VIOLATION
    return _Search(items).run(out_of_time)


class _Search:
    """Items stand in the order of their returns; a pending set is a sorted list of such places.

    The window: an item *enters* when the earliest return of all that are unplaced has reached its call (or its own
    return, when that is earlier, as it may be for an item of several steps). What has not entered can neither be placed
    next nor be what the others have to wait for.
    """

    def __init__(self, items: list[_Item]) -> None:
        expected = {item.expects for item in items}
        # What nobody's answer depends on: whether a cell without an observed value holds some value, or none.
        self.idle = {_UNSEEN} - ({_UNSEEN} if _PRESENT in expected else set())
        self.idle |= {_ABSENT} - expected
        if self.idle == {_UNSEEN, _ABSENT}:
            items = [item._replace(leaves=_UNSEEN) if item.leaves == _ABSENT else item for item in items]
        items.sort(key=attrgetter("returned", "expires", "called"))
        self.items = items
        self.optional_from = bisect_left(items, math.inf, key=attrgetter("returned"))
        self.entry = sorted(range(len(items)), key=lambda place: min(items[place].called, items[place].returned))
        self.enters = [min(items[place].called, items[place].returned) for place in self.entry]
        # earliest_later[n]: the earliest return of those that enter as number n or later.
        self.earliest_later = [math.inf] * (len(items) + 1)
        for number in reversed(range(len(items))):
            self.earliest_later[number] = min(self.earliest_later[number + 1], items[self.entry[number]].returned)

    def run(self, out_of_time: Callable[[], bool]) -> Verdict:
        items, entry, enters = self.items, self.entry, self.enters
        count = len(items)
        seen: set[tuple[int, tuple[int, ...], int]] = set()
        stack: list[tuple[int, list[int], int, float]] = [(0, [], _ABSENT, -math.inf)]
        branched = False
        until_look = 1
        while stack:
            entered, pending, cell, latest_call = stack.pop()
            while True:
                until_look -= 1
                if not until_look:
                    until_look = STEPS_BETWEEN_LOOKS
                    if out_of_time() or len(seen) > CONFIGURATIONS_MAX:
                        return Verdict.UNDECIDED
                while entered < count and (not pending or enters[entered] <= items[pending[0]].returned):
                    # An optional write may enter too late: what was called after its return is placed already.
                    if items[entry[entered]].expires >= latest_call:
                        insort(pending, entry[entered])
                    entered += 1
                if not pending or pending[0] >= self.optional_from:
                    return Verdict.OK  # only what may be left out is left
                at_once, moves = self._moves(entered, pending, cell)
                if at_once:
                    latest_call = max(latest_call, self._called(at_once))
                    gone = set(at_once)
                    pending = [place for place in pending if place not in gone]
                    continue
                if branched:
                    configuration = (entered, tuple(pending), cell)
                    if configuration in seen:
                        break
                    seen.add(configuration)
                if not moves:
                    break
                if len(moves) > 1:
                    branched = True
                    for places, then in reversed(moves[1:]):
                        then_latest_call = max(latest_call, self._called(places))
                        stack.append((entered, self._without(pending, places), then, then_latest_call))
                places, cell = moves[0]
                pending = self._without(pending, places)
                latest_call = max(latest_call, self._called(places))
        return Verdict.VIOLATION

    def _moves(self, entered: int, pending: list[int], cell: int) -> tuple[list[int], list[tuple[list[int], int]]]:
        """What to place at once; when nothing, the choices: what to place next, and what the cell holds then."""
        items = self.items
        first = pending[0]
        horizon = items[first].returned
        at_once = []
        candidates: dict[tuple[int, int, int], int] = {}
        spare: dict[tuple[int, int], int] = {}
        expiry = self._expiry(pending)
        for place in pending:
            called, _, expects, leaves, _ = items[place]
            if called > horizon and not (place == first and called <= self._horizon_without_first(entered, pending)):
                continue
            # To place this is to give up another optional write, which makes it unlike the rest of its kind.
            kind = place if called > expiry else -1
            if place >= self.optional_from:
                spare.setdefault((leaves, kind), place)
            elif kind != -1:
                candidates[expects, leaves, kind] = place
            elif leaves == _KEEP and expects == cell:
                at_once.append(place)
            elif leaves == cell and (
                (expects == _PRESENT and cell == _UNSEEN) or (expects == _ANY and cell in self.idle)
            ):
                # Wherever else it could stand, what is there without it serves those after it as well.
                at_once.append(place)
            else:
                candidates.setdefault((expects, leaves, -1), place)
        moves: list[tuple[list[int], int]] = []
        if at_once:
            return at_once, moves
        for (expects, leaves, _), place in candidates.items():
            if _fits(expects, cell):
                moves.append(([place], cell if leaves == _KEEP else leaves))
            else:
                for (left, _), helper in spare.items():
                    if _fits(expects, left):
                        moves.append(([helper, place], left if leaves == _KEEP else leaves))
        return at_once, moves

    def _expiry(self, pending: list[int]) -> float:
        """The earliest return of the optional writes that are pending."""
        number = bisect_left(pending, self.optional_from)
        return self.items[pending[number]].expires if number < len(pending) else math.inf

    def _called(self, places: list[int]) -> float:
        return max(self.items[place].called for place in places)

    def _without(self, pending: list[int], places: list[int]) -> list[int]:
        """What is pending once these are placed: optional writes that would have had to come before are given up."""
        called = self._called(places)
        return [place for place in pending if place not in places and self.items[place].expires >= called]

    def _horizon_without_first(self, entered: int, pending: list[int]) -> float:
        later = self.earliest_later[entered]
        return min(later, self.items[pending[1]].returned) if len(pending) > 1 else later
