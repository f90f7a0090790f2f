"""The stores that are measured beside one another: what each is, what it makes durable, how to get and to start it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import attrs

import madkv
from madkv.bench.disk import sync_us
from madkv.bench.peers import launch
from madkv.bench.peers.launch import Deployment
from madkv.testing.checkout import revision
from madkv.testing.cluster import Cluster
from madkv.testing.shape import Node

RF = "madkv-rf"
TLS = "-tls"
"""How the names of systems end that have TLS."""
SLOWER = 50


@attrs.frozen
class System:
    """One store in one shape."""

    name: str
    title: str
    durability: str
    """What is on which disks when a write is acknowledged."""
    remarks: str
    """Its settings, its client, and what else one has to know to judge its figures."""
    missing: Callable[[], str | None]
    """What has to be done to have it; None when it is there."""
    version: Callable[[], str]
    start: Callable[[Path, bool], AbstractContextManager[Deployment]]
    """Start it on an empty directory; it is ended with the context.

    The second argument asks for an order of keys, where that is not there by itself.
    """
    is_default: bool = True
    """Whether it is measured where no names are given."""
    only: frozenset[str] | None = None
    """The cells that it takes part in; None for all that its clients can do."""


@contextmanager
def _madkv(root: Path, partitions: int, rf: int, managers: int, tls: bool = False) -> Iterator[Deployment]:
    with Cluster.local(root, partitions=partitions, rf=rf, managers=managers, tls=tls) as cluster:
        yield _deployed(cluster)


def _deployed(cluster: Cluster) -> Deployment:
    return Deployment(
        client=[sys.executable, "-m", "madkv.client", "--managers", cluster.address],
        pipelined=["madkv", cluster.address],
        pids=[pid for node in cluster.shape.nodes() if (pid := cluster.pid(node)) is not None],
    )


class _SlowDiskCluster(Cluster):
    """The syncs of one of its servers take SLOWER times as long as they do on this disk."""

    slow_node: Node
    slow_us: int

    def program(self, node: Node) -> list[str]:
        python, *twistd = super().program(node)
        if node != self.slow_node:
            return [python, *twistd]
        return [python, "-m", "madkv.bench.slowed", str(self.slow_us), *twistd]


@contextmanager
def _madkv_with_a_slow_disk(root: Path) -> Iterator[Deployment]:
    cluster = _SlowDiskCluster.local(root, partitions=1, rf=3, managers=3)
    cluster.slow_node = cluster.shape.nodes("s0")[-1]
    cluster.slow_us = int((SLOWER - 1) * sync_us(root))
    with cluster:
        while cluster.leader("s0") == cluster.slow_node:  # it is to follow: asked to end, it hands over
            cluster.terminate(cluster.slow_node)
            cluster.start(cluster.slow_node)
            cluster.wait_until_serving()
        yield _deployed(cluster)


def _of_madkv(rf: int, managers: int, partitions: int = 1, tls: bool = False) -> System:
    several = rf > 1
    return System(
        name=f"{RF}{rf}" + (f"-p{partitions}" if partitions > 1 else "") + (TLS if tls else ""),
        title=f"MadKV, rf {rf}" + (f", {partitions} partitions" if partitions > 1 else "") + (", TLS" if tls else ""),
        durability=f"LMDB, synced at each commit; on the disks of {f'{rf // 2 + 1} of {rf}' if several else 'the one'}",
        remarks=f"defaults; {partitions} partition{'s' if partitions > 1 else ''}, {managers} "
        f"manager{'s' if several else ''} running; its own line client"
        + ("; TLS 1.3 with certificates on both sides of every connection" if tls else ""),
        missing=lambda: None,
        version=lambda: f"{madkv.__version__} ({revision()})",
        start=lambda root, ordered: _madkv(root, partitions, rf, managers, tls),
        is_default=partitions == 1 and not tls,
    )


_ETCD_DURABILITY = "write-ahead log, synced before each acknowledgement; on the disks of 2 of 3"
_SCANLESS = "a SWAP is one Put with prev_kv; reads linearizable; clients talk to the leader"

SYSTEMS: tuple[System, ...] = (
    _of_madkv(3, 3),
    _of_madkv(1, 1),
    _of_madkv(3, 3, partitions=5),
    _of_madkv(3, 3, tls=True),
    System(
        name=f"{RF}3-slow",
        title=f"MadKV, rf 3, one follower's disk {SLOWER} times slower",
        durability="LMDB, synced at each commit; on the disks of 2 of 3",
        remarks=f"as rf 3; each commit of one follower takes longer by {SLOWER - 1} times what a sync takes here",
        missing=lambda: None,
        version=lambda: f"{madkv.__version__} ({revision()})",
        start=lambda root, ordered: _madkv_with_a_slow_disk(root),
        is_default=False,
    ),
    System(
        name="etcd",
        title="etcd, grpcio clients",
        durability=_ETCD_DURABILITY,
        remarks=f"defaults, three nodes; {_SCANLESS}, over grpcio",
        missing=lambda: (
            launch.missing_program("etcd", "etcd-server") or launch.missing_module("grpc", "google.protobuf")
        ),
        version=lambda: f"{launch.etcd_version()}, grpcio {launch.module_version('grpcio')}",
        start=lambda root, ordered: launch.etcd(root, "etcd_line"),
    ),
    System(
        name="etcd-thin",
        title="etcd, thin clients",
        durability=_ETCD_DURABILITY,
        remarks=f"the same servers; {_SCANLESS}, gRPC's bytes by hand over a socket, as lean as MadKV's own",
        missing=lambda: (
            launch.missing_program("etcd", "etcd-server") or launch.missing_module("hpack", "google.protobuf")
        ),
        version=launch.etcd_version,
        start=lambda root, ordered: launch.etcd(root, "etcd_thin"),
    ),
    System(
        name="pysyncobj",
        title="PySyncObj",
        durability="its journal, with the msync added that it lacks; on the disks of 2 of 3",
        remarks="three nodes, appendEntriesUseBatch=False; every call goes through its log, reads too, since it has no "
        "other linearizable read; clients talk to the leader over a socket of ours, which tries again what the library "
        "drops",
        missing=lambda: launch.missing_module("pysyncobj"),
        version=lambda: launch.module_version("pysyncobj"),
        start=lambda root, ordered: launch.pysyncobj(root, sync=True),
    ),
    System(
        name="pysyncobj-unsynced",
        title="PySyncObj as it comes",
        durability="NOT DURABLE: its journal is a mapped file that it never syncs",
        remarks="as above, without the msync",
        missing=lambda: launch.missing_module("pysyncobj"),
        version=lambda: launch.module_version("pysyncobj"),
        start=lambda root, ordered: launch.pysyncobj(root, sync=False),
        is_default=False,
    ),
    System(
        name="oxidedb",
        title="OxideDB",
        durability="SQLite, with synchronous=FULL, which it does not set itself; on the disks of 2 of 3",
        remarks="three nodes, one shard; a PUT or SWAP is a transaction that reads the old value (its own plain write "
        "is one that does not read); transactions on one key wait for one another's locks; "
        "reads linearizable; its own client, over grpcio",
        missing=lambda: launch.missing_module("oxidedb", to_get="oxidedb==0.1.0"),
        version=lambda: launch.module_version("oxidedb"),
        start=lambda root, ordered: launch.oxidedb(root),
    ),
    System(
        name="redis",
        title="Redis",
        durability="append-only file, appendfsync always; on its one disk",
        remarks="one server, no snapshots beside the file; redis-py with hiredis; for E alone a sorted set of the "
        "keys, written with each pair, since Redis keeps no order of strings",
        missing=lambda: launch.missing_program("redis-server", "redis-server") or launch.missing_module("redis"),
        version=launch.redis_version,
        start=launch.redis,
    ),
    System(
        name="floor",
        title="bare floor",
        durability="LMDB, synced at each commit; on the disks of 2 of 3",
        remarks="no store: three processes, two sockets, LMDB commits, nothing else",
        missing=lambda: None,
        version=lambda: f"of MadKV {madkv.__version__}",
        start=lambda root, ordered: launch.floor(root),
        only=frozenset({"put-1"}),
    ),
)

BY_NAME = {system.name: system for system in SYSTEMS}
DEFAULTS = [system.name for system in SYSTEMS if system.is_default]


def why_no_tls(names: Sequence[str]) -> str | None:
    """Why there is nothing to measure with TLS among these systems; None when there is."""
    if any(name.endswith(TLS) for name in names):
        return None
    secured = ", ".join(name for name in BY_NAME if name.endswith(TLS))
    return f"{', '.join(names)}: without TLS; with it there is {secured}"


def chosen(names: Sequence[str]) -> tuple[list[System], dict[str, str]]:
    """Those of these systems that are there, and what is to be done for each that is not. Raises KeyError."""
    there, skipped = [], {}
    for name in names:
        system = BY_NAME[name]
        if why := system.missing():
            skipped[name] = why
        else:
            there.append(system)
    return there, skipped
