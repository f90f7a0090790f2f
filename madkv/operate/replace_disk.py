"""`madkv replace-disk`: the disk of a node is lost for good, and the managers hear of it, so that another may come."""

from contextlib import closing

from madkv.addresses import parse_address, parse_addresses, show_address
from madkv.client.connection import connector
from madkv.errors import Busy, InternalError, Interrupted, MadKVError, ProtocolError, Rejected
from madkv.limits import TRY_SECONDS_MAX
from madkv.operate.ask import ask_in_turn, check_files
from madkv.operate.ending import fail
from madkv.operate.health import cluster_in, cluster_of
from madkv.wire import codec
from madkv.wire.boxes import field

DONE, FAILED, UNKNOWN = 0, 1, 2


def replace_disk(node: str, managers_text: str) -> int:
    """Do it, and say so; the exit status: DONE, FAILED (nothing was changed) or UNKNOWN."""
    try:
        managers = list(map(show_address, parse_addresses(managers_text)))
    except MadKVError as error:
        return fail("replace-disk", f"--managers: {error}", FAILED)
    try:
        check_files()
        cluster = cluster_of(managers)
        ask_in_turn("no manager leads", managers, lambda address: _ask(address, node, cluster))
    except _AnswerLost as error:
        why = f"the answer of a manager was lost: {error}; whether the disk was given up is not known"
        return fail("replace-disk", why, UNKNOWN)
    except (MadKVError, OSError) as error:
        return fail("replace-disk", error, FAILED)
    print(f"the disk of {node} is given up; start {node} on an empty directory, and it takes its place")
    return DONE


class _AnswerLost(MadKVError):
    """The question was sent, and nobody knows what became of it: asking again might give up the next disk, too."""


def _ask(address: str, node: str, cluster: str) -> None:
    with closing(connector(None)(parse_address(address), None)) as connection:
        version = codec.integer(b"version", codec.PROTOCOL_VERSION)
        hello = connection.exchange(codec.HELLO, version, TRY_SECONDS_MAX)
        connection.check_hello(hello)
        theirs = cluster_in(hello)
        if not theirs:  # on this connection it might still become a manager of another cluster
            raise Busy("it is starting")
        if theirs != cluster:  # it was silent when all were asked, or has just come to this address
            raise Rejected(f"{address} is a manager of cluster {theirs}, and not of {cluster} as the others are")
        try:
            fields = field(b"node", node.encode(errors="surrogateescape"))
            connection.exchange(codec.REPLACE_DISK, fields, TRY_SECONDS_MAX)
        except (OSError, Interrupted, InternalError, ProtocolError) as error:
            raise _AnswerLost(str(error)) from None
