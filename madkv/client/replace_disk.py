"""`madkv replace-disk`: the disk of a node is lost for good, and the managers hear of it, so that another may come."""

import sys
import time
from collections.abc import Callable
from contextlib import closing

from madkv.addresses import Address, parse_addresses, show_address
from madkv.client.connection import Connection, connector
from madkv.errors import InternalError, Interrupted, MadKVError, NotLeader, ProtocolError, Refused, TLSError
from madkv.limits import TRY_SECONDS_MAX
from madkv.wire import codec
from madkv.wire.boxes import field

SECONDS_MAX = 15.0
"""How long to look for a manager that leads: an election takes a second or two."""
PAUSE_SECONDS = 0.3
DONE, FAILED, UNKNOWN = 0, 1, 2

Connector = Callable[[Address, int | None], Connection]


def replace_disk(node: str, managers_text: str) -> int:
    """Do it, and say so; the exit status: DONE, FAILED (nothing was changed) or UNKNOWN."""
    try:
        managers = parse_addresses(managers_text)
    except MadKVError as error:
        return _say(f"--managers: {error}", FAILED)
    try:
        _replace(node, managers, connector(None))
    except _AnswerLost as error:
        return _say(f"the answer of a manager was lost: {error}; whether the disk was given up is not known", UNKNOWN)
    except (MadKVError, OSError) as error:
        return _say(str(error), FAILED)
    print(f"the disk of {node} is given up; start {node} on an empty directory, and it takes its place")
    return DONE


def _say(text: str, status: int) -> int:
    print(f"madkv replace-disk: {text}", file=sys.stderr)
    return status


class _AnswerLost(MadKVError):
    """The question was sent, and nobody knows what became of it: asking again might give up the next disk, too."""


def _replace(node: str, managers: list[Address], connect: Connector) -> None:
    """Ask one manager after another until the one that leads has answered."""
    ends = time.monotonic() + SECONDS_MAX
    at = hinted = 0
    while True:
        address = managers[at]
        try:
            return _ask(address, node, connect)
        except Refused as error:
            problem: Exception = error
            leader = error.leader if isinstance(error, NotLeader) else None
            if leader is not None and leader < len(managers) and hinted < len(managers):
                at, hinted = leader, hinted + 1
                continue
        except (OSError, TLSError) as error:
            problem = error
        if time.monotonic() >= ends:
            raise MadKVError(f"no manager leads; {show_address(address)}: {problem}")
        at, hinted = (at + 1) % len(managers), 0
        time.sleep(PAUSE_SECONDS)


def _ask(address: Address, node: str, connect: Connector) -> None:
    with closing(connect(address, None)) as connection:
        version = codec.integer(b"version", codec.PROTOCOL_VERSION)
        hello = connection.exchange(codec.HELLO, version, TRY_SECONDS_MAX)
        connection.check_hello(hello)
        if hello.get(b"role") != b"manager":
            raise ProtocolError(f"{show_address(address)} is a server; --managers is for the managers' addresses")
        try:
            fields = field(b"node", node.encode(errors="surrogateescape"))
            connection.exchange(codec.REPLACE_DISK, fields, TRY_SECONDS_MAX)
        except (OSError, Interrupted, InternalError, ProtocolError) as error:
            raise _AnswerLost(str(error)) from None
