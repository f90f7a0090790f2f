"""How each peer is started, on free ports and an empty directory, and how one sees that it is not installed."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from madkv.testing.ports import free_ports
from madkv.testing.service import START_SECONDS_MAX, Service, ServiceError, is_listening

HOST = "127.0.0.1"
LEADER_SECONDS_MAX = 30.0
LOOK_SECONDS = 0.05
ASK_SECONDS_MAX = 2.0
OXIDEDB_PORTS_MORE = (1000, 1001)
"""How far behind a node's port lie those of its groups."""
ORDERED = "/ordered"
"""Asks the Redis client to keep an order of keys."""


@attrs.frozen
class Deployment:
    """A store that runs."""

    client: Sequence[str]
    """The command of a line client."""
    pids: Sequence[int]
    """Its server processes."""
    pipelined: Sequence[str] = ()
    """What `madkv.bench.pipelined` is given to reach it; empty when it has no client with many calls in flight."""
    extra: Callable[[], Mapping[str, float]] = dict
    """Figures that the store itself has to add, to be asked for when its clients have gone."""


def missing_program(program: str, package: str) -> str | None:
    """What to do when the program is not on the PATH."""
    if shutil.which(program):
        return None
    return f"no program `{program}` on the PATH: apt-get install {package} (its service need not run)"


def missing_module(*modules: str, to_get: str = "-e '.[bench]'") -> str | None:
    """What to do when one of these modules cannot be imported."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"no Python module `{module}`: .venv/bin/pip install {to_get}"
    return None


def module_version(distribution: str) -> str:
    """The version of an installed distribution."""
    return importlib.metadata.version(distribution)


def etcd_version() -> str:
    """The server's."""
    return _said("etcd", "--version").splitlines()[0].rpartition(" ")[2]


def redis_version() -> str:
    """The server's, and the client library's."""
    words = dict(word.partition("=")[::2] for word in _said("redis-server", "--version").split() if "=" in word)
    return f"{words.get('v', 'unknown')}, redis-py {module_version('redis')}"


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _wait_for_leader(addresses: Sequence[str], leads: Callable[[str], bool], service: Service) -> str:
    """The address of the node that leads. Raises ServiceError when none does in time."""
    deadline = time.monotonic() + LEADER_SECONDS_MAX
    why = "none says that it leads"
    while time.monotonic() < deadline:
        for address in addresses:
            try:
                if leads(address):
                    return address
            except Exception as error:  # of whatever kind: it may be starting
                why = f"{address}: {error}"
        time.sleep(LOOK_SECONDS)
    raise ServiceError(f"no leader within {LEADER_SECONDS_MAX:g} s ({why}); the nodes said:\n{service.said()}")


@contextmanager
def etcd(root: Path, client: str) -> Iterator[Deployment]:
    """Three members, and line clients of the module `client` at the one that leads."""
    # Only here: what it needs may not be installed.
    from madkv.bench.peers import etcd_thin

    ports = free_ports(6)
    urls = [f"http://{HOST}:{port}" for port in ports]
    cluster = ",".join(f"n{number}={urls[number + 3]}" for number in range(3))
    commands = [
        [
            *("etcd", "--name", f"n{number}", "--data-dir", str(root / f"n{number}")),
            *("--listen-client-urls", urls[number], "--advertise-client-urls", urls[number]),
            *("--listen-peer-urls", urls[number + 3], "--initial-advertise-peer-urls", urls[number + 3]),
            *("--initial-cluster", cluster, "--initial-cluster-state", "new"),
            *("--logger", "zap", "--log-level", "warn"),
        ]
        for number in range(3)
    ]
    with Service([], commands, ports[:3]) as service:
        addresses = [f"{HOST}:{port}" for port in ports[:3]]
        leader = _wait_for_leader(addresses, lambda address: etcd_thin.status(address, ASK_SECONDS_MAX)[1], service)
        yield Deployment(
            client=[sys.executable, "-m", f"madkv.bench.peers.{client}", leader],
            pids=service.pids,
            pipelined=["etcd", leader] if client == "etcd_thin" else [],
        )


@contextmanager
def pysyncobj(root: Path, sync: bool) -> Iterator[Deployment]:
    """Three nodes, and line clients at the one that leads."""
    from madkv.bench.peers import framed

    ports = free_ports(6)
    peers = [f"{HOST}:{port}" for port in ports[3:]]
    with_setting = ["env", f"MADKV_PYSYNCOBJ_SYNC={'yes' if sync else 'no'}"]
    commands = [
        [
            *(*with_setting, sys.executable, "-m", "madkv.bench.peers.pysyncobj_node", str(ports[number])),
            *(peers[number], ",".join(peer for peer in peers if peer != peers[number]), str(root / f"n{number}")),
        ]
        for number in range(3)
    ]
    with Service([], commands, ports[:3]) as service:
        addresses = [f"{HOST}:{port}" for port in ports[:3]]
        leader = _wait_for_leader(addresses, lambda address: framed.leads(address, ASK_SECONDS_MAX), service)
        yield Deployment(client=[sys.executable, "-m", framed.__name__, leader], pids=service.pids)


@contextmanager
def oxidedb(root: Path) -> Iterator[Deployment]:
    """Three nodes of one shard."""
    module = [sys.executable, "-m", "madkv.bench.peers.oxidedb_line"]
    ports = _oxidedb_ports()
    commands = [
        [
            *(*module, "node", "--node-id", str(number), "--port", str(port), "--data-dir", str(root / f"n{number}")),
            *("--peers", ",".join(f"{n}@{HOST}:{other}" for n, other in enumerate(ports, 1) if n != number)),
            *("--num-shards", "1", "--no-stdin-watch"),
        ]
        for number, port in enumerate(ports, 1)
    ]
    with Service([], commands, ports) as service:
        client = [*module, ",".join(f"{HOST}:{port}" for port in ports)]

        def serves(_: str) -> bool:
            done = subprocess.run(
                client, input=b"GET madkv-ready\nSTOP\n", capture_output=True, timeout=START_SECONDS_MAX
            )
            return done.returncode == 0

        _wait_for_leader([client[-1]], serves, service)
        yield Deployment(client=client, pids=service.pids)


def _oxidedb_ports() -> list[int]:
    """A port for each node, behind which the two others that it takes are free as well."""
    found = [
        port for port in free_ports(30) if not any(is_listening(port + distance) for distance in OXIDEDB_PORTS_MORE)
    ]
    return found[:3]


@contextmanager
def redis(root: Path, ordered: bool) -> Iterator[Deployment]:
    """One server that syncs every write."""
    (port,) = free_ports(1)
    command = [
        *("redis-server", "--bind", HOST, "--port", str(port), "--dir", str(root), "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "always"),
    ]
    with Service([], [command], [port]) as service:
        address = f"{HOST}:{port}{ORDERED if ordered else ''}"
        yield Deployment(client=[sys.executable, "-m", "madkv.bench.peers.redis_line", address], pids=service.pids)


@contextmanager
def floor(root: Path) -> Iterator[Deployment]:
    """A leader and two followers."""
    from madkv.bench.peers import floor as program
    from madkv.bench.peers import framed

    ports = free_ports(3)
    module = [sys.executable, "-m", program.__name__]
    followers = [[*module, "follower", str(port), str(root / f"f{port}")] for port in ports[1:]]
    with Service([], followers, ports[1:]) as service:
        leading = [
            *(*module, "leader", str(ports[0]), str(root / "leader")),
            *(f"{HOST}:{port}" for port in ports[1:]),
        ]
        with Service([], [leading], ports[:1]) as leader:
            address = f"{HOST}:{ports[0]}"
            yield Deployment(
                client=[sys.executable, "-m", framed.__name__, address],
                pids=[*leader.pids, *service.pids],
                extra=lambda: {"inside_p50_us": program.inside_p50_us(address)},
            )
