"""Make a CA and the certificates of a cluster: `./justw tls::make p3 servers=…`, with addresses as recipes take them.

In the directory that is made lie `ca.pem` and `ca.key`, and for each node, each client and an operator `NAME.pem` and
`NAME.key`. Nothing is ever overwritten: later certificates of the same CA go to another directory (`ca=` names the one
with the CA).
"""

import argparse
import datetime
import ipaddress
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from madkv.addresses import parse_address
from madkv.testing.checkout import ROOT
from madkv.testing.ending import complain, run_tool
from madkv.testing.options import Parser, whole
from madkv.testing.service import ServiceError
from madkv.testing.shape import Shape, ShapeError, addresses
from madkv.tls import CLIENT, OPERATOR, SCHEME, VARIABLES, TLSFiles, name_of

DIRECTORY = "tls"
"""Where a checkout has its certificates, and a cluster of a tool's own has them in its root."""
VARIABLE = "MADKV_TLS"
"""Names a directory of certificates to recipes: each process that they start takes its own from there."""
CA = "ca"
USUAL_CLIENT = "client"
SOLO = "s0"
DAYS, CA_DAYS = 365, 3650
ONE_DAY = datetime.timedelta(days=1)


class CertificatesError(ServiceError):
    """What is in the way; one line."""


class Authority:
    """A CA in a directory."""

    def __init__(self, directory: Path) -> None:
        """Raises CertificatesError when there is none."""
        try:
            self.certificate = x509.load_pem_x509_certificate((directory / f"{CA}.pem").read_bytes())
            key = load_pem_private_key((directory / f"{CA}.key").read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise CertificatesError(f"{directory} has no CA to use: {error}") from None
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    @classmethod
    def make(cls, directory: Path) -> "Authority":
        """A new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MadKV CA")])
        certificate = (
            _builder(name, name, key.public_key(), CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write(directory, CA, [certificate], key)
        return cls(directory)

    def issue(
        self, directory: Path, file: str, uri: str, hosts: Iterable[str] = (), days: int = DAYS, is_node: bool = True
    ) -> None:
        """Make a certificate and its key, as `file`.pem and `file`.key. `days` less than 1: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if is_node:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uri.removeprefix(SCHEME))])
        names = [x509.UniformResourceIdentifier(uri), *map(_general_name, _with_aliases(hosts))]
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        write(directory, file, [certificate], key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    begins = min(now - ONE_DAY, now + (days - 1) * ONE_DAY)  # a day ago: clocks differ
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(now + days * ONE_DAY)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.encode("idna").decode())


def _with_aliases(hosts: Iterable[str]) -> list[str]:
    """What is reached on this machine only goes by three names."""
    loopback = ("127.0.0.1", "::1", "localhost")
    every = [each for host in hosts for each in (loopback if host in loopback else (host,))]
    return list(dict.fromkeys(every))


def write(
    directory: Path, file: str, certificates: Iterable[x509.Certificate], key: ec.EllipticCurvePrivateKey
) -> None:
    """Write both files; the key is for its owner alone. Raises CertificatesError when one is there."""
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, data, mode in ((directory / f"{file}.key", private, 0o600), (directory / f"{file}.pem", pem, 0o644)):
        try:
            written = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise CertificatesError(f"{path} is there already; nothing is overwritten") from None
        with open(written, "wb") as opened:
            opened.write(data)


def files(directory: Path, name: str) -> TLSFiles:
    """Those of a node or client in a directory."""
    return TLSFiles(*(str(directory / each) for each in (f"{CA}.pem", f"{name}.pem", f"{name}.key")))


def options_of(directory: Path, name: str) -> list[str]:
    """The same as options of the command line."""
    these = files(directory, name)
    return ["--tls-ca", these.ca, "--tls-cert", these.certificate, "--tls-key", these.key]


def environment(directory: Path) -> dict[str, str]:
    """What makes recipes, and the clients that this process and its children make, take their certificates there."""
    these = files(directory.absolute(), USUAL_CLIENT)
    paths = (these.ca, these.certificate, these.key)
    return {VARIABLE: str(directory.absolute()), **dict(zip(VARIABLES, paths, strict=True))}


def are_wanted(options: argparse.Namespace) -> bool:
    """Whether a tool is to start what it starts with TLS: by its option, or since what it was started by is."""
    return bool(options.tls == "yes" or (options.tls is None and any(map(os.environ.get, (VARIABLE, *VARIABLES)))))


def take(options: argparse.Namespace) -> None:
    """Have a tool, and the clients that it starts, call a service that runs by the certificates of this checkout.

    Those that the environment has already go first. Raises CertificatesError when there are none.
    """
    if not are_wanted(options):
        return
    directory = Path(os.environ.get(VARIABLE) or ROOT / DIRECTORY)
    # What a recipe has made of the directory's name is no choice of anybody's.
    if os.environ.get(VARIABLES[0]) == str(directory / f"{CA}.pem") or not any(map(os.environ.get, VARIABLES)):
        os.environ.update(environment(there(directory)))


def there(directory: Path) -> Path:
    """A directory of certificates. Raises CertificatesError, which says what to do, when there is none."""
    if not directory.is_dir():
        raise CertificatesError(f"there are no certificates in {directory}; `./justw tls::make` makes them")
    return directory


def hosts_of(shape: Shape) -> dict[str, list[str]]:
    """Where each node of a cluster is reached, by its id."""
    hosts: dict[str, list[str]] = {}
    for node in shape.nodes():
        hosts[str(node)] = list(dict.fromkeys(parse_address(each)[0] for each in shape.addresses(node)))
    return hosts


def make(
    directory: Path,
    hosts: Mapping[str, Iterable[str]],
    clients: Iterable[str],
    days: int = DAYS,
    ca: Path | None = None,
) -> None:
    """Make a directory with certificates for nodes at their hosts, for clients, and for an operator, which goes by that
    name. Raises CertificatesError, OSError.

    `ca` is a directory whose CA is to be used; its certificate is copied, and its key is not.
    """
    authority = None if ca is None else Authority(ca)
    if directory.exists():
        raise CertificatesError(f"{directory} is there already, and nothing is overwritten: give another dir=")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        whole_directory = Path(scratch) / directory.name
        whole_directory.mkdir(mode=0o700)
        if authority is None:
            authority = Authority.make(whole_directory)
        else:
            (whole_directory / f"{CA}.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        for node, where in hosts.items():
            authority.issue(whole_directory, node, name_of(node), where, days)
        for client in clients:
            authority.issue(whole_directory, client, f"{SCHEME}{CLIENT}/{client}", days=days, is_node=False)
        authority.issue(whole_directory, OPERATOR, f"{SCHEME}{OPERATOR}/{OPERATOR}", days=days, is_node=False)
        whole_directory.rename(directory)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message when it makes no sense."""
    parser = Parser(prog="./justw tls::make", description=__doc__)
    projects = parser.add_subparsers(dest="project", required=True)
    local = "127.0.0.1"
    lists = {
        "p1": {"server": f"{local}:3777"},
        "p2": {"manager": f"{local}:3666", "servers": _ports(3777, 3)},
        "p3": {
            "managers": _ports(3666, 3),
            "manager-p2ps": _ports(3606, 3),
            "server-rf": "3",
            "servers": _ports(3777, 6),
            "server-p2ps": _ports(3707, 6),
        },
    }
    for project, named in lists.items():
        each = projects.add_parser(project, help=f"of a service as {project}::service starts it")
        for name, default in named.items():
            each.add_argument(f"--{name}", default=default, help="as the recipe takes it (default: %(default)s)")
        each.add_argument("--dir", type=Path, default=ROOT / DIRECTORY, help="made for them (default: %(default)s)")
        each.add_argument("--clients", default=USUAL_CLIENT, help="names, separated by commas (default: %(default)s)")
        each.add_argument("--days", type=whole, default=DAYS, help="how long they are valid (default: %(default)s)")
        each.add_argument("--ca", type=Path, help="a directory whose CA is to be used (default: a new one)")
    options = parser.parse_args(argv)
    if not 1 <= options.days <= CA_DAYS:
        projects.choices[options.project].error(f"days must be 1 to {CA_DAYS}, not {options.days}")
    return options


def _ports(first: int, count: int) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in range(first, first + count))


def _hosts(options: argparse.Namespace) -> dict[str, list[str]]:
    if options.project == "p1":
        return {SOLO: [parse_address(each)[0] for each in addresses("server", options.server)]}
    if options.project == "p2":
        return hosts_of(Shape.project_2(options.manager, options.servers))
    return hosts_of(
        Shape.project_3(options.managers, options.manager_p2ps, options.server_rf, options.servers, options.server_p2ps)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = parse_options(argv)
    try:
        hosts = _hosts(options)
        clients = [each for each in options.clients.split(",") if each]
        if wrong := [each for each in clients if not each.isidentifier() or each in (CA, OPERATOR, *hosts)]:
            raise CertificatesError(f"{wrong[0]!r} is no name for a client: letters, digits and _, and nobody else's")
        make(options.dir, hosts, clients, options.days, options.ca)
    except (CertificatesError, ShapeError, OSError) as error:
        complain(f"madkv tls: {error}")
        return 1
    print(f"certificates of {', '.join((*hosts, *clients, OPERATOR))} are in {options.dir}; keep {CA}.key to yourself")
    return 0


if __name__ == "__main__":
    run_tool("madkv tls", main)
