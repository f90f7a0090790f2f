"""The units in contrib/systemd: systemd understands them, and what they run understands their arguments."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from madkv.manager.tap import Options as ManagerOptions
from madkv.server.process import STOP_SECONDS_MAX
from madkv.server.tap import Options as ServerOptions
from tests.processes import ROOT, TWISTD

UNITS = ROOT / "contrib" / "systemd"
INSTALLED = "/opt/madkv/bin/twistd"
BOTH = pytest.mark.parametrize(
    ("kind", "node", "options"), [("server", "s0.1", ServerOptions()), ("manager", "m.1", ManagerOptions())]
)


def unit(kind: str) -> str:
    """The unit's text, with lines that go on joined."""
    return (UNITS / f"madkv-{kind}@.service").read_text().replace("\\\n", " ")


def settings(kind: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", unit(kind), re.M))


def environment(node: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", (UNITS / f"{node}.env").read_text(), re.M))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("kind", ["server", "manager"])
def test_systemd_understands_them(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"madkv-{kind}@.service"
    path.write_text((UNITS / path.name).read_text().replace(INSTALLED, str(TWISTD)))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # It does look: what is wrong shows.
    path.write_text(path.read_text().replace("KillSignal=SIGTERM", "KillSignal=PLEASE"))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert "Failed to parse signal name" in done.stderr


@BOTH
def test_what_they_run_takes_its_arguments(kind: str, node: str, options: Any) -> None:
    command = settings(kind)["ExecStart"].replace("%i", node)
    values = environment(node)
    used = set(re.findall(r"\$\{?(\w+)\}?", command))
    assert used == set(values), "each has its value in the example, and no other is there"
    command = re.sub(r"\$\{(\w+)\}", lambda match: shlex.quote(values[match[1]]), command)
    command = re.sub(r"\$(\w+)", lambda match: values[match[1]], command)
    program, *twistd, name = (words := shlex.split(command))[:4]
    assert (program, twistd, name) == (INSTALLED, ["-n", "--pidfile="], f"madkv-{kind}")
    options.parseOptions(words[4:])
    assert options["shape"].node == node
    assert options["shape"].backer == Path(f"/var/lib/{settings(kind)['StateDirectory'].replace('%i', node)}")


@BOTH
def test_they_give_time_to_end_in_good_order(kind: str, node: str, options: Any) -> None:
    found = settings(kind)
    assert found["KillSignal"] == "SIGTERM"
    assert int(found["TimeoutStopSec"]) > STOP_SECONDS_MAX + 1
