"""What servers and managers share as processes under twistd: ports, signals, and how they end.

A process ends in one of three ways. Asked to (SIGTERM, Ctrl-C): in good order, within STOP_SECONDS_MAX, status 0. By a
set-up that does not fit: one line on stderr, status 1, nothing changed. By a failure, such as a commit that failed: one
line, status 1, at once and without another word to anybody, since what it would say may be wrong.
"""

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from madkv.addresses import Address, is_loopback, show_address
from madkv.errors import InvalidArgument, MadKVError
from madkv.limits import CONNECTIONS_MAX, CONNECTIONS_MIN, FILES_KEPT, TLS_CONNECTIONS_MAX
from madkv.server.replica import Replica
from madkv.tls import OPTIONS, ROLES, TLSFiles, tls_files
from madkv.wire.answering import AnsweringFactory

if TYPE_CHECKING:  # at run time OpenSSL comes in only where there is TLS
    from madkv.wire.tls import Credentials

ANYBODY = frozenset(ROLES)
TLS_PARAMETERS = [
    ["tls-ca", None, None, "PEM file with the CA whose certificates count: with it, all connections are TLS."],
    ["tls-cert", None, None, "PEM file with the certificate of this node."],
    ["tls-key", None, None, "PEM file with the key to it."],
]
"""Of both daemons; each also by a variable of the environment, MADKV_TLS_CA and so on."""
STOP_SECONDS_MAX = 4.0
"""How long ending in good order may take before the rest is left undone: whatever counts is on disk."""
LISTEN_BACKLOG = 1024
EXIT_FAILED = 1


@attrs.frozen
class Inside:
    """What a process is made of by now, for whoever shows how it is."""

    service: AnsweringFactory
    replica: Replica | None = None
    """None until it may begin."""
    storage: Any = None
    """The replica's, if it has a disk."""
    links: Any = None
    """Its PeerLinks, if it has peers."""
    managers: tuple[str, ...] = ()
    """Where the managers are; empty where that is not known, and without any."""
    servers: tuple[str, ...] = ()
    """The same of the servers, as a manager knows it."""


class DaemonOptions(usage.Options):
    """Base of what the two daemons take: a mistake is one line, where twistd would print its whole help before it."""

    program = ""
    """What that line begins with."""

    def parseArgs(self, *words: str) -> None:
        """There are none."""
        if words:
            raise usage.UsageError(f"{words[0]!r} is no option: those begin with --")

    def parseOptions(self, options: Any = None) -> None:
        """Ends the process where twistd has called; raises UsageError else."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            if self.parent is None:
                raise
            sys.exit(f"{self.program}: {error} (see --help)")


class Process(Service):
    """Base of the two daemons: subclasses `open` everything that touches the world, and `close` it."""

    log = Logger()
    certified_as = ""
    """Whom its certificate must be of, if not of `node`."""

    def __init__(self, program: str, node: str, reactor: Any, tls: TLSFiles | None = None) -> None:
        """`program` is what its complaints begin with, `node` who it is."""
        self.program = program
        self.node = node
        self.reactor = reactor
        self.tls_files = tls
        """Where TLS's files are; None without TLS."""
        self.tls: Credentials | None = None
        """What all its connections are made with, from `open` on; None without TLS."""
        self.connections_max = CONNECTIONS_MAX if tls is None else TLS_CONNECTIONS_MAX
        """Connections of clients; fewer once it is known that the system allows no more."""
        self._is_ending = False
        self._is_warned = False

    # --- For subclasses ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin. Whatever is not to be had ends the process by `refuse`."""
        raise AssertionError("subclasses open")

    async def close(self) -> None:
        """End in good order; cut off after STOP_SECONDS_MAX."""
        raise AssertionError("subclasses close")

    def inside(self) -> Inside | None:
        """What it is made of by now; None before it has begun."""
        raise AssertionError("subclasses say what they are made of")

    def listen(self, address: Address, factory: Any, roles: frozenset[str] | None = ANYBODY) -> IListeningPort:
        """Listen, or end the process with one line. With TLS, only certificates of these `roles` are taken; None: this
        port never has TLS, and whoever asks for it knows."""
        host, port = address
        if roles is None:
            pass
        elif self.tls is not None:
            factory = self.tls.listening(factory, self.reactor, roles)
        elif not is_loopback(host):
            self._warn()
        try:
            listening: IListeningPort = self.reactor.listenTCP(port, factory, LISTEN_BACKLOG, host)
        except CannotListenError as error:
            if _is_in_background():
                raise  # in the background: twistd tells whoever started it, and exits with status 1
            self.refuse(f"cannot listen on {show_address(address)}: {error.socketError}")
        return listening

    def _warn(self) -> None:
        if not self._is_warned:
            self._is_warned = True
            self.log.warn(
                "{node} can be reached from other machines, by anybody and without TLS: "
                "see --tls-ca, --tls-cert and --tls-key",
                node=self.node,
            )

    def refuse(self, why: str) -> NoReturn:
        """End before anything has begun: from `open` only."""
        self._complain(why)
        raise SystemExit(EXIT_FAILED)

    def fail(self, error: Exception) -> None:
        """End now, from anywhere, with a line and status 1, saying nothing more to anybody.

        What is acknowledged stands; nobody may be told anything by a replica that is not what it thinks. An error that
        is none of the world's is a bug, and leaves a traceback too.
        """
        if isinstance(error, MadKVError):
            self._complain(str(error))
        else:
            self.log.failure("a failure that was not foreseen", Failure(error))
            self._complain(f"{self.node} cannot go on: {type(error).__name__}: {error}")
        # Not by the reactor: it would first let go of connections in good order, and run what waits for its turn.
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                try:
                    stream.flush()
                except OSError:
                    pass
        os._exit(EXIT_FAILED)

    def _complain(self, why: str) -> None:
        """One line: on stderr in the foreground, in the log in the background.

        In the foreground twistd has taken sys.stderr for its log by now, which would put a date before it.
        """
        try:
            if _is_in_background():
                self.log.critical("{why}", why=why)
            else:
                print(f"{self.program}: {why}", file=sys.__stderr__, flush=True)
        except OSError:
            pass

    # --- What twistd calls ------------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Open everything."""
        super().startService()
        # As DaemonReactor does by itself.
        assert not self.reactor.getDelayedCalls()
        self.reactor.seconds = time.monotonic
        self._fit_into_file_limit()
        self._take_signals()
        self._read_certificates()
        self.open()

    def _read_certificates(self) -> None:
        if self.tls_files is not None:
            from madkv.wire.tls import Credentials

            try:
                self.tls = Credentials(self.tls_files, self.certified_as or self.node)
            except MadKVError as error:
                self.refuse(str(error))

    def _reload_certificates(self) -> None:
        """Take up new ones for the connections from now on; those that there are stay as they are."""
        assert self.tls is not None
        try:
            self.tls.reload()
        except MadKVError as error:
            self.log.error("the certificates stay as they were: {why}", why=str(error))
        else:
            self.log.info("took up the certificates anew")

    def stopService(self) -> Deferred[None]:
        """Close everything, in bounded time."""
        super().stopService()
        closing: Deferred[None] = Deferred.fromCoroutine(self.close())
        closing.addTimeout(STOP_SECONDS_MAX, self.reactor)
        closing.addErrback(lambda failure: self.log.failure("not ended in good order", failure))
        return closing

    def _fit_into_file_limit(self) -> None:
        """A connection is a file: allow as many as this process may have, and take no more than go into that."""
        soft, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        usual = self.connections_max
        if files == resource.RLIM_INFINITY or files >= usual + FILES_KEPT:
            return
        self.connections_max = files - FILES_KEPT
        if self.connections_max < CONNECTIONS_MIN:
            self.refuse(
                f"{files:,} open files are too few, {CONNECTIONS_MIN + FILES_KEPT:,} are needed: see ulimit -Hn"
            )
        self.log.warn(
            "{files:,} open files allow {these:,} connections of clients, not {usual:,}: see ulimit -Hn",
            files=files,
            these=self.connections_max,
            usual=usual,
        )

    def _take_signals(self) -> None:
        """Exit with status 0 when asked to end, and in good order; twistd by itself would end by the signal.

        On a thread of its own, which never waits for anything else: Python runs handlers on the main thread, and that
        may hang in the store. A SIGINT that was ignored when the process began stays so: it is in the background of
        a script. With TLS there is SIGHUP, too: new certificates are to be taken up.
        """
        numbers = {signal.SIGTERM, signal.SIGINT}
        if self.tls_files is not None:
            numbers.add(signal.SIGHUP)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            numbers.discard(signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=self._wait_for_signals, args=(numbers,), name="madkv-signals", daemon=True).start()

    def _wait_for_signals(self, numbers: set[signal.Signals]) -> NoReturn:
        while True:
            if signal.sigwait(numbers) == signal.SIGHUP:
                self.reactor.callFromThread(self._reload_certificates)
                continue
            # The reactor waits for its threads at the end, and one may hang with a disk, or with the look-up of a name.
            last_resort = threading.Timer(STOP_SECONDS_MAX + 0.5, os._exit, [0])
            last_resort.daemon = True
            last_resort.start()
            self.reactor.callFromThread(self._end)

    def _end(self) -> None:
        if self.running and not self._is_ending:  # asked a second time changes nothing
            self._is_ending = True
            self.log.info("asked to end")
            self.reactor.stop()


def _is_in_background() -> bool:
    return os.fstat(2).st_rdev == os.stat(os.devnull).st_rdev


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Reads an option that is a whole number between two bounds; InvalidArgument with a line that says so."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 9 and least <= int(text) <= most):
            raise InvalidArgument(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return read


@contextmanager
def usage_errors(option: str) -> Iterator[None]:
    """What is wrong with an option becomes twistd's one line and the usage text."""
    try:
        yield
    except MadKVError as error:
        raise usage.UsageError(f"--{option}: {error}") from None


def take_tls(options: usage.Options) -> None:
    """Make the TLSFiles, or None, that TLS_PARAMETERS stand for `options["tls"]`."""
    try:
        ca, certificate, key = (options[name] for name in OPTIONS)
        files = tls_files(ca, certificate, key, os.environ)
    except MadKVError as error:
        raise usage.UsageError(str(error)) from None
    if files is not None:
        files = TLSFiles(*map(os.path.abspath, (files.ca, files.certificate, files.key)))
    options["tls"] = files
