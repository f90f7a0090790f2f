"""What kills everything again and again: it passes where nothing is lost, and tells what is."""

import subprocess
import sys
from pathlib import Path

import pytest

from madkv.client.blocking import BlockingClient
from madkv.partitions import PartitionMap
from madkv.testing import catchup, killall
from madkv.testing.cluster import Cluster, ClusterError
from madkv.testing.killall import KillAll, Worker
from madkv.testing.transcript import Transcript
from tests.processes import ROOT, ServerProcess

SECONDS_MAX = 120
FORGETTING = PartitionMap(1, "", [b""], [0], [[("127.0.0.1", 1)]])


def test_a_small_cluster_is_killed_and_loses_nothing(tmp_path: Path) -> None:
    options = ["rounds=2", "rf=0", "partitions=2", "clients=2", f"history={tmp_path / 'history.jsonl'}"]
    command = [sys.executable, "-m", "madkv.testing.killall", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS_MAX)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "Kill-all result: PASSED"
    assert "acknowledged" in done.stdout
    assert (tmp_path / "history.jsonl").exists()


class Forgetful(BlockingClient):
    """A client of a store that answers a Swap with what was there before the last one, or loses what was put."""

    def swap(self, key: bytes, value: bytes) -> bytes | None:
        """Never what was there."""
        super().swap(key, value)
        return b"stale"

    def put(self, key: bytes, value: bytes) -> bool:
        """Acknowledged, and gone."""
        return False


@pytest.mark.parametrize("what", ["a swap", "a put"])
def test_what_is_lost_is_told(
    what: str, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killall, "BlockingClient", lambda managers, **more: Forgetful(server.address, **more))
    if what == "a swap":
        worker = Worker(0, "", 1)
        worker.start()
        worker.wait()
        worker.close()
        assert worker.wrong.startswith("client 0: nobody else writes ")
        assert worker.wrong.endswith("; a Swap found b'stale', and not None")
        return
    killing = KillAll(Cluster.local(tmp_path, 1, None), FORGETTING, 1, 1, Transcript(None))
    killing.workers[0].kept[b"0-once-0-1"] = b"value"
    with pytest.raises(ClusterError, match="1 acknowledged pairs are not there, such as 0-once-0-1 value"):
        killing._audit()
    killing.close()


def test_keys_of_the_catch_up_differ_and_lie_everywhere() -> None:
    keys = {catchup.key(number) for number in range(10_000)}
    assert len(keys) == 10_000
    assert len({key[:1] for key in keys}) == 62


def test_how_long_calls_took() -> None:
    assert catchup.told("calls", [0.001] * 999 + [0.25]) == (
        "  calls: 1,000 calls, median 1.0, 99 % 1.0, 99.9 % 1.0, longest 250 ms"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["writes=10"], "the log keeps so much: make 100,000 writes, or 64 MiB of them"),
        (["rf=1"], "at least three replicas, a client, and values of 10 bytes to 1 MiB"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        catchup.main(words)
    assert capsys.readouterr().err == f"./justw chaos::catchup: error: {line} (see --help)\n"
