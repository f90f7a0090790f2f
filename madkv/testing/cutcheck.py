"""Whether what is said to be a group's state at one point is that: the state of a moment that the history allows.

Theory of operation. A cut is a reading of every key at one and the same moment. So each key gets one more step, a read
that begins and ends at a moment, and the checker says whether some order explains the answers together with it. That
cannot change between two neighbouring calls and returns of the same key, so a moment is tried in each stretch between
them: the moments that a key allows are a few stretches. A cut is one if a moment is left that all keys allow.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from madkv.testing.history import Operation
from madkv.testing.linearizability import Mark, Step, Verdict, check_key, steps_by_key

Stretch = tuple[float, float]
"""Moments from and to, in nanoseconds of the history's clock."""


def moments(
    history: Sequence[Operation], cut: Mapping[bytes, bytes], keys: Iterable[bytes], began_ns: int, ended_ns: int
) -> list[Stretch]:
    """The moments from `began_ns` to `ended_ns` at which these keys may all have held what the cut says, or nothing.

    None, if it is not the state of one moment. No key held a value at first.
    """
    steps_of = steps_by_key(history, lambda key: True)
    left: list[Stretch] = [(began_ns, ended_ns)]
    for key in sorted(keys):
        left = _both(left, moments_of_key(steps_of.get(key, []), cut.get(key), left))
        if not left:
            break
    return left


def moments_of_key(steps: Sequence[Step], value: bytes | None, among: Sequence[Stretch]) -> list[Stretch]:
    """Of these moments, those at which a key may have held this value (None: no value). Not decided is not allowed."""
    allowed: list[Stretch] = []
    for began, ended in among:
        inside = {at for step in steps for at in (step.called, step.returned) if began < at < ended}
        for start, end in pairwise([began, *sorted(inside), ended]):
            at = (start + end) / 2
            if check_key([*steps, Step(at, at, value, Mark.KEEP)], None) is Verdict.OK:
                if allowed and allowed[-1][1] == start:
                    allowed[-1] = allowed[-1][0], end
                else:
                    allowed.append((start, end))
    return allowed


def _both(one: Sequence[Stretch], other: Sequence[Stretch]) -> list[Stretch]:
    """The moments that are in both; a mere border is none."""
    common = [(max(a, c), min(b, d)) for a, b in one for c, d in other]
    return sorted(stretch for stretch in common if stretch[0] < stretch[1])
