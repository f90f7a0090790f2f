"""Serve the page with made-up data whose every text would be markup, if the page let it."""

import json
import sys
from functools import partial
from typing import Any

from twisted.internet import reactor

from madkv.monitor.port import JSON, Answer, Site
from madkv.monitor.service import FILES, _file

EVIL = "<img src=x onerror=\"document.body.dataset.evil='yes'\"><script>document.body.dataset.evil='yes'</script>&amp;"
EVENTS = ("leader", "no leader", "lost", "back", "snapshot begun", "snapshot sent", "snapshot given up", EVIL)


def view() -> dict[str, Any]:
    """All fields of the page, with EVIL wherever a text may be."""
    node = {"node": EVIL, "here": True, "answers": True, "role": EVIL, "leader": EVIL, "lag": 1, "log_entries": 1}
    node |= {"applied": 1, "data_bytes": 1, "log_bytes": 1, "uptime": 1, "connections": 1, "version": EVIL}
    group = {"leader": EVIL, "term": 1, "owns": EVIL, "nodes": [node]}
    group |= {"reads_per_second": 1, "writes_per_second": 1, "reads_ms": [1, 2], "writes_ms": None}
    return {
        "here": EVIL,
        "at": 1000,
        "cluster": EVIL,
        "well": False,
        "ailments": [EVIL],
        "groups": [group | {"group": name} for name in ("m", "s0", EVIL)],
        "history": [{"at": 500, "rates": {"s0": [1, 2]}}],
        "events": [{"at": 500, "group": EVIL, "what": what, "node": EVIL, "by": EVIL, "term": 1} for what in EVENTS],
    }


async def _view() -> Answer:
    return Answer(JSON, json.dumps(view()).encode())


def main() -> None:
    network: Any = reactor
    routes = {path: _file(*file) for path, file in FILES.items()}
    port = network.listenTCP(0, Site(network, {**routes, b"/cluster.json": _view}), interface="127.0.0.1")
    network.callWhenRunning(partial(print, f"http://127.0.0.1:{port.getHost().port}/", flush=True))
    network.run()


if __name__ == "__main__":
    sys.exit(main())
