"""The HTTP port of a daemon, beside it: what is asked where, and who asks the others for the page."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from madkv import __version__
from madkv.addresses import Address, is_loopback, show_address
from madkv.monitor.look import Look, Looker
from madkv.monitor.metrics import CONTENT_TYPE, Metrics
from madkv.monitor.port import JSON, Answer, Route, Site
from madkv.monitor.probes import not_ready, told, unhealthy
from madkv.monitor.view import View
from madkv.server.process import Inside, Process

LOOK_SECONDS = 0.9
"""How old the look at the cluster may be that a viewer gets; they ask once a second."""
PAGE = Path(__file__).with_name("page")
FILES = {
    b"/": ("index.html", b"text/html; charset=utf-8"),
    b"/page.css": ("page.css", b"text/css; charset=utf-8"),
    b"/icon.svg": ("icon.svg", b"image/svg+xml"),
    b"/page.js": ("page.js", b"text/javascript; charset=utf-8"),
}


def beside(process: Process, address: Address) -> MultiService:
    """The process and its HTTP port as one service; it is begun after the process, and ended before it."""
    both = MultiService()
    process.setServiceParent(both)
    MonitorService(process, address).setServiceParent(both)
    return both


class MonitorService(Service):
    """The port."""

    log = Logger()

    def __init__(self, process: Process, address: Address) -> None:
        self._process = process
        self._address = address
        self._port: IListeningPort | None = None
        self._site: Site | None = None

    def startService(self) -> None:
        """Listen; the process ends with one line when that is not possible."""
        super().startService()
        process, inside = self._process, self._process.inside()
        assert inside is not None, "the process has begun"
        node = self._node = inside.service.node.decode()
        self._metrics = Metrics(node, process.inside, process.reactor.seconds)
        self._watch = Watch(node, process)
        routes: dict[bytes, Route] = {path: _file(*file) for path, file in FILES.items()}
        routes |= {
            b"/cluster.json": self._cluster,
            b"/metrics": self._scrape,
            b"/healthz": partial(self._probe, unhealthy),
            b"/readyz": partial(self._probe, not_ready),
        }
        self._site = Site(process.reactor, routes)
        port = self._port = process.listen(self._address, self._site, None)
        self._metrics.start()
        where: Any = port.getHost()
        self._site.is_on_loopback = is_loopback(where.host)
        url = f"http://{show_address((where.host, where.port))}/"
        self.log.info("{node} shows itself and its cluster at {url}", node=node, url=url)

    async def _stop(self) -> None:
        if self._port is not None and self._site is not None:
            self._metrics.stop()
            await maybeDeferred(self._port.stopListening)
            self._site.close_connections()

    def stopService(self) -> Deferred[None]:
        """Close it."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _scrape(self) -> Answer:
        return Answer(CONTENT_TYPE, self._metrics.text())

    async def _probe(self, reasons_of: Callable[[Inside | None], list[str]]) -> Answer:
        inside = self._process.inside()
        reasons = reasons_of(inside)
        body = json.dumps(told(inside, self._node, reasons), indent=2).encode() + b"\n"
        return Answer(JSON, body, http.SERVICE_UNAVAILABLE if reasons else http.OK)

    async def _cluster(self) -> Answer:
        return Answer(JSON, await self._watch.seen())


class Watch:
    """Looks at the cluster as often as somebody asks, but once a second at the most, for all who ask together."""

    def __init__(self, node: str, process: Process) -> None:
        self._node = node
        self._process = process
        self._looker = Looker(process.tls_files)
        self._view = View(node)
        self._body = b""
        self._looked_at = float("-inf")
        self._waiting: list[Deferred[bytes]] | None = None  # for the look that is under way

    def seen(self) -> Deferred[bytes]:
        """How the cluster is, as JSON."""
        waiting: Deferred[bytes] = Deferred()
        if self._waiting is not None:
            self._waiting.append(waiting)
            return waiting
        if self._process.reactor.seconds() - self._looked_at < LOOK_SECONDS:
            return succeed(self._body)
        self._waiting = [waiting]
        self._looked_at = self._process.reactor.seconds()
        maybeDeferred(self._look).addCallback(self._told).addBoth(self._done)
        return waiting

    def _look(self) -> Deferred[Look]:
        inside, node, reactor = self._process.inside(), self._node, self._process.reactor
        own: dict[str, Any] = {"node": node, "role": "starting", "version": __version__}
        if inside is not None:
            own |= {**inside.service.counted(), **inside.service.status()}
        managers, servers = ((), ()) if inside is None else (inside.managers, inside.servers)
        pool = reactor.getThreadPool()
        return deferToThreadPool(reactor, pool, self._looker.look, node, own, managers, servers)

    def _told(self, look: Look) -> None:
        self._body = json.dumps(self._view.told(look)).encode()

    def _done(self, failure: Failure | None) -> None:
        waiting, self._waiting = self._waiting, None
        if failure is not None:
            self._looked_at = float("-inf")
        for each in waiting or ():
            if failure is None:
                each.callback(self._body)
            else:
                each.errback(failure)


def _file(name: str, content_type: bytes) -> Route:
    answer = Answer(content_type, (PAGE / name).read_bytes())

    async def get() -> Answer:
        return answer

    return get
