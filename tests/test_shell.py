"""`madkv shell` as a person meets it: through a terminal, and through a pipe."""

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from madkv.cli import main
from madkv.client.blocking import BlockingClient
from madkv.client.shell import Shell, run_shell
from madkv.wire.boxes import COMMAND, Box
from tests.processes import ROOT, ServerProcess
from tests.proxy import Fate, Proxy

SECONDS_MAX = 15.0


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self._master, slave = pty.openpty()
        env = {**os.environ, "HOME": str(home), "TERM": "dumb"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its controlling terminal: Ctrl-C is a signal
        )
        os.close(slave)
        self.shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Type; Enter is \\r."""
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until the pattern appears in what was shown since the last call; that text."""
        deadline = time.monotonic() + SECONDS_MAX
        while not (match := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear in {self.shown!r}"
            self.shown += os.read(self._master, 65536).decode()
        seen, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return seen


@pytest.fixture(scope="module")
def own_server() -> Iterator[ServerProcess]:
    """A server for the tests of this module."""
    with ServerProcess() as server:
        yield server


def shell_command(address: str) -> list[str]:
    """The shell with this interpreter."""
    return [sys.executable, "-m", "madkv.cli", "shell", "--server", address]


def piped(address: str, text: str) -> "subprocess.CompletedProcess[str]":
    """What the shell answers to a pipe."""
    return subprocess.run(
        shell_command(address), input=text, capture_output=True, text=True, cwd=ROOT, timeout=SECONDS_MAX, check=False
    )


def test_every_command_answers(own_server: ServerProcess) -> None:
    """Each operation with each kind of answer, quotes included; no prompt in a pipe."""
    script = [
        ("put shell-a 1", "new"),
        ("put shell-a 'two words'", "replaced"),
        ("get shell-a", "'two words'"),
        ("GET shell-a", "'two words'"),
        ("get shell-none", "(there is none)"),
        ("swap shell-a 3", "'two words'"),
        ("swap shell-b 4", "(there was none)"),
        ("scan shell-a shell-b", "shell-a  3\nshell-b  4\n(2 pairs)"),
        ("scan shell-b shell-b", "shell-b  4\n(1 pair)"),
        ("delete shell-b", "deleted"),
        ("delete shell-b", "(there was none)"),
        ("scan shell-b shell-b", "(0 pairs)"),
        ("", ""),
        ("put shell-a", "usage: put KEY VALUE"),
        ("get 'open", "No closing quotation; usage: get KEY"),
        (f"get {'k' * 512}", "error: a key has 1 to 511 bytes; this one has 512"),
        ("fetch x", "no command 'fetch'; there are put, swap, get, delete, scan, help, exit"),
        ("help get", "get KEY: show the value of a key."),
    ]
    done = piped(own_server.address, "".join(f"{typed}\n" for typed, _ in script))
    assert done.stdout == "".join(f"{shown}\n" for _, shown in script if shown) + "\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_bytes_that_are_no_text_are_shown_as_escapes(own_server: ServerProcess) -> None:
    """What other clients stored cannot confuse the terminal."""
    done = piped(own_server.address, 'put shell-x "\x1b[31m\x07 red"\nget shell-x\n')
    assert done.stdout.splitlines()[1] == r"'\x1b[31m\x07 red'"


def test_a_long_scan_shows_how_much_it_does_not_show(own_server: ServerProcess) -> None:
    """A hundred pairs and a count."""
    puts = "".join(f"put many-{n:03} v\n" for n in range(150))
    lines = piped(own_server.address, puts + "scan many-000 many-999\n").stdout.splitlines()
    assert lines[150] == "many-000  v" and lines[249] == "many-099  v"
    assert lines[250] == "(150 pairs; 50 of them not shown)"


def test_a_person_at_a_terminal_has_completion_and_history(own_server: ServerProcess, tmp_path: Path) -> None:
    """Tab completes commands and keys used before; the next shell remembers what was typed; exit leaves."""
    command = shell_command(own_server.address)
    with Terminal(command, tmp_path) as terminal:
        assert "Type help" in terminal.wait_for("madkv> ")
        terminal.type("put terminal-key 7\r")
        terminal.wait_for("new\r\nmadkv> ")
        terminal.type("ge\tterm\t\r")
        terminal.wait_for("get terminal-key *\r\n7\r\nmadkv> ")
        terminal.type("exit\r")
        assert terminal.process.wait(SECONDS_MAX) == 0
    with Terminal(command, tmp_path) as terminal:
        terminal.wait_for("madkv> ")
        terminal.type("\x10\x10\r")  # twice up
        terminal.wait_for("get terminal-key *\r\n7\r\nmadkv> ")
        terminal.type("\x04")
        assert terminal.process.wait(SECONDS_MAX) == 0


def test_ctrl_c_gives_up_a_call_that_waits_and_keeps_the_prompt(tmp_path: Path) -> None:
    """An answer does not come; Ctrl-C brings the prompt back, and the next call is answered."""
    held: list[bytes] = []

    def hold_an_answer(direction: str, box: Box) -> Fate:
        if direction == "reply" and asked[-1:] == [b"held"] and not held:
            held.append(b"held")
            return Fate.HOLD
        if direction == "request" and box.get(COMMAND) == b"Get":
            asked.append(box[b"key"])
        return Fate.PASS

    asked: list[bytes] = []
    with (
        ServerProcess() as server,
        Proxy("127.0.0.1", int(server.address.rpartition(":")[2]), hold_an_answer) as proxy,
        Terminal(shell_command(proxy.address), tmp_path) as terminal,
    ):
        terminal.wait_for("madkv> ")
        terminal.type("get a\r")
        terminal.wait_for(r"\(there is none\)\r\nmadkv> ")
        terminal.type("get held\r")
        assert proxy.holds.wait(SECONDS_MAX)
        terminal.type("\x03")
        terminal.wait_for(r"\(given up; .*\)\r\nmadkv> ")
        terminal.type("get b\r")
        terminal.wait_for(r"\(there is none\)\r\nmadkv> ")
        terminal.type("exit\r")
        assert terminal.process.wait(SECONDS_MAX) == 0


def test_ctrl_c_at_the_prompt_brings_a_new_one(
    own_server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in other shells. (By a patch: when a signal comes just before readline waits, readline itself loses it.)"""
    prompts = iter([KeyboardInterrupt, KeyboardInterrupt, None])

    def cmdloop(shell: Shell) -> None:
        if interruption := next(prompts):
            raise interruption

    monkeypatch.setattr(Shell, "cmdloop", cmdloop)
    assert run_shell(own_server.address) == 0
    assert next(prompts, "all used") == "all used"
    assert capsys.readouterr().out == "\n\n"


def test_an_address_that_is_none_is_refused() -> None:
    """One line, exit status 2."""
    done = piped("nowhere", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "madkv: 'nowhere' is not an address; write HOST:PORT, such as 127.0.0.1:3777\n"


def test_the_address_needs_no_option(own_server: ServerProcess) -> None:
    """`madkv shell HOST:PORT`; the same for the line interface."""
    for subcommand, line, answer in (
        ("shell", "get cli", "(there is none)\n\n"),
        ("client", "GET cli", "GET cli null\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "madkv.cli", subcommand, own_server.address],
            input=f"{line}\n",
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=SECONDS_MAX,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, answer, "")


def test_ctrl_c_outside_of_the_prompt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it starts, or while it takes its leave of a server that hangs."""

    def interrupted(client: BlockingClient) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Shell, "cmdloop", lambda shell: None)
    monkeypatch.setattr(BlockingClient, "close", interrupted)
    assert main(["shell", "127.0.0.1:1"]) == 130


def test_ctrl_c_gives_up_a_get_that_finds_no_server(tmp_path: Path) -> None:
    """One line, no traceback, and the prompt again."""
    with Terminal(shell_command("127.0.0.1:1"), tmp_path) as terminal:
        terminal.wait_for("madkv> ")
        terminal.type("get a\r")
        terminal.wait_for(r"\(waiting for 127.0.0.1:1: .*; Ctrl-C gives up\)\r\n")
        terminal.type("\x03")
        assert terminal.wait_for("madkv> ").count("\n") == 2  # the one of Ctrl-C itself is the first
        terminal.type("exit\r")
        assert terminal.process.wait(SECONDS_MAX) == 0


def test_the_command_tells_its_version_and_its_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    """`madkv --version` and `madkv --help`."""
    for option, expected in (("--version", r"MadKV \d+\.\d+"), ("--help", r"(?s)shell.*client")):
        with pytest.raises(SystemExit) as ended:
            main([option])
        assert ended.value.code == 0
        assert re.search(expected, capsys.readouterr().out)


def test_the_client_subcommand_is_the_line_interface(own_server: ServerProcess) -> None:
    """`madkv client` answers lines."""
    command = [sys.executable, "-m", "madkv.cli", "client", "--server", own_server.address]
    done = subprocess.run(
        command, input=b"GET cli\nSTOP\n", capture_output=True, cwd=ROOT, timeout=SECONDS_MAX, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"GET cli null\nSTOP\n", b"")


def test_either_a_server_or_the_managers(capsys: pytest.CaptureFixture[str]) -> None:
    """`madkv client` with both, and `madkv shell` with addresses that are none."""
    for arguments in (
        ["client", "127.0.0.1:1", "--managers", "127.0.0.1:2"],
        ["shell", "--server=a:1", "--managers=b:2"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "either a server or the managers" in capsys.readouterr().err
    assert main(["shell", "--managers", "127.0.0.1"]) == 2
    assert "is not an address" in capsys.readouterr().err
