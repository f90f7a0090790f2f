"""HOST:PORT as users write it."""

from madkv.errors import InvalidArgument

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
    if not (colon and host and port.isascii() and port.isdigit() and port_min <= int(port) <= 65_535):
        raise InvalidArgument(f"{text!r} is not an address; write HOST:PORT, such as 127.0.0.1:3777")
    return host, int(port)


def show_address(address: Address) -> str:
    """The inverse of `parse_address`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
