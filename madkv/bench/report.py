"""A project's report: the prose of `docs/report/`, with the figures that the logs hold put in.

The prose is written by people and only read here. A line `<!-- madkv: WHAT ARGUMENT... -->` in it is replaced:
`include FILE`, `about`, `machine`, `verdicts`, `log NAME`, `table FIGURE`, `figure FIGURE`, `trend FIGURE`.
"""

import datetime
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from madkv.bench.machine import FORMS, form_of, machine_facts, read_record
from madkv.bench.plots import draw, points_of
from madkv.bench.projects import PROJECTS, Configuration, Figure, Project, Result, read_result
from madkv.bench.results import KINDS
from madkv.bench.trends import trend
from madkv.testing.checkout import ROOT, revision
from madkv.testing.ending import run_tool
from madkv.testing.options import Parser

DIRECTIVE = re.compile(r"^<!-- madkv: (\w+)((?: [\w.-]+)*) -->$", re.MULTILINE)
EXCERPT_LINES_MAX = 40
EXCERPT_COLUMNS_MAX = 110
CONTINUED = "      "
"""Before the rest of a line that is wrapped."""


class ReportError(Exception):
    """The prose asks for something that does not exist."""


def listing(project: Project, results: Mapping[str, Result], logs: Path) -> str:
    """Every configuration with its command, and whether its result is there."""
    width = max(len(each.command) for each in project.configurations)
    lines = [f"project {project.number} needs {len(project.configurations)} results:"]
    here = revision()
    for each in project.configurations:
        result = results.get(each.name)
        remark = ""
        if result is None:
            foreign = read_result(each, logs)
            remark = f"  (this one does not count: it is of {foreign.checkout})" if foreign else ""
        elif result.revision not in (None, here):
            remark = f"  (revision {result.revision})"
        there = "there  " if result else "MISSING"
        lines.append(f"  {there}  {each.command:<{width}}  {each.log(logs)}{remark}")
    return "\n".join(lines)


def excerpt(text: str) -> list[str]:
    """A log's lines, the long ones wrapped; of a long log only whole blocks: the first ones, and the last.

    Blocks are what empty lines separate, so that no answer is shown in part. One too long by itself loses lines.
    """
    blocks = [
        [
            part
            for line in block.split("\n")
            for part in textwrap.wrap(
                line, EXCERPT_COLUMNS_MAX, subsequent_indent=CONTINUED, tabsize=1, break_on_hyphens=False
            )
        ]
        for block in re.split(r"\n\n+", text.strip("\n"))
    ]
    last = blocks.pop()
    shown: list[list[str]] = []
    room = EXCERPT_LINES_MAX - len(last)
    while blocks and len(blocks[0]) < room:
        room -= len(blocks[0]) + 1
        shown.append(blocks.pop(0))
    if blocks:
        shown.append([f"... {sum(map(len, blocks))} lines left out ..."])
    elif len(last) > EXCERPT_LINES_MAX:
        half = EXCERPT_LINES_MAX // 2
        last[half:-half] = [f"... {len(last) - 2 * half} lines left out ..."]
    return "\n\n".join("\n".join(block) for block in [*shown, last]).split("\n")


class Report:
    """One report in the making."""

    def __init__(self, project: Project, results: Mapping[str, Result], logs: Path, prose: Path, plots: Path) -> None:
        self._project = project
        self._results = results
        self._logs = logs
        self._prose = prose
        self._plots = plots
        """Where plots go; the text refers to the directory by its name."""
        self._record: dict[str, Any] = read_record(logs)

    def text(self) -> str:
        """The whole report; plots are drawn on the way."""
        return self._fill(self._read(f"proj{self._project.number}.md"))

    def _read(self, name: str) -> str:
        try:
            return (self._prose / name).read_text()
        except OSError as error:
            raise ReportError(f"the prose is not there: {error}") from error

    def _fill(self, text: str) -> str:
        makers: dict[str, Callable[..., str]] = {
            "include": lambda name: self._fill(self._read(name)).rstrip(),
            "about": self._about,
            "machine": self._machine,
            "verdicts": self._verdicts,
            "log": self._excerpt,
            "table": self._table,
            "figure": self._figure,
            "trend": lambda name: trend(self._figure_called(name), self._results),
        }

        def replace(match: re.Match[str]) -> str:
            if match[1] not in makers:
                raise ReportError(f"no such directive: {match[0]}")
            try:
                return str(makers[match[1]](*match[2].split()))
            except (KeyError, TypeError) as error:
                raise ReportError(f"{match[0]}: {error}") from error

        return DIRECTIVE.sub(replace, text)

    def _figure_called(self, name: str) -> Figure:
        return self._project.figure(name)

    def _about(self) -> str:
        forms = [self._form(each) for each in self._project.configurations if each.name in self._results]
        counted = ", ".join(f"{forms.count(form)} {form}" for form in FORMS if form in forms)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        command = f"./justw {self._project.module}::report"
        lines = [f"*Made on {today} by `{command}` from {len(forms)} runs ({counted or 'none'})."]
        if any(form.startswith("quick") for form in forms):
            lines.append("Quick runs show that everything works; their figures are rougher than those of full ones.")
        here = revision()
        revisions: dict[str, list[str]] = {}
        for name, result in self._results.items():
            if result.revision not in (None, here):
                revisions.setdefault(str(result.revision), []).append(name)
        for other, names in revisions.items():
            lines.append(f"Of revision {other}, and not of {here} as this report: {', '.join(names)}.")
        lacking = len(self._project.configurations) - len(forms)
        if lacking:
            lines.append(f"{lacking} results are still missing.")
        return " ".join(lines) + "*"

    def _form(self, configuration: Configuration) -> str:
        return form_of(self._record, configuration.name, configuration.log(self._logs))

    def _mixture(self, figure: Figure) -> str:
        """A paragraph behind a plot or a table that joins runs that do not compare; else nothing."""
        runs: dict[str, list[str]] = {}
        for each in dict.fromkeys(each for series in figure.series for _, each in series.points):
            if each.name in self._results:
                runs.setdefault(self._form(each), []).append(each.name)
        if len(runs) < 2:
            return ""
        listed = "; ".join(f"{form}: {', '.join(names)}" for form, names in sorted(runs.items()))
        return f"\n\n**Runs of different forms are joined here. {listed}.**"

    def _machine(self) -> str:
        facts = self._record["machine"]
        lines = ["| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in (facts or machine_facts()).items()]
        if not facts:
            lines += ["", "*The machine is the one that made this report: the runs did not record theirs.*"]
        return "\n".join(lines)

    def _verdicts(self) -> str:
        lines = ["| run | verdict | log |", "|---|---|---|"]
        for each in self._project.configurations:
            if each.kind != "bench":
                lines.append(f"| `{each.command}` | {self._verdict(each)} | `{each.log(self._logs)}` |")
        return "\n".join(lines)

    def _verdict(self, configuration: Configuration) -> str:
        result = self._results.get(configuration.name)
        return "no result yet" if result is None else "PASSED" if result.passed else "**FAILED**"

    def _excerpt(self, name: str) -> str:
        configuration = self._project.configuration(name)
        result = self._results.get(name)
        if result is None:
            return f"*No result yet: `{configuration.command}`.*"
        lines = excerpt(result.text)
        longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
        fence = "`" * max(3, longest + 1)  # a value in the log may hold backticks
        return "\n".join([f"{fence}text", *lines, fence])

    def _table(self, name: str) -> str:
        figure = self._figure_called(name)
        lines = [
            f"| {figure.x_label} | | calls/s | call | count | average us | min us | max us | p99 us |",
            "|---|---|--:|---|--:|--:|--:|--:|--:|",
        ]
        for series in figure.series:
            for x, run in points_of(series, self._results):
                first = f"| {x} | {series.label} | {run.throughput:,.0f} |"
                for kind in KINDS:
                    if kind in run.latencies:
                        each = run.latencies[kind]
                        lines.append(
                            f"{first} {kind} | {each.count} | {each.mean_us:.1f} | {each.min_us} | {each.max_us} |"
                            f" {each.p99_us} |"
                        )
                        first = "| | | |"
        return "\n".join(lines) + self._mixture(figure)

    def _figure(self, name: str) -> str:
        figure = self._figure_called(name)
        self._plots.mkdir(parents=True, exist_ok=True)
        if not draw(figure, self._results, self._plots):
            return f"*No plot of {figure.name} yet: it has no results.*"
        return f"![{figure.caption}]({self._plots.name}/{figure.name}.png)\n\n*{figure.caption}*{self._mixture(figure)}"


def write(project: Project, logs: Path, prose: Path, out: Path, results: Mapping[str, Result]) -> Path:
    """Write the report and its plots below `out`, all or nothing; the path of the report."""
    out.mkdir(parents=True, exist_ok=True)
    plots = out / f"plots-{project.module}"
    with tempfile.TemporaryDirectory(dir=out, prefix=".report-") as scratch:
        drawn = Path(scratch) / plots.name
        text = Report(project, results, logs, prose, drawn).text()
        plots.mkdir(exist_ok=True)
        if drawn.exists():
            for plot in drawn.iterdir():
                plot.replace(plots / plot.name)
        made = Path(scratch) / "report.md"
        made.write_text(text)
        return made.replace(out / f"proj{project.number}.md")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = Parser(prog="madkv.bench.report", description="Write a project's report.")
    parser.add_argument("project", choices=sorted(PROJECTS))
    parser.add_argument("--partial", choices=("yes", "no"), default="no", help="although results are missing")
    parser.add_argument("--logs", type=Path, help="the directory of the logs (default: /tmp/madkv-<project>)")
    parser.add_argument("--prose", type=Path, default=ROOT / "docs" / "report", help="default: docs/report")
    parser.add_argument("--out", type=Path, default=ROOT / "report", help="default: report")
    arguments = parser.parse_args(argv)
    project = PROJECTS[arguments.project]
    logs: Path = arguments.logs or project.logs
    results = project.results(logs)
    print(listing(project, results, logs), flush=True)
    lacking = len(project.configurations) - len(results)
    if lacking and arguments.partial == "no":
        print(
            f"{lacking} results are missing: `./justw {project.module}::all` runs them;"
            f" `./justw {project.module}::report partial=yes` goes without",
            file=sys.stderr,
        )
        return 1
    try:
        path = write(project, logs, arguments.prose, arguments.out, results)
    except (ReportError, OSError) as error:
        print(f"madkv report: {error}", file=sys.stderr)
        return 1
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run_tool("madkv report", main)
