"""The recipes' own machinery: what needs no installation of its own, since that takes half a minute and a network."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from madkv.testing import clean, tree, ycsb

ROOT = Path(__file__).resolve().parent.parent
# An interpreter that runs comes first, so that no test waits for those that do not.
PATH = f"{Path(sys.executable).parent}:{os.defpath}"
FAKE_INTERPRETER = '#!/bin/sh\nprintf "%s|" "$PWD" "$0" "$@"\n'
FAKE_BOOTSTRAP = """
import os, sys
from pathlib import Path
root = Path(__file__).resolve().parent.parent
print("BOOTSTRAP")
if os.environ.get("BROKEN"):
    sys.exit("broken")
ready = root / ".venv" / "ready"
ready.write_text(f"{root}\\n/usr/bin/some-python\\nPython 3\\n")
time_ns = (root / "setup.py").stat().st_mtime_ns
os.utime(ready, ns=(time_ns, time_ns))
"""


@pytest.fixture(params=["checkout", "with some spaces"])
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The shell parts with an interpreter, a `just` and an installer that only say how they were called."""
    root = tmp_path / str(request.param)
    shutil.copytree(ROOT / "justmod", root / "justmod")
    for name in ("justw", "setup.py"):
        shutil.copy2(ROOT / name, root / name)
    (root / "justmod" / "bootstrap.py").write_text(FAKE_BOOTSTRAP)
    (root / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "just"):
        program = root / ".venv" / "bin" / name
        program.write_text(FAKE_INTERPRETER)
        program.chmod(0o755)
    return root


def call(root: Path, *words: str, **environment: str) -> tuple[list[str], bool]:
    """Run a script of the checkout: how the fake program was called, and whether the installer ran."""
    done = subprocess.run(
        words, cwd="/", env={"PATH": PATH, "HOME": "/", **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("|")[:-1], "BOOTSTRAP" in done.stderr


def test_justw_installs_once_and_becomes_just(checkout: Path) -> None:
    expected = [
        str(checkout),
        f"{checkout}/.venv/bin/just",
        "--justfile",
        f"{checkout}/Justfile",
        "p1::fuzz",
        "a b",
        "",
    ]
    assert call(checkout, f"{checkout}/justw", "p1::fuzz", "a b", "") == (expected, True)
    assert call(checkout, f"{checkout}/justw", "p1::fuzz", "a b", "") == (expected, False)


def test_justw_takes_tls_from_among_the_words(checkout: Path) -> None:
    """The fake `just` cannot show its environment; one that can says which directory is named."""
    just = checkout / ".venv" / "bin" / "just"
    just.write_text('#!/bin/sh\nprintf "%s|" "${MADKV_TLS-none}" "$@"\n')
    named = ["--justfile", f"{checkout}/Justfile", "p1::fuzz", "3", "a b"]
    assert call(checkout, f"{checkout}/justw", "p1::fuzz", "3", "a b")[0] == ["none", *named]
    words = ["p1::fuzz", "tls=yes", "3", "a b"]
    assert call(checkout, f"{checkout}/justw", *words)[0] == [f"{checkout}/tls", *named]
    assert call(checkout, f"{checkout}/justw", *words, MADKV_TLS="/there")[0] == ["/there", *named]


def test_justw_without_tls_hands_on_nothing_of_it(checkout: Path) -> None:
    """Whatever the environment has: a recipe that knows no such word runs without, too."""
    just = checkout / ".venv" / "bin" / "just"
    just.write_text('#!/bin/sh\nprintf "%s|" "${MADKV_TLS-none}" "${MADKV_TLS_CA-none}" "$@"\n')
    words = [f"{checkout}/justw", "p1::server", "tls=no", "a:1"]
    named = ["--justfile", f"{checkout}/Justfile", "p1::server", "a:1"]
    assert call(checkout, *words, MADKV_TLS="/there", MADKV_TLS_CA="/ca")[0] == ["none", "none", *named]


def test_clients_of_recipes_get_the_certificates_of_the_directory(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "${MADKV_TLS_CA-none}" "$MADKV_TLS_CERT" "$MADKV_TLS_KEY"\n')
    shim = f"{checkout}/justmod/python"
    assert call(checkout, shim)[0] == ["none", "", ""]
    assert call(checkout, shim, MADKV_TLS="/t")[0] == ["/t/ca.pem", "/t/client.pem", "/t/client.key"]
    assert call(checkout, shim, MADKV_TLS="/t", MADKV_TLS_CA="/x", MADKV_TLS_CERT="/y")[0] == ["/x", "/y", ""]


def test_recipes_find_the_environment_by_themselves(checkout: Path) -> None:
    expected = [str(checkout), f"{checkout}/.venv/bin/python", "-m", "madkv.client"]
    assert call(checkout, f"{checkout}/justmod/python", "-m", "madkv.client") == (expected, True)
    assert call(checkout, f"{checkout}/justmod/python", "-m", "madkv.client") == (expected, False)


@pytest.mark.parametrize("change", ["newer", "older", "interpreter gone", "copied", "moved", "interrupted"])
def test_an_environment_that_does_not_fit_is_made_again(checkout: Path, change: str) -> None:
    call(checkout, f"{checkout}/justw")
    setup = checkout / "setup.py"
    time_s = int(setup.stat().st_mtime)
    match change:
        case "newer":
            os.utime(setup, (time_s + 5, time_s + 5))
        case "older":
            os.utime(setup, (time_s - 5, time_s - 5))
        case "interpreter gone":
            python = checkout / ".venv" / "bin" / "just"
            python.chmod(0o644)
        case "copied":
            checkout = Path(shutil.copytree(checkout, checkout.parent / "a copy"))
        case "moved":
            checkout = checkout.rename(checkout.parent / "moved")
        case "interrupted":
            (checkout / ".venv" / "ready").unlink()
    if change == "interpreter gone":
        # The fake installer mends nothing: what counts is that it was asked.
        done = subprocess.run([f"{checkout}/justw"], env={"PATH": PATH}, capture_output=True, text=True)
        assert "BOOTSTRAP" in done.stderr
        return
    assert call(checkout, f"{checkout}/justw")[1]
    assert not call(checkout, f"{checkout}/justw")[1]


def test_the_named_interpreter_counts(checkout: Path) -> None:
    call(checkout, f"{checkout}/justw")
    assert not call(checkout, f"{checkout}/justw", MADKV_PYTHON="/usr/bin/some-python")[1]
    assert call(checkout, f"{checkout}/justw", MADKV_PYTHON=sys.executable)[1]


def test_a_failed_installation_fails_the_recipe(checkout: Path) -> None:
    for script in ("justw", "justmod/python"):
        done = subprocess.run([checkout / script], env={"PATH": PATH, "BROKEN": "1"}, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")


def test_without_a_usable_python_it_says_so(checkout: Path) -> None:
    empty = checkout / "empty"
    empty.mkdir()
    environment = {"PATH": str(empty), "HOME": str(empty)}
    done = subprocess.run(["/bin/sh", f"{checkout}/justw"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("madkv: no Python 3.11") and done.stderr.count("\n") == 1


# --- Interpreters ----------------------------------------------------------------------------------------------------


def make_interpreter(directory: Path, name: str, prints: str, status: int = 0) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{prints}'\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Only interpreters made by the test are found, beside the one that runs it."""
    monkeypatch.syspath_prepend(str(ROOT / "justmod"))
    import bootstrap

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", f"{tmp_path}/pyenv")
    monkeypatch.delenv("MADKV_PYTHON", raising=False)
    monkeypatch.setattr(
        bootstrap,
        "candidates",
        lambda found=bootstrap.candidates: [path for path in found() if path.startswith(str(tmp_path))],
    )
    yield tmp_path
    sys.modules.pop("bootstrap", None)


def chosen() -> str:
    import bootstrap

    return str(bootstrap.choose().path)


def test_the_newest_that_runs_is_chosen(choose: Path) -> None:
    make_interpreter(choose / "bin", "python3.13", "not set up", status=127)
    make_interpreter(choose / "bin", "python3.12", "3 12 4", status=1)
    make_interpreter(choose / "bin", "python3", "3 14 0")
    make_interpreter(choose / "pyenv/versions/3.10.9/bin", "python3", "3 10 9")
    newest = make_interpreter(choose / "pyenv/versions/3.12.1/bin", "python3", "3 12 1")
    make_interpreter(choose / "pyenv/versions/3.11.9/bin", "python3", "3 11 9")
    assert chosen() == newest


def test_a_newer_one_than_supported_is_the_last_resort(choose: Path) -> None:
    newer = make_interpreter(choose / "bin", "python3", "3 14 0")
    assert chosen() == newer


@pytest.mark.parametrize(("prints", "status", "said"), [("3 10 2", 0, "3.11 or newer"), ("3 12 2", 1, "python3-venv")])
def test_nothing_usable_is_one_line(
    choose: Path, capsys: pytest.CaptureFixture[str], prints: str, status: int, said: str
) -> None:
    make_interpreter(choose / "bin", "python3", prints, status)
    with pytest.raises(SystemExit) as ended:
        chosen()
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# --- A step of the installation -------------------------------------------------------------------------------------


def test_a_long_step_says_what_it_is_at(choose: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it began last, while it goes on."""
    import bootstrap

    fifo = choose / "fifo"
    os.mkfifo(fifo)
    step = f"print('Collecting attrs', ' ---- 5 kB', sep=chr(10), flush=True); open({str(fifo)!r}).read()"
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        if "Collecting" in message:
            fifo.write_text("go on")

    monkeypatch.setattr(bootstrap, "say", say)
    monkeypatch.setattr(bootstrap, "LOG", choose / "log")
    monkeypatch.setattr(bootstrap, "SAY_SECONDS", 0.1)
    lock = os.open(choose, os.O_RDONLY)
    bootstrap.run([sys.executable, "-c", step], lock)
    os.close(lock)
    assert re.fullmatch(r"after \d+ s: Collecting attrs", said[-1])


# --- An environment that is another's ---------------------------------------------------------------------------------


def link(tmp_path: Path, made_for: str | None) -> tuple[Path, Path]:
    """A checkout whose .venv is a link, and what that leads to."""
    root, target = tmp_path / "here", tmp_path / "there" / ".venv"
    shutil.copytree(ROOT / "justmod", root / "justmod")
    shutil.copy2(ROOT / "setup.py", root)
    make_files(target, "bin/tool")
    if made_for is not None:
        (target / "ready").write_text(f"{made_for}\n/usr/bin/some-python\nPython 3\n")
    (root / ".venv").symlink_to(target)
    return root, target


def bootstrap_in(root: Path) -> subprocess.CompletedProcess[str]:
    named = make_interpreter(root, "python", "3 12 1")
    command = [sys.executable, root / "justmod" / "bootstrap.py"]
    return subprocess.run(command, env={"PATH": PATH, "MADKV_PYTHON": named}, capture_output=True, text=True)


@pytest.mark.parametrize("made_for", ["/some/where", None])
def test_an_environment_of_another_checkout_is_left_alone(tmp_path: Path, made_for: str | None) -> None:
    root, target = link(tmp_path, made_for)
    before = sorted((path, path.stat().st_mtime_ns) for path in target.rglob("*"))
    done = bootstrap_in(root)
    way_out = "remove it" if made_for is None else f"remove it, or run in {made_for}"
    assert (done.returncode, done.stderr) == (1, f"madkv: {root}/.venv is a link to {target}: {way_out}\n")
    assert sorted((path, path.stat().st_mtime_ns) for path in target.rglob("*")) == before
    assert (root / ".venv").is_symlink()


def test_a_link_to_what_was_made_for_this_checkout_is_followed(tmp_path: Path) -> None:
    root, target = link(tmp_path, str(tmp_path / "here"))
    assert "making .venv with Python 3.12.1" in bootstrap_in(root).stderr
    assert not (target / "bin" / "tool").exists()


# --- tree and clean --------------------------------------------------------------------------------------------------


def make_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def test_tree_with_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "b/two.py", "b/one.py", "a.py", ".venv/bin/python", "b/__pycache__/one.pyc", "x.egg-info/y")
    expected = ["├── a.py", "└── b/", "    ├── one.py", "    └── two.py"]
    assert list(tree.lines(tree.nested(tree.paths_on_disk(tmp_path)))) == expected
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert tree.paths_in_git(tmp_path) is None


def test_clean_spares_what_was_not_made_by_building(tmp_path: Path) -> None:
    make_files(tmp_path, "madkv.egg-info/x", ".ruff_cache/x", ".coverage.1", "madkv/__pycache__/a.pyc", "report/r.md")
    make_files(tmp_path, "twisted/plugins/dropin.cache", ".venv/lib/__pycache__/b.pyc", "madkv/a.py", "ycsb/bin/ycsb")
    found = sorted(str(path.relative_to(tmp_path)) for path in clean.by_products(tmp_path))
    expected = [".coverage.1", ".ruff_cache", "madkv.egg-info", "madkv/__pycache__", "twisted/plugins/dropin.cache"]
    assert found == expected


@pytest.mark.parametrize("tool", ["check", "clean", "kill", "tree", "ycsb"])
def test_outside_a_checkout_nothing_is_done(tmp_path: Path, tool: str) -> None:
    """Of an installed MadKV, the directory above holds the packages of others."""
    shutil.copytree(ROOT / "madkv", tmp_path / "madkv", ignore=shutil.ignore_patterns("__pycache__"))
    make_files(tmp_path, "other.egg-info/x", "build/lib.py", "dist/main.py", ".coverage.1")
    before = sorted(tmp_path.glob("**/*.*"))
    done = subprocess.run(
        [sys.executable, "-B", "-m", f"madkv.testing.{tool}"], cwd=tmp_path, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"madkv: {tmp_path} is no checkout of MadKV (it has no Justfile), so there is nothing to do here\n"
    )
    assert sorted(tmp_path.glob("**/*.*")) == before


# --- YCSB ------------------------------------------------------------------------------------------------------------


def archive(*names: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 5
            tar.addfile(entry, io.BytesIO(b"hello"))
    return packed.getvalue()


@pytest.fixture
def release() -> Iterator[str]:
    good = archive("ycsb-0.17.0/bin/ycsb", "ycsb-0.17.0/workloads/workloada")
    bodies = {
        "/good": good,
        "/cut": good[: len(good) // 2],
        "/other": archive("something/else"),
        "/outside": archive("ycsb-0.17.0/bin/ycsb", "../outside"),
        "/page": b"<html>log in first</html>",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetch(monkeypatch: pytest.MonkeyPatch, root: Path, url: str) -> int:
    monkeypatch.setattr(ycsb, "checkout", lambda: root)
    monkeypatch.setenv("MADKV_YCSB_URL", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return ycsb.main()


def test_ycsb_is_fetched_once(tmp_path: Path, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(monkeypatch, tmp_path, f"{release}/good") == 0
    assert (tmp_path / "ycsb" / "bin" / "ycsb").read_text() == "hello"
    assert fetch(monkeypatch, tmp_path, f"{release}/missing") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ycsb"]


@pytest.mark.parametrize("path", ["/cut", "/other", "/outside", "/page", "/missing", None])
def test_ycsb_that_cannot_be_had_leaves_nothing(
    tmp_path: Path,
    release: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str | None,
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert fetch(monkeypatch, root, f"{release}{path}" if path else "http://127.0.0.1:1/nobody-here") == 1
    announced, *error = capsys.readouterr().err.splitlines()
    assert announced.startswith("fetching") and len(error) == 1
    assert list(root.iterdir()) == [] and not (tmp_path / "outside").exists()
