"""What a daemon logs, and how: from which level on, as text or as a JSON object in each line.

Twisted's own way is text of every level. Whoever asks for something else by `--log-level` or `--log-format` gets an
observer of this module, where twistd's would have written: to stdout, or to the file that its `--logfile` names.
"""

import json
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.application.service import IService, MultiService
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    textFileLogObserver,
)
from twisted.python import usage
from twisted.python.logfile import LogFile

LEVELS = tuple(level.name for level in LogLevel.iterconstants())
FORMATS = ("text", "json")
LEVEL, FORMAT = "info", "text"
"""Where nothing else is said."""
OPTIONS = [
    ["log-level", None, LEVEL, f"The least of what is logged: {', '.join(LEVELS)}."],
    ["log-format", None, FORMAT, "How lines of the log look: text, or json for an object in each."],
]
"""Of both daemons."""
FILE = "twistd.log"
"""Twistd's, in the background."""


def check_log_options(options: usage.Options) -> None:
    """Raises UsageError for what makes no sense, alone or beside twistd's own options."""
    for name, known in (("log-level", LEVELS), ("log-format", FORMATS)):
        if options[name] not in known:
            raise usage.UsageError(f"--{name}: {options[name]!r} is none of {', '.join(known)}")
    if _is_usual(options):
        return
    for name in ("syslog", "logger"):
        if _twistd(options).get(name):
            raise usage.UsageError(f"--log-level and --log-format do not go with twistd's --{name}")


def observer_of(options: usage.Options, node: str) -> ILogObserver | None:
    """What is to observe the log of the node of that name; None where twistd's own does as it is asked to."""
    if _is_usual(options):
        return None
    out = _out(_twistd(options))
    observer = json_observer(out, node) if options["log-format"] == "json" else textFileLogObserver(out)
    level = LogLevel.levelWithName(options["log-level"])
    return FilteringLogObserver(observer, [LogLevelFilterPredicate(defaultLogLevel=level)])


def observed(service: IService, observer: ILogObserver | None) -> IService:
    """The service, as the one of an application that logs by the observer, if there is one."""
    return service if observer is None else _Observed(service, observer)


class _Observed(MultiService):
    def __init__(self, service: IService, observer: ILogObserver) -> None:
        super().__init__()
        self._observer = observer
        service.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        """Twistd asks its application by what to log."""
        parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)


def json_observer(out: TextIO, node: str) -> FileLogObserver:
    """Writes each event as `line_of` makes it."""
    return FileLogObserver(out, lambda event: line_of(event, node))


def line_of(event: LogEvent, node: str) -> str:
    """An event as a line with a JSON object: `time` (ISO 8601, UTC), `level`, `node`, `source` (which class speaks),
    `message` (the text in full), `fields` (what the message was made of) and, of a failure, `traceback`."""
    time, level, failure = event.get("log_time"), event.get("log_level"), event.get("log_failure")
    facts: dict[str, Any] = {
        "time": None if time is None else datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds"),
        "level": LEVEL if level is None else level.name,
        "node": node,
        "source": str(event.get("log_namespace", "")),
        "message": formatEvent(event),
    }
    if fields := _fields(event):
        facts["fields"] = fields
    if failure is not None:
        facts["traceback"] = failure.getTraceback()
    return json.dumps(facts) + "\n"


def _fields(event: LogEvent) -> dict[str, Any]:
    """What the event's own message was made of. Those of Twisted's older events are of no use to anybody."""
    if "log_legacy" in event:
        return {}
    return {
        name: value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
        for name, value in event.items()
        if not name.startswith("log_")
    }


def _is_usual(options: usage.Options) -> bool:
    return (options["log-level"], options["log-format"]) == (LEVEL, FORMAT)


def _twistd(options: usage.Options) -> Mapping[str, Any]:
    """The options that come before the daemon's name."""
    parent: Mapping[str, Any] | None = options.parent
    return {} if parent is None else parent


def _out(twistd: Mapping[str, Any]) -> TextIO:
    """Where twistd would log to; SIGUSR1 begins another file, as there."""
    name = twistd.get("logfile")
    if twistd.get("nodaemon") and name in (None, "", "-"):
        return sys.stdout
    file: Any = LogFile.fromFullPath(name or FILE)

    def rotate(number: int, frame: object) -> None:
        from twisted.internet import reactor

        call: Any = reactor
        call.callFromThread(file.rotate)

    signal.signal(signal.SIGUSR1, rotate)
    out: TextIO = file
    return out
