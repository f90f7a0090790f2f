"""One simulation: a group and its clients through a storm of faults, and what must hold during and after it."""

from collections import Counter
from collections.abc import Callable
from random import Random

import attrs

from madkv.limits import SESSION_SECONDS
from madkv.operations import Own
from madkv.raft.bounds import Bounds
from madkv.raft.configuration import Configuration
from madkv.raft.replacement import next_step
from madkv.ranges import EVERYTHING, KeyRange, Ownership
from madkv.server.parts import Tuning
from madkv.state_machine import StateMachine
from madkv.testing.history import Operation
from madkv.testing.linearizability import Verdict, check
from madkv.testing.sim.clients import Client
from madkv.testing.sim.group import Group, Machine
from madkv.testing.sim.world import Network, Weather, World

SIZES = (1, 2, 3, 3, 3, 3, 4, 5, 5, 7, 9)
CLIENTS = 5
CALLS_MIN = 340
FAULTS_MIN = 12
CALLS_AFTER = 4
"""Calls that each client must be able to make once the world is healed."""
CALLS_MISSED = 6
"""Calls of each client that a replica misses which is left behind."""
SILENCE_SECONDS = 7.0
"""Longer than a stream of a snapshot waits for its receiver."""
HEALED_SECONDS_MAX = 60.0
STORM_SECONDS = 60.0
"""How long the storm lasts when clients get little done in it; what they have not done they do afterwards."""
STEPS_BETWEEN_STATE_CHECKS = 200


@attrs.frozen
class Outcome:
    """What a simulation that went well did."""

    seed: int
    calls: int
    faults: int
    counts: Counter[str]


class Storm:
    """A world, its group and its clients, and the faults that befall them."""

    def __init__(self, seed: int, keeps_trace: bool = False) -> None:
        self.world = World(seed, keeps_trace)
        chance = self.world.chance
        self.network = Network(self.world)
        tuning = draw_tuning(chance)
        count, rows_expired_max = chance.choice(SIZES), chance.choice((1, 5, 1000))
        self.group = Group(self.world, self.network, count, tuning, rows_expired_max)
        self.history: list[Operation] = []
        keys = [b"k%d" % number for number in range(chance.choice((2, 4, 8)))]
        self.clients = [Client(self.world, self.group, number, keys, self.history.append) for number in range(CLIENTS)]
        self.faults = Faults(self.world, self.network, self.group)
        self._is_healed = False
        self._steps = 0

    def run(self, seed: int) -> Outcome:
        """Go through all of it. Raises AssertionError for whatever does not hold."""
        for machine in self.group.machines:
            machine.start()
        for client in self.clients:
            client.wanted = CALLS_MIN // CLIENTS + 1
            self.world.later(self.world.chance.uniform(0, 2), client.go_on)
        self.world.later(1.5, self._next_fault)
        self._until(self._is_storm_over, 100 * STORM_SECONDS, "the storm does not end")
        self._is_healed = True
        self.faults.heal()
        for client in self.clients:
            client.wanted = max(client.wanted, client.done + CALLS_AFTER)
            client.go_on()
        self._until(
            lambda: all(client.is_done for client in self.clients),
            HEALED_SECONDS_MAX,
            "after healing clients make no progress",
        )
        self._until(
            lambda: self.faults.wiped is None,
            HEALED_SECONDS_MAX,
            "after healing a replica on a blank disk does not come back",
        )
        self._until(self._is_even, HEALED_SECONDS_MAX, "after healing the replicas do not come to the same state")
        if len(self.group.machines) > 2:
            self._leave_one_behind()
        self.group.check_states()
        self._judge()
        return Outcome(seed, len(self.history), self.faults.count, self.world.counts)

    def _leave_one_behind(self) -> None:
        """One misses some calls, begins to catch up, and is not heard for longer than a stream of a snapshot waits.

        If it gets a snapshot, that is in the middle of it.
        Then nobody calls any more, so that nothing but its own leader's patience brings it up to date.
        """
        chance = self.world.chance
        lonely = chance.choice([machine for machine in self.group.machines if machine is not self.group.leader])
        self.world.note("left behind", lambda: str(lonely.member))
        self.faults.cut_off(lonely)
        for client in self.clients:
            client.wanted = client.done + CALLS_MISSED
            client.go_on()
        is_done = "with one replica away clients make no progress"
        self._until(lambda: all(client.is_done for client in self.clients), HEALED_SECONDS_MAX, is_done)
        self.network.cut.clear()
        ends, enough = self.world.now + 1.0, chance.choice((1, 200, 600))
        self._until(lambda: lonely.staged_bytes >= enough or self.world.now >= ends, 2.0, "time stands still")
        self.world.counts["cut off while it is streamed to"] += lonely.staged_bytes > 0
        self.faults.cut_off(lonely)
        self._wait(SILENCE_SECONDS)
        self.network.cut.clear()
        self._until(self._is_even, HEALED_SECONDS_MAX, "a replica that was left behind does not catch up")

    def _wait(self, seconds: float) -> None:
        ends = self.world.now + seconds
        self._until(lambda: self.world.now >= ends, 2 * seconds + 1, "time stands still")

    def _is_storm_over(self) -> bool:
        is_enough = self.world.now >= STORM_SECONDS or all(client.is_done for client in self.clients)
        return is_enough and self.faults.count >= FAULTS_MIN

    def _is_even(self) -> bool:
        applied = {machine.replica.state_machine.last_applied for machine in self.group.machines if machine.replica}
        return len(applied) == 1

    def _until(self, is_over: Callable[[], bool], seconds_max: float, otherwise: str) -> None:
        ends = self.world.now + seconds_max
        while not is_over():
            assert self.world.now < ends, otherwise
            assert self.world.step(), "nothing happens any more"
            self.group.check()
            self._steps += 1
            if not self._steps % STEPS_BETWEEN_STATE_CHECKS:
                self.group.check_states()

    def _judge(self) -> None:
        finding = check(self.history)
        assert finding.verdict is Verdict.OK, f"the history is {finding.verdict.value}: {finding.why}"

    def _next_fault(self) -> None:
        """Something goes wrong, or is mended; some time later, something else."""
        if not self._is_healed:
            self.faults.strike()
            self.world.later(self.world.chance.choice((0.05, 0.3, 1.0, 3.0)), self._next_fault)


class Faults:
    """What befalls one group, and how it is mended."""

    def __init__(self, world: World, network: Network, group: Group) -> None:
        self.world = world
        self.network = network
        self.group = group
        self.count = 0
        """How often something went wrong."""
        self.wiped: Machine | None = None
        """Whose disk was lost, and whose member has not come back yet."""
        self._epoch = 0
        self._generations = 0

    def strike(self) -> None:
        """Something goes wrong, or is mended."""
        faults = self._choices()
        fault = self.world.chance.choices([each for each, _ in faults], [weight for _, weight in faults])[0]
        fault()

    def _choices(self) -> tuple[tuple[Callable[[], None], int], ...]:
        """What there is, and how often of each."""
        return (
            (self._crash_one, 6),
            (self._crash_leader, 4),
            (self._crash_all, 1),
            (self._restart_some, 10),
            (self._cut_one_off, 2),
            (self._cut_leader_off, 5),
            (self._split, 3),
            (self._cut_one_way, 3),
            (self._mend_network, 5),
            (self._bad_weather, 3),
            (self._slow_disk, 2),
            (self._hang_disk, 2),
            (self._long_silence, 1),
            (self._slow_machine, 3),
            (self._hand_over, 2),
            (self._change_ownership, 2),
            (self._wipe_a_disk, 1),
            (self._hours_pass, 1),
        )

    def _struck(self, kind: str, text: str) -> None:
        self.count += 1
        self.world.note(kind, lambda: text)

    def _up(self) -> list[Machine]:
        return [machine for machine in self.group.machines if machine.is_up]

    def _crash(self, machine: Machine) -> None:
        self._struck("crash", str(machine.member))
        machine.crash()

    def _crash_one(self) -> None:
        if up := self._up():
            self._crash(self.world.chance.choice(up))

    def _crash_leader(self) -> None:
        if leader := self.group.leader:
            self._crash(leader)

    def _crash_all(self) -> None:
        if up := self._up():
            self._struck("all crash", "at once")
            for machine in up:
                machine.crash()

    def _restart_some(self) -> None:
        for machine in self.group.machines:
            if not machine.is_up and self.world.chance.random() < 0.7:
                self.world.note("restart", lambda machine=machine: str(machine.member))  # type: ignore[misc]
                machine.start()

    def _cut_one_off(self) -> None:
        self.cut_off(self.world.chance.choice(self.group.machines))

    def _cut_leader_off(self) -> None:
        """From its peers, not from its clients: what they ask of it now is not what the group will come to."""
        if leader := self.group.leader:
            self.cut_off(leader)

    def cut_off(self, machine: Machine) -> None:
        lonely = machine.number
        self._struck("cut off", f"replica {lonely}")
        for other in range(len(self.group.machines)):
            self.network.cut |= {(lonely, other), (other, lonely)}

    def _split(self) -> None:
        numbers = [machine.number for machine in self.group.machines]
        self.world.chance.shuffle(numbers)
        at = self.world.chance.randrange(len(numbers)) + 1
        self._struck("split", f"{sorted(numbers[:at])} from {sorted(numbers[at:])}")
        for one in numbers[:at]:
            for other in numbers[at:]:
                self.network.cut |= {(one, other), (other, one)}

    def _cut_one_way(self) -> None:
        one, other = (self.world.chance.choice(self.group.machines).number for _ in range(2))
        self._struck("one-way cut", f"{one} to {other}")
        self.network.cut.add((one, other))

    def _mend_network(self) -> None:
        self.world.note("network mended", lambda: "")
        self.network.cut.clear()
        self.network.weather = Weather()

    def _bad_weather(self) -> None:
        chance = self.world.chance
        weather = Weather(
            chance.choice((0.0, 0.1, 0.4)), chance.choice((0.0, 0.2)), chance.choice((0.005, 0.1)),
            chance.choice((0.0, 0.05)),
        )  # fmt: skip
        self._struck("bad weather", str(weather))
        self.network.weather = weather

    def _slow_disk(self) -> None:
        machine = self.world.chance.choice(self.group.machines)
        machine.disk.delay_max = self.world.chance.choice((0.004, 0.1, 1.0))
        self._struck("slow disk", f"{machine.member}: up to {machine.disk.delay_max} s")

    def _hang_disk(self) -> None:
        """Nothing that it is given is done, for some seconds; mostly where it hurts."""
        machine = self.group.leader or self.world.chance.choice(self.group.machines)
        seconds = self.world.chance.choice((1.0, 4.0, 10.0))
        self._struck("disk hangs", f"{machine.member}: for {seconds} s")
        machine.disk.hang(seconds)

    def _long_silence(self) -> None:
        """One replica hears nothing for longer than a stream of a snapshot waits, while the others go on."""
        lonely = self.world.chance.choice(self.group.machines).number
        self._struck("long silence", f"replica {lonely}")
        cut = {pair for other in range(len(self.group.machines)) for pair in ((lonely, other), (other, lonely))}
        self.network.cut |= cut
        self.world.later(SILENCE_SECONDS, lambda: self.network.cut.difference_update(cut))

    def _slow_machine(self) -> None:
        """Then a disk may be done before the replica comes to what it had planned before."""
        machine = self.world.chance.choice(self.group.machines)
        machine.clock.lag_max = self.world.chance.choice((0.0, 0.005, 0.05))
        self._struck("slow machine", f"{machine.member}: late by up to {machine.clock.lag_max} s")

    def _hand_over(self) -> None:
        leader = self.group.leader
        if leader is not None and leader.replica is not None:
            to = self.world.chance.choice(self.group.machines).member
            if leader.replica.core.transfer_leadership(to):
                self._struck("handed over", f"{leader.member} to {to}")

    def _hours_pass(self) -> None:
        """On the machine that leads, mostly: then every session has expired."""
        machine = self.group.leader or self.world.chance.choice(self.group.machines)
        self._struck("hours pass", str(machine.member))
        machine.clock.jump(2 * SESSION_SECONDS)

    def _change_ownership(self) -> None:
        """For a while the group does not own what lies behind a key."""
        leader = self.group.leader
        if leader is None or leader.replica is None:
            return
        part = Ownership(self._epoch + 1, (KeyRange(b"", b"k1"),))
        whole = Ownership(self._epoch + 2, EVERYTHING.ranges)
        self._epoch += 2
        self._struck("ownership", f"only {part.ranges[0]} for a while")
        leader.replica.propose(Own(part), lambda outcome: None)
        self.world.later(0.5, lambda: self._own_again(whole))

    def _own_again(self, whole: Ownership) -> None:
        """Keep saying so until it is so: the part may come late."""
        leader = self.group.leader
        if leader is not None and leader.replica is not None:
            machine = leader.replica.state_machine
            assert isinstance(machine, StateMachine)
            if machine.ownership.epoch >= whole.epoch:
                return
            leader.replica.propose(Own(whole), lambda outcome: None)
        self.world.later(0.5, lambda: self._own_again(whole))

    # --- A replica whose disk is lost ---------------------------------------------------------------------------------

    def _wipe_a_disk(self) -> None:
        """One at a time: a group that has lost a majority of its disks has lost what they held."""
        if self.wiped is not None or len(self.group.machines) < 3:
            return
        machine = self.world.chance.choice(self.group.machines)
        if machine.is_up:
            machine.crash()
        self._generations += 1
        self._struck("disk wiped", str(machine.member))
        machine.wipe(self._generations)
        machine.start()
        self.wiped = machine
        self._replace_member()

    def _replace_member(self) -> None:
        """What servers do once their managers have given up the old disk and know the new one."""
        assert self.wiped is not None
        leader = self.group.leader
        if leader is not None and leader.replica is not None:
            core = leader.replica.core
            wanted = Configuration(frozenset(machine.member for machine in self.group.machines))
            step = next_step(
                core.configuration,
                wanted,
                lambda member: member in core.progress and core.progress[member].match_index >= core.commit_index,
            )
            if step is not None:
                leader.replica.change_members(step)
            elif core.configuration.voters == wanted.voters and core.commit_index >= core.last_configuration_index:
                new = self.wiped.member
                self.world.note("disk replaced", lambda: str(new))
                self.wiped = None
                return
        self.world.later(0.2, self._replace_member)

    def heal(self) -> None:
        """Everything runs, and as it should."""
        self.world.note("healed", lambda: "")
        self.network.cut.clear()
        self.network.weather = Weather()
        for machine in self.group.machines:
            machine.disk.delay_max = 0.004
            machine.disk.go_on()
            machine.clock.lag_max = 0.0
            if not machine.is_up:
                machine.start()


def draw_tuning(chance: Random) -> Tuning:
    """Any, mostly such that things happen often."""
    return Tuning(
        flush_bytes=chance.choice((1, 2000, 1 << 20)),
        flush_entries=chance.choice((1, 5, 20, 100)),
        log_entries_kept=chance.choice((0, 5, 30, 1000)),
        log_bytes_kept=chance.choice((1000, 1 << 30)),
        log_bytes_held_max=chance.choice((1000, 10_000, 1 << 30)),
        applied_per_slice=chance.choice((1, 3, 256)),
        uncommitted_bytes_max=chance.choice((300, 1 << 20, 1 << 20)),
        piece_bytes=chance.choice((1, 300, 1 << 20)),
        bounds=_draw_bounds(chance),
    )


def _draw_bounds(chance: Random) -> Bounds:
    append_bytes = chance.choice((200, 1000, 1 << 20))
    return Bounds(
        append_bytes=append_bytes,
        append_entries=chance.choice((1, 3, 1024)),
        in_flight_bytes=append_bytes * chance.choice((1, 4)),
        turn_bytes=chance.choice((200, 1 << 20)),
        turn_entries=chance.choice((1, 4, 2048)),
        apply_bytes=chance.choice((200, 1 << 20)),
        tail_bytes_kept=chance.choice((0, 1000, 1 << 20)),
    )
