"""What the report of each project needs: its configurations, its plots, and what each run is made against.

All of it is data. A project more is an entry in `PROJECTS` and a text in `docs/report/`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import attrs

from madkv.bench.results import Phase, parse_results
from madkv.testing.checkout import ROOT

LOGS = Path("/tmp")
SIZES = (1, 3, 5)
"""Servers of project 2, replicas in project 3."""
CLIENTS = (1, 10, 20, 30)

TOOLS = {"testcase": "madkv.testing.testcase", "fuzz": "madkv.testing.fuzz", "bench": "madkv.bench.run"}
_DIRECTORIES = {"testcase": "tests", "fuzz": "fuzz", "bench": "bench"}
_ORIGIN = re.compile(r"^# MadKV \S+, revision (\S+), checkout (.+)$", re.MULTILINE)
"""What `madkv.testing.checkout.origin` writes."""
_VERDICT = re.compile(r"\b(PASSED|FAILED)\b\W*$")


class Size(NamedTuple):
    """How large a cluster is."""

    partitions: int
    rf: int | None
    """None in project 2."""
    managers: int = 1


@attrs.frozen
class Configuration:
    """One run that a report needs, named as its log is: `test1`, `fuzz-3-yes`, `bench-10-a`."""

    module: str
    kind: Literal["testcase", "fuzz", "bench"]
    arguments: tuple[str, ...]
    """What its log is named after: as the recipe of its kind takes them."""
    cluster: Size | None = None
    """What it is run against; None in project 1, and where the tool launches what it needs."""
    recipe: tuple[str, ...] = ()
    """The recipe and its arguments, where they are not those of its kind."""
    tool: tuple[str, ...] = ()
    """The tool behind the recipe and its arguments, likewise."""

    @property
    def name(self) -> str:
        """What its log is called, and how a report's text refers to it."""
        return f"test{self.arguments[0]}" if self.kind == "testcase" else "-".join((self.kind, *self.arguments))

    @property
    def command(self) -> str:
        """How somebody runs it by hand."""
        name, *arguments = self.recipe or (self.kind, *self.arguments)
        return " ".join(("./justw", f"{self.module}::{name}", *arguments))

    @property
    def tool_words(self) -> list[str]:
        """The module to run, with its arguments but for the address and the log."""
        if self.tool:
            return list(self.tool)
        return [TOOLS[self.kind], *self.arguments, "--module", self.module]

    @property
    def launches_its_own(self) -> bool:
        """Whether the tool needs no service but the one that it launches itself."""
        return self.cluster is None and self.module != "p1"

    def log(self, logs: Path) -> Path:
        """Where its log is, below the directory `logs` of the project."""
        return logs / _DIRECTORIES[self.kind] / f"{self.name}.log"


@attrs.frozen
class Result:
    """What a complete log says: a verdict, or a benchmark's phases."""

    text: str
    passed: bool
    phases: dict[str, Phase] = attrs.field(factory=dict)
    revision: str | None = None
    """What it was made with; None when the log does not say, as with `checkout`."""
    checkout: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it counts here: those of other checkouts do not."""
        return self.checkout in (None, str(ROOT))

    @property
    def run(self) -> Phase:
        """The phase that the plots are about."""
        return self.phases["Run"]


def read_result(configuration: Configuration, logs: Path) -> Result | None:
    """The result in the configuration's log; None when there is none, or the run broke off before its verdict."""
    try:
        text = configuration.log(logs).read_text(errors="backslashreplace")
    except FileNotFoundError:
        return None
    made = _ORIGIN.search(text)
    made_by = made.groups() if made else (None, None)
    if configuration.kind == "bench":
        phases = parse_results(text)
        return Result(text, True, phases, *made_by) if phases else None
    verdicts = [match[1] for line in text.splitlines() if (match := _VERDICT.search(line))]
    if not verdicts or not _ends_in_verdict(configuration, text):
        return None
    return Result(text, verdicts[-1] == "PASSED", {}, *made_by)


def _ends_in_verdict(configuration: Configuration, text: str) -> bool:
    if configuration.kind == "fuzz":
        return re.search(r"^Fuzz testing result: (PASSED|FAILED)", text, re.MULTILINE) is not None
    return _VERDICT.search(text.rstrip().rpartition("\n")[2]) is not None


@attrs.frozen
class Series:
    """Benchmarks that belong on one line or in one group of bars: each with its place on the x axis."""

    label: str
    points: tuple[tuple[str, Configuration], ...]


@attrs.frozen
class Figure:
    """One plot; `form` is a function of `madkv.bench.plots`."""

    name: str
    form: Literal["workloads", "throughput", "latency"]
    title: str
    caption: str
    x_label: str
    series: tuple[Series, ...]


@attrs.frozen
class Project:
    """A project's report."""

    module: str
    number: int
    configurations: tuple[Configuration, ...]
    figures: tuple[Figure, ...]

    @property
    def logs(self) -> Path:
        """The directory of its logs."""
        return LOGS / f"madkv-{self.module}"

    def configuration(self, name: str) -> Configuration:
        """The configuration of this name. Raises KeyError."""
        return {each.name: each for each in self.configurations}[name]

    def figure(self, name: str) -> Figure:
        """The figure of this name. Raises KeyError."""
        return {each.name: each for each in self.figures}[name]

    def results(self, logs: Path) -> dict[str, Result]:
        """Every result that is there and counts, by the name of its configuration."""
        found = {each.name: read_result(each, logs) for each in self.configurations}
        return {name: result for name, result in found.items() if result and result.is_ours}


def _project_1() -> Project:
    def bench(clients: int, workload: str) -> Configuration:
        return Configuration("p1", "bench", (str(clients), workload))

    one_client = [bench(1, workload) for workload in "abcdef"]
    client_counts = (1, 10, 25, 40, 55, 70, 85)
    scaling = {workload: [bench(clients, workload) for clients in client_counts] for workload in "ace"}
    by_clients = tuple(
        Series(workload.upper(), tuple((each.arguments[0], each) for each in runs))
        for workload, runs in scaling.items()
    )
    by_workload = (Series("1 client", tuple((each.arguments[1].upper(), each) for each in one_client)),)
    configurations = [Configuration("p1", "testcase", (str(number),)) for number in range(1, 6)]
    configurations += [Configuration("p1", "fuzz", arguments) for arguments in (("1", "no"), ("3", "no"), ("3", "yes"))]
    configurations += one_client
    configurations += [each for runs in scaling.values() for each in runs if each not in one_client]
    return Project(
        module="p1",
        number=1,
        configurations=tuple(configurations),
        figures=(
            Figure(
                "one-client",
                "workloads",
                "One client on each workload",
                "One client on each workload: calls a second, and what a call takes.",
                "YCSB workload",
                by_workload,
            ),
            Figure(
                "throughput-clients",
                "throughput",
                "Throughput by number of clients",
                "Calls a second of all clients together, against their number.",
                "clients",
                by_clients,
            ),
            Figure(
                "latency-clients",
                "latency",
                "Latency by number of clients (logarithmic)",
                "What a call takes, on average and at the 99th percentile, against the number of clients.",
                "clients",
                by_clients,
            ),
        ),
    )


def _clustered(
    number: int, counted: str, cluster_of: Callable[[int], Size], testcases: int, runs: Sequence[Configuration]
) -> Project:
    """The report of project 2 or 3, which compare clusters of different sizes, counted in servers or replicas."""
    module = f"p{number}"

    def bench(clients: int, workload: str, size: int) -> Configuration:
        driver = ("madkv.bench.run", str(clients), workload, "--module", module)
        return Configuration(module, "bench", (str(clients), workload, str(size)), cluster_of(size), tool=driver)

    by_workload = {size: [bench(10, workload, size) for workload in "abcdef"] for size in SIZES}
    by_clients = {size: [bench(clients, "a", size) for clients in CLIENTS] for size in (SIZES[0], SIZES[-1])}
    lines = tuple(
        Series(_counted(size, counted), tuple((each.arguments[0], each) for each in runs))
        for size, runs in by_clients.items()
    )
    configurations = [
        Configuration(
            module,
            "testcase",
            (str(case),),
            tool=("madkv.testing.testcase", str(case), "--module", module),
        )
        for case in range(1, testcases + 1)
    ]
    configurations += runs
    configurations += [each for runs in (*by_workload.values(), *by_clients.values()) for each in runs]
    return Project(
        module=module,
        number=number,
        configurations=tuple(dict.fromkeys(configurations)),
        figures=(
            Figure(
                "ten-clients",
                "workloads",
                "Ten clients on each workload",
                "Ten clients on each workload: calls a second, and what a call takes on average.",
                "YCSB workload",
                tuple(
                    Series(_counted(size, counted), tuple((each.arguments[1].upper(), each) for each in runs))
                    for size, runs in by_workload.items()
                ),
            ),
            Figure(
                "throughput-clients",
                "throughput",
                "Throughput on workload A by number of clients",
                "Workload A: calls a second of all clients together, against their number.",
                "clients",
                lines,
            ),
            Figure(
                "latency-clients",
                "latency",
                "Latency on workload A by number of clients (logarithmic)",
                "Workload A: what a call takes, on average and at the 99th percentile, against the number of clients.",
                "clients",
                lines,
            ),
        ),
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _fuzz(module: str, size: int, crashing: str, cluster: Size) -> Configuration:
    """Five clients on the same keys; when servers are to crash, by the tool that launches and crashes them."""
    arguments = (str(size), crashing)
    if crashing == "yes":
        recipe, tool = ("crashfuzz", str(size)), ("madkv.testing.crashfuzz", module, str(size))
        return Configuration(module, "fuzz", arguments, recipe=recipe, tool=tool)
    return Configuration(
        module, "fuzz", arguments, cluster, tool=("madkv.testing.fuzz", "5", "yes", "--module", module)
    )


def _project_2() -> Project:
    def cluster(servers: int) -> Size:
        return Size(servers, None)

    runs = [
        _fuzz("p2", servers, crashing, cluster(servers)) for servers, crashing in ((3, "no"), (3, "yes"), (5, "yes"))
    ]
    return _clustered(2, "server", cluster, testcases=1, runs=runs)


def _project_3() -> Project:
    runs = [_fuzz("p3", 5, crashing, Size(2, 5, 3)) for crashing in ("no", "yes")]
    return _clustered(3, "replica", lambda rf: Size(1, rf, 3), testcases=4, runs=runs)


PROJECTS = {project.module: project for project in (_project_1(), _project_2(), _project_3())}
