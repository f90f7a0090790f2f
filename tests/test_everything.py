"""What runs all that a report still lacks, and which runs a report needs."""

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from madkv.addresses import parse_address
from madkv.bench import everything, machine
from madkv.bench.projects import PROJECTS, Configuration, Project, read_result
from madkv.testing.checkout import ROOT, origin
from madkv.testing.service import Service, ServiceError, is_listening
from tests.benches import EXAMPLE, STANDIN


@pytest.fixture
def small() -> Project:
    """Project 1 with two benchmarks alone."""
    configurations = (Configuration("p1", "bench", ("1", "a")), Configuration("p1", "bench", ("2", "e")))
    return attrs.evolve(PROJECTS["p1"], configurations=configurations)


def test_everything_runs_what_lacks_and_nothing_else(
    small: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert everything.run_all(small, tmp_path, STANDIN, quick=True, again=False, seconds=0.2) == 0
    out, err = capfd.readouterr()
    assert err == "", "the tools' own lines are not wanted where there is no terminal"
    assert "2 of 2 runs to do (quick)" in out
    assert "[2 of 2] ./justw p1::bench 2 e" in out
    assert set(small.results(tmp_path)) == {"bench-1-a", "bench-2-e"}
    record = machine.read_record(tmp_path)
    assert record["machine"]["cores"] == str(os.cpu_count())
    assert {run["form"] for run in record["runs"].values()} == {"quick"}

    broken = small.configuration("bench-2-e").log(tmp_path)
    broken.write_text("\n".join(broken.read_text().splitlines()[:-3]))
    assert [each.name for each in everything.lacking(small, tmp_path, True, False)] == ["bench-2-e"]
    assert [each.name for each in everything.lacking(small, tmp_path, False, False)] == ["bench-1-a", "bench-2-e"]
    assert len(everything.lacking(small, tmp_path, True, True)) == 2
    assert everything.run_all(small, tmp_path, STANDIN, quick=True, again=False, seconds=0.2) == 0
    assert "1 of 2 runs to do (quick), 1 results are there" in capfd.readouterr().out
    assert everything.lacking(small, tmp_path, True, False) == []


@pytest.mark.parametrize("tls", [False, True])
def test_runs_over_tls_do_not_stand_for_others(small: Project, tmp_path: Path, tls: bool) -> None:
    """Nor others for them; of runs by hand nobody knows."""
    first, _ = small.configurations
    for configuration in small.configurations:
        configuration.log(tmp_path).parent.mkdir(exist_ok=True)
        configuration.log(tmp_path).write_text(f"{EXAMPLE}\n{origin()}\n")
    machine.note_run(tmp_path, first.name, first.log(tmp_path), machine.form_name(quick=True, tls=tls), 1.0)
    assert everything.lacking(small, tmp_path, True, False, tls) == []
    assert everything.lacking(small, tmp_path, False, False, tls) == [first]
    assert everything.lacking(small, tmp_path, True, False, not tls) == [first]


def test_results_of_another_checkout_are_run_again(small: Project, tmp_path: Path) -> None:
    ours = f"{EXAMPLE}\n{origin()}\n"
    for configuration, text in zip(
        small.configurations, (ours, ours.replace(f"checkout {ROOT}", "checkout /elsewhere")), strict=True
    ):
        configuration.log(tmp_path).parent.mkdir(exist_ok=True)
        configuration.log(tmp_path).write_text(text)
    assert [each.name for each in everything.lacking(small, tmp_path, True, False)] == ["bench-2-e"]
    assert set(small.results(tmp_path)) == {"bench-1-a"}


def test_results_of_another_revision_count_and_are_told(
    small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for configuration in small.configurations:
        configuration.log(tmp_path).parent.mkdir(exist_ok=True)
        configuration.log(tmp_path).write_text(f"{EXAMPLE}\n# MadKV 0.1.0, revision 0ld, checkout {ROOT}\n")
    assert everything.run_all(small, tmp_path, STANDIN, quick=True, again=False, seconds=0.2) == 0
    assert "(again=yes runs them again): bench-1-a (0ld), bench-2-e (0ld)\n" in capsys.readouterr().out


def test_everything_names_what_failed(
    small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "null:50")
    assert everything.run_all(small, tmp_path, STANDIN, quick=True, again=False, seconds=0.2) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "gave a wrong answer" in captured.err
    assert captured.err.splitlines()[-1] == "failed: bench-1-a"
    assert read_result(small.configuration("bench-1-a"), tmp_path) is None


def test_everything_ends_its_service(small: Project, tmp_path: Path) -> None:
    with everything.launched(small.configurations[0], STANDIN, tmp_path, tls=False) as service:
        assert service is not None
        _, port = parse_address(service.address)
        assert is_listening(port)
    assert not is_listening(port)


def test_a_service_that_does_not_start_is_told_with_what_it_said(small: Project) -> None:
    failing = [sys.executable, "-c", "raise SystemExit('no room')"]
    with pytest.raises(ServiceError, match="no room"), Service(failing, [("p1::server",)], [1]):
        pass


def test_what_cannot_be_started_or_written_is_told_without_a_traceback(
    small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ServiceError, match="/nonexistent"), Service(["/nonexistent"], [("p1::server",)], [1]):
        pass
    assert everything.run_all(small, tmp_path, "/nonexistent", quick=True, again=False, seconds=0.2) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: bench-1-a, bench-2-e"
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "madkv.bench.everything", "p1", "--logs", str(tmp_path / "file" / "logs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_the_report_needs_what_the_contract_lists() -> None:
    names = [each.name for each in PROJECTS["p1"].configurations]
    wanted = {f"test{number}" for number in range(1, 6)} | {"fuzz-1-no", "fuzz-3-no", "fuzz-3-yes"}
    wanted |= {f"bench-1-{workload}" for workload in "abcdef"}
    wanted |= {f"bench-{clients}-{workload}" for clients in (1, 10, 25, 40, 55, 70, 85) for workload in "ace"}
    assert set(names) == wanted
    assert len(names) == len(wanted)


def test_the_reports_of_clusters_need_what_the_contract_lists() -> None:
    for module, tests, fuzzes in (
        ("p2", {"test1"}, {"fuzz-3-no", "fuzz-3-yes", "fuzz-5-yes"}),
        ("p3", {f"test{number}" for number in range(1, 5)}, {"fuzz-5-no", "fuzz-5-yes"}),
    ):
        names = [each.name for each in PROJECTS[module].configurations]
        wanted = tests | fuzzes | {f"bench-10-{workload}-{size}" for workload in "abcdef" for size in (1, 3, 5)}
        wanted |= {f"bench-{clients}-a-{size}" for clients in (1, 10, 20, 30) for size in (1, 5)}
        assert set(names) == wanted
        assert len(names) == len(wanted)


@pytest.mark.parametrize(
    ("name", "command", "log", "words", "cluster"),
    [
        (
            ("p2", "fuzz-3-no"),
            "./justw p2::fuzz 3 no",
            "/tmp/madkv-p2/fuzz/fuzz-3-no.log",
            "madkv.testing.fuzz 5 yes --module p2",
            (3, None, 1),
        ),
        (
            ("p2", "fuzz-5-yes"),
            "./justw p2::crashfuzz 5",
            "/tmp/madkv-p2/fuzz/fuzz-5-yes.log",
            "madkv.testing.crashfuzz p2 5",
            None,
        ),
        (
            ("p2", "bench-30-a-5"),
            "./justw p2::bench 30 a 5",
            "/tmp/madkv-p2/bench/bench-30-a-5.log",
            "madkv.bench.run 30 a --module p2",
            (5, None, 1),
        ),
        (
            ("p3", "test4"),
            "./justw p3::testcase 4",
            "/tmp/madkv-p3/tests/test4.log",
            "madkv.testing.testcase 4 --module p3",
            None,
        ),
        (
            ("p3", "bench-10-e-3"),
            "./justw p3::bench 10 e 3",
            "/tmp/madkv-p3/bench/bench-10-e-3.log",
            "madkv.bench.run 10 e --module p3",
            (1, 3, 3),
        ),
    ],
)
def test_a_run_of_a_cluster(
    name: tuple[str, str], command: str, log: str, words: str, cluster: tuple[int, int | None, int] | None
) -> None:
    project = PROJECTS[name[0]]
    configuration = project.configuration(name[1])
    assert configuration.command == command
    assert str(configuration.log(project.logs)) == log
    assert configuration.tool_words == words.split()
    assert configuration.cluster == cluster
    assert configuration.launches_its_own == (cluster is None)


def test_quick_and_limited_options() -> None:
    one, many = Configuration("p1", "bench", ("1", "a")), Configuration("p1", "bench", ("85", "a"))
    assert everything.options_of(one, True, 0) == ["--ops=10000", "--records=1000", "--seconds=2.0"]
    assert everything.options_of(many, True, 0)[0] == "--ops=117"
    assert everything.options_of(many, False, 0) == []
    assert everything.options_of(many, False, 30) == ["--seconds=30"]
