"""One simulation of a whole cluster: managers, partitions and clients through a storm of faults."""

import gc
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from madkv.addresses import Address
from madkv.manager.placement import ClusterMachine
from madkv.operations import Own
from madkv.ranges import Ownership
from madkv.settings import MANAGERS, Settings
from madkv.state_machine import StateMachine
from madkv.testing.history import Operation
from madkv.testing.linearizability import Verdict, check
from madkv.testing.sim.cluster_clients import ClientHost
from madkv.testing.sim.group import Machine
from madkv.testing.sim.nodes import API_PORT, MAN_PORT, Node, NodeGroup
from madkv.testing.sim.operator import Operator
from madkv.testing.sim.reactor import Ended, Internet
from madkv.testing.sim.storm import Faults, Outcome, draw_tuning
from madkv.testing.sim.world import World

SHAPES = ((1, 1), (1, 3), (2, 1), (2, 1), (2, 3), (2, 3), (3, 1), (3, 3), (4, 1), (1, 5))
"""Partitions, and replicas of each."""
MANAGER_COUNTS = (1, 3, 3, 3, 5)
CLIENTS = 3
CALLS_MIN = 200
CALLS_AFTER = 3
FAULTS_MIN = 20
ROUGH_BEGINNING_CHANCE = 0.25
STRUCK_BEFORE_IT_OWNS_CHANCE = 0.2
STORM_SECONDS = 25.0
HEALED_SECONDS_MAX = 90.0
STEPS_BETWEEN_STATE_CHECKS = 2000
STRIKE_SECONDS_MAX = 0.012
"""From a call to when the leader that is at work on it is struck."""
QUIET_SECONDS = 8.0
"""How long a group that was just mended may need until calls to it go through as if nothing had been: elections, and
clients' waits."""
PROBE_SECONDS_MAX = 7.0
KEYS = (b"1", b"8", b"B", b"P", b"b", b"k", b"q", b"y", b"usertable_user1", b"usertable_user45", b"usertable_user8")


class GroupFaults(Faults):
    """What befalls one group of a cluster."""

    group: NodeGroup

    def __init__(self, storm: "ClusterStorm", group: NodeGroup) -> None:
        super().__init__(storm.world, group.network, group)
        self._storm = storm
        self._internet = storm.internet

    def _choices(self) -> tuple[tuple[Callable[[], None], int], ...]:
        return (
            (self._crash_one, 6),
            (self._crash_leader, 4),
            (self._crash_all, 1),
            (self._stop_one, 2),
            (self._restart_some, 12),
            (self._cut_one_off, 2),
            (self._cut_leader_off, 4),
            (self._split, 3),
            (self._cut_one_way, 2),
            (self._mend_network, 6),
            (self._bad_weather, 3),
            (self._slow_disk, 2),
            (self._hang_disk, 2),
            (self._long_silence, 1),
            (self._slow_machine, 2),
            (self._hand_over, 2),
            (self._own_anew, 0 if self.group.is_managers else 1),
            (self._wipe_a_disk, 4),
            (self._hours_pass, 1),
        )

    def _stop_one(self) -> None:
        """In good order."""
        if up := self._up():
            machine = self.world.chance.choice(up)
            self._struck("asked to end", str(machine))
            machine.stop()  # type: ignore[attr-defined]

    def cut_off(self, machine: Machine) -> None:
        """From its peers; often from everybody."""
        super().cut_off(machine)
        if self.world.chance.random() < 0.5:
            assert isinstance(machine, Node)
            self._internet.cut |= {frozenset((machine.host, other)) for other in self._storm.hosts}

    def _mend_network(self) -> None:
        super()._mend_network()
        self._internet.cut.clear()
        self._internet.loss, self._internet.delay_max = 0.0, 0.003

    def _bad_weather(self) -> None:
        super()._bad_weather()
        self._internet.loss = self.world.chance.choice((0.0, 0.05, 0.2))
        self._internet.delay_max = self.world.chance.choice((0.003, 0.05))

    def _own_anew(self) -> None:
        """A newer map gives the group what it has."""
        leader = self.group.leader
        if leader is not None and leader.replica is not None:
            machine = leader.replica.state_machine
            assert isinstance(machine, StateMachine)
            if machine.ownership.epoch:
                newer = Ownership(machine.ownership.epoch + 1, machine.ownership.ranges)
                self._struck("owned anew", f"{self.group.name} in epoch {newer.epoch}")
                leader.replica.propose(Own(newer), lambda outcome: None)

    def _wipe_a_disk(self) -> None:
        """One at a time: a group that has lost a majority of its disks has lost what they held."""
        self.look()
        if self.wiped is not None or len(self.group.machines) < 3:
            return
        node = self.world.chance.choice(self.group.nodes)
        if node.is_up:
            node.crash()
        self._generations += 1
        self._struck("disk wiped", str(node))
        node.wipe(self._generations)
        self.wiped = node
        node.start()

    def look(self) -> None:
        """Note when the one whose disk was lost is back."""
        node = self.wiped
        if node is not None and self._storm.is_settled(self.group):
            self.world.note("disk replaced", lambda: str(node))
            self.wiped = None

    def heal(self) -> None:
        """Everything runs, and as it should; but for what cannot without an operator."""
        self.world.note("healed", lambda: self.group.name)
        self._mend_network()
        for node in self.group.nodes:
            node.disk.delay_max = 0.004
            node.disk.go_on()
            node.clock.lag_max = 0.0
            node.goes_on = True
            if not node.is_up:
                node.start()

    def strike_leader(self) -> None:
        """While it has something to do."""
        if self._storm.is_calm or self.group.leader is None:
            return
        self.world.counts["struck in a call"] += 1
        strikes = (self._crash_leader, self._cut_leader_off, self._hand_over, self._stop_leader, self._disconnect)
        self.world.chance.choice(strikes)()

    def _stop_leader(self) -> None:
        if leader := self.group.leader:
            self._struck("asked to end", str(leader))
            leader.stop()  # type: ignore[attr-defined]

    def _disconnect(self) -> None:
        leader = self.group.leader
        assert isinstance(leader, Node)
        self._struck("disconnected", str(leader))
        self._internet.break_connections(leader.host)

    def lose_a_disk(self) -> None:
        """If that can be borne now."""
        self._wipe_a_disk()

    def crash_all(self) -> None:
        """At once."""
        self._crash_all()


class ClusterStorm:
    """A world with a cluster and its clients, and the faults that befall them."""

    def __init__(self, seed: int, keeps_trace: bool = False) -> None:
        self.world = World(seed, keeps_trace)
        chance = self.world.chance
        self.internet = Internet(self.world)
        partitions, rf = chance.choice(SHAPES)
        managers = chance.choice(MANAGER_COUNTS)
        addresses: list[Address] = [(f"10.1.0.{number}", MAN_PORT) for number in range(managers)]
        servers = [(f"10.2.{partition}.{number}", API_PORT) for partition in range(partitions) for number in range(rf)]
        splits = tuple(sorted(chance.sample(KEYS, partitions - 1))) if chance.random() < 0.3 else ()
        settings = Settings(rf, tuple(servers), splits)

        def group(partition: int, count: int) -> NodeGroup:
            pairs = chance.choice((1, 2, 1000))
            return NodeGroup(
                self.world, self.internet, count, draw_tuning(chance), partition, addresses, settings, pairs
            )

        self.managers = group(MANAGERS, managers)
        self.partitions = [group(partition, rf) for partition in range(partitions)]
        self.groups = [self.managers, *self.partitions]
        self.broken: list[Exception] = []
        operator = Operator(self.managers, addresses)
        for each in self.groups:
            each.broken = self.broken
            each.owns = self._check_owners
            for node in each.nodes:
                node.ended = operator.ended
        self.history: list[Operation] = []
        keys = sorted(chance.sample(KEYS, chance.choice((3, 5, 8))))
        self.clients = [
            ClientHost(
                self.world, self.internet, number, addresses, keys, self.history.append, self.broken, self._calling
            )
            for number in range(CLIENTS)
        ]
        self.strands = [strand for client in self.clients for strand in client.strands]
        self.hosts = [address for address, _ in (*addresses, *servers)] + [client.host for client in self.clients]
        self.faults = [GroupFaults(self, each) for each in self.groups]
        self._count = 0
        self._is_healed = False
        self._steps = 0
        self._probes = 0
        self._is_quiet = False
        self._waits_for_call = False

    # --- The course of it -----------------------------------------------------------------------------------------

    def run(self, seed: int) -> Outcome:
        """Go through all of it. Raises AssertionError for whatever does not hold."""
        observer: Any = self._logged
        globalLogPublisher.addObserver(observer)
        try:
            self._run()
            self._bury()
        finally:
            globalLogPublisher.removeObserver(observer)
        return Outcome(seed, len(self.history), self._struck_count, self.world.counts)

    def _run(self) -> None:
        world = self.world
        for node in self._nodes():
            world.later(world.chance.uniform(0, 1), self._start, node)
        for strand in self.strands:
            strand.wanted = CALLS_MIN // len(self.strands) + 1
            world.later(world.chance.uniform(0, 3), strand.go_on)
        world.later(world.chance.choice((0.5, 3.0, 6.0)), self._next_fault)
        if world.chance.random() < ROUGH_BEGINNING_CHANCE:
            faults = world.chance.choice((self.faults[0], self.faults[0], self.faults[-1]))
            world.later(world.chance.uniform(0.3, 3), faults.lose_a_disk)
            self._begin_roughly(world.chance.uniform(2, 6))
        if world.chance.random() < STRUCK_BEFORE_IT_OWNS_CHANCE:
            self._strike_before_it_owns(world.chance.choice(self.faults[1:]))
        self._until(self._is_storm_over, 100 * STORM_SECONDS, lambda: "the storm does not end")
        self._heal()
        for strand in self.strands:
            strand.wanted = max(strand.wanted, strand.done + CALLS_AFTER)
            strand.go_on()
        self._until(lambda: all(strand.is_done for strand in self.strands), HEALED_SECONDS_MAX, self._who_waits)
        self._until(self._are_all_settled, HEALED_SECONDS_MAX, lambda: "after healing a blank disk does not come back")
        self._until(self._is_even, HEALED_SECONDS_MAX, lambda: "after healing replicas do not come to the same state")
        for group in self.groups:
            group.check_states()
        finding = check(self.history)
        assert finding.verdict is Verdict.OK, f"the history is {finding.verdict.value}: {finding.why}"

    def _until(self, is_over: Callable[[], bool], seconds_max: float, otherwise: Callable[[], str]) -> None:
        world, groups = self.world, self.groups
        ends = world.now + seconds_max
        while not is_over():
            assert world.now < ends, otherwise()
            try:
                assert world.step(), "nothing happens any more"
            except Ended:
                pass
            if self.broken:
                raise self.broken[0]
            for group in groups:
                group.check()
            self._steps += 1
            if not self._steps % STEPS_BETWEEN_STATE_CHECKS:
                for group in groups:
                    group.check_states()

    def _bury(self) -> None:
        """Let go of all processes: a Deferred that has failed unheard says so when nobody holds it any more."""
        for group in self.groups:
            group.graves.clear()
        for client in self.clients:
            client.graves.clear()
        for node in self._nodes():
            if node.is_up:
                node.end()
        gc.collect()
        if self.broken:
            raise self.broken[0]

    def _logged(self, event: Any) -> None:
        failure = event.get("log_failure")
        if failure is not None and not failure.check(Ended, GeneratorExit):
            self.broken.append(AssertionError(f"logged: {event.get('log_format')}: {failure.getTraceback()}"))

    def _nodes(self) -> list[Node]:
        return [node for group in self.groups for node in group.nodes]

    def _start(self, node: Node) -> None:
        if not node.is_up:
            node.start()

    @property
    def is_calm(self) -> bool:
        """Whether nothing is to be struck now."""
        return self._is_healed or self._is_quiet

    @property
    def _struck_count(self) -> int:
        return self._count + sum(faults.count for faults in self.faults)

    def _is_storm_over(self) -> bool:
        is_enough = self.world.now >= STORM_SECONDS or all(strand.is_done for strand in self.strands)
        return is_enough and self._struck_count >= FAULTS_MIN and not self._is_quiet

    def _who_waits(self) -> str:
        waiting = [f"{strand.number}: {strand.waits_for}" for strand in self.strands if not strand.is_done]
        return f"after healing clients make no progress; waiting: {', '.join(waiting)}"

    def is_settled(self, group: NodeGroup) -> bool:
        """Whether the group is on the disks that there are, and the managers know it."""
        leader, lead = group.leader, self.managers.leader
        if leader is None or leader.replica is None or lead is None or lead.replica is None:
            return False
        core, members = leader.replica.core, {node.member for node in group.nodes}
        machine = lead.replica.state_machine
        assert isinstance(machine, ClusterMachine)
        slots = [machine.slots.get((group.partition, node.number)) for node in group.nodes]
        return (
            core.configuration.voters == members
            and not core.configuration.learners
            and core.commit_index >= core.last_configuration_index
            and {slot.disk for slot in slots if slot and not slot.is_vacant and not slot.is_catching_up}
            == {member.disk for member in members}
        )

    def _are_all_settled(self) -> bool:
        for faults in self.faults:
            faults.look()
        return all(faults.wiped is None for faults in self.faults) and all(map(self.is_settled, self.groups))

    def _is_even(self) -> bool:
        for group in self.groups:
            applied = {node.replica.state_machine.last_applied if node.replica else None for node in group.nodes}
            if len(applied) != 1 or None in applied:
                return False
        return True

    def _check_owners(self, changed: NodeGroup) -> None:
        """At no epoch does a key belong to two groups."""
        for epoch, ranges in changed.owned.items():
            for other in self.partitions:
                if other is not changed and epoch in other.owned:
                    both = sorted((*ranges, *other.owned[epoch]))
                    for lower, upper in pairwise(both):
                        assert lower.end is not None and lower.end <= upper.start, (
                            f"{changed.name} and {other.name} own the same keys in epoch {epoch}: {lower}, {upper}"
                        )

    # --- Faults ---------------------------------------------------------------------------------------------------

    def _next_fault(self) -> None:
        if self._is_healed:
            return
        chance = self.world.chance
        if not self._is_quiet:
            fault = chance.choices(
                (self._strike_a_group, self._strike_in_a_call, self._kill_a_client, self._cut_hosts, self._one_dies),
                (20, 10, 1, 2, 1),
            )[0]
            fault()
        self.world.later(chance.choice((0.05, 0.2, 0.6, 1.5)), self._next_fault)

    def _begin_roughly(self, ends: float) -> None:
        """Those of a group that begins hear of one another piece by piece, and of a disk that is gone by then."""
        chance, group = self.world.chance, self.managers if self.world.chance.random() < 0.8 else self.partitions[0]
        self.internet.cut.clear()
        if self.world.now < ends:
            pairs = combinations([node.host for node in group.nodes], 2)
            self.internet.cut |= {frozenset(pair) for pair in pairs if chance.random() < 0.5}
            self.world.later(chance.uniform(0.05, 0.5), self._begin_roughly, ends)

    def _strike_before_it_owns(self, faults: GroupFaults) -> None:
        """A group starts again that knows its members and not yet its keys, and there is no manager to tell it."""
        group = faults.group
        if self._is_healed or group.owned:
            return
        has_map = any(client.has_map for client in self.clients)
        if self._is_quiet or not has_map or any(node.replica is None for node in group.nodes):
            self.world.later(0.01, self._strike_before_it_owns, faults)
            return
        self._struck("struck before it owns", group.name)
        self.faults[0].crash_all()
        faults.crash_all()
        faults.heal()

    def _struck(self, kind: str, text: str) -> None:
        self._count += 1
        self.world.note(kind, lambda: text)

    def _strike_a_group(self) -> None:
        self.world.chance.choice(self.faults).strike()

    def _strike_in_a_call(self) -> None:
        """The leader of the next call's group will be struck while it is at work on that."""
        self._waits_for_call = True

    def _calling(self, client: ClientHost, key: bytes) -> None:
        if self._waits_for_call and not self.is_calm and client.has_map:
            self._waits_for_call = False
            faults = self.faults[1 + client.partition_of(key)]
            self.world.later(self.world.chance.uniform(0, STRIKE_SECONDS_MAX), faults.strike_leader)

    def _kill_a_client(self) -> None:
        client = self.world.chance.choice(self.clients)
        self._struck("client killed", client.host)
        client.kill()

    def _cut_hosts(self) -> None:
        """Some of all pairs."""
        pairs = list(combinations(self.hosts, 2))
        cut = self.world.chance.sample(pairs, len(pairs) // 3)
        self._struck("hosts cut", f"{len(cut)} pairs")
        self.internet.cut |= {frozenset(pair) for pair in cut}

    def _one_dies(self) -> None:
        """A partition, or all managers, or both are dead, and everything else is well: there calls go through."""
        dead = [self.world.chance.choice(self.faults)]
        if dead[0].group is not self.managers and self.world.chance.random() < 0.5:
            dead.append(self.faults[0])
        if any(each.group not in [faults.group for faults in dead] for each in self.faults[1:]):
            self._struck("dead for a while", ", ".join(faults.group.name for faults in dead))
            self._is_quiet = True
            for faults in self.faults:
                if faults in dead:
                    faults.crash_all()
                else:
                    faults.heal()
            if self.faults[0] in dead and self.world.chance.random() < 0.5:
                # Servers that have been members start and serve without managers.
                for faults in self.faults[1:]:
                    if faults not in dead:
                        self.world.note("restarted without managers", lambda name=faults.group.name: name)  # type: ignore[misc]
                        faults.crash_all()
                        faults.heal()
            self.world.later(QUIET_SECONDS, self._probe, [each for each in self.faults[1:] if each not in dead])

    def _probe(self, alive: list[GroupFaults]) -> None:
        """Calls to live partitions are never held up."""
        missing: set[str] = set()

        def ask(client: ClientHost, key: bytes) -> None:
            self._probes += 1
            name, called_ns = f"{client.host} {key!r}", self.world.now_ns
            number = 1000 + self._probes
            missing.add(name)

            def answered(value: bytes | None) -> None:
                missing.discard(name)
                self.history.append(Operation(number, "GET", key, None, called_ns, self.world.now_ns, value))

            asked: Deferred[None] = client.client.get(key).addCallback(answered)
            asked.addErrback(self._note_failure)

        # A group that has never been whole does not own anything yet; one whose members change is in between.
        well = {each.group.partition for each in alive if each.wiped is None and each.group.owned}
        for client in self.clients:
            for key in client.keys:
                if client.has_map and client.partition_of(key) in well:
                    ask(client, key)
        self.world.counts["probes"] += len(missing)
        self.world.later(PROBE_SECONDS_MAX, self._end_quiet, missing)

    def _note_failure(self, why: Failure) -> None:
        assert isinstance(why.value, Exception)
        self.broken.append(why.value)

    def _end_quiet(self, missing: set[str]) -> None:
        assert not missing, f"calls to live partitions are held up by a dead one: {sorted(missing)}"
        self._is_quiet = False

    def _heal(self) -> None:
        self._is_healed = True
        for faults in self.faults:
            faults.heal()
