"""Fetch the official YCSB 0.17.0 release to `ycsb/`, if it is not there."""

import os
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import IO, cast

from madkv.testing.checkout import checkout
from madkv.testing.ending import run_tool

RELEASE = "ycsb-0.17.0"
URL = f"https://github.com/brianfrankcooper/YCSB/releases/download/0.17.0/{RELEASE}.tar.gz"
TIMEOUT_SECONDS = 30.0
PIECE_BYTES = 1 << 20
BYTES_BETWEEN_PROGRESS = 50 << 20


class FetchError(Exception):
    """The release could not be had or is not what it should be; says why in one line."""


class _Counted:
    """A stream that says on stderr how far it has been read: the release is hundreds of megabytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._read_bytes = 0

    def read(self, size: int = PIECE_BYTES) -> bytes:
        piece = self._stream.read(size)
        before = self._read_bytes
        self._read_bytes += len(piece)
        if before // BYTES_BETWEEN_PROGRESS != self._read_bytes // BYTES_BETWEEN_PROGRESS:
            print(f"  {self._read_bytes >> 20} MiB …", file=sys.stderr, flush=True)
        return piece


def fetch(url: str, target: Path) -> None:
    """Unpack the release at `url` to `target`, which appears whole or not at all.

    Raises FetchError.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial.", dir=target.parent))
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
            tarfile.open(fileobj=cast(IO[bytes], _Counted(response)), mode="r|gz") as archive,
        ):
            archive.extractall(scratch, filter="data")
        unpacked = scratch / RELEASE
        if not (unpacked / "bin").is_dir():
            raise FetchError(f"what {url} holds is not {RELEASE}")
        unpacked.rename(target)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(f"cannot fetch YCSB from {url}: {reason}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    target = checkout() / "ycsb"
    if target.exists():
        print("ycsb/ is there")
        return 0
    url = os.environ.get("MADKV_YCSB_URL", URL)
    print(f"fetching {url} …", file=sys.stderr, flush=True)
    try:
        fetch(url, target)
    except FetchError as error:
        print(f"{error}; benchmarks use the built-in generator", file=sys.stderr)
        return 1
    print(f"{RELEASE} is in ycsb/")
    return 0


if __name__ == "__main__":
    run_tool("madkv ycsb", main)
