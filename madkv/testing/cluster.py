"""A cluster on this machine: real processes, one for each node, that can be ended, stopped, and started one by one.

Everything lies under one directory: a node's durable files in `<root>/<node>`, what it says in `<root>/<node>.log`, and
`<root>/cluster.json`, which lets another process take the cluster over (`Cluster.load`).
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import attrs
import psutil

from madkv.errors import MadKVError, Rejected
from madkv.operate.ask import Status, ask, ask_map, ask_statuses
from madkv.operate.health import leader_of
from madkv.partitions import PartitionMap
from madkv.testing import certificates
from madkv.testing.checkout import ROOT
from madkv.testing.network import Network
from madkv.testing.node import twistd
from madkv.testing.ports import free_ports
from madkv.testing.service import ServiceError
from madkv.testing.shape import Node, Shape, ShapeError
from madkv.tls import OPERATOR, TLSFiles
from madkv.wire import codec
from madkv.wire.boxes import field

STATE = "cluster.json"
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
"""How long a node may take to end when it is asked to; then it is made to."""
LOOK_SECONDS = 0.1
LINES_SHOWN = 8


class ClusterError(ServiceError):
    """The cluster is not as it should be: a node ended, or does not get to work in time."""


class Cluster:
    """The nodes of one shape. In a `with` statement it is started, awaited, and ended."""

    def __init__(self, shape: Shape, root: Path, network: Network | None = None, tls: bool = False) -> None:
        """With a `network`, each node is where that has a place for it; else all are on this machine's loopback.

        With `tls`, certificates are made when the first node is started; from then on, and until it is left or this
        process ends, the environment has them for whatever this process calls or starts. Without, it has none then.
        """
        self.shape = shape if network is None else shape.on_hosts(network.host)
        self.root = root
        self._network = network
        self.tls = tls
        self._environment: dict[str, str | None] = {}  # as it was before, of what this cluster puts into it
        self._processes: dict[Node, psutil.Process] = {}
        """Those that were started and not ended by us, whether they live or not."""

    @classmethod
    def local(
        cls, root: Path, partitions: int, rf: int | None, managers: int = 1, tls: bool = False, http: bool = False
    ) -> Self:
        """A cluster on free ports; without `rf` one of project 2. With `http` its nodes show themselves."""
        ports = free_ports(
            Shape.ports_needed(partitions, rf, managers) + (managers + partitions * (rf or 1) if http else 0)
        )
        return cls(Shape.local(ports, partitions, rf, managers), root, tls=tls)

    @classmethod
    def load(cls, root: Path) -> Self:
        """The cluster that was started under `root`. Raises ClusterError when there is none."""
        try:
            state = json.loads((root / STATE).read_text())
            shape = Shape(**{name: _tuple(value) for name, value in state["shape"].items()})
            cluster = cls(shape, root, tls=state.get("tls", False))
            cluster._take_environment()
            for name, (pid, created) in state["processes"].items():
                node = cluster.shape.node(name)
                try:
                    process = psutil.Process(pid)
                    if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                        cluster._processes[node] = process
                except psutil.NoSuchProcess:
                    pass
        except FileNotFoundError:
            raise ClusterError(f"there is no cluster in {root}") from None
        except (ValueError, KeyError, TypeError, ShapeError) as error:
            raise ClusterError(f"{root / STATE} is not what it should be: {error}") from None
        return cluster

    def __enter__(self) -> Self:
        try:
            self.start_all()
            self.wait_until_serving()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    @property
    def address(self) -> str:
        """What clients are given."""
        return self.shape.client_address

    # --- One node ---------------------------------------------------------------------------------------------------

    def directory(self, node: Node) -> Path:
        """Where its durable files are."""
        return self.root / str(node)

    @property
    def certificates(self) -> Path:
        """Where those of all its nodes, and of its clients and its operator, are."""
        return (self.root / certificates.DIRECTORY).absolute()

    @property
    def operator(self) -> TLSFiles | None:
        """What is shown with calls that are for operators; None without TLS."""
        return certificates.files(self.certificates, OPERATOR) if self.tls else None

    def _take_environment(self) -> None:
        """Have the certificates of this cluster there, or none: those of another service are of no use with it."""
        if self.tls and not self.certificates.exists():
            certificates.make(self.certificates, certificates.hosts_of(self.shape), [certificates.USUAL_CLIENT])
        theirs = certificates.environment(self.certificates)
        self._environment = {name: os.environ.pop(name, None) for name in theirs}
        if self.tls:
            os.environ.update(theirs)

    def log(self, node: Node) -> Path:
        """What it has said, in all its lives."""
        return self.root / f"{node}.log"

    def is_running(self, node: Node) -> bool:
        """Whether its process is there; a stopped one is."""
        process = self._processes.get(node)
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    def pid(self, node: Node) -> int | None:
        """Its process; None when it does not run."""
        return self._processes[node].pid if self.is_running(node) else None

    def process(self, node: Node) -> psutil.Process:
        """Its process, also when that has ended by itself."""
        return self._processes[node]

    def program(self, node: Node) -> list[str]:
        """What runs twistd for a node; its options follow."""
        return twistd()

    def start(self, node: Node) -> None:
        """Start it on its directory, as it is; does not wait."""
        assert not self.is_running(node), f"{node} runs already"
        self.root.mkdir(parents=True, exist_ok=True)
        if not self._environment:
            self._take_environment()
        with self.log(node).open("ab") as log:
            self._processes[node] = psutil.Popen(
                [
                    *(self._network.command(node) if self._network else ()),
                    *self.program(node),
                    *self.shape.command(node, str(self.directory(node).absolute())),
                    *(certificates.options_of(self.certificates, str(node)) if self.tls else ()),
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._save()

    def kill(self, *nodes: Node) -> None:
        """End them at once, by SIGKILL, all at the same time."""
        self._end(signal.SIGKILL, nodes)

    def terminate(self, *nodes: Node) -> bool:
        """Ask them to end; whether they did in time. Those that do not are killed."""
        return self._end(signal.SIGTERM, nodes)

    def pause(self, node: Node) -> None:
        """Stop it in the middle of whatever it does."""
        self._processes[node].send_signal(signal.SIGSTOP)

    def resume(self, node: Node) -> None:
        """Let it go on."""
        self._processes[node].send_signal(signal.SIGCONT)

    def wipe(self, node: Node) -> None:
        """Lose its disk."""
        assert not self.is_running(node)
        shutil.rmtree(self.directory(node), ignore_errors=True)

    def replace_disk(self, node: Node, seconds: float = START_SECONDS_MAX) -> str | None:
        """Tell the managers that its disk is lost for good; None when they have noted it, else why not.

        The node must be down: then asking again, when an answer was lost, gives up no disk that has come meanwhile.
        Each manager is asked once at least, and again for so long.
        """
        why, named = "no manager answers", field(b"node", str(node).encode())
        ends = time.monotonic() + seconds
        while True:  # the one that leads may be the one that was lost
            for manager in self.shape.nodes("m"):
                try:
                    ask(self.shape.address(manager), codec.REPLACE_DISK, named, self.operator)
                except Rejected as error:
                    return str(error)
                except (OSError, MadKVError) as error:
                    why = f"{manager}: {error}"
                else:
                    return None
            if time.monotonic() >= ends:
                return why
            time.sleep(LOOK_SECONDS)

    def last_words(self, node: Node) -> str:
        """The last lines of its log."""
        try:
            lines = self.log(node).read_text(errors="backslashreplace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(f"  {node}: {line}" for line in lines[-LINES_SHOWN:])

    # --- All of them ------------------------------------------------------------------------------------------------

    def start_all(self) -> None:
        """Start whatever does not run."""
        for node in self.shape.nodes():
            if not self.is_running(node):
                self.start(node)

    def stop(self) -> bool:
        """Ask all to end, then make them; whether all ended in good order."""
        return self.terminate(*list(self._processes))

    def remove_files(self) -> list[str]:
        """Remove what the cluster has made, once it has ended; what else lies in its root, which then stays."""
        assert not any(map(self.is_running, self.shape.nodes()))
        for node in self.shape.nodes():
            self.wipe(node)
            self.log(node).unlink(missing_ok=True)
        if self.tls:
            shutil.rmtree(self.certificates, ignore_errors=True)
        self._scratch.unlink(missing_ok=True)
        (self.root / STATE).unlink(missing_ok=True)
        left = sorted(path.name for path in self.root.iterdir())
        if not left:
            self.root.rmdir()
        return left

    def fallen(self) -> list[Node]:
        """Those that ended although nobody here ended them."""
        return [node for node in self._processes if not self.is_running(node)]

    def check(self, when: str) -> None:
        """Raises ClusterError when a node has ended by itself."""
        if fallen := self.fallen():
            words = "\n".join(map(self.last_words, fallen))
            raise ClusterError(f"{listed(fallen)} ended {when}:\n{words}")

    def said(self) -> str:
        """The last lines of all logs."""
        return "\n".join(filter(None, map(self.last_words, self.shape.nodes())))

    def statuses(self, nodes: Iterable[Node] | None = None) -> dict[Node, Status | None]:
        """How each is, as it says itself; None for those that do not answer."""
        every = self.shape.nodes() if nodes is None else list(nodes)
        return dict(zip(every, ask_statuses(map(self.shape.address, every)), strict=True))

    def partition_map(self) -> PartitionMap:
        """What its managers say; for a cluster that serves."""
        partition_map = ask_map(self.address)
        assert partition_map is not None, "a cluster that serves has a map"
        return partition_map

    def leader(self, group: str) -> Node | None:
        """The leader of a group, as far as its members say."""
        return leader_of(self.statuses(self.shape.nodes(group)))

    def wait_until(self, holds: Callable[[], bool], what: str, seconds: float = START_SECONDS_MAX) -> None:
        """Wait for something. Raises ClusterError when it takes too long, or a node has ended meanwhile."""
        deadline = time.monotonic() + seconds
        while not holds():
            self.check(f"while {what} was awaited")
            if time.monotonic() > deadline:
                raise ClusterError(f"{what}: not within {seconds:.0f} s; the nodes said:\n{self.said()}")
            time.sleep(LOOK_SECONDS)

    def wait_until_serving(self) -> None:
        """Wait until each group has a leader that owns its keys, and a manager has the map."""
        self.wait_until(lambda: self._each_group_serves() and ask_map(self.address) is not None, "the whole cluster")

    def wait_until_caught_up(self, *nodes: Node) -> None:
        """Wait until these have applied all that their leaders have committed by now or later, and all have votes.

        One on a new disk gets its vote only then; before, the others of its group cannot be done without.
        """
        self.wait_until(self.catching_up(nodes), f"the catching up of {listed(nodes)}")

    def catching_up(self, nodes: Iterable[Node]) -> Callable[[], bool]:
        """To be asked again and again: whether each of these, at one look or another, had applied what its leader had
        committed at the first one.

        Not what is committed by then: of many nodes under load one or the other is always a moment behind.
        """
        waiting = set(nodes)
        targets: dict[str, int] = {}

        def look() -> bool:
            for group in {node.group for node in waiting}:
                statuses = self.statuses(self.shape.nodes(group))
                leader = leader_of(statuses)
                theirs = None if leader is None else statuses[leader]
                if theirs is not None:
                    target = targets.setdefault(group, theirs["commit"])
                    done = {node for node in self.shape.nodes(group) if _has_caught_up(statuses, node, theirs, target)}
                    waiting.difference_update(done)
            return not waiting

        return look

    def _each_group_serves(self) -> bool:
        statuses = self.statuses(self._processes)
        for group in self.shape.groups:
            leader = leader_of({node: status for node, status in statuses.items() if node.group == group})
            if leader is None or (leader.partition is not None and not (statuses[leader] or {}).get("epoch")):
                return False
        return True

    def _end(self, number: signal.Signals, nodes: Iterable[Node]) -> bool:
        ending = [(node, self._processes.pop(node)) for node in nodes if node in self._processes]
        for with_signal in (number, signal.SIGCONT):  # the second wakes one that was stopped, so that it can end
            for _, process in ending:
                try:
                    process.send_signal(with_signal)
                except psutil.NoSuchProcess:
                    pass
        _, alive = psutil.wait_procs([process for _, process in ending], STOP_SECONDS_MAX)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, STOP_SECONDS_MAX)
        if ending:
            self._save()
        return not alive

    def _save(self) -> None:
        processes = {}
        for node, process in self._processes.items():
            try:
                processes[str(node)] = (process.pid, process.create_time())
            except psutil.NoSuchProcess:
                continue
        self._scratch.write_text(
            json.dumps({"shape": attrs.asdict(self.shape), "tls": self.tls, "processes": processes}, indent=2) + "\n"
        )
        self._scratch.replace(self.root / STATE)

    @property
    def _scratch(self) -> Path:
        return self.root / f"{STATE}.new"


def _has_caught_up(statuses: Mapping[Node, Status | None], node: Node, leaders: Status, target: int) -> bool:
    mine = statuses[node]
    if mine is None:
        return False
    all_vote = all(len(each.get("voters", ())) == len(statuses) for each in (mine, leaders))
    return all_vote and mine.get("applied", -1) >= target and mine.get("term") == leaders["term"]


def listed(nodes: Iterable[Node]) -> str:
    """Nodes for people."""
    return ", ".join(map(str, nodes))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
