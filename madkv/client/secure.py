"""TLS for clients without Twisted, by the standard library's `ssl`. It is heavy, and imported only where there is TLS.

The files are read again for each connection, so that clients that live long take up new ones by themselves.
"""

import socket
import ssl
import time

from madkv.addresses import Address
from madkv.client.connection import READ_BYTES, Connection
from madkv.errors import InvalidArgument, TLSError
from madkv.limits import CONNECT_SECONDS_MAX
from madkv.tls import NO_TLS, NODES, TLSFiles, certificate_fault, check_hello, explain, names_among, roles_of, shown
from madkv.wire.boxes import Box


class _BlockingSocket(ssl.SSLSocket):
    """Says in a TLSError why nothing can be received any more."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            raise TLSError(why_failed(error)) from None


def context_of(files: TLSFiles) -> ssl.SSLContext:
    """What connections are made with. Raises InvalidArgument for files that are of no use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.sslsocket_class = _BlockingSocket
    for option, path in (("tls-ca", files.ca), ("tls-cert", files.certificate), ("tls-key", files.key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise InvalidArgument(f"--{option}: {path}: {error.strerror}") from None
    try:
        context.load_verify_locations(files.ca)
    except ssl.SSLError:
        raise InvalidArgument(f"--tls-ca: {files.ca} holds no certificate in PEM format") from None
    try:
        context.load_cert_chain(files.certificate, files.key, lambda: b"")  # else OpenSSL would ask for a passphrase
    except ssl.SSLError:
        raise InvalidArgument(
            f"--tls-cert, --tls-key: {files.certificate} holds no certificate in PEM format, or {files.key} no key "
            "without a passphrase, or not the one to it"
        ) from None
    return context


def fresh_context(files: TLSFiles) -> ssl.SSLContext:
    """The same for a client at work. Raises TLSError: files that are being replaced are whole at the next try."""
    try:
        return context_of(files)
    except InvalidArgument as error:
        raise TLSError(str(error)) from None


def why_failed(error: OSError) -> str:
    """Why there is no TLS with the other side, in a line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return certificate_fault(error.verify_code)
    if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
        return NO_TLS
    return explain(error.reason or str(error))


def why_lost(error: OSError) -> str:
    """The same for a connection that was in use: only TLS's own words tell more than the error."""
    is_said = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
    return why_failed(error) if is_said else str(error)


def names_of(connection: ssl.SSLObject | ssl.SSLSocket) -> frozenset[str]:
    """The names in the other side's certificate, whose chain and address were looked at. TLSError for no node's."""
    found = connection.getpeercert() or {}
    alternatives: list[tuple[str, str]] = list(found.get("subjectAltName", ()))  # type: ignore[arg-type]
    names = names_among(value for kind, value in alternatives if kind == "URI")
    if roles_of(names).isdisjoint(NODES):
        raise TLSError(f"its certificate is of {shown(names)}, and here only one of a manager or server does")
    return names


def secured(sock: socket.socket, files: TLSFiles, address: Address) -> ssl.SSLSocket:
    """TLS over a socket that blocks, within its time-out; recv raises TLSError. Raises TLSError and OSError."""
    try:
        with_tls = fresh_context(files).wrap_socket(sock, server_hostname=address[0])
        try:
            names_of(with_tls)
        except BaseException:
            with_tls.close()
            raise
        return with_tls
    except (ssl.SSLError, ConnectionResetError) as error:
        raise TLSError(why_failed(error)) from None
    finally:
        sock.close()  # what is wrapped has its file descriptor by now


class _Socket:
    """TLS between a connected socket that does not block and a Connection, which uses this as it would use the other.

    It costs one system call to receive, where an `ssl.SSLSocket` makes two for each record.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.fileno = plain.fileno
        self.close = plain.close
        self.send = plain.send
        """Sends what is encrypted already."""

    def shake_hands(self, received: bytes) -> tuple[bytes, bool]:
        """Go on with the handshake; what to send to the other side, and whether it is over. Raises TLSError."""
        if received:
            self._incoming.write(received)
        is_over = False
        try:
            self.tls.do_handshake()
            is_over = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._farewell()
            raise TLSError(why_failed(error)) from None
        return self._outgoing.read(), is_over

    def _farewell(self) -> None:
        """Let the other side know why, if it can be told at once."""
        try:
            self._plain.send(self._outgoing.read())
        except OSError:
            pass

    def encrypted(self, data: bytes) -> bytes:
        """What to `send` for it."""
        self.tls.write(data)
        return self._outgoing.read()

    def recv(self, size: int) -> bytes:
        """All that has come, decrypted. Raises BlockingIOError for a part of a record, TLSError, and OSError."""
        data = self._plain.recv(size)
        if not data:
            return data
        self._incoming.write(data)
        pieces = []
        try:
            while piece := self.tls.read(size):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            if not pieces:
                raise BlockingIOError from None
        except ssl.SSLError as error:
            raise TLSError(why_failed(error)) from None
        return b"".join(pieces)


class SecureConnection(Connection):
    """A blocking connection with TLS. Raises TLSError, too, where Connection raises OSError and ProtocolError."""

    _socket: _Socket  # type: ignore[assignment]

    def __init__(self, files: TLSFiles, address: Address, abandon_fd: int | None) -> None:
        context = fresh_context(files)
        super().__init__(address, abandon_fd)
        plain: socket.socket = self._socket  # type: ignore[assignment]
        self._socket = _Socket(plain, context, address[0])
        try:
            self._shake_hands(plain, time.monotonic() + CONNECT_SECONDS_MAX)
            self._names = names_of(self._socket.tls)
        except BaseException:
            self.close()
            raise

    def check_hello(self, hello: Box) -> None:
        """Raise TLSError unless the certificate is of the node that has answered."""
        check_hello(self._names, hello)

    @property
    def certificate(self) -> dict[str, object]:
        """The other side's, as `ssl` shows it."""
        return dict(self._socket.tls.getpeercert() or {})

    def _shake_hands(self, plain: socket.socket, deadline: float) -> None:
        received = b""
        while True:
            data, is_over = self._socket.shake_hands(received)
            super()._send(data, CONNECT_SECONDS_MAX)
            if is_over:
                return
            self._wait(max(0.0, deadline - time.monotonic()))
            try:
                received = plain.recv(READ_BYTES)
            except ConnectionError:
                received = b""
            if not received:
                raise TLSError(NO_TLS)

    def _send(self, data: bytes, seconds_max: float) -> None:
        super()._send(self._socket.encrypted(data), seconds_max)
