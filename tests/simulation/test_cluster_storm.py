"""Simulated clusters: that a seed plays the same in any process, and that the simulation shows what goes wrong."""

import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from madkv.manager.placement import Slot
from madkv.operations import Found
from madkv.raft.configuration import Configuration, Member
from madkv.ranges import KeyRange
from madkv.settings import MANAGERS, Settings
from madkv.testing.sim.cluster_storm import ClusterStorm
from tests.processes import ROOT

PLAY = """
import sys
from madkv.testing.sim.__main__ import be_silent
from madkv.testing.sim.cluster_storm import ClusterStorm

be_silent()
storm = ClusterStorm(int(sys.argv[1]), keeps_trace=True)
storm.run(0)
print(*storm.world.trace, *storm.history, sorted(storm.world.counts.items()), sep="\\n")
"""


def play(seed: int, hash_seed: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PLAY, str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


class ClusterStormTest(SynchronousTestCase):
    def test_a_seed_plays_the_same_in_any_process(self) -> None:
        """Although sets of bytes are in another order in each."""
        first = play(9, 1)
        self.assertIn("leader", first)
        self.assertEqual(first, play(9, 2))
        self.assertNotEqual(first, play(12, 1))


class InvariantsTest(SynchronousTestCase):
    """What a simulation holds groups to."""

    def setUp(self) -> None:
        self.storm = ClusterStorm(9)
        self.assertGreater(len(self.storm.partitions), 1)

    def test_no_key_of_two_groups_in_one_epoch(self) -> None:
        one, other = self.storm.partitions[:2]
        one.owned[1] = (KeyRange(b"", b"k"), KeyRange(b"p", b"q"))
        one.owns(one)
        other.owned[2] = (KeyRange(b"", b"k"),)
        other.owns(other)
        other.owned[1] = (KeyRange(b"k", b"p"), KeyRange(b"q", None))
        other.owns(other)
        other.owned[1] = (KeyRange(b"k", b"pp"),)
        self.assertRaises(AssertionError, other.owns, other)

    def test_stores_of_a_group_begin_alike(self) -> None:
        group = self.storm.managers
        first, second = group.nodes[0], group.nodes[-1]
        one = Configuration(frozenset([first.member]))
        another = Configuration(frozenset([Member(0, bytes(16))]))
        group.begins(first, one)
        group.begins(second, one)
        self.assertEqual(self.storm.broken, [])
        group.begins(second, another)
        self.assertEqual(len(self.storm.broken), 1)

    def test_a_disk_that_was_replaced_never_counts_again(self) -> None:
        group = self.storm.managers
        node = group.nodes[0]
        node.start()
        machine = node.process._machine
        settings = Settings(1, (("10.2.0.0", 1),))
        machine.apply(1, 0, Found(settings, Configuration(frozenset([node.member])), ((b"", 0),)))
        for disk in (b"a", b"a", b"b"):
            machine.slots[0, 0] = Slot(disk * 16)
            group._check_cluster(machine)
        machine.slots[0, 0] = Slot(b"a" * 16)
        self.assertRaises(AssertionError, group._check_cluster, machine)
        machine.slots[0, 0] = Slot(b"b" * 16)
        machine.firsts[MANAGERS] = Configuration(frozenset([Member(0, b"c" * 16)]))
        self.assertRaises(AssertionError, group._check_cluster, machine)
