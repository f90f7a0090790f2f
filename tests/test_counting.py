"""What daemons count of their own work: calls by how long they took, commits, elections, snapshots, peers lost."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from madkv.counts import ENTRIES, SECONDS, Histogram, quantile
from madkv.raft.bounds import Bounds
from madkv.raft.configuration import Configuration, Member
from madkv.raft.core import Role
from madkv.raft.messages import Entry, EntryKind
from madkv.server.events import EVENTS_KEPT, Events
from madkv.server.service import CALLS, ServerFactory
from madkv.storage.batch import Batch
from madkv.storage.directory import Directory
from madkv.storage.durable import DurableStorage
from madkv.wire import codec
from madkv.wire.boxes import field
from tests.stepped import ELECTION_TICKS_MAX, Group, ReplicaTestCase, put
from tests.test_service import KEY, VALUE, Client, LaterReplica, RefusingReplica


@given(st.lists(st.floats(0, 10)))
def test_a_histogram_counts_what_is_up_to_each_bound(values: list[float]) -> None:
    found = Histogram()
    for value in values:
        found.add(value)
    for at, bound in enumerate(SECONDS):
        assert sum(found.counts[: at + 1]) == sum(value <= bound for value in values)
    assert sum(found.counts) == len(values)
    assert found.total == pytest.approx(sum(values))


def test_quantiles_lie_between_the_bounds() -> None:
    bounds = (1.0, 2.0, 4.0)
    assert quantile(bounds, [0, 0, 0, 0], 0.5) is None
    assert quantile(bounds, [], 0.5) is None
    assert quantile(bounds, [0, 10, 0, 0], 0.5) == 1.5
    assert quantile(bounds, [10, 0, 0, 0], 0.99) == pytest.approx(0.99)
    assert quantile(bounds, [50, 0, 49, 1], 0.99) == pytest.approx(4.0)
    assert quantile(bounds, [0, 0, 0, 5], 0.5) == 4.0, "beyond the last bound nothing is known but that"


def test_calls_count_by_kind_and_by_how_long_they_took() -> None:
    clock, replica = Clock(), LaterReplica()
    factory = ServerFactory(clock, replica, b"s0", b"boot")
    factory.startFactory()
    client = Client(factory)
    for command, fields, seconds in (
        (codec.PUT, KEY + VALUE, 0.0002),
        (codec.GET, KEY, 0.03),
        (codec.SCAN, field(b"start", b"") + field(b"end", b"z"), 0.0),
        (codec.GET, KEY, 20.0),
    ):
        client.send(command, fields)
        clock.advance(seconds)
        replica.go_on()
    assert set(factory.times) == set(CALLS)
    found = {name: times.counts for name, times in factory.times.items() if any(times.counts)}
    assert {name: sum(counts) for name, counts in found.items()} == {"put": 1, "get": 2, "scan": 1}
    assert found["put"][SECONDS.index(0.00025)] == 1
    assert found["get"][SECONDS.index(0.05)] == found["get"][-1] == 1
    assert factory.times["get"].total == pytest.approx(20.03)
    told = factory.counted()
    assert (told["connections"], told["in_flight"], told["uptime"]) == (1, 0, pytest.approx(20.03, abs=0.001))
    assert told["calls"] == {name: times.counts for name, times in factory.times.items()}
    client.send(codec.GET, KEY)
    replica.go_on()
    assert sum(told["calls"]["get"]) == 2, "what was told stays as it was"


def test_refused_calls_count_by_their_error_and_not_as_answered() -> None:
    factory = ServerFactory(Clock(), RefusingReplica(), b"s0", b"boot")
    client = Client(factory)
    for command, fields in ((codec.PUT, KEY + VALUE), (codec.GET, KEY), (codec.PUT, KEY)):
        assert b"_error" in client.call(command, fields)
    assert dict(factory.errors) == {"Busy": 2, "InvalidArgument": 1}
    assert not any(any(times.counts) for times in factory.times.values())


def test_a_read_that_waits_for_its_client_counts_once_it_is_answered() -> None:
    clock, replica = Clock(), LaterReplica()
    factory = ServerFactory(clock, replica, b"s0", b"boot")
    client = Client(factory)
    client.send(codec.GET, KEY)
    client.protocol.pauseProducing()
    replica.go_on()
    assert sum(factory.times["get"].counts) == 0
    clock.advance(0.7)
    client.protocol.resumeProducing()
    replica.go_on()
    assert factory.times["get"].counts[SECONDS.index(1.0)] == 1


def test_commits_count_with_what_is_synced_and_how_many_entries(tmp_path: Path) -> None:
    member = Member(0, bytes(16))
    directory = Directory(tmp_path / "backer", "c0ffee0123456789", "s0.0", member.disk)
    store: Any = DurableStorage(directory, Configuration(frozenset({member})))
    before = sum(store.commit_times.counts)
    for first, count in ((1, 1), (2, 3), (5, 0)):
        entries = tuple(Entry(first + at, 1, EntryKind.NOOP, b"x" * 1000) for at in range(count))
        batch = Batch(None, entries)
        store.write(batch)
        store.written(batch)
    assert sum(store.commit_times.counts) == sum(store.sync_times.counts) == before + 3
    assert 0 < store.sync_times.total <= store.commit_times.total
    assert [count for count in store.batch_entries.counts if count] == [1, 1]
    assert store.batch_entries.counts[ENTRIES.index(1)] == store.batch_entries.counts[ENTRIES.index(4)] == 1
    assert 4000 < store.log_bytes < 6000
    store.close()


def test_few_events_are_kept_and_each_says_how_long_ago_it_was() -> None:
    clock = Clock()
    events = Events(clock)
    for number in range(EVENTS_KEPT + 5):
        events.add("lost", peer=number)
        clock.advance(1.5)
    told = events.told()
    assert [each["peer"] for each in told] == list(range(5, EVENTS_KEPT + 5))
    assert told[-1] == {"ago": 1.5, "what": "lost", "peer": EVENTS_KEPT + 4}


class GroupCountingTest(ReplicaTestCase):
    """Elections and snapshots of a group."""

    def left_behind(self, group: Group) -> None:
        """Cut the third member off until the log that it needs is gone."""
        leader = group.elect(0)
        group.settle()
        group.cut = {2}
        for number in range(40):
            leader.propose(put(b"k%02d" % number, b"x" * 100))
            group.tick()

    def test_elections(self) -> None:
        group = self.make(3)
        leader = group.elect(0)
        group.tick(2)
        core = leader.replica.core
        self.assertEqual((core.campaigns, core.elections_won, core.role), (1, 1, Role.LEADER))
        for machine in group.machines:
            (event,) = machine.replica.events.told()
            self.assertEqual((event["what"], event["term"], event["leader"]), ("leader", core.term, 0))
            self.assertEqual(machine.replica.leader_changes, 1)
        other = group.machines[1].replica.core
        self.assertEqual((other.campaigns, other.elections_won), (0, 0))

    def test_a_follower_knows_how_far_its_leader_is(self) -> None:
        """Also while it gets what it lacks piece by piece: its own commit index says nothing of that."""
        group = self.make(3, bounds=Bounds(append_entries=2))
        leader, behind = group.elect(0), group.machines[2].replica.core
        group.settle()
        group.cut = {2}
        for number in range(40):
            leader.propose(put(b"k%02d" % number, b"v"))
            group.tick()
        group.cut = set()
        lags = []
        step = behind.step
        self.patch(behind, "step", lambda message: (step(message), lags.append(behind.lag_entries))[0])
        group.tick(ELECTION_TICKS_MAX)
        self.assertGreater(max(lags), 30)
        self.assertEqual(lags[-1], 0)

    def test_snapshots(self) -> None:
        group = self.make(3, flush_entries=4, log_entries_kept=0)
        self.left_behind(group)
        group.cut = set()
        group.tick(ELECTION_TICKS_MAX)
        leader, behind = group.machines[0].replica, group.machines[2].replica
        sent, received = leader.counted, behind.counted
        self.assertEqual((sent["snapshots_begun"], sent["snapshots_sent"], sent["snapshots_given_up"]), (1, 1, 0))
        self.assertEqual((sent["snapshots_under_way"], received["snapshots_installed"]), (0, 1))
        self.assertGreater(received["snapshot_bytes_received"], 3000)
        self.assertGreaterEqual(sent["snapshot_bytes_sent"], received["snapshot_bytes_received"])
        told = [(each["what"], each["peer"]) for each in leader.events.told() if "snapshot" in each["what"]]
        self.assertEqual(told, [("snapshot begun", 2), ("snapshot sent", 2)])
        self.assertEqual(behind.events.told()[-1]["what"], "snapshot installed")

    def test_a_snapshot_that_is_given_up(self) -> None:
        group = self.make(3, flush_entries=4, log_entries_kept=0)
        self.left_behind(group)
        behind = group.machines[2]
        behind.disk.is_quick = False
        group.cut = set()
        leader = group.machines[0].replica
        group.until(lambda: leader.counted["snapshots_under_way"] > 0)
        group.cut = {2}
        group.until(lambda: leader.counted["snapshots_under_way"] == 0)
        self.assertEqual((leader.counted["snapshots_sent"], leader.counted["snapshots_given_up"]), (0, 1))
        self.assertEqual(leader.events.told()[-1]["what"], "snapshot given up")
