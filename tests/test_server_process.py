"""The server as a real process: bad input on its port, many connections, large values, and how it starts and ends."""

import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from madkv.client.blocking import BlockingClient
from madkv.limits import BOX_BYTES_MAX, MIB
from madkv.wire import codec
from madkv.wire.boxes import Box, blob, field, parse_boxes
from tests.processes import TWISTD, Process, ServerProcess, server_command

SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 5.0
CALL_SECONDS_MAX = 2.0


class RawConnection:
    """A plain socket to the server, for what no client would send."""

    def __init__(self, server: ServerProcess) -> None:
        self._socket = socket.create_connection((server.host, server.port), SECONDS_MAX)
        self._rest = b""
        self._boxes: list[Box] = []

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it. OSError when the server has closed the connection."""
        self._socket.sendall(data)

    def box(self) -> Box:
        """The next box that the server sends."""
        while not self._boxes:
            data = self._socket.recv(1 << 18)
            assert data, "the server closed the connection"
            self._rest += data
            self._rest = self._rest[parse_boxes(self._rest, self._boxes) :]
        return self._boxes.pop(0)

    def closed_by_server(self) -> bool:
        """Wait until the server closes the connection; False when it sends something instead."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionError:
            return True


@contextmanager
def raw(server: ServerProcess) -> Iterator[RawConnection]:
    with closing(RawConnection(server)) as connection:
        yield connection


@contextmanager
def witness(server: ServerProcess) -> Iterator[None]:
    """A client that works all the while, and must not notice anything of what happens beside it."""
    key = b"witness-%d" % random.getrandbits(64)
    noticed: list[str] = []
    wrong: list[str] = []
    calls = 0
    stop = threading.Event()
    working = threading.Event()

    def work() -> None:
        nonlocal calls
        with BlockingClient(server.address, notice=noticed.append) as client:
            last: bytes | None = None
            while not stop.is_set():
                began = time.monotonic()
                value = b"%d" % calls
                swapped = client.swap(key, value)
                got = client.get(key)
                seconds = time.monotonic() - began
                if swapped != last or got != value or seconds > CALL_SECONDS_MAX:
                    wrong.append(f"swap {swapped!r} for {last!r}, get {got!r} for {value!r}, {seconds:.3f} s")
                last = value
                calls += 1
                working.set()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    assert working.wait(SECONDS_MAX)
    before = calls
    try:
        yield
        deadline = time.monotonic() + SECONDS_MAX
        goal = calls + 2
        while calls < goal and worker.is_alive():
            assert time.monotonic() < deadline, "the witness came to a halt"
            worker.join(0.001)
    finally:
        stop.set()
        worker.join(SECONDS_MAX)
    assert not worker.is_alive() and not wrong and not noticed, (wrong, noticed)
    assert calls > before


def load(server: ServerProcess, pairs: list[tuple[bytes, bytes]]) -> None:
    """Put all pairs, many calls in flight."""
    with raw(server) as connection:
        for start in range(0, len(pairs), 500):
            batch = pairs[start : start + 500]
            connection.send(
                b"".join(
                    codec.request(tag, codec.PUT, field(b"key", key) + blob(b"value", value))
                    for tag, (key, value) in enumerate(batch)
                )
            )
            for _ in batch:
                codec.raise_if_error(connection.box(), codec.PUT)


def tls_hello() -> bytes:
    """The first bytes that a TLS client sends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="madkv.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: madkv\r\n\r\n", id="HTTP"),
        pytest.param(tls_hello(), id="TLS"),
        pytest.param(random.Random(1).randbytes(100_000), id="random bytes"),
        pytest.param(random.Random(2).randbytes(3), id="three random bytes"),
        pytest.param(b"\0\0", id="empty box"),
        pytest.param(field(b"a", b"b") + b"\0\0", id="no command"),
        pytest.param(field(b"a", b"b") * 1000 + b"\0\0", id="fields"),
    ],
)
def test_garbage_costs_its_sender_the_connection(server: ServerProcess, data: bytes) -> None:
    with witness(server), raw(server) as connection:
        try:
            connection.send(data)
        except ConnectionError:
            pass
        assert connection.closed_by_server()
    assert "Traceback" not in server.output


def test_random_bytes_of_all_kinds(server: ServerProcess) -> None:
    with witness(server):
        for seed in range(200):
            generator = random.Random(seed)
            with raw(server) as connection:
                try:
                    connection.send(b"\0" * (seed % 2) + generator.randbytes(generator.randrange(1, 3000)))
                except ConnectionError:
                    pass
    assert "Traceback" not in server.output


def test_an_endless_box_leaves_memory_flat() -> None:
    piece = field(b"n", b"v" * 60_000)
    with ServerProcess() as server, witness(server):
        before = server.memory_bytes()
        most = before
        for _ in range(20):
            with raw(server) as connection:
                sent = 0
                with pytest.raises(ConnectionError):
                    while sent < 64 * MIB:
                        connection.send(piece)
                        sent += len(piece)
                most = max(most, server.memory_bytes())
        assert most - before < 8 * BOX_BYTES_MAX


def test_start_tls_is_refused_and_the_connection_goes_on(server: ServerProcess) -> None:
    with witness(server), raw(server) as connection:
        connection.send(codec.request(1, b"StartTLS", b"") + codec.request(2, codec.GET, field(b"key", b"nothing")))
        assert connection.box()[b"_error_code"] == b"UNHANDLED"
        assert connection.box() == {b"_answer": b"2"}


def test_half_boxes_and_silence_cost_nobody_else_anything(server: ServerProcess) -> None:
    half = codec.request(1, codec.PUT, field(b"key", b"half-a-box") + blob(b"value", b"v" * 100_000))[:-1]
    with ExitStack() as stack, witness(server):
        connections = [stack.enter_context(raw(server)) for _ in range(50)]
        for connection in connections:
            connection.send(half)
        with BlockingClient(server.address) as client:
            assert client.get(b"half-a-box") is None
        for connection in connections:
            connection.send(b"\0")
            assert connection.box()[b"_answer"] == b"1"


def test_a_client_that_reads_nothing_leaves_memory_flat() -> None:
    with ServerProcess() as server, witness(server), raw(server) as connection:
        load(server, [(b"big", b"v" * MIB)])
        before = server.memory_bytes()
        requests = b"".join(codec.request(tag, codec.GET, field(b"key", b"big")) for tag in range(1, 1001))
        connection.send(requests)
        with BlockingClient(server.address) as client:
            for _ in range(20):
                assert client.get(b"big") is not None
        assert server.memory_bytes() - before < 32 * MIB
        for tag in range(1, 21):
            assert connection.box()[b"_answer"] == b"%d" % tag


def test_1000_idle_connections(server: ServerProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("this machine allows too few file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    try:
        with ExitStack() as stack, witness(server):
            connections = [stack.enter_context(raw(server)) for _ in range(1000)]
            with BlockingClient(server.address) as client:
                for number in range(200):
                    client.put(b"beside-idle-ones", b"%d" % number)
                assert client.get(b"beside-idle-ones") == b"199"
            for connection in (connections[0], connections[-1]):
                connection.send(codec.request(1, codec.GET, field(b"key", b"beside-idle-ones")))
                assert connection.box()[b"value"] == b"199"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- What it is for ---------------------------------------------------------------------------------------------------


def test_a_script_with_stock_amp(server: ServerProcess) -> None:
    script = Path(__file__).with_name("amp_script.py")
    with Process([sys.executable, str(script), server.host, str(server.port)]) as process:
        process.wait_for("all is well")
        assert process.wait() == 0


def test_values_of_all_sizes(server: ServerProcess) -> None:
    with BlockingClient(server.address) as client:
        for size in (0, 65_534, 65_535, 65_536, 131_070, MIB):
            value = random.Random(size).randbytes(size)
            key = b"size-%d" % size
            assert client.put(key, value) is False
            assert client.get(key) == value
            assert client.swap(key, b"") == value
            assert client.delete(key) is True


def test_a_scan_of_10000_records_is_one_cut_while_a_writer_goes_on(server: ServerProcess) -> None:
    """The writer's n-th write goes to pair n modulo their number, so what one point looked like can be told exactly."""
    count = 10_000
    keys = [b"cut-user%019d" % number for number in range(count)]
    filler = b"v" * 1060

    def value(write: int) -> bytes:
        return b"%020d" % write + filler

    load(server, [(key, value(number)) for number, key in enumerate(keys)])
    written = count - 1
    stop = threading.Event()

    def write() -> None:
        nonlocal written
        with BlockingClient(server.address) as client:
            while not stop.is_set():
                client.put(keys[(written + 1) % count], value(written + 1))
                written += 1

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        with BlockingClient(server.address) as client:
            for _ in range(2):
                before = written
                pairs = client.scan(b"cut-user", b"cut-user~")
                after = written
                assert after > before, "the writer stood still, so this showed nothing"
                assert [key for key, _ in pairs] == keys
                latest = [int(each[:20]) for _, each in pairs]
                newest = max(latest)
                assert before <= newest <= after + 1
                assert latest == [newest - (newest - number) % count for number in range(count)]
                assert all(each[20:] == filler for _, each in pairs)
    finally:
        stop.set()
        writer.join(SECONDS_MAX)
    assert not writer.is_alive()


# --- Start and end ----------------------------------------------------------------------------------------------------


def test_sigterm_ends_it_at_once_with_status_0() -> None:
    with ServerProcess() as server, raw(server) as idle, raw(server) as half, raw(server) as deaf:
        load(server, [(b"big", b"v" * MIB)])
        half.send(codec.request(1, codec.GET, field(b"key", b"big"))[:-1])
        deaf.send(b"".join(codec.request(tag, codec.GET, field(b"key", b"big")) for tag in range(100)))
        assert deaf.box()[b"_answer"] == b"0"
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < STOP_SECONDS_MAX
        assert idle.closed_by_server() and half.closed_by_server()
        assert "Traceback" not in server.output and server.lines["stderr"] == []
        with ServerProcess(listen=server.address) as again, BlockingClient(again.address) as client:
            assert client.get(b"big") is None, "a server in memory starts empty"


def test_a_sigint_that_was_ignored_stays_so() -> None:
    """A script that starts servers in its background, and is interrupted, does not end them."""
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *server_command("--listen", "127.0.0.1:0")]
    with Process(ignoring) as server:
        server.wait_for("serving clients on")
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if ":" in line
        )
        interrupt, terminate = 1 << (signal.SIGINT - 1), 1 << (signal.SIGTERM - 1)
        assert int(status["SigIgn"], 16) & interrupt
        assert int(status["SigBlk"], 16) & (interrupt | terminate) == terminate, "blocked: waited for by a thread"
        assert server.stop() == 0


SERVER_THAT_BREAKS = """
import sys
from twisted.scripts.twistd import run
from madkv.storage.volatile import VolatileStorage

write = VolatileStorage.write
def breaking(self, batch):
    if any(b"the last" in entry.payload for entry in batch.entries):
        raise OSError("the store is broken")
    write(self, batch)
VolatileStorage.write = breaking
sys.argv = ["twistd", "-n", "--pidfile=", "madkv-server", "--listen", "127.0.0.1:0"]
run()
"""


def test_a_replica_that_fails_ends_the_process_and_answers_nobody() -> None:
    with Process([sys.executable, "-c", SERVER_THAT_BREAKS]) as server:
        port = int(server.wait_for(r"serving clients on \S+:(\d+)")[1])
        with socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as connection:
            put = codec.request(1, codec.PUT, field(b"key", b"the last") + blob(b"value", b"v"))
            connection.sendall(put + codec.request(2, codec.GET, field(b"key", b"the last")))
            assert server.wait() == 1
            with suppress(ConnectionError):
                assert connection.recv(1) == b"", "somebody was answered"
        assert server.output.count("Traceback") == 1
        assert "OSError: the store is broken" in server.output and "cannot go on" in server.output


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(server_command(*options), capture_output=True, text=True, timeout=SECONDS_MAX * 2)


def test_port_in_use(server: ServerProcess) -> None:
    ended = run("--listen", server.address)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert server.address in line and "in use" in line
    assert "Traceback" not in ended.stdout
    with BlockingClient(server.address) as client:
        assert client.get(b"nothing") is None


def test_port_in_use_in_the_background(server: ServerProcess, tmp_path: Path) -> None:
    """Without -n twistd waits for its child to say that it has started; it must hear that it has not."""
    command = [sys.executable, str(TWISTD), "madkv-server", "--listen", server.address]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert f"Couldn't listen on {server.address}" in ended.stderr
    for left in tmp_path.glob("*.pid"):  # the child has told that it failed, and may not have ended yet
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            psutil.Process(int(left.read_text())).wait(SECONDS_MAX)
    assert list(tmp_path.glob("*.pid")) == []


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b"])
def test_addresses_that_are_not_ours(host: str) -> None:
    ended = run("--listen", f"{host}:0")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f"cannot listen on {host}:0" in line
    assert "Traceback" not in ended.stdout


@pytest.mark.parametrize(
    "listen",
    [
        *("", "3777", ":3777", "localhost", "localhost:", "::1:3777", "local host:3777", "\u00e9" * 80 + ":3777"),
        *("localhost:x", "localhost:-1", "localhost:65536", "localhost:" + "1" * 5000, "localhost:\u0663\u0667"),
    ],
)
def test_what_is_no_address(listen: str) -> None:
    ended = run("--listen", listen)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("madkv-server: --listen: ")
    assert line.endswith("is not an address; write HOST:PORT, such as 127.0.0.1:3777 (see --help)")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["sheep=3"], "'sheep=3' is no option: those begin with --"),
        (["--sheep=3"], "option --sheep not recognized"),
        (["--backer", "d"], "--backer goes with --managers"),
    ],
)
def test_words_that_make_no_sense(words: list[str], why: str) -> None:
    ended = run(*words)
    assert (ended.returncode, ended.stderr) == (1, f"madkv-server: {why} (see --help)\n")
    assert "Usage" not in ended.stdout


@pytest.mark.parametrize(("host", "is_warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_it_warns_once_when_other_machines_reach_it_without_tls(host: str, is_warned: bool) -> None:
    with ServerProcess(listen=f"{host}:0") as server:
        assert server.stop() == 0
        warned = [line for line in server.output.splitlines() if "without TLS" in line]
    assert len(warned) == is_warned
    if is_warned:
        (line,) = warned
        assert line.endswith(
            "#warn] this server can be reached from other machines, by anybody and without TLS: "
            "see --tls-ca, --tls-cert and --tls-key"
        )


def test_help_documents_every_option() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    words = " ".join(ended.stdout.split())
    assert "-l, --listen=" in words
    assert "HOST:PORT to listen on for clients, without managers. [default: 0.0.0.0:3777]" in words
    assert all(f"--tls-{name}=" in words for name in ("ca", "cert", "key"))


def test_it_counts_by_the_clock_that_nobody_sets() -> None:
    """Set back by an hour, no timer would fire for an hour; set forward, every session would expire."""
    script = """
import time
from twisted.internet import reactor
from madkv.server.tap import ServerService
ServerService(("127.0.0.1", 0), reactor).startService()
print(reactor.seconds is time.monotonic)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS_MAX)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
