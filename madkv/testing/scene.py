"""Line clients that act out a testcase, with every call, its answer and the expected one told in a line."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from madkv.testing.fleet import Completion, Fleet
from madkv.testing.history import Result
from madkv.testing.lines import Call, MalformedReply, line, parse, show
from madkv.testing.transcript import Transcript

NAMES = "ABCDEFGH"
"""Clients are called A, B, C and so on."""
CALL_SECONDS = 120.0
SHOWN_BYTES = 48
"""At the beginning and at the end of what is longer than twice this."""


class SceneBroken(Exception):
    """The clients cannot go on: one ended, gave no answer, or one that is none."""


class Anything:
    """What to expect of a call whose answer is looked at later."""


ANYTHING: Final = Anything()


class Scene:
    """Clients at the disposal of a testcase. `failures` holds what went wrong so far."""

    def __init__(self, fleet: Fleet, out: Transcript) -> None:
        self.failures: list[str] = []
        self._fleet = fleet
        self._out = out

    def tell(self, text: str) -> None:
        """Say what comes next."""
        self._out.say("")
        self._out.say(text)

    def ask(self, name: str, call: Call, expected: Result | Anything = ANYTHING) -> Result:
        """Have a client make a call, and compare the answer."""
        return self.ask_together({name: (call, expected)})[name]

    def ask_together(self, asked: Mapping[str, tuple[Call, Result | Anything]], told: bool = True) -> dict[str, Result]:
        """Have several clients make a call each, all at the same time; their answers. Mistakes are always told."""
        for name, (call, _) in asked.items():
            self._fleet.send(NAMES.index(name), line(call))
        results: dict[str, Result] = {}
        for completion in self._completions(len(asked)):
            name = NAMES[completion.client]
            call = asked[name][0]
            assert completion.reply is not None
            try:
                results[name] = parse(call, completion.reply)
            except MalformedReply as error:
                raise SceneBroken(f"client {name}: {error}") from None
        for name, (call, expected) in asked.items():
            result = results[name]
            right = isinstance(expected, Anything) or result == expected
            if told or not right:
                verdict = "" if right else f"   WRONG: expected {_answer(expected)}"
                self._out.say(f"  {name}: {_brief(line(call))} -> {_answer(result)}{verdict}")
            if not right:
                self.failures.append(f"{name}: {_brief(line(call))}")
        return results

    def expect(self, holds: bool, what: str) -> None:
        """State something that must be so."""
        self._out.say(f"  {'Right' if holds else 'WRONG'}: {what}")
        if not holds:
            self.failures.append(what)

    def end(self) -> None:
        """End all clients by STOP, which each must answer and then exit with 0."""
        faults = self._fleet.dismiss()
        for number, fault in faults.items():
            self.expect(False, f"client {NAMES[number]} {fault}")
        if not faults:
            self.expect(True, "STOP is answered by STOP, and then the clients exit with 0")

    def _completions(self, count: int) -> Sequence[Completion]:
        completions: list[Completion] = []
        deadline = time.monotonic() + CALL_SECONDS
        while len(completions) < count:
            came = self._fleet.wait(max(0.0, deadline - time.monotonic()))
            if not came and time.monotonic() >= deadline:
                left = count - len(completions)
                raise SceneBroken(f"{left} of {count} clients gave no answer within {CALL_SECONDS:g} s")
            for completion in came:
                if completion.reply is None:
                    said = self._fleet.clients[completion.client].last_words()
                    raise SceneBroken(f"client {NAMES[completion.client]} ended without an answer{said}")
            completions += came
        return completions


def _brief(data: bytes) -> str:
    return show(data, SHOWN_BYTES, SHOWN_BYTES)


def _answer(result: Result | Anything) -> str:
    if isinstance(result, bool):
        return "found" if result else "not_found"
    if isinstance(result, tuple):
        pairs = ", ".join(f"{_brief(key)} = {_brief(value)}" for key, value in result)
        return f"{len(result)} pair{'s' * (len(result) > 1)}: {pairs}" if result else "no pairs"
    return _brief(result) if isinstance(result, bytes) else "null"
