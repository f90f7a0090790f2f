"""The line client as a process: how it is called and interrupted, and who may be gone while it is at work."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from madkv.limits import VALUE_BYTES_MAX
from tests.line_client import LineClient, command, run
from tests.processes import ROOT, ServerProcess, free_address

# --- The command line and the process ---------------------------------------------------------------------------------


def python_m(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    everything = [sys.executable, "-m", "madkv.client", *arguments]
    return subprocess.run(everything, cwd=ROOT, capture_output=True, input=b"STOP\n", timeout=20)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(option: str) -> None:
    result = python_m(option)
    assert (result.returncode, result.stderr) == (0, b"")
    for word in (b"--server HOST:PORT", b"--managers HOST:PORT,", b"PUT <key> <value>", b"SCAN <start> <end>", b"STOP"):
        assert word in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--server",),
        ("127.0.0.1:3777",),
        ("--server", "127.0.0.1"),
        ("--server", "127.0.0.1:0"),
        ("--server", "127.0.0.1:65536"),
        ("--server", "127.0.0.1:http"),
        ("--server", ":3777"),
        ("--server", "127.0.0.1:1", "more"),
        ("--server=",),
        ("--port", "127.0.0.1:3777"),
        ("--managers",),
        ("--managers", "127.0.0.1:3666,"),
        ("--managers", "127.0.0.1:3666,127.0.0.1:3666"),
        ("--server", "127.0.0.1:1", "--managers", "127.0.0.1:2"),
    ],
    ids=" ".join,
)
def test_wrong_arguments(arguments: tuple[str, ...]) -> None:
    result = python_m(*arguments)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"madkv: ") and result.stderr.count(b"\n") == 1


def test_both_spellings_of_the_option(server: ServerProcess) -> None:
    assert python_m(f"--server={server.address}").stdout == b"STOP\n"
    assert python_m("--server", f"localhost:{server.port}").stdout == b"STOP\n"


def test_a_person_is_told_what_it_is(server: ServerProcess) -> None:
    """One line on stderr, where stdin is a terminal; that a pipe gets none, all the other tests see."""
    near, far = pty.openpty()
    try:
        os.write(near, b"STOP\n")
        result = subprocess.run(command(server.address), stdin=far, capture_output=True, cwd=ROOT, timeout=20)
    finally:
        os.close(far)
        os.close(near)
    assert (result.returncode, result.stdout) == (0, b"STOP\n")
    assert result.stderr.startswith(b"madkv: a client of %b; " % server.address.encode())
    assert b"STOP or Ctrl-D ends it" in result.stderr and result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("module", ["madkv.client.blocking", "madkv.errors"])
def test_ctrl_c_while_it_starts(module: str) -> None:
    script = f"""
import runpy, sys
class Interruption:
    def find_spec(name, path, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interruption)
sys.argv[1:] = ["--server", "127.0.0.1:1"]
runpy.run_module("madkv.client", run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=20)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


def test_ctrl_c_while_idle_and_while_it_waits(server: ServerProcess) -> None:
    with LineClient(server.address) as idle, LineClient(free_address()) as waiting:
        assert idle.ask(b"GET c") == b"GET c null"
        waiting.send(b"GET c")
        waiting.wait_for_stderr(b"waiting for")
        for client in (idle, waiting):
            client.process.send_signal(signal.SIGINT)
        for client in (idle, waiting):
            assert client.wait() == 130
            assert b"Traceback" not in client.stderr()
            assert client.read_line() == b""


def test_a_closed_stderr_is_not_the_servers(server: ServerProcess) -> None:
    """The first file opened without a stderr would get its number: the socket, and the server our complaints."""
    shell = f"{sys.executable} -m madkv.client --server {server.address} 2>&-"
    asked = b"PUT closed 1\nFROB\nGET closed\nSTOP\n"
    result = subprocess.run(["sh", "-c", shell], input=asked, capture_output=True, cwd=ROOT, timeout=20)
    assert (result.returncode, result.stdout) == (0, b"PUT closed not_found\nGET closed 1\nSTOP\n")


@pytest.mark.parametrize("closing", ["<&-", ">&-"])
def test_without_stdin_or_stdout_it_does_nothing(server: ServerProcess, closing: str) -> None:
    """A socket would get the number, and the server what is meant for whoever reads our answers."""
    script = f'exec "$@" {closing}'
    result = subprocess.run(
        ["sh", "-c", script, "sh", *command(server.address)], input=b"PUT lacking 1\n", capture_output=True, cwd=ROOT
    )
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"madkv: stdin and stdout must be open\n"
    assert run(server.address, b"GET lacking\n").stdout == b"GET lacking null\n"


def test_a_stdout_that_takes_nothing(server: ServerProcess) -> None:
    shell = f"{sys.executable} -m madkv.client --server {server.address} >/dev/full"
    result = subprocess.run(["sh", "-c", shell], input=b"STOP\n", capture_output=True, cwd=ROOT, timeout=20)
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"Traceback" not in result.stderr and result.stderr.count(b"\n") <= 1


def test_it_starts_with_little_more_than_the_interpreter() -> None:
    """Also once it has made a call: what is imported only then is as much part of starting."""
    script = (
        "import sys; from madkv.client import __main__ as m, connection\n"
        "try: connection.connect(('127.0.0.1', 1), None)\n"
        "except OSError: print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-E", "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
    ).stdout.split()
    heavy = (
        "argparse asyncio attr attrs dataclasses encodings.idna inspect json logging re subprocess tempfile threading"
    )
    assert sorted({*heavy.split(), "twisted", "typing_extensions", "zope", "hypothesis", "random"} & set(loaded)) == []


# --- When the reader of the answers is gone ---------------------------------------------------------------------------

AT_ONCE_SECONDS = 3.0


def test_the_reader_is_gone_while_idle(server: ServerProcess) -> None:
    with LineClient(server.address) as client:
        assert client.ask(b"GET gone") == b"GET gone null"
        client.close_stdout()
        assert client.wait(AT_ONCE_SECONDS) == 1
        assert b"Traceback" not in client.stderr()


def test_the_reader_is_gone_in_the_middle_of_a_retry() -> None:
    with LineClient(free_address()) as client:
        client.send(b"PUT gone 1")
        client.wait_for_stderr(b"waiting for")
        client.close_stdout()
        assert client.wait(AT_ONCE_SECONDS) == 1
        assert client.stderr().count(b"\n") == 1


def test_the_reader_is_gone_while_a_long_answer_is_written(server: ServerProcess) -> None:
    value = b"v" * VALUE_BYTES_MAX
    with LineClient(server.address) as client:
        client.send(b"SWAP gone %b" % value, b"GET gone", b"GET gone")
        assert client.read_line().startswith(b"SWAP gone ")
        client.close_stdout()
        assert client.wait(AT_ONCE_SECONDS) == 1
        assert b"Traceback" not in client.stderr()


@pytest.fixture
def own_server() -> Iterator[ServerProcess]:
    with ServerProcess() as process:
        try:
            yield process
        finally:
            process.signal(signal.SIGCONT)


def test_the_reader_is_gone_while_the_server_hangs(own_server: ServerProcess) -> None:
    with LineClient(own_server.address) as client, LineClient(own_server.address) as fresh:
        assert client.ask(b"GET gone") == b"GET gone null"
        own_server.signal(signal.SIGSTOP)
        client.send(b"PUT gone 1")
        fresh.send(b"PUT gone 1")  # it connects, and gets no answer to its handshake
        client.close_stdout()
        fresh.close_stdout()
        assert client.wait(AT_ONCE_SECONDS) == 1
        assert fresh.wait(AT_ONCE_SECONDS) == 1
        assert client.stderr() == fresh.stderr() == b""


# --- When the server is not there -------------------------------------------------------------------------------------


def test_a_server_that_comes_up_later() -> None:
    address = free_address()
    with LineClient(address) as client:
        client.send(b"PUT late 1", b"GET late", b"STOP")
        client.wait_for_stderr(b"waiting for " + address.encode())
        with ServerProcess(listen=address):
            assert [client.read_line() for _ in range(3)] == [b"PUT late not_found", b"GET late 1", b"STOP"]
            assert client.wait() == 0
        assert client.stderr().count(b"\n") == 1


def test_a_server_that_is_killed_and_started_again_is_empty() -> None:
    with ServerProcess() as first, LineClient(first.address) as client:
        address = first.address
        assert client.ask(b"PUT again 1") == b"PUT again not_found"
        first.signal(signal.SIGKILL)
        first.wait()
        client.send(b"SWAP again 2")
        client.wait_for_stderr(b"waiting for")
        with ServerProcess(listen=address):
            assert client.read_line() == b"SWAP again null"
            assert client.ask(b"GET again") == b"GET again 2"
            assert client.stderr().count(b"\n") == 1
            assert client.ask(b"STOP") == b"STOP"
            assert client.wait() == 0


def test_restarted_while_nothing_was_asked() -> None:
    """The new server may give the new session the index of the old one: only the boot tells them apart."""
    with ServerProcess() as first, LineClient(first.address) as client:
        for number in range(3):
            assert client.ask(b"PUT idle %d" % number).startswith(b"PUT idle ")
        first.signal(signal.SIGKILL)
        first.wait()
        with ServerProcess(listen=first.address):
            assert client.ask(b"PUT idle x") == b"PUT idle not_found"
            assert client.ask(b"SCAN a z") == b"SCAN a z BEGIN"
            assert [client.read_line(), client.read_line()] == [b"  idle x", b"SCAN END"]


def test_stop_within_ten_seconds_though_the_server_hangs_or_is_gone(own_server: ServerProcess) -> None:
    with LineClient(own_server.address) as hanging, LineClient(free_address()) as alone:
        assert hanging.ask(b"PUT stop 1") == b"PUT stop not_found"
        own_server.signal(signal.SIGSTOP)
        begun = time.monotonic()
        for client in (hanging, alone):
            assert client.ask(b"STOP") == b"STOP"
            assert client.wait() == 0
        assert time.monotonic() - begun < 5


def test_each_wait_is_said_once(own_server: ServerProcess) -> None:
    """A second wait, long after the first was over, is said again; the hundred retries of one are not."""
    address = own_server.address
    with LineClient(address) as client:
        assert client.ask(b"GET said") == b"GET said null"
        own_server.stop()
        client.send(b"GET said")
        client.wait_for_stderr(b"waiting for")
        with ServerProcess(listen=address):
            assert client.read_line() == b"GET said null"
        client.send(b"GET said")
        with ServerProcess(listen=address):
            assert client.read_line() == b"GET said null"
        assert client.stderr().count(b"\n") == 2


def test_a_port_that_speaks_something_else() -> None:
    """It waits for the server that should be there, says why, and prints nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        LineClient(f"127.0.0.1:{listening.getsockname()[1]}") as client,
    ):
        client.send(b"GET x")
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        client.wait_for_stderr(b"not an AMP box")
        client.close_stdout()
        assert client.wait(AT_ONCE_SECONDS) == 1
        assert client.stderr().count(b"\n") == 1


def test_help_in_the_place_of_an_address() -> None:
    """As `just p1::client --help` has it."""
    for words in (["--help"], ["--server", "--help"], ["--managers", "-h"]):
        done = subprocess.run([sys.executable, "-m", "madkv.client", *words], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")
