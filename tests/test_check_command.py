"""`madkv check` as operators run it: on the directories of real nodes, and where reading ends a process."""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from madkv.client.blocking import BlockingClient
from madkv.limits import MIB
from madkv.raft.messages import HardState
from madkv.storage.batch import Batch
from madkv.storage.directory import DATA_FILE
from madkv.storage.records import index_key
from madkv.testing.cluster import Cluster
from tests.processes import COMMAND_SECONDS_MAX, ROOT, Process, madkv, madkv_refusal
from tests.storage.stores import commit, entry, opened

NODE = struct.Struct("=HHHH")  # LMDB's head of a record: its length (low, high), flags, length of the key
BIG = 1
BEYOND_THE_FILE_BYTES = 64 * MIB


def refusal(path: Path) -> str:
    return madkv_refusal(2, "check", path)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Of entries, one of which takes pages of its own."""
    path = tmp_path / "store"
    made = opened(str(path))
    commit(made, Batch(HardState(1), (entry(1), entry(2, payload=b"x" * 20_000), entry(3)), {b"a": b"1"}, {}, 3))
    made.close()
    return path


def test_real_nodes_of_both_kinds(tmp_path: Path) -> None:
    """Held while they run, sound when they were ended in order and when they were killed."""
    with Cluster.local(tmp_path, 1, 3, 3) as cluster:
        cluster.wait_until_serving()
        with BlockingClient(managers=cluster.address) as client:
            for number in range(50):
                client.put(b"key%d" % number, b"value" * number)
        nodes = cluster.shape.nodes()
        directories = {str(node): cluster.directory(node) for node in nodes}
        for name in ("m.1", "s0.2"):
            assert refusal(directories[name]).endswith("is in use by another process; stop its node first")
        for node in nodes:
            if node.replica == 0:
                cluster.terminate(node)
            else:
                cluster.kill(node)
        for name, directory in directories.items():
            before = {each: os.stat(directory / each).st_mtime_ns for each in os.listdir(directory)}
            done = madkv("check", directory, "--json")
            assert (done.returncode, done.stderr) == (0, ""), done
            facts = json.loads(done.stdout)
            assert facts["node"] == name and facts["sound"] and facts["damage"] == []
            assert facts["applied"] <= facts["log"]["last"]
            assert {each: os.stat(directory / each).st_mtime_ns for each in os.listdir(directory)} == before
        done = madkv("check", directories["s0.0"])
        assert done.returncode == 0
        told = done.stdout.splitlines()
        assert [line.split()[0] for line in told[:-1]] == "node disk term log applied pairs sessions bytes".split()
        assert told[-1] == f"{directories['s0.0']}: sound"


def test_damage_is_told_a_line_for_each_kind(store: Path) -> None:
    data = (store / DATA_FILE).read_bytes()
    (store / DATA_FILE).write_bytes(data.replace(b"e3.1", b"e3.2"))
    done = madkv("check", store)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == (
        f"{store}: damaged: log.0: a record is damaged, its checksum does not fit (once: entry 3)"
    )
    facts = json.loads(madkv("check", store, "--json").stdout)
    assert facts["damage"] == [
        {"what": "log.0: a record is damaged, its checksum does not fit", "count": 1, "first": "entry 3"}
    ]
    assert facts["sound"] is False


def test_a_file_that_was_cut_short(store: Path) -> None:
    for size in (100, 4096, 8192, 20_000):
        os.truncate(store / DATA_FILE, size)
        done = madkv("check", store)
        assert (done.returncode, done.stderr) == (1, "")
        assert "was cut short" in done.stdout or "cannot be opened" in done.stdout


def test_a_page_whose_reading_ends_the_process(store: Path) -> None:
    """A record of LMDB's that claims to be longer than the file: told, as is what was found before it."""
    data = bytearray((store / DATA_FILE).read_bytes()[:1_000_000])
    with open(store / DATA_FILE, "r+b") as file:
        at, found = data.find(index_key(2)), 0
        while at >= 0:
            low, high, flags, key_bytes = NODE.unpack_from(data, at - NODE.size)
            if (flags, key_bytes) == (BIG, 8) and low + (high << 16) > 20_000:
                length = (store / DATA_FILE).stat().st_size + BEYOND_THE_FILE_BYTES
                NODE.pack_into(data, at - NODE.size, length & 0xFFFF, length >> 16, BIG, 8)
                found += 1
            at = data.find(index_key(2), at + 1)
        assert found
        file.write(data.replace(b"e1.1", b"e1.2"))
    done = madkv("check", store)
    assert done.returncode == 1
    *pages, first, second = (line for line in done.stdout.splitlines() if "damaged: " in line)
    assert any("LMDB's pages: one is not what it should be (once: page " in line for line in pages)
    assert first.endswith("log.0: a record is damaged, its checksum does not fit (once: entry 1)")
    assert "reading log.0, after 1 of 3 or a little later, ended the process by SIGBUS" in second


def test_what_is_no_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} is empty: it is no node's directory"
    assert refusal(tmp_path / "none") == f"there is no {tmp_path}/none"
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == f"{tmp_path}/file is no backup of MadKV"


def test_help() -> None:
    done = madkv("check", "--help")
    assert done.returncode == 0
    for word in ("PATH", "--json", "Exit status", "change nothing"):
        assert word in " ".join(done.stdout.split())


def test_a_terminal_is_told_how_far_it_is(store: Path) -> None:
    """With no pause between two words, so that a small store is enough."""
    script = "from madkv.operate import check; from pathlib import Path; import sys\n"
    script += "check.PROGRESS_SECONDS = check.SAY_SECONDS = 0.0\nsys.exit(check.check(Path(sys.argv[1])))"
    leader, follower = pty.openpty()
    with open(leader, "rb", buffering=0) as said:
        done = subprocess.run(
            [sys.executable, "-c", script, store],
            cwd=ROOT,
            stderr=follower,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        os.close(follower)
        told = said.read(4096).decode()
    assert "log.0: 0 of 3" in told
    assert done.stdout.endswith(": sound\n")


def test_interrupted_while_it_begins_it_leaves_nothing_behind(store: Path) -> None:
    """The process that reads is there, and the one that is interrupted does not know of it yet."""
    script = "import os, signal, sys; from madkv import cli; from madkv.operate import check\n"
    script += "from multiprocessing.popen_fork import Popen\n"
    script += "check.check_data = lambda *_: signal.pause()\n"
    script += "launch = Popen._launch\n"
    script += "def launched(self, process):\n"
    script += "    launch(self, process)\n"
    script += "    print(self.pid, 'looks', flush=True)\n"
    script += "    os.kill(os.getpid(), signal.SIGINT)\n"
    script += "Popen._launch = launched\n"
    script += "sys.exit(cli.main(['check', sys.argv[1]]))"
    with Process([sys.executable, "-c", script, str(store)]) as process:
        looker = int(process.wait_for(r"^([0-9]+) looks")[1])
        assert process.wait() == 130
    with suppress(psutil.NoSuchProcess):
        psutil.Process(looker).wait(COMMAND_SECONDS_MAX)


def test_interrupted_it_ends_at_once_and_alone(store: Path) -> None:
    """Its process that reads stands still in this; both are gone at once."""
    script = "import os, signal, sys; from madkv import cli; from madkv.operate import check\n"
    script += "check.check_data = lambda *_: (print(os.getpid(), 'looks', flush=True), signal.pause())\n"
    script += "sys.exit(cli.main(['check', sys.argv[1]]))"
    with Process([sys.executable, "-c", script, str(store)]) as process:
        looker = psutil.Process(int(process.wait_for(r"^([0-9]+) looks")[1]))
        process.signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.output.endswith(" looks")
    psutil.wait_procs([looker], COMMAND_SECONDS_MAX)
    assert not looker.is_running()
