"""YCSB's CoreWorkload as calls of the line interface, from YCSB's own property files.

Theory of operation. A `CoreWorkload` holds what all clients of one benchmark share: the properties, the key names, the
insert counter and which records are known to be stored. `load` gives the inserts of the load phase, `calls` one
client's operations of the run phase; both are iterators that make one call at a time, from what was acknowledged by
then. The runner tells `acknowledged` of each finished insert, and asks `fault` whether an answer can be right.

YCSB's operations become calls as the well-known drivers translate them: READ is GET, INSERT is PUT of a whole record,
UPDATE is SWAP of the one field that is written, a read-modify-write is a READ and then an UPDATE. The line interface's
SCAN names its end rather than a count, so the end is the key of the last of the records asked for, among those known to
be stored. A record is its fields `field0=...field1=...` without anything between them.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

from sortedcontainers import SortedList

from madkv.bench.generators import AcknowledgedCounter, ScrambledZipfian, SkewedLatest, fnv_hash_64, length, uniform
from madkv.testing.options import whole

VALUE_TEXT_BYTES = 1 << 20
"""Field texts are slices of one random text of this length (and one field more), cut at random places."""
VALUE_CHARACTERS = bytes(range(ord("!"), 0x7F + 1))
"""Printable ASCII from `!` to `~`, and DEL: what YCSB's own values hold, less the space."""

DEFAULTS = {
    "table": "usertable",
    "recordcount": "1000",
    "operationcount": "1000",
    "fieldcount": "10",
    "fieldlength": "100",
    "fieldlengthdistribution": "constant",
    "fieldnameprefix": "field",
    "readallfields": "true",
    "writeallfields": "false",
    "readproportion": "0.95",
    "updateproportion": "0.05",
    "insertproportion": "0",
    "scanproportion": "0",
    "readmodifywriteproportion": "0",
    "requestdistribution": "uniform",
    "minscanlength": "1",
    "maxscanlength": "1000",
    "scanlengthdistribution": "uniform",
    "insertorder": "hashed",
    "zeropadding": "1",
}
"""The properties that are understood, and what CoreWorkload's documentation says they are when they are not set."""


class WorkloadError(ValueError):
    """A workload that cannot be run: no such file, or a property that makes no sense."""


class Call(NamedTuple):
    """One call of the line interface, and what is needed to judge its answer."""

    kind: str
    """INSERT, READ, UPDATE or SCAN."""
    line: bytes
    key: bytes
    """The key, for a SCAN the first."""
    stored: bool
    """Whether the key was known to be stored when the call was made."""
    number: int
    """An INSERT's record number; otherwise -1."""
    records: list[bytes]
    """A SCAN's range held these keys when the call was made; more may have been added since."""


def read_properties(text: str) -> dict[str, str]:
    """What a Java property file sets: `name=value` or `name: value` a line; `#` and `!` begin comments."""
    properties = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in "#!":
            continue
        cut = min((at for at in (line.find("="), line.find(":")) if at >= 0), default=-1)
        if cut < 1:
            raise WorkloadError(f"not a property: {line!r} (expected name=value)")
        properties[line[:cut].strip()] = line[cut + 1 :].strip()
    return properties


def workload_text(name: str) -> str:
    """The property file of workload `a` to `f`, or at a path."""
    shipped = resources.files("madkv.bench") / "workloads" / f"workload{name}"
    if len(name) == 1 and shipped.is_file():
        return shipped.read_text()
    if Path(name).is_file():
        text = Path(name).read_text(errors="replace")
        if not DEFAULTS.keys() & read_properties(text).keys():
            raise WorkloadError(f"{name} is no YCSB property file: it sets nothing that is known here")
        return text
    raise WorkloadError(f"no workload {name!r}: give a letter from a to f, or the path of a YCSB property file")


class CoreWorkload:
    """One benchmark's requests. `clients` is how many streams it makes; the same seed gives the same streams."""

    def __init__(self, properties: Mapping[str, str], seed: int = 0, clients: int = 1) -> None:
        self._set = {**DEFAULTS, **properties}
        self._seed = seed
        self.record_count = self._number("recordcount", 1)
        self.operation_count = self._number("operationcount", 0)
        """Operations of each client; a read-modify-write is one of them and makes two calls."""
        self._field_count = self._number("fieldcount", 1)
        self._field_length = self._number("fieldlength", 1)
        self._write_all_fields = self._flag("writeallfields")
        self._flag("readallfields")  # the line interface reads whole values in either case
        self._prefix = f"{self._set['table']}_user".encode()
        self._padding = self._number("zeropadding", 0)
        self._hashed = self._choice("insertorder", ("hashed", "ordered")) == "hashed"
        self._distribution = self._choice("requestdistribution", ("uniform", "zipfian", "latest"))
        self._scan_bounds = self._number("minscanlength", 1), self._number("maxscanlength", 1)
        if self._scan_bounds[0] > self._scan_bounds[1]:
            raise WorkloadError("minscanlength is greater than maxscanlength")
        for name in ("fieldlengthdistribution", "scanlengthdistribution"):
            self._choice(name, ("constant", "uniform", "zipfian"))
        self._proportions = {
            kind: self._proportion(f"{kind}proportion")
            for kind in ("read", "update", "insert", "scan", "readmodifywrite")
        }
        if not sum(self._proportions.values()):
            raise WorkloadError("all proportions are zero: there is nothing to do")
        self._insert_share = self._proportions["insert"] / sum(self._proportions.values())
        self._expected_inserts = int(self.operation_count * clients * self._insert_share * 2)
        """Zipfian requests spread over the records still to come too, twice as many as expected: YCSB's own margin."""

        names = [self._set["fieldnameprefix"].encode() + b"%d=" % field for field in range(self._field_count)]
        self._field_names = names
        table = bytes(VALUE_CHARACTERS[octet % len(VALUE_CHARACTERS)] for octet in range(256))
        self._text = Random(f"{seed}/values").randbytes(VALUE_TEXT_BYTES + self._field_length).translate(table)
        self._inserts = AcknowledgedCounter(self.record_count)
        self._keys: list[bytes] = []
        self._sorted: SortedList | None = SortedList() if self._proportions["scan"] else None

    def _number(self, name: str, least: int) -> int:
        try:
            number = whole(self._set[name])
        except ArgumentTypeError:
            raise WorkloadError(f"{name} is not a whole number: {self._set[name]!r}") from None
        if number < least:
            raise WorkloadError(f"{name} is {number}, less than {least}")
        return number

    def _flag(self, name: str) -> bool:
        return self._choice(name, ("true", "false")) == "true"

    def _choice(self, name: str, known: tuple[str, ...]) -> str:
        if self._set[name] not in known:
            raise WorkloadError(f"{name} is {self._set[name]!r}; known here: {', '.join(known)}")
        return self._set[name]

    def _proportion(self, name: str) -> float:
        try:
            proportion = float(self._set[name])
        except ValueError:
            proportion = -1
        if not 0 <= proportion < float("inf"):
            raise WorkloadError(f"{name} is not a proportion: {self._set[name]!r}")
        return proportion

    def key(self, number: int) -> bytes:
        """The key of record `number`."""
        keys = self._keys
        while number >= len(keys):
            name = fnv_hash_64(len(keys)) if self._hashed else len(keys)
            keys.append(self._prefix + str(name).zfill(self._padding).encode())
        return keys[number]

    def acknowledged(self, call: Call) -> None:
        """That `call`, an INSERT, was answered, so that requests may now count on its record."""
        if self._sorted is not None:
            self._sorted.add(call.key)
        if call.number >= self.record_count:
            self._inserts.acknowledge(call.number)

    def load(self) -> Iterator[Call]:
        """The inserts of the load phase, which all clients share."""
        record = self._record_maker(Random(f"{self._seed}/load"))
        for number in range(self.record_count):
            key = self.key(number)
            yield Call("INSERT", b"PUT %b %b" % (key, record()), key, False, number, [])

    def calls(self, client: int) -> Iterator[Call]:
        """One client's calls of the run phase, which must not begin before the load phase is over."""
        random = Random(f"{self._seed}/run/{client}")
        record = self._record_maker(random)
        change = record if self._write_all_fields else self._field_maker(random)
        choose = self._chooser(random)
        bounds = self._scan_bounds
        scan_length = length(random, self._set["scanlengthdistribution"], *bounds)
        shares = list(accumulate(self._proportions.values()))
        read, update, insert, scan, total = shares
        draw = random.random
        for _ in range(self.operation_count):
            drawn = draw() * total
            if insert > drawn >= update:
                number = self._inserts()
                key = self.key(number)
                yield Call("INSERT", b"PUT %b %b" % (key, record()), key, False, number, [])
                continue
            key = self.key(choose())
            if drawn < read:
                yield Call("READ", b"GET " + key, key, True, -1, [])
            elif drawn < update:
                yield Call("UPDATE", b"SWAP %b %b" % (key, change()), key, True, -1, [])
            elif drawn < scan:
                assert self._sorted is not None
                yield scan_call(self._sorted, key, scan_length())
            else:
                yield Call("READ", b"GET " + key, key, True, -1, [])
                yield Call("UPDATE", b"SWAP %b %b" % (key, change()), key, True, -1, [])

    def _chooser(self, random: Random) -> Callable[[], int]:
        """Draws numbers of records that are known to be stored."""
        inserts = self._inserts
        if self._distribution == "latest":
            return SkewedLatest(random, inserts)
        if self._distribution == "uniform":
            return uniform(random, 0, self.record_count - 1)
        zipfian = ScrambledZipfian(random, self.record_count + self._expected_inserts + 1)

        def choose() -> int:
            number = zipfian()
            while number > inserts.last:
                number = zipfian()
            return number

        return choose

    def _field_maker(self, random: Random) -> Callable[[], bytes]:
        """Makes the value of an UPDATE that writes one field."""
        draw, text, names = random.random, self._text, self._field_names
        size = length(random, self._set["fieldlengthdistribution"], 1, self._field_length)

        def field() -> bytes:
            at = int(draw() * VALUE_TEXT_BYTES)
            return names[int(draw() * len(names))] + text[at : at + size()]

        return field

    def _record_maker(self, random: Random) -> Callable[[], bytes]:
        """Makes the value of an INSERT: every field."""
        draw, text, names = random.random, self._text, self._field_names
        size = length(random, self._set["fieldlengthdistribution"], 1, self._field_length)

        def record() -> bytes:
            parts = []
            for name in names:
                at = int(draw() * VALUE_TEXT_BYTES)
                parts.append(name)
                parts.append(text[at : at + size()])
            return b"".join(parts)

        return record


def scan_call(stored: SortedList, start: bytes, count: int) -> Call:
    """The SCAN from `start` to the last of `count` records from there on (fewer at the end) that are in `stored`."""
    first = stored.bisect_left(start)
    records: list[bytes] = stored[first : first + count]
    end = records[-1] if records else start
    return Call("SCAN", b"SCAN %b %b" % (start, end), start, start in records[:1], -1, records)


def fault(call: Call, reply: bytes) -> str | None:
    """Why `reply` cannot be the answer to `call`; None when it can."""
    kind, key = call.kind, call.key
    if kind == "SCAN":
        return _scan_fault(call, reply)
    verb = call.line[: call.line.index(b" ") + 1]
    if not reply.startswith(verb + key + b" "):
        return "it does not repeat the call"
    answer = reply[len(verb) + len(key) + 1 :]
    if kind == "INSERT":
        return None if answer in (b"found", b"not_found") else "a PUT is answered found or not_found"
    if not answer or b" " in answer or b"\n" in answer:
        return "it is not one value"
    if call.stored and answer == b"null":
        return "the key was stored before, but the answer is null"
    return None


def _is_plain_scan(call: Call, reply: bytes) -> bool:
    """Whether the answer is just the records that were known: nearly always, and told without copying it apart."""
    if not reply.startswith(call.line + b" BEGIN\n"):
        return False
    at = len(call.line) + len(b" BEGIN\n")
    for key in call.records:
        if not reply.startswith(b"  %b " % key, at):
            return False
        at += len(key) + 3
        end = reply.find(b"\n", at)
        if end <= at or reply.find(b" ", at, end) >= 0:
            return False
        at = end + 1
    return reply[at:] == b"SCAN END"


def _scan_fault(call: Call, reply: bytes) -> str | None:
    if _is_plain_scan(call, reply):
        return None
    if b"\n" not in reply:
        return "it is one line"
    first, *lines, last = reply.split(b"\n")
    if first != call.line + b" BEGIN" or last != b"SCAN END":
        return "it does not repeat the call, or has no end"
    keys = []
    for line in lines:
        space = line.find(b" ", 2)
        if not line.startswith(b"  ") or space < 3 or space + 1 == len(line) or line.find(b" ", space + 1) >= 0:
            return f"a line of it is not a pair: {line[:60]!r}"
        keys.append(line[2:space])
    if keys == call.records:
        return None
    _, start, end = call.line.split(b" ")
    if any(one >= other for one, other in pairwise(keys)):
        return "its keys are not in order"
    if keys and not start <= keys[0] <= keys[-1] <= end:
        return "it holds a key outside of the range"
    missing = set(call.records).difference(keys)
    if missing:
        return f"{len(missing)} of {len(call.records)} records known to be stored are missing, {min(missing)!r} first"
    return None
