"""A network of its own for each node of a cluster: so that a node can be cut off while it runs. Linux, as root.

The tool that asks for it is started again in a network namespace of its own (`enter`), in which there is a bridge; each
node gets a namespace with one cable to it (a veth pair). All of it goes when the tool ends. A cable that is pulled
loses packets without a word to either side, as a switch does that has lost its power.
"""

import shutil
import subprocess
from collections.abc import Iterable

from madkv.testing import namespace
from madkv.testing.service import ServiceError
from madkv.testing.shape import Node

MARK = "MADKV_NETWORK"
BRIDGE = "madkv"
HUB = "10.77.0.1"
NAMESPACES = "/run/netns"


def is_possible() -> bool:
    """Whether this machine lets us: `unshare` and `ip` are there, and we may make namespaces."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    probe = "ip link add madkv0 type veth peer name madkv1 && ip link add madkv2 type bridge"
    done = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", probe], capture_output=True, check=False)
    return done.returncode == 0


def is_entered() -> bool:
    """Whether this program is in a network namespace of its own."""
    return namespace.is_entered(MARK)


def enter() -> None:
    """Become the same program in a network namespace of its own; returns in there, and at once when it is there."""
    prepare = f"mkdir -p {NAMESPACES} && mount -t tmpfs none {NAMESPACES} && ip link set lo up"
    namespace.enter(MARK, ["--net", "--mount"], prepare)


class Network:
    """Cables from a bridge to each node. It is made in the namespace that `enter` entered, and goes with it."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        assert is_entered(), "enter() first"
        self._numbers = {node: number for number, node in enumerate(nodes)}
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{HUB}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for node, number in self._numbers.items():
            _ip("netns", "add", str(node))
            _ip("link", "add", f"n{number}", "type", "veth", "peer", "name", "eth0", "netns", str(node))
            _ip("link", "set", f"n{number}", "master", BRIDGE, "up")
            _ip("-n", str(node), "addr", "add", f"{self.host(node)}/24", "dev", "eth0")
            _ip("-n", str(node), "link", "set", "eth0", "up")
            _ip("-n", str(node), "link", "set", "lo", "up")

    def host(self, node: Node) -> str:
        """Its address."""
        return f"10.77.0.{self._numbers[node] + 10}"

    def command(self, node: Node) -> list[str]:
        """What a command is put behind, to be run where the node is."""
        return ["ip", "netns", "exec", str(node)]

    def pull(self, node: Node) -> None:
        """Cut the node off from all others, clients included."""
        _ip("link", "set", f"n{self._numbers[node]}", "nomaster")

    def plug(self, node: Node) -> None:
        """Connect it again."""
        _ip("link", "set", f"n{self._numbers[node]}", "master", BRIDGE)

    def silence(self, node: Node) -> None:
        """Let it hear and not be heard: what it sends to the others is lost."""
        for other in self._others(node):
            _ip("-n", str(node), "route", "add", "blackhole", f"{other}/32")

    def unsilence(self, node: Node) -> None:
        """Let it be heard again."""
        for other in self._others(node):
            _ip("-n", str(node), "route", "del", "blackhole", f"{other}/32")

    def _others(self, node: Node) -> list[str]:
        return [HUB, *(self.host(other) for other in self._numbers if other != node)]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"ip {' '.join(words)}: {done.stderr.strip()}")
