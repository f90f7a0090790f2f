"""Run a cluster on this machine: `./justw cluster::up`, and then `status`, `kill-node`, `start-node` and so on."""

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from madkv.errors import MadKVError
from madkv.limits import REPLICAS_MAX
from madkv.operate.ask import Status
from madkv.operate.health import leader_of, look_by_managers, slot_state
from madkv.testing import certificates
from madkv.testing.checkout import ROOT
from madkv.testing.cluster import STATE, Cluster, ClusterError, listed
from madkv.testing.ending import complain, run_tool
from madkv.testing.fleet import hold_interrupts, interrupt_on_terminate
from madkv.testing.health import report
from madkv.testing.options import Parser, add_shared, whole
from madkv.testing.rolling import restart_all
from madkv.testing.service import ServiceError
from madkv.testing.shape import Node, ShapeError

PARTITIONS, REPLICAS, MANAGERS = 2, 3, 3
"""Of a new cluster, where nothing else is said."""
REPLACED_SECONDS_MAX = 60.0


def described(cluster: Cluster) -> str:
    """A cluster by the options that make it."""
    shape = cluster.shape
    more = "".join(f" {name}=yes" for name, has in (("tls", cluster.tls), ("http", shape.http)) if has)
    return f"partitions={shape.partitions} rf={shape.rf or 0} managers={len(shape.managers)}{more}"


def _new(root: Path, options: argparse.Namespace) -> Cluster:
    if root.exists() and not root.is_dir():
        raise ClusterError(f"{root} is a file: root= is for a directory, which is made if it is not there")
    if root.exists() and any(root.iterdir()):
        raise ClusterError(f"{root} is no cluster's, and not empty: give another root=, or nothing")
    rf = REPLICAS if options.rf is None else options.rf or None
    managers = options.managers
    if rf is None and managers not in (None, 1):
        raise ShapeError(f"managers: with rf=0, as in project 2, there is 1, not {managers}")
    partitions = PARTITIONS if options.partitions is None else options.partitions
    count = 1 if rf is None else MANAGERS if managers is None else managers
    return Cluster.local(root, partitions, rf, count, certificates.are_wanted(options), options.http == "yes")


def _load(root: Path) -> Cluster:
    """The cluster in `root`. Raises ClusterError, which says what to do where there is none."""
    if root.exists() and not root.is_dir():
        raise ClusterError(f"{root} is a file: root= is for a cluster's directory")
    if not (root / STATE).exists():
        raise ClusterError(
            f"there is no cluster in {root}: `./justw cluster::up` makes one, root=DIRECTORY says where another one is"
        )
    return Cluster.load(root)


def _present(root: Path, options: argparse.Namespace) -> Cluster:
    tls = "yes" if certificates.are_wanted(options) else options.tls  # before this cluster's own are in the environment
    cluster = Cluster.load(root)
    shape = cluster.shape
    has: dict[str, int | str] = {"partitions": shape.partitions, "rf": shape.rf or 0, "managers": len(shape.managers)}
    asked = {name: getattr(options, name) for name in has}
    has["tls"], asked["tls"] = "yes" if cluster.tls else "no", tls
    has["http"], asked["http"] = "yes" if shape.http else "no", options.http
    if wrong := [f"{name}={value}" for name, value in asked.items() if value not in (None, has[name])]:
        raise ClusterError(
            f"the cluster in {root} has {described(cluster)}, for good, and not {' '.join(wrong)}: "
            "`./justw cluster::down` removes it, another root= makes another"
        )
    return cluster


@contextmanager
def _alone(root: Path, makes: bool) -> Iterator[None]:
    """Have no other recipe change the cluster in `root` meanwhile; with `makes`, that is made if it is not there.

    Each writes down what it knows of the cluster, and would forget what the other has started.
    """
    made = False
    if makes:
        try:
            root.mkdir(parents=True)
            made = True
        except FileExistsError:
            pass  # maybe by another recipe, this very moment
    try:
        held = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield  # no cluster, as the command is going to say
        return
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another recipe that is at work in {root}", file=sys.stderr, flush=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        if made and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        os.close(held)


def up(options: argparse.Namespace) -> int:
    """Start a cluster, or what does not run of the one that is there; wait until it serves.

    Broken off, it ends what it has started.
    """
    root: Path = options.root
    is_new = not (root / STATE).exists()
    cluster = _new(root, options) if is_new else _present(root, options)
    began = time.monotonic()
    idle = [node for node in cluster.shape.nodes() if not cluster.is_running(node)]
    if not is_new:
        print(f"the cluster is there already: {described(cluster)}; ", end="")
        print(f"started again: {listed(idle)}" if idle else "all of it runs", flush=True)
    started: list[Node] = []
    try:
        for node in idle:
            with hold_interrupts():  # else one in the middle of it would leave a process that nobody knows
                cluster.start(node)
                started.append(node)
        cluster.wait_until_serving()
        cluster.wait_until(lambda: None not in cluster.statuses(started).values(), f"an answer of {listed(started)}")
    except BaseException:
        cluster.terminate(*started)
        if started:
            left = "its files stay" if is_new else "all else is as it was"
            complain(f"madkv cluster: ended what this has started ({listed(started)}); {left} in {root}")
        raise
    print(f"the cluster serves after {time.monotonic() - began:.1f} s; files and logs are in {root}")
    return _report(cluster)


def down(options: argparse.Namespace) -> int:
    """End a cluster; unless it is kept, remove its files, and nothing else."""
    cluster = _load(options.root)
    in_order = cluster.stop()
    print(f"ended{'' if in_order else ', some by force'}; files {'kept' if options.keep == 'yes' else 'removed'}")
    if options.keep == "no" and (left := cluster.remove_files()):
        print(f"{options.root} stays: the cluster has not made {', '.join(left)}")
    return 0 if in_order else 1


def kill_node(options: argparse.Namespace) -> int:
    """End one node without asking it."""
    cluster = _load(options.root)
    node = cluster.shape.node(options.node)
    if not cluster.is_running(node):
        raise ClusterError(f"{node} does not run")
    cluster.kill(node)
    print(f"killed {node}")
    return 0


def start_node(options: argparse.Namespace) -> int:
    """Start one node again."""
    cluster = _load(options.root)
    node = cluster.shape.node(options.node)
    if cluster.is_running(node):
        raise ClusterError(f"{node} runs already")
    cluster.start(node)
    cluster.wait_until_caught_up(node)
    print(f"{node} has caught up")
    return 0


def rolling_restart(options: argparse.Namespace) -> int:
    """Restart every node, one after the other: each group's leader last, after it has handed over; the next one only
    when the last has caught up. Clients notice nothing, where groups have replicas."""
    cluster = _load(options.root)
    if down := [node for node in cluster.shape.nodes() if not cluster.is_running(node)]:
        raise ClusterError(f"{listed(down)}: not running, so others may be needed; `./justw cluster::up` starts all")
    for group in cluster.shape.groups:
        if len(cluster.shape.nodes(group)) == 1 and group != "m":
            print(f"{group} has one replica: calls to it wait while that is restarted")
    began = time.monotonic()
    restart_all(cluster, lambda text: print(text, flush=True), held=hold_interrupts)
    print(f"all nodes are restarted, after {time.monotonic() - began:.1f} s")
    return _report(cluster)


def why_needed(node: Node, group: dict[Node, Status | None]) -> str | None:
    """Why a group cannot do without a node, by how its members are; None when it can."""
    others = [each for each in group if each != node]
    if not others:
        return "there is no other replica to get its data from"
    leader = leader_of(group)
    if leader is None:
        return "it has no leader"
    voters = {int(member.partition("/")[0]) for member in (group[leader] or {}).get("voters", ())}
    # Who follows nobody is cut off, or has just begun; a learner cannot elect.
    able = [
        each
        for each in others
        if each.replica in voters and (status := group[each]) is not None and status.get("leader") is not None
    ]
    needed = len(group) // 2 + 1
    if len(able) < needed:
        return f"of its other replicas {listed(able) or 'none'} can vote just now, and {needed} are needed"
    return None


def replace_disk(options: argparse.Namespace) -> int:
    """Take one node's disk for lost: end it, empty its directory, have it replaced, wait until it has caught up."""
    cluster = _load(options.root)
    node = cluster.shape.node(options.node)
    if why := why_needed(node, cluster.statuses(cluster.shape.nodes(node.group))):
        raise ClusterError(f"group {node.group} cannot do without {node}: {why}")
    if why := cluster.replace_disk(node):
        raise ClusterError(why)
    print(f"the disk of {node} is given up; waiting until the new one has caught up", flush=True)
    cluster.kill(node)
    cluster.wipe(node)
    cluster.start(node)
    has_caught_up = cluster.catching_up([node])
    cluster.wait_until(
        lambda: has_caught_up() and slot_state(cluster.statuses(cluster.shape.nodes("m")), node) == "registered",
        f"the catching up of {node}",
        REPLACED_SECONDS_MAX,
    )
    print(f"{node} has caught up on an empty disk")
    return 0


def status(options: argparse.Namespace) -> int:
    """Print how every node is; 1 when something is wrong."""
    if options.managers is not None:
        certificates.take(options)
        return report(look_by_managers(options.managers), None, options.managers)
    try:
        return _report(_load(options.root))
    except ClusterError as error:
        hand = "`./justw cluster::status managers=HOST:PORT,…` looks at one that was started by hand"
        raise ClusterError(f"{error}; {hand}") from None


def _report(cluster: Cluster) -> int:
    statuses = cluster.statuses()
    code = report(statuses, {node: cluster.pid(node) for node in statuses}, cluster.address)
    for node, page in cluster.shape.pages().items():
        print(f"{'pages' if node == cluster.shape.nodes()[0] else ''.ljust(5)}  {str(node).ljust(6)}{page}")
    return code


def _root(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("a directory is needed")
    return Path(text)


COMMANDS = {
    "up": up,
    "status": status,
    "kill-node": kill_node,
    "start-node": start_node,
    "replace-disk": replace_disk,
    "rolling-restart": rolling_restart,
    "down": down,
}


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message when it makes no sense."""
    parser = Parser(prog="cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        each = commands.add_parser(name, prog=f"./justw cluster::{name}", description=command.__doc__)
        if name in ("kill-node", "start-node", "replace-disk"):
            each.add_argument("node", help="a node id, such as m.0 or s1.2")
        each.add_argument("--root", type=_root, default=ROOT / "backer.cluster", help="default: %(default)s")
        if name == "up":
            each.add_argument("--partitions", type=whole, help=f"of a new cluster (default: {PARTITIONS})")
            each.add_argument("--rf", type=whole, help=f"replicas of each; 0: as in project 2 (default: {REPLICAS})")
            each.add_argument("--managers", type=whole, help=f"1 to {REPLICAS_MAX} (default: {MANAGERS})")
            add_shared(each, "tls")
            each.add_argument("--http", choices=("yes", "no"), help="show itself in a browser (default: no)")
        elif name == "status":
            each.add_argument("--managers", help="addresses of all managers of a cluster that was started by hand")
            add_shared(each, "tls")
        elif name == "down":
            each.add_argument("--keep", choices=("yes", "no"), default="no", help="the files (default: no)")
    options, unknown = parser.parse_known_args(argv)
    if unknown:  # the one that all commands have in common would not know whose help to name
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = parse_options(argv)
    interrupt_on_terminate()
    try:
        if options.command == "status":
            return status(options)
        with _alone(options.root, makes=options.command == "up"):
            return COMMANDS[options.command](options)
    except (ServiceError, ShapeError, MadKVError) as error:
        print(f"madkv cluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    run_tool("madkv cluster", main)
