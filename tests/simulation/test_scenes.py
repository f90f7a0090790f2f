"""Scenes in the simulated world that a storm comes to seldom, or does not wait for the end of."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import MadKVError
from madkv.operations import Write, WriteKind
from madkv.raft.bounds import Bounds
from madkv.raft.core import Role
from madkv.server.parts import Tuning
from madkv.server.replica import Replica
from madkv.testing.sim.group import Group, Machine
from madkv.testing.sim.world import Network, World

ELECTED_SECONDS_MAX = 10.0
LONG = 1e6


class Scene:
    """Three machines that have elected a leader, and a load of writes."""

    def __init__(self, **tuning: Any) -> None:
        self.world = World(1, False)
        self.network = Network(self.world)
        self.group = Group(self.world, self.network, 3, Tuning(**tuning))
        self.answers: Counter[str] = Counter()
        self._written = 0
        for machine in self.group.machines:
            machine.start()
        self.until(lambda: self.leader is not None and self.core(self.leader).commit_index > 0, ELECTED_SECONDS_MAX)
        assert self.leader is not None
        self.first = self.leader
        self.follower = next(each for each in self.group.machines if each is not self.first)

    @property
    def leader(self) -> Machine | None:
        return self.group.leader

    def replica(self, machine: Machine) -> Replica:
        assert machine.replica is not None
        return machine.replica

    def core(self, machine: Machine) -> Any:
        return self.replica(machine).core

    def until(self, is_so: Callable[[], bool], seconds_max: float) -> None:
        ends = self.world.now + seconds_max
        while not is_so():
            assert self.world.now < ends, f"it does not come about in {seconds_max} s"
            assert self.world.step()
            self.group.check()

    def wait(self, seconds: float) -> None:
        ends = self.world.now + seconds
        self.until(lambda: self.world.now >= ends, 2 * seconds)

    def cut_off(self, machine: Machine) -> None:
        for other in range(3):
            self.network.cut |= {(machine.number, other), (other, machine.number)}

    def write(self, keys: int, size_bytes: int) -> None:
        if (leader := self.leader) is None:
            self.answers["nobody leads"] += 1
            return
        self._written += 1
        put = Write(WriteKind.PUT, b"key%05d" % (self._written % keys), b"x" * size_bytes)
        self.replica(leader).propose(put, self._answered)

    def load(self, per_second: float, keys: int, size_bytes: int) -> None:
        """Write for ever, some at a time."""
        for _ in range(4):
            self.write(keys, size_bytes)
        self.world.later(4 / per_second, self.load, per_second, keys, size_bytes)

    def _answered(self, outcome: Any) -> None:
        self.answers[type(outcome).__name__ if isinstance(outcome, MadKVError) else "done"] += 1


class SnapshotTest(SynchronousTestCase):
    def test_a_stream_that_is_begun_again_is_of_use(self) -> None:
        """Its receiver has staged some pieces and is not heard for longer than a stream waits; nobody writes, so the
        next stream is of the same snapshot."""
        scene = Scene(flush_entries=5, log_entries_kept=0, piece_bytes=100)
        scene.cut_off(scene.follower)
        for _ in range(100):
            scene.write(100, 20)
            scene.wait(0.02)
        scene.wait(2)
        scene.network.cut.clear()
        follower = scene.replica(scene.follower)
        scene.until(lambda: follower._storage._staged_bytes > 600, 60)  # type: ignore[attr-defined]
        scene.cut_off(scene.follower)
        scene.wait(7)
        scene.network.cut.clear()
        scene.until(
            lambda: follower.state_machine.last_applied == scene.replica(scene.first).state_machine.last_applied, 30
        )
        self.assertEqual(scene.group.leader, scene.first)

    def test_who_is_far_behind_catches_up_while_calls_keep_coming(self) -> None:
        """After the snapshot it needs what was written meanwhile, which is more than the log keeps by itself."""
        scene = Scene(
            flush_entries=40,
            log_entries_kept=200,
            piece_bytes=4000,
            bounds=Bounds(append_bytes=10_000, in_flight_bytes=40_000, apply_bytes=10_000),
        )
        scene.cut_off(scene.follower)
        scene.load(600, 800, 380)
        scene.wait(3)
        before = scene.world.counts["snapshots sent"]
        scene.network.cut.clear()
        progress = scene.core(scene.first).progress[scene.follower.member]
        scene.until(lambda: progress.match_index + 200 > scene.core(scene.first).commit_index, 30)
        scene.wait(5)
        self.assertLess(scene.core(scene.first).commit_index - progress.match_index, 200)
        self.assertEqual(scene.world.counts["snapshots sent"] - before, 1)

    def test_a_receiver_that_is_too_slow_holds_no_more_than_its_share(self) -> None:
        """Each piece comes through before its stream is given up, and the whole would take for ever."""
        held_max = 100_000
        scene = Scene(flush_entries=5, log_entries_kept=50, log_bytes_held_max=held_max, piece_bytes=400)
        scene.cut_off(scene.follower)
        scene.load(40, 100, 380)
        scene.wait(10)
        scene.follower.disk.delay_max = 5.0
        scene.network.cut.clear()
        leader = scene.replica(scene.first)
        sizes, streams = [], []
        for _ in range(60):
            scene.wait(1)
            sizes.append(sum(entry.size_bytes for entry in scene.first.platter.log))
            oldest = leader._streams.oldest_index
            streams.append(oldest is None or oldest >= leader._storage.snapshot_index)
        self.assertEqual(scene.leader, scene.first)
        self.assertGreater(max(sizes), held_max / 2, "as long as there is room it is given")
        self.assertLess(max(sizes), held_max * 1.3)
        self.assertTrue(all(streams), "no stream whose receiver would have to begin again")


class HangingDiskTest(SynchronousTestCase):
    def test_the_group_goes_on_without_a_leader_whose_disk_hangs(self) -> None:
        """Its heartbeats need no disk: it would lead for ever, and take nothing."""
        scene = Scene(uncommitted_bytes_max=50_000)
        scene.load(50, 10, 380)
        scene.wait(2)
        scene.first.disk.hang(LONG)
        scene.until(lambda: scene.leader is not scene.first and scene.leader is not None, 5)
        scene.wait(2)
        done = scene.answers["done"]
        term = scene.core(scene.first).term
        scene.wait(20)
        self.assertGreater(scene.answers["done"] - done, 900)
        self.assertEqual(scene.core(scene.first).term, term, "it does not campaign")
        scene.first.disk.go_on()
        scene.wait(5)
        self.assertGreater(scene.replica(scene.first).state_machine.last_applied, 1000)

    def test_also_when_what_hangs_promises_nothing(self) -> None:
        """A commit of tables alone: the entries that wait behind it are not even under way."""
        scene = Scene(uncommitted_bytes_max=50_000, flush_entries=1)
        run = scene.first.disk.run
        hung: list[Any] = []

        def run_but_tables(work: Any, done: Any, *, is_short: bool = False) -> None:
            core = scene.core(scene.first)
            if hung or (core._persisting is None and core.log.taken_index >= core._last_to_persist):
                hung.append((work, done))
                scene.first.disk.hang(LONG)
            run(work, done, is_short=is_short)

        scene.first.disk.run = run_but_tables  # type: ignore[method-assign]
        scene.load(50, 10, 380)
        scene.until(lambda: bool(hung), 10)
        scene.until(lambda: scene.leader is not scene.first and scene.leader is not None, 5)

    def test_a_leader_that_is_needed_leads_on(self) -> None:
        """The third is gone: nobody could be elected without the vote of the one whose disk hangs. It serves reads."""
        scene = Scene()
        scene.follower.crash()
        scene.first.disk.hang(LONG)
        scene.write(1, 10)
        scene.wait(10)
        self.assertIs(scene.core(scene.first).role, Role.LEADER)

    def test_held_answers_do_not_grow_while_it_hangs(self) -> None:
        scene = Scene()
        scene.follower.disk.hang(LONG)
        other = next(each for each in scene.group.machines if each not in (scene.first, scene.follower))
        scene.network.cut |= {(scene.first.number, scene.follower.number), (scene.first.number, other.number)}
        scene.wait(3)
        scene.network.cut.clear()
        scene.load(50, 10, 100)
        scene.wait(60)
        core = scene.core(scene.follower)
        self.assertNotEqual(core.hard_state, core.saved_hard_state)
        self.assertLess(len(core.held) + len(core._under_way), 20)
