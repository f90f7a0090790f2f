"""The page of a cluster with TLS: a node asks the others with its own certificate; the page is plain HTTP."""

from pathlib import Path

import pytest

from madkv.testing.cluster import Cluster
from madkv.tls import VARIABLES
from tests.monitor.daemons import get, get_json


def test_a_cluster_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster.local(tmp_path, 1, 3, 1, tls=True, http=True) as cluster:
        for name in ("m.0", "s0.1"):
            node = cluster.shape.node(name)
            assert cluster.terminate(node)
            with monkeypatch.context() as without:
                for variable in VARIABLES:
                    without.delenv(variable)
                cluster.start(node)
            cluster.wait_until_caught_up(node)
            url = cluster.shape.pages()[node]
            assert url.startswith("http://")
            _, view = get_json(url, "/cluster.json")
            assert view["well"], view["ailments"]
            assert [each["answers"] for group in view["groups"] for each in group["nodes"]] == [True] * 4
            assert get(url, "/healthz")[0] == 200
