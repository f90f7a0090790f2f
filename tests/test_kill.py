"""`kill` ends the MadKV processes of its own checkout, and nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from madkv.testing import checkout, ending, kill

SLEEP = "import sys; print('up', flush=True); sys.stdin.read()"
POLITE = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('asked')))\n" + SLEEP
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP

Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("-m madkv.client --server 127.0.0.1:1", "madkv.client"),
        ("-E -X dev -m madkv.testing.fuzz 3 yes", "madkv.testing.fuzz"),
        ("-m madkv shell", "madkv"),
        (".venv/bin/twistd -n --pidfile= madkv-server --listen 0.0.0.0:1", "madkv-server"),
        ("/x/.venv/bin/twistd --pidfile=p madkv-manager", "madkv-manager"),
        ("/x/.venv/bin/madkv shell", "madkv"),
        ("", None),
        ("-m", None),
        ("-m pytest tests -k madkv.client", None),
        ("-m madkvetch", None),
        ("-c pass madkv-server", None),
        ("/x/.venv/bin/twistd -n web madkv", None),
        ("edit.py madkv-server", None),
        ("/x/.venv/bin/pip install madkv", None),
    ],
)
def test_what_a_command_line_runs(command: str, name: str | None) -> None:
    assert kill.madkv_name(command.split()) == name


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("twistd -n --pidfile= madkv-manager --man-port 1 --servers h:2", " m"),
        ("twistd -n --pidfile= madkv-manager --man-port 1 --replica 2 --peers none", " m.2"),
        ("twistd -n --pidfile= madkv-server --partition 1 --api-port 3", " s1"),
        ("twistd -n --pidfile= madkv-server --replica=0 --partition=1", " s1.0"),
        ("twistd -n --pidfile= madkv-server --listen 0.0.0.0:1", ""),
        ("-m madkv.client --server h:1", ""),
        ("twistd -n madkv-server --partition", " s"),
    ],
)
def test_which_node_a_daemon_is(command: str, name: str) -> None:
    assert kill.node_name(command.split()) == name


def make_checkout(root: Path) -> Path:
    """A directory with `.venv/bin/python`, and modules that are called as MadKV's are but only wait."""
    bin_directory = root / ".venv" / "bin"
    bin_directory.mkdir(parents=True)
    (bin_directory / "python").symlink_to(Path(sys.executable).resolve())
    (root / "madkv" / "testing").mkdir(parents=True)
    for name, text in (("client", SLEEP), ("polite", POLITE), ("stubborn", STUBBORN), ("testing/kill", SLEEP)):
        (root / "madkv" / f"{name}.py").write_text(text)
    (root / "twistd").write_text(SLEEP)
    (root / "other.py").write_text(SLEEP)
    return root


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(root: Path, *words: str, command: str | None = None, **environment: str) -> subprocess.Popen[str]:
        # -S: what waits here needs nothing installed, and is no code of ours whose coverage would count.
        process = subprocess.Popen(
            [command or f"{root}/.venv/bin/python", "-S", *words],
            cwd=root,
            env={"PATH": os.defpath, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout and process.stdout.readline() == "up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def pids(root: Path) -> set[int]:
    return {process.pid for process, _ in kill.find(root)}


def test_finds_its_own_and_no_other(tmp_path: Path, start: Start) -> None:
    ours = make_checkout(tmp_path / "a b")
    longer = make_checkout(tmp_path / "a b c")
    nested = make_checkout(ours / "inner")
    expected = {
        start(ours, "-m", "madkv.client").pid,
        start(ours, "-u", "twistd", "-n", "madkv-server").pid,
        start(ours, "-m", "madkv.client", command=".venv/bin/python").pid,
        start(ours, "-m", "madkv.client", command="python", PATH=f"{ours}/.venv/bin:{os.defpath}").pid,
    }
    start(ours, "other.py", "madkv-server")
    start(ours, "twistd", "-n", "web")
    start(ours, "-m", "madkv.testing.kill")
    start(ours, "-m", "madkv.client", command=sys.executable)
    theirs = {start(longer, "-m", "madkv.client").pid}
    within = {start(nested, "-m", "madkv.client").pid}
    assert pids(ours) == expected
    assert pids(longer) == theirs
    assert pids(nested) == within


def test_a_checkout_reached_by_a_link_is_the_same(tmp_path: Path, start: Start) -> None:
    ours = make_checkout(tmp_path / "real")
    (tmp_path / "link").symlink_to(ours)
    process = start(tmp_path / "link", "-m", "madkv.client")
    assert pids(ours) == pids(tmp_path / "link") == {process.pid}


def test_spares_itself_and_its_ancestors(tmp_path: Path) -> None:
    ours = make_checkout(tmp_path / "ours")
    report = "from madkv_kill import find; print([p.pid for p, _ in find(Path(sys.argv[1]))])"
    child = f"import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]; {report}"
    (ours / "madkv" / "child.py").write_text(child)
    (ours / "madkv" / "parent.py").write_text(
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-m', 'madkv.child', *sys.argv[1:]]))"
    )
    (ours / "madkv_kill.py").write_text(Path(kill.__file__).read_text())
    for module in (checkout, ending):
        assert module.__file__
        path = Path(module.__file__)
        (ours / "madkv" / "testing" / path.name).write_text(path.read_text())
    python = f"{ours}/.venv/bin/python"
    site = str(Path(psutil.__file__).parents[1])
    done = subprocess.run(
        [python, "-m", "madkv.parent", str(ours), site], cwd=ours, env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_ends_politely_and_then_by_force(tmp_path: Path, start: Start) -> None:
    ours = make_checkout(tmp_path / "ours")
    polite = start(ours, "-m", "madkv.polite")
    start(ours, "-m", "madkv.stubborn")
    assert kill.end([process for process, _ in kill.find(ours)], grace_seconds=0.2) == []
    assert polite.stdout and polite.stdout.read() == "asked\n"
    assert kill.find(ours) == []


def test_prints_what_it_ended(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = make_checkout(tmp_path / "ours")
    monkeypatch.setattr(kill, "checkout", lambda: ours)
    process = start(ours, "-m", "madkv.client")
    assert kill.main() == 0
    assert capsys.readouterr().out == f"ended madkv.client (process {process.pid})\n"
    process = start(ours, "twistd", "-n", "madkv-server", "--partition", "1", "--replica", "0")
    assert kill.main() == 0
    assert capsys.readouterr().out == f"ended madkv-server s1.0 (process {process.pid})\n"
    assert kill.main() == 0
    assert capsys.readouterr().out == "no MadKV process of this checkout is running\n"
