"""Commands with managers of several clusters, or of nobody knows which: nothing is changed, whoever comes first."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from madkv.cli import main
from madkv.errors import MadKVError
from madkv.operate import health
from madkv.operate import replace_disk as command
from madkv.operate.ask import ask, ask_hello
from madkv.operate.health import cluster_of
from madkv.wire import codec
from madkv.wire.boxes import Box
from tests.manager.test_tap import Cluster, until
from tests.processes import free_address


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cluster]]:
    """Two, each with one manager, which would give up a disk of it."""
    with ExitStack() as stack:
        both = [Cluster(tmp_path_factory.mktemp("cluster"), stack, managers=1) for _ in range(2)]
        for cluster in both:
            cluster.start(0)
        for cluster in both:
            cluster.register_all()
        yield both


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is there is not taken for silent, however busy the machine is."""
    monkeypatch.setattr(ask, "__defaults__", (b"", None, 60.0))


def states(clusters: list[Cluster]) -> list[Any]:
    """What their managers hold of s0.1, and of which clusters they are."""
    found = [cluster.status(0) for cluster in clusters]
    return [(status["nodes"]["s0.1"]["state"], status["cluster"]) for status in found]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("replace-disk s0.1", 1),
        ("transfer-leader m", 2),
        ("transfer-leader s0.1", 2),
        ("backup {file}", 2),
        ("status", 2),
    ],
)
def test_of_several_clusters(
    clusters: list[Cluster],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: str,
    expected: int,
    place: int,
) -> None:
    """The first of them leads, and would do it."""
    file = tmp_path / "file"
    ordered = [clusters[place], clusters[1 - place]]
    before = states(ordered)
    managers = ",".join(each.managers for each in ordered)
    assert main([*words.format(file=file).split(), "--managers", managers]) == expected
    named = ", ".join(f"{each.managers} of {id_}" for each, (_, id_) in zip(ordered, before, strict=True))
    line = f"madkv {words.split()[0]}: managers: name those of one cluster, and not of several: {named}\n"
    assert capsys.readouterr() == ("", line)
    assert [state for state, _ in before] == ["registered"] * 2
    assert states(ordered) == before
    assert not file.exists()


def test_most_of_those_named_have_to_say_whose_they_are(
    clusters: list[Cluster], server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two, one that is silent might be the one that was meant."""
    monkeypatch.setattr(health, "LOOK_SECONDS_MAX", 0.0)
    before = states(clusters)
    nobody, manager = free_address(), clusters[0].managers
    refused, stranger = "[Errno 111] Connection refused", "it is a server; --managers is for the managers' addresses"
    for managers, why in (
        (f"{manager},{nobody}", f"{nobody}: {refused}"),
        (f"{nobody},{manager}", f"{nobody}: {refused}"),
        (f"{manager},{server.address}", f"{server.address}: {stranger}"),
        (nobody, f"{nobody}: {refused}"),
    ):
        assert command.replace_disk("s0.1", managers) == 1
        line = f"madkv replace-disk: it is not clear whose managers these are: {why}\n"
        assert capsys.readouterr() == ("", line)
        assert states(clusters) == before
    assert cluster_of([manager]) == before[0][1]
    assert cluster_of([manager, manager.replace("127.0.0.1", "localhost"), nobody]) == before[0][1], "two of three"


def test_where_too_many_are_no_managers_nobody_is_waited_for(
    clusters: list[Cluster], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pause(seconds: float) -> None:
        raise AssertionError("they will not be others in a moment")

    monkeypatch.setattr(health.time, "sleep", no_pause)
    with pytest.raises(MadKVError, match="not clear whose managers these are"):
        cluster_of([server.address, clusters[0].managers])


def test_one_that_starts_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has found the others it does not know its cluster, nor would it answer anything else."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        cluster.start(0)
        until(lambda: cluster.call(0, codec.STATUS))
        first = cluster.managers.partition(",")[0]
        answers: list[Box] = []

        def hello(address: str) -> Box:
            answers.append(ask_hello(address))
            if len(answers) == 1:
                cluster.start(1)
                cluster.start(2)
                cluster.leader()
            return answers[-1]

        monkeypatch.setattr(health, "ask_hello", hello)
        monkeypatch.setattr(health, "LOOK_SECONDS_MAX", 120.0)
        assert cluster_of([first]) == cluster.status(0)["cluster"] != ""
        assert answers[0][b"cluster"] == b""


def test_one_that_turns_out_to_be_of_another_is_not_asked(
    clusters: list[Cluster], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was silent when all were asked, say."""
    before = states(clusters)
    manager = clusters[0].managers
    monkeypatch.setattr(command, "cluster_of", lambda managers: "c")
    assert command.replace_disk("s0.1", manager) == 1
    line = f"{manager} is a manager of cluster {before[0][1]}, and not of c as the others are"
    assert capsys.readouterr() == ("", f"madkv replace-disk: {line}\n")
    assert states(clusters) == before
