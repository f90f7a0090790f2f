"""Look for wrong answers: many clients call a running service at random, and a checker judges what they were told.

Theory of operation. Each client is a process that speaks the line interface and always has one call under way. Every
call is recorded with its times and its answer; afterwards `linearizability` looks, key by key, for an order that
explains all the answers. Keys are fresh in every run, so what the store holds already does not matter.
"""

import argparse
import gc
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from madkv.addresses import show_address
from madkv.client.router import MANAGERS, Router
from madkv.errors import MadKVError, ProtocolError, TLSError
from madkv.operate.ask import ask, ask_map
from madkv.partitions import PartitionMap
from madkv.testing import certificates
from madkv.testing.calls import Plan, sample
from madkv.testing.checkout import origin
from madkv.testing.ending import complain, run_tool
from madkv.testing.explain import in_words, shortest
from madkv.testing.fleet import CLIENTS_MAX, STOP_SECONDS, Fleet
from madkv.testing.history import KINDS, Operation, Ours, read_history, write_history
from madkv.testing.linearizability import Finding, Verdict, check
from madkv.testing.lines import Call, MalformedReply, line, parse, show
from madkv.testing.options import Parser, add_seed, add_shared, whole, words
from madkv.testing.transcript import Transcript
from madkv.testing.verdict import end_in_verdict
from madkv.wire import codec

CALLS_PER_CLIENT = 10_000
CALLS_MAX = 100_000
"""Without `ops`, each client makes CALLS_PER_CLIENT calls, fewer when that would make more than this together."""
UNENDING = 10**9
CALL_SECONDS = 120.0
CHECK_SECONDS = 120.0
EXPLAIN_SECONDS = 20.0
EXPLAINED_KEYS_MAX = 5
RUN_ID_DIGITS = 12
VERDICT = "Fuzz testing result: {}"
EXIT_USAGE = 2
"""As argparse ends where words make no sense."""


class FuzzFailed(Exception):
    """A client did what none may do: died, gave no answer, or one that is none."""


class Run:
    """The clients at work."""

    def __init__(
        self, fleet: Fleet, plan: Plan, calls_expected: int | None, call_seconds: float, out: Transcript
    ) -> None:
        self.history: list[Operation] = []
        self._fleet = fleet
        self._upcoming = [plan.calls(client.number) for client in fleet.clients]
        self._current: dict[int, Call] = {}
        self._plan = plan
        self._calls_expected = calls_expected
        self._call_seconds = call_seconds
        self._out = out
        self.enough = False
        """Set from beside: whoever has an answer makes no further call."""
        self.broken = ""
        """Set from beside: why the run cannot go on."""

    @property
    def keys(self) -> list[bytes]:
        """All that the clients may write."""
        return self._plan.keys

    def ready(self) -> None:
        """Wait until every client has answered once, so that they all start together."""
        count = len(self._fleet.clients)
        for number in range(count):
            self._send(number, Call("GET", self._plan.first_key(number)))
        for _ in self._answers():
            self._out.progress(f"starting: {len(self.history)} of {count} clients answer")

    def go(self) -> float:
        """Make all calls; the seconds that took."""
        began = time.monotonic()
        for number, upcoming in enumerate(self._upcoming):
            self._send_next(number, upcoming)
        for number in self._answers():
            self._send_next(number, self._upcoming[number])
            if not len(self.history) % 100:
                of = f" of {self._calls_expected}" if self._calls_expected else ""
                self._out.progress(f"calling: {len(self.history)}{of} calls answered")
        return time.monotonic() - began

    def read_back(self) -> None:
        """Read every key once more, all clients together: what was lost since it was last read shows now."""
        shares = [iter(self._plan.share(client.number)) for client in self._fleet.clients]
        for number in range(len(shares)):
            self._read_next(number, shares[number])
        for number in self._answers():
            self._read_next(number, shares[number])

    def stop(self) -> None:
        """End the clients by STOP."""
        for number, fault in self._fleet.dismiss().items():
            raise FuzzFailed(f"client {number} {fault}")

    def abandon(self) -> None:
        """Add the calls that have no answer to the history, with their outcome unknown."""
        for number, call in self._current.items():
            client = self._fleet.clients[number]
            if client.called_ns:
                self._record(number, call, client.called_ns, None, None)
        self._current.clear()

    def _read_next(self, number: int, keys: Iterator[bytes]) -> None:
        key = next(keys, None)
        if key is not None:
            self._send(number, Call("GET", key))

    def _send_next(self, number: int, upcoming: Iterator[Call]) -> None:
        call = next(upcoming, None)
        if call is not None and not self.enough:
            self._send(number, call)

    def _send(self, number: int, call: Call) -> None:
        self._current[number] = call
        self._fleet.send(number, line(call))

    def _answers(self) -> Iterator[int]:
        """Record answers as they come, until none is outstanding; the numbers of the clients that are free again."""
        look = time.monotonic() + 1.0
        while self._current:
            for number, called_ns, returned_ns, reply in self._fleet.wait(1.0):
                call = self._current[number]
                if reply is None:
                    raise FuzzFailed(self._how_it_ended(number, call))
                try:
                    result = parse(call, reply, self._plan.mark)
                except MalformedReply as error:
                    raise FuzzFailed(f"client {number}: {error}{self._last_words(number)}") from None
                del self._current[number]
                self._record(number, call, called_ns, returned_ns, result)
                yield number
            if time.monotonic() >= look:
                look = time.monotonic() + 1.0
                self._look_for_stalls()

    def _record(self, number: int, call: Call, called_ns: int, returned_ns: int | None, result: Any) -> None:
        self.history.append(Operation(number, call.kind, call.key, call.value, called_ns, returned_ns, result))

    def _look_for_stalls(self) -> None:
        if self.broken:
            raise FuzzFailed(self.broken)
        now_ns = time.monotonic_ns()
        waiting = 0
        for number, call in self._current.items():
            seconds = (now_ns - self._fleet.clients[number].called_ns) / 1e9
            if seconds > self._call_seconds:
                raise FuzzFailed(
                    f"client {number} gave no answer to {show(line(call))} in {seconds:.0f} s{self._last_words(number)}"
                )
            waiting += seconds > 1.0
        if waiting:
            self._out.progress(f"{len(self.history)} calls answered; {waiting} clients wait for more than a second")

    def _how_it_ended(self, number: int, call: Call) -> str:
        process = self._fleet.clients[number].process
        try:
            status = process.wait(STOP_SECONDS)
            how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        except subprocess.TimeoutExpired:
            how = "closed its output"
        self._fleet.wait(0)  # its last words
        return f"client {number} {how} before it answered {show(line(call))}{self._last_words(number)}"

    def _last_words(self, number: int) -> str:
        return self._fleet.clients[number].last_words()


def judge(history: Sequence[Operation], ours: Ours, check_seconds: float, out: Transcript) -> bool:
    """Check a history and say what was found; whether it passed."""
    began = time.monotonic()
    deadline = began + check_seconds
    finding = check(
        history,
        ours=ours,
        out_of_time=lambda: time.monotonic() > deadline,
        checked=lambda done, total: out.progress(f"checking: {done} of {total} keys"),
    )
    took = f"{time.monotonic() - began:.1f} s"
    if finding.verdict is Verdict.OK:
        out.say(f"Checked in {took}: for every key there is an order that explains all answers.")
    elif finding.verdict is Verdict.UNDECIDED:
        out.say(f"Not decided after {took}: {finding.why}. Give more time (check-seconds=) or make fewer calls (ops=).")
    else:
        out.say(f"Checked in {took}: {finding.why}.")
        explain(finding, min(operation.called_ns for operation in history), out)
    return finding.verdict is Verdict.OK


def explain(finding: Finding, origin_ns: int, out: Transcript) -> None:
    """Say the shortest stretch that shows the violation."""
    if not finding.broken:
        return
    deadline = time.monotonic() + EXPLAIN_SECONDS
    out.progress("looking for the shortest stretch that shows it")
    few = sorted(finding.broken.items(), key=lambda broken: len(broken[1]))[:EXPLAINED_KEYS_MAX]
    stretches = [shortest(key, steps, lambda: time.monotonic() > deadline) for key, steps in few]
    for text in in_words(min(stretches, key=lambda stretch: len(stretch.steps)), origin_ns):
        out.say(f"  {text}")


def calls_of(options: argparse.Namespace) -> int:
    """How many calls each client makes."""
    return options.ops or min(CALLS_PER_CLIENT, CALLS_MAX // options.nclis)


def fuzz(
    options: argparse.Namespace,
    out: Transcript,
    beside: Callable[[Run], AbstractContextManager[object]] | None = None,
) -> bool:
    """One run from start to verdict; whether it passed.

    What is `beside` it is entered once all clients answer, and ends it by setting the run's `enough`.
    """
    conflict = options.conflict == "yes"
    run_id = options.run or "".join(secrets.choice("0123456789") for _ in range(RUN_ID_DIGITS))
    calls = UNENDING if beside else calls_of(options)
    partition_map = ask_map(options.address)
    partitions = len(partition_map.replicas) if partition_map else 1
    plan = Plan(options.nclis, conflict, calls, options.seed, run_id, options.keys, partitions)
    command = [options.just, f"{options.module}::client", options.address]
    shared = "the same keys" if conflict else "keys of its own" if options.nclis == 1 else "keys of their own"
    number = f"{options.nclis} client{'s' * (options.nclis > 1)}"
    each = "for as long as it takes" if beside else f"{calls:,} calls each"
    out.say(f"Fuzz testing {options.address}: {number} on {shared}, {each}, seed={options.seed}")
    out.say(f"Clients: {' '.join(command)}")
    out.say(origin())
    out.say(f"Keys: {len(plan.keys)}, {sample(plan.keys)}; each holds this run's id {run_id}")
    about = {"clients": options.nclis, "conflict": options.conflict, "seed": options.seed, "run": run_id}
    failure = None
    with Fleet(command, options.nclis, expected_to_wait=beside is not None) as fleet:
        run = Run(fleet, plan, None if beside else options.nclis * calls, options.call_seconds, out)
        try:
            run.ready()
            answered = len(run.history)
            gc.disable()  # nothing in the loop makes a cycle
            with beside(run) if beside else nullcontext():
                seconds = run.go()
            answered = len(run.history) - answered
            out.say(f"{answered:,} calls in {seconds:.1f} s, {answered / seconds:,.0f} a second: {count(run.history)}")
            run.read_back()
            run.stop()
        except FuzzFailed as error:
            failure = str(error)
            run.abandon()
        except KeyboardInterrupt:
            run.abandon()
            raise
        finally:
            gc.enable()
            if failure is not None or sys.exc_info()[0]:
                fleet.stop(grace_seconds=0)
            if options.history:
                write_history(options.history, about, run.history)
    if partition_map:
        calls_of_each = by_partition(partition_map, run.history)
        out.say(f"By partition: {calls_of_each} (a Scan counts in each partition that it touches)")
    if options.history:
        out.say(f"History: {options.history}")
    if failure is not None:
        out.say(f"Failed: {failure}")
    passed = not run.history or judge(run.history, lambda key: run_id.encode() in key, options.check_seconds, out)
    return passed and failure is None


def count(history: Sequence[Operation]) -> str:
    """How many calls of each kind there are, for people."""
    numbers = Counter(operation.kind for operation in history)
    return ", ".join(f"{numbers[kind]:,} {kind}" for kind in KINDS)


def by_partition(partition_map: PartitionMap, history: Sequence[Operation]) -> str:
    """How many calls went to each partition, for people; a Scan counts for each that it touches."""
    numbers = Counter(
        partition
        for each in history
        for partition in (
            {owner for owner, *_ in partition_map.pieces(each.key, each.value)}
            if each.kind == "SCAN" and each.value is not None
            else (partition_map.partition_of(each.key),)
        )
    )
    return ", ".join(f"s{partition} {numbers[partition]:,}" for partition in range(len(partition_map.replicas)))


def check_again(options: argparse.Namespace, out: Transcript) -> bool:
    """Judge a history that was written before; whether it passed."""
    try:
        about, history = read_history(options.history)
    except ValueError as error:
        out.say(f"Failed: {error}")
        return False
    out.say(f"Checking {options.history} again: {len(history):,} calls of {about.get('clients', 'some')} clients")
    run_id = str(about.get("run", "")).encode()
    return judge(history, lambda key: run_id in key, options.check_seconds, out)


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message when it makes no sense."""
    parser = Parser(
        prog="fuzz",
        description="Call a running service at random from many clients and check every answer. "
        "Options may be written name=value or --name=value.",
    )
    parser.add_argument("nclis", type=whole, nargs="?", help=f"number of clients, 1 to {CLIENTS_MAX}")
    parser.add_argument("conflict", choices=("no", "yes"), nargs="?", help="whether clients share their keys")
    parser.add_argument("--module", default="p1", help="recipe module of the client (default: %(default)s)")
    parser.add_argument("--address", default="127.0.0.1:3777", help="given to the clients (default: %(default)s)")
    add_shared(parser, "just", "log", "tls")
    parser.add_argument(
        "--ops",
        type=whole,
        help=f"calls of each client (default: {CALLS_PER_CLIENT:,}, but no more than {CALLS_MAX:,} together)",
    )
    add_seed(parser, "makes the same calls again (default: another one each time)")
    parser.add_argument("--run", help="the run's id in all keys, digits (default: another one each time)")
    parser.add_argument(
        "--keys", type=whole, help="number of keys (default: 12 for each client, or 48 and more to share)"
    )
    parser.add_argument("--history", type=Path, help="where to write the history (default: beside the log)")
    parser.add_argument(
        "--check-seconds", type=float, default=CHECK_SECONDS, help="time for the check (default: %(default)g)"
    )
    parser.add_argument(
        "--call-seconds", type=float, default=CALL_SECONDS, help="time for one answer (default: %(default)g)"
    )
    parser.add_argument("--check-only", action="store_true", help="check the history of an earlier run again")
    options = parser.parse_intermixed_args(words(argv))
    if options.check_only:
        if not options.history:
            parser.error("check-only needs history=PATH")
        return options
    if options.nclis is None or options.conflict is None:
        parser.error("the number of clients and the conflict, yes or no, are needed")
    if not 1 <= options.nclis <= CLIENTS_MAX:
        parser.error(f"the number of clients must be 1 to {CLIENTS_MAX}")
    if (options.ops is not None and options.ops < 1) or (options.keys is not None and options.keys < 1):
        parser.error("ops and keys must be at least 1")
    if options.run is not None and not (options.run.isascii() and options.run.isdigit()):
        parser.error("the run's id must be digits")
    if options.log and not options.history:
        options.history = options.log.with_suffix(".history.jsonl")
    return options


def fuzz_service(options: argparse.Namespace, out: Transcript) -> bool:
    """One run against a service that somebody else has started; whether it passed."""
    certificates.take(options)
    return fuzz(options, out)


def wrong_address(options: argparse.Namespace) -> str | None:
    """Why the clients would refuse their address, where something answers that tells; else None."""
    text, is_single = options.address, options.module == "p1"
    try:
        certificates.take(options)
        router = Router(text, None) if is_single else Router(None, text)
        group = 0 if is_single else MANAGERS
        for replica, address in enumerate(router.addresses(group)):
            try:
                hello = ask(show_address(address), codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION))
                router.check_hello(group, replica, hello)
            except (OSError, ProtocolError, TLSError):
                pass  # it may be there later, or be something that other clients know
    except certificates.CertificatesError:
        return None  # as the run is going to say
    except MadKVError as error:
        return str(error)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it passed, EXIT_USAGE when there is nothing to judge at that address."""
    options = parse_options(sys.argv[1:] if argv is None else argv)
    if not options.check_only and (why := wrong_address(options)):
        complain(f"madkv fuzz: {why}")
        return EXIT_USAGE
    return end_in_verdict(
        options.log,
        lambda out: check_again(options, out) if options.check_only else fuzz_service(options, out),
        VERDICT,
        interrupted="the clients are stopped, nothing was judged.",
    )


if __name__ == "__main__":
    run_tool("madkv fuzz", main)
