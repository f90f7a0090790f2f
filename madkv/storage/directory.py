"""A replica's directory: whose it is, and that nobody else has it.

    IDENTITY    who this is, as JSON; written once, when the directory is made
    LOCK        locked by the process that has the directory open
    CREATING    there while a new directory is being filled: if it is left over, that starts again; always empty
    data.mdb    the LMDB environment (lock.mdb beside it is LMDB's own)

Everything that does not fit is refused with one clear line, before anything is opened or changed.
"""

import fcntl
import json
import os
from pathlib import Path

import attrs

from madkv.errors import MadKVError

LAYOUT_VERSION = 1
IDENTITY_FILE = "IDENTITY"
LOCK_FILE = "LOCK"
CREATING_FILE = "CREATING"
DATA_FILE = "data.mdb"


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


class Directory:
    """A directory that this process holds until `close`."""

    def __init__(self, path: Path, cluster: str, node: str, new_disk: bytes) -> None:
        """Take hold of `path`, making it if it is not there or empty. Raises WrongDirectory.

        `new_disk` is the disk id that it gets if it is made now.
        """
        self.path = path
        self.is_new = False
        try:
            _make_directory(path)
            self._lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise WrongDirectory(f"cannot use the directory {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.identity = self._identify(cluster, node, new_disk)
        except BlockingIOError:
            self.close()
            raise WrongDirectory(f"the directory {path} is in use by another process") from None
        except OSError as error:
            self.close()
            raise WrongDirectory(f"cannot use the directory {path}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._lock)

    def made(self) -> None:
        """What belongs into a new directory is there and on disk: from now on anything missing is damage."""
        try:
            _write_durably(self.path / IDENTITY_FILE, self.identity.to_json())
            (self.path / CREATING_FILE).unlink()
        except OSError as error:
            raise WrongDirectory(f"cannot use the directory {self.path}: {error.strerror}") from None
        self.is_new = False

    def _identify(self, cluster: str, node: str, new_disk: bytes) -> Identity:
        names = set(os.listdir(self.path)) - {LOCK_FILE}
        if IDENTITY_FILE in names:
            identity = self._read_identity()
            if (identity.cluster, identity.node) != (cluster, node):
                raise WrongDirectory(
                    f"{self.path} belongs to node {identity.node} of cluster {identity.cluster}, "
                    f"not to node {node} of cluster {cluster}"
                )
            if CREATING_FILE in names:
                (self.path / CREATING_FILE).unlink()
            return identity
        if names and CREATING_FILE not in names:
            raise WrongDirectory(
                f"{self.path} holds {min(names)} but no {IDENTITY_FILE}: it is not MadKV's, or a part of it is missing"
            )
        # New, or never finished: nobody can have been told of anything in it.
        (self.path / CREATING_FILE).touch()
        _sync_directory(self.path)
        for name in names - {CREATING_FILE}:
            (self.path / name).unlink()
        self.is_new = True
        return Identity(cluster, node, new_disk)

    def _read_identity(self) -> Identity:
        try:
            facts = json.loads((self.path / IDENTITY_FILE).read_text())
            layout = int(facts["layout"])
            if layout != LAYOUT_VERSION:
                raise WrongDirectory(
                    f"{self.path} has layout {layout}; this version of MadKV knows layout {LAYOUT_VERSION}"
                )
            return Identity(str(facts["cluster"]), str(facts["node"]), bytes.fromhex(facts["disk"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise WrongDirectory(f"{self.path / IDENTITY_FILE} cannot be read: the directory is damaged") from None


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
