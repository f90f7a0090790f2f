"""`twistd madkv-manager`: its options, and managers as processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from twisted.python import usage

from madkv.errors import InternalError, Interrupted, MadKVError
from madkv.manager.tap import Options
from madkv.partitions import PartitionMap
from madkv.server.process import STOP_SECONDS_MAX
from madkv.settings import Settings
from madkv.testing.ports import free_ports
from madkv.wire import codec
from madkv.wire.boxes import Box, field, join_blob, parse_boxes
from tests.manager.test_service import register_fields
from tests.processes import TWISTD, Process, madkv, madkv_command

SECONDS_MAX = 30.0

# --- Options ----------------------------------------------------------------------------------------------------------

NEEDED = ["--servers", "h:1,h:2,h:3", "--backer", "d"]
THREE = [*NEEDED, "--replica", "1", "--p2p-port", "5", "--peers", "a:1,b:2"]


def parsed(*arguments: str) -> Any:
    options = Options()
    options.parseOptions(arguments)
    return options["shape"]


def test_an_only_manager() -> None:
    shape = parsed(*NEEDED)
    assert (shape.node, shape.man_port, shape.p2p_port, shape.peers) == ("m", 3666, None, {})
    assert shape.settings == Settings(1, (("h", 1), ("h", 2), ("h", 3)))
    assert shape.backer == Path("d").absolute()


def test_one_of_three() -> None:
    shape = parsed(*THREE, "--server-rf", "3", "--man-port", "7")
    assert (shape.node, shape.man_port, shape.p2p_port) == ("m.1", 7, 5)
    assert shape.peers == {0: ("a", 1), 2: ("b", 2)}
    assert shape.settings.rf == 3


def test_splits() -> None:
    assert parsed(*NEEDED, "--splits", "g,p").settings.splits == (b"g", b"p")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--servers is needed: where the servers are"),
        (NEEDED[:2], "--backer is needed: where to keep the data"),
        ([*NEEDED, "--replica", "0"], "--replica and --p2p-port go together"),
        ([*NEEDED, "--p2p-port", "1"], "--replica and --p2p-port go together"),
        ([*NEEDED, "--peers", "a:1,b:2"], "--peers goes with --replica"),
        ([*THREE, "--replica", "3"], "--replica 3 of 3 managers: they count from 0"),
        ([*THREE, "--peers", "a:1"], "--peers: a group has 1, 3, 5, 7 or 9 replicas, not 2"),
        ([*THREE, "--peers", "a:1,a:1"], "--peers: a:1 comes twice"),
        ([*NEEDED, "--server-rf", "2"], "--server-rf: a group has 1, 3, 5, 7 or 9 replicas, not 2"),
        ([*NEEDED, "--server-rf", "x"], "--server-rf: 'x' is no whole number from 1 to 9"),
        ([*NEEDED, "--server-rf", "5"], "--servers: 3 servers are no whole number of partitions with 5 replicas each"),
        ([*NEEDED, "--servers", "h"], "--servers: 'h' is not an address; write HOST:PORT, such as 127.0.0.1:3777"),
        ([*NEEDED, "--man-port", "70000"], "--man-port: '70000' is no whole number from 1 to 65535"),
        ([*NEEDED, "--splits", "b,a"], "--splits: split keys ascend, and none comes twice"),
        ([*NEEDED, "--splits", "b"], "--splits: 3 partitions are cut at 2 keys, not at 1"),
        ([*NEEDED, "--splits", ","], "--splits: a split key has 1 to 511 bytes"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(usage.UsageError) as caught:
        parsed(*arguments)
    assert str(caught.value) == line


def test_every_option_is_documented() -> None:
    text = " ".join(str(Options()).split())
    for name, _, default, described in Options.optParameters:
        assert f"--{name}=" in text
        assert described.split(",")[0].split(";")[0] in text
        assert default in (None, "") or f"[default: {default}]" in text


# --- Processes --------------------------------------------------------------------------------------------------------


class Cluster:
    """Managers as processes, each on a directory of its own, and nobody else."""

    def __init__(self, directory: Path, stack: ExitStack, managers: int = 3, rf: int = 3) -> None:
        self.directory = directory
        self._stack = stack
        self.rf = rf
        self.count = managers
        self.settings = Settings(rf, tuple(("127.0.0.1", 3777 + number) for number in range(2 * rf)))
        self.ports = free_ports(2 * managers)
        self.processes: dict[int, Process] = {}

    def start(self, replica: int, *options: str) -> Process:
        peers = [f"127.0.0.1:{port}" for number, port in enumerate(self.ports[self.count :]) if number != replica]
        mine = [
            "--replica",
            str(replica),
            "--p2p-port",
            str(self.ports[self.count + replica]),
            "--peers",
            ",".join(peers),
        ]
        process = Process(
            [
                *(
                    sys.executable,
                    str(TWISTD),
                    "-n",
                    "--pidfile=",
                    "madkv-manager",
                    "--man-port",
                    str(self.ports[replica]),
                ),
                *("--server-rf", str(self.rf), "--backer", str(self.backer(replica))),
                *("--servers", ",".join(f"{host}:{port}" for host, port in self.settings.servers)),
                *(mine if self.count > 1 else ()),
                *options,
            ]
        )
        self.processes[replica] = self._stack.enter_context(process)
        return process

    def start_all(self) -> None:
        for replica in range(self.count):
            self.start(replica)

    def kill(self, replica: int) -> None:
        self.processes[replica].signal(signal.SIGKILL)
        self.processes[replica].wait()

    def backer(self, replica: int) -> Path:
        return self.directory / f"m.{replica}"

    @property
    def managers(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.ports[: self.count])

    def call(self, replica: int, command: bytes, fields: bytes = b"") -> Box:
        """One call of one manager. Raises the error in its answer, OSError when there is none."""
        with socket.create_connection(("127.0.0.1", self.ports[replica]), 5) as connection:
            connection.sendall(codec.request(1, command, fields))
            data, boxes = b"", list[Box]()
            while not boxes:
                piece = connection.recv(1 << 16)
                if not piece:
                    raise ConnectionResetError
                data += piece
                parse_boxes(data, boxes)
        codec.raise_if_error(boxes[0], command)
        return boxes[0]

    def status(self, replica: int) -> dict[str, Any]:
        found = json.loads(join_blob(self.call(replica, codec.STATUS), b"status") or b"")
        assert isinstance(found, dict)
        return found

    def leader(self) -> int:
        """The one that leads, once the cluster is founded on all that run."""

        def found() -> int | None:
            states = {replica: self.status(replica) for replica, each in self.processes.items() if each.is_running}
            leaders = [replica for replica, status in states.items() if status["role"] == "leader"]
            is_founded = all("epoch" in status for status in states.values())
            return leaders[0] if is_founded and len(leaders) == 1 else None

        return until(found)

    def register_all(self) -> None:
        """As all servers do."""
        for partition in range(2):
            for replica in range(self.rf):
                fields = register_fields(self.settings, partition, replica)
                until(lambda: self.call(self.leader(), codec.REGISTER, fields))  # noqa: B023

    def replace_disk(self, node: str) -> subprocess.CompletedProcess[str]:
        return madkv("replace-disk", node, "--managers", self.managers)


def until(found: Callable[[], Any]) -> Any:
    """What `found` gives once it gives something, and no error that another try may cure."""
    ends = time.monotonic() + SECONDS_MAX
    while True:
        problem: Exception | None = None
        try:
            result = found()
            if result is not None and result is not False:
                return result
        except (OSError, MadKVError) as error:
            problem = error
        assert time.monotonic() < ends, problem
        time.sleep(0.05)  # between two looks; the deadline is above


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_an_only_manager_keeps_what_it_was_told(tmp_path: Path, stack: ExitStack) -> None:
    cluster = Cluster(tmp_path, stack, managers=1, rf=1)
    cluster.start(0)
    cluster.register_all()
    found = PartitionMap.decode(join_blob(cluster.call(0, codec.GET_MAP), b"map") or b"")
    assert found.replicas == [[("127.0.0.1", 3777)], [("127.0.0.1", 3778)]]
    cluster.kill(0)
    cluster.start(0)
    again = until(lambda: cluster.call(0, codec.GET_MAP))
    assert PartitionMap.decode(join_blob(again, b"map") or b"") == found
    assert cluster.processes[0].stop() == 0
    assert (cluster.backer(0) / "IDENTITY").exists()


MANAGER_WHOSE_DISK_HANGS = """
import sys
import threading
from twisted.scripts.twistd import run
from madkv.storage.durable import DurableStorage

def hanging(self, batch):
    print("the disk hangs", file=sys.__stderr__, flush=True)
    threading.Event().wait()
DurableStorage.write = hanging
sys.argv = ["twistd", "-n", "--pidfile=", "madkv-manager", *sys.argv[1:]]
run()
"""


MANAGER_THAT_HANGS_AS_IT_BEGINS = """
import ctypes
import os
import sys
from twisted.scripts.twistd import run

libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
def hanging(fd):
    libc.pthread_mutex_lock(mutex)
    print("the disk hangs", file=sys.__stderr__, flush=True)
    libc.pthread_mutex_lock(mutex)  # waits for itself, in C, where Python runs no handlers of signals
os.fsync = hanging
sys.argv = ["twistd", "-n", "--pidfile=", "madkv-manager", *sys.argv[1:]]
run()
"""


@pytest.mark.parametrize("script", [MANAGER_WHOSE_DISK_HANGS, MANAGER_THAT_HANGS_AS_IT_BEGINS])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_bounded_time_whatever_its_disk_does(tmp_path: Path, number: int, script: str) -> None:
    """A thread that waits for a disk cannot be ended, and must not be waited for, be it the main one."""
    port, server = free_ports(2)
    options = ["--man-port", str(port), "--servers", f"127.0.0.1:{server}", "--backer", str(tmp_path / "m")]
    with Process([sys.executable, "-c", script, *options]) as manager:
        manager.wait_for("the disk hangs")
        manager.signal(number)
        began = time.monotonic()
        assert manager.wait() == 0
        assert time.monotonic() - began < STOP_SECONDS_MAX + 1.0


def test_three_managers_from_first_boot_to_a_lost_disk(tmp_path: Path, stack: ExitStack, server: Any) -> None:
    cluster = Cluster(tmp_path, stack)
    # One comes, goes, and comes back before the last one is there.
    cluster.start(0)
    cluster.start(1).wait_for("m.0: is there, and empty too")
    cluster.kill(1)
    cluster.start(2)
    cluster.start(1)
    cluster.register_all()
    names = {cluster.status(replica)["cluster"] for replica in range(3)}
    assert len(names) == 1
    # Whoever is no manager among them is passed over, by those who ask for what only their leader does.
    done = madkv("replace-disk", "s7.0", "--managers", f"{server.address},{cluster.managers}")
    assert (done.returncode, done.stderr) == (1, "madkv replace-disk: this cluster has no such node\n")
    # The leader dies; the others go on.
    dead = cluster.leader()
    cluster.kill(dead)
    map_box = until(lambda: cluster.call(cluster.leader(), codec.GET_MAP))  # it may have to hear first what it holds
    # It comes back without its disk: that is not enough.
    shutil.rmtree(cluster.backer(dead))
    blank = cluster.start(dead)
    assert blank.wait(SECONDS_MAX) == 1
    assert f"madkv-manager: m.{dead} is registered on another disk. If that disk is lost for good: " in blank.output
    done = cluster.replace_disk(f"m.{dead}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == f"the disk of m.{dead} is given up; start m.{dead} on an empty directory, and it takes its place\n"
    )
    cluster.start(dead)
    disk = until(lambda: cluster.status(dead).get("disk"))

    def is_in() -> bool:
        status = cluster.status(cluster.leader())
        node = status["nodes"][f"m.{dead}"]
        return node == {"disk": disk, "state": "registered", "address": ""} and len(status["voters"]) == 3

    until(is_in)
    # It counts: with it and one other there is a majority.
    cluster.kill(next(replica for replica in range(3) if replica != dead))
    assert until(lambda: cluster.call(cluster.leader(), codec.GET_MAP))[b"map"] == map_box[b"map"]
    for process in cluster.processes.values():
        if process.is_running:
            assert process.stop() == 0


def test_the_one_that_was_started_last_with_other_settings_ends(tmp_path: Path, stack: ExitStack) -> None:
    cluster = Cluster(tmp_path, stack)
    first = cluster.start(0)
    first.wait_for("waiting for it")
    last = cluster.start(1, "--splits", "m")
    assert last.wait(SECONDS_MAX) == 1
    assert "madkv-manager: " in last.output and "--splits" in last.output
    assert "Traceback" not in last.output
    cluster.start(1)
    cluster.start(2)
    cluster.leader()
    assert first.is_running
    # The settings are the cluster's for good.
    cluster.kill(2)
    again = cluster.start(2, "--splits", "m")
    assert again.wait(SECONDS_MAX) == 1
    assert (
        "madkv-manager: this manager was started with --splits m, not left out as the cluster was founded with"
        in again.output
    )


def test_a_directory_of_another_node(tmp_path: Path, stack: ExitStack) -> None:
    cluster = Cluster(tmp_path, stack, managers=1, rf=1)
    cluster.start(0)
    cluster.leader()
    cluster.kill(0)
    others = [*("--replica", "0", "--p2p-port", str(free_ports(1)[0]))]
    process = cluster.start(0, *others)
    assert process.wait(SECONDS_MAX) == 1
    assert "belongs to node m of cluster" in process.output
    assert "Traceback" not in process.output


def test_a_port_in_use(tmp_path: Path, stack: ExitStack) -> None:
    cluster = Cluster(tmp_path, stack, managers=1, rf=1)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        process = cluster.start(0, "--man-port", str(taken.getsockname()[1]))
        assert process.wait(SECONDS_MAX) == 1
    assert "madkv-manager: cannot listen on 0.0.0.0:" in process.output
    assert os.listdir(cluster.backer(0))


def test_a_server_on_a_blank_disk(tmp_path: Path, stack: ExitStack) -> None:
    """Refused, given up, taken in, caught up; and only then may another disk of its group be given up."""
    rf = 3
    api_ports, p2p_ports = free_ports(2 * rf)[:rf], free_ports(rf)
    cluster = Cluster(tmp_path, stack, managers=1, rf=rf)
    cluster.settings = Settings(rf, tuple(("127.0.0.1", port) for port in api_ports))
    cluster.start(0)

    def start(replica: int) -> Process:
        peers = [f"127.0.0.1:{port}" for number, port in enumerate(p2p_ports) if number != replica]
        return stack.enter_context(
            Process(
                [
                    *(sys.executable, str(TWISTD), "-n", "--pidfile=", "madkv-server", "--partition", "0"),
                    *("--replica", str(replica), "--managers", cluster.managers, "--peers", ",".join(peers)),
                    *("--api-port", str(api_ports[replica]), "--p2p-port", str(p2p_ports[replica])),
                    *("--backer", str(tmp_path / f"s0.{replica}")),
                ]
            )
        )

    servers = [start(replica) for replica in range(rf)]
    until(lambda: cluster.call(0, codec.GET_MAP))
    for server in servers:
        server.wait_for("leads group s0")
    old = cluster.status(0)["nodes"]["s0.1"]["disk"]
    servers[1].signal(signal.SIGKILL)
    servers[1].wait()
    shutil.rmtree(tmp_path / "s0.1")
    refused = start(1)
    assert refused.wait(SECONDS_MAX) == 1
    assert "madkv-server: s0.1 is registered on another disk. If that disk is lost for good: " in refused.output
    assert cluster.replace_disk("s0.1").returncode == 0
    assert "one disk at a time: that of s0.1 is vacant" in cluster.replace_disk("s0.2").stderr
    start(1)

    def is_in() -> bool:
        node = cluster.status(0)["nodes"]["s0.1"]
        return node["disk"] != old and node["state"] == "registered"

    until(is_in)
    assert cluster.replace_disk("s0.2").returncode == 0


# --- madkv replace-disk -----------------------------------------------------------------------------------------------


def test_replacing_needs_a_manager(tmp_path: Path, stack: ExitStack, server: Any) -> None:
    done = madkv("replace-disk", "s0.1", "--managers", "nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("madkv replace-disk: --managers: 'nonsense' is not an address")
    done = madkv("replace-disk", "s0.1", "--managers", server.address)
    assert done.returncode == 1
    assert done.stderr == (
        f"madkv replace-disk: it is not clear whose managers these are: {server.address}: it is a server; "
        "--managers is for the managers' addresses\n"
    )
    cluster = Cluster(tmp_path, stack, managers=1, rf=1)
    cluster.start(0)
    cluster.register_all()
    for node, line in (
        ("s0", "s0 has no other replica to get its data from: its disk cannot be replaced"),
        ("m", "m has no other replica to get its data from: its disk cannot be replaced"),
        ("s7", "this cluster has no such node"),
        ("what", "'what' is no node; write s0, s0.1, m or m.1"),
    ):
        done = cluster.replace_disk(node)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"madkv replace-disk: {line}\n")


@pytest.mark.parametrize("error", [None, Interrupted("the leadership was lost"), InternalError("the manager failed")])
def test_an_answer_that_is_lost_is_not_asked_for_again(error: MadKVError | None) -> None:
    """Asked again, the managers might give up the disk that has come by then. An answer may also say that it is lost.

    A manager that leads proposes to give the disk up, and loses the leadership: the next leader may commit that.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with Process(madkv_command("replace-disk", "s0.1", "--managers", address)) as process:
            fields = codec.integer(b"version", codec.PROTOCOL_VERSION)
            fields += field(b"role", b"manager") + field(b"cluster", b"c")

            def accept() -> socket.socket:
                connection, _ = listening.accept()
                assert codec.HELLO in connection.recv(1 << 16)
                connection.sendall(codec.answer(b"1", fields))
                return connection

            accept().close()  # of which cluster is it?
            with accept() as connection:
                assert codec.REPLACE_DISK in connection.recv(1 << 16)
                if error is not None:
                    connection.sendall(codec.answer_error(b"2", error))
            assert process.wait() == 2
            assert "whether the disk was given up is not known" in process.output
            listening.settimeout(0)
            with pytest.raises(BlockingIOError):
                listening.accept()
