"""The judge of cuts: what is the state of one moment, and what is not."""

from madkv.testing.cutcheck import moments
from madkv.testing.history import Operation

OF = dict[bytes, bytes]


def put(key: bytes, value: bytes, called: int, returned: int | None, found: bool = True) -> Operation:
    return Operation(1, "PUT", key, value, called, returned, found)


HISTORY = [
    put(b"a", b"1", 10, 20, found=False),
    put(b"b", b"1", 30, 40, found=False),
    put(b"a", b"2", 50, 60),
    put(b"b", b"2", 70, 80),
]


def allowed(cut: OF, began: int = 0, ended: int = 100, history: list[Operation] = HISTORY) -> list[tuple[float, float]]:
    return moments(history, cut, (b"a", b"b"), began, ended)


def test_states_of_one_moment() -> None:
    """A write takes effect at some moment between its call and its return."""
    assert allowed({}) == [(0, 20)]
    assert allowed({b"a": b"1"}) == [(10, 40)]
    assert allowed({b"a": b"1", b"b": b"1"}) == [(30, 60)]
    assert allowed({b"a": b"2", b"b": b"1"}) == [(50, 80)]
    assert allowed({b"a": b"2", b"b": b"2"}) == [(70, 100)]


def test_states_of_no_moment() -> None:
    """Each key by itself held that once; not both at the same moment."""
    for cut in ({b"b": b"1"}, {b"a": b"2"}, {b"a": b"1", b"b": b"2"}, {b"b": b"2"}):
        assert allowed(cut) == [], cut
    assert allowed({b"a": b"3"}) == [], "nobody wrote it"


def test_states_of_moments_outside() -> None:
    assert allowed({b"a": b"1"}, 45, 100) == [], "too old"
    assert allowed({b"a": b"2", b"b": b"2"}, 0, 65) == [], "from the future"
    assert allowed({b"a": b"1", b"b": b"1"}, 45, 55) == [(45, 55)]


def test_a_write_of_unknown_outcome() -> None:
    history = [*HISTORY[:1], put(b"a", b"2", 50, None)]
    assert allowed({b"a": b"1"}, history=history) == [(10, 100)]
    assert allowed({b"a": b"2"}, history=history) == [(50, 100)]


def test_a_state_that_was_twice() -> None:
    history = [
        Operation(1, "SWAP", b"a", b"1", 10, 20, None),
        Operation(1, "DELETE", b"a", None, 30, 40, True),
    ]
    assert allowed({}, history=history) == [(0, 20), (30, 100)]
