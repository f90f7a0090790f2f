"""TLS under Twisted's connections: on both sides a certificate is shown, and looked at before anything else is done.

A protocol hears of its connection when that is up: the other side has shown a certificate of the CA, with a name and,
where it was connected to, an address that were asked for. Until then nothing of it exists but its socket, for a bounded
time. Why a connection has not come up is one line: at whoever connects, the failure of the attempt; at whoever listens,
a line in the log.
"""

from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity.exceptions import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate as TrustedCertificate
from twisted.internet.ssl import CertificateOptions, TLSVersion, trustRootFromCertificates
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from madkv.addresses import Address
from madkv.errors import InvalidArgument, TLSError
from madkv.limits import TLS_HANDSHAKE_SECONDS_MAX, TLS_REFUSALS_KEPT, TLS_STRANGERS_MAX
from madkv.tls import NO_TLS, NODES, TLSFiles, certificate_fault, explain, name_of, names_among, roles_of, shown
from madkv.wire.lines import FirstLine

_HANDSHAKE_RECORD = 0x16
"""What the first byte of TLS is, and of no box."""
_WANTS_TLS = b"\x15\x03\x03\x00\x02\x02\x46"
"""TLS's fatal alert "protocol version", for those who speak no TLS: their side can tell what it is."""


@attrs.frozen
class Wanted:
    """Of whom the certificate of the other side must be."""

    roles: frozenset[str]
    node: str = ""
    """The one node that it may be, if there is only one."""
    host: str = ""
    """Where the other side was connected to; empty for one that has connected."""

    def fault(self, certificate: crypto.X509, names: frozenset[str]) -> str:
        """What is wrong with a certificate that is the CA's, and has these names; empty for nothing."""
        if not (roles_of(names) & self.roles):
            return (
                f"its certificate is of {shown(names)}, and here only one of a {' or '.join(sorted(self.roles))} does"
            )
        if self.node and name_of(self.node) not in names:
            return f"its certificate is of {shown(names)}, and not of {shown([name_of(self.node)])}"
        if self.host:
            is_ip = isIPAddress(self.host) or isIPv6Address(self.host)
            wanted = IPAddress_ID(self.host) if is_ip else DNS_ID(self.host.encode("idna").decode())
            try:
                verify_service_identity(extract_patterns(certificate), [wanted], [])
            except (VerificationError, CertificateError):
                return f"its certificate, of {shown(names)}, is not for the address {self.host}"
        return ""


class Credentials:
    """What this process shows and trusts."""

    def __init__(self, files: TLSFiles, node: str = "") -> None:
        """`node` is whom the certificate must be of, empty for whomever.

        Raises InvalidArgument for files that are of no use.
        """
        self._files = files
        self._node = node
        self.context = _context(files, node)

    def reload(self) -> None:
        """Read the files again, for the connections from now on. Raises InvalidArgument, and goes on with the old."""
        self.context = _context(self._files, self._node)

    def connecting(
        self, endpoint: IStreamClientEndpoint, reactor: Any, address: Address, node: str = ""
    ) -> "TLSEndpoint":
        """The same endpoint to an address with TLS: to `node` there, or to any."""
        return TLSEndpoint(self, endpoint, reactor, Wanted(frozenset(NODES), node, address[0]))

    def listening(self, factory: Factory, reactor: Any, roles: frozenset[str]) -> Factory:
        """The same factory behind TLS: for those with certificates of these roles."""
        secured: Any = _Factory(self, reactor, Wanted(roles), factory, is_client=False)
        return secured


def _context(files: TLSFiles, node: str) -> SSL.Context:
    """What new connections are made with."""
    authorities = _certificates("tls-ca", files.ca)
    chain: list[Any] = _certificates("tls-cert", files.certificate)
    names = _names(chain[0])
    if node and name_of(node) not in names:
        raise InvalidArgument(
            f"--tls-cert: {files.certificate} is a certificate of {shown(names)}, not of {shown([name_of(node)])}"
        )
    try:
        # (Twisted declares pyOpenSSL's own types here, which pyOpenSSL has deprecated.)
        key: Any = load_pem_private_key(_bytes("tls-key", files.key), None)
        options = CertificateOptions(
            privateKey=key,
            certificate=chain[0],
            extraCertChain=chain[1:],
            trustRoot=trustRootFromCertificates(
                [TrustedCertificate(crypto.X509.from_cryptography(each)) for each in authorities]
            ),
            raiseMinimumTo=TLSVersion.TLSv1_3,
        )
        return options.getContext()
    except (ValueError, TypeError, SSL.Error, crypto.Error):
        raise InvalidArgument(
            f"--tls-key: {files.key} is no key without a passphrase, or not the one to {files.certificate}"
        ) from None


def _bytes(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"--{option}: {path}: {error.strerror}") from None


def _certificates(option: str, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_bytes(option, path))
    except ValueError:
        raise InvalidArgument(f"--{option}: {path} holds no certificate in PEM format") from None


def _names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset()
    return names_among(extension.value.get_values_for_type(x509.UniformResourceIdentifier))


# --- One connection ---------------------------------------------------------------------------------------------------


@implementer(ITCPTransport)
class _Transport(TLSMemoryBIOProtocol):
    """TLS between a TCP connection and a BoxProtocol, whose transport this is once it is up."""

    factory: "_Factory"
    transport: Any
    wrappedProtocol: Any
    dataBuffer = None
    """By this BoxProtocol knows not to write to the TCP connection beside TLS."""

    def __init__(self, factory: "_Factory", wrapped: Protocol) -> None:
        super().__init__(factory, wrapped, _connectWrapped=False)
        self.certified_names: frozenset[str] = frozenset()
        """Of the other side's certificate."""
        self._has_begun = False
        self._is_up = False
        self._fault = ""
        self._awaited: Deferred[Protocol] | None = None
        self._overdue: IDelayedCall | None = None

    def when_up(self) -> Deferred[Protocol]:
        """Fires with the protocol, or fails with TLSError; cancelled, it ends the connection. To be called once."""
        self._awaited = Deferred(lambda _: self.abortConnection())
        if self._is_up:
            self._awaited.callback(self.wrappedProtocol)
        elif not self.connected:
            self._awaited.errback(TLSError(self._fault or NO_TLS))
        return self._awaited

    def verify(self, connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, is_good: int) -> bool:
        """What OpenSSL asks for each certificate of the chain, the other side's own one last."""
        if not is_good:
            self._fault = self._fault or certificate_fault(code)
        elif depth == 0:
            try:
                names = _names(certificate.to_cryptography())
                self._fault = self._fault or self.factory.wanted.fault(certificate, names)
            except Exception:  # whatever is in there, it is none of ours
                self._fault = "its certificate cannot be read"
            else:
                self.certified_names = names
        return not self._fault

    # --- What Twisted calls -------------------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The TCP connection is there; the other side has some time to show its certificate."""
        self._overdue = self.factory.clock.callLater(TLS_HANDSHAKE_SECONDS_MAX, self._still_not_up)
        self.factory.joined(self)
        transport.setTcpNoDelay(True)
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        """Whatever is no TLS at all is told so."""
        if self._is_up or self._is_tls(data):
            super().dataReceived(data)

    def _is_tls(self, data: bytes) -> bool:
        """Whether a connection that is not up may go on with this."""
        if not self._has_begun:
            self._has_begun = True
            if data[0] != _HANDSHAKE_RECORD and not self.factory.is_client:
                self._fault = "it does not speak TLS, and this port speaks nothing else"
                self._lostTLSConnection = True
                self.transport.write(_WANTS_TLS)
                self.transport.loseConnection()
        return not self._lostTLSConnection

    def _checkHandshakeStatus(self) -> None:
        super()._checkHandshakeStatus()
        if self._handshakeDone and not self._is_up and not self._aborted:
            if not self.certified_names:  # Nobody has looked at a certificate: it would be a session from before.
                self._fault = "it has shown no certificate"
                self.abortConnection()
                return
            self._is_up = True
            self._not_overdue()
            self.factory.strangers.pop(self, None)
            self.wrappedProtocol.makeConnection(self)
            if self._awaited is not None:
                self._awaited.callback(self.wrappedProtocol)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the protocol; or, when it never heard of this connection, whoever wants to know why."""
        self._not_overdue()
        if self._is_up:
            super().connectionLost(reason)
            return
        self.wrappedProtocol = Protocol()
        why = self._reason
        super().connectionLost(reason)
        self.factory.strangers.pop(self, None)
        if not self._fault:
            self._fault = str(why.value) if why is not None and why.check(TLSError) else NO_TLS
        if self._awaited is not None and not self._awaited.called:
            self._awaited.errback(TLSError(self._fault))
        self.factory.refused(self.getPeer(), self._fault)

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        is_first = self._reason is None
        super()._tlsShutdownFinished(reason)
        if is_first and self._reason is not None and self._reason.check(SSL.Error):
            self._reason = Failure(TLSError(self._fault or _explained(self._reason)))

    def give_way(self) -> None:
        """Others want to come up too, and this one has had the longest time for it."""
        self._fault = "too many others have shown no certificate yet, either"
        self.abortConnection()

    def _still_not_up(self) -> None:
        self._overdue = None
        self._fault = f"no TLS within {TLS_HANDSHAKE_SECONDS_MAX:g} seconds"
        self.abortConnection()

    def _not_overdue(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    # --- What BoxProtocol calls ---------------------------------------------------------------------------------------

    def getHandle(self) -> Any:
        """The socket, as of any other connection."""
        return self.transport.getHandle()

    def loseConnection(self) -> None:
        """Close the connection once everything sent has left.

        Twisted would first wait until its producer, here the protocol for good, is done, and the other side has said
        farewell.
        """
        if self.disconnecting or not self.connected:
            return
        if not self._is_up:
            self.abortConnection()
            return
        self.disconnecting = True
        self._shutdownTLS()
        self.transport.loseConnection()

    @property
    def unsent_bytes(self) -> int:
        """What waits because the other side reads it too slowly."""
        transport = self.transport
        return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)

    def _flushSendBIO(self) -> None:
        """As BoxProtocol without TLS: through to the socket, if nothing waits before it."""
        try:
            data = self._tlsConnection.bio_read(2**15)
        except SSL.WantReadError:
            return
        transport: Any = self.transport
        if getattr(transport, "dataBuffer", None) == b"" and transport._tempDataLen == 0 and transport.connected:
            sent = transport.writeSomeData(data)
            if not isinstance(sent, int):
                return  # the connection is lost; the reactor is about to find out by itself
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)


def _explained(reason: Failure) -> str:
    error: Any = reason.value
    queue = error.args[0] if error.args else []
    return explain(queue[-1][2] if isinstance(queue, list) and queue else str(error))


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class _Connections:
    """Makes OpenSSL's side of a connection, each with the credentials of the moment."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def clientConnectionForTLS(self, tlsProtocol: _Transport) -> SSL.Connection:  # type: ignore[override]
        """For one side, and as well for the other."""
        connection = SSL.Connection(self._credentials.context, None)
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, tlsProtocol.verify)
        return connection

    serverConnectionForTLS = clientConnectionForTLS


class _Factory(TLSMemoryBIOFactory):
    """Puts TLS under the protocols of another factory."""

    log = Logger()
    protocol = _Transport

    def __init__(self, credentials: Credentials, clock: Any, wanted: Wanted, wrapped: Any, is_client: bool) -> None:
        super().__init__(_Connections(credentials), is_client, wrapped, clock)
        self.clock = clock
        self.wanted = wanted
        self.is_client = is_client
        self._refusals = FirstLine(clock, self.log, TLS_REFUSALS_KEPT)
        self.strangers: dict[_Transport, None] = {}
        """Those that are not up, in the order in which they came."""

    def buildProtocol(self, addr: IAddress | None) -> _Transport | None:  # type: ignore[override]
        """One for a connection that the other factory wants."""
        wrapped = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else _Transport(self, wrapped)

    def joined(self, transport: _Transport) -> None:
        """Another one begins. One that says nothing keeps nobody out: of too many the oldest has to go."""
        self.strangers[transport] = None
        if len(self.strangers) > TLS_STRANGERS_MAX:
            oldest = next(iter(self.strangers))
            del self.strangers[oldest]
            oldest.give_way()

    def doStop(self) -> None:
        """The port is closed: let go also of those who have not shown their certificates yet."""
        super().doStop()
        if not self.is_client:
            for transport in list(self.strangers):
                transport.abortConnection()

    def refused(self, peer: Any, why: str) -> None:
        """Log that a connection has not come up, but not again what comes again and again."""
        if self.is_client:
            return  # whoever connects hears of it
        host = str(getattr(peer, "host", peer))
        self._refusals.say((host, why), f"refused a connection of {host}:{peer.port}: {why}")


@implementer(IStreamClientEndpoint)
class TLSEndpoint:
    """Another endpoint with TLS. `connect` fires when the other side has shown the certificate that is wanted."""

    def __init__(self, credentials: Credentials, endpoint: IStreamClientEndpoint, reactor: Any, wanted: Wanted) -> None:
        self._credentials = credentials
        self._endpoint = endpoint
        self._reactor = reactor
        self._wanted = wanted

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect; fails with TLSError too."""
        factory = _Factory(self._credentials, self._reactor, self._wanted, protocolFactory, is_client=True)
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addCallback(lambda transport: transport.when_up())
