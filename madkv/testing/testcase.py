"""Act a testcase out against a running service, and tell every step: `python -m madkv.testing.testcase NUM`."""

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from madkv.testing.cases import PROJECT_1
from madkv.testing.checkout import origin
from madkv.testing.ending import run_tool
from madkv.testing.fleet import Fleet, interrupt_on_terminate
from madkv.testing.options import whole, words
from madkv.testing.scene import NAMES, Scene, SceneBroken
from madkv.testing.transcript import Transcript

RUN_ID_DIGITS = 9


def run(options: argparse.Namespace, out: Transcript) -> bool:
    """Act it out; whether all was as it should be."""
    testcase = PROJECT_1[options.num]
    command = [options.just, f"{options.module}::client", options.address]
    run_id = "".join(secrets.choice("0123456789") for _ in range(RUN_ID_DIGITS))
    out.say(f"{testcase.title}.")
    clients = (
        f"{testcase.clients} clients, {' '.join(NAMES[: testcase.clients])}" if testcase.clients > 1 else "1 client, A"
    )
    out.say(f"Service: {options.address}. Clients: {clients}, each started by: {' '.join(command)}")
    out.say(origin())
    out.say("Each line below is a call and, behind the arrow, its answer.")
    with Fleet(command, testcase.clients) as fleet:
        scene = Scene(fleet, out)
        try:
            testcase.act(scene, f"test{options.num}x{run_id}".encode())
            scene.tell("All is done: the clients are told to stop.")
            scene.end()
        except SceneBroken as error:
            out.say(f"  WRONG: {error}")
            scene.failures.append(str(error))
            fleet.stop(grace_seconds=0)
    out.say("")
    if scene.failures:
        steps = "1 step" if len(scene.failures) == 1 else f"{len(scene.failures)} steps"
        out.say(f"{steps} went wrong, marked WRONG above.")
    return not scene.failures


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when the testcase passed."""
    parser = argparse.ArgumentParser(prog="testcase", description=__doc__)
    parser.add_argument("num", type=whole, choices=PROJECT_1, help="which testcase")
    parser.add_argument("--module", default="p1", help="recipe module of the client (default: %(default)s)")
    parser.add_argument("--address", default="127.0.0.1:3777", help="given to the clients (default: %(default)s)")
    parser.add_argument("--just", default="just", help="the just program (default: %(default)s)")
    parser.add_argument("--log", type=Path, help="write what is printed here, too")
    options = parser.parse_args(words(sys.argv[1:] if argv is None else argv))
    interrupt_on_terminate()
    try:
        with Transcript(options.log) as out:
            try:
                passed = run(options, out)
            except KeyboardInterrupt:
                out.say("Interrupted: the clients are stopped.")
                return 130
            except OSError as error:
                out.say(f"WRONG: {error}")
                passed = False
            out.say(f"Testcase {options.num}: {'PASSED' if passed else 'FAILED'}")
    except OSError as error:
        print(f"madkv testcase: {error}", file=sys.stderr)
        return 1
    return 0 if passed else 1


if __name__ == "__main__":
    run_tool("madkv testcase", main)
