"""Ports for what tools start: free just now, and kept from other tools for as long as this one runs."""

import fcntl
import os
import random
import socket
from pathlib import Path

OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
PORT_MIN = 10_000
PORTS_MIN = 4096
"""How many are tried at least."""

_given: set[int] = set()
_reservations: int | None = None


def candidates() -> list[int]:
    """All that may be given, in random order.

    None of those from which the kernel takes one for an outgoing connection: whoever calls a server that is down would
    sooner or later be given the server's own port, and with it a connection to itself.
    """
    first_outgoing = int(OUTGOING_PORTS.read_text().split()[0])
    ports = list(range(PORT_MIN, max(first_outgoing, PORT_MIN + PORTS_MIN)))
    random.SystemRandom().shuffle(ports)
    return ports


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens, and that no tool of this user has been given and still runs. Raises OSError.

    Otherwise: a cluster's node is killed; another tool, in another process, starts a cluster of its own and finds the
    port free; the first one's clients reach a stranger, and give up.
    """
    ports: list[int] = []
    sockets: list[socket.socket] = []
    try:
        for port in candidates():
            if len(ports) == count:
                break
            if port in _given or not _reserve(port):
                continue
            try:
                sockets.append(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            ports.append(port)
    finally:
        for each in sockets:
            each.close()
    if len(ports) < count:
        raise OSError(f"fewer than {count} ports are free")
    _given.update(ports)
    return ports


def _reserve(port: int) -> bool:
    """Lock the byte that stands for the port, until this process ends; whether nobody else has it."""
    global _reservations
    if _reservations is None:
        # Open for good: to close it would give up all locks.
        path = f"/tmp/madkv-ports-{os.getuid()}"  # whatever TMPDIR is, so that all tools share it
        _reservations = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.lockf(_reservations, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except BlockingIOError:
        return False
    return True
