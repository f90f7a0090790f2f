"""TLS's options and words, the certificates that recipes make, and all clients with them."""

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.task import deferLater

from madkv import cli
from madkv.client.aio import AsyncClient
from madkv.client.api import Client
from madkv.client.blocking import BlockingClient
from madkv.errors import InvalidArgument, Rejected, TLSError
from madkv.limits import VALUE_BYTES_MAX
from madkv.testing import certificates as making
from madkv.testing.certificates import CertificatesError
from madkv.tls import (
    VARIABLES,
    TLSFiles,
    check_claim,
    check_hello,
    check_operator,
    explain,
    names_among,
    roles_of,
    shown,
    tls_files,
)
from tests.certified import Certificates
from tests.processes import ServerProcess

network: Any = reactor


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[ServerProcess]:
    with ServerProcess(*certificates.words("s0")) as server:
        yield server


# --- Options ----------------------------------------------------------------------------------------------------------


def test_all_three_files_or_none() -> None:
    assert tls_files(None, None, None, {}) is None
    assert tls_files(None, None, None, {"MADKV_TLS": "directory", "MADKV_TLS_CA": ""}) is None
    files = tls_files("a", "b", None, {"MADKV_TLS_CA": "other", "MADKV_TLS_KEY": "c"})
    assert files is not None
    assert (files.ca, files.certificate, files.key) == ("a", "b", "c")
    with pytest.raises(InvalidArgument, match=r"go together: --tls-cert is missing and --tls-key is missing$"):
        tls_files("a", None, None, {})
    with pytest.raises(InvalidArgument, match=r"go together: --tls-ca is missing$"):
        tls_files(None, None, "c", {"MADKV_TLS_CERT": "b"})


@pytest.mark.parametrize("command", ["shell", "client", "status --managers a:1", "replace-disk m.0 --managers a:1"])
def test_commands_want_all_three_files(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that what is set here goes when the test ends
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--tls-ca", "a", "--tls-cert", "b"])
    assert ended.value.code == 2
    assert "--tls-ca, --tls-cert and --tls-key go together: --tls-key is missing" in capsys.readouterr().err


def test_status_says_which_file_is_of_no_use(
    certificates: Certificates, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
    words = ["--tls-ca", "nowhere", *certificates.words("client")[2:]]
    assert cli.main(["status", "--managers", "127.0.0.1:1", *words]) == 2
    assert capsys.readouterr().err == "madkv status: --tls-ca: nowhere: No such file or directory\n"


# --- Words ------------------------------------------------------------------------------------------------------------


def test_names() -> None:
    names = names_among(["madkv://server/s0.1", "https://example.com", "madkv://client/alice"])
    assert roles_of(names) == {"server", "client"}
    assert shown(names) == "client alice and server s0.1"
    assert shown([]) == "nobody of MadKV"
    check_claim(None, "s0.1")
    check_claim(names, "s0.0", "s0.1")
    for claimed in ("s0.0", "s0.11", "m.0", "", "s0.1 "):
        with pytest.raises(Rejected, match=r"shows a certificate of client alice and server s0\.1$"):
            check_claim(names, claimed)
    for allowed in (None, frozenset(["madkv://operator/o"]), names | {"madkv://operator/o"}):
        check_operator(allowed, "Backup")
    for refused in (names, frozenset[str](), frozenset(["madkv://operators/o", "madkv://client/operator"])):
        with pytest.raises(Rejected, match=r"^Backup is for operators: the certificate is of .*; see docs/tls\.md$"):
            check_operator(refused, "Backup")
    check_hello(None, {})
    check_hello(names, {b"node": b"s0.1"})
    with pytest.raises(TLSError, match=r"^m\.0 shows a certificate of"):
        check_hello(names, {b"node": b"m.0"})
    with pytest.raises(TLSError):
        check_hello(names, {})
    check_hello(frozenset(["madkv://manager/m.0"]), {b"node": b"m.0", b"role": b"manager"})
    # By its own name it is let in, but not for what it is not: clients would take a partition map from it.
    with pytest.raises(TLSError, match=r"^s0\.1 shows .* server s0\.1, and says that it is a manager$"):
        check_hello(names, {b"node": b"s0.1", b"role": b"manager"})
    check_hello(None, {b"node": b"s0.1", b"role": b"manager"})


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("sslv3 alert certificate expired", "it refuses the certificate of this side: that has expired"),
        ("SSL/TLS_ALERT_CERTIFICATE_EXPIRED", "it refuses the certificate of this side: that has expired"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "it wants a certificate, and was shown none"),
        ("tlsv1 alert no renegotiation", "it ended the connection with TLS's alert 'no renegotiation'"),
        ("peer did not return a certificate", "it has shown no certificate"),
        ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
        (
            "unexpected eof while reading",
            "it closed the connection instead of answering in TLS, which it may not speak",
        ),
        ("no shared cipher", "TLS failed: no shared cipher"),
    ],
)
def test_reasons_of_openssl_become_lines(reason: str, line: str) -> None:
    assert explain(reason) == line


# --- Certificates that are made ---------------------------------------------------------------------------------------


def names_in(path: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def test_certificates_of_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "tls"
    words = ["p3", "managers=10.0.0.1:1", "manager-p2ps=10.0.0.2:1", "server-rf=1", "servers=db.example:1,[::2]:1"]
    words += ["server-p2ps=db.example:2,[::2]:2", "clients=alice,bob", f"dir={directory}"]
    assert making.main(words) == 0
    assert "certificates of m.0, s0.0, s1.0, alice, bob, operator are in" in capsys.readouterr().out
    names = {path.stem: names_in(path) for path in directory.glob("*.pem") if path.stem != "ca"}
    assert names == {
        "m.0": ["madkv://manager/m.0", "10.0.0.1", "10.0.0.2"],
        "s0.0": ["madkv://server/s0.0", "db.example"],
        "s1.0": ["madkv://server/s1.0", "::2"],
        "alice": ["madkv://client/alice"],
        "bob": ["madkv://client/bob"],
        "operator": ["madkv://operator/operator"],
    }
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    keys = list(directory.glob("*.key"))
    assert len(keys) == 7
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert [path.name for path in tmp_path.iterdir()] == ["tls"]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "tls"
    assert making.main(["p1", f"dir={directory}"]) == 0
    before = {path: path.read_bytes() for path in directory.iterdir()}
    assert making.main(["p1", f"dir={directory}"]) == 1
    assert capsys.readouterr().err == (
        f"madkv tls: {directory} is there already, and nothing is overwritten: give another dir=\n"
    )
    with pytest.raises(CertificatesError, match="nothing is overwritten"):
        making.Authority(directory).issue(directory, "s0", "madkv://server/s0")
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_later_certificates_of_the_same_ca(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert making.main(["p2", f"dir={first}"]) == 0
    assert making.main(["p2", f"dir={second}", f"ca={first}", "days=10"]) == 0
    assert (second / "ca.pem").read_bytes() == (first / "ca.pem").read_bytes()
    assert not (second / "ca.key").exists()
    certificate = x509.load_pem_x509_certificate((second / "s0.pem").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((first / "ca.pem").read_bytes()))
    assert 10 <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days <= 11


@pytest.mark.parametrize(
    "words",
    ["p3 servers=nowhere", "p1 clients=s0", "p1 clients=operator", "p1 clients=../x", "p1 ca=/nowhere"],
)
def test_what_cannot_be_made_leaves_nothing(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert making.main([*words.split(), f"dir={tmp_path / 'tls'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("madkv tls: ")
    assert list(tmp_path.iterdir()) == []


# --- Clients ----------------------------------------------------------------------------------------------------------

LARGE = bytes(range(256)) * (VALUE_BYTES_MAX // 256)


def test_blocking_calls(server: ServerProcess, certificates: Certificates) -> None:
    with BlockingClient(server.address, tls=certificates.of("client")) as client:
        client.put(b"blocking", LARGE)
        assert client.swap(b"blocking", b"small") == LARGE
        for number in range(100):
            client.put(b"blocking-%03d" % number, LARGE[:40_000])
        assert client.scan(b"blocking-", b"blocking-~") == [(b"blocking-%03d" % n, LARGE[:40_000]) for n in range(100)]


def test_the_environment_has_the_files(
    server: ServerProcess, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path in zip(VARIABLES, certificates.words("client")[1::2], strict=True):
        monkeypatch.setenv(name, path)
    with BlockingClient(server.address) as client:
        assert client.get(b"environment") is None


@pytest_twisted.ensureDeferred
async def test_many_deferred_calls_in_flight(server: ServerProcess, certificates: Certificates) -> None:
    client = Client(network, server.address, tls=certificates.of("client"))
    try:
        puts = [client.put(b"deferred-%04d" % number, LARGE[: 100 * number]) for number in range(1000)]
        large = [client.put(b"deferred-large-%d" % number, LARGE) for number in range(10)]
        for each in (*puts, *large):
            assert not await each
        gets = [client.get(b"deferred-large-%d" % number) for number in range(10)]
        assert [await each for each in gets] == [LARGE] * 10
        assert len(await client.scan(b"deferred-0", b"deferred-9")) == 1000
    finally:
        await client.close()


def test_many_asyncio_calls_in_flight(server: ServerProcess, certificates: Certificates) -> None:
    async def work() -> None:
        async with AsyncClient(server.address, tls=certificates.of("client")) as client:
            puts = [client.put(b"asyncio-%04d" % number, LARGE[: 100 * number]) for number in range(1000)]
            assert not any(await asyncio.gather(*puts))
            large = [client.put(b"asyncio-large-%d" % number, LARGE) for number in range(10)]
            await asyncio.gather(*large)
            assert await asyncio.gather(*[client.get(b"asyncio-large-%d" % n) for n in range(10)]) == [LARGE] * 10
            assert len(await client.scan(b"asyncio-0", b"asyncio-9")) == 1000

    asyncio.run(work())


REFUSED: list[Any] = [
    pytest.param("expired", "it refuses the certificate of this side: that has expired", id="expired"),
    pytest.param("other", "it refuses the certificate of this side: that is not of the CA", id="another CA"),
    pytest.param("trusting", "its certificate is not of the CA that is trusted here", id="trusting another CA"),
]


def bad(certificates: Certificates, which: str) -> TLSFiles:
    every = {"other": certificates.of_another_ca, "trusting": certificates.trusting_another_ca}
    return every.get(which) or certificates.of(which)


@pytest.mark.parametrize(("which", "line"), REFUSED)
def test_asyncio_clients_that_are_refused(
    server: ServerProcess, certificates: Certificates, which: str, line: str
) -> None:
    async def work() -> str:
        told = asyncio.get_running_loop().create_future()
        async with AsyncClient(server.address, notice=told.set_result, tls=bad(certificates, which)) as client:
            waiting = asyncio.ensure_future(client.get(b"key"))
            try:
                return str(await asyncio.wait_for(told, 20))
            finally:
                waiting.cancel()

    assert f"waiting for {server.address}: {line}" in asyncio.run(work())


@pytest.mark.parametrize(("which", "line"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_deferred_clients_that_are_refused(
    server: ServerProcess, certificates: Certificates, which: str, line: str
) -> None:
    told: list[str] = []
    client = Client(network, server.address, tls=bad(certificates, which))
    client._notice = told.append
    waiting = client.get(b"key")
    waiting.addErrback(lambda failure: None)
    deadline = network.seconds() + 20
    while not told and network.seconds() < deadline:
        await deferLater(network, 0.01)
    await client.close()
    (said,) = told
    assert f"waiting for {server.address}: {line}" in said


def test_a_client_at_work_takes_up_new_files(server: ServerProcess, tmp_path: Path, certificates: Certificates) -> None:
    """For its next connection: here it goes on with another certificate than the one it was made with."""
    mine, theirs = certificates.of("client"), tmp_path / "mine.pem"
    theirs.write_bytes(Path(mine.certificate).read_bytes())
    with BlockingClient(server.address, tls=TLSFiles(mine.ca, str(theirs), mine.key)) as client:
        client.put(b"renewed", b"1")
        theirs.write_text("half a fi")
        assert client.get(b"renewed") == b"1", "the connection that is there stays"
        (connection,) = client._connections.values()
        connection.close()
        said: list[str] = []

        def notice(line: str) -> None:
            said.append(line)
            theirs.write_bytes(Path(mine.certificate).read_bytes())

        client._notice = notice
        assert client.get(b"renewed") == b"1"
        assert len(said) == 1
        assert "holds no certificate in PEM format" in said[0]
