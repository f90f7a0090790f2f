"""Who is refused with TLS: each is told in one clear line on both sides, and nobody else notices."""

import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from madkv.addresses import parse_address
from madkv.client.blocking import BlockingClient
from madkv.client.secure import SecureConnection, why_failed
from madkv.errors import MadKVError, Rejected, TLSError
from madkv.limits import TLS_STRANGERS_MAX
from madkv.testing.cluster import Cluster
from madkv.testing.node import twistd
from madkv.tls import TLSFiles
from madkv.wire import codec
from madkv.wire.boxes import field
from tests.certified import Certificates, line_client, options
from tests.e2e.clusters import refusal
from tests.processes import Process, ServerProcess

REFUSES = "it refuses the certificate of this side: "


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[ServerProcess]:
    with ServerProcess(*certificates.words("s0")) as server:
        yield server


@pytest.fixture(autouse=True)
def _nobody_else_notices(server: ServerProcess, certificates: Certificates) -> Iterator[None]:
    """A connection from before a refusal answers after it, and so does a new one."""
    with BlockingClient(server.address, tls=certificates.of("client")) as before:
        before.put(b"key", b"before")
        connections = dict(before._connections)
        yield
        assert before.swap(b"key", b"after") == b"before"
        assert before._connections == connections
    with BlockingClient(server.address, tls=certificates.of("client")) as after:
        assert after.get(b"key") == b"after"


def refused(process: Process, why: str) -> None:
    """The last line of this kind on the side that listens."""
    process.wait_for(rf"refused a connection of 127\.0\.0\.1:\d+: {why}$")


# --- Clients at a server ----------------------------------------------------------------------------------------------


def test_a_certificate_that_has_expired(server: ServerProcess, certificates: Certificates, tmp_path: Path) -> None:
    with line_client(tmp_path, "--server", server.address, *certificates.words("expired")) as client:
        client.wait_for(rf"^madkv: waiting for {server.address}: {REFUSES}that has expired$")
    refused(server, "its certificate has expired")


def test_a_certificate_of_another_ca(server: ServerProcess, certificates: Certificates, tmp_path: Path) -> None:
    with line_client(tmp_path, "--server", server.address, *options(certificates.of_another_ca)) as client:
        client.wait_for(rf"^madkv: waiting for {server.address}: {REFUSES}that is not of the CA that is trusted there$")
    refused(server, "its certificate is not of the CA that is trusted here")


def test_a_client_that_trusts_another_ca(server: ServerProcess, certificates: Certificates, tmp_path: Path) -> None:
    with line_client(tmp_path, "--server", server.address, *options(certificates.trusting_another_ca)) as client:
        client.wait_for(
            rf"^madkv: waiting for {server.address}: its certificate is not of the CA that is trusted here$"
        )
    refused(server, f"{REFUSES}that is not of the CA that is trusted there")


def test_no_certificate(server: ServerProcess, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=certificates.of("client").ca)
    with (
        socket.create_connection((server.host, server.port)) as plain,
        context.wrap_socket(plain, server_hostname=server.host) as connection,
        pytest.raises(OSError) as raised,
    ):
        connection.sendall(codec.request(1, codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION)))
        connection.recv(1)
    assert why_failed(raised.value) == "it wants a certificate, and was shown none"
    refused(server, "it has shown no certificate")


def test_a_certificate_without_a_name_of_madkv(server: ServerProcess, certificates: Certificates) -> None:
    stranger = certificates.issue("stranger", "https://example.com/", is_node=False)
    assert refusal_of(stranger, server.address) == f"{REFUSES}not this role, node or address"
    refused(
        server,
        "its certificate is of nobody of MadKV, and here only one of a client or manager or operator or server does",
    )


def test_a_client_without_tls(server: ServerProcess, tmp_path: Path) -> None:
    with line_client(tmp_path, "--server", server.address) as client:
        client.wait_for(
            rf"^madkv: waiting for {server.address}: not an AMP box: it looks like TLS; "
            "this side speaks TLS only with --tls-ca, --tls-cert and --tls-key$"
        )
    refused(server, "it does not speak TLS, and this port speaks nothing else")


def test_a_client_with_tls_at_a_server_without(certificates: Certificates, tmp_path: Path) -> None:
    with (
        ServerProcess() as plain,
        line_client(tmp_path, "--server", plain.address, *certificates.words("client")) as client,
    ):
        client.wait_for(
            rf"^madkv: waiting for {plain.address}: "
            "it closed the connection instead of answering in TLS, which it may not speak$"
        )
        plain.wait_for(
            r"closed the connection of 127\.0\.0\.1:\d+: not an AMP box: it looks like a TLS hello; "
            "this side speaks TLS only with --tls-ca, --tls-cert and --tls-key$"
        )


@pytest.mark.parametrize(
    ("name", "uri", "host", "said"),
    [
        (
            "elsewhere",
            "madkv://server/s0",
            "10.1.2.3",
            "its certificate is not for the address at which it was reached",
        ),
        ("other-node", "madkv://server/s1", "127.0.0.1", "s0 shows a certificate of server s1"),
        (
            *("a-client", "madkv://client/x", "127.0.0.1"),
            "its certificate is of client x, and here only one of a manager or server does",
        ),
    ],
)
def test_a_server_with_a_certificate_that_is_not_its(
    certificates: Certificates, tmp_path: Path, name: str, uri: str, host: str, said: str
) -> None:
    """An impostor that has a certificate of the CA: the client says what is wrong with it."""
    with (
        Impostor(certificates.issue(name, uri, [host])) as impostor,
        line_client(tmp_path, "--server", impostor.address, *certificates.words("client")) as client,
    ):
        client.wait_for(rf"^madkv: waiting for {impostor.address}: {said}$")


def test_one_that_says_nothing_is_let_go(server: ServerProcess) -> None:
    with socket.create_connection((server.host, server.port)) as silent:
        silent.settimeout(30)
        with pytest.raises(ConnectionResetError):
            silent.recv(1)
    refused(server, "no TLS within 5 seconds")


def test_those_that_say_nothing_keep_nobody_out(server: ServerProcess, certificates: Certificates) -> None:
    """Nor does a port keep more of them than its bound."""
    silent = [socket.create_connection((server.host, server.port)) for _ in range(TLS_STRANGERS_MAX + 1)]
    try:
        with BlockingClient(server.address, tls=certificates.of("client")) as client:
            client.put(b"key", b"before")
        silent[0].settimeout(30)
        with pytest.raises(ConnectionResetError):
            silent[0].recv(1)
    finally:
        for each in silent:
            each.close()
    refused(server, "too many others have shown no certificate yet, either")


# --- Certificates of the server itself --------------------------------------------------------------------------------


def server_words(tls: TLSFiles) -> list[str]:
    return [*twistd(), "madkv-server", "--listen", "127.0.0.1:0", *options(tls)]


def test_a_server_ends_with_a_certificate_that_is_not_its(certificates: Certificates) -> None:
    line = refusal(server_words(certificates.of("s0.1")))
    assert (
        line == f"--tls-cert: {certificates.of('s0.1').certificate} is a certificate of server s0.1, not of server s0"
    )
    line = refusal(server_words(certificates.of("client")))
    assert line.endswith("client.pem is a certificate of client client, not of server s0")


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("no file", "--tls-ca: nowhere: No such file or directory"),
        ("no certificate", "--tls-cert: {key} holds no certificate in PEM format"),
        ("other key", "--tls-key: {other} is no key without a passphrase, or not the one to {certificate}"),
    ],
)
def test_a_server_ends_with_files_that_are_of_no_use(certificates: Certificates, which: str, said: str) -> None:
    mine, other = certificates.of("s0"), certificates.of("client").key
    files = {
        "no file": TLSFiles("nowhere", mine.certificate, mine.key),
        "no certificate": TLSFiles(mine.ca, mine.key, mine.key),
        "other key": TLSFiles(mine.ca, mine.certificate, other),
    }[which]
    told = said.format(key=mine.key, other=other, certificate=mine.certificate)
    assert refusal(server_words(files)) == told.replace("nowhere", os.path.abspath("nowhere"))


def test_clients_are_told_of_files_that_are_of_no_use(certificates: Certificates, tmp_path: Path) -> None:
    mine = certificates.of("client")
    words = ["--server", "127.0.0.1:1", "--tls-ca", mine.ca, "--tls-cert", mine.certificate]
    with line_client(tmp_path, *words) as client:
        assert client.wait() == 2
        assert client.output == "madkv: --tls-ca, --tls-cert and --tls-key go together: --tls-key is missing"
    with line_client(tmp_path, *words, "--tls-key", certificates.of("s0").key) as client:
        assert client.wait() == 2
        assert client.output.startswith("madkv: --tls-cert, --tls-key: ")


def test_new_certificates_are_taken_up_and_no_connection_is_lost(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    mine = certificates.of("client")
    with ServerProcess(*certificates.words("s0")) as server, connected(mine, server.address) as before:
        first = serial_of(before)
        assert before.exchange(codec.STATUS, b"", 5.0)
        certificates.renew("s0")
        server.signal(signal.SIGHUP)
        server.wait_for("took up the certificates anew")
        assert before.exchange(codec.STATUS, b"", 5.0)
        with connected(mine, server.address) as after:
            second = serial_of(after)
        assert second != first
        Path(certificates.of("s0").certificate).write_text("half a fi")
        server.signal(signal.SIGHUP)
        server.wait_for("the certificates stay as they were: --tls-cert: .*s0.pem holds no certificate in PEM format")
        assert before.exchange(codec.STATUS, b"", 5.0)
        with connected(mine, server.address) as after:
            assert serial_of(after) == second
        assert before.exchange(codec.STATUS, b"", 5.0)
        assert server.stop() == 0


# --- Nodes of a cluster -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster.local(tmp_path_factory.mktemp("cluster"), partitions=1, rf=3, managers=1, tls=True) as cluster:
        yield cluster


def theirs(cluster: Cluster, name: str) -> TLSFiles:
    directory = cluster.certificates
    return TLSFiles(*(str(directory / each) for each in ("ca.pem", f"{name}.pem", f"{name}.key")))


def logged(cluster: Cluster, node: str, line: str) -> None:
    log = cluster.log(cluster.shape.node(node))
    cluster.wait_until(lambda: line in log.read_text(), f"{node} says {line!r}")


def peer_hello(cluster: Cluster, replica: int) -> bytes:
    """What replica `replica` says to s0.0."""
    ports = [parse_address(each)[1] for each in cluster.shape.server_p2ps]
    return (
        codec.integer(b"version", codec.PROTOCOL_VERSION)
        + field(b"cluster", cluster.partition_map().cluster.encode())
        + field(b"group", b"s0")
        + codec.integer(b"replica", replica)
        + field(b"disk", b"d" * 16)
        + codec.integer(b"to", 0)
        + codec.ports(b"ports", tuple(ports))
    )


def test_a_certificate_of_a_client_at_a_port_for_peers(cluster: Cluster) -> None:
    assert refusal_of(theirs(cluster, "client"), cluster.shape.server_p2ps[0]) == (
        f"{REFUSES}not this role, node or address"
    )
    logged(cluster, "s0.0", "its certificate is of client client, and here only one of a server does")
    assert refusal_of(theirs(cluster, "s0.0"), cluster.shape.manager_p2ps[0]) == (
        f"{REFUSES}not this role, node or address"
    )
    logged(cluster, "m.0", "its certificate is of server s0.0, and here only one of a manager does")


def test_a_node_that_poses_as_another_one_at_a_peer(cluster: Cluster) -> None:
    with (
        connected(theirs(cluster, "s0.1"), cluster.shape.server_p2ps[0]) as connection,
        pytest.raises(Rejected, match=r"^s0\.2 shows a certificate of server s0\.1$"),
    ):
        connection.exchange(codec.PEER_HELLO, peer_hello(cluster, 2), 5.0)
    logged(cluster, "s0.0", ": s0.2 shows a certificate of server s0.1")


def test_a_node_that_poses_as_another_one_at_a_manager(cluster: Cluster) -> None:
    """So does a client."""
    fields = (
        field(b"cluster", cluster.partition_map().cluster.encode())
        + codec.integer(b"partition", 0)
        + codec.integer(b"replica", 2)
        + field(b"disk", b"d" * 16)
        + codec.integer(b"api_port", parse_address(cluster.shape.servers[2])[1])
        + codec.integer(b"p2p_port", parse_address(cluster.shape.server_p2ps[2])[1])
        + field(b"peers", ",".join(cluster.shape.server_p2ps[:2]).encode())
        + codec.integer(b"rf", 3)
        + field(b"has_vote", b"False")
    )
    for name, shown in (("s0.1", "server s0.1"), ("client", "client client")):
        with (
            connected(theirs(cluster, name), cluster.shape.managers[0]) as connection,
            pytest.raises(Rejected, match=rf"^s0\.2 shows a certificate of {shown}$"),
        ):
            connection.exchange(codec.REGISTER, fields, 5.0)
        logged(cluster, "m.0", f": s0.2 shows a certificate of {shown}")


def test_a_node_at_whose_address_another_one_answers(cluster: Cluster) -> None:
    node, address = cluster.shape.node("s0.2"), cluster.shape.server_p2ps[2]
    assert cluster.terminate(node)
    try:
        with Impostor(theirs(cluster, "s0.1"), parse_address(address)) as impostor:
            wrong = "its certificate is of server s0.1, and not of server s0.2"
            logged(cluster, "s0.0", f"no connection to s0.2 ({address}): {wrong}")
            assert set(impostor.told()) == {f"{REFUSES}not this role, node or address"}
    finally:
        cluster.start(node)
        cluster.wait_until_caught_up(node)


def test_a_node_with_the_certificate_of_another_one_ends(cluster: Cluster, tmp_path: Path) -> None:
    words = [*twistd(), *cluster.shape.command(cluster.shape.node("s0.2"), str(tmp_path / "blank"))]
    line = refusal([*words, *options(theirs(cluster, "s0.1"))])
    assert line.endswith("s0.1.pem is a certificate of server s0.1, not of server s0.2")
    assert not (tmp_path / "blank").exists()


def test_a_node_without_tls_among_those_with(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.shape.node("s0.2")
    assert cluster.terminate(node)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MADKV_TLS")}
    words = [*twistd(), *cluster.shape.command(node, str(cluster.directory(node)))]
    try:
        with Process(words, environment) as plain:
            plain.wait_for("can be reached from other machines, by anybody and without TLS")
            for peer in (0, 1):
                where = re.escape(f"s0.{peer} ({cluster.shape.server_p2ps[peer]})")
                plain.wait_for(f"no connection to {where}: not an AMP box: it looks like TLS; this side")
            plain.wait_for("waiting for the manager at .*: not an AMP box: it looks like TLS; this side")
            plain.wait_for("not an AMP box: it looks like a TLS hello; this side")
            logged(cluster, "s0.0", "it does not speak TLS, and this port speaks nothing else")
            where = f"s0.2 ({cluster.shape.server_p2ps[2]})"
            closed = "it closed the connection instead of answering in TLS, which it may not speak"
            logged(cluster, "s0.0", f"no connection to {where}: {closed}")
    finally:
        cluster.start(node)
        cluster.wait_until_caught_up(node)


# --- Both sides of a connection, by hand ------------------------------------------------------------------------------


def connected(tls: TLSFiles, address: str) -> AbstractContextManager[SecureConnection]:
    return closing(SecureConnection(tls, parse_address(address), None))


def serial_of(connection: SecureConnection) -> str:
    return str(connection.certificate["serialNumber"])


def refusal_of(tls: TLSFiles, address: str) -> str:
    """What whoever connects with these files is told."""
    with pytest.raises(MadKVError) as raised, connected(tls, address) as connection:
        connection.exchange(codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION), 5.0)
    assert isinstance(raised.value, TLSError)
    return str(raised.value)


class Impostor:
    """Listens with certificates that may not be its own, and answers Hello in the name of s0."""

    def __init__(self, tls: TLSFiles, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        self._context = context
        self._listening = socket.create_server(address)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._told: list[str] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Impostor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.told()

    def told(self) -> list[str]:
        """What it was refused with by now; it listens no more."""
        try:
            self._listening.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was asked before
        self._thread.join()
        self._listening.close()
        return self._told

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            self._answer(plain)

    def _answer(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(1000)
                answer = codec.integer(b"version", codec.PROTOCOL_VERSION) + field(b"node", b"s0")
                connection.sendall(codec.answer(b"1", answer + field(b"role", b"solo") + field(b"boot", b"b")))
                connection.recv(1)
        except OSError as error:
            self._told.append(why_failed(error))
