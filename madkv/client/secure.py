"""TLS for clients without Twisted, by the standard library's `ssl`. It is heavy, and imported only where there is TLS.

The files are read again for each connection, so that clients that live long take up new ones by themselves.
"""

import select
import socket
import ssl
import time

from madkv.addresses import Address
from madkv.client.connection import Connection
from madkv.errors import InvalidArgument, TLSError
from madkv.limits import CONNECT_SECONDS_MAX
from madkv.tls import NO_TLS, NODES, TLSFiles, certificate_fault, check_hello, explain, names_among, roles_of, shown
from madkv.wire.boxes import Box


class _Socket(ssl.SSLSocket):
    """Fails as a socket without TLS does: with BlockingIOError where there is nothing yet, and with TLSError."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLError as error:
            raise TLSError(why_failed(error)) from None


def context_of(files: TLSFiles) -> ssl.SSLContext:
    """What connections are made with. Raises InvalidArgument for files that are of no use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.sslsocket_class = _Socket
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


class SecureConnection(Connection):
    """A blocking connection with TLS. Raises TLSError, too, where Connection raises OSError and ProtocolError."""

    _socket: ssl.SSLSocket

    def __init__(self, files: TLSFiles, address: Address, abandon_fd: int | None) -> None:
        context = fresh_context(files)
        super().__init__(address, abandon_fd)
        try:
            # The same file descriptor, so that what polls it need not know.
            self._socket = context.wrap_socket(
                self._socket, server_hostname=address[0], do_handshake_on_connect=False, suppress_ragged_eofs=True
            )
            self._shake_hands(time.monotonic() + CONNECT_SECONDS_MAX)
            self._names = names_of(self._socket)
        except BaseException:
            self.close()
            raise

    def check_hello(self, hello: Box) -> None:
        """Raise TLSError unless the certificate is of the node that has answered."""
        check_hello(self._names, hello)

    def _shake_hands(self, deadline: float) -> None:
        while True:
            try:
                self._socket.do_handshake()
                return
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except ssl.SSLWantWriteError:
                events = select.POLLOUT
            except OSError as error:
                raise TLSError(why_failed(error)) from None
            self._wait_for(events, max(0.0, deadline - time.monotonic()))

    def _send(self, data: bytes, seconds_max: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except ssl.SSLWantWriteError:
                self._wait_for(select.POLLOUT, seconds_max)
            except ssl.SSLError as error:
                raise TLSError(why_failed(error)) from None

    def _wait(self, seconds_max: float) -> int:
        return select.POLLIN if self._socket.pending() else super()._wait(seconds_max)

    def _wait_for(self, events: int, seconds_max: float) -> None:
        self._poll.modify(self._socket, events)
        try:
            super()._wait(seconds_max)
        finally:
            self._poll.modify(self._socket, select.POLLIN)
