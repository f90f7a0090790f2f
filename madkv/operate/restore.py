"""`madkv restore`: the pairs of a backup into a running cluster that is empty, whatever its partitions are.

They are ordinary Puts, so they go where the cluster's own ranges say. While it runs, the cluster holds RESTORING_KEY,
which names the backup: it is put first and removed last, so that a restore that was broken off is known for one, and
the same one may go on. Putting a pair twice does no harm.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs

from madkv.client.aio import AsyncClient
from madkv.errors import MadKVError, OutcomeUnknown
from madkv.operate.backup import RESTORING_KEY, Telling, telling_bytes
from madkv.operate.backup_file import BackupReader, Summary, verify
from madkv.operate.cuts import Groups, now
from madkv.operate.ending import fail
from madkv.operate.health import size
from madkv.wire.codec import Pair

DONE, FAILED, NOT_BEGUN = 0, 1, 2
PAGES_AT_ONCE = 4
"""How many pages of the file are being put: some thousand calls at the most, and a few MiB."""


T = TypeVar("T")


class NotEmpty(MadKVError):
    """The cluster is not one to restore into."""


@attrs.define
class _Count:
    pairs: int = 0
    found: int = 0
    """Those of them whose key was there already."""


def restore(path: Path, managers: str, *, resume: bool = False) -> int:
    """Do it, and say how many pairs; the exit status: DONE, FAILED (what is there is not complete; `--resume` goes on)
    or NOT_BEGUN (nothing was changed: the file is not sound, the cluster does not answer or is not empty)."""
    try:
        summary = verify(path, telling_bytes("verified"))
        groups = Groups(managers, _notice)
        held = {group: groups.first_key(group) for group in range(groups.count)}
    except (MadKVError, OSError) as error:
        return fail("restore", error, NOT_BEGUN)
    _notice(f"{path} is sound: {summary.pairs:,} pairs of cluster {summary.cluster}")
    try:
        count = asyncio.run(_restore(path, summary, managers, resume, held))
    except NotEmpty as error:
        return fail("restore", error, NOT_BEGUN)
    except (MadKVError, OSError) as error:
        return fail("restore", f"not complete: {error}; `--resume` goes on", FAILED)
    except KeyboardInterrupt:
        return fail("restore", "interrupted, and not complete; `--resume` goes on", 130)
    print(f"restored {count.pairs:,} pairs, {size(summary.data_bytes)}, into cluster {groups.cluster}")
    if count.found and not resume:
        print(f"{count.found:,} of them took the place of others: somebody else writes to this cluster")
    return DONE


def _notice(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _restore(path: Path, summary: Summary, managers: str, resume: bool, held: dict[int, bytes | None]) -> _Count:
    count = _Count()
    async with AsyncClient(managers=managers, notice=_notice) as client:
        await _begin(client, summary, resume, held)
        reader, telling, total = BackupReader(path), Telling(), path.stat().st_size
        pages = reader.pages()
        await asyncio.gather(*(_put_pages(client, pages, count, reader, telling, total) for _ in range(PAGES_AT_ONCE)))
        if reader.summary.sha256 != summary.sha256:
            raise MadKVError(f"{path} was changed meanwhile")
        await _surely(partial(client.delete, RESTORING_KEY))
    return count


async def _begin(client: AsyncClient, summary: Summary, resume: bool, held: dict[int, bytes | None]) -> None:
    """Mark the cluster as one that is being restored into. Raises NotEmpty when it may not be."""
    mark = await client.get(RESTORING_KEY)
    if mark is not None:
        began, sha256 = _read(mark)
        if sha256 != summary.sha256:
            raise NotEmpty(
                f"the restore of another backup (sha256 {sha256}) that began at {began} is not complete here: "
                "complete that one, or take an empty cluster"
            )
        if not resume:
            raise NotEmpty(f"the restore of this backup that began at {began} is not complete; `--resume` goes on")
        return
    if resume:
        if any(key is not None for key in held.values()):
            raise NotEmpty(
                "no restore into this cluster is incomplete: one that was broken off as it ended is complete"
            )
        raise NotEmpty("no restore was broken off in this cluster; leave out --resume")
    for group, key in held.items():
        if key is not None:
            raise NotEmpty(f"the cluster is not empty: s{group} holds {key[:40]!r}; a backup goes into an empty one")
    if await client.swap(RESTORING_KEY, _mark(summary)) is not None:
        raise NotEmpty("another restore into this cluster has just begun")


def _mark(summary: Summary) -> bytes:
    return json.dumps({"sha256": summary.sha256, "began": now()}).encode()


def _read(mark: bytes) -> tuple[str, str]:
    """When a restore began, and what it is of."""
    try:
        facts = json.loads(mark)
        return str(facts["began"]), str(facts["sha256"])
    except (ValueError, KeyError, TypeError):
        raise NotEmpty(f"the cluster holds {RESTORING_KEY!r}, which no restore has put there") from None


async def _put_pages(
    client: AsyncClient, pages: Iterator[list[Pair]], count: _Count, reader: BackupReader, telling: Telling, total: int
) -> None:
    """Put what is left of the file, page by page; others take their share of it."""
    for page in pages:
        puts = (_surely(partial(client.put, key, value)) for key, value in page)
        for found in await asyncio.gather(*puts):
            count.found += found
        count.pairs += len(page)
        telling.tell(lambda: f"{count.pairs:,} pairs, {size(reader.position)} of {size(total)}")


async def _surely(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call that may take effect twice."""
    while True:
        try:
            return await call()
        except OutcomeUnknown:
            pass  # whether it took effect or not: now it does
