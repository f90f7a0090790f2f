"""`madkv backup`: a copy of a live cluster in a file, each group at one point; and whether such a file is sound."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from madkv import __version__
from madkv.errors import InvalidArgument, MadKVError
from madkv.operate.backup_file import BackupWriter, Cut, NotABackup, Summary, gap_in, verify
from madkv.operate.cuts import Groups, now
from madkv.operate.ending import fail
from madkv.operate.health import NotSeen, size
from madkv.wire.codec import Pair

DONE, FAILED, NOT_SEEN = 0, 1, 2
SOUND, DAMAGED, NOT_CHECKED = 0, 1, 2
PROGRESS_SECONDS = 3.0
RESTORING_KEY = b"\0madkv.restore"
"""What `madkv restore` puts into a cluster first, and removes last: as long as it is there, that is not complete."""


def backup(path: Path, managers: str, *, force: bool = False) -> int:
    """Write a backup and say what is in it; the exit status: DONE, FAILED (there is no file, or the one that there was)
    or NOT_SEEN (no manager answers)."""
    try:
        with BackupWriter(path, force=force) as writer:
            summary = _copy(writer, managers)
    except (NotSeen, InvalidArgument) as error:
        return fail("backup", error, NOT_SEEN)
    except (MadKVError, OSError) as error:
        return fail("backup", error, FAILED)
    print("\n".join([*lines(summary), f"{path}: written"]))
    return DONE


def _copy(writer: BackupWriter, managers: str) -> Summary:
    groups = Groups(managers, lambda line: print(line, file=sys.stderr, flush=True))
    writer.begin(groups.cluster, groups.epoch, now(), __version__)
    copier = _Copier(writer)
    for group in range(groups.count):
        groups.read(group, copier)
        writer.end_group()
    if (gap := gap_in([each for cut in copier.cuts.values() for each in cut.ranges])) is not None:
        raise MadKVError(f"ranges of keys moved meanwhile, such as that of {gap[:40]!r}: make the backup again")
    return writer.finish()


class _Copier:
    """Writes what it gets, and says how far it is."""

    def __init__(self, writer: BackupWriter) -> None:
        self.cuts: dict[str, Cut] = {}
        self._writer = writer
        self._telling = Telling()
        self._group = ""

    def begin_group(self, cut: Cut) -> None:
        """It may be begun again."""
        self._group = cut.group
        self.cuts[cut.group] = cut
        self._writer.begin_group(cut)

    def page(self, pairs: list[Pair]) -> None:
        """Write it."""
        if pairs and pairs[0][0] <= RESTORING_KEY <= pairs[-1][0] and RESTORING_KEY in dict(pairs):
            raise MadKVError("a restore into this cluster is not complete: `madkv restore --resume` completes it")
        self._writer.page(pairs)
        count, size_bytes = self._writer.so_far
        self._telling.tell(lambda: f"{self._group}: {count:,} pairs, {size(size_bytes)}")


class Telling:
    """A line on stderr every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def tell(self, text: Callable[[], str]) -> None:
        """Say it, if it is time to."""
        if time.monotonic() - self._said >= PROGRESS_SECONDS:
            self._said = time.monotonic()
            print(text(), file=sys.stderr, flush=True)


def telling_bytes(what: str) -> Callable[[int, int], None]:
    """Progress by bytes of a file."""
    telling = Telling()
    return lambda done, total: telling.tell(lambda: f"{what}: {size(done)} of {size(total)}")


def check_backup(path: Path, *, as_json: bool = False) -> int:
    """Read a backup, and print what is in it or what is wrong; the exit status: SOUND, DAMAGED or NOT_CHECKED."""
    try:
        summary = verify(path, telling_bytes("read"))
    except (NotABackup, OSError) as error:
        return fail("check", error, NOT_CHECKED)
    except MadKVError as error:
        print(json.dumps({"backup": str(path), "sound": False, "damage": str(error)}, indent=2) if as_json else error)
        return DAMAGED
    print(json.dumps(facts(path, summary), indent=2) if as_json else "\n".join([*lines(summary), f"{path}: sound"]))
    return SOUND


def lines(summary: Summary) -> list[str]:
    """What a backup holds, for people."""
    told = [f"backup  of cluster {summary.cluster}, begun at {summary.began} with MadKV {summary.version}"]
    for cut, pairs, size_bytes in summary.cuts:
        told.append(
            f"{cut.group.ljust(6)}  {pairs:,} pairs, {size(size_bytes)}, as of entry {cut.index} of term {cut.term}, "
            f"at {cut.time}"
        )
    return [*told, f"pairs   {summary.pairs:,}, {size(summary.data_bytes)}", f"sha256  {summary.sha256}"]


def facts(path: Path, summary: Summary) -> dict[str, Any]:
    """The same as the JSON object that docs/operations.md describes."""
    return {
        "backup": str(path),
        "cluster": summary.cluster,
        "epoch": summary.epoch,
        "began": summary.began,
        "version": summary.version,
        "groups": [
            {
                "group": cut.group,
                "ranges": [
                    [each.start.decode("latin-1"), None if each.end is None else each.end.decode("latin-1")]
                    for each in cut.ranges
                ],
                "index": cut.index,
                "term": cut.term,
                "time": cut.time,
                "pairs": pairs,
                "bytes": size_bytes,
            }
            for cut, pairs, size_bytes in summary.cuts
        ],
        "pairs": summary.pairs,
        "bytes": summary.data_bytes,
        "sha256": summary.sha256,
        "sound": True,
    }
