"""Act a testcase out, and tell every step: `python -m madkv.testing.testcase NUM`.

Those of project 1 need a running service; those of projects 2 and 3, in which nodes fail, run clusters of their own.
"""

import argparse
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from madkv.testing import certificates
from madkv.testing.cases import PROJECT_1, Testcase
from madkv.testing.checkout import origin
from madkv.testing.cluster import Cluster, listed
from madkv.testing.cluster_cases import PROJECT_2, PROJECT_3, ClusterTestcase, Stage
from madkv.testing.ending import run_tool
from madkv.testing.fleet import Fleet
from madkv.testing.options import Parser, add_shared, whole
from madkv.testing.scene import NAMES, Scene, SceneBroken
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict

RUN_ID_DIGITS = 9
TESTCASES: Mapping[str, Mapping[int, Testcase | ClusterTestcase]] = {"p1": PROJECT_1, "p2": PROJECT_2, "p3": PROJECT_3}


def run(options: argparse.Namespace, out: Transcript) -> bool:
    """Act it out; whether all was as it should be."""
    testcase = TESTCASES[options.module][options.num]
    out.say(f"{testcase.title}.")
    if isinstance(testcase, Testcase):
        run_id = "".join(secrets.choice("0123456789") for _ in range(RUN_ID_DIGITS))
        prefix = f"test{options.num}x{run_id}".encode()
        out.say(f"Service: {options.address}.")
        certificates.take(options)
        return act_out(options, options.address, testcase.clients, lambda scene: testcase.act(scene, prefix), out)
    with tempfile.TemporaryDirectory(prefix="madkv-testcase-") as root:
        tls = certificates.are_wanted(options)
        cluster = Cluster.local(Path(root), testcase.partitions, testcase.rf, testcase.managers, tls)
        shape = cluster.shape
        out.say(
            f"A cluster of its own: {count(len(shape.managers), 'manager')}, {count(shape.partitions, 'partition')},"
            f" {count(len(shape.servers), 'server')} ({listed(shape.nodes())})."
        )
        with cluster:
            return act_out(
                options,
                cluster.address,
                testcase.clients,
                lambda scene: testcase.act(Stage(scene, cluster, out.say)),
                out,
            )


def act_out(
    options: argparse.Namespace, address: str, clients: int, act: Callable[[Scene], None], out: Transcript
) -> bool:
    """Start the clients and have them act; whether all was as it should be."""
    command = [options.just, f"{options.module}::client", address]
    named = f"{count(clients, 'client')}, {', '.join(NAMES[:clients])}"
    out.say(f"Clients: {named}, started by: {' '.join(command)}")
    out.say(origin())
    out.say("Each line below is a call and, behind the arrow, its answer.")
    with Fleet(command, clients, expected_to_wait=options.module != "p1") as fleet:
        scene = Scene(fleet, out)
        try:
            act(scene)
            scene.tell("All is done: the clients are told to stop.")
            scene.end()
        except SceneBroken as error:
            out.say(f"  WRONG: {error}")
            scene.failures.append(str(error))
            fleet.stop(grace_seconds=0)
        except BaseException:
            fleet.stop(grace_seconds=0)
            raise
    out.say("")
    if scene.failures:
        out.say(f"{count(len(scene.failures), 'step')} went wrong, marked WRONG above.")
    return not scene.failures


def count(number: int, what: str) -> str:
    """So many of them."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when the testcase passed."""
    parser = Parser(prog="testcase", description=__doc__)
    parser.add_argument("num", type=whole, help="which testcase")
    parser.add_argument("--module", choices=TESTCASES, default="p1", help="of which project (default: %(default)s)")
    parser.add_argument("--address", default="127.0.0.1:3777", help="given to the clients (default: %(default)s)")
    add_shared(parser, "just", "log", "tls")
    options = parser.parse_args(argv)
    if options.num not in TESTCASES[options.module]:
        parser.error(f"{options.module} has testcases 1 to {len(TESTCASES[options.module])}")
    return end_in_verdict(
        options.log,
        lambda out: run(options, out),
        f"Testcase {options.num}: {{}}",
        failed="WRONG",
        interrupted="whatever it started is stopped.",
    )


if __name__ == "__main__":
    run_tool("madkv testcase", main)
