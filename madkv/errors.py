"""Every error that MadKV raises for the world; a broken invariant of its own is an AssertionError instead.

Errors with a `code` cross the wire: a server answers them as declared AMP errors, a client raises them again from the
code and one line of text (`from_code`).
"""


class MadKVError(Exception):
    """Base of all errors meant for users."""

    code = b""


class InvalidArgument(MadKVError):
    """The call itself is wrong: a size, a missing or malformed argument. Never executed; do not retry."""

    code = b"INVALID_ARGUMENT"


class Refused(MadKVError):
    """Base of refusals that leave the call as it was: not executed, and the same call may be tried again."""


class Busy(Refused):
    """A bound on work in flight, sessions or records is reached. Not executed; try again after a wait."""

    code = b"BUSY"


class NotLeader(Refused):
    """This replica does not lead its group. Not executed; try another."""

    code = b"NOT_LEADER"

    def __init__(self, description: str, leader: int | None = None) -> None:
        super().__init__(description)
        self.leader = leader
        """The number of the replica that leads, as far as is known."""


class WrongPartition(Refused):
    """The key belongs to another group now. Not executed; look for its place in the partition map."""

    code = b"WRONG_PARTITION"

    def __init__(self, description: str, epoch: int = 0) -> None:
        super().__init__(description)
        self.epoch = epoch
        """That of the map by which this was found: an older map is of no use."""


class Rejected(MadKVError):
    """A set-up or a request that does not fit this cluster. Final: another try will not help."""

    code = b"REFUSED"


class Interrupted(MadKVError):
    """The replica lost its leadership or stopped before the outcome was known; the same call tells when tried again."""

    code = b"INTERRUPTED"


class UnknownSession(MadKVError):
    """The session was never opened here, was closed, or has expired. Not executed."""

    code = b"UNKNOWN_SESSION"


class StaleCall(MadKVError):
    """The sequence number lies below the session's floor: its caller said that it has its answer. Not executed."""

    code = b"STALE_CALL"


class ScanExpired(MadKVError):
    """The server no longer keeps the cut that this scan reads from. Start the scan again."""

    code = b"SCAN_EXPIRED"


class VersionMismatch(MadKVError):
    """The two sides speak different versions of the protocol."""

    code = b"VERSION_MISMATCH"


class InternalError(MadKVError):
    """The server failed in a way it did not foresee (its log says how). Whether the call took effect is unknown."""

    code = b"INTERNAL_ERROR"


class ProtocolError(MadKVError):
    """What arrived are not the boxes or the answers that were agreed on; the connection is of no more use."""


class TLSError(ProtocolError):
    """One side refuses the other's certificate, or speaks no TLS. Another try helps once that is mended."""


class OutcomeUnknown(MadKVError):
    """A write's answer was lost, and the session that would tell has ended: it may or may not have taken effect."""


class Abandoned(MadKVError):
    """Whoever was waiting for the answer is gone, so the call was given up; it may or may not have happened."""


WIRE_ERRORS: tuple[type[MadKVError], ...] = (
    InvalidArgument,
    Busy,
    NotLeader,
    WrongPartition,
    Interrupted,
    UnknownSession,
    StaleCall,
    ScanExpired,
    VersionMismatch,
    InternalError,
    Rejected,
)
_BY_CODE = {error.code: error for error in WIRE_ERRORS}


def from_code(code: bytes, description: str) -> MadKVError:
    """The error that `code` stands for; a ProtocolError for a code that this version does not know."""
    kind = _BY_CODE.get(code)
    if kind is None:
        return ProtocolError(f"unexpected error {shown(code)}: {description}")
    return kind(description)


def shown(text: bytes, bytes_max: int = 40) -> str:
    """What somebody else has sent, for a line that people read: whatever it is, that stays one line."""
    line = text[:bytes_max].decode(errors="backslashreplace")
    return line if line.isprintable() else ascii(line)
