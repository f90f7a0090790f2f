"""A cluster with TLS whose nodes go by a name: what operators do with it, new certificates under load, and its pages.

And what has no TLS, or has no certificates, beside it.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509

from madkv.addresses import parse_address
from madkv.client.blocking import BlockingClient
from madkv.client.secure import SecureConnection
from madkv.testing import certificates
from madkv.testing.certificates import Authority, CertificatesError
from madkv.testing.cluster import Cluster
from madkv.testing.options import Parser, add_shared
from madkv.tls import OPERATOR, VARIABLES, name_of
from tests.certified import Certificates
from tests.monitor.daemons import get, get_json
from tests.processes import ROOT, ServerProcess, free_address

SECONDS_MAX = 120.0
EVERY = (certificates.VARIABLE, *VARIABLES)
PLAIN_AT_TLS = "not an AMP box: it looks like TLS; this side speaks TLS only with --tls-ca, --tls-cert and --tls-key"
PAIRS = {b"%c-%d" % (ord("A") + number % 58, number): b"%d" % number for number in range(200)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three replicas and a manager, which find each other by a name, and show themselves."""
    local = Cluster.local(tmp_path_factory.mktemp("cluster"), 1, 3, 1, tls=True, http=True)
    with Cluster(local.shape.on_hosts(lambda node: "localhost"), local.root, tls=True) as cluster:
        with BlockingClient(managers=cluster.address) as client:
            for key, value in PAIRS.items():
                client.put(key, value)
        yield cluster


def madkv(cluster: Cluster, *words: str, certified_as: str = OPERATOR) -> subprocess.CompletedProcess[str]:
    """Run a command with the three options."""
    return bare(*words, "--managers", cluster.address, *certificates.options_of(cluster.certificates, certified_as))


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one with nothing of TLS in the environment."""
    return subprocess.run(
        [sys.executable, "-m", "madkv.cli", *words],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in EVERY},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


@pytest.fixture(scope="module")
def file(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it."""
    file = tmp_path_factory.mktemp("backup") / "file"
    done = madkv(cluster, "backup", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    return file


def test_a_backup_from_one_cluster_into_another(cluster: Cluster, file: Path, tmp_path: Path) -> None:
    done = madkv(cluster, "restore", str(file))
    assert done.returncode == 2 and "the cluster is not empty" in done.stderr
    with Cluster.local(tmp_path / "other", 1, None, tls=True) as other:
        done = madkv(other, "restore", str(file), certified_as="client")
        assert (done.returncode, done.stdout.startswith("restored 200 pairs, ")) == (0, True), done
        with BlockingClient(managers=other.address) as client:
            assert dict(client.scan(b"", b"~")) == PAIRS


def test_the_lead_is_handed_over(cluster: Cluster) -> None:
    follower = next(node for node in cluster.shape.nodes("s0") if node != cluster.leader("s0"))
    done = madkv(cluster, "transfer-leader", str(follower))
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.leader("s0") == follower
    done = madkv(cluster, "status")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_for_operators(cluster: Cluster, tmp_path: Path) -> None:
    """With the certificate of a client nothing of it is done, and both sides say why in one line."""
    leader = cluster.leader("s0")
    assert leader is not None
    other = next(node for node in cluster.shape.nodes("s0") if node != leader)
    file = tmp_path / "file"
    for command, called, word, node in (
        ("backup", "Backup", str(file), "s0.0"),
        ("transfer-leader", "TransferLeader", str(other), "s0.0"),
        ("replace-disk", "ReplaceDisk", "s0.2", "m.0"),
    ):
        done = madkv(cluster, command, word, certified_as="client")
        line = f"{called} is for operators: the certificate is of client client; see docs/tls.md"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"madkv {command}: {line}\n")
        log = cluster.log(cluster.shape.node(node)).read_text()
        assert re.findall(rf"refused a call of \S+:\d+: {re.escape(line)}$", log, re.MULTILINE), log
    assert not file.exists()
    assert cluster.leader("s0") == leader
    done = madkv(cluster, "status", certified_as="client")
    assert (done.returncode, done.stderr) == (0, ""), "which shows no vacant disk"
    with BlockingClient(managers=cluster.address, tls=cluster.operator) as client:
        assert client.get(min(PAIRS)) == PAIRS[min(PAIRS)], "an operator may do what clients may"


@pytest.mark.parametrize("by", ["the command", "the cluster"])
def test_a_disk_is_replaced(cluster: Cluster, by: str) -> None:
    """By an operator, which is what a cluster of a recipe is to its managers."""
    node = cluster.shape.node("s0.2")
    cluster.kill(node)
    if by == "the command":
        done = madkv(cluster, "replace-disk", str(node))
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert cluster.replace_disk(node) is None
    cluster.wipe(node)
    cluster.start(node)
    cluster.wait_until_caught_up(node)


@pytest.mark.parametrize("words", ["status", "backup {file}-2", "restore {file}", "transfer-leader s0.1"])
def test_operators_without_certificates_are_told_why(cluster: Cluster, file: Path, words: str) -> None:
    """Not only that nobody answers; also where the first of the managers is down."""
    done = bare(*words.format(file=file).split(), "--managers", f"{free_address()},{cluster.address}")
    assert (done.returncode, done.stdout) == (2, "")
    assert PLAIN_AT_TLS in done.stderr


def test_new_certificates_under_load(cluster: Cluster) -> None:
    """All nodes take them up, and no connection is lost: neither a client's nor one between nodes."""
    with BlockingClient(managers=cluster.address) as client:
        client.put(b"load", b"0")
        connections = dict(client._connections)
        lost = {node: cluster.log(node).read_text().count("no connection to") for node in cluster.shape.nodes()}
        is_over = threading.Event()
        found: list[bytes | None] = []

        def load() -> None:
            while not is_over.is_set():
                found.append(client.swap(b"load", b"%d" % (len(found) + 1)))

        loading = threading.Thread(target=load)
        loading.start()
        try:
            for node in cluster.shape.nodes():
                renew(cluster, str(node))
                cluster.process(node).send_signal(signal.SIGHUP)
                wait_for_line(cluster, str(node), "took up the certificates anew")
                calls = len(found)
                cluster.wait_until(lambda calls=calls: len(found) > calls + 10, "calls after it")  # type: ignore[misc]
        finally:
            is_over.set()
            loading.join()
        assert found == [b"%d" % number for number in range(len(found))]
        assert client._connections == connections
    for node, before in lost.items():
        assert cluster.log(node).read_text().count("no connection to") == before
        assert serial_at(cluster, cluster.shape.address(node)) == serial_of(cluster, str(node))
    down = cluster.shape.node("s0.2")
    assert cluster.terminate(down)
    cluster.start(down)
    cluster.wait_until_caught_up(down)


def renew(cluster: Cluster, node: str) -> None:
    """Put another certificate and key of a node in the place of those that are there."""
    directory = cluster.certificates
    Authority(directory).issue(directory, f"{node}-new", name_of(node), ["localhost"])
    for suffix in ("key", "pem"):
        (directory / f"{node}-new.{suffix}").rename(directory / f"{node}.{suffix}")


def wait_for_line(cluster: Cluster, node: str, line: str) -> None:
    log = cluster.log(cluster.shape.node(node))
    cluster.wait_until(lambda: line in log.read_text(), f"{node} says {line!r}")


def serial_at(cluster: Cluster, address: str) -> int:
    theirs = certificates.files(cluster.certificates, "client")
    with closing(SecureConnection(theirs, parse_address(address), None)) as connection:
        return int(str(connection.certificate["serialNumber"]), 16)


def serial_of(cluster: Cluster, node: str) -> int:
    return x509.load_pem_x509_certificate((cluster.certificates / f"{node}.pem").read_bytes()).serial_number


def test_the_pages_beside_tls(cluster: Cluster) -> None:
    """They are HTTP as ever, and look at the other nodes with TLS."""
    for page in cluster.shape.pages().values():
        assert get(page, "/readyz")[0] == 200
        cluster.wait_until(lambda page=page: is_well(page), f"{page} shows all of the cluster")  # type: ignore[misc]


def is_well(page: str) -> bool:
    code, shown = get_json(page, "/cluster.json")
    nodes = [each for group in shown["groups"] for each in group["nodes"]]
    return code == 200 and shown["well"] and len(nodes) == 4 and all(each["answers"] for each in nodes)


def test_a_server_by_ipv6(tmp_path: Path) -> None:
    made = Certificates(tmp_path, ["s0"])
    with (
        ServerProcess(*made.words("s0"), listen="[::1]:0") as server,
        BlockingClient(server.address, tls=made.of("client")) as client,
    ):
        client.put(b"key", b"value")
        assert client.get(b"key") == b"value"


def test_a_cluster_without_tls_while_the_environment_has_certificates(cluster: Cluster, tmp_path: Path) -> None:
    """They are of another service, and back again afterwards."""
    before = {name: os.environ[name] for name in EVERY}
    with Cluster.local(tmp_path / "plain", 1, None) as plain, BlockingClient(managers=plain.address) as client:
        client.put(b"key", b"value")
        assert all(plain.statuses().values())
    assert {name: os.environ[name] for name in EVERY} == before
    assert all(cluster.statuses().values())


def test_certificates_that_recipes_do_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name three files in the directory, and it is the directory that is missing."""
    for name, value in certificates.environment(tmp_path / "nowhere").items():
        monkeypatch.setenv(name, value)
    parser = Parser()
    add_shared(parser, "tls")
    with pytest.raises(CertificatesError, match=r"there are no certificates in .*nowhere; `\./justw tls::make` makes"):
        certificates.take(parser.parse_args([]))
    monkeypatch.setenv(VARIABLES[0], str(tmp_path / "my.pem"))
    certificates.take(parser.parse_args([]))
    assert os.environ[VARIABLES[0]] == str(tmp_path / "my.pem"), "files that somebody has chosen go first"
