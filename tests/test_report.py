"""The report: what it needs, what it says, and what it leaves alone."""

import json
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imread

from madkv.bench import machine, plots, report
from madkv.bench.projects import PROJECTS, Configuration, Project, Result, Series, read_result
from madkv.bench.results import Latency, Phase, format_results
from madkv.bench.trends import trend
from madkv.testing.checkout import ROOT, origin, revision

P1 = PROJECTS["p1"]


def phases(throughput: float, mean_us: float, *kinds: str) -> dict[str, Phase]:
    each = Latency(1000, mean_us, round(mean_us / 2), round(mean_us * 9), round(mean_us * 3))
    loaded = {"INSERT": Latency(500, 100.0, 50, 900, 300)}
    return {"Load": Phase(50, 10_000.0, loaded), "Run": Phase(1000, throughput, dict.fromkeys(kinds, each))}


def write_log(configuration: Configuration, logs: Path) -> None:
    """A complete log, as the tools write it."""
    log = configuration.log(logs)
    log.parent.mkdir(parents=True, exist_ok=True)
    if configuration.kind == "testcase":
        log.write_text("".join(f"step {step}\n" for step in range(100)) + "Testcase: PASSED\n")
    elif configuration.kind == "fuzz":
        log.write_text("3 clients\nFuzz testing result: PASSED\n")
    else:
        clients, workload, *_ = configuration.arguments
        kinds = ("INSERT", "SCAN") if workload == "e" else ("READ", "UPDATE")
        rate = min(8000.0, 3000.0 * int(clients))
        log.write_text(format_results(phases(rate, int(clients) / rate * 1e6, *kinds)) + "\n")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All logs of project 1."""
    directory = tmp_path_factory.mktemp("logs")
    for configuration in P1.configurations:
        write_log(configuration, directory)
    return directory


def some(logs: Path, target: Path, *names: str) -> Path:
    """Only these logs, elsewhere."""
    for name in names:
        configuration = P1.configuration(name)
        configuration.log(target).parent.mkdir(parents=True, exist_ok=True)
        configuration.log(target).write_bytes(configuration.log(logs).read_bytes())
    return target


# --- what counts as a result ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "passed"),
    [
        ("test1", "Testcase 1: PASSED\n", True),
        ("test1", "a value was wrong\nTestcase 1: FAILED\n\n", False),
        ("test1", "expects PASSED later\nstep 1\n", None),
        ("test1", "", None),
        ("fuzz-3-yes", "Fuzz testing result: PASSED\nchecked 100 operations\n", True),
        ("fuzz-3-yes", "Fuzz testing result: FAILED\nstretch\n", False),
        ("fuzz-3-yes", "5,000 operations\n", None),
        ("bench-1-a", "Benchmarking results:\n[Load]    2345 ms\n", None),
    ],
)
def test_a_log_counts_when_it_holds_its_verdict(tmp_path: Path, name: str, text: str, passed: bool | None) -> None:
    configuration = P1.configuration(name)
    log = configuration.log(tmp_path)
    log.parent.mkdir()
    log.write_text(text)
    result = read_result(configuration, tmp_path)
    assert (result.passed if result else None) == passed


def test_logs_are_where_the_recipes_write_them() -> None:
    where = {each.name: str(each.log(P1.logs)) for each in P1.configurations}
    assert where["test3"] == "/tmp/madkv-p1/tests/test3.log"
    assert where["fuzz-3-yes"] == "/tmp/madkv-p1/fuzz/fuzz-3-yes.log"
    assert where["bench-85-e"] == "/tmp/madkv-p1/bench/bench-85-e.log"


# --- the command ------------------------------------------------------------------------------------------------------


def test_missing_results_are_listed_with_their_command_and_nothing_is_written(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = some(logs, tmp_path / "logs", "test1", "bench-10-a")
    out = tmp_path / "out"
    assert report.main(["p1", "--logs", str(here), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert len(re.findall("MISSING", captured.out)) == len(P1.configurations) - 2
    assert re.search(r"there +\./justw p1::bench 10 a +\S+/bench-10-a.log", captured.out)
    assert re.search(r"MISSING +\./justw p1::fuzz 3 yes ", captured.out)
    assert "`./justw p1::all`" in captured.err
    assert not out.exists()


def test_a_partial_report_says_what_it_lacks(logs: Path, tmp_path: Path) -> None:
    here = some(logs, tmp_path / "logs", "test1", "bench-1-a", "bench-10-a")
    out = tmp_path / "out"
    assert report.main(["p1", "partial=yes", "--logs", str(here), "--out", str(out)]) == 0
    text = (out / "proj1.md").read_text()
    assert "29 results are still missing" in text
    assert "*No result yet: `./justw p1::fuzz 3 yes`.*" in text


def test_the_whole_report(logs: Path, tmp_path: Path) -> None:
    prose_before = {path: path.read_bytes() for path in (ROOT / "docs" / "report").iterdir()}
    out = tmp_path / "out"
    for _ in range(2):  # making it again replaces it
        assert report.main(["p1", "--logs", str(logs), "--out", str(out)]) == 0
    text = (out / "proj1.md").read_text()
    assert "<!--" not in text
    assert "o result yet" not in text
    for heading in ("Design", "Protocol", "Errors and time-outs", "Testcase 5", "Fuzz testing", "Machine and topology"):
        assert re.search(rf"^##+ {heading}", text, re.MULTILINE)
    images = re.findall(r"^!\[.+\]\((.+)\)$", text, re.MULTILINE)
    assert images == [f"plots-p1/{figure.name}.png" for figure in P1.figures]
    for image in images:
        height, width, _ = imread(out / image).shape
        assert width >= 1200
        assert height >= 600
    assert {path.name for path in out.iterdir()} == {"proj1.md", "plots-p1"}
    assert {f"plots-p1/{path.name}" for path in (out / "plots-p1").iterdir()} == set(images)
    assert {path: path.read_bytes() for path in (ROOT / "docs" / "report").iterdir()} == prose_before


def test_long_logs_are_excerpted_and_cannot_break_out_of_their_fence(logs: Path, tmp_path: Path) -> None:
    here = some(logs, tmp_path / "logs", "test1")
    log = P1.configuration("test1").log(here)
    log.write_text("```\n" + "x" * 500 + "\n" + "\n".join(map(str, range(100))) + "\nTestcase 1: PASSED\n")
    maker = report.Report(P1, P1.results(here), here, tmp_path, tmp_path / "plots")
    lines = maker._fill("<!-- madkv: log test1 -->").splitlines()
    assert (lines[0], lines[-1]) == ("````text", "````")
    assert "... 67 lines left out ..." in lines
    assert lines[-2] == "Testcase 1: PASSED"
    assert max(map(len, lines)) <= report.EXCERPT_COLUMNS_MAX


def test_an_excerpt_holds_whole_blocks() -> None:
    scan = "  A: SCAN a b -> 9 pairs: " + ", ".join(f"key-{number} = value" for number in range(9))
    blocks = [f"Step {step}.\n  A: PUT a -> found\n{scan}" for step in range(20)]
    lines = report.excerpt("\n\n".join([*blocks, "Testcase 1: PASSED"]) + "\n")
    text = "\n".join(lines)
    assert len(lines) <= report.EXCERPT_LINES_MAX + 2
    shown = re.findall(r"^Step", text, re.MULTILINE)
    assert 5 <= len(shown) == text.count("key-8 = value") < 20
    assert text.endswith(f"\n\n... {(20 - len(shown)) * 4} lines left out ...\n\nTestcase 1: PASSED")
    assert report.excerpt("\n\n".join(blocks[:3])) == report.excerpt("\n\n".join(blocks[:3]) + "\n\n")


def test_results_of_others_are_told(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = some(logs, tmp_path / "logs", "test1", "test2", "test3", "bench-1-a")
    for name, made_by in (
        ("test1", origin()),
        ("test2", f"# MadKV 0.1.0, revision 0ld, checkout {ROOT}"),
        ("test3", "# MadKV 0.1.0, revision 0ld, checkout /else where"),
    ):
        log = P1.configuration(name).log(here)
        log.write_text(f"{made_by}\n{log.read_text()}")
    assert report.main(["p1", "partial=yes", "--logs", str(here), "--out", str(tmp_path / "out")]) == 0
    told = re.findall(r"^  (\w+) .*/(test[123]\.log.*)$", capsys.readouterr().out, re.MULTILINE)
    assert told == [
        ("there", "test1.log"),
        ("there", "test2.log  (revision 0ld)"),
        ("MISSING", "test3.log  (this one does not count: it is of /else where)"),
    ]
    text = (tmp_path / "out" / "proj1.md").read_text()
    assert f"Of revision 0ld, and not of {revision()} as this report: test2." in text
    assert "from 3 runs" in text


def test_a_plot_that_joins_quick_and_full_runs_says_so(logs: Path, tmp_path: Path) -> None:
    here = some(logs, tmp_path / "logs", "bench-1-a", "bench-10-a")
    for form in ("full", "quick"):
        machine.note_run(here, "bench-1-a", P1.configuration("bench-1-a").log(here), form, 1.0)
        machine.note_run(here, "bench-10-a", P1.configuration("bench-10-a").log(here), "quick", 1.0)
        maker = report.Report(P1, P1.results(here), here, tmp_path, tmp_path / "plots")
        for what in ("figure", "table"):
            said = maker._fill(f"<!-- madkv: {what} throughput-clients -->")
            joined = "**Runs of different forms are joined here. full: bench-1-a; quick: bench-10-a.**"
            assert said.endswith(joined) == (form == "full")


@pytest.mark.parametrize(
    "directive", ["weather", "figure nothing", "log nothing", "include nothing.md", "trend", "about now"]
)
def test_prose_that_asks_for_what_is_not_there_is_refused(
    tmp_path: Path, directive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proj1.md").write_text(f"# Title\n<!-- madkv: {directive} -->\n")
    words = ["p1", "partial=yes", "--logs", str(tmp_path), "--prose", str(tmp_path), "--out", str(tmp_path / "out")]
    assert report.main(words) == 1
    assert "madkv report: " in capsys.readouterr().err
    assert not (tmp_path / "out" / "proj1.md").exists()


def test_it_says_which_runs_were_quick(logs: Path, tmp_path: Path) -> None:
    here = some(logs, tmp_path / "logs", "bench-1-a", "bench-10-a", "bench-1-b")
    for name, form in (("bench-1-a", "quick over TLS"), ("bench-10-a", "full"), ("bench-1-b", "full")):
        machine.note_run(here, name, P1.configuration(name).log(here), form, 1.0)
    # Somebody ran this one again by hand.
    P1.configuration("bench-1-b").log(here).write_text(P1.configuration("bench-1-b").log(here).read_text() + "\n")
    maker = report.Report(P1, P1.results(here), here, tmp_path, tmp_path / "plots")
    about = maker._fill("<!-- madkv: about -->")
    assert "from 3 runs (1 full, 1 quick over TLS, 1 by hand)" in about
    assert "Quick runs show that everything works" in about
    facts = json.loads((here / machine.RECORD).read_text())["machine"]
    assert f"| processor | {facts['processor']} |" in maker._fill("<!-- madkv: machine -->")


def test_a_broken_record_is_as_good_as_none(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"runs": 3}'):
        (tmp_path / machine.RECORD).write_text(text)
        assert machine.read_record(tmp_path) == {"machine": {}, "runs": {}}


# --- figures and what is said about them ------------------------------------------------------------------------------


def result(throughput: float, mean_us: float, *kinds: str) -> Result:
    return Result("", True, phases(throughput, mean_us, *kinds))


def scaling(rates: dict[int, float]) -> tuple[Project, dict[str, Result]]:
    """Project 1 with results of workload A alone."""
    return P1, {f"bench-{clients}-a": result(rate, clients / rate * 1e6, "READ") for clients, rate in rates.items()}


def test_throughput_that_grows_and_falls_is_said_to() -> None:
    project, results = scaling({1: 2000, 10: 8000, 25: 8400, 40: 8000, 85: 4200})
    said = trend(project.figure("throughput-clients"), results)
    assert said == (
        "* **A**: 2,000 calls a second with one client; the most, 8,400 (4.2 times as many), with 25,"
        " though 10 clients already reach that within 10 %. With 85 it falls to 4,200 (-50 %)."
    )


def test_throughput_that_never_grows_is_said_to() -> None:
    project, results = scaling({1: 2000, 10: 1900})
    said = trend(project.figure("throughput-clients"), results)
    assert "more clients never make it more. With 10 it holds 1,900 (-5 %)" in said


def test_latency_is_put_beside_the_law_of_the_closed_loop() -> None:
    project, results = scaling({1: 2000, 10: 5000})
    said = trend(project.figure("latency-clients"), results)
    assert "a call takes 500 us on average with one client and 2.00 ms with 10, 4 times as long" in said
    assert "10.0 of 10 clients awaiting an answer" in said


def test_workloads_are_compared() -> None:
    results = {
        "bench-1-a": result(3000, 300, "READ", "UPDATE"),
        "bench-1-c": result(4000, 200, "READ"),
        "bench-1-e": result(500, 2000, "SCAN"),
    }
    said = trend(P1.figure("one-client"), results)
    assert "workload C runs fastest with 4,000 calls a second, E slowest with 500" in said
    assert "a read 200 us to 300 us, an update 300 us and a scan 2.00 ms" in said
    assert "A scan takes 8.0 times as long as a read" in said


def test_clusters_are_compared_workload_by_workload() -> None:
    rates = {"bench-10-a-1": 1000, "bench-10-c-1": 4000, "bench-10-a-3": 600, "bench-10-c-3": 4400, "bench-10-e-5": 1}
    results = {name: result(rate, 300, "READ") for name, rate in rates.items()}
    assert trend(PROJECTS["p3"].figure("ten-clients"), results) == (
        "* **3 replicas**, calls a second as a multiple of those with 1 replica: A 0.60 and C 1.10;"
        " A has the least of it, C the most."
    )


@pytest.mark.parametrize("module", ["p2", "p3"])
def test_the_whole_report_of_a_cluster(module: str, tmp_path: Path) -> None:
    project = PROJECTS[module]
    for configuration in project.configurations:
        write_log(configuration, tmp_path / "logs")
    out = tmp_path / "out"
    assert report.main([module, "--logs", str(tmp_path / "logs"), "--out", str(out)]) == 0
    text = (out / f"proj{project.number}.md").read_text()
    assert "madkv:" not in text and "No result yet" not in text
    plots_made = {path.name for path in (out / f"plots-{module}").iterdir()}
    assert plots_made == {f"{figure.name}.png" for figure in project.figures}
    for configuration in project.configurations:
        if configuration.kind == "testcase":
            assert "Testcase: PASSED" in text
        elif configuration.kind == "fuzz":
            assert f"| `{configuration.command}` | PASSED |" in text


@pytest.mark.parametrize("figure", [figure.name for figure in P1.figures])
def test_without_results_there_is_neither_plot_nor_claim(figure: str, tmp_path: Path) -> None:
    assert not plots.draw(P1.figure(figure), {}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert trend(P1.figure(figure), {}) == "*Too few results to compare.*"


def test_workloads_can_be_compared_between_services(logs: Path, tmp_path: Path) -> None:
    one = P1.figure("one-client")
    another = Series("10 clients", tuple((w.upper(), P1.configuration(f"bench-10-{w}")) for w in "ace"))
    both = attrs.evolve(one, series=(*one.series, another))
    assert plots.draw(both, P1.results(logs), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one-client.png"]
    assert (tmp_path / "one-client.png").stat().st_size > 10_000


def drawn(name: str, logs: Path) -> Canvas:
    """The figure with all results, laid out."""
    figure = P1.figure(name)
    canvas = plots.compose(figure, P1.results(logs))
    assert canvas is not None
    canvas.canvas.draw()
    return canvas


@pytest.mark.parametrize("figure", [figure.name for figure in P1.figures])
def test_every_figure_has_a_title(figure: str, logs: Path) -> None:
    assert drawn(figure, logs).get_suptitle() == P1.figure(figure).title


def test_the_legend_lies_above_the_bars(logs: Path) -> None:
    (_, axes) = drawn("one-client", logs).axes
    legend = axes.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    assert axes.get_window_extent().y1 <= box.y0
    assert box.y1 <= axes.title.get_window_extent().y0


def test_latency_has_a_logarithmic_axis_with_plain_numbers(logs: Path) -> None:
    for axes in drawn("latency-clients", logs).axes:
        low, high = axes.get_ylim()
        ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        labels = [label.get_text() for at, label in ticks if low < at < high]
        assert axes.get_yscale() == "log"
        assert len(labels) >= 3 and all(re.fullmatch(r"[\d,.]+", label) for label in labels)


def test_a_report_needs_no_display() -> None:
    """Matplotlib's state machine, which looks for a display, stays out."""
    code = "import sys, madkv.bench.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
