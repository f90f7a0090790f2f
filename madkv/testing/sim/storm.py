"""One simulation: a group and its clients through a storm of faults, and what must hold during and after it."""

from collections import Counter
from collections.abc import Callable

import attrs

from madkv.limits import SESSION_SECONDS
from madkv.operations import Own
from madkv.raft.configuration import Configuration
from madkv.ranges import EVERYTHING, KeyRange, Ownership
from madkv.server.replica import Tuning
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
        tuning = Tuning(
            flush_bytes=chance.choice((1, 2000, 1 << 20)),
            flush_entries=chance.choice((1, 5, 20, 100)),
            log_entries_kept=chance.choice((0, 5, 30, 1000)),
            log_bytes_kept=chance.choice((1000, 1 << 30)),
            applied_per_slice=chance.choice((1, 3, 256)),
            tail_bytes_kept=chance.choice((0, 1000, 1 << 20)),
            uncommitted_bytes_max=chance.choice((300, 1 << 20, 1 << 20)),
        )
        self.group = Group(self.world, self.network, chance.choice(SIZES), tuning)
        self.history: list[Operation] = []
        keys = [b"k%d" % number for number in range(chance.choice((2, 4, 8)))]
        self.clients = [Client(self.world, self.group, number, keys, self.history.append) for number in range(CLIENTS)]
        self._faults = 0
        self._is_healed = False
        self._epoch = 0
        self._wiped: Machine | None = None
        self._generations = 0
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
        self._heal()
        for client in self.clients:
            client.wanted = max(client.wanted, client.done + CALLS_AFTER)
            client.go_on()
        self._until(
            lambda: all(client.is_done for client in self.clients),
            HEALED_SECONDS_MAX,
            "after healing clients make no progress",
        )
        self._until(
            lambda: self._wiped is None,
            HEALED_SECONDS_MAX,
            "after healing a replica on a blank disk does not come back",
        )
        self._until(self._is_even, HEALED_SECONDS_MAX, "after healing the replicas do not come to the same state")
        self.group.check_states()
        self._judge()
        return Outcome(seed, len(self.history), self._faults, self.world.counts)

    def _is_storm_over(self) -> bool:
        is_enough = self.world.now >= STORM_SECONDS or all(client.is_done for client in self.clients)
        return is_enough and self._faults >= FAULTS_MIN

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

    # --- Faults -----------------------------------------------------------------------------------------------------

    def _next_fault(self) -> None:
        """Something goes wrong, or is mended; some time later, something else."""
        if self._is_healed:
            return
        chance = self.world.chance
        faults = (
            (self._crash_one, 6),
            (self._crash_leader, 4),
            (self._crash_all, 1),
            (self._restart_some, 10),
            (self._cut_one_off, 4),
            (self._split, 3),
            (self._cut_one_way, 3),
            (self._mend_network, 5),
            (self._bad_weather, 3),
            (self._slow_disk, 2),
            (self._hand_over, 2),
            (self._change_ownership, 1),
            (self._wipe_a_disk, 1),
            (self._hours_pass, 1),
        )
        fault = chance.choices([each for each, _ in faults], [weight for _, weight in faults])[0]
        fault()
        self.world.later(chance.choice((0.05, 0.3, 1.0, 3.0)), self._next_fault)

    def _struck(self, kind: str, text: str) -> None:
        self._faults += 1
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
        lonely = self.world.chance.choice(self.group.machines).number
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
            if leader.replica.state_machine.ownership.epoch >= whole.epoch:
                return
            leader.replica.propose(Own(whole), lambda outcome: None)
        self.world.later(0.5, lambda: self._own_again(whole))

    # --- A replica whose disk is lost ---------------------------------------------------------------------------------

    def _wipe_a_disk(self) -> None:
        """One at a time: a group that has lost a majority of its disks has lost what they held."""
        if self._wiped is not None or len(self.group.machines) < 3:
            return
        machine = self.world.chance.choice(self.group.machines)
        if machine.is_up:
            machine.crash()
        self._generations += 1
        self._struck("disk wiped", str(machine.member))
        machine.wipe(self._generations)
        machine.start()
        self._wiped = machine
        self._replace_member()

    def _replace_member(self) -> None:
        """What an operator does, step by step: the old disk out, the new one in as a learner, then as a voter."""
        assert self._wiped is not None
        new, leader = self._wiped.member, self.group.leader
        if leader is not None and leader.replica is not None:
            core = leader.replica.core
            voters, learners = core.configuration.voters, core.configuration.learners
            gone = {each for each in voters if each.replica == new.replica and each != new}
            wanted: Configuration | None = None
            if gone:
                wanted = Configuration(voters - gone, learners)
            elif new in learners:
                # It may have a vote once it holds what is committed: until then it would only be in the way.
                if new in core.progress and core.progress[new].match_index >= core.commit_index:
                    wanted = Configuration(voters | {new}, learners - {new})
            elif new not in voters:
                wanted = Configuration(voters, learners | {new})
            elif core.commit_index >= core.last_configuration_index:
                self.world.note("disk replaced", lambda: str(new))
                self._wiped = None
                return
            if wanted is not None:
                leader.replica.change_members(wanted)
        self.world.later(0.2, self._replace_member)

    def _heal(self) -> None:
        self._is_healed = True
        self.world.note("healed", lambda: "")
        self.network.cut.clear()
        self.network.weather = Weather()
        for machine in self.group.machines:
            machine.disk.delay_max = 0.004
            if not machine.is_up:
                machine.start()


def simulate(seed: int) -> Outcome:
    """One seed from beginning to end."""
    return Storm(seed).run(seed)
