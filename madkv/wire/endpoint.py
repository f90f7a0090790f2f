"""Where to connect to: an IP address or a name."""

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import ClientCreator, Factory, Protocol
from zope.interface import implementer

from madkv.addresses import Address

P = TypeVar("P", bound=Protocol)


def endpoint_to(address: Address, reactor: Any, seconds: float, attempt_seconds: float | None = None) -> Any:
    """Return the endpoint that connects to an address, within so many seconds.

    A name may stand for several addresses; these are tried one after the other, `attempt_seconds` apart.
    """
    host, port = address
    if isIPAddress(host):
        return _IPEndpoint(IPv4Address("TCP", host, port), reactor, seconds)
    if isIPv6Address(host):
        return _IPEndpoint(IPv6Address("TCP", host, port), reactor, seconds)
    # Twisted's endpoints import all of OpenSSL, a fifth of a daemon's start; most clusters are told no names.
    from twisted.internet.endpoints import HostnameEndpoint

    return HostnameEndpoint(reactor, host, port, timeout=seconds, attemptDelay=attempt_seconds)


def connect(endpoint: Any, build: Callable[[], P]) -> Deferred[P]:
    """Connect once; fires with the protocol that `build` makes for the connection."""
    factory = Factory.forProtocol(build)
    factory.noisy = False
    connecting: Deferred[P] = endpoint.connect(factory)
    return connecting


@implementer(IStreamClientEndpoint)
class _IPEndpoint:
    """One address. Nothing stands between the connection and its protocol, unlike with Twisted's own."""

    def __init__(self, address: IPv4Address | IPv6Address, reactor: Any, seconds: float) -> None:
        self._address = address
        self._reactor = reactor
        self._seconds = seconds

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Connect; fails with Twisted's ConnectError."""
        creator = ClientCreator(self._reactor, protocolFactory.buildProtocol, self._address)
        connecting: Deferred[Any] = creator.connectTCP(self._address.host, self._address.port, timeout=self._seconds)
        return connecting
