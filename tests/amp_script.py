"""What a user's script looks like: the public commands and twisted.protocols.amp, nothing else.

Run as `amp_script.py HOST PORT`. It says "all is well" when every answer was as it should be.
"""

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import react
from twisted.protocols import amp

from madkv.errors import InvalidArgument, ScanExpired, StaleCall, UnknownSession, VersionMismatch
from madkv.wire.commands import CloseSession, Delete, Get, Hello, OpenSession, Put, Scan, Swap


class StartTLS(amp.Command):
    """By its name alone what Twisted's own command is, which wants a TLS library before it sends anything."""


BIG = bytes(range(256)) * 4096


async def scan(server: amp.AMP, start: bytes, end: bytes) -> tuple[list[tuple[bytes, bytes]], int]:
    """All pairs, and in how many pages they came."""
    page = await server.callRemote(Scan, start=start, end=end)
    pairs, pages = page["pairs"], 1
    while page["cursor"] is not None:
        page = await server.callRemote(Scan, start=start, end=end, cursor=page["cursor"])
        pairs += page["pairs"]
        pages += 1
    return pairs, pages


async def refused(call: Deferred[Any], error: type[Exception]) -> None:
    """The call must fail with this error."""
    try:
        await call
    except error as refusal:
        assert str(refusal), refusal
    else:
        raise AssertionError(f"no {error.__name__}")


async def main(host: str, port: str) -> None:
    """Every command, and every error that one can provoke."""
    server = await connectProtocol(TCP4ClientEndpoint(reactor, host, int(port)), amp.AMP())
    call = server.callRemote
    hello = await call(Hello, version=1)
    assert hello["version"] == 1 and hello["node"] and hello["boot"]
    await refused(call(Hello, version=2), VersionMismatch)
    key = b"amp-script"
    assert await call(Put, key=key, value=b"one") == {"found": False}
    assert await call(Put, key=key, value=b"two") == {"found": True}
    assert await call(Get, key=key) == {"value": b"two"}
    assert await call(Swap, key=key, value=BIG) == {"value": b"two"}
    assert await call(Get, key=key) == {"value": BIG}
    assert await call(Swap, key=key, value=b"") == {"value": BIG}
    assert await call(Get, key=key) == {"value": b""}
    assert await call(Delete, key=key) == {"found": True}
    assert await call(Delete, key=key) == {"found": False}
    assert await call(Get, key=key) == {"value": None}
    assert await call(Swap, key=key, value=b"x") == {"value": None}

    expected = [(b"amp-scan-%05d" % number, b"v" * 1000) for number in range(1000)]
    calls = [call(Put, key=key, value=value) for key, value in expected]
    for each in calls:
        assert await each == {"found": False}
    pairs, pages = await scan(server, b"amp-scan-", b"amp-scan-~")
    assert pairs == expected and pages > 3
    assert await scan(server, b"z", b"a") == ([], 1)
    await refused(call(Scan, start=b"a", end=b"z", cursor=b"12345678"), ScanExpired)

    session = (await call(OpenSession, client_id=b"c" * 16))["session"]
    assert await call(OpenSession, client_id=b"c" * 16) == {"session": session}
    first = {"key": key, "value": b"y", "session": session, "sequence": 1, "floor": 1}
    assert await call(Swap, **first) == {"value": b"x"}
    assert await call(Swap, **first) == {"value": b"x"}, "the retry of a call is the same call"
    await refused(call(Swap, **{**first, "key": b"another"}), InvalidArgument)
    assert await call(Delete, key=key, session=session, sequence=2, floor=2) == {"found": True}
    await refused(call(Swap, **first), StaleCall)
    assert await call(CloseSession, session=session) == {}
    await refused(call(Put, **{**first, "sequence": 3}), UnknownSession)

    await refused(call(Put, key=b"", value=b""), InvalidArgument)
    await refused(call(Put, key=key, value=BIG + b"x"), InvalidArgument)
    await refused(call(Get, key=b"k" * 512), InvalidArgument)
    await refused(call(OpenSession, client_id=b"short"), InvalidArgument)
    await refused(call(StartTLS), amp.UnhandledCommand)
    assert await call(Get, key=key) == {"value": None}, "after all that the connection goes on"
    print("all is well", flush=True)


if __name__ == "__main__":
    react(lambda _, host, port: Deferred.fromCoroutine(main(host, port)), sys.argv[1:])
