"""What daemons log, by `--log-level` and `--log-format`: real processes, and the form of a line."""

import json
import subprocess
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from madkv.server.logs import json_observer, line_of
from tests.processes import ROOT, Process, server_command

SECONDS_MAX = 20.0
MANAGER = ("madkv-manager", "--servers", "127.0.0.1:1", "--man-port", "2", "--backer", "nowhere")


def daemon(*options: str, twistd: tuple[str, ...] = ()) -> list[str]:
    """A server in memory on a free port, with these options of it and of twistd."""
    command = server_command("--listen", "127.0.0.1:0", *options)
    at = command.index("madkv-server")
    return [*command[:at], *twistd, *command[at:]]


def logged(*options: str, twistd: tuple[str, ...] = (), port: int = 0) -> list[str]:
    """All lines on stdout of a server that is asked to end as soon as it listens."""
    with Process(daemon(*options, twistd=twistd)) as server:
        server.wait_for("serving clients on")
        assert server.stop() == 0
        assert server.lines["stderr"] == []
        return server.lines["stdout"]


def refused(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 1
    return done.stderr + done.stdout


def test_json_is_an_object_in_each_line() -> None:
    objects = [json.loads(line) for line in logged("--log-format", "json")]
    for each in objects:
        assert each["level"] == "info" and each["node"] == "s0"
        assert abs((datetime.now(UTC) - datetime.fromisoformat(each["time"])).total_seconds()) < 60
    (serving,) = (each for each in objects if each["message"].startswith("serving clients on "))
    assert serving["source"] == "madkv.server.tap.ServerService"
    assert serving["message"] == f"serving clients on {serving['fields']['address']}"
    assert objects[-1]["message"] == "Server Shut Down."


def test_text_from_a_level_on(tmp_path: Path) -> None:
    """Into a file, as twistd's own `--logfile` names it."""
    log = tmp_path / "log"
    level = ("--log-level", "warn")
    with Process(daemon(*level, "--log-format", "json", twistd=("--logfile", str(log)))) as server:
        while not log.exists():
            assert server.is_running
        server.stop()
    assert log.read_text() == "", "nothing was wrong"
    with Process(daemon("--log-level", "debug", twistd=("--logfile", str(log)))) as server:
        while "serving clients on" not in log.read_text():
            assert server.is_running
        server.stop()
        assert server.output == ""
    assert "[madkv.server.tap.ServerService#info] asked to end" in log.read_text()


def test_what_is_wrong_is_a_warning(tmp_path: Path) -> None:
    words = (
        "--managers",
        "127.0.0.1:1",
        "--backer",
        str(tmp_path / "backer"),
        "--api-port",
        "19",
        "--log-level",
        "warn",
    )
    command = server_command(*words)
    at = command.index("--api-port") + 1
    command[at] = str(_free_port())
    with Process(command) as server:
        server.wait_for(r"Registration#warn\] waiting for the manager at 127\.0\.0\.1:1: ")
        assert not any("#info]" in line for line in server.lines["stdout"])


def _free_port() -> int:
    from madkv.testing.ports import free_ports

    return free_ports(1)[0]


@pytest.mark.parametrize("program", ["madkv-server", "madkv-manager"])
def test_words_that_make_no_sense(program: str) -> None:
    beginning = server_command()[:-1]
    rest = (program,) if program == "madkv-server" else MANAGER
    assert "--log-level: 'loud' is none of debug, info, warn, error, critical" in refused(
        *beginning, *rest, "--log-level", "loud"
    )
    assert "--log-format: 'xml' is none of text, json" in refused(*beginning, *rest, "--log-format", "xml")
    assert "do not go with twistd's --syslog" in refused(*beginning, "--syslog", *rest, "--log-format", "json")


class Events:
    """A logger whose events are kept."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.log = Logger("madkv.here", observer=self.events.append)


def test_the_form_of_a_line() -> None:
    heard = Events()
    heard.log.warn("no connection to {peer}: {why}", peer="s0.1", why=OSError("gone\nfor good"), port=7, ratio=0.5)
    (event,) = heard.events
    line = line_of(event, "s0.0")
    assert line.count("\n") == 1 and line.endswith("}\n")
    facts = json.loads(line)
    assert facts.pop("time") == datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds")
    assert facts == {
        "level": "warn",
        "node": "s0.0",
        "source": "madkv.here",
        "message": "no connection to s0.1: gone\nfor good",
        "fields": {"peer": "s0.1", "why": "gone\nfor good", "port": 7, "ratio": 0.5},
    }


def test_a_failure_has_its_traceback() -> None:
    heard = Events()
    try:
        raise RuntimeError("a mistake")
    except RuntimeError:
        heard.log.failure("what was not foreseen", Failure())
    facts = json.loads(line_of(heard.events[0], "m.1"))
    assert (facts["level"], facts["message"]) == ("critical", "what was not foreseen")
    assert "RuntimeError: a mistake" in facts["traceback"] and "fields" not in facts


def test_an_event_that_cannot_be_formatted_is_a_line_all_the_same() -> None:
    out = StringIO()
    observe = json_observer(out, "s0")
    observe({"log_format": "{nothing.there}", "log_level": LogLevel.info, "nothing": object()})
    observe({})
    first, second = map(json.loads, out.getvalue().splitlines())
    assert "Unable to format event" in first["message"] and first["time"] is None
    assert (second["message"], second["level"]) == ("", "info")
