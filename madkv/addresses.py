"""HOST:PORT as users write it."""

from madkv.errors import InvalidArgument
from madkv.limits import HOST_CHARACTERS_MAX

Address = tuple[str, int]
"""Host name or IP address, and TCP port."""


def parse_address(text: str, *, port_min: int = 1) -> Address:
    """Read `host:port` or `[ipv6]:port`.

    Raises InvalidArgument with one line that says what an address looks like.
    """
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    if not (colon and _is_host(host) and is_number and port_min <= int(port) <= 65_535):
        shown = text if len(text) <= HOST_CHARACTERS_MAX else f"{text[:40]}…"
        raise InvalidArgument(f"{shown!r} is not an address; write HOST:PORT, such as 127.0.0.1:3777")
    return host, int(port)


def parse_addresses(text: str) -> list[Address]:
    """Read addresses separated by commas; none may come twice.

    Raises InvalidArgument.
    """
    addresses = [parse_address(part) for part in text.split(",")]
    seen: set[Address] = set()
    for address in addresses:
        if address in seen:
            raise InvalidArgument(f"{show_address(address)} comes twice")
        seen.add(address)
    return addresses


def _is_host(text: str) -> bool:
    """Whether it can be looked up at all; what cannot be encoded would fail far from here, and not as a bad name."""
    if len(text) > HOST_CHARACTERS_MAX:
        return False  # Python's IDNA takes time by the square of a label's length: minutes for one that fits in a box.
    try:
        text.encode("ascii" if text.isascii() else "idna")
    except UnicodeError:
        return False
    return bool(text) and text.isprintable() and not set(" ,[]").intersection(text)


def show_address(address: Address) -> str:
    """The inverse of `parse_address`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether what listens there can be reached from its own machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")
