"""The disk under a measurement: what it is, and what a sync on it costs."""

import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil

IN_MEMORY = ("tmpfs", "ramfs")
SYNCS = 50
SYNCED_BYTES = 1024


def filesystem_of(directory: Path) -> str:
    """The kind of file system that holds the directory: that of the longest mount point above it."""
    here = directory.resolve()
    above = [
        (len(Path(each.mountpoint).parts), each.fstype)
        for each in psutil.disk_partitions(all=True)
        if here.is_relative_to(each.mountpoint)
    ]
    return max(above, default=(0, "unknown"))[1]


def sync_us(directory: Path) -> float:
    """The median of what it takes to append 1 KiB to a file there and have it synced, in microseconds."""
    took = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(SYNCS):
            began_ns = time.monotonic_ns()
            file.write(bytes(SYNCED_BYTES))
            os.fdatasync(file.fileno())
            took.append(time.monotonic_ns() - began_ns)
    return statistics.median(took) / 1000


def why_no_disk(directory: Path) -> str | None:
    """Why nothing durable can be measured there."""
    if not directory.is_dir():
        return f"{directory} is no directory"
    kind = filesystem_of(directory)
    if kind in IN_MEMORY:
        return f"{directory} is in memory ({kind}), where a sync costs nothing: data=DIRECTORY names one on a disk"
    return None
