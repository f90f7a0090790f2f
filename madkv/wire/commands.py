"""The public AMP commands: import them and talk to a server with twisted.protocols.amp alone.

Writes may carry (session, sequence, floor), as MadKV's own clients do, which makes their retries exactly-once. Without
them a write is executed each time it arrives: a caller whose connection breaks before the answer cannot know whether
it took effect, and a retry may take effect twice.
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
    server that keeps its pairs on disk answers with an empty one.
    """

    arguments = [(b"version", amp.Integer())]
    response = [(b"version", amp.Integer()), (b"node", amp.String()), (b"boot", amp.String())]
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
    """Pairs with start <= key <= end in key order, a page at a time, all as they were at one point.

    The first call goes without `cursor`. An answer that holds a cursor has more pages: make the same call with it, on
    the same connection. ScanExpired: the server no longer keeps that point; start again without a cursor.
    """

    arguments = [(b"start", amp.String()), (b"end", amp.String()), (b"cursor", amp.String(optional=True))]
    response = [(b"pairs", Pairs()), (b"cursor", amp.String(optional=True))]
    errors = {**_REFUSALS, errors.ScanExpired: errors.ScanExpired.code}


COMMANDS = (Hello, OpenSession, CloseSession, Put, Swap, Delete, Get, Scan)
