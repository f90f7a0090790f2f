"""The shortest stretch of a history that no order explains, in words.

Theory of operation. The steps of a key are cut down by moves that only weaken them, so that whatever the rest cannot
explain, the whole could not explain either:

* the end is cut off: what was called later goes, what had not returned yet becomes of unknown outcome;
* the beginning is cut off: what had returned goes, what was pending becomes of unknown outcome, and the cell holds
  nobody knows what;
* a reading step goes;
* what a write was told goes, the write itself stays;
* a write goes when none of the rest could stand right after it, unless it did not care: whatever order
  explained all, explains the rest without it;
* a write becomes of unknown outcome: it may have taken effect at any time after its call, or never.

What stays is shown call by call; writes that became of unknown outcome and whose values nobody shown here saw are
only counted.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

import attrs

from madkv.testing.history import Operation
from madkv.testing.linearizability import Mark, Step, Verdict, check_key
from madkv.testing.lines import show

DEAD_ENDS_MAX = 6
"""Orders spelled out up to where they get stuck; when there are more, one sentence stands for all."""
SHOWN_BYTES = 32
"""Of a value that is longer."""

OutOfTime = Callable[[], bool]
Chosen = Callable[[Step], bool]
"""Which steps a move is to weaken."""
Move = Callable[[Sequence[Step], Chosen], list[Step]]


@attrs.frozen
class Stretch:
    """Steps of one key that no order explains. `initial` is what the cell held at first (Mark.UNKNOWN: anything)."""

    key: bytes
    steps: list[Step]
    initial: Mark | None

    def shown(self) -> list[Step]:
        """The steps that the explanation names, in the order of their calls."""
        seen = {step.expects for step in self.steps if step.returned < math.inf}
        named = [step for step in self.steps if step.returned < math.inf or step.leaves in seen]
        return sorted(named, key=attrgetter("called"))


def shortest(key: bytes, steps: Sequence[Step], out_of_time: OutOfTime) -> Stretch:
    """Cut the steps of a key that is not linearizable down. When the time is up, what was reached is returned."""
    initial: Mark | None = None

    def broken(some: Sequence[Step], cell: Mark | None) -> bool:
        return not out_of_time() and check_key(some, cell, out_of_time) is Verdict.VIOLATION

    def thinned(weaken: Move) -> list[Step]:
        return _thinned(best, weaken, lambda some: broken(some, initial))

    def without_beginning() -> tuple[list[Step], Mark | None]:
        starts = sorted({step.called for step in best}, reverse=True)
        start = _first(len(starts), lambda place: broken(_since(best, starts[place]), Mark.UNKNOWN))
        return (_since(best, starts[start]), Mark.UNKNOWN) if start < len(starts) else (best, initial)

    ends = sorted({step.returned for step in steps if step.returned < math.inf})
    end = _first(len(ends), lambda place: broken(_until(steps, ends[place]), initial))
    best = _until(steps, ends[end]) if end < len(ends) else list(steps)

    written = {step.leaves for step in best}
    for step in best:
        if isinstance(step.expects, bytes) and step.expects not in written:
            return Stretch(key, [step], None)

    best, initial = without_beginning()
    best = thinned(_without_answers)
    best = thinned(_without_reads)
    best = thinned(_without_idle_writes)
    best, initial = without_beginning()
    best = thinned(_blurred)
    best = thinned(_without_idle_writes)
    return Stretch(key, best, initial)


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The least place below `count` where `holds` holds, if it holds from there on; `count` when nowhere."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _until(steps: Sequence[Step], end: float) -> list[Step]:
    early = [step for step in steps if step.called <= end and (step.returned <= end or step.leaves is not Mark.KEEP)]
    return [step if step.returned <= end else _optional(step)._replace(returned=math.inf) for step in early]


def _since(steps: Sequence[Step], start: float) -> list[Step]:
    late = [step for step in steps if step.returned >= start]
    return _blurred(late, lambda step: step.called < start)


def _optional(step: Step) -> Step:
    return step._replace(expects=Mark.ANY, optional=True)


def _blurred(steps: Sequence[Step], chosen: Chosen) -> list[Step]:
    return [_optional(step) if chosen(step) else step for step in _without_reads(steps, chosen)]


def _without_reads(steps: Sequence[Step], chosen: Chosen) -> list[Step]:
    return [step for step in steps if not (chosen(step) and step.leaves is Mark.KEEP)]


def _without_answers(steps: Sequence[Step], chosen: Chosen) -> list[Step]:
    return [
        step._replace(expects=Mark.ANY) if chosen(step) and step.leaves is not Mark.KEEP else step for step in steps
    ]


def _without_idle_writes(steps: Sequence[Step], chosen: Chosen) -> list[Step]:
    expected = {step.expects for step in steps}

    def idle(step: Step) -> bool:
        if step.leaves is Mark.KEEP or step.leaves in expected:
            return False
        return step.leaves is None or Mark.PRESENT not in expected

    return [step for step in steps if not (chosen(step) and idle(step))]


def _thinned(
    steps: list[Step],
    weaken: Move,
    broken: Callable[[Sequence[Step]], bool],
) -> list[Step]:
    """Weaken as many steps as possible: first many together, then ever fewer."""
    size = len(steps)
    while size:
        place = 0
        while place < len(steps):
            chunk = set(steps[place : place + size])
            attempt = weaken(steps, chunk.__contains__)
            if attempt != steps and broken(attempt):
                place += size - (len(steps) - len(attempt))
                steps = attempt
            else:
                place += size
        size //= 2
    return steps


# --- In words --------------------------------------------------------------------------------------------------------
def in_words(stretch: Stretch, origin_ns: int) -> list[str]:
    """Numbered sentences: who called what when, what they were told, and why no order explains it.

    Times are in milliseconds since `origin_ns`.
    """
    shown = stretch.shown()
    lines = [f"About the key {_text(stretch.key)}, with times in ms since the first call:"]
    lines += [f"{number}. {_told(step, stretch.key, origin_ns)}" for number, step in enumerate(shown, 1)]
    uncounted = len(stretch.steps) - len(shown)
    if uncounted:
        lines.append(
            f"{uncounted} more {'write' if uncounted == 1 else 'writes'} of this key may have taken effect in that "
            "time: the answers above cannot be explained whether or not, and whenever, they did."
        )
    if stretch.initial is Mark.UNKNOWN:
        lines.append("Whatever the key held before:")
    return lines + [f"   {reason}" for reason in _reasons(stretch, shown)]


def _told(step: Step, key: bytes, origin_ns: int) -> str:
    operation = step.source
    assert operation is not None
    call = f"{operation.kind} {_text(operation.key)}" + (f" {_text(operation.value)}" if operation.value else "")
    who = f"Client {operation.client} called {call} at {_ms(operation.called_ns, origin_ns)}"
    if step.optional:
        return f"{who}; when it took effect, if it did, does not matter here."
    return f"{who} and at {_ms(operation.returned_ns, origin_ns)} was told {_answer(operation, key)}."


def _ms(at_ns: int | None, origin_ns: int) -> str:
    return "an unknown time" if at_ns is None else f"{(at_ns - origin_ns) / 1e6:.3f}"


def _answer(operation: Operation | None, key: bytes) -> str:
    """What the caller was told of this key."""
    assert operation is not None
    result = operation.result
    if isinstance(result, tuple):
        found = dict(result).get(key)
        return f"that {_text(key)} {_holds(found)}"
    if isinstance(result, bool):
        return "found" if result else "not_found"
    return _text(result)


def _holds(cell: bytes | Mark | None) -> str:
    return "holds nothing" if cell is None else f"holds {_text(cell)}"


def _text(value: bytes | Mark | None) -> str:
    if not isinstance(value, bytes):
        return "null" if value is None else "any value"
    return show(value, SHOWN_BYTES, 0)


def _reasons(stretch: Stretch, shown: Sequence[Step]) -> list[str]:
    written = {step.leaves for step in stretch.steps}
    for number, step in enumerate(shown, 1):
        value = step.expects
        if stretch.initial is None and isinstance(value, bytes) and value not in written:
            return [f"{number} was told {_text(value)}, which nobody had called to write before {number} returned."]
    reasons: list[str] = []
    for reason in _dead_ends(stretch, shown):
        if reason in reasons:
            continue
        if len(reasons) == DEAD_ENDS_MAX:
            return ["No order that puts each of these calls between its call and its return explains all the answers."]
        reasons.append(reason)
    return reasons


def _dead_ends(stretch: Stretch, shown: Sequence[Step]) -> Iterator[str]:
    """Each way of placing the shown calls one after the other, up to where it gets stuck."""
    stack: list[tuple[tuple[int, ...], bytes | Mark | None]] = [((), stretch.initial)]
    while stack:
        placed, cell = stack.pop()
        left = [place for place in range(len(shown)) if place not in placed]
        horizon = min((shown[place].returned for place in left if not shown[place].optional), default=math.inf)
        possible = [place for place in left if shown[place].called <= horizon]
        fitting = [place for place in possible if _fits(shown[place].expects, cell)]
        for place in reversed(fitting):
            step = shown[place]
            then = step.leaves
            if then is Mark.KEEP:
                then = step.expects if cell is Mark.UNKNOWN else cell
            stack.append(((*placed, place), then))
        if not fitting:
            told = [f"{place + 1} (told {_answer(shown[place].source, stretch.key)})" for place in possible]
            state = f"{_after(placed)} the key {'may hold anything' if cell is Mark.UNKNOWN else _holds(cell)}"
            yield f"{state}, but what must come next is {' or '.join(told)}."


def _after(placed: Sequence[int]) -> str:
    return "After " + ", ".join(str(place + 1) for place in placed) if placed else "At first"


def _fits(expects: bytes | Mark | None, cell: bytes | Mark | None) -> bool:
    if expects is Mark.ANY or cell is Mark.UNKNOWN:
        return True
    return cell is not None if expects is Mark.PRESENT else expects == cell
