"""Who may import whom: the table of rooms, held against the imports in the sources."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

NOT_PURE = (
    *("asyncio", "multiprocessing", "os", "pathlib", "queue", "random", "secrets", "select", "selectors", "signal"),
    *("socket", "subprocess", "threading", "time", "uuid"),
)


class Room(NamedTuple):
    """What the modules of a room may import beside one another.

    `rooms` are other rooms; `packages` are those from outside the standard library; `never` are parts of the standard
    library. A dot-ended name in the table stands for a package with all that is in it.
    """

    rooms: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


PURE = (
    *(
        "madkv.addresses",
        "madkv.arguments",
        "madkv.counts",
        "madkv.errors",
        "madkv.limits",
        "madkv.operations",
        "madkv.sessions",
    ),
    *("madkv.partitions", "madkv.ranges", "madkv.session_rows", "madkv.settings", "madkv.state_machine"),
    *("madkv.tls", "madkv.values"),
    "madkv.raft.configuration",
)
PURE_ROOM = Room(PURE, ("attr", "attrs"), NOT_PURE)
# What every face of the client is made of: no Twisted and no asyncio, and of the wire what knows neither.
PURE_WIRE = ("madkv.wire.boxes", "madkv.wire.codec", "madkv.wire.unanswered")
PURE_CLIENT = tuple(f"madkv.client.{name}" for name in ("driver", "inflight", "links", "router", "scan", "session"))
PURE_CLIENT_ROOM = Room((*PURE, *PURE_WIRE, *PURE_CLIENT), (), NOT_PURE)
ASYNCIO_CLIENT = ("madkv.client.aio", "madkv.client.aio_connection")
SERVER = (*PURE, "madkv.raft.", "madkv.storage.", "madkv.wire.")
SERVER_PACKAGES = ("attr", "attrs", "twisted", "zope")
OUTSIDE_PRODUCTION = ("madkv.bench.", "madkv.bench.peers.", "madkv.testing.")

# The longest name that fits a module is its room.
ROOMS = {
    **dict.fromkeys(PURE, PURE_ROOM),
    "madkv.raft.": Room(PURE, ("attr", "attrs"), NOT_PURE),
    "madkv.storage.": Room((*PURE, "madkv.raft."), ("attr", "attrs", "lmdb", "sortedcontainers")),
    "madkv.wire.": Room((*PURE, "madkv.raft."), ("attr", "attrs", "twisted", "zope")),
    "madkv.wire.tls": Room(
        (*PURE, "madkv.wire.lines"),
        ("OpenSSL", "attr", "attrs", "cryptography", "service_identity", "twisted", "zope"),
    ),
    "madkv.server.": Room(SERVER, SERVER_PACKAGES),
    "madkv.manager.placement": PURE_ROOM,
    # The managers' group runs the same replica as a server's, and its process ends like one; what serves clients is
    # not theirs.
    "madkv.manager.": Room(
        (
            *(*PURE, "madkv.raft.", "madkv.storage.", "madkv.wire.", "madkv.manager."),
            *("madkv.server.disk", "madkv.server.host", "madkv.server.logs", "madkv.server.node", "madkv.server.parts"),
            *("madkv.server.peer_port", "madkv.server.peers", "madkv.server.process", "madkv.server.reactor"),
            *("madkv.server.replica", "madkv.monitor.option"),
        ),
        ("attr", "attrs", "twisted", "zope"),
    ),
    **dict.fromkeys(PURE_WIRE, Room((*PURE, *PURE_WIRE), (), NOT_PURE)),
    **dict.fromkeys(PURE_CLIENT, PURE_CLIENT_ROOM),
    **dict.fromkeys(ASYNCIO_CLIENT, Room((*PURE, *PURE_WIRE, *PURE_CLIENT, *ASYNCIO_CLIENT, "madkv.client.secure"))),
    "madkv.client.": Room((*PURE, "madkv.wire."), ("attr", "attrs", "twisted", "zope")),
    "madkv.operate.": Room(
        (*PURE, "madkv.client.", "madkv.manager.placement", "madkv.raft.", "madkv.storage.", "madkv.wire."),
        ("attr", "attrs"),
    ),
    # What daemons show of themselves; they know nothing of it but its option.
    "madkv.monitor.": Room(
        (*PURE, "madkv.operate.", "madkv.raft.", "madkv.server.parts", "madkv.server.process", "madkv.wire.lines"),
        ("attr", "attrs", "prometheus_client", "twisted"),
    ),
    "madkv.server.tap": Room((*SERVER, "madkv.server.", "madkv.monitor.option"), SERVER_PACKAGES),
    "madkv.cli": Room((*PURE, "madkv.client.", "madkv.operate.", "madkv.wire.")),
    "madkv.bench.": Room(("madkv.",), ("attr", "attrs", "hdrh", "matplotlib", "psutil", "sortedcontainers", "twisted")),
    "madkv.bench.peers.": Room(
        ("madkv.",),
        (
            "attr",
            "attrs",
            "google",
            "grpc",
            "hpack",
            "lmdb",
            "oxidedb",
            "pysyncobj",
            "redis",
            "sortedcontainers",
            "twisted",
        ),
    ),
    "madkv.testing.": Room(
        ("madkv.",), ("attr", "attrs", "cryptography", "psutil", "sortedcontainers", "twisted", "zope")
    ),
    "madkv.": Room(),
}

# Modules that the line client must not load: a driver starts a hundred clients, each at the cost of its imports.
HEAVY = ("asyncio", "attr", "attrs", "inspect", "logging", "madkv.tls", "ssl", "twisted", "zope")


def room_of(module: str) -> str:
    return max((name for name in ROOMS if within(module, name)), key=len)


def within(module: str, name: str) -> bool:
    return f"{module}.".startswith(name) if name.endswith(".") else module == name


def imports(module: str, source: str, is_package: bool = False) -> Iterator[str]:
    """Every module that a source names in an import, wherever it stands; `from x import y` counts as x.y, too."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{above}.{base}" if base else above
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """The imports of one source that its room does not allow."""
    name = room_of(module)
    room = ROOMS[name]
    found = []
    for imported in imports(module, source, is_package):
        top = imported.split(".")[0]
        if top == "madkv":
            # `from madkv.limits import X` names madkv.limits.X: what counts is the longest prefix in the table.
            parts = imported.split(".")
            prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            near = {name, *room.rooms} - {"madkv."}
            allowed = any(within(prefix, other) for prefix in prefixes for other in near)
            allowed = allowed or "madkv." in room.rooms or imported == "madkv.__version__"
        elif top in sys.stdlib_module_names:
            allowed = top not in room.never
        else:
            allowed = top in room.packages
        if not allowed:
            found.append(f"{module} imports {imported}")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted((ROOT / "madkv").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_stay_in_their_rooms(module: str, path: Path) -> None:
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


def test_every_module_has_a_room() -> None:
    """A new module at the top of madkv/ is named in the table before it can be imported by anything."""
    allowed = {"madkv", "madkv.__main__"}
    assert [module for module, _ in modules() if room_of(module) == "madkv." and module not in allowed] == []


def test_no_package_hides_twisted() -> None:
    assert list((ROOT / "twisted").rglob("__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("madkv.state_machine", "import time"),
        ("madkv.state_machine", "def f():\n    from os import urandom"),
        ("madkv.sessions", "from twisted.internet import defer"),
        ("madkv.operations", "from madkv.wire import boxes"),
        ("madkv.operations", "from . import wire"),
        ("madkv.client.session", "from madkv.server.replica import Replica"),
        ("madkv.client.line", "from ..storage import memory"),
        ("madkv.wire.boxes", "import madkv.server.service"),
        ("madkv.server.service", "from madkv.testing.fleet import Fleet"),
        ("madkv.server.service", "from madkv.client import router"),
        ("madkv.server.service", "import lmdb"),
        ("madkv.server.clustered", "from madkv.manager.placement import ClusterMachine"),
        ("madkv.manager.tap", "from madkv.server.service import ServerFactory"),
        ("madkv.manager.service", "from madkv.client.router import Router"),
        ("madkv.manager.placement", "from madkv.manager.service import ManagerFactory"),
        ("madkv.manager.placement", "from time import monotonic"),
        ("madkv.client.inflight", "import asyncio"),
        ("madkv.client.inflight", "from twisted.internet.defer import Deferred"),
        ("madkv.client.links", "from madkv.wire.caller import CallerProtocol"),
        ("madkv.client.aio", "from twisted.internet import reactor"),
        ("madkv.client.aio_connection", "from madkv.wire.protocol import BoxProtocol"),
        ("madkv.wire.unanswered", "from time import monotonic"),
        ("madkv.storage.memory", "import numpy"),
        ("madkv.limits", "from madkv import bench"),
    ],
)
def test_a_violation_is_caught(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("madkv.state_machine", "from madkv.operations import Put\nimport struct, attrs"),
        ("madkv.state_machine", "from . import operations, limits"),
        ("madkv.storage.memory", "from sortedcontainers import SortedDict\nfrom . import lmdb_store"),
        ("madkv.server.service", "from madkv import limits, wire\nfrom ..storage.memory import MemoryStore"),
        ("madkv.manager.tap", "from madkv.server.host import ReplicaHost\nfrom madkv.manager import placement"),
        ("madkv.client.line", "import os, socket, time\nfrom madkv.wire import boxes"),
        ("madkv.client.aio", "import asyncio\nfrom madkv.client.inflight import CallsInFlight"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_production_never_imports_what_is_around_it() -> None:
    for name, room in ROOMS.items():
        if name not in OUTSIDE_PRODUCTION:
            assert not set(room.rooms) & {"madkv.", *OUTSIDE_PRODUCTION}, name


def loaded_by(module: str) -> set[str]:
    """What an interpreter has loaded that imported this module and nothing else."""
    script = f"import sys; import {module}; print(*sys.modules)"
    # -S and no environment: what `site` loads for other packages is not ours to answer for.
    return set(
        subprocess.run(
            [sys.executable, "-E", "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_the_line_client_imports_nothing_heavy() -> None:
    assert sorted(loaded_by("madkv.client.__main__") & set(HEAVY)) == []


def test_the_asyncio_client_needs_no_other_package() -> None:
    """Without `site` no other could be found."""
    loaded = loaded_by("madkv.client.aio")
    assert {"asyncio", "madkv.client.inflight"} <= loaded
    assert sorted(loaded & {"attr", "attrs", "twisted", "zope"}) == []
