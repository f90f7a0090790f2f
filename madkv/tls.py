"""What TLS is set up with, whom certificates are of, and what is said of one that is refused. Pure.

A certificate says whom it is of by a URI among its subject alternative names: `madkv://server/s0.1`,
`madkv://manager/m.0`, `madkv://client/NAME` or `madkv://operator/NAME` (its *names* here). One of a node also has the
addresses at which it is reached, as IP addresses and DNS names. docs/tls.md tells who looks at what.
"""

from collections.abc import Iterable, Mapping

from madkv.errors import InvalidArgument, Rejected, TLSError

OPTIONS = ("tls-ca", "tls-cert", "tls-key")
VARIABLES = ("MADKV_TLS_CA", "MADKV_TLS_CERT", "MADKV_TLS_KEY")
SCHEME = "madkv://"
CLIENT, OPERATOR, MANAGER, SERVER = "client", "operator", "manager", "server"
NODES = (MANAGER, SERVER)
ROLES = (CLIENT, OPERATOR, *NODES)
NO_TLS = "it closed the connection instead of answering in TLS, which it may not speak"

_VERIFY_ERRORS = {
    9: "is not valid yet",
    10: "has expired",
    **dict.fromkeys((18, 19, 20, 21), "is not of the CA that is trusted here"),
    26: "is not one for this use: a client's, say, where a node's is needed",
    62: "is not for the address at which it was reached",
    64: "is not for the address at which it was reached",
}
"""What is wrong with a certificate, by OpenSSL's X509_V_ERR_ numbers."""
_ALERTS = {
    "certificate required": "it wants a certificate, and was shown none",
    "certificate expired": "it refuses the certificate of this side: that has expired",
    "unknown ca": "it refuses the certificate of this side: that is not of the CA that is trusted there",
    **dict.fromkeys(
        # The second is what pyOpenSSL makes of a chain that is good and a certificate that is not the one wanted.
        ("certificate unknown", "internal error"),
        "it refuses the certificate of this side: not this role, node or address",
    ),
    "unsupported certificate": "it refuses the certificate of this side: that is not one for this use",
    "bad certificate": "it refuses the certificate of this side: that is not valid there",
    "protocol version": "it speaks no version of TLS that this side takes",
}
"""What the other side says in TLS's own words when it refuses."""
_NOT_TLS = ("wrong version number", "http request", "packet length too long", "record layer failure")


class TLSFiles:
    """Paths of three PEM files: the CA that is trusted, a certificate, and the key to it."""

    __slots__ = ("ca", "certificate", "key")

    def __init__(self, ca: str, certificate: str, key: str) -> None:
        self.ca = ca
        self.certificate = certificate
        self.key = key


def tls_files(
    ca: str | None, certificate: str | None, key: str | None, environment: Mapping[str, str]
) -> TLSFiles | None:
    """The files that are given, each else by its variable of the environment; None without any: no TLS.

    Raises InvalidArgument for one or two of the three.
    """
    paths = [
        given or environment.get(variable) for given, variable in zip((ca, certificate, key), VARIABLES, strict=True)
    ]
    if not any(paths):
        return None
    missing = [f"--{option} is missing" for option, path in zip(OPTIONS, paths, strict=True) if not path]
    if missing:
        raise InvalidArgument(f"--tls-ca, --tls-cert and --tls-key go together: {' and '.join(missing)}")
    return TLSFiles(*(path or "" for path in paths))


# --- Names ------------------------------------------------------------------------------------------------------------


def name_of(node: str) -> str:
    """The name in the certificate of a node, such as `m.0` or `s0.1`."""
    return f"{SCHEME}{MANAGER if node.startswith('m') else SERVER}/{node}"


def names_among(uris: Iterable[str]) -> frozenset[str]:
    """Those of a certificate's URIs that are names."""
    return frozenset(uri for uri in uris if uri.startswith(SCHEME))


def roles_of(names: Iterable[str]) -> frozenset[str]:
    """Which of the ROLES they name."""
    return frozenset(name.removeprefix(SCHEME).partition("/")[0] for name in names)


def shown(names: Iterable[str]) -> str:
    """Names for a line that somebody reads."""
    return " and ".join(sorted(name.removeprefix(SCHEME).replace("/", " ", 1) for name in names)) or "nobody of MadKV"


def check_claim(names: frozenset[str] | None, *nodes: str) -> None:
    """Raise Rejected unless the certificate is of the node that the other side says it is: of one of these names of it.

    None stands for a connection without TLS, on which nobody can tell.
    """
    if names is not None and names.isdisjoint(map(name_of, nodes)):
        raise Rejected(f"{nodes[0]} shows a certificate of {shown(names)}")


def check_operator(names: frozenset[str] | None, command: str) -> None:
    """Raise Rejected unless the certificate is an operator's, as this command needs it. None stands for a connection
    without TLS, on which anybody is everybody."""
    if names is not None and OPERATOR not in roles_of(names):
        raise Rejected(f"{command} is for operators: the certificate is of {shown(names)}; see docs/tls.md")


def check_hello(names: frozenset[str] | None, hello: Mapping[bytes, bytes]) -> None:
    """Raise TLSError unless the certificate is of the node that has answered Hello, and that is what it says it is."""
    node = hello.get(b"node", b"").decode("ascii", "backslashreplace")
    try:
        check_claim(names, node)
    except Rejected as error:
        raise TLSError(str(error)) from None
    if names is not None and hello.get(b"role") == b"manager" and MANAGER not in roles_of([name_of(node)]):
        raise TLSError(f"{node} shows a certificate of {shown(names)}, and says that it is a manager")


# --- Refusals ---------------------------------------------------------------------------------------------------------


def certificate_fault(code: int) -> str:
    """What is wrong with a certificate that OpenSSL has refused with this number."""
    return f"its certificate {_VERIFY_ERRORS.get(code, f'is refused by OpenSSL with X509 error {code}')}"


def explain(reason: str) -> str:
    """OpenSSL's reason for a connection that has failed, in a line for whoever runs this side."""
    reason = reason.lower().replace("_", " ")
    _, alert, said = reason.partition(" alert ")
    if alert:
        said = said.partition(" (")[0]
        return _ALERTS.get(said, f"it ended the connection with TLS's alert {said!r}")
    if "did not return a certificate" in reason:
        return "it has shown no certificate"
    if any(each in reason for each in _NOT_TLS):
        return "it does not speak TLS"
    if "eof" in reason:
        return NO_TLS
    return f"TLS failed: {reason}"
