"""The line interface, byte for byte, through real processes."""

import os
import pty
import subprocess
import threading

import pytest

from madkv.limits import KEY_BYTES_MAX, LINE_BYTES_MAX, VALUE_BYTES_MAX
from tests.line_client import LineClient, command, run
from tests.processes import ROOT, ServerProcess

PRINTABLE = bytes(range(ord("!"), 0x80))
BEYOND_ASCII = bytes(range(0x80, 0x100))


def transcript(address: str, data: bytes, *, complaints: int = 0) -> bytes:
    """What a client answers to `data`, having exited 0 with that many lines on stderr."""
    result = run(address, data)
    assert result.stderr.count(b"\n") == complaints, result.stderr
    assert result.returncode == 0
    return result.stdout


# --- Every line form --------------------------------------------------------------------------------------------------


def test_every_line_form(server: ServerProcess) -> None:
    asked = (
        b"GET form.a\nPUT form.a 1\nPUT form.a 2\nGET form.a\n"
        b"SWAP form.b x\nSWAP form.b y\nGET form.b\n"
        b"SCAN form. form.z\nSCAN form.a form.a\nSCAN form.z form.\nSCAN form.c form.z\n"
        b"DELETE form.a\nDELETE form.a\nGET form.a\nSWAP form.a z\nSTOP\n"
    )
    assert transcript(server.address, asked) == (
        b"GET form.a null\nPUT form.a not_found\nPUT form.a found\nGET form.a 2\n"
        b"SWAP form.b null\nSWAP form.b x\nGET form.b y\n"
        b"SCAN form. form.z BEGIN\n  form.a 2\n  form.b y\nSCAN END\n"
        b"SCAN form.a form.a BEGIN\n  form.a 2\nSCAN END\n"
        b"SCAN form.z form. BEGIN\nSCAN END\nSCAN form.c form.z BEGIN\nSCAN END\n"
        b"DELETE form.a found\nDELETE form.a not_found\nGET form.a null\nSWAP form.a null\nSTOP\n"
    )


@pytest.mark.parametrize("word", [PRINTABLE, BEYOND_ASCII], ids=["printable", "beyond"])
def test_keys_and_values_of_all_bytes(server: ServerProcess, word: bytes) -> None:
    asked = answers = b""
    for byte in word:
        key, value = b"all.%c" % byte, word[::-1] + b"%c" % byte
        asked += b"PUT %b %b\nGET %b\nSWAP %b %b\n" % (key, value, key, key, word)
        answers += b"PUT %b not_found\nGET %b %b\nSWAP %b %b\n" % (key, key, value, key, value)
    first, last = b"all.%c" % word[0], b"all.%c" % word[-1]
    pairs = b"".join(b"  all.%c %b\n" % (byte, word) for byte in word)
    asked += b"SCAN %b %b\n" % (first, last)
    answers += b"SCAN %b %b BEGIN\n%bSCAN END\n" % (first, last, pairs)
    asked += b"PUT %b %b\nDELETE %b\n" % (word, word, word)
    answers += b"PUT %b not_found\nDELETE %b found\n" % (word, word)
    for byte in word:
        asked += b"DELETE all.%c\n" % byte
        answers += b"DELETE all.%c found\n" % byte
    assert transcript(server.address, asked + b"STOP\n") == answers + b"STOP\n"


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        (b"PUT sp a\r\nGET sp\r\n\r\nSTOP\r\n", b"PUT sp not_found\nGET sp a\nSTOP\n"),
        (b"  PUT   sp    a  \n GET sp \nSTOP   \n", b"PUT sp not_found\nGET sp a\nSTOP\n"),
        (b"PUT sp a\tb\nGET sp\nSTOP\n", b"PUT sp not_found\nGET sp a\tb\nSTOP\n"),
        (
            b"PUT s\tp a\x00b\x0b\x0c\x1f\nGET s\tp\nDELETE s\tp\n",
            b"PUT s\tp not_found\nGET s\tp a\x00b\x0b\x0c\x1f\nDELETE s\tp found\n",
        ),
        (b"\n\n   \n\r\n \r\nGET sp\n\n", b"GET sp null\n"),
        (b"PUT sp a\rb\nGET sp\n", b"PUT sp not_found\nGET sp a\rb\n"),
        (b"PUT sp null\nGET sp\nSWAP sp null\n", b"PUT sp not_found\nGET sp null\nSWAP sp null\n"),
        (b"PUT STOP GET\nGET STOP\nDELETE STOP\n", b"PUT STOP not_found\nGET STOP GET\nDELETE STOP found\n"),
    ],
    ids=["crlf", "spaces", "tab-in-value", "controls", "blank-lines", "cr-in-value", "null", "keywords-as-words"],
)
def test_white_space(server: ServerProcess, asked: bytes, answers: bytes) -> None:
    try:
        assert transcript(server.address, asked) == answers
    finally:
        run(server.address, b"DELETE sp\n")


# --- Lines that cannot be understood ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"FROB x y",
        b"put k v",
        b"Get k",
        b"stop",
        b"\xff\xfe\x00",
        b"GET\tk",
        b"\tGET k",
        b"PUT",
        b"PUT k",
        b"PUT k v w",
        b"SWAP k",
        b"SWAP k v w",
        b"GET",
        b"GET k l",
        b"DELETE",
        b"DELETE k l",
        b"SCAN",
        b"SCAN a",
        b"SCAN a b c",
        b"STOP now",
        b"PUT\x00 k v",
        b"x" * 100_000,
        b"GET " + b"k" * (KEY_BYTES_MAX + 1),
        b"PUT " + b"k" * (KEY_BYTES_MAX + 1) + b" v",
        b"DELETE " + b"k" * (KEY_BYTES_MAX + 1),
        b"SCAN a " + b"k" * (KEY_BYTES_MAX + 1),
        b"PUT k " + b"v" * (VALUE_BYTES_MAX + 1),
        b"SWAP k " + b"v" * (VALUE_BYTES_MAX + 1),
        b"PUT k " + b"v" * 10_000_000,
        b"GET k " + b" " * 10_000_000,
    ],
    ids=lambda line: repr(line[:12])[2:-1].replace("\\", "/") + (f"~{len(line)}" if len(line) > 12 else ""),
)
def test_one_line_on_stderr_and_on_it_goes(server: ServerProcess, line: bytes) -> None:
    result = run(server.address, b"GET odd.1\n" + line + b"\nGET odd.2\nSTOP\n")
    assert result.stdout == b"GET odd.1 null\nGET odd.2 null\nSTOP\n"
    assert result.returncode == 0
    assert result.stderr.startswith(b"madkv: line 2: ")
    assert result.stderr.count(b"\n") == 1 and result.stderr.endswith(b"\n") and len(result.stderr) < 300
    assert result.stderr[:-1].isascii() and result.stderr[:-1].decode().isprintable()


def test_every_bad_line_has_its_complaint(server: ServerProcess) -> None:
    bad = [b"FROB", b"put k v", b"x" * (LINE_BYTES_MAX + 5), b"GET", b"y" * (3 * LINE_BYTES_MAX)]
    result = run(server.address, b"\n\n".join(bad))
    assert result.stdout == b"" and result.returncode == 0
    assert [line.split(b":")[1] for line in result.stderr.splitlines()] == [b" line %d" % n for n in (1, 3, 5, 7, 9)]


def test_the_longest_key_and_the_largest_value(server: ServerProcess) -> None:
    key, value = b"k" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX
    asked = b"PUT %b %b\nGET %b\nSWAP %b %b\nSCAN %b %b\nDELETE %b\n" % (key, value, key, key, value, key, key, key)
    assert transcript(server.address, asked) == (
        b"PUT %b not_found\nGET %b %b\nSWAP %b %b\n" % (key, key, value, key, value)
        + b"SCAN %b %b BEGIN\n  %b %b\nSCAN END\nDELETE %b found\n" % (key, key, key, value, key)
    )


# --- The end of input -------------------------------------------------------------------------------------------------


def test_end_of_input_without_stop(server: ServerProcess) -> None:
    assert transcript(server.address, b"GET end.a\nGET end.b\n") == b"GET end.a null\nGET end.b null\n"
    assert transcript(server.address, b"") == b""


def test_end_of_input_in_the_middle_of_a_line(server: ServerProcess) -> None:
    assert transcript(server.address, b"GET end.a\nGET end.b") == b"GET end.a null\nGET end.b null\n"
    assert transcript(server.address, b"GET end.a\r") == b"GET end.a null\n"
    assert transcript(server.address, b"GET end.a\nGE", complaints=1) == b"GET end.a null\n"
    assert transcript(server.address, b"STOP") == b"STOP\n"


def test_nothing_after_stop_counts(server: ServerProcess) -> None:
    asked = b"STOP\nPUT end.stop 1\nFROB\n"
    assert transcript(server.address, asked) == b"STOP\n"
    assert transcript(server.address, b"GET end.stop\n") == b"GET end.stop null\n"


def test_stop_is_answered_though_stdin_stays_open(server: ServerProcess) -> None:
    with LineClient(server.address) as client:
        assert client.ask(b"STOP") == b"STOP"
        assert client.wait() == 0
        assert client.stderr() == b""


# --- Line by line -----------------------------------------------------------------------------------------------------


def test_each_answer_comes_at_once(server: ServerProcess) -> None:
    with LineClient(server.address) as client:
        for number in range(50):
            assert client.ask(b"PUT now.%d %d" % (number, number)) == b"PUT now.%d not_found" % number
            assert client.ask(b"GET now.%d" % number) == b"GET now.%d %d" % (number, number)
        client.send(b"GET n")
        client.send(b"PUT now. 1", b"FROB", b"", b"GET now.")
        assert [client.read_line() for _ in range(3)] == [b"GET n null", b"PUT now. not_found", b"GET now. 1"]
        client.close_stdin()
        assert client.read_line() == b""
        assert client.wait() == 0


def test_a_line_may_come_in_pieces(server: ServerProcess) -> None:
    with LineClient(server.address) as client:
        assert client.process.stdin is not None
        for piece in (b"GET pie", b"ce.1\r", b"\nGET piece", b".2\n"):
            client.process.stdin.write(piece)
        assert client.read_line() == b"GET piece.1 null"
        assert client.read_line() == b"GET piece.2 null"


def test_two_clients_see_each_other(server: ServerProcess) -> None:
    with LineClient(server.address) as one, LineClient(server.address) as other:
        assert one.ask(b"PUT both 1") == b"PUT both not_found"
        assert other.ask(b"SWAP both 2") == b"SWAP both 1"
        assert one.ask(b"GET both") == b"GET both 2"


def test_a_terminal_that_does_not_block(server: ServerProcess) -> None:
    """Whoever shares our terminal may have set it not to block: no part of an answer is lost for that."""
    near, far = pty.openpty()
    os.set_blocking(far, False)
    value = b"v" * 300_000
    run(server.address, b"PUT pty %b\n" % value)
    received = bytearray()

    def read() -> None:
        while not received.endswith(b"STOP\r\n"):
            received.extend(os.read(near, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        result = subprocess.run(command(server.address), input=b"GET pty\nSTOP\n", stdout=far, cwd=ROOT, timeout=20)
        reader.join(20)
    finally:
        os.close(far)
        os.close(near)
    assert result.returncode == 0
    assert bytes(received) == b"GET pty %b\r\nSTOP\r\n" % value
