"""Measure a store of 1,000,000 keys of 1 KB against its bounds.

    ./justw storage::measure [keys=NUMBER]

Each phase (tests/storage/measured.py) is a process of its own, whose memory is looked at all the while. The exit status
is 1 when a bound was not kept. Everything lies in a temporary directory, which goes at the end.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from madkv.testing.ending import complain, run_tool
from madkv.testing.options import Parser, whole
from tests.processes import ROOT

RESTART_SECONDS_MAX = 3.0
ANONYMOUS_MB_MAX = 200.0
SNAPSHOT_MB_S_MIN = 50.0
STALL_MS_MAX = 200.0
LOOK_EVERY_SECONDS = 0.01
KEYS = 1_000_000
DISK_BYTES_PER_KEY = 9_000
"""Two stores, one of them twice in the end, and what LMDB has freed and not used again."""


class Phase:
    """One phase that is under way."""

    def __init__(self, name: str, path: Path, keys: int, stdin: IO[bytes] | None = None) -> None:
        command = [sys.executable, "-m", "tests.storage.measured", name, str(path), str(keys)]
        self.name = name
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        self.anonymous_mb = 0.0

    def look(self) -> bool:
        """Look at its memory for a moment; whether it still runs."""
        self.anonymous_mb = max(self.anonymous_mb, _anonymous_mb(self.process.pid))
        try:
            self.process.wait(LOOK_EVERY_SECONDS)
        except subprocess.TimeoutExpired:
            return True
        if self.process.returncode:
            raise SystemExit(f"storage::measure: {self.name} failed")
        return False

    def finish(self) -> dict[str, float]:
        """Wait for its end; what it measured."""
        while self.look():
            pass
        with self.stdout as stdout:
            facts: dict[str, float] = json.loads(stdout.read())
        return facts


def _anonymous_mb(pid: int) -> float:
    """Memory that is no file's: what a page of the store takes in the system's cache can be had back at any time."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


class Report:
    """Lines of figures, and whether all bounds were kept."""

    def __init__(self) -> None:
        self.kept = True

    def say(self, what: str, figure: str, within: bool | None = None, bound: str = "") -> None:
        """One line; `within` says whether the bound was kept, None that there is none."""
        verdict = "" if within is None else f"  {'ok' if within else 'MISSED'} ({bound})"
        self.kept = self.kept and within is not False
        print(f"  {what:<52}{figure:>14}{verdict}", flush=True)

    def at_most(self, what: str, figure: float, unit: str, bound: float) -> None:
        """A figure that may not be larger than `bound`."""
        self.say(what, f"{figure:,.1f} {unit}", figure <= bound, f"at most {bound:g}")

    def at_least(self, what: str, figure: float, unit: str, bound: float) -> None:
        """A figure that may not be smaller than `bound`."""
        self.say(what, f"{figure:,.0f} {unit}", figure >= bound, f"at least {bound:g}")

    def memory(self, phase: Phase) -> None:
        """The largest that a phase had."""
        self.at_most(f"anonymous memory, {phase.name}", phase.anonymous_mb, "MB", ANONYMOUS_MB_MAX)


def measure(scratch: Path, keys: int) -> bool:
    """All phases; whether all bounds were kept."""
    report = Report()
    one, other = scratch / "one", scratch / "other"

    def run(name: str, path: Path) -> dict[str, float]:
        phase = Phase(name, path, keys)
        facts = phase.finish()
        report.memory(phase)
        return facts

    (scratch / "fresh").mkdir()
    print(f"64 writers of 1 KB, a group of one, {keys:,} keys, beginning empty", flush=True)
    facts = run("throughput", scratch / "fresh")
    report.say("commits, each of 64 writes", f"{facts['commits/s']:,.0f} /s")
    report.say("writes", f"{facts['writes/s']:,.0f} /s")
    report.say("LMDB alone, the same pairs in one table: commits", f"{facts['raw commits/s']:,.0f} /s")
    report.say("LMDB alone: writes", f"{facts['raw writes/s']:,.0f} /s")
    report.say("the store's part of that", f"{100 * facts['writes/s'] / facts['raw writes/s']:.0f} %")
    shutil.rmtree(scratch / "fresh")

    print(f"{keys:,} keys of 1 KB", flush=True)
    facts = run("load", one)
    report.say("loading", f"{facts['seconds']:,.1f} s")
    facts = run("restart", one)
    what = f"restart, nothing cached, {facts['entries']:,.0f} entries in the log"
    report.at_most(what, facts["seconds"], "s", RESTART_SECONDS_MAX)

    facts = run("snapshot", one)
    report.at_least("reading a snapshot", facts["MB/s"], "MiB/s", SNAPSHOT_MB_S_MIN)
    report.at_least("reading a snapshot beside writers", facts["MB/s beside writers"], "MiB/s", SNAPSHOT_MB_S_MIN)
    report.at_most("slowest commit beside that", facts["stall ms"], "ms", STALL_MS_MAX)
    report.say("slowest commit without it", f"{facts['alone ms']:,.1f} ms")

    subprocess.run(["cp", "-r", "--sparse=always", str(one), str(other)], check=True)
    sender = Phase("send", one, keys)
    receiver = Phase("install", other, keys, sender.stdout)
    sender.stdout.close()
    while sender.look():
        receiver.look()
    facts = receiver.finish()
    report.memory(sender)
    report.memory(receiver)
    report.at_least("installing it over as many keys", facts["MB/s"], "MiB/s", SNAPSHOT_MB_S_MIN)
    report.at_most("longest wait of a commit for a piece, and itself", facts["stall ms"], "ms", STALL_MS_MAX)
    report.at_most("throwing the replaced keys away", facts["dropping ms"], "ms", STALL_MS_MAX)
    report.at_most("slowest commit after that", facts["slowest commit after dropping ms"], "ms", STALL_MS_MAX)
    report.say("a commit after that", f"{facts['ms a commit after dropping']:,.1f} ms")

    facts = run("restart", other)
    report.at_most("restart with half a snapshot to throw away", facts["seconds"], "s", RESTART_SECONDS_MAX)
    return report.kept


def main() -> int:
    parser = Parser(prog="./justw storage::measure", description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=whole, default=KEYS, help="how many keys (default: %(default)s)")
    options = parser.parse_args()
    if options.keys < 1000:
        parser.error("there must be at least 1000 keys")
    with tempfile.TemporaryDirectory(prefix="madkv-measure-") as name:
        needed, free = options.keys * DISK_BYTES_PER_KEY, shutil.disk_usage(name).free
        if free < needed:
            complain(f"storage::measure: {needed / 1e9:.1f} GB are needed in {name}, {free / 1e9:.1f} GB are free")
            return 1
        return 0 if measure(Path(name), options.keys) else 1


if __name__ == "__main__":
    run_tool("madkv storage::measure", main)
