"""The comparison on paper: options, the order of runs, medians and ratios, tables, the plot, and who is not there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from madkv.bench import comparison, disk, load, pipelined
from madkv.bench.cells import CELLS, CELLS_BY_NAME, Cell, Loading
from madkv.bench.compare import in_turn, parse_arguments
from madkv.bench.comparison_plot import draw
from madkv.bench.peers import launch
from madkv.bench.systems import BY_NAME, DEFAULTS, SYSTEMS, chosen
from madkv.bench.workload import CoreWorkload
from madkv.testing.checkout import ROOT


def run(system: str, cell: str, throughput: float, p50: float = 1000, **more: Any) -> dict[str, Any]:
    """A run as it is kept."""
    return {
        "system": system,
        "cell": cell,
        "repetition": 0,
        "records": 10_000,
        "sync_us": 200.0,
        "throughput": throughput,
        "latency_us": {"p50": p50, "p99": p50 * 4},
        "load": {"throughput": throughput / 2},
        "server_cpu_us": 100.0,
        "client_cpu_us": 50.0,
        **more,
    }


def record(*runs: dict[str, Any], form: str = "full") -> comparison.Record:
    """A record with these runs."""
    names = dict.fromkeys(each["system"] for each in runs)
    return {
        "form": form,
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cores": "2"},
        "failed": [],
        "skipped": {},
        "settings": {"seconds": 20.0, "records": 10_000, "clients": 10},
        "systems": {
            name: {"title": BY_NAME[name].title, "version": "1", "durability": "d", "remarks": "r"} for name in names
        },
        "runs": list(runs),
    }


def rows(table: str) -> dict[str, list[str]]:
    """The lines of a Markdown table by their first column."""
    cut = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in cut}


# --- figures ----------------------------------------------------------------------------------------------------------

RECORD = record(
    *(run("madkv-rf3", "a", each) for each in (4000, 5000, 3000)),
    *(run("madkv-rf1", "a", each) for each in (7000,)),
    *(run("etcd", "a", each, records=800) for each in (1000, 900, 9000)),
    run("redis", "a", 10_000),
    run("madkv-rf3", "put-1", 700, p50=1200),
    run("etcd", "put-1", 500, p50=2400),
    run("floor", "put-1", 1500, p50=700, inside_p50_us=600.0),
)


def test_the_main_table_has_medians_and_the_latency_of_single_puts() -> None:
    table = rows(comparison.main_table(RECORD))
    assert table[""] == ["MadKV, rf 3", "MadKV, rf 1", "etcd, grpcio clients", "Redis", "bare floor"]
    assert table["YCSB A, 10 clients"] == ["4,000", "7,000", "1,000", "10,000", "–"]
    assert table["YCSB load (of A), 10 clients"] == ["2,000", "3,500", "500", "5,000", "–"]
    assert table["Put 1 KB, 1 client"] == ["1,200 us", "–", "2,400 us", "–", "700 us"]


def test_ratios_are_of_medians_and_redis_is_held_against_one_disk() -> None:
    table = rows(comparison.ratio_table(RECORD))
    assert table[""][3] == "Redis (MadKV, rf 1)"
    assert table["YCSB A, 10 clients"] == ["–", "0.57x", "4.00x", "0.70x", "–"]
    assert table["Put 1 KB, 1 client"] == ["–", "–", "0.50x", "–", "1.71x"]


def test_runs_that_lie_far_apart_show() -> None:
    table = rows(comparison.spread_table(RECORD))
    assert table["YCSB A, 10 clients"] == ["3, 50%", "1", "3, 810%", "1", "–"]


def test_the_document_says_what_makes_figures_doubtful() -> None:
    text = comparison.document({**RECORD, "form": "quick", "failed": ["redis, e: why"], "skipped": {"oxidedb": "how"}})
    for words in (
        "too short to be quoted",
        "* failed: redis, e: why",
        "* oxidedb was left out: how",
        "etcd, grpcio clients had loaded only 800 records",
        "* append and sync 1 KiB: 200 us (200 to 200)",
        "takes 600 us inside its leader",
    ):
        assert words in text
    plain = comparison.document(record(run("madkv-rf3", "a", 1)))
    assert "quoted" not in plain and "left out" not in plain and "inside its leader" not in plain


@pytest.mark.parametrize("runs", [RECORD["runs"], RECORD["runs"][:1], RECORD["runs"][-1:]])
def test_whatever_there_is_is_drawn(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    draw(record(*runs), tmp_path / "plot.png")
    picture = imread(tmp_path / "plot.png")
    assert picture.shape[0] > 800 and picture.shape[1] > 1500
    assert picture[..., :3].min() < 0.5 < picture[..., :3].mean()


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_stores_take_turns_and_each_is_first_once() -> None:
    systems = [BY_NAME[name] for name in ("madkv-rf3", "etcd-thin", "redis")]
    cells = [CELLS_BY_NAME[name] for name in ("a", "pipe-read")]
    plan = [(repetition, cell.name, system.name) for repetition, cell, system in in_turn(systems, cells, 3)]
    assert plan[:5] == [
        *((0, "a", name) for name in ("madkv-rf3", "etcd-thin", "redis")),
        *((0, "pipe-read", name) for name in ("madkv-rf3", "etcd-thin")),
    ]
    assert [name for repetition, cell, name in plan if cell == "a"][::3] == ["madkv-rf3", "etcd-thin", "redis"]
    assert len(plan) == 15


def test_each_cell_has_somebody_and_the_floor_only_puts() -> None:
    for cell in CELLS:
        assert [system.name for system in SYSTEMS if cell.suits(system)], cell.name
    assert [cell.name for cell in CELLS if cell.suits(BY_NAME["floor"])] == ["put-1"]


def test_a_load_phase_that_was_cut_short_counts_what_is_there_without_a_gap() -> None:
    core = CoreWorkload({"recordcount": "10"})
    loading = Loading(core)
    calls = list(loading.load())
    for number in (0, 1, 2, 4, 5):
        loading.acknowledged(calls[number])
    assert loading.count == 3
    assert Loading(core).count == 0


# --- options ----------------------------------------------------------------------------------------------------------


def test_compare_fills_in_what_quick_stands_for(tmp_path: Path) -> None:
    full = parse_arguments([f"data={ROOT}"])
    assert (full.seconds, full.repeats, full.records, full.load_seconds) == (20, 5, 10_000, 60)
    assert (full.systems, full.cells, full.clients) == (DEFAULTS, list(CELLS_BY_NAME), 10)
    quick = parse_arguments(["quick=yes", "records=77", f"data={ROOT}", "systems=etcd,redis", "cells=a"])
    assert (quick.seconds, quick.repeats, quick.records, quick.load_seconds) == (2, 1, 77, 5)
    assert (quick.systems, quick.cells) == (["etcd", "redis"], ["a"])


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("systems=etcd,mysql", "mysql: not known; there are madkv-rf3,"),
        ("systems=", "none is named"),
        ("cells=z", "z: not known"),
        ("seconds=0", "seconds must be more than 0"),
        ("repeats=-1", "repeats must be more than 0"),
        ("clients=101", "clients must be 1 to 100"),
        ("data=/nowhere", "/nowhere is no directory"),
        ("tls=yes", "redis, floor: without TLS; with it there is madkv-rf3-tls"),
    ],
)
def test_compare_refuses_in_one_line(word: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([f"data={ROOT}", word])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_load_fills_in_what_is_not_said() -> None:
    full = load.parse_arguments([f"data={ROOT}"])
    assert (full.in_flight, full.size, full.rate) == ([1, 4, 16, 64, 256], [100, 1024, 16384, 65536], [0])
    assert (full.kind, full.seconds, full.system) == (["write", "read"], 20, "madkv-rf3")
    rated = load.parse_arguments([f"data={ROOT}", "rate=100,200", "kind=read", "size=5", "quick=yes"])
    assert (rated.in_flight, rated.size, rated.rate, rated.kind) == ([256], [5], [100, 200], ["read"])
    assert rated.seconds == 2
    assert load.parse_arguments([f"data={ROOT}", "tls=yes"]).system == "madkv-rf3-tls"


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("in-flight=0", "0 is none of 1 to 1024"),
        ("size=1,2000000", "2000000 is none of 1 to 1048576"),
        ("kind=swap", "'swap' is none of write, read"),
        ("rate=x", "'x' is not a whole number"),
        ("system=redis", "invalid choice: 'redis'"),
        ("seconds=0", "seconds must be more than 0"),
        ("tls=yes system=madkv-rf1", "madkv-rf1: without TLS; with it there is madkv-rf3-tls"),
    ],
)
def test_load_refuses_in_one_line(word: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load.parse_arguments([f"data={ROOT}", *word.split()])
    assert complaint in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("word", ["in-flight=2000", "size=0", "rate=-1", "seconds=0"])
def test_the_pipelined_client_refuses_what_makes_no_sense(word: str) -> None:
    with pytest.raises(SystemExit):
        pipelined.parse_arguments(["madkv", "127.0.0.1:1", word])


def test_large_values_are_fewer() -> None:
    assert [pipelined.keys_stored(size) for size in (1, 1024, 65536, 1 << 20)] == [10_000, 10_000, 1024, 64]


# --- who and what is not there ----------------------------------------------------------------------------------------


def test_a_program_or_module_that_is_missing_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert launch.missing_module("no_such_module", "json") == (
        "no Python module `no_such_module`: .venv/bin/pip install -e '.[bench]'"
    )
    assert launch.missing_module("no_such_package.module", to_get="it") is not None
    assert launch.missing_module("json", "xml.dom") is None
    there, skipped = chosen(["madkv-rf3", "etcd", "redis"])
    assert [system.name for system in there] == ["madkv-rf3"]
    assert skipped == {
        "etcd": "no program `etcd` on the PATH: apt-get install etcd-server (its service need not run)",
        "redis": "no program `redis-server` on the PATH: apt-get install redis-server (its service need not run)",
    }


def test_compare_skips_them_in_a_line_each_and_measures_nothing_of_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "madkv.bench.compare", "systems=etcd,redis", f"data={ROOT}", f"out={tmp_path}/out"]
    done = subprocess.run(command, env={"PATH": "/nonexistent"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert [line.split(":")[:2] for line in done.stdout.splitlines()] == [["skipped", " etcd"], ["skipped", " redis"]]
    assert done.stderr == "madkv compare: none of these stores takes part in any of these cells\n"
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = {"/": "ext4", str(tmp_path): "tmpfs"}
    partitions = [type("Partition", (), {"mountpoint": at, "fstype": kind}) for at, kind in kinds.items()]
    monkeypatch.setattr(disk.psutil, "disk_partitions", lambda all: partitions)
    assert disk.filesystem_of(Path("/usr")) == "ext4"
    assert disk.why_no_disk(Path("/usr")) is None
    assert "in memory (tmpfs)" in str(disk.why_no_disk(tmp_path))


def test_a_sync_takes_its_time(tmp_path: Path) -> None:
    assert 0 < disk.sync_us(ROOT) < 10_000_000
    assert list(tmp_path.iterdir()) == []


def test_a_cell_names_its_clients_when_they_are_not_its_own() -> None:
    settings = record(run("madkv-rf3", "a", 1))
    settings["settings"]["clients"] = 1
    assert comparison.title_of(CELLS_BY_NAME["a"], settings) == "YCSB A, 1 client"
    assert comparison.title_of(Cell("x", "x", clients=3), settings) == "x"
    assert json.loads(json.dumps(settings)) == settings
