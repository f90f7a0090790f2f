"""Why a process is not well or does not serve, by real replicas whose disks and peers do as the test says."""

from typing import Any

from twisted.internet.task import Clock

from madkv.monitor.probes import READY_LAG_ENTRIES_MAX, not_ready, told, unhealthy
from madkv.raft.bounds import ELECTION_TICKS, STALLED_TICKS
from madkv.server.process import Inside
from madkv.server.service import ServerFactory
from tests.stepped import ELECTION_TICKS_MAX, Machine, ReplicaTestCase, put


class ProbesTest(ReplicaTestCase):
    """A group of three, each behind a service."""

    def setUp(self) -> None:
        self.ranges: list[Any] = [["", None]]
        self.waiting = ""

    def inside(self, machine: Machine) -> Inside:
        def status() -> dict[str, Any]:
            return {"role": machine.replica.core.role.value, "ranges": self.ranges, "waiting": self.waiting}

        service = ServerFactory(Clock(), machine.replica, b"s0.0", b"", status)
        return Inside(service, machine.replica)

    def test_before_it_has_begun(self) -> None:
        for inside in (None, Inside(ServerFactory(Clock(), None, b"s0", b""))):  # type: ignore[arg-type]
            self.assertEqual(unhealthy(inside), [])
            (reason,) = not_ready(inside)
            self.assertIn("it is starting", reason)

    def test_leader_and_followers_serve(self) -> None:
        group = self.make(3)
        group.elect(0)
        group.tick(2)
        for machine in group.machines:
            self.assertEqual((unhealthy(self.inside(machine)), not_ready(self.inside(machine))), ([], []))

    def test_a_follower_that_knows_no_leader(self) -> None:
        group = self.make(3)
        group.elect(0)
        group.tick(2)
        group.cut = {2}
        group.tick(ELECTION_TICKS_MAX)
        inside = self.inside(group.machines[2])
        self.assertEqual(unhealthy(inside), [], "the process is well")
        self.assertEqual(not_ready(inside), ["it knows no leader of its group"])

    def test_a_leader_that_is_silent(self) -> None:
        group = self.make(3)
        group.elect(0)
        group.tick(2)
        core = group.machines[2].replica.core
        core.elapsed = ELECTION_TICKS
        (reason,) = not_ready(self.inside(group.machines[2]))
        self.assertIn("it has not heard of its leader for", reason)

    def test_one_that_is_far_behind(self) -> None:
        group = self.make(3)
        group.elect(0)
        group.tick(2)
        core = group.machines[2].replica.core
        core._following.leader_commit_index = core.applied_index + READY_LAG_ENTRIES_MAX
        self.assertEqual(not_ready(self.inside(group.machines[2])), [])
        core._following.leader_commit_index += 1
        self.assertEqual(not_ready(self.inside(group.machines[2])), ["it is 10,001 entries behind: it is catching up"])

    def test_no_keys_and_a_cluster_that_waits(self) -> None:
        group = self.make(1)
        group.tick()
        self.ranges, self.waiting = [], "for s0.1"
        self.assertEqual(
            not_ready(self.inside(group.machines[0])), ["its group owns no keys", "the cluster waits: for s0.1"]
        )

    def test_a_disk_that_hangs(self) -> None:
        group = self.make(3)
        leader = group.elect(0)
        group.tick(2)
        leader.disk.is_quick = False
        leader.propose(put(b"k", b"v"))
        group.tick(STALLED_TICKS + 2)
        inside = self.inside(leader)
        (reason,) = unhealthy(inside)
        self.assertRegex(reason, r"the disk has done nothing for \d\.\d s")
        self.assertIn(reason, not_ready(inside))
        body = told(inside, "s0.0", [reason])
        self.assertEqual((body["node"], body["ok"], body["reasons"]), ("s0.0", False, [reason]))
