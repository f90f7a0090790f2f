"""Run whatever a project's report still lacks, each configuration against a fresh service of its own.

A log counts when it holds its verdict, or both phases of a benchmark; so an interrupted run leaves nothing that counts,
and starting this again goes on where it stopped. What failed is run again, and so is in full what was quick, and
over TLS what was without, or the other way round.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from madkv.bench.machine import BY_HAND, form_name, form_of, note_run, read_record
from madkv.bench.projects import PROJECTS, Configuration, Project, read_result
from madkv.testing import certificates
from madkv.testing.checkout import revision
from madkv.testing.cluster import Cluster
from madkv.testing.ending import run_tool
from madkv.testing.fleet import interrupt_on_terminate
from madkv.testing.options import Parser, add_shared
from madkv.testing.service import Service, ServiceError

STOP_SECONDS_MAX = 10.0
"""How long a tool may take to end its clients when it is interrupted."""

QUICK_RECORDS = 1000
QUICK_CALLS = 10_000
"""Operations of all clients together in a quick benchmark, but for `QUICK_OPS_MIN`."""
QUICK_OPS_MIN = 100
QUICK_SECONDS = 2.0
QUICK_FUZZ_OPS = 300


def options_of(configuration: Configuration, quick: bool, seconds: float) -> list[str]:
    """The options that a run gets beside the recipe's arguments."""
    if configuration.kind == "fuzz":
        return [f"--ops={QUICK_FUZZ_OPS}"] if quick else []
    if configuration.kind == "testcase":
        return []
    if quick:
        operations = max(QUICK_OPS_MIN, QUICK_CALLS // int(configuration.arguments[0]))
        return [f"--ops={operations}", f"--records={QUICK_RECORDS}", f"--seconds={seconds or QUICK_SECONDS}"]
    return [f"--seconds={seconds}"] if seconds else []


def weight(configuration: Configuration, quick: bool) -> float:
    """Roughly how many seconds a run takes; only how the runs compare matters once the first of them are over."""
    if configuration.kind == "testcase":
        return 20.0 if configuration.launches_its_own else 3.0
    if configuration.kind == "fuzz":
        return 5.0 if quick else 20.0
    clients = int(configuration.arguments[0])
    starting = 1.5 + 0.025 * clients
    if quick:
        return starting + 2.5
    return starting + 2.0 + clients * (4.5 if configuration.arguments[1] == "e" else 1.3)


def lacking(project: Project, logs: Path, quick: bool, again: bool, tls: bool = False) -> list[Configuration]:
    """The configurations to run, in the report's order."""
    record = read_record(logs)
    enough = (form_name(quick, tls), form_name(False, tls), BY_HAND)
    todo = []
    for configuration in project.configurations:
        result = read_result(configuration, logs)
        form = form_of(record, configuration.name, configuration.log(logs))
        if again or result is None or not (result.passed and result.is_ours) or form not in enough:
            todo.append(configuration)
    return todo


def launched(
    configuration: Configuration, just: str, root: Path, tls: bool
) -> AbstractContextManager[Service] | AbstractContextManager[Cluster] | AbstractContextManager[None]:
    """What a run is made against, to be entered; None for a tool that launches what it needs. Raises ServiceError."""
    if configuration.cluster:
        return Cluster.local(root, *configuration.cluster, tls=tls)
    if tls:
        directory = root / certificates.DIRECTORY
        certificates.make(directory, {certificates.SOLO: ["127.0.0.1"]}, [certificates.USUAL_CLIENT])
        os.environ.update(certificates.environment(directory))  # those that launch what they need make others
    return nullcontext() if configuration.launches_its_own else Service.solo(just)


def run_one(
    project: Project, configuration: Configuration, just: str, logs: Path, options: Sequence[str], tls: bool
) -> bool:
    """Run one configuration against a service of its own; whether it passed. Raises ServiceError."""
    log = configuration.log(logs)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", *configuration.tool_words, "--just", just, "--log", str(log), *options]
    with (
        tempfile.TemporaryDirectory(prefix="madkv-run-") as root,
        launched(configuration, just, Path(root), tls) as service,
        tempfile.TemporaryFile("w+", errors="backslashreplace") as said,
    ):
        if service:
            command += ["--address", service.address]
        # On a terminal the tool's progress shows how far it is; elsewhere it would only come between our own lines.
        tool = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if sys.stderr.isatty() else said,
            start_new_session=True,
        )
        try:
            status = tool.wait()
        finally:
            end_tool(tool)
        result = read_result(configuration, logs)
        if status or result is None:
            said.seek(0)
            sys.stderr.write(said.read())
        if result is None:
            words = f"; the service said:\n{service.said()}" if service else ""
            print(f"no result (exit status {status}){words}", file=sys.stderr)
    return result is not None and result.passed and status == 0


def end_tool(tool: "subprocess.Popen[bytes]") -> None:
    """Ask a tool that still runs to end, so that it can end its clients; then make it."""
    if tool.poll() is not None:
        return
    tool.send_signal(signal.SIGTERM)
    try:
        tool.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(tool.pid, signal.SIGKILL)
        tool.wait()


def duration(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def run_all(
    project: Project, logs: Path, just: str, quick: bool, again: bool, seconds: float, tls: bool = False
) -> int:
    """Run what lacks; the exit status."""
    todo = lacking(project, logs, quick, again, tls)
    there = len(project.configurations) - len(todo)
    form = form_name(quick, tls)
    print(f"{len(todo)} of {len(project.configurations)} runs to do ({form}), {there} results are there", flush=True)
    here = revision()
    older = [
        f"{name} ({result.revision})"
        for name, result in project.results(logs).items()
        if result.revision not in (None, here) and project.configuration(name) not in todo
    ]
    if older:
        print(f"of another revision than {here} (again=yes runs them again): {', '.join(older)}", flush=True)
    weights = [weight(configuration, quick) for configuration in todo]
    began = time.monotonic()
    failed = []
    for done, configuration in enumerate(todo):
        scale = (time.monotonic() - began) / sum(weights[:done]) if done else 1.0
        left = duration(scale * sum(weights[done:]))
        print(f"[{done + 1} of {len(todo)}] {configuration.command}  (about {left} left)", flush=True)
        run_began = time.monotonic()
        try:
            passed = run_one(project, configuration, just, logs, options_of(configuration, quick, seconds), tls)
        except ServiceError as error:
            print(error, file=sys.stderr)
            passed = False
        log = configuration.log(logs)
        if log.exists():
            note_run(logs, configuration.name, log, form, time.monotonic() - run_began)
        if not passed:
            failed.append(configuration)
            print(f"    FAILED: {log}", flush=True)
    print(f"{len(todo)} runs in {duration(time.monotonic() - began)}", flush=True)
    if failed:
        print(f"failed: {', '.join(configuration.name for configuration in failed)}", file=sys.stderr)
        return 1
    print(f"everything is there: `./justw {project.module}::report` writes report/proj{project.number}.md")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = Parser(prog="madkv.bench.everything", description="Run whatever the report still lacks.")
    parser.add_argument("project", choices=sorted(PROJECTS))
    parser.add_argument("--just", default="just", help="the command that runs recipes (default: just)")
    parser.add_argument("--quick", choices=("yes", "no"), default="no", help="a short form of each run (default: no)")
    parser.add_argument("--again", choices=("yes", "no"), default="no", help="also what is there (default: no)")
    parser.add_argument("--seconds", type=float, default=0, help="end each run phase after so long (default: 0, never)")
    parser.add_argument("--logs", type=Path, help="the directory of the logs (default: /tmp/madkv-<project>)")
    add_shared(parser, "tls")
    arguments = parser.parse_args(argv)
    interrupt_on_terminate()
    project = PROJECTS[arguments.project]
    logs: Path = arguments.logs or project.logs
    try:
        logs.mkdir(parents=True, exist_ok=True)
        return run_all(
            project,
            logs,
            arguments.just,
            arguments.quick == "yes",
            arguments.again == "yes",
            arguments.seconds,
            certificates.are_wanted(arguments),
        )
    except OSError as error:
        print(f"madkv: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    run_tool("madkv all", main)
