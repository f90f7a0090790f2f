"""The replicas of a simulated group, and what must hold of them after every step."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from madkv.errors import WrongPartition
from madkv.operations import Operation, Outcome, Write
from madkv.raft.configuration import Configuration, Member
from madkv.raft.core import Role
from madkv.raft.invariants import GroupHistory, Seen, check_state, check_step
from madkv.raft.messages import Append, Message, SnapshotPiece
from madkv.server.parts import Tuning
from madkv.server.replica import Replica
from madkv.sessions import Sessions
from madkv.state_machine import StateMachine
from madkv.storage.overlay import AppliedPairs
from madkv.storage.snapshot import SnapshotHead
from madkv.storage.twin import TwinDisk, TwinStorage
from madkv.testing.sim.world import LocalClock, Network, SimulatedDisk, World

MESSAGE_BYTES = 64


class Machine:
    """A machine with a disk, on which a replica runs or does not."""

    def __init__(self, group: "Group", number: int) -> None:
        self.group = group
        self.number = number
        self.member = Member(number, bytes([number, 0]) * 8)
        self.platter = TwinDisk()
        self.disk = SimulatedDisk(group.world, self.touch)
        self.clock = LocalClock(group.world, self.touch)
        self.replica: Replica | None = None
        self.pairs: AppliedPairs | None = None
        self._storage: TwinStorage | None = None
        self._seen: Seen | None = None
        self._committed = 0
        self._role = Role.FOLLOWER

    def touch(self) -> None:
        """Something happens here: look at it after this step."""
        self.group.touched.add(self.number)

    @property
    def is_up(self) -> bool:
        """Whether a replica runs."""
        return self.replica is not None

    @property
    def staged_bytes(self) -> int:
        """How much of a snapshot is staged on the disk."""
        return 0 if self._storage is None else self._storage._staged_bytes

    def start(self) -> None:
        """Start the replica on what is on the disk."""
        assert self.replica is None
        group, world = self.group, self.group.world
        storage = TwinStorage(self.platter, group.first_configuration)
        self.pairs = AppliedPairs(storage)
        clock: Any = self.clock  # As much of IReactorTime as a replica uses.
        replica = Replica(
            self.member, storage, self.pairs, self.disk, clock, self._send, world.chance.randrange,
            self._failed, group.tuning, group.state_machine(self.pairs),
        )  # fmt: skip
        self._begin(replica, storage)
        replica.start()

    def _begin(self, replica: Replica, storage: TwinStorage) -> None:
        """Watch a replica from now on."""
        replica.log = _Strict()  # type: ignore[assignment]
        self._watch(replica, storage)
        self.replica, self._storage = replica, storage
        self._seen, self._role = Seen.of(replica.core), Role.FOLLOWER
        self._committed = replica.core.commit_index

    def crash(self) -> None:
        """Lose everything that is not on the disk."""
        assert self.replica is not None
        replica, self.replica, self.pairs = self.replica, None, None
        replica.halt()
        self.disk.crash()

    def wipe(self, generation: int) -> None:
        """Put a blank disk in place of the one it had, which makes it another member."""
        assert self.replica is None
        self.platter = TwinDisk()
        self.member = Member(self.number, bytes([self.number, generation]) * 8)

    def check(self) -> None:
        """Hold the invariants of one replica against its state at the last step."""
        if self.replica is None:
            return
        core = self.replica.core
        check_state(core)
        assert self._seen is not None
        self._seen = check_step(self._seen, core)
        if core.commit_index > self._committed:
            first = max(self._committed + 1, core.log.first_index)
            while first <= core.commit_index:
                entries = core.log.entries(first, core.commit_index, 1 << 20)
                self.group.history.check_committed(entries)
                first += len(entries)
            self._committed = core.commit_index
        if core.role is not self._role:
            self._role = core.role
            self.group.world.note(core.role.value, lambda: f"{self.member} in term {core.term}")

    def state(self) -> tuple[Any, ...]:
        """All of the replicated state."""
        assert self.replica is not None and self.pairs is not None
        machine = self.replica.state_machine
        assert isinstance(machine, StateMachine)
        return list(self.pairs.pairs(b"", b"\xff" * 8)), _sessions_of(machine), machine.ownership, machine.time_ms

    def _send(self, messages: Sequence[Message]) -> None:
        group = self.group
        for message in messages:
            size = MESSAGE_BYTES
            if isinstance(message, Append):
                size += sum(entry.size_bytes for entry in message.entries)
            elif isinstance(message, SnapshotPiece):
                size += len(message.data)
                group.world.counts["snapshot pieces"] += 1
            group.network.send(self.number, message.to.replica, partial(group.deliver, message), size)

    def _failed(self, error: Exception) -> None:
        raise error

    def _watch(self, replica: Replica, storage: TwinStorage) -> None:
        """See every entry applied, and that each replica comes to the same outcome for it; count what is rare."""
        world = self.group.world
        installed, truncate, started = storage.installed, replica.core.log.truncate, replica.core.snapshot_started

        def count_installed(head: SnapshotHead) -> None:
            world.note("snapshots installed", lambda: f"{self.member}: up to {head.last_index}")
            installed(head)

        def count_truncated(first: int) -> None:
            world.note("truncations", lambda: f"{self.member}: from {first} on")
            truncate(first)

        def count_started(to: Member, last_index: int) -> None:
            world.note("snapshots sent", lambda: f"{self.member} to {to}: up to {last_index}")
            started(to, last_index)

        storage.installed = count_installed  # type: ignore[method-assign]
        replica.core.log.truncate = count_truncated  # type: ignore[method-assign]
        replica.core.snapshot_started = count_started  # type: ignore[method-assign]
        machine = replica.state_machine
        apply = machine.apply

        def watched(index: int, time_ms: int, operation: Operation) -> Outcome:
            time_before_ms = machine.time_ms
            owned = machine.ownership if isinstance(machine, StateMachine) else None
            outcome = apply(index, time_ms, operation)
            assert machine.time_ms >= time_before_ms, "the group's time never goes back"
            if isinstance(operation, Write) and owned is not None and owned.range_of(operation.key) is None:
                assert isinstance(outcome, WrongPartition), f"a key that is not owned was written at {index}"
            self.group.applied(index, time_ms, operation, outcome, self.member)
            return outcome

        machine.apply = watched  # type: ignore[method-assign]


class _Strict:
    """In a simulation nothing that goes wrong is only logged."""

    def failure(self, text: str) -> None:
        """Called while an exception is being handled."""
        raise


class Group:
    """All machines, those of members and those of former ones."""

    def __init__(
        self, world: World, network: Network, count: int, tuning: Tuning, rows_expired_max: int = 1000
    ) -> None:
        self.world = world
        self._rows_expired_max = rows_expired_max
        self.network = network
        self.tuning = tuning
        self.machines = [self._machine(number) for number in range(count)]
        self.first_configuration = Configuration(frozenset(machine.member for machine in self.machines))
        self.history = GroupHistory()
        self.touched: set[int] = set()
        """Machines where something has happened since they were checked."""
        self._outcomes: dict[int, tuple[int, Operation, str]] = {}

    def _machine(self, number: int) -> Machine:
        return Machine(self, number)

    def state_machine(self, pairs: AppliedPairs) -> StateMachine:
        """One for a replica that starts."""
        return StateMachine(pairs, Sessions(rows_expired_max=self._rows_expired_max))

    @property
    def leader(self) -> Machine | None:
        """The machine that leads the latest term, if one does."""
        leading = [each for each in self.machines if each.replica and each.replica.core.role is Role.LEADER]
        return max(leading, key=lambda each: each.replica.core.term if each.replica else 0, default=None)

    def deliver(self, message: Message) -> None:
        """A message arrives at its machine, if something runs there."""
        machine = self.machines[message.to.replica]
        if machine.replica is not None:
            machine.touch()
            machine.replica.receive(message)

    def applied(self, index: int, time_ms: int, operation: Operation, outcome: Outcome, by: Member) -> None:
        """State Machine Safety, as its users see it: one operation and one outcome for each index, for ever."""
        found = (time_ms, operation, repr(outcome))
        known = self._outcomes.setdefault(index, found)
        assert known == found, f"entry {index} is {found} on {by}, and {known} elsewhere"

    def check(self) -> None:
        """Hold the invariants of each replica where something has happened."""
        touched = [self.machines[number] for number in sorted(self.touched)]
        self.touched.clear()
        for machine in touched:
            machine.check()
        self.history.check(machine.replica.core for machine in touched if machine.replica)

    def check_states(self) -> None:
        """Equal states at equal applied indexes."""
        states: dict[int, tuple[Any, ...]] = {}
        for machine in self.machines:
            if machine.replica is not None:
                state = machine.state()
                applied = machine.replica.state_machine.last_applied
                other = states.setdefault(applied, state)
                assert other == state, f"two states at index {applied}"


def _sessions_of(machine: StateMachine) -> list[tuple[Any, ...]]:
    """Every session and record."""
    sessions = machine._sessions
    return sorted(
        (index, each.client_id, each.floor, each.last_write_ms, is_used, sorted(each.records.items()))
        for table, is_used in ((sessions._by_index, True), (sessions._unused, False))
        for index, each in table.items()
    )
