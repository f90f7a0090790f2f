"""The stores beside MadKV: each one's line client, and one short real cell of each that is installed."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import lmdb
import psutil
import pytest

from madkv.bench import compare, load
from madkv.bench.cells import CELLS_BY_NAME, CellFailed, Settings, measure, run_pipelined
from madkv.bench.peers import framed, http2
from madkv.bench.peers.floor import Leader
from madkv.bench.peers.launch import Deployment
from madkv.bench.systems import SYSTEMS, System
from madkv.testing.checkout import ROOT
from madkv.testing.ports import free_ports
from madkv.testing.service import Service

LINES = b"""PUT b 1
PUT b 2
SWAP b 3
SWAP c 4
GET b
GET z
PUT d x
SCAN b c
SCAN c b
DELETE b
DELETE b
SCAN a z
STOP
"""
ANSWERS = b"""PUT b not_found
PUT b found
SWAP b 2
SWAP c null
GET b 3
GET z null
PUT d not_found
SCAN b c BEGIN
  b 3
  c 4
SCAN END
SCAN c b BEGIN
SCAN END
DELETE b found
DELETE b not_found
SCAN a z BEGIN
  c 4
  d x
SCAN END
STOP
"""

STORES = [system for system in SYSTEMS if system.name != "floor"]


def needed(system: System) -> None:
    """Skip what cannot run here."""
    if why := system.missing():
        pytest.skip(why)


def settings_in(directory: Path) -> Settings:
    """As short as can be."""
    return Settings(seconds=0.5, load_seconds=10, records=40, clients=2, data=directory, seed=1)


@pytest.mark.parametrize("system", STORES, ids=lambda system: system.name)
def test_every_store_speaks_the_line_interface(system: System, tmp_path: Path) -> None:
    needed(system)
    with system.start(tmp_path, True) as deployment:
        done = subprocess.run(deployment.client, input=LINES, capture_output=True, cwd=ROOT, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (ANSWERS, b"", 0)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_one_short_cell_of_each(system: System, tmp_path: Path) -> None:
    needed(system)
    # Transactions of OxideDB on the same key wait for seconds, and those of A are on few keys.
    is_single = system.only is not None or system.name == "oxidedb"
    cell = CELLS_BY_NAME["put-1" if is_single else "a"]
    figures = measure(system, cell, 0, settings_in(tmp_path))
    assert (figures["system"], figures["cell"]) == (system.name, cell.name)
    assert figures["records"] == (100 if is_single else 40)
    assert figures["calls"] >= 1 and figures["throughput"] == pytest.approx(
        figures["calls"] / figures["seconds"], rel=0.01
    )
    latency = figures["latency_us"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]
    assert set(figures["by_kind_us"]) <= ({"INSERT"} if is_single else {"READ", "UPDATE"})
    assert list(tmp_path.iterdir()) == [], "its data is left"


@pytest.mark.parametrize("name", ["madkv-rf3", "etcd-thin"])
@pytest.mark.parametrize("cell", ["pipe-write", "pipe-read"])
def test_many_calls_in_flight(name: str, cell: str, tmp_path: Path) -> None:
    (system,) = (each for each in SYSTEMS if each.name == name)
    needed(system)
    figures = measure(system, CELLS_BY_NAME[cell], 0, settings_in(tmp_path))
    assert figures["keys"] == 10_000
    assert figures["calls"] >= 64 and figures["unfinished"] == 0
    assert figures["latency_us"]["p50"] > 0 and figures["client_cpu_us"] > 0


def test_large_calls_keep_to_the_windows_of_the_peer(tmp_path: Path) -> None:
    """64 values of 64 KiB at once are sixty times what etcd lets a connection send before it reads on."""
    (system,) = (each for each in SYSTEMS if each.name == "etcd-thin")
    needed(system)
    with system.start(tmp_path, False) as deployment:
        for kind in ("write", "read"):
            figures = run_pipelined(deployment, [f"kind={kind}", "size=65536", "seconds=0.5"], 0.5)
            assert figures["calls"] >= 64


def test_a_comparison_leaves_its_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quick=yes", "seconds=0.3", "records=20", "clients=2", "systems=madkv-rf1,floor", "cells=c,put-1"]
    assert compare.main([*words, f"out={tmp_path}/out", f"data={tmp_path}"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.json", "compare.md", "compare.png"]
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| YCSB C, 2 clients |" in text and "inside its leader" in text
    assert capsys.readouterr().out.startswith("3 runs of 0.3 s")


def test_an_interrupted_comparison_keeps_what_it_has_and_leaves_nobody_behind(tmp_path: Path) -> None:
    words = ["quick=yes", "seconds=0.3", "records=20", "clients=2", "systems=madkv-rf1", "cells=c", "repeats=100"]
    command = [sys.executable, "-m", "madkv.bench.compare", *words, f"out={tmp_path}/out", f"data={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as comparing:
        assert comparing.stdout is not None
        while not comparing.stdout.readline().startswith("[1 of 100]"):
            assert comparing.poll() is None
        comparing.send_signal(signal.SIGTERM)
        _, said = comparing.communicate(timeout=60)
    assert (comparing.returncode, said) == (130, "madkv compare: interrupted; what was measured is kept\n")
    assert "YCSB C, 2 clients" in (tmp_path / "out" / "compare.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not [each.pid for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(each.info["cmdline"])]


def test_a_load_at_a_fixed_rate_leaves_its_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quick=yes", "seconds=0.5", "system=madkv-rf1", "kind=read", "size=10", "rate=100"]
    assert load.main([*words, f"out={tmp_path}/out", f"data={tmp_path}"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["load.json", "load.md"]
    assert "256 in flight, 100 calls/s due" in (tmp_path / "out" / "load.md").read_text()
    assert "read 10 B, 256 in flight, 100 calls/s due: calls/s " in capsys.readouterr().out


def test_a_cell_whose_store_goes_away_fails_with_a_reason(tmp_path: Path) -> None:
    gone = Deployment(client=[sys.executable, "-c", "raise SystemExit('no store')"], pids=[])
    with pytest.raises(CellFailed, match="no client of it with many calls"):
        run_pipelined(gone, [], 1)

    @contextmanager
    def start(root: Path, ordered: bool) -> Iterator[Deployment]:
        yield gone

    system = attrs.evolve(SYSTEMS[0], name="gone", start=start)
    with pytest.raises(CellFailed, match=r"(?s)gone, a: client \d ended .* no store"):
        measure(system, CELLS_BY_NAME["a"], 0, settings_in(tmp_path))


def test_the_floor_has_each_put_on_two_disks(tmp_path: Path) -> None:
    ports = free_ports(2)
    program = [sys.executable, "-m", "madkv.bench.peers.floor", "follower"]
    commands = [[*program, str(port), str(tmp_path / str(port))] for port in ports]
    with Service([], commands, ports):
        leader = Leader(tmp_path / "leader", [f"127.0.0.1:{port}" for port in ports])
        for number in range(50):
            leader.put(b"key", b"%d" % number)
        assert len(leader.took_ns) == 50
        followers = [entries(tmp_path / str(port)) for port in ports]
        leader.close()
    whole = [b"key%d" % number for number in range(50)]
    assert entries(tmp_path / "leader") == whole
    assert whole in followers
    assert all(each == whole[: len(each)] for each in followers)


def entries(directory: Path) -> list[bytes]:
    """What a log of the floor holds."""
    with lmdb.open(str(directory), readonly=True) as environment, environment.begin() as transaction:
        return [bytes(entry) for _, entry in transaction.cursor()]


def test_requests_come_out_whole_however_they_are_cut() -> None:
    sent = [(framed.PUT, b"key", b"value"), (framed.GET, b"k", b""), (framed.SCAN, b"a", b"z")]
    data = b"".join(framed.request(*each) for each in sent)
    for size in range(1, len(data) + 1):
        requests = framed.Requests()
        came = [each for at in range(0, len(data), size) for each in requests.feed(data[at : at + size])]
        assert came == sent


# --- gRPC's bytes -----------------------------------------------------------------------------------------------------


def literal(name: bytes, value: bytes) -> bytes:
    """A header that enters no table."""
    return b"\0%c%b%c%b" % (len(name), name, len(value), value)


def answer(stream: int, message: bytes, status: bytes = b"0") -> bytes:
    """A whole answer of a server."""
    return (
        http2.frame(http2.HEADERS, http2.END_HEADERS, stream, literal(b":status", b"200"))
        + http2.frame(http2.DATA, 0, stream, b"\0" + len(message).to_bytes(4) + message)
        + http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, stream, literal(b"grpc-status", status))
    )


def test_answers_come_out_whole_however_they_are_cut() -> None:
    connection = http2.Connection("somewhere:1")
    streams = [connection.call("/a/B", b"question")[0] for _ in range(2)]
    data = answer(streams[1], b"second") + answer(streams[0], b"")
    for size in (1, 2, 7, 50, len(data)):
        connection = http2.Connection("somewhere:1")
        assert [connection.call("/a/B", b"question")[0] for _ in range(2)] == streams == [1, 3]
        done = [each for at in range(0, len(data), size) for each in connection.receive(data[at : at + size])[0]]
        assert done == [(3, b"second"), (1, b"")]


def test_a_status_that_is_none_of_success_is_an_error() -> None:
    connection = http2.Connection("somewhere:1")
    stream, _ = connection.call("/a/B", b"")
    with pytest.raises(http2.RpcError, match="status 14"):
        connection.receive(answer(stream, b"", b"14"))
    with pytest.raises(http2.RpcError, match="ended the connection"):
        connection.receive(http2.frame(http2.GOAWAY, 0, 0, bytes(8)))


def data_frames(sent: bytes) -> list[tuple[int, int, bytes]]:
    """Stream, flags and payload of each DATA frame."""
    found = []
    while sent:
        size, kind, flags, stream = int.from_bytes(sent[:3]), sent[3], sent[4], int.from_bytes(sent[5:9])
        if kind == http2.DATA:
            found.append((stream, flags, sent[9 : 9 + size]))
        sent = sent[9 + size :]
    return found


def test_no_more_is_sent_than_the_peer_has_room_for() -> None:
    connection = http2.Connection("somewhere:1")
    message = bytes(range(256)) * 400  # 102,400 bytes: more than the 65,535 of a stream, and of a connection
    first, sent = connection.call("/a/B", message)
    second, more = connection.call("/a/B", b"short")
    frames = data_frames(sent + more)
    assert {stream for stream, _, _ in frames} == {first}, "the second waits behind the first"
    assert sum(len(payload) for _, _, payload in frames) == http2.WINDOW_DEFAULT
    assert max(len(payload) for _, _, payload in frames) <= http2.FRAME_BYTES_DEFAULT
    room = (1 << 20).to_bytes(4)
    _, sent = connection.receive(http2.frame(http2.WINDOW_UPDATE, 0, 0, room))
    assert data_frames(sent) == [], "the connection has room, the stream has none"
    _, sent = connection.receive(http2.frame(http2.WINDOW_UPDATE, 0, first, room))
    frames += data_frames(sent)
    assert b"".join(payload for stream, _, payload in frames if stream == first)[5:] == message
    assert frames[-1][0] == second and frames[-1][1] == http2.END_STREAM
    assert [flags for stream, flags, _ in frames if stream == first].count(http2.END_STREAM) == 1


def test_settings_and_pings_are_acknowledged() -> None:
    connection = http2.Connection("somewhere:1")
    settings = http2.MAX_FRAME_SIZE.to_bytes(2) + (1 << 20).to_bytes(4)
    settings += http2.INITIAL_WINDOW_SIZE.to_bytes(2) + (1 << 21).to_bytes(4)
    _, sent = connection.receive(
        http2.frame(http2.SETTINGS, 0, 0, settings) + http2.frame(http2.PING, 0, 0, b"12345678")
    )
    assert sent == http2.frame(http2.SETTINGS, http2.ACK, 0) + http2.frame(http2.PING, http2.ACK, 0, b"12345678")
    _, sent = connection.call("/a/B", bytes(60_000))
    assert [len(payload) for _, _, payload in data_frames(sent)] == [60_005], "one frame, as the peer now allows"
