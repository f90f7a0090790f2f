"""Make `.venv` and install the project into it, so that the checkout's own code is what runs.

Started by `justw` and `justmod/python` when `.venv/ready` does not fit; needs only the standard library. The file
`ready` is written last, so an interrupted installation is never taken for a finished one: it is started afresh.
Several may be started at once: they take turns, and all but the first find the work done.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

OLDEST = (3, 11)
NEWEST = (3, 13)
LOG_LINES_SHOWN = 15
SAY_SECONDS = 10
SAY_CHARACTERS_MAX = 50
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = str(VENV / "bin" / "python")
READY = VENV / "ready"
LOG = VENV / "install.log"
PROBE = "import sys; print(*sys.version_info[:3]); import venv, ensurepip"
# twistd finds plugins only in directories on sys.path, which some kinds of editable installation do without.
CHECK = f"""
import sys, madkv, twisted.plugins
root = {str(ROOT)!r}
sys.exit(not madkv.__file__.startswith(root + "/") or root + "/twisted/plugins" not in twisted.plugins.__path__)
"""


class Interpreter(NamedTuple):
    """One Python that was asked who it is. `complete` says whether it can make environments."""

    version: tuple[int, ...]
    path: str
    complete: bool

    @property
    def name(self) -> str:
        return "Python " + ".".join(map(str, self.version))


def say(message: str) -> None:
    print(f"madkv: {message}", file=sys.stderr, flush=True)


def give_up(message: str) -> NoReturn:
    say(message)
    sys.exit(1)


def ask(path: str) -> Interpreter | None:
    """Run a candidate: what a name on PATH promises need not be what it runs, or run at all."""
    try:
        asked = subprocess.run(
            [path, "-I", "-c", PROBE], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
        version = tuple(map(int, asked.stdout.split()))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return Interpreter(version, path, asked.returncode == 0) if version else None


def candidates() -> list[str]:
    names = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(name) for name in names]
    try:
        found += sorted(map(str, pyenv.glob("versions/3.*/bin/python3")))
    except OSError:
        pass  # somebody else's: do without
    found += [shutil.which("python3"), sys.executable]
    return list(dict.fromkeys(path for path in found if path))


def choose() -> Interpreter:
    """The newest of the supported versions; something newer still only where there is none of them."""
    named = os.environ.get("MADKV_PYTHON")
    asked = [ask(path) for path in ([named] if named else candidates())]
    fit = [one for one in asked if one and one.version >= OLDEST]
    usable = [one for one in fit if one.complete]
    if fit and not usable:
        give_up(f"{fit[0].path} cannot make environments (on Debian and Ubuntu, install python3-venv)")
    if not usable:
        give_up(f"{named or 'nothing found'} is not Python 3.11 or newer; MADKV_PYTHON can name one that is")
    supported = [one for one in usable if one.version[:2] <= NEWEST]
    return max(supported or usable, key=lambda one: one.version)


def stamp() -> list[str]:
    """What `ready` says: the checkout it was made for, the interpreter asked for, the version of that."""
    try:
        return READY.read_text().splitlines()
    except OSError:
        return []


def run(words: list[str], lock: int) -> None:
    """Run one step with its output in the log. The step holds the lock too: it may outlive us when we are killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    with LOG.open("ab") as log:
        process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=[lock]
        )
        began = time.monotonic()
        status = None
        try:
            while status is None:
                try:
                    status = process.wait(SAY_SECONDS)
                except subprocess.TimeoutExpired:
                    say(f"after {time.monotonic() - began:.0f} s: {doing()}")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status:
        for line in LOG.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]:
            print(f"  {line}", file=sys.stderr)
        give_up(f"the installation failed (all of it: {LOG}). Is there a way to a package index? Then try again.")


def doing() -> str:
    """What the step has begun last, for people who wait."""
    lines = [line.strip() for line in LOG.read_text(errors="replace").splitlines()]
    begun = next((line for line in reversed(lines) if line[:1].isalpha()), "at work")  # and no bar of progress
    return begun if len(begun) <= SAY_CHARACTERS_MAX else begun[:SAY_CHARACTERS_MAX] + "…"


def checkout_is_seen() -> bool:
    return subprocess.run([PYTHON, "-I", "-c", CHECK], cwd="/", capture_output=True).returncode == 0


def refuse_a_link() -> None:
    """What .venv links to is somebody else's, most likely another checkout's, unless it was made for this one."""
    made_for = stamp()[:1]
    if VENV.is_symlink() and made_for != [str(ROOT)]:
        or_there = "".join(f", or run in {checkout}" for checkout in made_for)
        give_up(f"{VENV} is a link to {VENV.readlink()}: remove it{or_there}")


def empty_venv() -> None:
    """Make .venv an empty directory, the stamp going first."""
    READY.unlink(missing_ok=True)
    VENV.mkdir(exist_ok=True)
    for entry in VENV.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def can_be_updated() -> bool:
    """Whether .venv was made for this checkout, with the interpreter named now if one is named, and still runs."""
    made_for = stamp()
    named = os.environ.get("MADKV_PYTHON")
    fits = made_for[:1] == [str(ROOT)] and (not named or made_for[1:2] == [named])
    return fits and ask(PYTHON) is not None


def install(lock: int) -> None:
    made_from_ns = (ROOT / "setup.py").stat().st_mtime_ns
    if can_be_updated():
        made_for = stamp()
        os.utime(READY, (0, 0))  # not ready until it is through
    else:
        interpreter = choose()
        made_for = [str(ROOT), interpreter.path, interpreter.name]
        say(f"making .venv with {interpreter.name} …")
        empty_venv()
        run([interpreter.path, "-I", "-m", "venv", str(VENV)], lock)
    say("installing MadKV and what it needs (half a minute, or two on a slow machine) …")
    editable = ["--config-settings", "editable_mode=compat", "-e", ".[dev]"]
    run([PYTHON, "-I", "-m", "pip", "install", *editable], lock)
    if not checkout_is_seen():
        (site,) = VENV.glob("lib/python3*/site-packages")
        (site / "madkv-checkout.pth").write_text(f"{ROOT}\n")
        if not checkout_is_seen():
            give_up(f"the installation went through, but {PYTHON} does not import MadKV from {ROOT}")
    # A daemon compiles whatever has no bytecode yet at each start, and those of a cluster all at once; also where
    # PYTHONDONTWRITEBYTECODE keeps the first one from leaving it for the others.
    run([PYTHON, "-I", "-m", "compileall", "-q", "madkv", "twisted"], lock)
    fresh = VENV / "ready.new"
    fresh.write_text("\n".join(made_for) + "\n")
    os.utime(fresh, ns=(made_from_ns, made_from_ns))
    os.replace(fresh, READY)
    say("installed")


def is_ready() -> bool:
    """What `ready` in environment.sh asks, asked again once it is our turn."""
    made_for = stamp()
    named = os.environ.get("MADKV_PYTHON")
    return (
        made_for[:1] == [str(ROOT)]
        and (not named or made_for[1:2] == [named])
        and all(os.access(VENV / "bin" / program, os.X_OK) for program in ("python", "just"))
        and READY.stat().st_mtime_ns == (ROOT / "setup.py").stat().st_mtime_ns
    )


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The lock is on the checkout's directory itself: it needs no file of its own and goes with its holder.
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another installation in this checkout …")
        fcntl.flock(lock, fcntl.LOCK_EX)
    if not is_ready():
        refuse_a_link()
        install(lock)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        give_up("interrupted; the next run starts the installation again")
    except OSError as error:
        give_up(f"cannot make .venv: {error}")
