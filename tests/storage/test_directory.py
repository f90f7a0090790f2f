"""A directory that does not fit is refused with one clear line, and left as it was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from madkv.storage import directory as directory_module
from madkv.storage.batch import Batch
from madkv.storage.directory import CREATING_FILE, DATA_FILE, IDENTITY_FILE, Directory, Identity, WrongDirectory
from madkv.storage.records import Damaged
from tests.storage.stores import DISK, commit, entries, fresh_path, opened


class Crash(BaseException):
    """The process is gone."""


class DirectoryCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(fresh_path(self))

    def make(self) -> None:
        store = opened(self.path)
        commit(store, Batch(entries=entries(1, 3), pairs={b"a": b"1"}, applied_index=2))
        store.close()

    def assertRefused(self, error: type[Exception], line: str) -> None:
        message = str(self.assertRaises(error, opened, self.path, disk=b"n" * 16))
        self.assertIn(line, message)
        self.assertNotIn("\n", message)

    def assertGood(self) -> None:
        store = opened(self.path)
        self.assertEqual((store.last_index, store.get(b"a")), (3, b"1"))
        store.close()


class IdentityTest(DirectoryCase):
    def test_it_is_drawn_once(self) -> None:
        self.make()
        again = Directory(self.path, "c", "n", b"another disk id!")
        self.assertEqual((again.identity, again.is_new), (Identity("c", "n", DISK), False))
        again.close()

    def test_another_cluster_or_node(self) -> None:
        self.make()
        for cluster, node in (("d", "n"), ("c", "m")):
            refused = self.assertRaises(WrongDirectory, Directory, self.path, cluster, node, DISK)
            self.assertIn(f"belongs to node n of cluster c, not to node {node} of cluster {cluster}", str(refused))
        self.assertGood()

    def test_an_identity_that_is_none(self) -> None:
        self.make()
        good = json.loads((self.path / IDENTITY_FILE).read_text())
        changes = [{"disk": "x"}, {"disk": 1}, {"disk": "00"}, {"cluster": ["c"]}, {"node": 1}, {"node": "\ud800"}]
        texts = ["", "{", "[]", "{}", "\0\xff", "[" * 100_000, *(json.dumps(good | change) for change in changes)]
        for wrong in texts:
            (self.path / IDENTITY_FILE).write_text(wrong)
            self.assertRefused(WrongDirectory, "IDENTITY cannot be read: the directory is damaged")
        (self.path / IDENTITY_FILE).write_text(json.dumps({"layout": 2}))
        self.assertRefused(WrongDirectory, "has layout 2; this version of MadKV knows layout 1")

    def test_a_flipped_bit_in_the_disk_id_does_not_make_it_another_member(self) -> None:
        self.make()
        file = self.path / IDENTITY_FILE
        file.write_text(file.read_text().replace("000102", "000103"))
        self.assertRefused(Damaged, "is not this directory's: it was made together with another IDENTITY")

    def test_a_directory_that_is_no_directory_or_not_ours(self) -> None:
        self.path.write_text("a file")
        self.assertRefused(WrongDirectory, "cannot use the directory")
        self.path.unlink()
        self.path.mkdir()
        (self.path / "thesis.tex").write_text("years of work")
        self.assertRefused(WrongDirectory, "holds thesis.tex but no IDENTITY: it is not MadKV's")
        self.assertEqual((self.path / "thesis.tex").read_text(), "years of work")


class ClusterTest(DirectoryCase):
    """Whose directory it is may be known only after others were told of its disk id."""

    def test_the_disk_id_stays_through_crashes_before_there_is_anything_else(self) -> None:
        for new_disk in (DISK, b"another disk id!"):
            directory = Directory(self.path, None, "n", new_disk)
            self.assertEqual((directory.identity, directory.is_new), (Identity("", "n", DISK), True))
            directory.close()

    def test_half_a_disk_id_was_told_to_nobody(self) -> None:
        self.path.mkdir()
        for half in ("", DISK.hex()[:20], DISK.hex(), "no hexadecimal digits\n"):
            (self.path / CREATING_FILE).write_text(half)
            directory = Directory(self.path, None, "n", b"another disk id!")
            self.assertEqual(directory.identity.disk, b"another disk id!", half)
            directory.close()

    def test_a_new_one_joins_a_cluster_once(self) -> None:
        directory = Directory(self.path, None, "n", DISK)
        directory.join("c")
        refused = self.assertRaises(WrongDirectory, directory.join, "d")
        self.assertIn("belongs to node n of cluster c, not to node n of cluster d", str(refused))
        directory.made()
        directory.close()
        again = Directory(self.path, None, "n", b"another disk id!")
        self.assertEqual((again.identity, again.is_new), (Identity("c", "n", DISK), False))
        self.assertRaises(WrongDirectory, again.join, "d")
        again.join("c")
        again.close()


class DamageTest(DirectoryCase):
    def test_files_that_are_missing_empty_or_cut_short(self) -> None:
        self.make()
        data = self.path / DATA_FILE
        whole = data.read_bytes()[: 40 * 4096]
        for cut, line in (
            (0, "data.mdb is missing or empty: this replica's data is gone"),
            (100, "data.mdb cannot be opened"),
            (4096, "data.mdb cannot be opened"),
            (5000, "data.mdb was cut short: it should have at least"),
            (2 * 4096, "data.mdb was cut short: it should have at least"),
            (5 * 4096, "data.mdb was cut short: it should have at least"),
        ):
            data.write_bytes(whole[:cut])
            self.assertRefused(Damaged, line)
            self.assertEqual(data.stat().st_size, cut, "nothing was changed")
        data.write_bytes(b"not LMDB's" * 10_000)
        self.assertRefused(Damaged, "data.mdb cannot be opened")
        data.unlink()
        self.assertRefused(Damaged, "data.mdb is missing or empty")
        self.assertFalse(data.exists())
        data.write_bytes(whole)
        (self.path / "lock.mdb").unlink()
        self.assertGood()
        (self.path / IDENTITY_FILE).unlink()
        self.assertRefused(
            WrongDirectory, "holds data.mdb but no IDENTITY: it is not MadKV's, or a part of it is missing"
        )

    def test_another_replicas_data(self) -> None:
        self.make()
        other = Path(fresh_path(self))
        opened(other, disk=b"o" * 16).close()
        (self.path / DATA_FILE).write_bytes((other / DATA_FILE).read_bytes()[: 40 * 4096])
        self.assertRefused(Damaged, "it was made together with another IDENTITY")

    def test_another_programs_data(self) -> None:
        import lmdb

        self.make()
        foreign = fresh_path(self)
        with lmdb.open(foreign, lib_version=0) as env, env.begin(write=True) as txn:
            txn.put(b"their", b"data")
        (self.path / DATA_FILE).write_bytes(Path(foreign, DATA_FILE).read_bytes())
        self.assertRefused(Damaged, "does not have MadKV's tables: it is not MadKV's")

    def test_a_full_disk(self) -> None:
        with mock.patch.object(directory_module.os, "fsync", side_effect=OSError(28, "No space left on device")):
            self.assertRefused(WrongDirectory, "No space left on device")


class CreationTest(DirectoryCase):
    def test_interrupted_before_any_change_to_the_directory_it_begins_again(self) -> None:
        """A crash before each step that changes a name or syncs; what it leaves must open, as new or as finished."""
        step = finished = 0
        while not finished:
            step += 1
            left, path = [step], Path(fresh_path(self))

            def crashing(real: Callable[..., object], left: list[int] = left) -> Callable[..., object]:
                def call(*arguments: object, **named: object) -> object:
                    left[0] -= 1
                    if left[0] == 0:
                        raise Crash
                    return real(*arguments, **named)

                return call

            names = [(os, "fsync"), (os, "replace"), (Path, "touch"), (Path, "unlink"), (Path, "mkdir")]
            patches = [mock.patch.object(where, name, crashing(getattr(where, name))) for where, name in names]
            for patch in patches:
                patch.start()
            try:
                opened(path).close()
                finished = step
            except Crash:
                pass
            finally:
                for patch in patches:
                    patch.stop()
            before = {file.name for file in path.iterdir()} if path.exists() else set()
            is_drawn = CREATING_FILE in before and (path / CREATING_FILE).read_text() == f"{DISK.hex()}\n"
            disk = b"second disk id.."
            store = opened(path, disk=disk)
            made_before = IDENTITY_FILE in before
            self.assertEqual(store._directory.identity.disk, DISK if made_before or is_drawn else disk, (step, before))
            self.assertEqual((store.last_index, store.configurations[0][0]), (0, 0))
            store.close()
            names_left = {file.name for file in path.iterdir()}
            self.assertEqual(names_left, {IDENTITY_FILE, DATA_FILE, "LOCK", "lock.mdb"})
        self.assertGreater(finished, 6)

    def test_a_disk_of_its_own_that_was_just_formatted(self) -> None:
        """It has a directory for what its file system saves, which is not ours to remove."""
        (self.path / "lost+found").mkdir(parents=True)
        self.make()
        self.assertGood()
        (self.path / IDENTITY_FILE).rename(self.path / "IDENTITY.new")
        (self.path / CREATING_FILE).touch()
        opened(self.path).close()
        self.assertTrue((self.path / "lost+found").is_dir())

    def test_what_stands_in_a_directory_that_was_never_finished_goes(self) -> None:
        self.make()
        (self.path / IDENTITY_FILE).rename(self.path / "IDENTITY.new")
        (self.path / CREATING_FILE).touch()
        store = opened(self.path)
        self.assertEqual(store.last_index, 0)
        store.close()

    def test_the_directory_itself_is_on_disk(self) -> None:
        synced = []
        real = os.fsync

        def fsync(number: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{number}"))
            real(number)

        self.path.mkdir()
        with mock.patch.object(os, "fsync", fsync):
            opened(self.path / "deep" / "er").close()
        root = str(self.path.resolve())
        self.assertIn(root, synced)
        self.assertIn(f"{root}/deep", synced)


HOLDER = """
import sys
from pathlib import Path
from madkv.storage.directory import Directory
Directory(Path(sys.argv[1]), "c", "n", bytes(16))
print("held", flush=True)
sys.stdin.read()
"""


class TwoProcessesTest(DirectoryCase):
    def test_one_at_a_time_and_the_next_when_that_one_is_killed(self) -> None:
        self.make()
        arguments = [sys.executable, "-c", HOLDER, str(self.path)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            try:
                self.assertEqual(holder.stdout.readline(), b"held\n")
                self.assertRefused(WrongDirectory, "is in use by another process")
            finally:
                holder.kill()
        self.assertGood()

    def test_not_twice_in_one_process_either(self) -> None:
        store = opened(self.path)
        self.assertRefused(WrongDirectory, "is in use by another process")
        store.close()

    def test_a_copy_is_another_directory(self) -> None:
        self.make()
        copy = Path(fresh_path(self))
        copytree(self.path, copy)
        one, other = opened(self.path), opened(copy)
        self.assertEqual(one.last_index, other.last_index)
        one.close()
        other.close()
