"""The official YCSB program as the source of a benchmark's calls.

Its `basic` binding stores nothing: it prints each operation as one line on stdout, which is read here and becomes a
call of the line interface. A pipe holds back the program, so that it is never much ahead of the clients.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sortedcontainers import SortedList

from madkv.bench.workload import Call, WorkloadError, scan_call

STDERR_BYTES_SHOWN = 2000


class OfficialWorkload:
    """The same requests as `CoreWorkload` gives, made by the program in `home`; all clients share one stream."""

    def __init__(self, home: Path, text: str, properties: Mapping[str, str], clients: int) -> None:
        self._program = home / "bin" / "ycsb.sh"
        if not self._program.is_file():
            raise WorkloadError(f"the official YCSB is not at {home}: `./justw utils::ycsb` fetches it")
        if not shutil.which("java"):
            raise WorkloadError("the official YCSB needs `java`, which is not installed")
        self._text = text
        self._properties = dict(properties)
        operations = int(self._properties.get("operationcount", "1000")) * clients
        self._properties["operationcount"] = str(operations)
        self._stored = SortedList()
        self._known: set[bytes] = set()
        self._run: Iterator[Call] | None = None

    def load(self) -> Iterator[Call]:
        """The inserts of the load phase."""
        return self._calls("load")

    def calls(self, client: int) -> Iterator[Call]:
        """The calls of the run phase: the same iterator for each client."""
        if self._run is None:
            self._run = self._calls("run")
        return self._run

    def acknowledged(self, call: Call) -> None:
        """That `call`, an INSERT, was answered."""
        if call.key not in self._known:
            self._known.add(call.key)
            self._stored.add(call.key)

    def _calls(self, phase: str) -> Iterator[Call]:
        with tempfile.TemporaryDirectory(prefix="madkv-ycsb-") as directory:
            workload = Path(directory) / "workload"
            workload.write_text(self._text)
            stderr = Path(directory) / "stderr"
            command = [str(self._program), phase, "basic", "-P", str(workload), "-threads", "1"]
            for name, value in {**self._properties, "basicdb.verbose": "true"}.items():
                command += ["-p", f"{name}={value}"]
            with stderr.open("wb") as said:
                program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL)
            assert program.stdout
            try:
                for line in program.stdout:
                    call = self.translate(line)
                    if call is not None:
                        yield call
                if program.wait():
                    last = stderr.read_bytes()[-STDERR_BYTES_SHOWN:].decode(errors="backslashreplace")
                    raise WorkloadError(f"the official YCSB ended with status {program.returncode}; it said:\n{last}")
            finally:
                program.kill()
                program.wait()
                program.stdout.close()

    def translate(self, line: bytes) -> Call | None:
        """The call that a line of the program's output asks for; None for anything that is not an operation.

        Values lose their whitespace, which the line interface cannot carry; brackets and field names stay.
        """
        words = line.split(maxsplit=3)
        if len(words) < 4 or words[0] not in (b"READ", b"INSERT", b"UPDATE", b"SCAN"):
            return None
        kind, table, name, rest = words
        key = table + b"_" + name
        stored = key in self._known
        match kind:
            case b"READ":
                return Call("READ", b"GET " + key, key, stored, -1, [])
            case b"SCAN":
                return scan_call(self._stored, key, int(rest.split(maxsplit=1)[0]))
        value = b"".join(rest.split())
        verb = b"PUT" if kind == b"INSERT" else b"SWAP"
        return Call(kind.decode(), b"%b %b %b" % (verb, key, value), key, stored, -1, [])
