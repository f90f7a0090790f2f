"""`./justw demo`: a server of its own, the five testcases, a short YCSB A, a summary; nothing is left behind."""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence

from madkv.testing.ending import run_tool
from madkv.testing.fleet import interrupt_on_terminate
from madkv.testing.options import words
from madkv.testing.service import Service, ServiceError, free_ports

TESTCASES = range(1, 6)
CLIENTS = 5
RECORDS = 1000
OPS_PER_CLIENT = 5000


class DemoFailed(Exception):
    """A step went wrong; its output has been shown."""


def say(text: str = "") -> None:
    """One line for whoever watches."""
    print(text, flush=True)


def run_testcase(just: str, number: int, address: str) -> None:
    """Run one testcase and tell its verdict; its whole output only when it fails."""
    started = time.monotonic()
    done = subprocess.run(
        [just, f"p1::test{number}", address], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        say(done.stdout)
        raise DemoFailed(f"testcase {number} failed (exit status {done.returncode})")
    say(f"  {lines[-1]:<24} {time.monotonic() - started:4.1f} s   {lines[0]}")


def run_workload(just: str, address: str) -> tuple[str, str]:
    """Run a short YCSB A; the throughput of its load and of its run."""
    command = [sys.executable, "-m", "madkv.bench.run", str(CLIENTS), "a", "--module", "p1", "--address", address]
    command += ["--just", just, f"records={RECORDS}", f"ops={OPS_PER_CLIENT}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    rates = re.findall(r"Throughput:\s+(\S+)", done.stdout)
    if done.returncode != 0 or len(rates) != 2:
        say(done.stdout)
        raise DemoFailed(f"the workload failed (exit status {done.returncode})")
    say("\n".join(f"  {line}" for line in done.stdout.rstrip().splitlines()))
    return rates[0], rates[1]


def main(argv: Sequence[str] | None = None) -> int:
    """The demo; exit status 0 when everything in it succeeded."""
    parser = argparse.ArgumentParser(prog="./justw demo", description=__doc__)
    parser.add_argument("--just", default="just", help="the just program (default: %(default)s)")
    just = parser.parse_args(words(sys.argv[1:] if argv is None else argv)).just
    interrupt_on_terminate()
    started = time.monotonic()
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    try:
        with Service([just], [["p1::server", address]], [port]):
            say(f"A MadKV server runs on {address}, with its pairs in memory.")
            say()
            say("Five testcases, each with line clients in processes of their own:")
            for number in TESTCASES:
                run_testcase(just, number, address)
            say()
            say(f"YCSB A, half reads and half updates: {CLIENTS} clients, {OPS_PER_CLIENT:,} calls each:")
            load, run = run_workload(just, address)
    except (DemoFailed, ServiceError, OSError) as error:
        say(f"Demo FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        say("Demo interrupted; its server is stopped.")
        return 130
    say()
    seconds = time.monotonic() - started
    say(f"Demo passed in {seconds:.0f} s: {len(TESTCASES)} testcases, load {load} and A {run} calls/s.")
    say("The server is stopped. To start one yourself:  ./justw p1::server   and, beside it:  ./justw p1::client")
    return 0


if __name__ == "__main__":
    run_tool("madkv demo", main)
