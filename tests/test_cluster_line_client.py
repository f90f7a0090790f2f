"""The line client against a cluster: answers, what it says when it waits, and how it ends."""

import subprocess
import sys
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from madkv.addresses import show_address
from tests.cluster_in_process import Cluster
from tests.line_client import LineClient, run
from tests.processes import ROOT, ServerProcess

TWO: Any = [b"", b"m"], [0, 1]


def run_on(managers: str, data: bytes) -> Deferred[Any]:
    return deferToThread(run, managers, data, "--managers")


@pytest_twisted.ensureDeferred
async def test_answers_from_every_partition() -> None:
    asked = b"PUT a 1\nSWAP z 2\nSWAP z 3\nGET a\nDELETE b\nSCAN a z\nSCAN z a\nSTOP\n"
    answers = (
        b"PUT a not_found\nSWAP z null\nSWAP z 2\nGET a 1\nDELETE b not_found\n"
        b"SCAN a z BEGIN\n  a 1\n  z 3\nSCAN END\nSCAN z a BEGIN\nSCAN END\nSTOP\n"
    )
    async with Cluster(*TWO, replicas=3, managers=3) as cluster:
        cluster.groups[1].leader = 2
        done = await run_on(cluster.managers_text, asked)
        assert (done.returncode, done.stdout, done.stderr) == (0, answers, b"")
        assert [group.sessions_closed for group in cluster.groups] == [1, 1]
        command = [sys.executable, "-m", "madkv.cli", "client", f"--managers={cluster.managers_text}"]
        done = await deferToThread(subprocess.run, command, input=b"GET z\n", capture_output=True, cwd=ROOT, timeout=20)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"GET z 3\n", b"")


@pytest_twisted.ensureDeferred
async def test_it_says_whom_it_waits_for() -> None:
    async with Cluster(*TWO, replicas=3) as cluster:
        known = cluster.managers[0].map
        cluster.managers[0].map = None
        with LineClient(cluster.managers_text, "--managers") as client:
            client.send(b"GET z")
            await deferToThread(client.wait_for_stderr, b"\n")
            missing = "waiting for s0.1 (3 of 4 registered)"
            expected = f"madkv: waiting for the manager at {cluster.managers_text}: {missing}\n".encode()
            assert client.stderr() == expected
            cluster.groups[1].leader = None
            cluster.managers[0].map = known
            where = show_address(cluster.addresses[1][2])
            await deferToThread(client.wait_for_stderr, b"does not lead\n")
            expected += f"madkv: waiting for s1.2 at {where}: replica 2 does not lead\n".encode()
            assert client.stderr() == expected
            cluster.groups[1].leader = 0
            assert await deferToThread(client.read_line) == b"GET z null"
            client.send(b"STOP")
            assert await deferToThread(client.wait) == 0
            assert client.stderr() == expected


@pytest.mark.parametrize("data", [b"PUT k v\nGET k\n", b"SCAN a z\n"])
@pytest_twisted.ensureDeferred
async def test_what_is_no_manager_is_final(server: ServerProcess, data: bytes) -> None:
    async with Cluster(*TWO) as cluster:
        for address, option, line in (
            (server.address, "--managers", b"is a server without managers: give the client its address as --server"),
            (cluster.managers_text, "--server", b"is manager m: give the client the managers' addresses (--managers)"),
        ):
            done = await deferToThread(run, address, data, option)
            assert (done.returncode, done.stdout) == (1, b"")
            assert done.stderr == b"madkv: %b %b\n" % (address.encode(), line)
