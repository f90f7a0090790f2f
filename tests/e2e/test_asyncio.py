"""The asyncio client on a cluster of real processes whose leaders are killed under it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from madkv.client.aio import AsyncClient
from madkv.testing.cluster import Cluster

PLACES = (b"0", b"z")
"""One of each partition."""
STRANDS = 100
GO_ON_SECONDS_MAX = 30.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster.local(tmp_path, partitions=2, rf=3, managers=1) as cluster:
        yield cluster


class Swaps:
    """Calls in flight on a few keys, each value written once: what was found tells whether each took effect once."""

    def __init__(self, store: AsyncClient) -> None:
        self._store = store
        self._found: dict[bytes, list[bytes | None]] = {place: [] for place in PLACES}
        self._written: dict[bytes, list[bytes | None]] = {place: [None] for place in PLACES}
        self._over = False
        self._tasks = [asyncio.create_task(self._strand(place, n)) for place in PLACES for n in range(STRANDS)]

    async def _strand(self, place: bytes, number: int) -> None:
        count = 0
        while not self._over:
            value = b"%d.%d" % (number, count)
            count += 1
            self._written[place].append(value)
            self._found[place].append(await self._store.swap(place, value))

    async def go_on(self) -> None:
        """Wait until calls that were made since now have been answered in each partition."""
        enough = {place: len(found) + 2 * STRANDS for place, found in self._found.items()}
        async with asyncio.timeout(GO_ON_SECONDS_MAX):
            while any(len(self._found[place]) < enough[place] for place in PLACES):
                failed = [task for task in self._tasks if task.done()]
                assert not failed, failed
                await asyncio.sleep(0.01)  # between two looks; the deadline is above

    async def end(self) -> None:
        """Each value that was written was found by exactly one later Swap, but for the one that is there."""
        self._over = True
        await asyncio.gather(*self._tasks)
        for place in PLACES:
            found = [*self._found[place], await self._store.get(place)]
            assert sorted(found, key=str) == sorted(self._written[place], key=str)


def test_swaps_form_a_chain_through_killed_leaders(cluster: Cluster) -> None:
    async def main() -> None:
        async with AsyncClient(managers=cluster.address) as store:
            swaps = Swaps(store)
            await swaps.go_on()
            for group in ("s0", "s1"):
                leader = await asyncio.to_thread(cluster.leader, group)
                assert leader is not None
                await asyncio.to_thread(cluster.kill, leader)
                await swaps.go_on()
                await asyncio.to_thread(cluster.start, leader)
                await asyncio.to_thread(cluster.wait_until_caught_up, leader)
                await swaps.go_on()
            await swaps.end()
            assert [key for key, _ in await store.scan(b"", b"~")] == list(PLACES)

    asyncio.run(main())


def test_a_program_that_starts_before_its_cluster(tmp_path: Path) -> None:
    """And is told in one line what it waits for."""
    cluster = Cluster.local(tmp_path, partitions=2, rf=1)
    notices: list[str] = []

    async def main() -> None:
        async with AsyncClient(managers=cluster.address, notice=notices.append) as store:
            swaps = asyncio.gather(*(store.swap(place, b"1") for place in PLACES))
            while not notices:
                await asyncio.sleep(0.01)  # between two looks
            await asyncio.to_thread(cluster.start_all)
            async with asyncio.timeout(GO_ON_SECONDS_MAX):
                assert await swaps == [None] * len(PLACES)

    try:
        asyncio.run(main())
    finally:
        cluster.stop()
    assert notices[0].startswith(f"waiting for the manager at {cluster.address}: ")
