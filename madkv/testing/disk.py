"""Small disks for the nodes of a cluster, real ones that fill and fail: ext4 in files. Linux, as root.

The tool that asks for them is started again in a mount namespace of its own (`enter`), so that they are seen by nobody
else and go when it ends.
"""

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from madkv.testing import namespace
from madkv.testing.service import ServiceError

MARK = "MADKV_MOUNTS"
DISK_BYTES = 64 << 20
ENVIRONMENT = os.environ | {"PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])}
"""With what only root has in its path, which not every shell of root's has."""
TOOLS = ("unshare", "mount", "umount", "mkfs.ext4", "e2fsck")
BALLAST = "ballast"
PIECES_BYTES = (1 << 20, 4096, 512)
CORRECTED = 1
"""The status of e2fsck where there was something to correct, and it did."""


def why_impossible() -> str | None:
    """Why this machine has no such disks; None when it has."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=ENVIRONMENT["PATH"]) is None]
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not here"
    if os.geteuid():
        return "only root may mount a file as a disk"
    with tempfile.TemporaryDirectory(prefix="madkv-disk-") as scratch:
        image = Path(scratch, "image")
        _make(image)
        probe = 'mount -o loop "$0" "$1" && ls /sys/fs/ext4/*/trigger_fs_error'
        command = ["unshare", "--mount", "sh", "-c", probe, str(image), scratch]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return f"no file can be mounted as a disk: {done.stderr.strip().splitlines()[-1]}" if done.returncode else None


def enter() -> None:
    """Become the same program in a mount namespace of its own; returns in there, and at once when it is there."""
    namespace.enter(MARK, ["--mount"])


class SmallDisk:
    """A disk of DISK_BYTES, in the file `image`, mounted at a directory; made in the namespace that `enter` entered."""

    def __init__(self, image: Path, directory: Path) -> None:
        assert namespace.is_entered(MARK), "enter() first"
        self._image = image
        self.directory = directory
        directory.mkdir(parents=True)
        _make(image)
        self._mount()
        (directory / "lost+found").rmdir()

    def unmount(self) -> None:
        """Take it out; nobody may use it."""
        _run("umount", str(self.directory))

    def fill(self) -> None:
        """Leave not a byte."""
        with open(self.directory / BALLAST, "ab", buffering=0) as file:
            for size in PIECES_BYTES:
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        """Undo `fill`."""
        (self.directory / BALLAST).unlink()

    def break_down(self) -> None:
        """Have the system find a fault in it, and let nobody write from now on, whoever has files open."""
        device = os.stat(self.directory).st_dev
        name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        Path("/sys/fs/ext4", name, "trigger_fs_error").write_text("a fault, on purpose\n")

    def repair(self) -> None:
        """Have its faults corrected, as a system does when it starts."""
        self.unmount()
        _run("e2fsck", "-p", "-f", str(self._image), statuses=(0, CORRECTED))
        self._mount()

    def _mount(self) -> None:
        """As systems do whose disks may fail: from the first fault on it is read-only."""
        _run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.directory))


def _make(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    _run("mkfs.ext4", "-q", "-m", "0", str(image))


def _run(*words: str, statuses: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode not in statuses:
        raise ServiceError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
