"""What the documentation shows is what happens: its Python examples run, against a real server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, ServerProcess

DEFAULT_ADDRESS = "127.0.0.1:3777"
DEFAULT_PORT = '"127.0.0.1", 3777'
DOCUMENTS = sorted(ROOT.glob("docs/*.md")) + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def examples(document: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def run(code: str, server: ServerProcess) -> list[str]:
    """Run an example against the server; the lines that it prints."""
    code = code.replace(DEFAULT_ADDRESS, server.address).replace(DEFAULT_PORT, f'"{server.host}", {server.port}')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_blocking_example_returns_what_its_comments_say() -> None:
    """Each line with a comment is evaluated, and must give the comment."""
    (code, *_) = examples("docs/clients.md")
    checked, expected = re.subn(
        r"^    (store\..*?)  +# ([^:\n]*)(:.*)?$", r"    print(repr(\1) == repr(\2))", code, flags=re.M
    )
    assert expected == 5
    with ServerProcess() as server:
        assert run(checked, server) == ["True"] * expected


def test_the_deferred_example_finds_its_pairs() -> None:
    """A thousand calls in flight, and a scan that sees them all."""
    (_, code, _) = examples("docs/clients.md")
    with ServerProcess() as server:
        assert run(code, server) == ["1000"]


def test_the_asyncio_example_finds_its_pairs() -> None:
    """The same, and a call with a bound on its time."""
    (_, _, code) = examples("docs/clients.md")
    with ServerProcess() as server:
        assert run(code, server) == ["1000", "b'v'"]


def test_the_script_with_stock_amp_gets_its_answers() -> None:
    """Nothing but Twisted's AMP and the public commands."""
    (code,) = examples("docs/wire.md")
    with ServerProcess() as server:
        assert run(code, server) == ["{'found': False}", "{'value': b'green'}"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(document: Path) -> None:
    """Every relative link names a file, and a heading of it where it names one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            anchors = [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{document.name} links to {target}"
