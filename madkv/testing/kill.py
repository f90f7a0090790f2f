"""End every MadKV process that was started from this checkout, and nothing else.

A process is ours when it runs an interpreter in `.venv/bin` of this checkout, by that path, and that interpreter was
told to run MadKV: a `madkv` module, the `madkv` command, or twistd with one of MadKV's plugins. Whoever started us is
spared, so that a program may call `kill` and go on.
"""

import shutil
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import psutil

from madkv.testing.checkout import checkout
from madkv.testing.ending import run_tool

GRACE_SECONDS = 5.0
KILL_SECONDS = 5.0
THIS_MODULE = "madkv.testing.kill"  # two at once spare each other
PLUGINS = ("madkv-manager", "madkv-server")
# Interpreter options whose value is the next word.
OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


def madkv_name(words: Sequence[str]) -> str | None:
    """What of MadKV a command line runs, given the words after the interpreter; None when it runs something else."""
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c", "-"):
        del rest[: 2 if rest[0] in OPTIONS_WITH_VALUE else 1]
    if not rest:
        return None
    if rest[0] == "-m":
        module = rest[1] if len(rest) > 1 else ""
        return module if module == "madkv" or module.startswith("madkv.") else None
    script = Path(rest[0]).name
    if script == "twistd":
        return next((word for word in rest if word in PLUGINS), None)
    return script if script == "madkv" else None


def node_name(words: Sequence[str]) -> str:
    """Which node of a cluster a daemon is, by its options, such as ` s0.1`; empty for what is none."""
    plugin = next((word for word in words if word in PLUGINS), None)
    options: dict[str, str] = {}
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name in ("--partition", "--replica"):
            options[name] = value if equals else following
    if plugin is None or (plugin == "madkv-server" and "--partition" not in options):
        return ""
    group = "m" if plugin == "madkv-manager" else f"s{options['--partition']}"
    return f" {group}.{options['--replica']}" if "--replica" in options else f" {group}"


def interpreter_of(process: psutil.Process, command: str) -> Path | None:
    """The path by which a process's interpreter was called, its directory free of symbolic links.

    The interpreter itself is one, and must stay one: it leads out of the environment.
    """
    if "/" not in command:
        found = shutil.which(command, path=process.environ().get("PATH"))
        if found is None:
            return None
        command = found
    path = Path(command) if command.startswith("/") else Path(process.cwd(), command)
    return path.parent.resolve() / path.name


def find(root: Path) -> list[tuple[psutil.Process, str]]:
    """The processes to end, each with what it runs; ourselves and our ancestors left out."""
    ourselves = psutil.Process()
    spared = {ourselves.pid, *(parent.pid for parent in ourselves.parents())}
    bin_directory = root.resolve() / ".venv" / "bin"
    found = []
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        try:
            words = process.cmdline()
            name = madkv_name(words[1:])
            if name is None or name == THIS_MODULE:
                continue
            interpreter = interpreter_of(process, words[0])
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue  # gone, or another user's: then it was not started from here by us
        if interpreter is not None and interpreter.parent == bin_directory:
            found.append((process, name + node_name(words)))
    return found


def end(processes: Sequence[psutil.Process], grace_seconds: float = GRACE_SECONDS) -> list[psutil.Process]:
    """Ask politely, wait, then kill; the processes that even so did not go."""
    alive = list(processes)
    for end_one, seconds in ((psutil.Process.terminate, grace_seconds), (psutil.Process.kill, KILL_SECONDS)):
        for process in alive:
            try:
                end_one(process)
            except psutil.NoSuchProcess:
                pass
        _, alive = psutil.wait_procs(alive, seconds)
    return alive


def main() -> int:
    found = find(checkout())
    if not found:
        print("no MadKV process of this checkout is running")
        return 0
    left = end([process for process, _ in found])
    for process, name in found:
        print(f"{'could not end' if process in left else 'ended'} {name} (process {process.pid})")
    return 1 if left else 0


if __name__ == "__main__":
    run_tool("madkv kill", main)
