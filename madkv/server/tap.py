"""`twistd madkv-server`: options, and the wiring of one server."""

import os
import resource
import signal
import sys
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python import usage

from madkv.addresses import Address, parse_address, show_address
from madkv.errors import MadKVError
from madkv.server.service import ServerFactory
from madkv.server.solo import SoloReplica
from madkv.storage.memory import MemoryStore

BOOT_BYTES = 16
LISTEN_BACKLOG = 1024


class Options(usage.Options):
    """What the command line says."""

    synopsis = "[options]"
    longdesc = "A MadKV server. Without a manager it is a single server that keeps its pairs in memory."
    optParameters = [
        ["listen", "l", "0.0.0.0:3777", "HOST:PORT to listen on for clients."],
    ]

    def postOptions(self) -> None:
        """Check what was given, so that a mistake is one line and a usage text."""
        try:
            self["listen"] = parse_address(self["listen"], port_min=0)
        except MadKVError as error:
            raise usage.UsageError(f"--listen: {error}") from None


class ServerService(Service):
    """One server process: everything that touches the world is opened in startService and closed in stopService."""

    log = Logger()

    def __init__(self, listen: Address, reactor: Any) -> None:
        self._listen = listen
        self._reactor = reactor
        self._port: IListeningPort | None = None
        self._factory: ServerFactory | None = None

    def startService(self) -> None:
        """Listen. When that fails: one line on stderr and exit status 1."""
        super().startService()
        _raise_file_limit()
        host, port = self._listen
        boot = os.urandom(BOOT_BYTES).hex().encode()
        self._factory = ServerFactory(self._reactor, SoloReplica(MemoryStore()), node=b"s0", boot=boot)
        try:
            self._port = self._reactor.listenTCP(port, self._factory, LISTEN_BACKLOG, host)
        except CannotListenError as error:
            if os.fstat(2).st_rdev == os.stat(os.devnull).st_rdev:
                raise  # in the background: twistd tells whoever started it, and exits with status 1
            # In the foreground it would show a traceback, and has taken sys.stderr for its log by now.
            print(
                f"madkv-server: cannot listen on {show_address(self._listen)}: {error.socketError}", file=sys.__stderr__
            )
            raise SystemExit(1) from None
        assert self._port is not None
        where: Any = self._port.getHost()
        self.log.info("serving clients on {address}", address=show_address((where.host, where.port)))
        self._reactor.callWhenRunning(self._take_sigterm)

    def _take_sigterm(self) -> None:
        """Exit with status 0 when asked to end, and in good order; twistd by itself would end by the signal."""

        def asked_to_end(*_: object) -> None:
            self._reactor.callFromThread(self._end)

        signal.signal(signal.SIGTERM, asked_to_end)

    def _end(self) -> None:
        if self.running:  # a second SIGTERM changes nothing
            self.log.info("asked to end")
            self._reactor.stop()

    async def _stop(self) -> None:
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        if self._factory is not None:
            for connection in list(self._factory.connections):
                connection.transport.abortConnection()

    def stopService(self) -> Deferred[None]:
        """Close the port and every connection."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


def _raise_file_limit() -> None:
    """A connection is a file descriptor: allow as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def makeService(options: Options) -> ServerService:
    """The server that the options describe; nothing is opened yet."""
    from twisted.internet import reactor

    return ServerService(options["listen"], reactor)
