"""`madkv check`: whether all that lies in a stopped node's directory is whole and fits together."""

import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from madkv.errors import MadKVError
from madkv.operate.ending import fail
from madkv.operate.rows import rows_of
from madkv.storage.check import Report, check_data, check_files
from madkv.storage.directory import held_for_reading

SOUND, DAMAGED, NOT_CHECKED = 0, 1, 2
PROGRESS_SECONDS = 3.0
SAY_SECONDS = 0.1
"""How often the process that looks says how far it is; what it has found then is known if it ends by a signal."""

Heard = tuple[Report, str, int, int]
"""What was found so far, and how many of a table's records were read, of how many. No table: that was all."""


def check(directory: Path, *, as_json: bool = False) -> int:
    """Print what is in a directory and what is wrong with it; the exit status: SOUND, DAMAGED or NOT_CHECKED."""
    try:
        report = look(directory, _Teller() if sys.stderr.isatty() else _keep_quiet)
    except MadKVError as error:
        return fail("check", error, NOT_CHECKED)
    if as_json:
        print(json.dumps(facts(directory, report), indent=2))
    else:
        print("\n".join(lines(directory, report)))
    return DAMAGED if report.damage else SOUND


def look(directory: Path, progress: Callable[[str, int, int], None]) -> Report:
    """Look through a directory, and change nothing. Raises WrongDirectory when it is no node's, or in use.

    The data is read in a process of its own: where LMDB's pages are damaged, it may end by a signal, and that is told.
    """
    with held_for_reading(directory):
        report = check_files(directory)
        if report.identity is None and not report.damage:
            return report
        context = multiprocessing.get_context("fork")  # there are no threads, and it starts at once
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_look_apart, args=(directory, report, sender), daemon=True)
        # Interrupted while it begins, this one would not know of it, and leave it behind.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sender.close()
            with closing(receiver):
                report, table, done, total = _hear(receiver, (report, "", 0, 0), progress)
            process.join()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if process.pid is not None:
                process.kill()
    if process.exitcode is None or process.exitcode > 0:
        raise MadKVError("the check failed by itself; what is above says where")
    if process.exitcode < 0:
        place = f"{table}, after {done:,} of {total:,} or a little later" if table else "its first pages"
        report.damaged(
            f"LMDB's pages are damaged, or the disk cannot be read: reading {place}, ended the process by "
            f"{signal.Signals(-process.exitcode).name}; what comes after that was not looked at"
        )
    return report


def _hear(receiver: "Connection[Any, Any]", heard: Heard, progress: Callable[[str, int, int], None]) -> Heard:
    """What the process said last before it ended."""
    while True:
        try:
            heard = receiver.recv()
        except EOFError:
            return heard
        progress(*heard[1:])


def _look_apart(directory: Path, report: Report, sender: "Connection[Any, Any]") -> None:
    """In a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits for this one ends it
    said, of = 0.0, ("", 0)

    def say(table: str, done: int, total: int) -> None:
        nonlocal said, of
        now = time.monotonic()
        place = table, len(report.damage)
        if place != of or now - said >= SAY_SECONDS:
            said, of = now, place
            sender.send((report, table, done, total))

    check_data(directory, report, rows_of, say)
    sender.send((report, "", 0, 0))


def _keep_quiet(table: str, done: int, total: int) -> None:
    """For programs."""


class _Teller:
    """A line every few seconds, for people."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, table: str, done: int, total: int) -> None:
        now = time.monotonic()
        if table and now - self._said >= PROGRESS_SECONDS:
            self._said = now
            print(f"{table}: {done:,} of {total:,}", file=sys.stderr, flush=True)


def facts(directory: Path, report: Report) -> dict[str, Any]:
    """A report as the JSON object that docs/operations.md describes."""
    identity, hard_state, meta = report.identity, report.hard_state, report.meta
    vote = None if hard_state is None else hard_state.voted_for
    return {
        "directory": str(directory),
        "node": None if identity is None else identity.node,
        "cluster": None if identity is None else identity.cluster,
        "disk": None if identity is None else identity.disk.hex(),
        "term": None if hard_state is None else hard_state.term,
        "vote": None if vote is None else {"replica": vote.replica, "disk": vote.disk.hex()},
        "snapshot": None if meta is None else meta.snapshot_index,
        "log": None if report.log_first is None else {"first": report.log_first, "last": report.log_last},
        "applied": None if meta is None else meta.applied_index,
        "pairs": report.pairs,
        "sessions": report.sessions,
        "used_bytes": report.used_bytes,
        "file_bytes": report.file_bytes,
        "notes": report.notes,
        "damage": [{"what": each.what, "count": each.count, "first": each.first} for each in report.damage.values()],
        "sound": not report.damage,
    }


def lines(directory: Path, report: Report) -> list[str]:
    """A report for people: facts, notes, and last whether it is sound."""
    identity, hard_state, meta = report.identity, report.hard_state, report.meta
    found: list[tuple[str, str]] = []
    if identity is not None:
        found += [("node", f"{identity.node} of cluster {identity.cluster}"), ("disk", identity.disk.hex())]
    if hard_state is not None:
        vote = hard_state.voted_for
        voted = "no vote given" if vote is None else f"vote for replica {vote.replica} on disk {vote.disk.hex()}"
        found.append(("term", f"{hard_state.term}, {voted}"))
    if meta is not None:
        found += [("log", _log(report, meta.snapshot_index)), ("applied", f"up to entry {meta.applied_index}")]
    found += [
        (name, f"{count:,}")
        for name, count in (("pairs", report.pairs), ("sessions", report.sessions))
        if count is not None
    ]
    if report.used_bytes is not None:
        found.append(("bytes", f"{report.used_bytes:,} in use, in a file of {report.file_bytes:,}"))
    width = max((len(name) for name, _ in found), default=0)
    told = [f"{name.ljust(width)}  {text}" for name, text in found]
    told += [f"note: {each}" for each in report.notes]
    if not report.damage:
        return [*told, f"{directory}: sound"]
    return [*told, *(f"{directory}: damaged: {each}" for each in report.damage.values())]


def _log(report: Report, snapshot_index: int) -> str:
    first, last = report.log_first, report.log_last
    if first is None or last is None:
        return f"empty, after entry {snapshot_index}"
    cut_off = min(last, snapshot_index) - first + 1
    begins = max(first, snapshot_index + 1)
    log = f"entries {begins} to {last}" if begins <= last else f"empty, after entry {snapshot_index}"
    return f"{log}; {cut_off:,} before that are cut off, and not removed yet" if cut_off > 0 else log
