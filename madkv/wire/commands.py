"""The public AMP commands: import them and talk to a server with twisted.protocols.amp alone.

Writes may carry (session, sequence, floor), as MadKV's own clients do, which makes their retries exactly-once. Without
them a write is executed each time it arrives: a caller whose connection breaks before the answer cannot know whether
it took effect, and a retry may take effect twice.

Where there is TLS, ReplaceDisk, Backup and TransferLeader are for operators: a certificate of anybody else is Rejected.
"""

from typing import Any

from twisted.protocols import amp

from madkv import errors
from madkv.wire.boxes import join_blob, split_blob
from madkv.wire.codec import decode_pairs, encode_pairs


class Blob(amp.Argument):
    """Bytes of any length, split over several fields where AMP's 65,535 do not suffice."""

    def fromBox(self, name: bytes, strings: dict[bytes, bytes], objects: dict[str, Any], proto: Any) -> None:
        """Join the pieces and put the value under the argument's name."""
        value = join_blob(strings, name)
        if value is None and not self.optional:
            raise KeyError(name)
        objects[name.decode()] = None if value is None else self.fromBytes(value)

    def toBox(self, name: bytes, strings: dict[bytes, bytes], objects: dict[str, Any], proto: Any) -> None:
        """Split the value over as many fields as it takes."""
        value = objects.get(name.decode())
        if value is None and not self.optional:
            raise KeyError(name)
        if value is not None:
            strings.update(split_blob(name, self.toBytes(value)))

    def fromBytes(self, data: bytes) -> Any:
        """The value that the joined bytes stand for."""
        return data

    def toBytes(self, value: Any) -> bytes:
        """The bytes that stand for a value."""
        assert isinstance(value, bytes)
        return value


class Pairs(Blob):
    """A list of (key, value) in key order."""

    def fromBytes(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Decode the pairs."""
        return decode_pairs(data)

    def toBytes(self, value: list[tuple[bytes, bytes]]) -> bytes:
        """Encode the pairs."""
        return encode_pairs(value)


_Arguments = list[tuple[bytes, amp.Argument]]
_Errors = dict[type[Exception], bytes]

_NOTHING: _Arguments = []
_REFUSALS: _Errors = {
    error: error.code
    for error in (
        errors.InvalidArgument,
        errors.Busy,
        errors.NotLeader,
        errors.WrongPartition,
        errors.Interrupted,
        errors.InternalError,
    )
}
_SESSION_REFUSALS: _Errors = {error: error.code for error in (errors.UnknownSession, errors.StaleCall)}
_KEY: _Arguments = [(b"key", amp.String())]
_VALUE: _Arguments = [(b"value", Blob())]
_SESSION: _Arguments = [(name, amp.Integer(optional=True)) for name in (b"session", b"sequence", b"floor")]


class Hello(amp.Command):
    """Agree on the protocol version. MadKV's clients send it first; a plain script need not.

    `boot` names one life of a server that keeps its pairs in memory: with another boot it has started anew, empty. A
    server that keeps its pairs on disk answers with an empty one. `role` is `solo` (a server without a manager),
    `server` or `manager`; `cluster` names the cluster, and is empty where there is none (yet).
    """

    arguments = [(b"version", amp.Integer())]
    response = [
        (b"version", amp.Integer()),
        (b"node", amp.String()),
        (b"boot", amp.String()),
        (b"role", amp.String(optional=True)),
        (b"cluster", amp.String(optional=True)),
    ]
    errors = {**_REFUSALS, errors.VersionMismatch: errors.VersionMismatch.code}


class OpenSession(amp.Command):
    """Open a session for a client that chose 16 random bytes as its id; the same id gets the same session again."""

    arguments = [(b"client_id", amp.String())]
    response = [(b"session", amp.Integer())]
    errors = _REFUSALS


class CloseSession(amp.Command):
    """Forget a session and the answers it records. Later calls in it are refused."""

    arguments = [(b"session", amp.Integer())]
    response = _NOTHING
    errors = _REFUSALS


class Put(amp.Command):
    """Set the value of a key; whether the key existed."""

    arguments = _KEY + _VALUE + _SESSION
    response = [(b"found", amp.Boolean())]
    errors = {**_REFUSALS, **_SESSION_REFUSALS}


class Swap(amp.Command):
    """Set the value of a key; the value it had, None if it did not exist."""

    arguments = _KEY + _VALUE + _SESSION
    response = [(b"value", Blob(optional=True))]
    errors = {**_REFUSALS, **_SESSION_REFUSALS}


class Delete(amp.Command):
    """Remove a key; whether it existed."""

    arguments = _KEY + _SESSION
    response = [(b"found", amp.Boolean())]
    errors = {**_REFUSALS, **_SESSION_REFUSALS}


class Get(amp.Command):
    """The value of a key, None if it does not exist."""

    arguments = _KEY
    response = [(b"value", Blob(optional=True))]
    errors = _REFUSALS


class Scan(amp.Command):
    """Pairs with start <= key <= end in key order, a page at a time.

    The first call goes without `cursor`. An answer that holds a cursor has more pages: make the same call with it, on
    the same connection. A server without a manager answers all pages from one point; ScanExpired: it no longer keeps
    that point; start again without a cursor. In a cluster each page shows the pairs of a point of its own, and no more
    than the server's group owns next to `start`: where that ends before `end`, the answer says `until` which key, and
    what follows is to be asked of the group that owns it.
    """

    arguments = [(b"start", amp.String()), (b"end", amp.String()), (b"cursor", amp.String(optional=True))]
    response = [(b"pairs", Pairs()), (b"cursor", amp.String(optional=True)), (b"until", amp.String(optional=True))]
    errors = {**_REFUSALS, errors.ScanExpired: errors.ScanExpired.code}


class Status(amp.Command):
    """How a server or a manager is, as JSON for people and tools."""

    arguments = _NOTHING
    response = [(b"status", Blob())]
    errors = _REFUSALS


class GetMap(amp.Command):
    """Of a manager: the partition map (`madkv.partitions`). Busy while servers are missing that were never there."""

    arguments = _NOTHING
    response = [(b"map", Blob())]
    errors = _REFUSALS


class Register(amp.Command):
    """Of a manager: a server says who it is, and learns what it owns. It says so again and again.

    `cluster` is empty from a server on a blank disk. `has_vote`: as far as it knows, it counts in its group. `first` is
    the group's first configuration, absent until all its replicas have registered; the voters of `wanted` are those
    that the group should have now.
    """

    arguments = [
        (b"cluster", amp.String()),
        (b"partition", amp.Integer()),
        (b"replica", amp.Integer()),
        (b"disk", amp.String()),
        (b"api_port", amp.Integer()),
        (b"p2p_port", amp.Integer()),
        (b"peers", amp.String()),
        (b"rf", amp.Integer()),
        (b"has_vote", amp.Boolean(optional=True)),
    ]
    response = [
        (b"cluster", amp.String()),
        (b"epoch", amp.Integer()),
        (b"ownership", Blob()),
        (b"first", amp.String(optional=True)),
        (b"wanted", amp.String()),
    ]
    errors = {**_REFUSALS, errors.Rejected: errors.Rejected.code}


class ReplaceDisk(amp.Command):
    """Of a manager: the disk of this node is lost for good; the next blank one in its name takes its place."""

    arguments = [(b"node", amp.String())]
    response = _NOTHING
    errors = {**_REFUSALS, errors.Rejected: errors.Rejected.code}


class Backup(amp.Command):
    """Of a server of a cluster, which must lead its group: all that the group holds, at one point, a page at a time.

    The first call goes without `cursor`, and its answer says what the point is: the log entry (`index`, `term`) that
    was applied last, and the ranges of the `group` (`ownership`, as `madkv.ranges` encodes it). Everything acknowledged
    before that call is in it. An answer that holds a cursor has more pages: ask with it, on the same connection, one
    page at a time. ScanExpired: the point is no longer kept; begin again. Busy: too many backups at a time.
    """

    arguments = [(b"cursor", amp.Integer(optional=True))]
    response = [
        (b"pairs", Pairs()),
        (b"cursor", amp.Integer(optional=True)),
        (b"group", amp.String(optional=True)),
        (b"index", amp.Integer(optional=True)),
        (b"term", amp.Integer(optional=True)),
        (b"ownership", Blob(optional=True)),
    ]
    errors = {
        **_REFUSALS,
        errors.ScanExpired: errors.ScanExpired.code,
        errors.Rejected: errors.Rejected.code,
    }


class TransferLeader(amp.Command):
    """Of any node, which must lead its group: hand the leadership to the replica of that number.

    Answered when that leads, with its term. Rejected: it is no member, or is behind, or it has not come about.
    """

    arguments = [(b"replica", amp.Integer())]
    response = [(b"term", amp.Integer())]
    errors = {**_REFUSALS, errors.Rejected: errors.Rejected.code}


# --- On the p2p port: replicas of one group among each other ----------------------------------------------------------


class PeerHello(amp.Command):
    """What a replica says first on a connection to a peer: who it is, and whom it takes the other one for."""

    arguments = [
        (b"version", amp.Integer()),
        (b"cluster", amp.String()),
        (b"group", amp.String()),
        (b"replica", amp.Integer()),
        (b"disk", amp.String()),
        (b"to", amp.Integer()),
        (b"ports", amp.String()),
    ]
    response = [(b"disk", amp.String())]
    errors = {
        errors.Busy: errors.Busy.code,
        errors.InvalidArgument: errors.InvalidArgument.code,
        errors.Rejected: errors.Rejected.code,
        errors.VersionMismatch: errors.VersionMismatch.code,
    }


class Raft(amp.Command):
    """A message to the replica that PeerHello was said to. Nothing is answered; it carries no `_ask`."""

    arguments = [(b"message", Blob())]
    requiresAnswer = False


class Introduce(amp.Command):
    """Of a manager, by another: who it is and what it was started with; the first configuration, once there is one."""

    arguments = [
        (b"replica", amp.Integer()),
        (b"disk", amp.String()),
        (b"ports", amp.String()),
        (b"age", amp.Integer()),
        (b"settings", Blob()),
    ]
    response = [
        (b"replica", amp.Integer()),
        (b"disk", amp.String()),
        (b"seen", amp.String()),
        (b"cluster", amp.String()),
        (b"first", amp.String(optional=True)),
    ]
    errors = {**_REFUSALS, errors.Rejected: errors.Rejected.code}


COMMANDS = (
    *(Hello, OpenSession, CloseSession, Put, Swap, Delete, Get, Scan),
    *(Status, TransferLeader, Backup, GetMap, Register, ReplaceDisk),
    *(PeerHello, Raft, Introduce),
)
