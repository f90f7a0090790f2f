"""A machine that is not well, under a cluster of real processes: disks full, read-only or failing, leaders that are
stopped, clocks that are set. One run of the tool does it all, and each test looks at what that saw of one case.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from madkv.limits import KEY_BYTES_MAX
from madkv.testing import disk, machine, preload
from madkv.testing.disk import SmallDisk
from madkv.testing.frozen import FrozenReads
from madkv.testing.preload import NoCompiler
from tests.processes import ROOT, ServerProcess
from tests.test_cluster_runs import environment, nothing_is_left
from tests.wrong_clients import just_script

SECONDS_MAX = 1200
"""It takes a tenth of that on two cores that have nothing else to do."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.CompletedProcess[str]]:
    directory = tmp_path_factory.mktemp("machine")
    words = ["clients=3", "seconds=3", "--just", just_script(directory, "nothing")]
    yield subprocess.run(
        [sys.executable, "-m", "madkv.testing.machine", *words],
        cwd=ROOT,
        env=environment(directory),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    assert nothing_is_left(directory)


def case(done: subprocess.CompletedProcess[str], name: str) -> str:
    """What was said in one case; skips the test where the machine lacks what it needs."""
    left_out = re.search(rf"^(Left out|Not decided): {name}: (.*)$", done.stdout, re.M)
    if left_out:
        pytest.skip(left_out[2])
    found = re.search(rf"\] case {name}: .*?(?=\] case |\d calls in )", done.stdout, re.S)
    assert found, done.stdout + done.stderr
    return found[0]


def test_all_answers_were_right_and_every_node_went_on(done: subprocess.CompletedProcess[str]) -> None:
    assert "for every key there is an order that explains all answers" in done.stdout, done.stdout + done.stderr
    if "\nNot decided: clock: " not in done.stdout:
        assert done.returncode == 0, done.stdout
        assert done.stdout.splitlines()[-1] == "Machine faults result: PASSED"


@pytest.mark.parametrize(
    ("group", "one", "program"), [("s0", "one", "madkv-server"), ("m", "a manager", "madkv-manager")]
)
@pytest.mark.parametrize(
    ("name", "what", "line", "line_at_start"),
    [
        (
            "full",
            "disk full",
            "No space left on device|Input/output error",
            "No space left on device|Input/output error",
        ),
        ("readonly", "disk read-only", "a commit failed: .*Read-only file system", "cannot use the directory"),
        ("sync", "syncs fail", "a commit failed: .*Input/output error", "a commit failed: .*Input/output error"),
    ],
)
def test_a_bad_disk(
    done: subprocess.CompletedProcess[str],
    name: str,
    what: str,
    line: str,
    line_at_start: str,
    group: str,
    one: str,
    program: str,
) -> None:
    """Of a follower and of a leader, each also started on it; and of one without which nothing can be acknowledged."""
    said = case(done, name)
    ended = re.findall(rf"\] ({group}\.\d) ended with status 1 after [\d.]+ s: {program}: (.*)", said)
    assert len(ended) == 5
    for _, how in (ended[0], ended[2], ended[4]):
        assert re.search(line, how), how
    for _, how in (ended[1], ended[3]):
        assert re.search(line_at_start, how), how
    follower, leader, needed = (
        re.search(rf"\] {what}, {one} that {role}: ({group}\.\d)", said) for role in ("follows", "leads", "is needed")
    )
    assert follower and leader and needed
    assert [node for node, _ in ended[:4]] == [follower[1]] * 2 + [leader[1]] * 2
    assert f"what was acknowledged is on {ended[4][0]} alone" in said
    assert len(re.findall(rf"\] over after [\d.]+ s: {group}\.", said)) == 3


@pytest.mark.parametrize("name", ["full", "readonly", "sync"])
def test_managers_go_on_without_the_one_whose_disk_is_bad(done: subprocess.CompletedProcess[str], name: str) -> None:
    """Without each of them a server registers on a new disk, as long as two are left; and with the third as well."""
    said = case(done, name).partition(", a manager that follows: ")[2]
    told = re.findall(r"\] (?:m\.\d (ended)|(over) after|s1\.\d has (registered) on a new disk)", said)
    one = ["ended", "registered", "ended", "over"]
    assert ["".join(words) for words in told] == [*one, *one, "registered", "ended", "registered", "over"]


def test_leaders_that_stand_still(done: subprocess.CompletedProcess[str]) -> None:
    """What they are asked meanwhile goes into the history like any other call, or is refused."""
    said = case(done, "frozen")
    found = re.search(r"\] 80 reads were sent .* (\d+) were answered, and refused: (.*)", said)
    assert found, said
    assert int(found[1]) + sum(map(int, re.findall(r"(\d+) \w+", found[2]))) == 80
    assert "lead meanwhile" in said and "] over after " in said


def test_clocks_that_are_set(done: subprocess.CompletedProcess[str]) -> None:
    said = case(done, "clock")
    assert said.count("terms: none changed") >= 2
    assert re.search(r"killed after clocks were set: (s0\.\d)\n.*\] s0\.\d leads\n.*\] over after .* \1\n", said)
    assert re.search(r"the clocks of m\.\d, s0\.\d, s1\.\d alone, which lead: an hour back", said)


def test_reads_of_a_server_that_stands_still() -> None:
    """Each is answered or refused when it goes on, or not at all when it does not."""
    with ServerProcess() as server:
        keys = [b"frozen", b"x" * (KEY_BYTES_MAX + 1)]
        with FrozenReads(server.address, keys, 7) as reads, FrozenReads(server.address, keys, 70) as others:
            server.signal(signal.SIGSTOP)
            for _ in range(3):
                reads.send()
            others.send()
            server.signal(signal.SIGCONT)
            answers = reads.answers()
            assert len(others.answers()) == 1
            others.send()
            server.signal(signal.SIGKILL)
            assert others.answers() == []
    assert [(each.client, each.key, each.result) for each in answers] == [(7, b"frozen", None), (9, b"frozen", None)]
    assert all(each.returned_ns is not None and each.called_ns < each.returned_ns for each in answers)
    assert reads.sent == 3 and dict(reads.refused) == {"InvalidArgument": 1}


@pytest.mark.parametrize(
    "word", ["cases=", "cases=full,none", "rf=1", "managers=1", "seconds=1", "clients=0", "tls=yes"]
)
def test_what_cannot_be_starts_nothing(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        machine.main([word])
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_a_machine_without_anything_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signals_as_before: None
) -> None:
    monkeypatch.setattr(disk, "why_impossible", lambda: "no disks")
    monkeypatch.setattr(preload, "compiler", lambda: None)
    assert machine.main(["cases=sync,full,readonly"]) == 1
    _, *left_out, why, verdict = capsys.readouterr().out.splitlines()
    assert left_out == [
        "Left out: full: no disks",
        "Left out: readonly: no disks",
        "Left out: sync: no C compiler (cc, gcc or clang) found: faults.c cannot be built",
    ]
    assert (why, verdict) == ("Nothing is left to do here.", "Machine faults result: FAILED")


def test_why_there_are_no_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "which", lambda tool, path: None if tool.endswith("fsck") else tool)
    assert disk.why_impossible() == "e2fsck is not here"
    monkeypatch.setattr(disk.shutil, "which", lambda tool, path: tool)
    monkeypatch.setattr(disk.os, "geteuid", lambda: 1000)
    assert disk.why_impossible() == "only root may mount a file as a disk"


def test_a_disk_is_made_only_where_nobody_else_sees_it(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        SmallDisk(tmp_path / "image", tmp_path / "disk")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    if preload.compiler() is None:
        pytest.skip("no C compiler (cc, gcc or clang) found")
    source = tmp_path / "wrong.c"
    source.write_text("int wrong(void) { return }\n")
    with pytest.raises(NoCompiler, match=r"cannot build wrong\.c: "):
        preload.build(source, tmp_path)
