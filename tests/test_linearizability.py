"""The checker against a brute-force one on small histories, and by itself on large ones."""

import heapq
import math
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from madkv.testing import explain
from madkv.testing.history import Kind, Operation, Result, read_history, write_history
from madkv.testing.linearizability import Mark, Step, Verdict, check, check_key, scan_fault, steps_by_key

FOREVER = math.inf


# --- A checker too simple to be wrong --------------------------------------------------------------------------------
def brute_force(steps: Sequence[Step], cell: bytes | None) -> bool:
    """Try every order, and for steps of unknown outcome every choice of those that took effect."""
    if all(step.optional for step in steps):
        return True
    for place, step in enumerate(steps):
        others = [*steps[:place], *steps[place + 1 :]]
        if any(other.returned < step.called for other in others if not other.optional):
            continue
        others = [other for other in others if other.returned >= step.called]
        fits = (
            step.expects is Mark.ANY
            or (step.expects is Mark.PRESENT and cell is not None)
            or (not isinstance(step.expects, Mark) and step.expects == cell)
        )
        if fits:
            then = cell if step.leaves is Mark.KEEP else step.leaves
            assert not isinstance(then, Mark)
            if brute_force(others, then):
                return True
    return False


def random_steps(chance: random.Random, values: int) -> list[Step]:
    """A few overlapping steps with answers that are mostly near the truth."""
    steps = []
    cell: bytes | None = None
    now = 0
    for number in range(chance.randint(1, 7)):
        now += chance.choice((0, 1, 1, 2))
        called = now - chance.choice((0, 0, 1, 3, 6))
        returned: float = now + chance.choice((0, 0, 1, 3, 6))
        kind = chance.choice(("PUT", "PUT", "SWAP", "GET", "GET", "DELETE"))
        value = b"%d" % (chance.randrange(values) if values else number)
        seen = cell
        if chance.random() < 0.12:
            seen = chance.choice([None, *(b"%d" % other for other in range(values or number + 1))])
        expects: bytes | Mark | None = seen
        if kind in ("PUT", "DELETE") and seen is not None:
            expects = Mark.PRESENT
        leaves: bytes | Mark | None = Mark.KEEP if kind == "GET" else None if kind == "DELETE" else value
        optional = kind != "GET" and chance.random() < 0.2
        if optional:
            expects, returned = Mark.ANY, chance.choice((returned, FOREVER))
            leaves_cell = cell if isinstance(leaves, Mark) or chance.random() < 0.5 else leaves
        else:
            leaves_cell = cell if isinstance(leaves, Mark) else leaves
            if kind == "DELETE" and expects is None:
                leaves = Mark.KEEP
        steps.append(Step(called, returned, expects, leaves, None, optional))
        cell = leaves_cell
    chance.shuffle(steps)
    return steps


class AgainstBruteForce(SynchronousTestCase):
    """The same verdicts as trying everything."""

    def agrees(self, seed: int, values: int, initial: bytes | Mark | None, runs: int) -> None:
        chance = random.Random(seed)
        verdicts = []
        for _ in range(runs):
            steps = random_steps(chance, values)
            if initial is Mark.UNKNOWN:
                observed = {step.expects for step in steps if isinstance(step.expects, bytes)}
                expected = any(brute_force(steps, cell) for cell in (None, b"never", *observed))
            else:
                assert not isinstance(initial, Mark)
                expected = brute_force(steps, initial)
            self.assertEqual(check_key(steps, initial), Verdict.OK if expected else Verdict.VIOLATION, steps)
            verdicts.append(expected)
        self.assertGreater(sum(verdicts), runs // 5)
        self.assertGreater(runs - sum(verdicts), runs // 10)

    def test_unique_values(self) -> None:
        self.agrees(1, 0, None, 3000)

    def test_repeated_values(self) -> None:
        self.agrees(2, 2, None, 3000)

    def test_some_repeated_values(self) -> None:
        self.agrees(3, 5, None, 2000)

    def test_known_initial_value(self) -> None:
        self.agrees(4, 4, b"1", 2000)

    def test_unknown_initial_value(self) -> None:
        self.agrees(5, 4, Mark.UNKNOWN, 1000)

    def test_a_reading_step_says_what_it_read(self) -> None:
        for expects in (Mark.PRESENT, Mark.ANY):
            self.assertRaises(AssertionError, check_key, [Step(0, 1, None, b"0"), Step(2, 3, expects, Mark.KEEP)])

    def test_an_optional_write_is_over_at_its_return(self) -> None:
        steps = [
            Step(1, 2, None, b"0"),
            Step(3, 4, Mark.ANY, None, None, True),
            Step(5, 6, b"0", Mark.KEEP),
            Step(6, 6, None, Mark.KEEP),
        ]
        self.assertEqual(check_key(steps), Verdict.VIOLATION)
        self.assertEqual(
            check_key([step._replace(returned=9) if step.optional else step for step in steps]), Verdict.OK
        )


# --- Histories by hand -----------------------------------------------------------------------------------------------
def done(
    kind: Kind, key: bytes, value: bytes | None, result: Result, called: int, returned: int | None, client: int = 0
) -> Operation:
    return Operation(client, kind, key, value, called, returned, result)


PUT_ONE = done("PUT", b"k1", b"one", False, 0, 10)
PUT_TWO = done("PUT", b"k2", b"two", False, 20, 30)


class Histories(SynchronousTestCase):
    """Whole operations, and Scans among them."""

    def verdict(self, *history: Operation) -> Verdict:
        return check(history).verdict

    def test_each_answer_after_the_other(self) -> None:
        history = (
            PUT_ONE,
            done("SWAP", b"k1", b"two", b"one", 20, 30),
            done("GET", b"k1", None, b"two", 40, 50),
            done("DELETE", b"k1", None, True, 60, 70),
            done("DELETE", b"k1", None, False, 80, 90),
            done("GET", b"k1", None, None, 100, 110),
        )
        self.assertEqual(self.verdict(*history), Verdict.OK)

    def test_each_wrong_answer_alone(self) -> None:
        for wrong in (
            done("GET", b"k1", None, None, 20, 30),
            done("GET", b"k1", None, b"other", 20, 30),
            done("PUT", b"k1", b"two", False, 20, 30),
            done("SWAP", b"k1", b"two", None, 20, 30),
            done("SWAP", b"k1", b"two", b"other", 20, 30),
            done("DELETE", b"k1", None, False, 20, 30),
            done("SCAN", b"k1", b"k2", (), 20, 30),
            done("SCAN", b"k1", b"k2", ((b"k1", b"other"),), 20, 30),
            done("SCAN", b"k0", b"k2", ((b"k0", b"one"), (b"k1", b"one")), 20, 30),
        ):
            self.assertEqual(self.verdict(PUT_ONE, wrong), Verdict.VIOLATION, wrong)

    def test_calls_that_overlap_may_stand_in_either_order(self) -> None:
        put = done("PUT", b"k1", b"two", True, 20, 40)
        for value in (b"one", b"two"):
            self.assertEqual(self.verdict(PUT_ONE, put, done("GET", b"k1", None, value, 25, 35)), Verdict.OK)

    def test_reads_one_after_the_other_agree_on_the_order(self) -> None:
        put = done("PUT", b"k1", b"two", True, 20, 60)
        new, old = (done("GET", b"k1", None, value, 0, 0) for value in (b"two", b"one"))
        first = Operation(1, "GET", b"k1", None, 25, 30, new.result)
        self.assertEqual(self.verdict(PUT_ONE, put, first, done("GET", b"k1", None, b"two", 35, 40)), Verdict.OK)
        second = Operation(2, "GET", b"k1", None, 35, 40, old.result)
        self.assertEqual(self.verdict(PUT_ONE, put, first, second), Verdict.VIOLATION)

    def test_an_unknown_outcome_may_show_late_or_never_but_not_come_and_go(self) -> None:
        unknown = done("PUT", b"k1", b"two", None, 20, None)
        old = done("GET", b"k1", None, b"one", 1000, 1010)
        new = done("GET", b"k1", None, b"two", 2000, 2010)
        old_again = done("GET", b"k1", None, b"one", 3000, 3010)
        self.assertEqual(self.verdict(PUT_ONE, unknown, old), Verdict.OK)
        self.assertEqual(self.verdict(PUT_ONE, unknown, old, new), Verdict.OK)
        self.assertEqual(self.verdict(PUT_ONE, unknown, old, new, old_again), Verdict.VIOLATION)
        early = done("GET", b"k1", None, b"two", 5, 15)
        self.assertEqual(self.verdict(PUT_ONE, unknown, early), Verdict.VIOLATION)

    def test_unknown_scans_and_gets_say_nothing(self) -> None:
        unknown = (done("GET", b"k1", None, None, 20, None), done("SCAN", b"k1", b"k2", None, 20, None))
        self.assertEqual(self.verdict(PUT_ONE, *unknown), Verdict.OK)

    def test_each_pair_of_a_scan_has_a_point_of_its_own(self) -> None:
        scan = done("SCAN", b"k1", b"k2", ((b"k2", b"two"),), 5, 25)
        self.assertEqual(self.verdict(PUT_ONE, PUT_TWO, scan), Verdict.OK)
        late = done("SCAN", b"k1", b"k2", ((b"k2", b"two"),), 11, 25)
        self.assertEqual(self.verdict(PUT_ONE, PUT_TWO, late), Verdict.VIOLATION)

    def test_a_scan_outside_a_key_says_nothing_of_it(self) -> None:
        self.assertEqual(self.verdict(PUT_ONE, done("SCAN", b"k2", b"k9", (), 20, 30)), Verdict.OK)
        self.assertEqual(self.verdict(PUT_ONE, done("SCAN", b"k9", b"k0", (), 20, 30)), Verdict.OK)

    def test_the_rules_of_a_scan(self) -> None:
        one, two = (b"k1", b"one"), (b"k2", b"two")
        for start, end, pairs, fault in (
            (b"k1", b"k2", (one, two), None),
            (b"k1", b"k1", (one,), None),
            (b"k1", b"k2", (two, one), "answered k2 before k1"),
            (b"k1", b"k2", (one, one), "repeated k1"),
            (b"k1", b"k1", (one, two), "outside its bounds"),
            (b"k2", b"k2", (one, two), "outside its bounds"),
            (b"k2", b"k1", (one,), "its start after its end"),
        ):
            scan = done("SCAN", start, end, pairs, 40, 50)
            found = scan_fault(scan)
            self.assertEqual(found is None, fault is None, found)
            if fault:
                self.assertIn(fault, found or "")
                self.assertEqual(self.verdict(PUT_ONE, PUT_TWO, scan), Verdict.VIOLATION)

    def test_keys_of_others_in_a_scan(self) -> None:
        scan = done("SCAN", b"k1", b"k3", ((b"k1", b"one"), (b"k3", b"theirs")), 20, 30)
        self.assertEqual(check([PUT_ONE, scan]).verdict, Verdict.VIOLATION)
        self.assertEqual(check([PUT_ONE, scan], ours=lambda key: key != b"k3").verdict, Verdict.OK)
        theirs = steps_by_key([PUT_ONE, scan])[b"k3"]
        self.assertEqual(check_key(theirs, Mark.UNKNOWN), Verdict.OK)

    def test_unknown_initial_values(self) -> None:
        first, second = (done("GET", b"k1", None, value, 20, 30) for value in (b"old", b"older"))
        for history, verdict in (([first], Verdict.OK), ([first, second], Verdict.VIOLATION)):
            self.assertEqual(check_key(steps_by_key(history)[b"k1"], Mark.UNKNOWN), verdict)

    def test_every_broken_key_is_named(self) -> None:
        finding = check([done("GET", key, None, b"x", 0, 1) for key in (b"a", b"b")] + [PUT_ONE])
        self.assertEqual(set(finding.broken), {b"a", b"b"})

    def test_out_of_time_is_not_a_pass(self) -> None:
        self.assertEqual(check([PUT_ONE], out_of_time=lambda: True).verdict, Verdict.UNDECIDED)

    def test_a_violation_counts_even_when_time_is_up(self) -> None:
        looks = iter([False])
        history = [done("GET", b"a", None, b"x", 0, 1), PUT_ONE, PUT_TWO]
        self.assertEqual(check(history, out_of_time=lambda: next(looks, True)).verdict, Verdict.VIOLATION)

    def test_the_file_keeps_everything(self) -> None:
        every_byte = bytes(range(256))
        history = [
            done("PUT", every_byte, every_byte, True, 1, 2, 7),
            done("SWAP", b"k", b"v", None, 3, 4),
            done("GET", b"k", None, b"v", 5, 6),
            done("DELETE", b"k", None, None, 7, None),
            done("SCAN", b"a", b"z", ((b"k", every_byte),), 8, 9),
            done("SCAN", b"z", b"a", (), 8, 9),
        ]
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name) / "below" / "history.jsonl"
        write_history(path, {"seed": 5}, history)
        about, again = read_history(path)
        self.assertEqual(again, history)
        self.assertEqual(about["seed"], 5)
        path.write_text("{}\n")
        self.assertRaises(ValueError, read_history, path)
        path.write_text("hello\n")
        self.assertRaises(ValueError, read_history, path)


# --- Large histories -------------------------------------------------------------------------------------------------
def honest_history(clients: int, calls: int, keys: int, seed: int, unknown: float = 0.0) -> list[Operation]:
    """What a right store might have answered to clients that call all the time; times in microseconds."""
    chance = random.Random(seed)
    free = [(chance.random() * 10, client) for client in range(clients)]
    heapq.heapify(free)
    times = []
    for _ in range(calls):
        called, client = heapq.heappop(free)
        takes_effect = called + chance.expovariate(0.2)
        returned = takes_effect + chance.expovariate(0.2)
        times.append((takes_effect, called, returned, client))
        heapq.heappush(free, (returned + 0.01, client))
    names = [b"k%04d" % number for number in range(keys)]
    store: dict[bytes, bytes] = {}
    history = []
    for number, (_, called, returned, client) in enumerate(sorted(times)):
        kind = chance.choices(("PUT", "SWAP", "GET", "DELETE", "SCAN"), (30, 15, 30, 12, 13))[0]
        place = chance.randrange(keys)
        key = names[place]
        value: bytes | None = b"v%d" % number if kind in ("PUT", "SWAP") else None
        before = store.get(key)
        is_unknown = chance.random() < unknown
        result: Result = before is not None if kind in ("PUT", "DELETE") else before
        if kind == "SCAN":
            value = names[min(keys - 1, place + 4)]
            result = tuple((each, store[each]) for each in names[place : place + 5] if each in store)
        elif not is_unknown or chance.random() < 0.5:
            if kind == "DELETE":
                store.pop(key, None)
            elif value:
                store[key] = value
        ends = None if is_unknown else int(returned * 1000)
        answer = None if is_unknown else result
        history.append(Operation(client, kind, key, value, int(called * 1000), ends, answer))  # type: ignore[arg-type]
    return history


class LargeHistories(SynchronousTestCase):
    """100 clients and 100,000 calls."""

    seconds_max = 20.0

    def judged(self, history: list[Operation]) -> Verdict:
        deadline = time.monotonic() + self.seconds_max
        return check(history, out_of_time=lambda: time.monotonic() > deadline).verdict

    def test_honest(self) -> None:
        history = honest_history(100, 100_000, 50, 1)
        self.assertEqual(self.judged(history), Verdict.OK)
        # One answer from the past in the midst of it all.
        place, old = next(
            (place, operation.result)
            for place, operation in enumerate(history)
            if operation.kind == "GET" and operation.result
        )
        key = history[place].key
        last = max(number for number, each in enumerate(history) if each.kind == "GET" and each.key == key)
        was = history[last]
        history[last] = Operation(was.client, "GET", key, None, was.called_ns, was.returned_ns, old)
        self.assertEqual(self.judged(history), Verdict.VIOLATION)

    def test_all_on_one_key(self) -> None:
        self.assertEqual(self.judged(honest_history(100, 20_000, 1, 2)), Verdict.OK)

    def test_unknown_outcomes(self) -> None:
        self.assertEqual(self.judged(honest_history(100, 20_000, 20, 3, unknown=0.01)), Verdict.OK)


# --- The shortest stretch --------------------------------------------------------------------------------------------
class Weakening(SynchronousTestCase):
    """Cutting down never makes a violation of what was none, and shows what is one."""

    def test_moves_keep_what_is_linearizable_so(self) -> None:
        chance = random.Random(7)
        kept = 0
        for _ in range(1500):
            steps = random_steps(chance, chance.choice((0, 3)))
            if check_key(steps) is not Verdict.OK:
                continue
            kept += 1
            for move in (
                explain._blurred,
                explain._without_reads,
                explain._without_answers,
                explain._without_idle_writes,
            ):
                chosen = {step for step in steps if chance.random() < 0.5}
                self.assertEqual(check_key(move(steps, chosen.__contains__)), Verdict.OK, (move, steps, chosen))
            moment = chance.choice(steps).called + chance.choice((0, 1))
            self.assertEqual(check_key(explain._until(steps, moment)), Verdict.OK, (steps, moment))
            self.assertEqual(check_key(explain._since(steps, moment), Mark.UNKNOWN), Verdict.OK, (steps, moment))
        self.assertGreater(kept, 500)

    def test_what_is_left_is_a_violation(self) -> None:
        chance = random.Random(8)
        shown = 0
        for _ in range(2500):
            steps = random_steps(chance, chance.choice((0, 3)))
            if check_key(steps) is Verdict.OK:
                continue
            shown += 1
            stretch = explain.shortest(b"k", steps, lambda: False)
            self.assertEqual(check_key(stretch.steps, stretch.initial), Verdict.VIOLATION)
            self.assertLessEqual(len(stretch.steps), len(steps))
        self.assertGreater(shown, 300)

    def words(self, *history: Operation) -> str:
        finding = check(history)
        ((key, steps),) = finding.broken.items()
        return "\n".join(explain.in_words(explain.shortest(key, steps, lambda: False), 0))

    def test_a_stale_read_in_words(self) -> None:
        others = [done("GET", b"k1", None, b"one", time, time + 1, 5) for time in range(11, 19)]
        text = self.words(
            done("PUT", b"k1", b"zero", False, -20, -10),
            done("PUT", b"k1", b"one", True, 0, 10),
            *others,
            done("PUT", b"k1", b"two", True, 2_000_000, 3_000_000, 1),
            done("GET", b"k1", None, b"one", 4_000_000, 5_000_000, 2),
            done("PUT", b"k1", b"three", True, 6_000_000, 7_000_000, 1),
        )
        self.assertIn("1. Client 1 called PUT k1 two at 2.000 and at 3.000 was told found.", text)
        self.assertIn("2. Client 2 called GET k1 at 4.000 and at 5.000 was told one.", text)
        self.assertIn("After 1 the key holds two, but what must come next is 2 (told one).", text)
        self.assertNotIn("3.", text.replace("3.000", ""))

    def test_a_value_from_nowhere_in_words(self) -> None:
        text = self.words(PUT_ONE, done("GET", b"k1", None, b"other", 20, 30))
        self.assertIn("1 was told other, which nobody had called to write before 1 returned.", text)

    def test_a_scan_in_words(self) -> None:
        text = self.words(PUT_ONE, PUT_TWO, done("SCAN", b"k1", b"k2", ((b"k2", b"two"),), 40, 50))
        self.assertIn("2. Client 0 called SCAN k1 k2 at 0.000 and at 0.000 was told that k1 holds nothing.", text)

    def test_long_values_are_cut(self) -> None:
        text = self.words(done("GET", b"k1", None, b"x" * 100, 20, 30))
        self.assertIn("x" * 32 + "… (100 bytes)", text)
        self.assertNotIn("x" * 33, text)

    def test_when_time_is_up_what_is_reached_is_shown(self) -> None:
        steps = [Step(0, 1, None, b"one"), Step(2, 3, b"one", Mark.KEEP), Step(4, 5, None, Mark.KEEP)]
        self.assertEqual(explain.shortest(b"k", steps, lambda: True).steps, steps)
