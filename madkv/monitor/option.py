"""The daemons' option `--http`, and what it does; a daemon without it loads nothing of this room but this module."""

from importlib.util import find_spec

from twisted.application.service import IService

from madkv.addresses import Address, parse_address
from madkv.errors import InvalidArgument
from madkv.server.process import Process

LOOPBACK = "127.0.0.1"
NEEDED = "prometheus_client"
OPTION = [
    "http", None, None, "[ADDR:]PORT to show metrics, probes and a status page on; without ADDR on loopback alone.",
]  # fmt: skip


def read_http(text: str) -> Address:
    """Where to listen. Raises InvalidArgument, also when what it takes is not installed."""
    address = parse_address(text if ":" in text else f"{LOOPBACK}:{text}", port_min=0)
    if find_spec(NEEDED) is None:
        raise InvalidArgument("the package prometheus-client is needed for it: pip install 'madkv[http]'")
    return address


def with_http(process: Process, address: Address | None) -> IService:
    """The process, with an HTTP port beside it if it is to have one."""
    if address is None:
        return process
    from madkv.monitor.service import beside

    return beside(process, address)
