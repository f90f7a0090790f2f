"""Recipes with `tls=yes`: what they start speaks TLS and nothing else, and so do the clients that they start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from madkv.operate.ask import ask_status
from madkv.testing import certificates, node
from madkv.testing.cluster import STATE, Cluster
from madkv.testing.node import command, with_certificates
from madkv.tls import VARIABLES
from tests.certified import line_client
from tests.processes import ROOT, ServerProcess
from tests.wrong_clients import just_script

SECONDS_MAX = 120
WITH_PLAIN_NODES = "not an AMP box: it looks like TLS; this side speaks TLS only with"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (certificates.VARIABLE, *VARIABLES):
        monkeypatch.delenv(name, raising=False)


def operate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "madkv.testing.operate", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )


def run(tool: str, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a tool with right clients."""
    command = [sys.executable, "-m", f"madkv.testing.{tool}", *words, "--just", just_script(directory, "nothing")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX)


def test_a_cluster_from_up_to_down(tmp_path: Path) -> None:
    root = tmp_path / "cluster"
    up = operate("up", f"root={root}", "partitions=1", "rf=1", "managers=1", "tls=yes")
    try:
        assert up.returncode == 0, up.stderr
        address = json.loads((root / STATE).read_text())["shape"]["managers"][0]
        assert f"clients: {certificates.VARIABLE}={root}/tls ./justw p3::client {address}" in up.stdout
        assert ask_status(address) is None, "it speaks with nobody without TLS"
        blind = operate("status", f"managers={address}")
        assert blind.returncode == 1
        assert f"no manager answers at {address}: {WITH_PLAIN_NODES}" in blind.stderr
        status = operate("status", f"root={root}")
        assert (status.returncode, "unwell" in status.stdout) == (0, False)
        other = operate("up", f"root={root}", "tls=no")
        assert other.returncode == 1 and "managers=1 tls=yes, for good, and not tls=no" in other.stderr
        with line_client(tmp_path, "--managers", address, *certificates.options_of(root / "tls", "client")) as client:
            assert client.wait() == 0
            assert client.lines["stdout"] == ["GET key null"]
        for words in (["kill-node", "s0.0"], ["start-node", "s0.0"]):
            assert operate(*words, f"root={root}").returncode == 0
    finally:
        down = operate("down", f"root={root}")
    assert down.returncode == 0
    assert not root.exists()


def test_a_cluster_takes_its_certificates_out_of_the_environment_again(tmp_path: Path) -> None:
    with Cluster.local(tmp_path / "cluster", 1, None, tls=True) as cluster:
        assert os.environ["MADKV_TLS_CERT"] == str(cluster.certificates / "client.pem")
        assert all(cluster.statuses().values())
    assert not any(name.startswith("MADKV_TLS") for name in os.environ)


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("testcase", ["1", "--module", "p2"]),
        ("crashfuzz", ["p2", "2", "ops=300"]),
        ("chaos", ["seconds=3", "partitions=1", "rf=3", "managers=1", "network=no"]),
        ("rolling", ["partitions=1", "clients=2"]),
    ],
)
def test_tools_with_clusters_of_their_own(tmp_path: Path, tool: str, words: list[str]) -> None:
    done = run(tool, tmp_path, *words, "tls=yes")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].endswith("PASSED")


def test_tools_that_call_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the directory that the environment names; and without it they get no answer."""
    directory = tmp_path / "tls"
    certificates.make(directory, {"s0": ["127.0.0.1"]}, ["client"])
    with ServerProcess(*certificates.options_of(directory, "s0")) as server:
        words = ["3", "yes", "--address", server.address, "ops=50", "call-seconds=2"]
        refused = run("fuzz", tmp_path, *words)
        assert refused.returncode == 1 and WITH_PLAIN_NODES in refused.stderr
        monkeypatch.setenv("MADKV_TLS", str(directory))
        done = run("fuzz", tmp_path, *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_service_without_certificates_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADKV_TLS", str(tmp_path / "nowhere"))
    done = subprocess.run(
        [sys.executable, "-m", "madkv.bench.run", "1", "a"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    line = f"there are no certificates in {tmp_path}/nowhere; `./justw tls::make` makes them"
    assert (done.returncode, done.stderr) == (1, f"madkv bench: {line}\n")


@pytest.mark.parametrize("words", [["run", "s0", "madkv-server"], ["p2", "m", "a:1", "a:2", "backer"]])
def test_a_node_without_certificates_is_one_line(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "madkv.testing.node", *words],
        cwd=ROOT,
        env={**os.environ, "MADKV_TLS": str(tmp_path / "nowhere")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    line = f"there are no certificates in {tmp_path}/nowhere; `./justw tls::make` makes them"
    assert (done.returncode, done.stderr) == (1, f"madkv service: {line}\n")


def test_a_cluster_that_is_there_without_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for one with TLS, as `./justw` hands it on, is not left to believe in it."""
    root = tmp_path / "cluster"
    assert operate("up", f"root={root}", "partitions=1", "rf=0").returncode == 0
    try:
        monkeypatch.setenv(certificates.VARIABLE, str(tmp_path / "tls"))
        other = operate("up", f"root={root}")
        assert other.returncode == 1 and "managers=1, for good, and not tls=yes" in other.stderr
    finally:
        assert operate("down", f"root={root}").returncode == 0


def test_nodes_get_certificates_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_certificates("s0.1", ["--splits=g"]) == ["--splits=g"]
    (tmp_path / "tls").mkdir()
    monkeypatch.setattr(node, "ROOT", tmp_path)
    named = certificates.options_of(tmp_path / "tls", "s0.1")
    assert with_certificates("s0.1", ["--splits=g", "tls=yes"]) == [*named, "--splits=g"]
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    monkeypatch.setenv("MADKV_TLS", str(directory))
    elsewhere = certificates.options_of(directory, "m")
    assert with_certificates("m", []) == elsewhere
    assert with_certificates("m", ["tls=no"]) == []
    assert with_certificates("m", ["--tls-ca=x"]) == ["--tls-ca=x"]
    words = command("p2", ["m", "127.0.0.1:1", "127.0.0.1:2", "backer", "--splits=g"])
    assert words[-len(elsewhere) - 1 :] == [*elsewhere, "--splits=g"]
