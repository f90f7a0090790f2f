"""The testcases of project 1, each a function over a scene and a prefix for its keys that nobody has used before.

Testcases 1 and 2 take a single client through every operation and every kind of answer; 3 has several clients at work
on keys of their own; 4 and 5 have several on the same keys, each seeing what the others had acknowledged.
"""

import random
from collections.abc import Callable

import attrs

from madkv.limits import VALUE_BYTES_MAX
from madkv.testing.history import Result
from madkv.testing.lines import Call
from madkv.testing.scene import ANYTHING, NAMES, Scene

EVERY_BYTE = bytes(range(0x21, 0x80))
"""Every byte that a word of the line interface may hold in ASCII: `!` to `~` and DEL."""
ROUNDS = 20
SWAPS_PER_CLIENT = 25


def put(key: bytes, value: bytes) -> Call:
    """Set a key."""
    return Call("PUT", key, value)


def swap(key: bytes, value: bytes) -> Call:
    """Set a key, and ask for its old value."""
    return Call("SWAP", key, value)


def get(key: bytes) -> Call:
    """Ask for a key."""
    return Call("GET", key)


def delete(key: bytes) -> Call:
    """Remove a key."""
    return Call("DELETE", key)


def scan(start: bytes, end: bytes) -> Call:
    """Ask for all keys from one to another, both included."""
    return Call("SCAN", start, end)


def every_operation(scene: Scene, prefix: bytes) -> None:
    """One client, every operation, each with a key that exists and one that does not"""
    one, two = prefix + b"one", prefix + b"two"
    scene.tell("The keys are new: nothing is there to get, to delete or to scan.")
    scene.ask("A", get(one), None)
    scene.ask("A", delete(one), False)
    scene.ask("A", scan(one, two), ())
    scene.tell("A Put makes a key, a second one overwrites it and says so; a Get sees the latest value.")
    scene.ask("A", put(one, b"first"), False)
    scene.ask("A", get(one), b"first")
    scene.ask("A", put(one, b"second"), True)
    scene.ask("A", get(one), b"second")
    scene.tell("A Swap gives the old value back: null for a new key.")
    scene.ask("A", swap(one, b"third"), b"second")
    scene.ask("A", swap(two, b"other"), None)
    scene.ask("A", get(two), b"other")
    scene.tell("A Scan gives both pairs, in the order of their keys.")
    scene.ask("A", scan(one, two), ((one, b"third"), (two, b"other")))
    scene.tell("A Delete takes one of them away, once.")
    scene.ask("A", delete(one), True)
    scene.ask("A", delete(one), False)
    scene.ask("A", get(one), None)
    scene.ask("A", scan(one, two), ((two, b"other"),))
    scene.tell("A deleted key can come back; it is as new as the first time.")
    scene.ask("A", put(one, b"again"), False)
    scene.ask("A", get(one), b"again")
    scene.ask("A", delete(one), True)
    scene.ask("A", delete(two), True)
    scene.ask("A", scan(one, two), ())


def ranges_and_sizes(scene: Scene, prefix: bytes) -> None:
    """One client, Scans and their bounds, overwrites, a chain of Swaps, large values, every printable byte"""
    keys = [prefix + end for end in (b"0", b"09", b"1", b"9", b"A", b"Z", b"Za", b"a", b"b", b"z")]
    scene.tell("Ten keys, put in no particular order.")
    for key in random.Random(1).sample(keys, len(keys)):
        scene.ask("A", put(key, b"at" + key[len(prefix) :]), False)
    pairs = tuple((key, b"at" + key[len(prefix) :]) for key in keys)
    scene.tell("Scans answer in byte order (digits, capitals, small letters), and both ends count.")
    scene.ask("A", scan(keys[0], keys[-1]), pairs)
    scene.ask("A", scan(keys[2], keys[5]), pairs[2:6])
    scene.ask("A", scan(keys[3], keys[3]), pairs[3:4])
    scene.tell("Ends need not be keys themselves; a range may hold nothing, and one that ends before it starts does.")
    scene.ask("A", scan(prefix + b"2", prefix + b"M"), pairs[3:5])
    scene.ask("A", scan(prefix + b"2", prefix + b"8"), ())
    scene.ask("A", scan(keys[5], keys[2]), ())
    scene.tell("What is overwritten or deleted shows in the next Scan.")
    scene.ask("A", put(keys[4], b"new"), True)
    scene.ask("A", delete(keys[5]), True)
    scene.ask("A", scan(keys[3], keys[6]), (pairs[3], (keys[4], b"new"), pairs[6]))
    scene.tell("In a chain of Swaps each gives back what the one before left.")
    before: bytes | None = None
    for number in range(8):
        scene.ask("A", swap(prefix + b"chain", b"link%d" % number), before)
        before = b"link%d" % number
    scene.ask("A", get(prefix + b"chain"), before)
    scene.tell(f"Values of many sizes, up to the limit of {VALUE_BYTES_MAX:,} bytes, come back as they were.")
    before = None
    for size in (1, 110, 1_080, 65_535, 65_536, VALUE_BYTES_MAX):
        value = (EVERY_BYTE * (size // len(EVERY_BYTE) + 1))[:size]
        scene.ask("A", swap(prefix + b"size", value), before)
        scene.ask("A", get(prefix + b"size"), value)
        before = value
    scene.tell("Keys and values may hold every byte from ! to DEL.")
    odd = prefix + EVERY_BYTE
    scene.ask("A", put(odd, EVERY_BYTE[::-1]), False)
    scene.ask("A", get(odd), EVERY_BYTE[::-1])
    scene.ask("A", scan(odd, odd), ((odd, EVERY_BYTE[::-1]),))
    scene.ask("A", delete(odd), True)


def separate_keys(scene: Scene, prefix: bytes) -> None:
    """Three clients at the same time, each on keys of its own"""
    names = NAMES[:3]
    key_of = {name: prefix + name.encode() for name in names}
    scene.tell("Each client puts its key, all three at the same time, and reads it back.")
    scene.ask_together({name: (put(key_of[name], b"from" + name.encode()), False) for name in names})
    scene.ask_together({name: (get(key_of[name]), b"from" + name.encode()) for name in names})
    scene.tell(f"In {ROUNDS} rounds each overwrites, swaps and reads its key; the others' work never shows.")
    for number in range(ROUNDS):
        written, swapped = b"put%d" % number, b"swapped%d" % number
        told = number in (0, ROUNDS - 1)
        scene.ask_together({name: (put(key_of[name], written + name.encode()), True) for name in names}, told)
        scene.ask_together(
            {name: (swap(key_of[name], swapped + name.encode()), written + name.encode()) for name in names}, told
        )
        scene.ask_together({name: (get(key_of[name]), swapped + name.encode()) for name in names}, told)
    last = b"swapped%d" % (ROUNDS - 1)
    scene.tell("Each scans its own key.")
    scene.ask_together(
        {name: (scan(key_of[name], key_of[name]), ((key_of[name], last + name.encode()),)) for name in names}
    )
    scene.tell("One deletes its key: the keys of the others stay.")
    scene.ask("A", delete(key_of["A"]), True)
    scene.ask_together({name: (get(key_of[name]), None if name == "A" else last + name.encode()) for name in names})


def hand_over(scene: Scene, prefix: bytes) -> None:
    """Three clients in turns on the same keys: what one was told is done, the next one sees"""
    key, other = prefix + b"ball", prefix + b"basket"
    scene.tell("A puts a value; as soon as A has its answer, B and C see the value.")
    scene.ask("A", put(key, b"fromA"), False)
    scene.ask("B", get(key), b"fromA")
    scene.ask("C", get(key), b"fromA")
    scene.tell("B swaps and gets what A left; C puts over it and is told that the key was there; A sees C's value.")
    scene.ask("B", swap(key, b"fromB"), b"fromA")
    scene.ask("C", get(key), b"fromB")
    scene.ask("C", put(key, b"fromC"), True)
    scene.ask("A", get(key), b"fromC")
    scene.tell("A second key by C: A's Scan shows both.")
    scene.ask("C", put(other, b"also"), False)
    scene.ask("A", scan(key, other), ((key, b"fromC"), (other, b"also")))
    scene.tell("A deletes the first; B cannot delete it again, C does not see it, B may make it anew.")
    scene.ask("A", delete(key), True)
    scene.ask("B", delete(key), False)
    scene.ask("C", scan(key, other), ((other, b"also"),))
    scene.ask("B", put(key, b"anew"), False)
    scene.ask("C", swap(key, b"last"), b"anew")
    scene.tell(f"The same {ROUNDS} times round, without telling each step: write, then read by the next client.")
    before: Result = b"last"
    for number in range(ROUNDS * 3):
        writer, reader = NAMES[number % 3], NAMES[(number + 1) % 3]
        value = b"turn%d" % number
        scene.ask_together({writer: (swap(key, value), before)}, told=False)
        scene.ask_together({reader: (get(key), value)}, told=False)
        before = value
    scene.ask_together({name: (get(key), before) for name in NAMES[:3]})


def swap_chain(scene: Scene, prefix: bytes) -> None:
    """Four clients swap the same key at the same time: every value is handed on exactly once"""
    names = NAMES[:4]
    key = prefix + b"baton"
    scene.tell("A puts the first value.")
    scene.ask("A", put(key, b"start"), False)
    scene.tell(f"All four swap at the same time, {SWAPS_PER_CLIENT} times each, every time with a value of their own.")
    next_of: dict[Result, bytes] = {}
    times_given: dict[Result, int] = {}
    for number in range(SWAPS_PER_CLIENT):
        values = {name: b"%b%d" % (name.encode(), number) for name in names}
        asked = {name: swap(key, value) for name, value in values.items()}
        olds = scene.ask_together({name: (call, ANYTHING) for name, call in asked.items()}, told=number < 2)
        for name, old in olds.items():
            times_given[old] = times_given.get(old, 0) + 1
            next_of[old] = values[name]
    scene.tell("All four read the value that is there at the end.")
    ends = scene.ask_together({name: (get(key), ANYTHING) for name in names})
    scene.expect(len(set(ends.values())) == 1, "all see the same value at the end")
    scene.expect(set(times_given.values()) == {1}, "no value was given out twice")
    chain: list[Result] = [b"start"]
    while chain[-1] in next_of and len(chain) <= len(next_of):
        chain.append(next_of[chain[-1]])
    total = SWAPS_PER_CLIENT * len(names)
    scene.expect(len(chain) == total + 1, f"the values form one chain from the first through all {total} swapped in")
    scene.expect(chain[-1] == ends["A"], "the chain ends in the value that is there")
    for name in names:
        mine = [value for value in chain if isinstance(value, bytes) and value.startswith(name.encode())]
        in_order = mine == [b"%b%d" % (name.encode(), number) for number in range(SWAPS_PER_CLIENT)]
        scene.expect(in_order, f"the values of {name} stand in the chain in the order in which {name} swapped them in")


@attrs.frozen
class Testcase:
    """What to run, with how many clients."""

    __test__ = False

    act: Callable[[Scene, bytes], None]
    clients: int

    @property
    def title(self) -> str:
        """What it shows, in a line."""
        assert self.act.__doc__
        return self.act.__doc__


PROJECT_1 = {
    1: Testcase(every_operation, 1),
    2: Testcase(ranges_and_sizes, 1),
    3: Testcase(separate_keys, 3),
    4: Testcase(hand_over, 3),
    5: Testcase(swap_chain, 4),
}
