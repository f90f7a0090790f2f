"""All faces of the client with a partition map that has grown old, or that leads to what it was not made for."""

from typing import Any

import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from madkv.addresses import parse_address, show_address
from madkv.errors import Busy, OutcomeUnknown, Rejected
from madkv.monitor.look import Looker
from madkv.operate.health import look_by_managers
from madkv.operate.nodes import parse_node
from madkv.operate.transfer import hand_to
from madkv.partitions import PartitionMap
from tests.cluster_in_process import (
    CLUSTER,
    FACES,
    THREE,
    ClientOf,
    Cluster,
    failure_of,
    proxy_before,
    turn,
    wait_in_thread,
)
from tests.processes import ServerProcess
from tests.proxy import Fate, LoseOnce, always_pass

# --- Maps that grow old -----------------------------------------------------------------------------------------------


@FACES
@pytest_twisted.ensureDeferred
async def test_a_range_that_moved_is_found_where_it_is(face: str, impatient: None) -> None:
    """Two managers know the old map only: what they say is not good enough."""
    async with Cluster(*THREE, managers=3) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        assert await store.put(b"g", b"1") is False
        old = cluster.managers[0].map
        cluster.cut([b"", b"g", b"p"], [0, 1, 2])
        cluster.managers[0].map = cluster.managers[1].map = old
        # The pairs do not move with the range yet.
        assert await store.get(b"g") is None
        assert await store.put(b"g", b"2") is False
        assert await store.get(b"g") == b"2"
        assert await store.put(b"i", b"3") is False
        assert await store.scan(b"", b"z") == [(b"g", b"2"), (b"i", b"3")]


@FACES
@pytest_twisted.ensureDeferred
async def test_a_scan_by_an_old_map(face: str, impatient: None) -> None:
    """Groups own less than it says, and more; a range lies in between that nobody was thought to own there."""
    async with Cluster(*THREE) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        expected = []
        cuts: list[Any] = [
            ([b"", b"c", b"e", b"h", b"p"], [0, 2, 0, 1, 2]),
            ([b"", b"w"], [0, 1]),
            ([b"", b"b", b"y"], [2, 1, 0]),
            THREE,
        ]
        async with ClientOf("deferred", managers=cluster.managers_text) as writer:
            for starts, owners in cuts:
                cluster.cut(starts, owners)
                # Each owner at each time has pairs of its own under keys of its own.
                keys = [start + b"%d" % cluster.epoch for start in starts]
                await gatherResults([writer.put(key, b"") for key in keys])
                expected = [(key, b"") for key in keys]
                found = await store.scan(b"", b"~")
                assert [pair for pair in found if pair[0].endswith(b"%d" % cluster.epoch)] == expected
                assert found == sorted(found) and len(set(found)) == len(found)


@FACES
@pytest_twisted.ensureDeferred
async def test_a_group_that_lags_behind_the_map_is_waited_for(face: str, impatient: None) -> None:
    async with Cluster(*THREE) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        calls_to_make = (lambda: store.put(b"g", b"1"), lambda: store.scan(b"", b"z"))
        for split, call in zip((b"g", b"d"), calls_to_make, strict=True):
            owned = cluster.cut([b"", split, b"p"], [0, 1, 2], told=False)
            cluster.groups[0].own(owned[0])
            waiting = call()
            for _ in range(50):
                await turn()
            assert not waiting.called
            cluster.groups[1].own(owned[1])
            await waiting
        assert await store.scan(b"", b"z") == [(b"g", b"1")]
        assert cluster.managers[0].asked == 2, "once at first, and once for the new map"


@FACES
@pytest_twisted.ensureDeferred
async def test_a_write_that_was_refused_is_made_at_the_new_owner(face: str) -> None:
    """Refused for now, and then for good: it was not executed, so it is a new call elsewhere."""
    async with Cluster(*THREE) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        assert await store.put(b"g", b"1") is False
        cluster.groups[0].refusals = [Busy("later")]
        cluster.cut([b"", b"g", b"p"], [0, 1, 2])
        assert await store.put(b"g", b"2") is False
        assert await store.put(b"a", b"3") is False


@FACES
@pytest_twisted.ensureDeferred
async def test_a_write_whose_answer_was_lost_with_its_range_is_unknown(face: str, impatient: None) -> None:
    """Made at the new owner it might take effect twice; the old one is asked, and does not answer for the key."""
    async with Cluster(*THREE) as cluster:
        losing = LoseOnce(b"Put", "reply", Fate.CUT)
        with proxy_before(cluster, 0, 0, losing) as proxy:
            cluster.cut(*THREE)
            async with ClientOf(face, managers=cluster.managers_text) as store:
                put = store.put(b"g", b"1").addErrback(lambda failure: failure.value)
                await wait_in_thread(losing.happened)
                proxy.refuse.set()
                cluster.cut([b"", b"g", b"p"], [0, 1, 2])
                proxy.refuse.clear()
                assert isinstance(await put, OutcomeUnknown)
                assert await store.get(b"g") is None
                assert await store.put(b"g", b"2") is False
                proxy.decide = always_pass


@FACES
@pytest_twisted.ensureDeferred
async def test_a_write_whose_answer_was_lost_is_asked_of_the_old_owner(face: str, impatient: None) -> None:
    """Another call brought the new map meanwhile, but the old owner has not heard of it: it still answers."""
    async with Cluster(*THREE) as cluster:
        losing = LoseOnce(b"Swap", "reply", Fate.CUT)
        with proxy_before(cluster, 0, 0, losing) as proxy:
            cluster.cut(*THREE)
            async with ClientOf(face, managers=cluster.managers_text) as store:
                assert await store.put(b"g", b"old") is False
                swapped = store.swap(b"g", b"new")
                await wait_in_thread(losing.happened)
                owned = cluster.cut([b"", b"g", b"m", b"p"], [0, 1, 2, 2], told=False)
                cluster.groups[1].own(owned[1])
                assert await swapped == b"old"
                proxy.decide = always_pass


# --- Not what it was taken for ----------------------------------------------------------------------------------------


@FACES
@pytest_twisted.ensureDeferred
async def test_servers_and_managers_are_not_taken_for_each_other(face: str, server: ServerProcess) -> None:
    async with Cluster(*THREE) as cluster:
        manager, member = cluster.managers_text, show_address(cluster.addresses[0][0])
        for given, expected in (
            ({"managers": member}, f"{member} is server s0.0, not a manager: give the client the managers' addresses"),
            ({"managers": server.address}, f"{server.address} is a server without managers"),
            ({"server": member}, f"{member} is server s0.0 of a cluster: give the client the managers' addresses"),
            ({"server": manager}, f"{manager} is manager m: give the client the managers' addresses"),
        ):
            async with ClientOf(face, **given) as store:
                for _ in range(2):
                    error = await failure_of(store.put(b"k", b"v"))
                    assert isinstance(error, Rejected) and str(error).startswith(expected)
                assert isinstance(await failure_of(store.scan(b"a", b"z")), Rejected)


@FACES
@pytest_twisted.ensureDeferred
async def test_a_map_that_leads_to_others(face: str, server: ServerProcess) -> None:
    """To a server of another cluster, to a manager, and to a server that is alone."""
    async with Cluster(*THREE) as cluster:
        cluster.groups[0].servers[0].factory.cluster = b"another"
        cluster.addresses[1][0] = parse_address(server.address)
        cluster.addresses[2][0] = cluster.managers[0].address
        cluster.cut(*THREE)
        async with ClientOf(face, managers=cluster.managers_text) as store:
            for key, expected in ((b"a", "of cluster another"), (b"i", "without managers"), (b"q", "is manager m")):
                error = await failure_of(store.get(key))
                assert isinstance(error, Rejected) and expected in str(error)
            assert isinstance(await failure_of(store.scan(b"a", b"z")), Rejected)


@FACES
@pytest_twisted.ensureDeferred
async def test_strangers_at_some_addresses_leave_the_others(face: str, impatient: None) -> None:
    """A node was moved away, say, and one of another cluster has its port by now."""
    async with Cluster([b""], [0], replicas=3, managers=3) as cluster:
        group = cluster.groups[0]
        group.leader, group.hints = 2, False
        cluster.managers[0].factory.role = b"server"
        group.servers[1].factory.cluster = b"another"
        async with ClientOf(face, managers=cluster.managers_text) as store:
            for number in range(3):
                assert await store.put(b"a", b"%d" % number) is bool(number)
            await group.servers[2].down()
            written = store.put(b"b", b"1")
            group.leader = 0
            assert await written is False
            group.servers[2].up()
            assert await store.scan(b"", b"z") == [(b"a", b"2"), (b"b", b"1")]
            if face != "deferred":  # which logs them
                stranger = show_address(group.servers[1].address)
                assert (
                    store.notices.count(
                        f"going on with others: {stranger} is s0.1 of cluster another; the managers are of {CLUSTER}"
                    )
                    == 1
                ), "not with each call"
            for server in group.servers[::2]:
                server.factory.cluster = b"another"
                server.break_connections()
            error = await failure_of(store.put(b"c", b"1"))
            assert isinstance(error, Rejected) and "of cluster another" in str(error)
            for server in group.servers:
                server.factory.cluster = CLUSTER.encode()
            assert await store.get(b"b") == b"1", "what was said is not for ever"


@pytest_twisted.ensureDeferred
async def test_no_lead_is_handed_over_in_another_cluster() -> None:
    """To whoever has a replica's address by now, the order would be as good as any."""
    async with Cluster([b""], [0], replicas=3) as cluster:
        asked: list[int] = []

        def transfer_at(place: int) -> Any:
            async def transfer(replica: int) -> int:
                asked.append(place)
                return 7

            return transfer

        for place, server in enumerate(cluster.groups[0].servers):
            server.factory.transfer_leader = transfer_at(place)
        cluster.groups[0].servers[0].factory.cluster = b"another"
        cluster.groups[0].servers[1].factory.node = b"s1.1"
        addresses = list(map(show_address, cluster.addresses[0]))
        assert await deferToThread(hand_to, parse_node("s0.1"), addresses, CLUSTER) == 7
        assert asked == [2]


@pytest_twisted.ensureDeferred
async def test_whoever_has_a_nodes_address_is_not_shown_for_it() -> None:
    """Else all would be well with a cluster that has lost a replica."""
    async with Cluster([b""], [0], replicas=3) as cluster:
        facts = {"role": "follower", "term": 1, "leader": 0, "commit": 5, "applied": 5, "cluster": CLUSTER}
        slots = {
            f"s0.{place}": {"disk": "d", "state": "registered", "address": show_address(address)}
            for place, address in enumerate(cluster.addresses[0])
        }
        slots["m"] = {"disk": "d", "state": "registered", "address": ""}
        [manager] = cluster.managers
        manager.factory.status = lambda: {**facts, "role": "leader", "nodes": slots}
        for server in cluster.groups[0].servers:
            server.factory.status = facts.copy
        cluster.groups[0].servers[1].factory.status = {**facts, "cluster": "another"}.copy
        expected = {"m": True, "s0.0": True, "s0.1": False, "s0.2": True}
        found = await deferToThread(look_by_managers, cluster.managers_text)
        assert {str(node): status is not None for node, status in found.items()} == expected
        looked = await deferToThread(Looker(None).look, "s0.0", facts, [cluster.managers_text], [])
        assert {str(node): status is not None for node, status in looked.statuses.items()} == expected
        assert "s0.1 does not answer" in looked.ailments
        # Nor is it no cluster because one manager's address has been taken.
        several = f"{show_address(cluster.addresses[0][1])},{cluster.managers_text}"
        slots["m.0"], slots["m.1"] = slots.pop("m"), {"disk": "d", "state": "registered", "address": ""}
        manager.factory.node = b"m.0"
        found = await deferToThread(look_by_managers, several)
        assert {str(node): status is not None for node, status in found.items()} == {
            "m.0": True,
            "m.1": False,
            "s0.0": True,
            "s0.1": False,
            "s0.2": True,
        }


@FACES
@pytest_twisted.ensureDeferred
async def test_managers_of_another_cluster(face: str, impatient: None) -> None:
    async with Cluster(*THREE) as cluster, ClientOf(face, managers=cluster.managers_text) as store:
        assert await store.get(b"a") is None
        cluster.cut([b"", b"a", b"p"], [0, 1, 2])
        [manager] = cluster.managers
        assert manager.map is not None
        manager.map = PartitionMap(9, "another", manager.map.starts, manager.map.owners, manager.map.replicas)
        error = await failure_of(store.get(b"a"))
        assert isinstance(error, Rejected) and "another" in str(error) and CLUSTER in str(error)
