"""The managers' state: what is accepted, what is refused and in which words, and how keys are cut."""

from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from madkv.bench.workload import CoreWorkload, read_properties, workload_text
from madkv.errors import InvalidArgument, Rejected
from madkv.limits import PARTITIONS_MAX
from madkv.manager.placement import (
    CHARACTERS,
    YCSB_PREFIX,
    ClusterMachine,
    Slot,
    cluster_id,
    first_cut,
    parse_node,
)
from madkv.operations import FillManager, Found, Operation, Outcome, Register, Vacate
from madkv.partitions import PartitionMap
from madkv.raft.configuration import Configuration, Member
from madkv.session_rows import TIME_KEY
from madkv.settings import MANAGERS, Settings


def disk(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def addresses(count: int) -> tuple[tuple[str, int], ...]:
    return tuple(("127.0.0.1", 3777 + number) for number in range(count))


def managers(count: int) -> Configuration:
    return Configuration(frozenset(Member(replica, disk(f"m{replica}")) for replica in range(count)))


class Machine:
    """A ClusterMachine with its log: after every operation its rows must give the same state again."""

    def __init__(self, rf: int = 3, partitions: int = 2, manager_count: int = 3) -> None:
        self.machine = ClusterMachine()
        self.rows: dict[bytes, bytes] = {}
        self.ports = tuple(3700 + replica for replica in range(rf)) if rf > 1 else ()
        self.settings = Settings(rf, addresses(rf * partitions))
        self.found = Found(self.settings, managers(manager_count), first_cut(partitions))
        assert self.apply(self.found) is None

    def apply(self, operation: Operation) -> Outcome:
        outcome = self.machine.apply(self.machine.last_applied + 1, 7, operation)
        for key, row in self.machine.take_changes().items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        again = ClusterMachine()
        again.restore(again.decode_rows(self.rows.items()), self.machine.last_applied)
        assert vars(again) == vars(self.machine)
        return outcome

    def register(self, partition: int, replica: int, on: str = "", **other: Any) -> Outcome:
        name = on or f"{partition}.{replica}"
        return self.apply(Register(partition, replica, disk(name), other.pop("ports", self.ports), **other))

    def register_all(self, partition: int) -> None:
        for replica in range(self.settings.rf):
            assert self.register(partition, replica) is None

    def refused(self, outcome: Outcome) -> str:
        assert isinstance(outcome, Rejected), outcome
        return str(outcome)


class FoundingTest(SynchronousTestCase):
    def test_nothing_goes_before_it(self) -> None:
        machine = ClusterMachine()
        for index, operation in enumerate((Register(0, 0, disk("a"), ()), Vacate(0, 0), FillManager(0, disk("a"))), 1):
            self.assertIsInstance(machine.apply(index, 0, operation), Rejected)
        self.assertIsNone(machine.founded)
        self.assertEqual(machine.epoch, 0)

    def test_it_happens_once(self) -> None:
        group = Machine()
        other = Found(group.settings, managers(1), first_cut(2))
        self.assertIsNone(group.apply(other))  # the same settings: whoever proposes them again may go on
        self.assertEqual(group.machine.founded, group.found)
        different = Found(Settings(1, addresses(2)), managers(3), first_cut(2))
        self.assertEqual(group.refused(group.apply(different)), "this cluster was founded with --server-rf 3, not 1")
        self.assertEqual(group.machine.founded, group.found)

    def test_managers_are_there_from_the_beginning(self) -> None:
        group = Machine()
        self.assertEqual(group.machine.wanted(MANAGERS), managers(3))
        self.assertEqual(group.machine.firsts, {MANAGERS: managers(3)})
        self.assertEqual(group.machine.cluster, cluster_id(managers(3)))

    def test_another_set_of_disks_is_another_cluster(self) -> None:
        self.assertNotEqual(cluster_id(managers(3)), cluster_id(managers(1)))
        self.assertRegex(cluster_id(managers(3)), r"\A[0-9a-f]{16}\Z")


class RegistrationTest(SynchronousTestCase):
    def test_the_first_configuration_stands_once_all_have_registered(self) -> None:
        group = Machine()
        for replica in (2, 0):
            self.assertIsNone(group.register(0, replica))
            self.assertNotIn(0, group.machine.firsts)
        self.assertIsNone(group.register(0, 1))
        first = Configuration(frozenset(Member(replica, disk(f"0.{replica}")) for replica in range(3)))
        self.assertEqual(group.machine.firsts[0], first)
        self.assertEqual(group.machine.wanted(0), first)
        self.assertNotIn(1, group.machine.firsts)

    def test_again_changes_nothing(self) -> None:
        group = Machine()
        group.register_all(0)
        rows = dict(group.rows)
        self.assertIsNone(group.register(0, 1))
        self.assertEqual(group.rows, rows)

    def test_a_number_that_is_not_there(self) -> None:
        group = Machine()
        self.assertEqual(
            group.refused(group.register(2, 0)),
            "there is no partition 2: the managers' --servers are 6 with --server-rf 3, so partitions go from 0 to 1",
        )
        self.assertEqual(group.refused(group.register(1, 3)), "there is no replica 3: the managers' --server-rf is 3")

    def test_a_group_of_another_size(self) -> None:
        line = "s0.1 has --peers for 5 replicas; the managers' --server-rf is 3"
        group = Machine()
        self.assertEqual(group.refused(group.register(0, 1, ports=(1, 2, 3, 4, 5))), line)
        self.assertNotIn((0, 1), group.machine.slots)

    def test_ports_that_do_not_fit_together(self) -> None:
        group = Machine()
        self.assertIsNone(group.register(0, 0))
        self.assertEqual(
            group.refused(group.register(0, 1, ports=(3700, 3811, 3702))),
            "s0.1 and s0.0 do not agree about the p2p port of s0.1: 3811 and 3701; see their --p2p-port and --peers",
        )
        # The other partition has ports of its own.
        self.assertIsNone(group.register(1, 0, ports=(1, 2, 3)))

    def test_a_mistake_about_ports_can_be_mended(self) -> None:
        """The one that was there first had them wrong: it is not held to what it said itself."""
        group = Machine()
        self.assertIsNone(group.register(0, 0, ports=(1, 2, 3)))
        self.assertIsInstance(group.register(0, 1), Rejected)
        self.assertIsNone(group.register(0, 0))
        self.assertIsNone(group.register(0, 1))

    def test_another_disk(self) -> None:
        group = Machine()
        group.register_all(0)
        self.assertEqual(
            group.refused(group.register(0, 1, "other")),
            "s0.1 is registered on another disk. If that disk is lost for good: "
            "`madkv replace-disk s0.1 --managers …`, then start this again",
        )
        self.assertEqual(group.machine.slots[0, 1].disk, disk("0.1"))

    def test_another_disk_in_a_group_of_one(self) -> None:
        group = Machine(rf=1)
        group.register_all(0)
        self.assertEqual(
            group.refused(group.register(0, 0, "other")),
            "s0 is registered on another disk, which has all of its data: start it on the directory it had",
        )

    def test_who_is_missing(self) -> None:
        group = Machine()
        group.register_all(0)
        group.register(1, 1)
        self.assertEqual(group.machine.missing(), ["s1.0", "s1.2"])
        self.assertEqual(group.machine.waiting_line(), "waiting for s1.0, s1.2 (4 of 6 registered)")
        group.register(1, 0)
        group.register(1, 2)
        self.assertIsNone(group.machine.waiting_line())
        group.apply(Vacate(1, 2))
        self.assertEqual(group.machine.missing(), [], "it was there")

    def test_many_are_missing(self) -> None:
        line = Machine(rf=1, partitions=50).machine.waiting_line()
        self.assertEqual(line, "waiting for s0, s1, s2, s3, s4, s5, s6, s7 and 42 more (0 of 50 registered)")


class ReplacementTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.group = Machine()
        self.group.register_all(0)

    def refusal(self, partition: int, replica: int) -> str:
        return self.group.refused(self.group.apply(Vacate(partition, replica)))

    def test_from_disk_to_disk(self) -> None:
        group, machine = self.group, self.group.machine
        first = machine.firsts[0]
        self.assertIsNone(group.apply(Vacate(0, 1)))
        self.assertEqual({each.replica for each in machine.wanted(0).voters}, {0, 2})
        self.assertEqual(
            group.refused(group.register(0, 1)),
            "the disk of s0.1 was given up by replace-disk: start it on an empty directory",
        )
        self.assertIsNone(group.register(0, 1, "new"))
        self.assertEqual(machine.slots[0, 1], Slot(disk("new"), group.ports, is_catching_up=True))
        self.assertIn(Member(1, disk("new")), machine.wanted(0).voters)
        self.assertIsInstance(group.register(0, 1), Rejected, "the old one")
        self.assertIsNone(group.register(0, 1, "new", has_vote=True))
        self.assertEqual(machine.slots[0, 1], Slot(disk("new"), group.ports))
        # Back to catching up it does not go: a server that starts does not know yet that it has a vote.
        self.assertIsNone(group.register(0, 1, "new"))
        self.assertEqual(machine.slots[0, 1], Slot(disk("new"), group.ports))
        self.assertEqual(machine.firsts[0], first)

    def test_one_at_a_time(self) -> None:
        group = self.group
        self.assertIsNone(group.apply(Vacate(0, 1)))
        self.assertEqual(self.refusal(0, 2), "one disk at a time: that of s0.1 is vacant")
        self.assertIsNone(group.apply(Vacate(0, 1)), "again is no error")
        self.assertIsNone(group.register(0, 1, "new"))
        self.assertEqual(self.refusal(0, 2), "one disk at a time: that of s0.1 is catching up on another")
        self.assertIsNone(group.register(0, 1, "new", has_vote=True))
        self.assertIsNone(group.apply(Vacate(0, 2)))

    def test_a_disk_that_is_lost_while_it_catches_up(self) -> None:
        group = self.group
        for name in ("new", "newer"):
            self.assertIsNone(group.apply(Vacate(0, 1)))
            self.assertIsNone(group.register(0, 1, name))
        self.assertEqual(group.machine.slots[0, 1].disk, disk("newer"))

    def test_other_groups_do_not_wait(self) -> None:
        self.group.register_all(1)
        for partition in (0, 1, MANAGERS):
            self.assertIsNone(self.group.apply(Vacate(partition, 1)))

    def test_before_the_group_has_begun(self) -> None:
        """Nothing is on that disk yet, so the next one is as good, and belongs to the first configuration."""
        group = self.group
        group.register(1, 0)
        group.register(1, 1)
        self.assertIsNone(group.apply(Vacate(1, 1)))
        self.assertEqual(group.machine.missing(), ["s1.1", "s1.2"])
        self.assertIsNone(group.register(1, 1, "new"))
        self.assertIsNone(group.register(1, 2))
        self.assertIn(Member(1, disk("new")), group.machine.firsts[1].voters)

    def test_what_cannot_be_replaced(self) -> None:
        self.assertEqual(self.refusal(1, 1), "s1.1 has never registered: it needs no replacement, just start it")
        for partition, replica in ((2, 0), (0, 3), (MANAGERS, 3)):
            self.assertEqual(self.refusal(partition, replica), "this cluster has no such node")
        self.group = Machine(rf=1, manager_count=1)
        self.group.register_all(0)
        for partition, name in ((0, "s0"), (MANAGERS, "m")):
            self.assertEqual(
                self.refusal(partition, 0),
                f"{name} has no other replica to get its data from: its disk cannot be replaced",
            )

    def test_a_manager(self) -> None:
        group, machine = self.group, self.group.machine
        self.assertIn("m.1 is registered on another disk", group.refused(group.apply(FillManager(1, disk("n")))))
        self.assertIsNone(group.apply(Vacate(MANAGERS, 1)))
        self.assertEqual({each.replica for each in machine.wanted(MANAGERS).voters}, {0, 2})
        self.assertIsNone(group.apply(FillManager(1, disk("n"))))
        self.assertEqual(self.refusal(MANAGERS, 2), "one disk at a time: that of m.1 is catching up on another")
        self.assertIsNone(group.apply(FillManager(1, disk("n"), has_vote=True)))
        self.assertIsNone(group.apply(Vacate(MANAGERS, 2)))
        self.assertIn("there is no manager 3", group.refused(group.apply(FillManager(3, disk("n")))))
        self.assertEqual(machine.cluster, cluster_id(managers(3)), "it keeps its name")


class RowsTest(SynchronousTestCase):
    def test_what_is_none(self) -> None:
        group = Machine()
        good = dict(group.rows)
        for key, row in ((b"x", b""), (b"s", b""), (b"f", good[TIME_KEY]), (b"s\0\0\0\0", b"x"), (b"c\0\0", b"x")):
            self.assertRaises(ValueError, ClusterMachine().restore, {**good, key: row}.items(), 1)

    def test_an_order_that_others_share(self) -> None:
        """Whatever the order in which servers register, the state is the same."""
        states = []
        for order in permutations(range(3)):
            group = Machine(partitions=1)
            for replica in order:
                group.register(0, replica)
            states.append(group.rows)
        self.assertTrue(all(rows == states[0] for rows in states))

    def test_entries_follow_each_other(self) -> None:
        group = Machine()
        self.assertRaises(AssertionError, group.machine.skip, 3)
        self.assertIsNone(group.machine.misplaced(b"any key"))


# --- The cut ----------------------------------------------------------------------------------------------------------


def map_of(partitions: int, splits: tuple[bytes, ...] = ()) -> PartitionMap:
    cut = first_cut(partitions, splits)
    return PartitionMap(1, "", [start for start, _ in cut], [owner for _, owner in cut], [[("h", 1)]] * partitions)


@pytest.mark.parametrize("partitions", range(1, PARTITIONS_MAX + 1))
def test_each_partition_gets_its_share(partitions: int) -> None:
    found = map_of(partitions)
    assert all(a != b for a, b in pairwise(found.owners)), "neighbours of one owner are one range"
    every = [bytes((a, b, c)) for a in CHARACTERS for b in CHARACTERS for c in CHARACTERS]
    shares = [0] * partitions
    for key in every:
        shares[found.partition_of(key)] += 1
    mean = len(every) / partitions
    assert all(0.99 * mean <= share <= 1.01 * mean for share in shares), shares
    of_ycsb = [0] * partitions
    for number in range(1000):
        of_ycsb[found.partition_of(b"usertable_user%03d" % number)] += 1
    mean = 1000 / partitions
    assert all(mean - 1 <= share <= mean + 1 for share in of_ycsb), of_ycsb
    if partitions <= 10:
        assert {found.partition_of(b"usertable_user%d" % digit) for digit in range(10)} == set(range(partitions))


@pytest.mark.parametrize("partitions", [3, 5])
@pytest.mark.parametrize("workload", ["a", "d"])
def test_ycsb_keeps_no_partition_much_busier_than_others(partitions: int, workload: str) -> None:
    """By keys that are loaded, and by the calls of a run: one of its keys is called far more often than others."""
    found = map_of(partitions)
    core = CoreWorkload(read_properties(workload_text(workload)), seed=1)
    loaded, called = [0] * partitions, [0] * partitions
    for call in core.load():
        core.acknowledged(call)
        assert call.key.startswith(YCSB_PREFIX)
        loaded[found.partition_of(call.key)] += 1
    for call in core.calls(0):
        called[found.partition_of(call.key)] += 1
    for counts in (loaded, called):
        assert max(counts) <= 2 * sum(counts) / partitions, counts


def test_keys_around_the_block_stay_in_their_partition() -> None:
    found = map_of(10)
    assert found.partition_of(b"usertable_use") == found.partition_of(b"usertable_uses") == found.partition_of(b"ut")
    assert found.partition_of(b"usertable_user") == 0
    assert found.partition_of(b"usertable_user\xff") == 9


@given(st.integers(1, PARTITIONS_MAX), st.data())
@settings(max_examples=50)
def test_ownerships_are_the_map(partitions: int, data: st.DataObject) -> None:
    group = Machine(rf=1, partitions=partitions)
    found = group.machine.partition_map()
    assert (found.epoch, found.cluster) == (1, cluster_id(managers(3)))
    assert [place for places in found.replicas for place in places] == list(group.settings.servers)
    key = data.draw(st.binary(max_size=20) | st.sampled_from([b"usertable_user7", b"us", b"zz", *found.starts]))
    owners = [number for number in range(partitions) if group.machine.ownership_of(number).range_of(key) is not None]
    assert owners == [found.partition_of(key)]
    assert group.machine.ownership_of(0).epoch == 1


def test_splits_that_were_given() -> None:
    assert first_cut(3, (b"g", b"p")) == ((b"", 0), (b"g", 1), (b"p", 2))
    assert first_cut(1) == ((b"", 0),)


# --- Names ------------------------------------------------------------------------------------------------------------


def test_names_of_nodes() -> None:
    assert [parse_node(name) for name in ("s0", "s12.3", "m", "m.2")] == [
        (0, None),
        (12, 3),
        (MANAGERS, None),
        (MANAGERS, 2),
    ]
    for name in ("", "s", "m0", "x1", "s0.", "s0.1.2", "s-1", "s٣", "s99999", "m.1\n"):
        with pytest.raises(InvalidArgument, match="is no node; write"):
            parse_node(name)
    group = Machine(rf=1, manager_count=1)
    assert (group.machine.name_of(1, 0), group.machine.name_of(MANAGERS, 0)) == ("s1", "m")


class SlotTest(SynchronousTestCase):
    def test_there_is_one_way_to_write_it(self) -> None:
        row = Slot(disk("d"), (1, 2), True, False).encode()
        self.assertEqual(Slot.decode(row), Slot(disk("d"), (1, 2), True, False))
        for wrong in (row[:16] + b"\2" + row[17:], row[:17] + b"\xff" + row[18:], row[:-1], row + b"x", b""):
            self.assertRaises(ValueError, Slot.decode, wrong)
