"""Managers find each other at their first start, whatever the order in which they come, go and come back."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import Busy, InvalidArgument, MadKVError, NotLeader, ProtocolError, Rejected
from madkv.manager.introduction import ASK_SECONDS, Introduced, Introducing, Introduction
from madkv.manager.placement import cluster_id
from madkv.raft.configuration import Configuration, Member
from madkv.settings import Settings
from madkv.wire.boxes import Box, parse_boxes

SETTINGS = Settings(1, (("a", 1), ("b", 2)))
OTHER = Settings(1, (("a", 1),))


def disk(number: int) -> bytes:
    return b"%016d" % number


def group(*disks: int) -> Configuration:
    return Configuration(frozenset(Member(replica, disk(number)) for replica, number in enumerate(disks)))


class Manager:
    """One manager as others see it: down, empty and asking, or with its first configuration on its disk."""

    def __init__(self, world: "World", replica: int, disk_number: int, its_settings: Settings, count: int) -> None:
        self.world = world
        self.replica = replica
        self.disk_number = disk_number
        self.settings = its_settings
        self.ports = tuple(range(1, count + 1))
        self.introduction: Introduction | None = None
        self.first: Configuration | None = None
        self.failed: list[str] = []
        self.is_up = False
        self.is_vacant = False
        """Whether its group has given up the disk of replica 1."""

    @property
    def member(self) -> Member:
        return Member(self.replica, disk(self.disk_number))

    def start(self) -> None:
        assert not self.is_up
        self.is_up = True
        if self.first is None:
            self.introduction = Introduction(
                self.world.clock, self.member, self.settings, self.ports, self.ask, self.decided, self.fail
            )
            self.introduction.start()

    def crash(self) -> None:
        """What was told to nobody and is not on disk is gone; the disk id stays."""
        self.is_up = False
        if self.introduction is not None:
            self.introduction.stop()
            self.introduction = None

    def wipe(self) -> None:
        self.crash()
        self.first = None
        self.disk_number += 10

    def ask(self, peer: int, claim: Introducing) -> Deferred[Introduced]:
        return self.world.deliver(peer, claim)

    def decided(self, first: Configuration) -> None:
        assert self.first is None
        self.first = first
        self.introduction = None

    def fail(self, why: str) -> None:
        self.failed.append(why)
        self.crash()

    def answer(self, claim: Introducing) -> Introduced:
        if self.introduction is not None:
            return self.introduction.answer(claim)
        assert self.first is not None
        if claim.member in self.first.voters or self.is_vacant:
            return Introduced(self.member, Configuration(frozenset()), self.first)
        raise Rejected("m.1 is registered on another disk")


class World:
    """Managers, and a network that takes its time."""

    def __init__(self, count: int = 3, seconds: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = Clock()
        self.seconds = seconds
        self.managers = {replica: Manager(self, replica, replica, SETTINGS, count) for replica in range(count)}

    def deliver(self, peer: int, claim: Introducing) -> Deferred[Introduced]:
        there, back = self.seconds(), self.seconds()
        if not there and not back:
            try:
                return succeed(self.answer_of(peer, claim))
            except (MadKVError, ConnectionRefusedError, ConnectionLost) as error:
                return fail(error)
        answered: Deferred[Introduced] = Deferred()

        def arrives() -> None:
            try:
                answer = self.answer_of(peer, claim)
            except (MadKVError, ConnectionRefusedError, ConnectionLost) as error:
                self.clock.callLater(back, give, error)
            else:
                self.clock.callLater(back, give, answer)

        def give(result: object) -> None:
            if not answered.called:
                (answered.errback if isinstance(result, Exception) else answered.callback)(result)

        self.clock.callLater(there, arrives)
        return answered

    def answer_of(self, peer: int, claim: Introducing) -> Introduced:
        manager = self.managers[peer]
        if not manager.is_up:
            raise ConnectionRefusedError
        answer = manager.answer(claim)
        if not manager.is_up:
            raise ConnectionLost
        return answer

    def start(self, *replicas: int) -> None:
        for replica in replicas:
            self.managers[replica].start()

    def run(self, seconds: float = 2.0) -> None:
        for _ in range(int(seconds / 0.05)):
            self.clock.advance(0.05)

    @property
    def firsts(self) -> list[Configuration | None]:
        return [manager.first for manager in self.managers.values()]

    def stop(self) -> None:
        for manager in self.managers.values():
            manager.crash()


class IntroductionTest(SynchronousTestCase):
    def world(self, count: int = 3) -> World:
        world = World(count)
        self.addCleanup(self.assertEqual, world.clock.getDelayedCalls(), [])
        self.addCleanup(world.stop)
        return world

    def test_an_only_manager_needs_nobody(self) -> None:
        world = self.world(1)
        world.start(0)
        self.assertEqual(world.firsts, [group(0)])

    def test_all_of_them_come_to_the_same(self) -> None:
        world = self.world()
        world.start(2, 0, 1)
        world.run()
        self.assertEqual(world.firsts, [group(0, 1, 2)] * 3)

    def test_one_is_minutes_late(self) -> None:
        world = self.world()
        world.start(0, 1)
        world.run(300)
        self.assertEqual(world.firsts, [None] * 3)
        world.start(2)
        world.run()
        self.assertEqual(world.firsts, [group(0, 1, 2)] * 3)

    def test_a_crash_before_the_others_have_come(self) -> None:
        """It comes back with its disk id, and is as good as before."""
        world = self.world()
        world.start(0, 1)
        world.run()
        world.managers[0].crash()
        world.start(2)
        world.run()
        self.assertEqual(world.firsts, [None] * 3)
        world.start(0)
        world.run()
        self.assertEqual(world.firsts, [group(0, 1, 2)] * 3)

    def test_a_crash_when_one_has_decided(self) -> None:
        """The others open their stores; this one had not yet, and hears how its group began."""
        world = self.world()
        world.start(0, 1, 2)
        world.run()
        late = world.managers[2]
        late.crash()
        late.first = None  # as if the crash had come before its store was on disk
        late.start()
        self.assertEqual(late.first, group(0, 1, 2))

    def test_to_have_heard_from_all_is_not_enough(self) -> None:
        """0 has heard from all; 1 lost its disk before 2 had heard from it: both must not begin a group each."""
        world = self.world()
        world.start(0, 1)
        world.run()
        world.managers[1].wipe()
        world.start(2)
        world.run()
        self.assertEqual(world.firsts, [None] * 3)
        world.start(1)
        world.run()
        self.assertEqual(world.firsts, [group(0, 11, 2)] * 3)

    def test_a_blank_disk_that_nobody_has_given_up(self) -> None:
        world = self.world()
        world.start(0, 1, 2)
        world.run()
        blank = world.managers[1]
        blank.wipe()
        blank.start()
        self.assertEqual(blank.failed, ["m.1 is registered on another disk"])
        self.assertIsNone(blank.first)

    def test_a_blank_disk_in_the_place_of_one_that_was_given_up(self) -> None:
        """It begins with how its group began, in which it is not: it has no vote until it is given one."""
        world = self.world()
        world.start(0, 1, 2)
        world.run()
        blank = world.managers[1]
        blank.wipe()
        for replica in (0, 2):
            world.managers[replica].is_vacant = True
        blank.start()
        self.assertEqual(blank.first, group(0, 1, 2))
        self.assertEqual(blank.failed, [])

    def test_peers_that_cannot_say_yet_are_asked_again(self) -> None:
        for error in (NotLeader("no leader is known"), Busy("about to found the cluster"), ProtocolError("what?")):
            answers: list[Deferred[Introduced]] = [
                fail(error),
                succeed(Introduced(Member(0, disk(0)), group(), group(0, 1, 2))),
            ]
            clock, decided = Clock(), list[Configuration]()
            me = Introduction(
                clock,
                Member(1, disk(1)),
                SETTINGS,
                (1, 2),
                lambda *_, them=answers: them.pop(0),
                decided.append,
                self.fail,
            )
            me.start()
            self.assertEqual(decided, [])
            clock.advance(ASK_SECONDS)
            self.assertEqual(decided, [group(0, 1, 2)])
            self.assertEqual(clock.getDelayedCalls(), [])

    def test_it_asks_once_at_a_time(self) -> None:
        clock, asked = Clock(), list[int]()

        def ask(peer: int, claim: Introducing) -> Deferred[Introduced]:
            asked.append(peer)
            return Deferred()

        me = Introduction(clock, Member(0, disk(0)), SETTINGS, (1, 2, 3), ask, self.fail, self.fail)
        me.start()
        clock.advance(60)
        self.assertEqual(asked, [1, 2])
        me.stop()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_what_is_a_bug_is_told(self) -> None:
        clock = Clock()
        me = Introduction(
            clock,
            Member(0, disk(0)),
            SETTINGS,
            (1, 2),
            lambda peer, claim: fail(ZeroDivisionError()),
            self.fail,
            self.fail,
        )
        me.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        clock.advance(ASK_SECONDS)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        me.stop()


class SettingsTest(SynchronousTestCase):
    """Two that do not belong together: the one that was started last ends, and the other waits on."""

    def two(self, first: int, second: int) -> World:
        world = World(3)
        self.addCleanup(world.stop)
        world.managers[second].settings = OTHER
        world.start(first)
        world.run()
        world.start(second)
        world.run()
        return world

    def test_the_one_that_asks_is_the_last(self) -> None:
        world = self.two(0, 1)
        self.assertEqual(world.managers[1].failed, ["m.1 was started with 1 --servers, not 2 as on m.0"])
        self.assertEqual(world.managers[0].failed, [])
        self.assertTrue(world.managers[0].is_up)

    def test_the_one_that_is_asked_is_the_last(self) -> None:
        world = World(2)
        self.addCleanup(world.stop)
        old, new = world.managers.values()
        new.settings = OTHER
        old.start()
        world.run()
        new.is_up = True
        new.introduction = Introduction(
            world.clock, new.member, OTHER, (1, 2), lambda peer, claim: Deferred(), new.decided, new.fail
        )
        new.introduction.start()
        world.run()
        self.assertEqual(
            new.failed, ["this is not how m.0 was started before: m.0 was started with 2 --servers, not 1 as on m.1"]
        )
        self.assertTrue(old.is_up)
        new.settings = SETTINGS
        new.start()
        world.run()
        self.assertEqual(world.firsts, [group(0, 1)] * 2)

    def test_another_number_of_managers(self) -> None:
        world = World(3)
        self.addCleanup(world.stop)
        world.start(0)
        world.run()
        claim = Introducing(Member(1, disk(1)), (1, 2, 3, 4, 5), 0, SETTINGS)
        error = self.assertRaises(Rejected, world.managers[0].answer, claim)
        self.assertEqual(str(error), "m.1 has --peers for 5 managers, m.0 for 3")
        claim = Introducing(Member(3, disk(1)), (1, 2, 3), 0, SETTINGS)
        error = self.assertRaises(Rejected, world.managers[0].answer, claim)
        self.assertEqual(str(error), "m.3 is none of 3 managers: they count from 0")

    def test_numbers_that_no_manager_has_leave_nothing_behind(self) -> None:
        world = World(3)
        self.addCleanup(world.stop)
        world.start(0)
        for number in range(3, 1000):
            self.assertRaises(
                Rejected, world.managers[0].answer, Introducing(Member(number, disk(1)), (1, 2, 3), 0, SETTINGS)
            )
        introduction = world.managers[0].introduction
        assert introduction is not None
        self.assertLessEqual(introduction._said.keys(), {1, 2})

    def test_another_port(self) -> None:
        world = World(3)
        self.addCleanup(world.stop)
        world.start(0)
        world.run()
        world.managers[1].ports = (1, 2, 9)
        world.start(1)
        world.run()
        line = "m.1 and m.0 do not agree about the p2p port of m.2: 9 and 3; see their --p2p-port and --peers"
        self.assertEqual(world.managers[1].failed, [line])
        self.assertTrue(world.managers[0].is_up)

    def test_two_with_the_same_number(self) -> None:
        world = World(3)
        self.addCleanup(world.stop)
        world.start(0)
        world.run()
        error = self.assertRaises(
            Rejected, world.managers[0].answer, Introducing(Member(0, disk(9)), (1, 2, 3), 0, SETTINGS)
        )
        self.assertEqual(str(error), "there is an m.0 already: two managers have the same --replica")

    def test_peers_in_another_order(self) -> None:
        failed: list[str] = []
        answer = Introduced(Member(2, disk(2)), group())
        me = Introduction(
            Clock(),
            Member(0, disk(0)),
            SETTINGS,
            (1, 2, 3),
            lambda peer, claim: succeed(answer),
            self.fail,
            failed.append,
        )
        me.start()
        self.assertEqual(failed, ["m.2 answers where --peers says that m.1 is: see their order"])


class AgreementTest(SynchronousTestCase):
    """Whatever happens on the way, no two managers begin with different groups; once all is well, all begin."""

    @settings(max_examples=150, deadline=None)
    @given(st.randoms(use_true_random=False), st.sampled_from([2, 3, 5]))
    def test_crashes_restarts_and_lost_disks(self, random: object, count: int) -> None:
        chance: Callable[[], float] = random.random  # type: ignore[attr-defined]
        world = World(count, lambda: chance() * 0.6)
        begun: set[Configuration] = set()
        for _ in range(60):
            manager = world.managers[int(chance() * count)]
            if manager.first is None:  # whose store is there is no matter of this any more
                if not manager.is_up:
                    manager.start()
                elif chance() < 0.3:
                    manager.crash()
                elif chance() < 0.2:
                    manager.wipe()
            world.run(chance())
            begun.update(first for first in world.firsts if first is not None)
            self.assertLess(len(begun), 2)
        for manager in world.managers.values():
            if not manager.is_up and not manager.failed:
                manager.start()
        world.run(10)
        begun.update(first for first in world.firsts if first is not None)
        self.assertEqual(len(begun), 1)
        (first,) = begun
        for manager in world.managers.values():
            # A disk that was lost after the others had decided on it is refused: it is to be given up first.
            self.assertEqual(manager.first is None, bool(manager.failed))
            self.assertEqual(manager.first is None, manager.member not in first.voters)
        world.stop()


class WireTest(SynchronousTestCase):
    def box(self, fields: bytes) -> Box:
        boxes: list[Box] = []
        parse_boxes(fields + b"\0\0", boxes)
        return boxes[0]

    def test_they_travel(self) -> None:
        claim = Introducing(Member(1, disk(1)), (1, 2, 3), 1234, SETTINGS)
        self.assertEqual(Introducing.read(self.box(claim.fields())), claim)
        for answer in (
            Introduced(Member(1, disk(1)), group(0, 1)),
            Introduced(Member(1, disk(1)), group(), group(0, 1, 2)),
        ):
            box = self.box(answer.fields())
            self.assertEqual(Introduced.read(box), answer)
            self.assertEqual(box[b"cluster"], cluster_id(answer.first).encode() if answer.first else b"")

    def test_garbage(self) -> None:
        good = self.box(Introducing(Member(1, disk(1)), (1, 2, 3), 1234, SETTINGS).fields())
        for name in good:
            for wrong in (None, b"\xff"):
                box = {key: value for key, value in {**good, name: wrong}.items() if value is not None}
                self.assertRaises(InvalidArgument, Introducing.read, box)
        good = self.box(Introduced(Member(1, disk(1)), group(0), group(0)).fields())
        for name in (b"replica", b"seen", b"first"):
            self.assertRaises(ProtocolError, Introduced.read, {**good, name: b"\xff"})
        self.assertRaises(ProtocolError, Introduced.read, {})
