"""What a measurement was made on, and the record of which run made which log."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import madkv
from madkv.testing.checkout import revision

RECORD = "runs.json"
"""The file beside the logs: the machine, and for each log the form of the run that made it and a digest of the log."""
BY_HAND = "by hand"
FORMS = ("full", "quick", "full over TLS", "quick over TLS", BY_HAND)


def machine_facts() -> dict[str, str]:
    """The machine and the programs on it, in words."""
    return {
        "processor": _processor(),
        "cores": f"{os.cpu_count()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "twisted": importlib.metadata.version("twisted"),
        "madkv": madkv.__version__,
        "revision": revision(),
    }


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def read_record(logs: Path) -> dict[str, Any]:
    """The record beside the logs; an empty one when there is none, or when it cannot be read."""
    try:
        record = json.loads((logs / RECORD).read_text())
    except (OSError, ValueError):
        record = {}
    return record if isinstance(record, dict) and isinstance(record.get("runs"), dict) else {"machine": {}, "runs": {}}


def form_name(quick: bool, tls: bool) -> str:
    """The form of a run that is recorded."""
    return ("quick" if quick else "full") + (" over TLS" if tls else "")


def note_run(logs: Path, name: str, log: Path, form: str, seconds: float) -> None:
    """Record that the run `name` has just written `log`."""
    record = read_record(logs)
    record["machine"] = machine_facts()
    record["runs"][name] = {
        "form": form,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "log": _digest(log),
    }
    scratch = logs / f"{RECORD}.new"
    scratch.write_text(json.dumps(record, indent=2) + "\n")
    scratch.replace(logs / RECORD)


def form_of(record: dict[str, Any], name: str, log: Path) -> str:
    """How the log came about, one of FORMS; BY_HAND when it is not the one that was recorded."""
    run = record["runs"].get(name)
    if not run or not log.exists() or run.get("log") != _digest(log):
        return BY_HAND
    return str(run["form"])


def _digest(log: Path) -> str:
    return hashlib.sha256(log.read_bytes()).hexdigest()
