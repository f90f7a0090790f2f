"""The known mistakes: that all are there and fit the code. What catches them is shown by `./justw sim::mutations`."""

import re
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.mutate import LISTS, REQUIRED, entries
from tests.mutation import ROOT, CheckBroken, Mistake, MistakeList, Step, Verdict, mutated, search, tests

EACH = (
    "an entry of an old term committed by counting",
    "the scan for what to commit stopped at an entry of an old term",
    "the vote not persisted",
    "the term not persisted",
    "the answer to a Vote sent before it is persisted",
    "a follower that acknowledges before its fsync",
    "a leader that counts itself before its fsync",
    "commit or match index going back on a reordered reply",
    "a follower that commits beyond the entries just confirmed",
    "truncation without a conflict",
    "no no-op before ReadIndex",
    "the number of a ReadIndex round used again",
    "waiting reads kept over a change of the term",
    "a read released before it is applied",
    "a snapshot that drops a suffix of the log that it should keep",
    "a snapshot not atomic with log and meta",
    "an applied index without the data",
    "sessions missing from a snapshot",
    "sessions checked when proposed instead of when applied",
    "a retry that is given a new sequence number",
    "a write of an unknown session executed",
    "a number below the floor executed",
    "ownership checked only when proposed",
    "a waiter answered by index without term",
    "the end of a persist taken by index without term",
    "a read that joins a round already sent",
    "the log cut past the applied index on disk",
    "a snapshot's index taken from memory",
    "the overlay that is being committed skipped in reads",
    "an amnesiac member that votes",
    "a PreVote of a lower term ignored silently",
    "a leader that is cut off and never steps down",
    "LMDB opened with sync=False",
    "LMDB opened with metasync=False",
)
"""What nobody may take off the list."""
BASES = {"core.py": (ROOT / "madkv/raft/state.py",)}
"""Where else a file's classes have their attributes from."""
MADE = r"def (\w+)|self\.(\w+)(?:: [^=\n]+)? = |hasattr\(self, \"(\w+)\"\)"
"""Attributes that a mistake brings along."""


class KnownMistakesTest(SynchronousTestCase):
    def test_none_of_the_required_ones_got_lost(self) -> None:
        self.assertEqual(tuple(REQUIRED), EACH)
        known = entries()
        for title, names in REQUIRED.items():
            self.assertTrue(names, title)
            for name in names:
                self.assertIn(name, known, title)

    def test_names_are_unique(self) -> None:
        self.assertEqual(len(entries()), sum(len(each.mistakes) for each in LISTS))

    def test_every_mistake_fits_the_code(self) -> None:
        """Those that do not would pass unnoticed until somebody runs all of them."""
        for each in LISTS:
            for name, file, changes in each.mistakes:
                self.assertIsNotNone(mutated((ROOT / each.package / file).read_text(), changes), name)

    def test_they_use_no_name_that_is_gone(self) -> None:
        """Such a mistake would be caught by whatever runs into the name, and show nothing of the checks."""
        for each in LISTS:
            for name, file, changes in each.mistakes:
                path = ROOT / each.package / file
                text = mutated(path.read_text(), changes)
                assert text is not None
                sources = [source.read_text() for source in (path, *BASES.get(file, ()))]
                known = {word for source in sources for word in re.findall(r"\w+", source)}
                known |= {made for kinds in re.findall(MADE, text) for made in kinds}
                self.assertEqual(set(re.findall(r"\bself\.(\w+)", text)) - known, set(), name)


class VerdictTest(SynchronousTestCase):
    """Checks that say nothing of the mistake are told apart from those that catch it."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.copy = Path(directory.name)
        (self.copy / "adder.py").write_text("def add(a, b):\n    return a + b\n")
        (self.copy / "tests").mkdir()
        self.write_test("test_adder", "from adder import add\n\n\ndef test_it_adds():\n    assert add(2, 3) == 5\n")

    def write_test(self, name: str, code: str) -> None:
        (self.copy / "tests" / f"{name}.py").write_text(code)

    def judge(self, old: str, new: str, *steps: Step, seeds: Step | None = None) -> Verdict:
        mistake: Mistake = ("a mistake", "adder.py", [(old, new)])
        verdict = MistakeList("adder", ".", [mistake], steps, seeds).judge(self.copy, mistake)
        self.assertIn("return a + b", (self.copy / "adder.py").read_text(), "it is taken out again")
        return verdict

    def test_a_test_that_fails_catches_it(self) -> None:
        verdict = self.judge("a + b", "a - b", tests("tests/test_adder.py"))
        self.assertEqual(verdict.caught_by, ("adder.it_adds",))

    def test_one_that_no_test_sees_is_not_caught(self) -> None:
        verdict = self.judge("a + b", "b + a", tests("tests/test_adder.py"))
        self.assertEqual((verdict.caught_by, str(verdict)), ((), "NOT CAUGHT"))

    def test_one_that_does_not_fit_is_not_caught(self) -> None:
        verdict = self.judge("a * b", "a - b", tests("tests/test_adder.py"))
        self.assertEqual((verdict.caught_by, str(verdict)), ((), "DOES NOT FIT THE CODE ANY MORE"))

    def test_a_check_that_cannot_run_catches_nothing(self) -> None:
        for check in (tests("tests/test_gone.py"), search("no_such_module", "seed")):
            with self.assertRaises(CheckBroken):
                check(self.copy)
            verdict = self.judge("a + b", "a - b", check)
            self.assertEqual(verdict.caught_by, ())
            self.assertIn("THE CHECK BROKE DOWN", str(verdict))

    def test_a_search_names_the_seed(self) -> None:
        (self.copy / "seeds.py").write_text(
            "from adder import add\nif add(2, 3) != 5:\n    raise SystemExit('seed 7 FAILED: not five')\n"
        )
        seeds = search("seeds", "seed")
        self.assertEqual(seeds(self.copy), "")
        self.assertEqual(self.judge("a + b", "a - b", seeds=seeds).caught_by, ("seed 7 (not five)",))
