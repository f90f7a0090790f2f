"""What asks too much of a cluster: it does that to a real server, and what came of it is judged."""

import os
import resource

import attrs
import pytest

from madkv.client.blocking import BlockingClient
from madkv.limits import FILES_KEPT, NODE_MEMORY_BYTES
from madkv.testing import flood
from madkv.testing.cluster import ClusterError
from madkv.testing.flood import Attackers, Findings, idle_possible
from madkv.testing.flooding import Counts
from madkv.testing.transcript import Transcript
from tests.processes import ServerProcess

WELL = Findings([0.01] * 10, 1000.0, [0.02] * 5, 500.0, Counts(idle=10), {"s0.0": NODE_MEMORY_BYTES}, [])


@pytest.mark.parametrize(
    ("changed", "passes", "said"),
    [
        ({}, True, "  their share: 0.50 of before; bound: 0.5"),
        ({"rate": 490.0}, False, "  their share: 0.49 of before; bound: 0.5"),
        (
            {"most_bytes": {"m": 1, "s0.0": NODE_MEMORY_BYTES + 2**20}},
            False,
            "  memory of their own at most: m 0 MiB, s0.0 513 MiB; bound: 512 MiB",
        ),
        ({"elected": ["s0.0 1 to 2"]}, False, "  terms: s0.0 1 to 2"),
        ({"counts": Counts(idle=10, idle_closed=1)}, False, "  terms: none changed"),
    ],
)
def test_it_is_judged(changed: dict[str, object], passes: bool, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert attrs.evolve(WELL, **changed).judge(Transcript(None)) is passes
    assert said in capsys.readouterr().out.splitlines()


def test_as_many_idle_connections_as_the_machine_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, FILES_KEPT + 600))
    assert (idle_possible(10_000), idle_possible(20)) == (500, 20)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, resource.RLIM_INFINITY))
    assert idle_possible(10_000) == 10_000


def test_a_server_under_attack_and_a_client_beside_it() -> None:
    with ServerProcess() as server, BlockingClient(server.address) as client:
        with Attackers(server.address, [server.address], idle=20, half=6) as attackers:
            calls = 0
            while not (attackers.are_ready and calls >= 200):
                client.put(b"beside-it", b"%d" % calls)
                calls += 1
            counts = attackers.end()
        assert client.get(b"beside-it") == b"%d" % (calls - 1)
        assert attackers.idle == counts.idle == 20
        assert counts.storm > 0 and counts.idle_closed == counts.storm_closed == 0
    assert "Traceback" not in server.output


def test_attackers_that_reach_nobody_are_told_of() -> None:
    with Attackers("127.0.0.1:1", ["127.0.0.1:1"], idle=1, half=2) as attackers:
        os.waitid(os.P_PID, attackers._process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ClusterError, match=r"what should ask too much has ended: .*Connection refused"):
            _ = attackers.are_ready


def test_no_flood_with_tls(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flood.main(["tls=yes"])
    assert "who asks too much here speaks no TLS" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("words", [["rf=1"], ["seconds=0"], ["idle=0"], ["half=1"]])
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flood.main(words)
    why = "at least three replicas, a second, an idle connection and two half boxes"
    assert capsys.readouterr().err == f"./justw chaos::flood: error: {why} (see --help)\n"
