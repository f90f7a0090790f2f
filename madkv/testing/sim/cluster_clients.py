"""Clients of a simulated cluster: the production Deferred client, with some calls in flight each."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from madkv.addresses import Address
from madkv.client.api import Client
from madkv.client.router import pace_of
from madkv.errors import OutcomeUnknown
from madkv.testing.history import Kind, Operation
from madkv.testing.sim.reactor import Internet, Reactor
from madkv.testing.sim.world import LocalClock, World

STRANDS = 3
REST_CHANCE = 0.2
REST_SECONDS_MAX = 1.5
"""Between bursts of calls clients rest, so that calls go on for as long as faults do."""
LAST_KEY = b"zzz"


class ClientHost:
    """One client process after another."""

    def __init__(
        self,
        world: World,
        internet: Internet,
        number: int,
        managers: list[Address],
        keys: list[bytes],
        record: Callable[[Operation], None],
        broken: list[Exception],
        calling: Callable[["ClientHost", bytes], None],
    ) -> None:
        """`record` gets what was done and told; `broken` what should never be told. `calling` hears of each call."""
        self.world = world
        self.host = f"10.3.0.{number}"
        self.keys = keys
        self.record = record
        self.broken = broken
        self.calling = calling
        self._number = number
        self._internet = internet
        self._managers = managers
        self._clock = LocalClock(world, lambda: None)
        self._lives = 0
        self.graves: list[Any] = []
        """Clients of before, kept so that nothing of them is collected while the simulation goes on."""
        self.strands = [Strand(self, STRANDS * number + strand) for strand in range(STRANDS)]
        self.begin_life()

    def begin_life(self) -> None:
        """Start a client."""
        self._lives += 1
        self.reactor = Reactor(self._internet, self.host, self._clock, lambda: None)
        self.client = Client(self.reactor, managers=self._managers)
        self.client._client_id = b"%08d%08d" % (self._number, self._lives)
        self.client._router.pace = pace_of(bytes([40 * self._number % 256]))
        self.graves.append(self.client)

    def kill(self) -> None:
        """The process is killed; another one is started, and makes calls like this one."""
        self.reactor.kill()
        self.begin_life()
        for strand in self.strands:
            strand.killed()

    @property
    def has_map(self) -> bool:
        """Whether it knows where keys are."""
        return self.client._router.map is not None

    def partition_of(self, key: bytes) -> int:
        """By its map."""
        return self.client._router.group_of(key)


class Strand:
    """Calls of a client, one after another."""

    def __init__(self, host: ClientHost, number: int) -> None:
        self._host = host
        self.number = number
        self._values = 0
        self.done = 0
        self.wanted = 0
        """Calls to make altogether."""
        self._call = 0  # which one, so that what a killed client was told is told to nobody
        self._is_idle = True
        self.waits_for: str | None = None
        """What is being done."""

    @property
    def is_done(self) -> bool:
        """Whether it has made all the calls wanted."""
        return self.done >= self.wanted

    def go_on(self) -> None:
        """Make calls until there are as many as wanted."""
        if self._is_idle and not self.is_done:
            self._is_idle = False
            self._next_call()

    def killed(self) -> None:
        """The client has died; nobody knows what became of its call."""
        if self.waits_for is not None:
            self._finish(None, None)

    def _next_call(self) -> None:
        if self.is_done:
            self._is_idle = True
            return
        host, chance = self._host, self._host.world.chance
        self._kind: Kind = chance.choices(("PUT", "SWAP", "DELETE", "GET", "SCAN"), (25, 20, 10, 30, 15))[0]
        self._key = chance.choice(host.keys)
        self._value: bytes | None = None
        if self._kind in ("PUT", "SWAP"):
            self._values += 1
            self._value = b"%d.%d" % (self.number, self._values) + b"." * chance.choice((0, 0, 40, 400))
        elif self._kind == "SCAN":
            self._value = LAST_KEY
            if chance.random() < 0.5:
                self._key, self._value = sorted((self._key, chance.choice(host.keys)))
            elif chance.random() < 0.5:
                self._key = b""
        self._called_ns = host.world.now_ns
        self._call += 1
        self.waits_for = f"{self._kind} {self._key!r}"
        call = self._call
        host.calling(host, self._key)
        self._made().addCallbacks(lambda result: self._answered(call, result), lambda why: self._failed(call, why))

    def _made(self) -> Deferred[Any]:
        client, key, value = self._host.client, self._key, self._value
        if self._kind == "GET":
            return client.get(key)
        if self._kind == "DELETE":
            return client.delete(key)
        assert value is not None
        if self._kind == "SCAN":
            return client.scan(key, value)
        return client.put(key, value) if self._kind == "PUT" else client.swap(key, value)

    def _answered(self, call: int, result: Any) -> None:
        if call == self._call:
            self._finish(tuple(result) if self._kind == "SCAN" else result, self._host.world.now_ns)

    def _failed(self, call: int, why: Failure) -> None:
        if call != self._call:
            return
        if why.check(OutcomeUnknown) and self._kind in ("PUT", "SWAP", "DELETE"):
            self._host.world.counts["outcomes unknown"] += 1
            self._finish(None, None)
        else:
            assert isinstance(why.value, Exception)
            self._host.broken.append(why.value)

    def _finish(self, result: Any, returned_ns: int | None) -> None:
        self._call += 1
        self.waits_for = None
        host, chance = self._host, self._host.world.chance
        host.record(Operation(self.number, self._kind, self._key, self._value, self._called_ns, returned_ns, result))
        self.done += 1
        rest = REST_SECONDS_MAX if chance.random() < REST_CHANCE else 0.01
        host.world.later(chance.uniform(0, rest), self._next_call)
