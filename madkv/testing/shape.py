"""The shape of a cluster: its nodes by their ids, their addresses, and the command line of each. Pure.

Node ids: `m` and `s0`, `s1`, … in project 2, whose servers have no replicas; `m.0`, … and `s<partition>.<replica>`,
such as `s1.0`, in project 3. Lists of servers count first by partition, then by replica.
"""

from collections.abc import Callable, Sequence
from typing import Self

import attrs

from madkv.addresses import parse_address, parse_addresses, show_address
from madkv.errors import InvalidArgument
from madkv.limits import PARTITIONS_MAX, REPLICAS_MAX
from madkv.operate import nodes
from madkv.operate.nodes import Node

REPLICATION_FACTORS = tuple(range(1, REPLICAS_MAX + 1, 2))
NONE = "none"
"""What stands for a list without addresses."""


class ShapeError(Exception):
    """Lists or numbers that do not fit together; one line."""


def parse_node(text: str) -> Node:
    """Read a node id. Raises ShapeError."""
    try:
        return nodes.parse_node(text)
    except InvalidArgument as error:
        raise ShapeError(str(error)) from None


def addresses(name: str, text: str) -> tuple[str, ...]:
    """A list of addresses as recipes take it, or `none`. Raises ShapeError for what is no address, or comes twice."""
    if text.strip() in ("", NONE):
        return ()
    try:
        return tuple(map(show_address, parse_addresses(text)))
    except InvalidArgument as error:
        raise ShapeError(f"{name}: {error}") from None


@attrs.frozen
class Shape:
    """What every process of one cluster is told alike. Raises ShapeError when it does not fit together."""

    managers: tuple[str, ...]
    manager_p2ps: tuple[str, ...]
    """Empty in project 2, and so are the servers'."""
    rf: int | None
    """Replicas of each partition; None in project 2, whose nodes have no replica numbers."""
    servers: tuple[str, ...]
    server_p2ps: tuple[str, ...]
    http: tuple[str, ...] = ()
    """Where each node shows itself, in the order of `nodes`; empty: none does."""

    def __attrs_post_init__(self) -> None:
        if not self.servers:
            raise ShapeError("servers: at least one is needed")
        if self.rf is None:
            if len(self.managers) != 1:
                raise ShapeError(f"manager: one address is needed, not {len(self.managers)}")
        else:
            if self.rf not in REPLICATION_FACTORS:
                raise ShapeError(f"server_rf: {self.rf} is none of {_listed(REPLICATION_FACTORS)}")
            if len(self.managers) not in REPLICATION_FACTORS:
                raise ShapeError(f"managers: {len(self.managers)} addresses, not {_listed(REPLICATION_FACTORS)}")
            if len(self.servers) % self.rf:
                raise ShapeError(f"servers: {len(self.servers)} addresses are no whole number of groups of {self.rf}")
            for name, p2ps, of in (
                ("manager_p2ps", self.manager_p2ps, self.managers),
                ("server_p2ps", self.server_p2ps, self.servers),
            ):
                if len(p2ps) != len(of):
                    raise ShapeError(f"{name}: {len(p2ps)} addresses for {len(of)} processes")
        if self.partitions > PARTITIONS_MAX:
            raise ShapeError(f"servers: {self.partitions} partitions are more than {PARTITIONS_MAX}")

    @classmethod
    def project_2(cls, manager: str, servers: str) -> Self:
        """A manager, and servers that are a partition each."""
        return cls(addresses("manager", manager), (), None, addresses("servers", servers), ())

    @classmethod
    def project_3(cls, managers: str, manager_p2ps: str, server_rf: str, servers: str, server_p2ps: str) -> Self:
        """Replicated managers and servers."""
        if not (server_rf.isascii() and server_rf.isdigit() and len(server_rf) < 4):
            raise ShapeError(f"server_rf: {server_rf!r} is no whole number")
        return cls(
            addresses("managers", managers),
            addresses("manager_p2ps", manager_p2ps),
            int(server_rf),
            addresses("servers", servers),
            addresses("server_p2ps", server_p2ps),
        )

    @classmethod
    def local(cls, ports: Sequence[int], partitions: int, rf: int | None, managers: int = 1) -> Self:
        """A cluster on this machine that takes the first `ports_needed` of these ports, and shows itself on the others,
        if there are any: one for each node.
        """
        left = iter(f"127.0.0.1:{port}" for port in ports)

        def take(count: int) -> tuple[str, ...]:
            return tuple(next(left) for _ in range(count))

        servers = partitions * (rf or 1)
        if rf is None:
            return cls(take(1), (), None, take(servers), (), tuple(left))
        return cls(take(managers), take(managers), rf, take(servers), take(servers), tuple(left))

    def on_hosts(self, host: Callable[[Node], str]) -> Self:
        """The same with each node on another host."""

        def moved(nodes: Sequence[Node], old: Sequence[str]) -> tuple[str, ...]:
            return tuple(f"{host(node)}:{_port(each)}" for node, each in zip(nodes, old, strict=False))

        managers = self.nodes("m")
        servers = [node for node in self.nodes() if node.partition is not None]
        return attrs.evolve(
            self,
            managers=moved(managers, self.managers),
            manager_p2ps=moved(managers, self.manager_p2ps),
            servers=moved(servers, self.servers),
            server_p2ps=moved(servers, self.server_p2ps),
        )

    @staticmethod
    def ports_needed(partitions: int, rf: int | None, managers: int = 1) -> int:
        """How many ports `local` takes. Raises ShapeError for numbers that make no cluster."""
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise ShapeError(f"partitions: {partitions} is none of 1 to {PARTITIONS_MAX}")
        for name, number in (("rf", 1 if rf is None else rf), ("managers", managers)):
            if number not in REPLICATION_FACTORS:
                raise ShapeError(f"{name}: {number} is none of {_listed(REPLICATION_FACTORS)}")
        return 1 + partitions if rf is None else 2 * (managers + partitions * rf)

    def pages(self) -> dict[Node, str]:
        """Where the nodes show themselves, of those that do."""
        return dict(zip(self.nodes(), (f"http://{address}/" for address in self.http), strict=False))

    @property
    def project(self) -> str:
        """The module of recipes that knows this shape."""
        return "p2" if self.rf is None else "p3"

    @property
    def partitions(self) -> int:
        """How many there are."""
        return len(self.servers) // (self.rf or 1)

    @property
    def client_address(self) -> str:
        """What clients are given."""
        return ",".join(self.managers)

    @property
    def groups(self) -> list[str]:
        """All Raft groups: the managers', then each partition's."""
        return ["m", *(f"s{partition}" for partition in range(self.partitions))]

    def nodes(self, group: str | None = None) -> list[Node]:
        """All nodes, managers first, or those of one group."""
        if self.rf is None:
            every = [Node(None, None), *(Node(partition, None) for partition in range(self.partitions))]
        else:
            every = [Node(None, replica) for replica in range(len(self.managers))]
            every += [Node(partition, replica) for partition in range(self.partitions) for replica in range(self.rf)]
        return [node for node in every if group in (None, node.group)]

    def node(self, text: str) -> Node:
        """The node of that id. Raises ShapeError when there is none."""
        node = parse_node(text)
        if node not in self.nodes():
            every = [str(each) for each in self.nodes()]
            known = ", ".join(every if len(every) <= 12 else [*every[:11], "…", every[-1]])
            raise ShapeError(f"there is no {text} in this cluster; its nodes are {known}")
        return node

    def address(self, node: Node) -> str:
        """Where clients and tools reach it."""
        return self.managers[node.replica or 0] if node.partition is None else self.servers[self._place(node)]

    def addresses(self, node: Node) -> list[str]:
        """Where anybody reaches it: clients and tools first, then the other replicas, if there are any."""
        p2ps = self.manager_p2ps if node.partition is None else self.server_p2ps
        place = (node.replica or 0) if node.partition is None else self._place(node)
        return [self.address(node), *p2ps[place : place + 1]]

    def command(self, node: Node, directory: str) -> list[str]:
        """The plugin of twistd and its options that run the node, with its durable files in `directory`."""
        shown = ["--http", self.http[self.nodes().index(node)]] if self.http else []
        if node.partition is None:
            return ["madkv-manager", *self._manager(node), "--backer", directory, *shown]
        return ["madkv-server", *self._server(node, node.partition), "--backer", directory, *shown]

    def _manager(self, node: Node) -> list[str]:
        options = ["--man-port", _port(self.address(node)), "--servers", ",".join(self.servers)]
        if node.replica is None:
            return options
        options += ["--replica", str(node.replica), "--p2p-port", _port(self.manager_p2ps[node.replica])]
        return [*options, "--peers", _others(self.manager_p2ps, node.replica), "--server-rf", str(self.rf)]

    def _server(self, node: Node, partition: int) -> list[str]:
        options = ["--partition", str(partition), "--managers", ",".join(self.managers)]
        options += ["--api-port", _port(self.address(node))]
        if node.replica is None or self.rf is None:
            return options
        group = self.server_p2ps[partition * self.rf : (partition + 1) * self.rf]
        options += ["--replica", str(node.replica), "--p2p-port", _port(group[node.replica])]
        return [*options, "--peers", _others(group, node.replica)]

    def _place(self, node: Node) -> int:
        assert node.partition is not None
        return node.partition * (self.rf or 1) + (node.replica or 0)


def _port(address: str) -> str:
    return str(parse_address(address)[1])


def _others(every: Sequence[str], replica: int) -> str:
    return ",".join(each for number, each in enumerate(every) if number != replica) or NONE


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
