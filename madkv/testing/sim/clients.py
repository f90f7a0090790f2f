"""Simulated clients: production sessions, one call at a time, over a network that loses calls and answers.

One client has no session. It makes a call again only when it was told that the call was not executed, so it shows when
that is told in error; otherwise the outcome is unknown.
"""

from collections.abc import Callable
from typing import Any

from madkv.client.session import Call, Session
from madkv.errors import MadKVError, OutcomeUnknown, Refused, UnknownSession
from madkv.operations import OpenSession, Operation, Write, WriteKind
from madkv.testing.history import Kind, Result
from madkv.testing.history import Operation as Recorded
from madkv.testing.sim.group import Group
from madkv.testing.sim.world import World

TRY_SECONDS = 0.4, 1.0
"""How long clients wait for an answer: shorter than a leader that is cut off remains one, or longer."""
PAUSE_SECONDS = 0.05
GIVE_UP_CHANCE = 0.01
"""How often a client's life ends in the middle of a call."""
REST_CHANCE = 0.1
REST_SECONDS_MAX = 1.5
"""Between bursts of calls clients rest, so that calls go on for as long as faults do."""
SCANNED = b"k", b"l"


class Client:
    """One client process after another under one number."""

    def __init__(
        self, world: World, group: Group, number: int, keys: list[bytes], record: Callable[[Recorded], None]
    ) -> None:
        self._world = world
        self._group = group
        self.number = number
        self._keys = keys
        self._record = record
        self._lives = 0
        self._try = 0  # which try the present one is, so that late answers are told from present ones
        self._target = number % len(group.machines)
        self._try_seconds = TRY_SECONDS[number % 2]
        self._has_session = number > 0
        self._values = 0
        self.done = 0
        self.wanted = 0
        """Calls to make altogether."""
        self._is_idle = True
        self._begin_life()

    @property
    def is_done(self) -> bool:
        """Whether it has made all the calls wanted."""
        return self.done >= self.wanted

    def go_on(self) -> None:
        """Make calls until there are as many as wanted."""
        if self._is_idle and not self.is_done:
            self._is_idle = False
            self._next_call()

    def _begin_life(self) -> None:
        self._lives += 1
        # Numbers of clients in an identifier that no other life has.
        self._session = Session(b"%08d%08d" % (self.number, self._lives))

    # --- Calls ------------------------------------------------------------------------------------------------------

    def _next_call(self) -> None:
        if self.is_done:
            self._is_idle = True
            return
        chance = self._world.chance
        self._kind: Kind = chance.choices(("PUT", "SWAP", "DELETE", "GET", "SCAN"), (25, 20, 10, 35, 10))[0]
        self._key = chance.choice(self._keys)
        self._value: bytes | None = None
        self._call: Call | None = None
        if self._kind in ("PUT", "SWAP", "DELETE"):
            self._call = self._session.begin()
            if self._kind != "DELETE":
                self._values += 1
                self._value = b"%d.%d" % (self.number, self._values) + b"." * chance.choice((0, 0, 40, 400))
        elif self._kind == "SCAN":
            self._key, self._value = SCANNED
        self._called_ns = self._world.now_ns
        self._attempt()

    def _attempt(self) -> None:
        """Try the present call once."""
        self._try += 1
        if self._call is None:
            self._ask_read()
        elif not self._has_session:
            self._ask(Write(WriteKind[self._kind], self._key, self._value or b""), self._answered)
        elif self._session.index is None:
            self._ask(OpenSession(self._session.client_id), self._opened)
        else:
            try:
                self._session.sending(self._call)
            except OutcomeUnknown:
                self._unknown()
                return
            if self._call.uncertain:
                self._world.counts["retries"] += 1
            write = Write(
                WriteKind[self._kind], self._key, self._value or b"", self._session.index, self._call.sequence,
                self._session.floor,
            )  # fmt: skip
            self._ask(write, self._answered)
        number = self._try
        self._world.later(self._try_seconds, lambda: self._timed_out(number))

    def _ask(self, operation: Operation, then: Callable[[Any], None]) -> None:
        self._post(lambda replica, reply: replica.propose(operation, reply), then)

    def _ask_read(self) -> None:
        def read(replica: Any, reply: Callable[[Any], None]) -> None:
            replica.read(self._key, lambda pairs: reply(self._read_from(pairs)))

        self._post(read, self._answered)

    def _read_from(self, pairs: Any) -> Any:
        """At the replica: what the pairs say just now."""
        if isinstance(pairs, MadKVError):
            return pairs
        if self._kind == "SCAN":
            assert self._value is not None
            return tuple(pairs.pairs(self._key, self._value))
        return pairs.get(self._key)

    def _post(self, work: Callable[[Any, Callable[[Any], None]], None], then: Callable[[Any], None]) -> None:
        """Send a request; what it comes to is sent back, and counts if this try is still the present one."""
        target, number, network = self._target, self._try, self._group.network
        place = -1 - self.number
        is_write = self._call is not None
        has_arrived = False

        def arrived() -> None:
            nonlocal has_arrived
            if has_arrived and not self._has_session:
                return  # Within one connection nothing comes twice.
            has_arrived = True
            machine = self._group.machines[target]
            replica = machine.replica
            machine.touch()
            # A write of an earlier try is executed too: the server cannot know that nobody waits any more.
            if replica is not None and (number == self._try or is_write):
                work(replica, lambda result: network.send(target, place, lambda: back(result), may_repeat=False))

        def back(result: Any) -> None:
            if number == self._try:
                then(result)

        network.send(place, target, arrived, may_repeat=False)

    # --- Answers ----------------------------------------------------------------------------------------------------

    @property
    def _is_unknown_without_session(self) -> bool:
        """Whether nobody can tell what became of the present call, unless it was refused."""
        return self._call is not None and not self._has_session

    def _timed_out(self, number: int) -> None:
        if number == self._try and not self._is_idle:
            self._world.counts["tries timed out"] += 1
            if self._world.chance.random() < GIVE_UP_CHANCE or self._is_unknown_without_session:
                self._unknown()
            else:
                self._try_elsewhere()

    def _try_elsewhere(self) -> None:
        self._try += 1
        machines = self._group.machines
        leader = self._group.leader if self._world.chance.random() < 0.5 else None  # a hint, right or wrong
        self._target = leader.number if leader is not None else self._world.chance.randrange(len(machines))
        number = self._try
        self._world.later(PAUSE_SECONDS, lambda: self._attempt() if number == self._try else None)

    def _opened(self, result: Any) -> None:
        if isinstance(result, MadKVError):
            self._try_elsewhere()
        else:
            self._session.opened(result)
            self._attempt()

    def _answered(self, result: Any) -> None:
        call = self._call
        if isinstance(result, UnknownSession):
            assert call is not None
            self._world.counts["sessions lost"] += 1
            try:
                self._session.lost(call, self._session.index)
            except OutcomeUnknown:
                self._unknown()
                return
            self._try_elsewhere()
        elif isinstance(result, MadKVError):
            self._world.counts[type(result).__name__] += 1
            if not isinstance(result, Refused) and self._is_unknown_without_session:
                self._unknown()
                return
            if isinstance(result, Refused) and call is not None:
                self._session.not_executed(call)
            self._try_elsewhere()
        else:
            if call is not None:
                self._session.end(call)
            self._finish(result, self._world.now_ns)

    def _unknown(self) -> None:
        """Nobody will ever know; the client ends, and another begins."""
        self._world.counts["outcomes unknown"] += 1
        self._begin_life()
        self._finish(None, None)

    def _finish(self, result: Result, returned_ns: int | None) -> None:
        self._try += 1
        self._record(Recorded(self.number, self._kind, self._key, self._value, self._called_ns, returned_ns, result))
        self.done += 1
        chance = self._world.chance
        rest = REST_SECONDS_MAX if chance.random() < REST_CHANCE else 0.01
        self._world.later(chance.uniform(0, rest), self._next_call)
