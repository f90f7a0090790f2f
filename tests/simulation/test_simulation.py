"""Simulations from fixed seeds, and that a seed always plays the same."""

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from madkv.testing.sim.storm import Storm
from tests.processes import ROOT


class SimulationTest(SynchronousTestCase):
    def test_some_seeds(self) -> None:
        """The long runs are made by `./justw sim::run`."""
        done = subprocess.run(
            [sys.executable, "-m", "madkv.testing.sim", "run", "30", "--first", "7000"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("30 seeds from 7000: no violation", done.stdout)

    def test_a_seed_plays_the_same_again(self) -> None:
        first, second = (Storm(5, keeps_trace=True) for _ in range(2))
        self.assertEqual(first.run(5), second.run(5))
        self.assertEqual(first.world.trace, second.world.trace)
        self.assertEqual(first.history, second.history)
        other = Storm(6, keeps_trace=True)
        other.run(6)
        self.assertNotEqual(first.world.trace, other.world.trace)
