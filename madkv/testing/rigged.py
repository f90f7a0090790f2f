"""A cluster whose nodes see what others do not: syncs that fail, and a clock on the wall that is wrong.

Each node has `faults.c` preloaded, which looks at files in `<root>/faults`; so do clients, as long as the environment
has it (`for_clients`).
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from madkv.testing import preload
from madkv.testing.cluster import Cluster
from madkv.testing.shape import Node

SOURCE = Path(__file__).with_name("faults.c")
CLIENTS = "clients"
_SECONDS = struct.Struct("=q")


class RiggedCluster(Cluster):
    """The nodes of one shape, preloaded from `rig` on."""

    _library: Path | None = None

    def rig(self) -> None:
        """Have the nodes that are started from now on preloaded. Raises preload.NoCompiler."""
        self._faults.mkdir(parents=True)
        self._library = preload.build(SOURCE, self._faults)
        self.set_clocks([*map(str, self.shape.nodes()), CLIENTS], 0)

    def program(self, node: Node) -> list[str]:
        """twistd, preloaded."""
        if self._library is None:
            return super().program(node)
        return [
            "env",
            *(f"{name}={value}" for name, value in self._variables(str(node)).items()),
            *super().program(node),
        ]

    @contextmanager
    def for_clients(self) -> Iterator[None]:
        """Have what this process starts meanwhile preloaded, too: clients."""
        before = dict(os.environ)
        os.environ.update(self._variables(CLIENTS) if self._library else {})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def set_clocks(self, names: Iterable[str], seconds: int) -> None:
        """Have the clocks of these, nodes or CLIENTS, be wrong by so much."""
        for name in names:
            file = os.open(self._clock(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(file, _SECONDS.pack(seconds), 0)  # in one piece, and never shorter: it is mapped
            finally:
                os.close(file)

    def fail_syncs(self, node: Node) -> None:
        """From now on no sync of this node's comes about."""
        self._trigger(str(node)).touch()

    def let_sync(self, node: Node) -> None:
        """Undo `fail_syncs`."""
        self._trigger(str(node)).unlink()

    @property
    def _faults(self) -> Path:
        return self.root.absolute() / "faults"

    def _clock(self, name: str) -> Path:
        return self._faults / f"{name}.clock"

    def _trigger(self, name: str) -> Path:
        return self._faults / f"{name}.syncs"

    def _variables(self, name: str) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self._library),
            "MADKV_CLOCK": str(self._clock(name)),
            "MADKV_FAILING_SYNC": str(self._trigger(name)),
        }
