"""`./justw demo`: a cluster of its own, clients at work on it, its leader killed under them, every answer checked."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from madkv.testing import certificates, fuzz
from madkv.testing.cluster import Cluster
from madkv.testing.ending import run_tool
from madkv.testing.fleet import interrupt_on_terminate
from madkv.testing.health import table
from madkv.testing.mischief import Mischief, pauses
from madkv.testing.options import Parser, add_shared
from madkv.testing.service import ServiceError
from madkv.testing.transcript import Transcript

MANAGERS, PARTITIONS, REPLICAS = 3, 2, 3
CLIENTS = 5
BEFORE_SECONDS, DOWN_SECONDS, AFTER_SECONDS = 3.0, 3.0, 2.0
"""How long the clients work before the leader is killed, while it is down, and once it has caught up."""


class DemoFailed(Exception):
    """A step went wrong; its output has been shown."""


class Indented(Transcript):
    """Says what a tool says, as a part of what the demo says."""

    def say(self, text: str) -> None:
        """A line that stays, a little to the right."""
        super().say(f"  {text}")


def say(text: str = "") -> None:
    """One line for whoever watches."""
    print(text, flush=True)


def kill_the_leader(mischief: Mischief) -> None:
    """What happens beside the clients."""
    cluster = mischief.cluster
    mischief.wait(BEFORE_SECONDS)
    leader = mischief.leader("s0")

    def heal() -> None:
        mischief.wait(DOWN_SECONDS)
        cluster.start(leader)
        mischief.tell(f"{leader} is started again, on its disk as it was left; meanwhile {mischief.leader('s0')} leads")

    mischief.fault("killed (SIGKILL), the leader of partition 0", [leader], lambda: cluster.kill(leader), heal)
    mischief.wait(AFTER_SECONDS)
    mischief.run.enough = True


def work(cluster: Cluster, just: str) -> None:
    """Have clients call the cluster, and its leader killed. Raises DemoFailed."""
    partition_map = cluster.partition_map()
    options = [str(CLIENTS), "yes", "--module", "p3", "--address", cluster.address, "--just", just]
    mischief = Mischief(cluster, kill_the_leader, lambda text: out.say(text))
    with Indented(None) as out:
        if not fuzz.fuzz(fuzz.parse_options(options), out, mischief.beside):
            raise DemoFailed("an answer was wrong, or none came")
    (fault,) = mischief.faults
    pause, _ = pauses(fault, partition_map, mischief.run.history)
    say()
    say(f"From the kill to the next write that its partition acknowledged: {pause:.2f} s. Nothing was lost: each key")
    say("was read back at the end, and for every key one order explains all answers, from first to last.")


def main(argv: Sequence[str] | None = None) -> int:
    """The demo; exit status 0 when everything in it succeeded."""
    parser = Parser(prog="./justw demo", description=__doc__)
    add_shared(parser, "just", "tls")
    options = parser.parse_args(argv)
    interrupt_on_terminate()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="madkv-demo-") as root:
            say(f"Starting {MANAGERS} managers and {PARTITIONS} partitions of {REPLICAS} replicas, each a process …")
            tls = certificates.are_wanted(options)
            with Cluster.local(Path(root), PARTITIONS, REPLICAS, MANAGERS, tls) as cluster:
                statuses = cluster.statuses()
                say("\n".join(f"  {line}" for line in table(statuses, {node: cluster.pid(node) for node in statuses})))
                say()
                say(
                    f"{CLIENTS} clients call it at random, on the same keys, while the leader of partition 0 is killed:"
                )
                work(cluster, options.just)
    except (DemoFailed, ServiceError, OSError) as error:
        say(f"Demo FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        say("Demo interrupted; everything that it started is stopped.")
        return 130
    say()
    say(f"Demo passed in {time.monotonic() - began:.0f} s; everything is stopped. To start a cluster of your own:")
    for command in ("up", "status", "kill-node s0.1", "start-node s0.1", "down"):
        say(f"  ./justw cluster::{command}")
    return 0


if __name__ == "__main__":
    run_tool("madkv demo", main)
