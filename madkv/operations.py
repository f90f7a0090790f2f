"""What a replica orders and applies, and the outcomes of it.

Reads are not among these: they change nothing, so they are released at a point instead of being ordered in a log.
"""

from enum import IntEnum

import attrs

from madkv.errors import MadKVError


class WriteKind(IntEnum):
    """What a write does; the numbers are part of the encoding and never change."""

    PUT = 1
    SWAP = 2
    DELETE = 3


@attrs.frozen
class Write:
    """Put, Swap or Delete of one key.

    `value` is empty for a Delete. `session` 0 means a call without a session: it is executed each time it arrives.
    Otherwise `sequence` numbers the call within its session, and `floor` is the lowest number whose caller still waits.
    """

    kind: WriteKind
    key: bytes
    value: bytes = b""
    session: int = 0
    sequence: int = 0
    floor: int = 0


@attrs.frozen
class OpenSession:
    """Open a session for a client that chose 16 random bytes as its id; again for the same id: the same session."""

    client_id: bytes


@attrs.frozen
class CloseSession:
    """Forget a session and its records. Closing one that is not there is no error."""

    session: int


Operation = Write | OpenSession | CloseSession

Outcome = bool | int | bytes | MadKVError | None
"""Put and Delete: whether the key existed. Swap: the old value or None. OpenSession: the session's index.
CloseSession: None. A refusal is an error *returned*, since every replica must come to it alike."""
