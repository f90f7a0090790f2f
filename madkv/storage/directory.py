"""A replica's directory: whose it is, and that nobody else has it.

    IDENTITY    who this is, as JSON; written once, when the directory is made
    LOCK        locked by the process that has the directory open
    CREATING    there while a new directory is being filled, with its disk id: if it is left over, that starts again
    data.mdb    the LMDB environment (lock.mdb beside it is LMDB's own)

Everything that does not fit is refused with one clear line, before anything is opened or changed.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from madkv.errors import MadKVError
from madkv.raft.configuration import DISK_ID_BYTES

LAYOUT_VERSION = 1
IDENTITY_FILE = "IDENTITY"
LOCK_FILE = "LOCK"
CREATING_FILE = "CREATING"
DATA_FILE = "data.mdb"
LOST_AND_FOUND = "lost+found"
"""Where the root of a file system has it, it is that one's."""


class WrongDirectory(MadKVError):
    """This directory cannot be used for what was asked."""


@attrs.frozen
class Identity:
    """Whose directory it is. `disk` was drawn at random when it was made: a replica elsewhere is on another disk."""

    cluster: str
    node: str
    disk: bytes

    def to_json(self) -> str:
        """As it stands in the file."""
        facts = {"layout": LAYOUT_VERSION, "cluster": self.cluster, "node": self.node, "disk": self.disk.hex()}
        return json.dumps(facts, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Identity":
        """The inverse of `to_json`. Raises ValueError, and WrongDirectory for that of another layout."""
        try:
            facts = json.loads(text)
            layout = int(facts["layout"])
            if layout == LAYOUT_VERSION:
                cluster, node, disk = facts["cluster"], facts["node"], bytes.fromhex(facts["disk"])
                (cluster + node).encode()  # no text that cannot be said to anybody
                if len(disk) != DISK_ID_BYTES:
                    raise ValueError("not an identity")
                return cls(cluster, node, disk)
        except (OverflowError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError("not an identity") from None
        raise WrongDirectory(f"layout {layout}; this version of MadKV knows layout {LAYOUT_VERSION}")


class Directory:
    """A directory that this process holds until `close`."""

    def __init__(self, path: Path, cluster: str | None, node: str, new_disk: bytes) -> None:
        """Take hold of `path`, making it if it is not there or empty. Raises WrongDirectory.

        `cluster` None: take that of the directory; a new one gets it later, by `join`. `new_disk` is the disk id that
        it gets if it is made now. It is on disk when this returns, and stays through crashes: others may be told of it
        before there is anything else in the directory.
        """
        self.path = path
        self.is_new = False
        self.identity: Identity
        try:
            _make_directory(path)
            self._lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise WrongDirectory(f"cannot use the directory {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._identify(cluster, node, new_disk)
        except BlockingIOError:
            self.close()
            raise WrongDirectory(
                f"the directory {path} is in use by another process; give each node a --backer of its own"
            ) from None
        except OSError as error:
            self.close()
            raise WrongDirectory(f"cannot use the directory {path}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._lock)

    def join(self, cluster: str) -> None:
        """Give a new directory its cluster. Raises WrongDirectory for one that belongs to another."""
        if self.is_new and not self.identity.cluster:
            self.identity = Identity(cluster, self.identity.node, self.identity.disk)
        self._check(cluster, self.identity.node)

    def made(self) -> None:
        """What belongs into a new directory is there and on disk: from now on anything missing is damage."""
        assert self.identity.cluster
        try:
            _write_durably(self.path / IDENTITY_FILE, self.identity.to_json())
            (self.path / CREATING_FILE).unlink()
        except OSError as error:
            raise WrongDirectory(f"cannot use the directory {self.path}: {error.strerror}") from None
        self.is_new = False

    def _check(self, cluster: str, node: str) -> None:
        if (self.identity.cluster, self.identity.node) != (cluster, node):
            raise WrongDirectory(
                f"{self.path} belongs to node {self.identity.node} of cluster {self.identity.cluster}, "
                f"not to node {node} of cluster {cluster}; give each node a --backer of its own"
            )

    def _identify(self, cluster: str | None, node: str, new_disk: bytes) -> None:
        names = set(os.listdir(self.path)) - {LOCK_FILE, LOST_AND_FOUND}
        if IDENTITY_FILE in names:
            self.identity = self._read_identity()
            self._check(self.identity.cluster if cluster is None else cluster, node)
            if CREATING_FILE in names:
                (self.path / CREATING_FILE).unlink()
            return
        if names and CREATING_FILE not in names:
            raise WrongDirectory(
                f"{self.path} holds {min(names)} but no {IDENTITY_FILE}: it is not MadKV's, or a part of it is missing"
            )
        # New, or never finished: nobody can have been told of anything in it but of its disk id.
        creating = self.path / CREATING_FILE
        creating.touch()
        _sync_directory(self.path)
        for name in names - {CREATING_FILE}:
            (self.path / name).unlink()
        self.is_new = True
        disk = whole_disk_id(creating.read_text(errors="replace"))
        if disk is None:
            disk = new_disk
            with open(creating, "w") as file:
                file.write(f"{disk.hex()}\n")
                file.flush()
                os.fsync(file.fileno())
        self.identity = Identity(cluster or "", node, disk)

    def _read_identity(self) -> Identity:
        try:
            return Identity.from_json((self.path / IDENTITY_FILE).read_text())
        except WrongDirectory as error:
            raise WrongDirectory(f"{self.path} has {error}") from None
        except (OSError, ValueError):
            raise WrongDirectory(f"{self.path / IDENTITY_FILE} cannot be read: the directory is damaged") from None


@contextmanager
def held_for_reading(path: Path) -> Iterator[None]:
    """Have no process change what is in `path` meanwhile, and change nothing: no file is made.

    Others may read it at the same time; a node that is started on it is told that it is in use. Raises WrongDirectory
    when a process has it open, or it cannot be read.
    """
    try:
        lock = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # whoever opens a directory makes the file first
        return
    except OSError as error:
        raise WrongDirectory(f"cannot read the directory {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongDirectory(f"the directory {path} is in use by another process; stop its node first") from None
        except OSError as error:
            raise WrongDirectory(f"cannot lock the directory {path}: {error.strerror}") from None
        yield
    finally:
        os.close(lock)


def whole_disk_id(text: str) -> bytes | None:
    """The disk id in CREATING; None when nothing, or not all of it, was written."""
    try:
        disk = bytes.fromhex(text)
    except ValueError:
        return None
    return disk if len(disk) == DISK_ID_BYTES and text.endswith("\n") else None


def _write_durably(path: Path, text: str) -> None:
    """A file that is there whole or not at all, also after a crash."""
    temporary = path.with_suffix(".new")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_directory(path.parent)


def _make_directory(path: Path) -> None:
    """Also on disk: what is synced into a directory is lost if the directory itself is."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
