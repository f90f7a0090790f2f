"""All faces of the client against a cluster: partitions, leaders that change, the dead, the end."""

import random

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from madkv.addresses import show_address
from madkv.client import connection, router
from madkv.errors import Abandoned, Busy, InternalError
from madkv.limits import SCAN_PAGE_PAIRS, SESSION_CALLS_MAX
from tests.cluster_in_process import (
    FACES,
    IN_FLIGHT,
    MANY,
    THREE,
    ClientOf,
    Cluster,
    failure_of,
    proxy_before,
    turn,
    wait_in_thread,
)
from tests.proxy import Fate, LoseOnce, always_pass, at_random
from tests.writes import Model, calls

# --- When all is well -------------------------------------------------------------------------------------------------


@FACES
@pytest_twisted.ensureDeferred
async def test_every_operation_in_every_partition(face: str) -> None:
    async with (
        Cluster(*MANY, replicas=3, managers=3) as cluster,
        ClientOf(face, managers=cluster.managers_text) as store,
    ):
        for first in (b"a", b"d", b"g", b"m", b"s"):
            key = first + b".key"
            assert await store.get(key) is None
            assert await store.put(key, b"1") is False
            assert await store.put(key, b"2") is True
            assert await store.swap(key, b"3") == b"2"
            assert await store.delete(key) is True
            assert await store.delete(key) is False
            assert await store.swap(key, first) is None
            assert await store.get(key) == first
        everything = [(first + b".key", first) for first in (b"a", b"d", b"g", b"m", b"s")]
        assert await store.scan(b"", b"\xff") == everything
        assert await store.scan(b"d.key", b"m.key") == everything[1:4]
        assert await store.scan(b"c", b"f") == everything[1:2]
        assert await store.scan(b"t", b"z") == await store.scan(b"z", b"a") == []
        assert sum(manager.asked for manager in cluster.managers) == 1


@FACES
@pytest_twisted.ensureDeferred
async def test_a_scan_over_many_pages_of_many_groups(face: str) -> None:
    async with Cluster(*MANY) as cluster:
        async with ClientOf("deferred", managers=cluster.managers_text) as writer:
            pairs = [(b"%c%06d" % (number % 26 + 97, number), b"%d" % number) for number in range(6 * SCAN_PAGE_PAIRS)]
            await gatherResults([writer.put(*pair) for pair in pairs])
        async with ClientOf(face, managers=cluster.managers_text) as store:
            assert await store.scan(b"", b"~") == sorted(pairs)
            assert await store.scan(b"b", b"k5") == sorted(pair for pair in pairs if b"b" <= pair[0] <= b"k5")


@FACES
@pytest_twisted.ensureDeferred
async def test_sessions_are_opened_where_one_writes_and_all_are_closed(face: str) -> None:
    async with Cluster(*THREE, replicas=3) as cluster:
        async with ClientOf(face, managers=[manager.address for manager in cluster.managers]) as store:
            await store.scan(b"", b"z")
            await store.get(b"q")
            assert [group.sessions_opened for group in cluster.groups] == [0, 0, 0]
            for _ in range(3):
                await store.put(b"a", b"1")
                await store.put(b"i", b"1")
        assert [group.sessions_opened for group in cluster.groups] == [1, 1, 0]
        assert [group.sessions_closed for group in cluster.groups] == [1, 1, 0]


@pytest_twisted.ensureDeferred
async def test_an_interrupted_scan_does_not_answer_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """All groups were asked, and their answers come later; none must be taken for another's."""
    async with Cluster(*THREE) as cluster, ClientOf("blocking", managers=cluster.managers_text) as store:
        for key in (b"a", b"i", b"q"):
            await store.put(key, key)

        def interrupt(self: object, *seconds: float) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(connection.Connection, "_receive", interrupt)
            assert isinstance(await failure_of(store.scan(b"", b"z")), KeyboardInterrupt)
        for key in (b"q", b"i", b"a"):
            assert await store.get(key) == key
        assert store.notices == []


@pytest_twisted.ensureDeferred
async def test_a_closed_blocking_client_may_go_on() -> None:
    async with Cluster(*THREE) as cluster, ClientOf("blocking", managers=cluster.managers_text) as store:
        assert await store.put(b"a", b"1") is False
        await store.close()
        assert await store.swap(b"a", b"2") == b"1"


# --- Leaders that change ----------------------------------------------------------------------------------------------


@FACES
@pytest.mark.parametrize("hints", [True, False])
@pytest_twisted.ensureDeferred
async def test_the_leader_is_found_wherever_it_is(face: str, hints: bool) -> None:
    async with Cluster(*THREE, replicas=5) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        for number, leader in enumerate((4, 2, 0, 3, 1)):
            for group in cluster.groups:
                group.hints = hints
                await group.move_lead(leader)
            for key in (b"a", b"i", b"q"):
                assert await store.swap(key, b"%d" % number) == (b"%d" % (number - 1) if number else None)
            assert len(await store.scan(b"", b"z")) == 3
        if face != "deferred":
            assert store.notices == [], "a full round was never in vain"


@FACES
@pytest.mark.parametrize("seed", [1, 2])
@pytest_twisted.ensureDeferred
async def test_exactly_once_while_boxes_are_lost_and_leaders_change(face: str, impatient: None, seed: int) -> None:
    """A fifth of all boxes is broken, in every way that ends a connection, and the lead goes round at random."""
    rng = random.Random(seed)
    model = Model()
    async with Cluster(*THREE, replicas=3) as cluster:
        proxies = [proxy_before(cluster, at // 3, at % 3, at_random(seed + at, 0.2)) for at in range(9)]
        cluster.cut(*THREE)
        try:
            async with ClientOf(face, managers=cluster.managers_text) as store:
                for prefix in (b"a", b"i", b"q"):
                    for operation, key, value in calls(seed, prefix, 40):
                        for group in cluster.groups:
                            if rng.random() < 0.1:
                                group.leader = rng.randrange(3)
                            group.interrupts += rng.random() < 0.05
                        arguments = (key,) if operation == "delete" else (key, value)
                        assert await getattr(store, operation)(*arguments) == getattr(model, operation)(*arguments)
                for group in cluster.groups:
                    group.interrupts = 0
                assert await store.scan(b"", b"~") == sorted(model.pairs.items())
                assert sum(proxy.broken for proxy in proxies) > 30
                for proxy in proxies:
                    proxy.decide = always_pass
        finally:
            for proxy in proxies:
                await deferToThread(proxy.__exit__, None, None, None)


@FACES
@pytest_twisted.ensureDeferred
async def test_a_lost_answer_is_given_by_the_next_leader(face: str, impatient: None) -> None:
    async with Cluster(*THREE, replicas=3) as cluster:
        losing = LoseOnce(b"Swap", "reply", Fate.CUT)
        with proxy_before(cluster, 1, 0, losing) as proxy:
            cluster.cut(*THREE)
            async with ClientOf(face, managers=cluster.managers_text) as store:
                assert await store.put(b"i", b"old") is False
                swapped = store.swap(b"i", b"new")
                await wait_in_thread(losing.happened)
                cluster.groups[1].leader = 2
                assert await swapped == b"old"
                assert await store.get(b"i") == b"new"
                proxy.decide = always_pass


@FACES
@pytest_twisted.ensureDeferred
async def test_a_leader_that_stands_still_is_left(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and answers nothing, as a process that was stopped; meanwhile another one leads."""
    monkeypatch.setattr(router, "FIRST_TRY_SECONDS", 0.2)
    async with Cluster(*THREE, replicas=3) as cluster:
        with proxy_before(cluster, 0, 0) as proxy:
            cluster.cut(*THREE)
            async with ClientOf(face, managers=cluster.managers_text) as store:
                assert await store.put(b"a", b"1") is False
                proxy.decide = lambda direction, box: Fate.HOLD
                cluster.groups[0].leader = 1
                assert await store.swap(b"a", b"2") == b"1"


@FACES
@pytest_twisted.ensureDeferred
async def test_refusals_for_now_leave_the_call_the_same(face: str, impatient: None) -> None:
    async with Cluster(*THREE, replicas=3) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        group = cluster.groups[0]
        assert await store.put(b"a", b"0") is False
        for number in range(1, 5):
            group.refusals = [Busy("full"), InternalError("oh"), Busy("still full")] * number
            group.interrupts = 1
            assert await store.swap(b"a", b"%d" % number) == b"%d" % (number - 1)
        group.leader = None
        swapped = store.swap(b"a", b"end")
        for _ in range(20):
            await turn()
        assert not swapped.called
        group.leader = 2
        assert await swapped == b"4"


# --- The dead ---------------------------------------------------------------------------------------------------------


@FACES
@pytest_twisted.ensureDeferred
async def test_a_dead_partition_leaves_the_others_served(face: str, impatient: None) -> None:
    async with Cluster(*THREE) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        for key in (b"a", b"i", b"q"):
            await store.put(key, b"1")
        [dead] = cluster.groups[1].servers
        await dead.down()
        for manager in cluster.managers:
            await manager.down()
        assert await store.get(b"a") == b"1"
        assert await store.swap(b"q", b"2") == b"1"
        assert await store.scan(b"", b"gz") == [(b"a", b"1")]
        waiting = store.swap(b"i", b"2")
        for _ in range(20):
            await turn()
        assert not waiting.called
        if face != "deferred":
            assert store.notices[0].startswith(f"waiting for s1 at {show_address(dead.address)}: ")
        dead.up()
        assert await waiting == b"1"
        assert await store.scan(b"", b"z") == [(b"a", b"1"), (b"i", b"2"), (b"q", b"2")]


@FACES
@pytest_twisted.ensureDeferred
async def test_a_scan_asks_a_dead_partition_again_and_no_other(face: str, impatient: None) -> None:
    async with Cluster(*THREE) as cluster:
        proxies = [proxy_before(cluster, 0, 0), proxy_before(cluster, 2, 0)]
        cluster.cut(*THREE)
        with proxies[0], proxies[1]:
            async with ClientOf(face, managers=cluster.managers_text) as store:
                for key in (b"a", b"i", b"q"):
                    await store.put(key, b"1")
                before = [len(proxy.requests) for proxy in proxies]
                [dead] = cluster.groups[1].servers
                await dead.down()
                scanned = store.scan(b"", b"z")
                for _ in range(30):
                    await turn()
                assert not scanned.called
                dead.up()
                assert await scanned == [(b"a", b"1"), (b"i", b"1"), (b"q", b"1")]
                assert [len(proxy.requests) for proxy in proxies] == [count + 1 for count in before]


@pytest_twisted.ensureDeferred
async def test_a_dead_partition_of_several_ranges_is_waited_for_once(impatient: None) -> None:
    async with Cluster(*MANY) as cluster, ClientOf("blocking", managers=cluster.managers_text) as store:
        [dead] = cluster.groups[1].servers
        await dead.down()
        scanned = store.scan(b"", b"z")
        for _ in range(50):
            await turn()
        dead.up()
        assert await scanned == []
        [notice] = store.notices
        assert notice.startswith("waiting for s1 at ")


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_calls_into_a_dead_partition_do_not_delay_others(face: str) -> None:
    """Not even when its window is full: a session is a partition's own."""
    async with Cluster(*THREE, replicas=3) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        cluster.groups[0].leader = None
        stuck = [store.put(b"a%d" % number, b"1") for number in range(SESSION_CALLS_MAX + 10)]
        assert await gatherResults([store.put(b"i%d" % number, b"1") for number in range(100)]) == [False] * 100
        assert not any(put.called for put in stuck)
        cluster.groups[0].leader = 1
        assert await gatherResults(stuck) == [False] * len(stuck)


@FACES
@pytest_twisted.ensureDeferred
async def test_a_manager_may_be_down_and_all_may_be_late(face: str, impatient: None) -> None:
    async with Cluster(*THREE, managers=3) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        await cluster.managers[0].down()
        known = cluster.managers[1].map
        for manager in cluster.managers:
            manager.map = None
        got = store.get(b"a")
        while sum(manager.asked for manager in cluster.managers) < 10:
            await turn()
        assert not got.called
        cluster.managers[2].map = known
        assert await got is None
        if face != "deferred":
            [notice] = store.notices
            assert notice.startswith(f"waiting for the managers at {cluster.managers_text}: ")
            assert "waiting for s0.1 (3 of 4 registered)" in notice


# --- The end ----------------------------------------------------------------------------------------------------------


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_close_abandons_what_waits_wherever_it_waits(face: str) -> None:
    """For the managers, for a leader, for a dead server, for room, in a scan."""
    async with Cluster(*THREE) as cluster:
        await cluster.groups[0].servers[0].down()
        cluster.groups[1].leader = None
        for told in (True, False):
            if not told:
                cluster.managers[0].map = None
            async with ClientOf(face, managers=cluster.managers_text) as store:
                waiting = [store.put(b"a%d" % number, b"") for number in range(SESSION_CALLS_MAX + 5)]
                waiting += [store.get(b"i"), store.scan(b"", b"z"), store.put(b"i", b"")]
                if told:
                    assert await store.put(b"q", b"") is False
                outcomes = [failure_of(each) for each in waiting]
                for _ in range(5):
                    await turn()
                await store.close()
                for outcome in outcomes:
                    assert isinstance(await outcome, Abandoned)
                assert isinstance(await failure_of(store.scan(b"", b"z")), Abandoned)
        assert cluster.groups[2].sessions_closed == 1


@IN_FLIGHT
@pytest_twisted.ensureDeferred
async def test_a_cancelled_scan_and_a_cancelled_first_call(face: str) -> None:
    """Whoever cancels one call does not take from others what they wait for, too."""
    async with Cluster(*THREE) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        first, second = store.put(b"a", b"1"), store.put(b"a", b"1")
        first.cancel()
        await failure_of(first)
        assert await second is False
        cluster.groups[1].leader = None
        scan = store.scan(b"", b"z")
        for _ in range(5):
            await turn()
        scan.cancel()
        await failure_of(scan)
        cluster.groups[1].leader = 0
        assert await store.scan(b"", b"z") == [(b"a", b"1")]
