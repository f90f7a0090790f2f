"""Line clients that act out a testcase, with every call, its answer and the expected one told in a line."""

import time
from collections.abc import Collection, Mapping, Sequence
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
        self._in_vain: dict[str, Call] = {}
        self._late: dict[str, Completion] = {}
        """Completions that nobody has asked about yet."""

    def tell(self, text: str) -> None:
        """Say what comes next."""
        self._out.say("")
        self._out.say(text)

    def enter(self, name: str) -> None:
        """Start the next client."""
        assert NAMES[self._fleet.add().number] == name
        self._out.say(f"  * client {name} starts")

    def ask(self, name: str, call: Call, expected: Result | Anything = ANYTHING) -> Result:
        """Have a client make a call, and compare the answer."""
        return self.ask_together({name: (call, expected)})[name]

    def ask_together(self, asked: Mapping[str, tuple[Call, Result | Anything]], told: bool = True) -> dict[str, Result]:
        """Have several clients make a call each, all at the same time; their answers. Mistakes are always told."""
        for name, (call, _) in asked.items():
            self._fleet.send(NAMES.index(name), line(call))
        results: dict[str, Result] = {}
        for completion in self._completions(asked):
            name = NAMES[completion.client]
            results[name] = self._result(name, asked[name][0], completion)
        for name, (call, expected) in asked.items():
            self._judge(name, call, results[name], expected, told)
        return results

    def ask_in_vain(self, asked: Mapping[str, Call], seconds: float) -> None:
        """Have clients make a call each that must stay without an answer for so long; it goes on waiting then."""
        for name, call in asked.items():
            self._fleet.send(NAMES.index(name), line(call))
        self._in_vain |= asked
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._hear(self._fleet.wait(left))
        for name, call in asked.items():
            if name in self._late:
                self._out.say(f"  {name}: {_brief(line(call))} -> WRONG: an answer, where none can be known")
                self.failures.append(f"{name}: {_brief(line(call))}")
            else:
                self._out.say(
                    f"  {name}: {_brief(line(call))} -> no answer within {seconds:g} s; {name} goes on waiting"
                )

    def answer(self, name: str, expected: Result | Anything = ANYTHING) -> Result:
        """The answer, at last, to a call of `ask_in_vain`, compared."""
        call = self._in_vain.pop(name)
        completion = self._late.pop(name, None) or next(iter(self._completions([name])))
        result = self._result(name, call, completion)
        self._judge(name, call, result, expected, told=True)
        return result

    def _result(self, name: str, call: Call, completion: Completion) -> Result:
        assert completion.reply is not None
        try:
            return parse(call, completion.reply)
        except MalformedReply as error:
            raise SceneBroken(f"client {name}: {error}") from None

    def _judge(self, name: str, call: Call, result: Result, expected: Result | Anything, told: bool) -> None:
        right = isinstance(expected, Anything) or result == expected
        if told or not right:
            verdict = "" if right else f"   WRONG: expected {_answer(expected)}"
            self._out.say(f"  {name}: {_brief(line(call))} -> {_answer(result)}{verdict}")
        if not right:
            self.failures.append(f"{name}: {_brief(line(call))}")

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

    def _completions(self, names: Collection[str]) -> Sequence[Completion]:
        """One completion of each of these clients; what comes from others, who were asked in vain, is kept."""
        completions: dict[str, Completion] = {}
        deadline = time.monotonic() + CALL_SECONDS
        while len(completions) < len(names):
            came = self._fleet.wait(max(0.0, deadline - time.monotonic()))
            if not came and time.monotonic() >= deadline:
                left = len(names) - len(completions)
                raise SceneBroken(f"{left} of {len(names)} clients gave no answer within {CALL_SECONDS:g} s")
            self._hear(came)
            for name in names:
                if name in self._late:
                    completions[name] = self._late.pop(name)
        return list(completions.values())

    def _hear(self, came: Sequence[Completion]) -> None:
        for completion in came:
            if completion.reply is None:
                said = self._fleet.clients[completion.client].last_words()
                raise SceneBroken(f"client {NAMES[completion.client]} ended without an answer{said}")
            self._late[NAMES[completion.client]] = completion


def _brief(data: bytes) -> str:
    return show(data, SHOWN_BYTES, SHOWN_BYTES)


def _answer(result: Result | Anything) -> str:
    if isinstance(result, bool):
        return "found" if result else "not_found"
    if isinstance(result, tuple):
        pairs = ", ".join(f"{_brief(key)} = {_brief(value)}" for key, value in result)
        return f"{len(result)} pair{'s' * (len(result) > 1)}: {pairs}" if result else "no pairs"
    return _brief(result) if isinstance(result, bytes) else "null"
