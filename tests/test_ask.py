"""Questions to nodes: how long one may take, and who is asked next."""

import socket
import threading
import time
from contextlib import closing, suppress

import pytest

from madkv.errors import Busy, MadKVError, ProtocolError, Rejected
from madkv.operate import ask as asking
from madkv.operate.ask import Stranger, ask, ask_in_turn
from madkv.wire import codec
from madkv.wire.boxes import field

HALF_BOX = b"".join(field(b"value.%d" % number, b"x" * 65_535) for number in range(10))


def flood(listening: socket.socket) -> None:
    """Answer a question by half a box."""
    connection, _ = listening.accept()
    with connection, suppress(OSError):
        connection.sendall(HALF_BOX)


def test_a_peer_that_drips_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always another byte to receive, and never a whole box."""
    monkeypatch.setattr(asking, "READ_BYTES", 1)
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        flooding = threading.Thread(target=flood, args=(listening,))
        flooding.start()
        try:
            with pytest.raises(TimeoutError):
                ask(f"127.0.0.1:{listening.getsockname()[1]}", codec.STATUS, seconds_max=0.3)
        finally:
            flooding.join()


def test_strangers_keep_nobody_from_being_asked() -> None:
    asked: list[str] = []

    def question(address: str) -> str:
        asked.append(address)
        if address == "web":
            raise ProtocolError("not an AMP box")
        if address == "server":
            raise Stranger("it is a server")
        if address == "final":
            raise Rejected("this is not for you")
        return "answered"

    assert ask_in_turn("nobody leads", ["web", "server", "manager", "other"], question) == "answered"
    assert asked == ["web", "server", "manager"]
    with pytest.raises(Rejected, match=r"^this is not for you$"):
        ask_in_turn("nobody leads", ["web", "final", "manager"], question)


def test_when_all_are_strangers_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pause(seconds: float) -> None:
        raise AssertionError("they will not be others in a moment")

    def question(address: str) -> None:
        raise Stranger(f"it is s{address}")

    monkeypatch.setattr(asking.time, "sleep", no_pause)
    with pytest.raises(MadKVError, match=r"^nobody leads: 1: it is s1; 2: it is s2$"):
        ask_in_turn("nobody leads", ["1", "2"], question)


def test_where_one_is_none_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An election takes a moment."""
    pauses: list[float] = []

    def question(address: str) -> str:
        if address == "1":
            raise Stranger("it is another")
        if len(pauses) < 3:
            raise Busy("nobody leads yet")
        return "answered"

    monkeypatch.setattr(asking.time, "sleep", pauses.append)
    began = time.monotonic()
    assert ask_in_turn("nobody leads", ["1", "2"], question) == "answered"
    assert time.monotonic() - began < asking.LOOK_SECONDS_MAX
    assert len(pauses) == 3
