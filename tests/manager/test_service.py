"""A manager's port: what servers, clients, operators and other managers get, and in which words they are refused."""

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.errors import MadKVError, NotLeader
from madkv.limits import CALLS_PER_CONNECTION_MAX
from madkv.manager.introduction import Introduced, Introducing
from madkv.manager.placement import ClusterMachine, cluster_id, first_cut
from madkv.manager.registrar import Registrar
from madkv.manager.service import ManagerFactory
from madkv.operations import FillManager, Found, Operation, Outcome
from madkv.partitions import PartitionMap
from madkv.raft.configuration import Configuration, Member
from madkv.ranges import Ownership
from madkv.server.disk import InlineDisk
from madkv.server.replica import Answered, Replica
from madkv.settings import MANAGERS, Settings
from madkv.storage.overlay import AppliedPairs
from madkv.storage.twin import TwinDisk, TwinStorage
from madkv.wire import codec, commands
from madkv.wire.boxes import Box, field, join_blob
from tests.test_service import Client, raise_again

ME = Member(0, b"m" * 16)
MANAGERS_OF_THREE = Configuration(frozenset((ME, Member(1, b"n" * 16), Member(2, b"o" * 16))))
SETTINGS = Settings(3, tuple(("127.0.0.1", 3777 + number) for number in range(6)))
ALONE = Settings(1, (("127.0.0.1", 3777), ("127.0.0.1", 3778)))
PORTS = (1, 2, 3)


class Manager:
    """A manager's service on a real replica, in a group of one that may say of itself that it is of three."""

    def __init__(self, settings: Settings = SETTINGS, managers: Configuration = MANAGERS_OF_THREE) -> None:
        clock: Any = Clock()
        self.settings, self.managers = settings, managers
        storage = TwinStorage(TwinDisk(), Configuration(frozenset((ME,))))
        self.machine = ClusterMachine()
        self.replica = Replica(
            ME, storage, AppliedPairs(storage), InlineDisk(), clock, lambda message: None,
            lambda n: 0, raise_again, machine=self.machine,
        )  # fmt: skip
        self.replica.start()
        self.factory = ManagerFactory(clock, b"m.0", lambda: {"term": 1})
        self.registrar = self.factory.registrar = Registrar(
            self.replica, self.machine, ME, settings, PORTS[: len(managers.voters)], lambda: managers
        )
        self.client: Any = Client(self.factory)  # type: ignore[arg-type]

    def found(self) -> "Manager":
        cut = first_cut(self.settings.partitions)
        assert self.apply(Found(self.settings, self.managers, cut)) is None
        self.factory.cluster = self.machine.cluster.encode()
        return self

    def apply(self, operation: Operation) -> Outcome:
        outcomes: list[Outcome] = []
        self.replica.propose(operation, outcomes.append)
        return outcomes.pop()

    def register(self, partition: int, replica: int, /, **other: Any) -> Box:
        return self.client.call(codec.REGISTER, register_fields(self.settings, partition, replica, **other))

    def register_all(self, *partitions: int) -> None:
        for partition in partitions:
            for replica in range(self.settings.rf):
                assert b"_error" not in self.register(partition, replica)


def register_fields(settings: Settings, partition: int, replica: int, /, **other: Any) -> bytes:
    """The arguments of a server that fits, as bytes; any of them may be another."""
    ports = [3700 + 10 * partition + number for number in range(settings.rf)]
    peers = [f"127.0.0.1:{port}" for number, port in enumerate(ports) if number != replica]
    values: dict[str, Any] = {
        "cluster": "",
        "partition": partition,
        "replica": replica,
        "disk": b"%016d" % (10 * partition + replica),
        "api_port": 3777 + settings.rf * partition + replica,
        "p2p_port": ports[replica] if replica < len(ports) else 1,
        "peers": ",".join(peers),
        "rf": settings.rf,
        **other,
    }
    parts = []
    for name, value in values.items():
        if value is not None:
            text = value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
            parts.append(field(name.encode(), text))
    return b"".join(parts)


class RegisterTest(SynchronousTestCase):
    def refused(self, box: Box, code: bytes = b"REFUSED") -> str:
        self.assertEqual(box.get(b"_error_code"), code, box)
        return box[b"_error_description"].decode()

    def test_a_group_comes_together(self) -> None:
        manager = Manager().found()
        for replica in range(3):
            box = manager.register(0, replica)
            self.assertEqual(box[b"cluster"].decode(), cluster_id(MANAGERS_OF_THREE))
            self.assertEqual(box[b"epoch"], b"1")
            self.assertEqual(Ownership.decode(join_blob(box, b"ownership") or b""), manager.machine.ownership_of(0))
            wanted = Configuration.decode(box[b"wanted"])
            self.assertEqual({each.replica for each in wanted.voters}, set(range(replica + 1)))
            self.assertEqual(b"first" in box, replica == 2)
        self.assertEqual(Configuration.decode(box[b"first"]), wanted)
        self.assertEqual(manager.register(0, 0)[b"first"], box[b"first"])

    def test_nothing_is_proposed_when_nothing_changes(self) -> None:
        manager = Manager().found()
        manager.register_all(0)
        before = manager.replica.core.log.last_index
        for _ in range(3):
            self.assertNotIn(b"_error", manager.register(0, 1, cluster=manager.machine.cluster))
        self.assertEqual(manager.replica.core.log.last_index, before)

    def test_what_does_not_fit(self) -> None:
        manager = Manager().found()
        manager.register_all(0)
        cluster = manager.machine.cluster
        for partition, replica, other, line in (
            (0, 1, {"cluster": "0123456789abcdef"}, "this server's directory belongs to cluster 0123456789abcdef; "
             f"these managers are those of cluster {cluster}: see its --backer and its --managers"),
            (2, 0, {}, "there is no partition 2: the managers' --servers are 6 with --server-rf 3, so partitions go "
             "from 0 to 1"),
            (1, 3, {"peers": "a:1,b:2"}, "there is no replica 3: the managers' --server-rf is 3"),
            (1, 0, {"api_port": 9}, "s1.0 has --api-port 9; the managers' --servers says 127.0.0.1:3780"),
            (1, 0, {"peers": "", "rf": 1}, "s1.0 has --peers for 1 replicas; the managers' --server-rf is 3"),
            (1, 0, {"peers": "a:1,b:2,c:3,d:4", "rf": 5}, "s1.0 has --peers for 5 replicas; the managers' --server-rf "
             "is 3"),
            (0, 1, {"p2p_port": 9}, "s0.1 and s0.0 do not agree about the p2p port of s0.1: 9 and 3701; see their "
             "--p2p-port and --peers"),
            (0, 1, {"peers": "h:3702,h:3700"}, "s0.1 and s0.0 do not agree about the p2p port of s0.0: 3702 and 3700; "
             "see their --p2p-port and --peers"),
            (0, 1, {"disk": b"x" * 16}, "s0.1 is registered on another disk. If that disk is lost for good: "
             "`madkv replace-disk s0.1 --managers …`, then start this again"),
        ):  # fmt: skip
            before = manager.replica.core.log.last_index
            self.assertEqual(self.refused(manager.register(partition, replica, **other)), line)
            self.assertEqual(manager.replica.core.log.last_index, before, "a refusal is not worth an entry")

    def test_a_server_of_project_2(self) -> None:
        manager = Manager(ALONE, Configuration(frozenset((ME,)))).found()
        box = manager.register(1, 0, p2p_port=0)
        self.assertEqual(len(Configuration.decode(box[b"first"]).voters), 1)
        self.assertEqual(
            self.refused(manager.register(1, 0, p2p_port=0, disk=b"x" * 16)),
            "s1 is registered on another disk, which has all of its data: start it on the directory it had",
        )

    def test_arguments_that_are_none(self) -> None:
        manager = Manager().found()
        for name in ("cluster", "partition", "replica", "disk", "api_port", "p2p_port", "peers", "rf"):
            self.assertEqual(
                self.refused(manager.register(0, 0, **{name: None}), b"INVALID_ARGUMENT"),
                f"the argument {name!r} is missing",
            )
        for other in (
            {"disk": b"short"}, {"peers": b"\xff"}, {"cluster": b"\xff"}, {"peers": "nonsense"}, {"peers": "a:1,a:1"},
            {"peers": ",".join(f"h:{port}" for port in range(1, 5000))},
            {"rf": 1}, {"p2p_port": 0}, {"p2p_port": 70_000}, {"replica": -1}, {"api_port": "x"},
        ):  # fmt: skip
            self.refused(manager.register(0, 0, **other), b"INVALID_ARGUMENT")
        self.assertEqual(manager.machine.missing(), ["s0.0", "s0.1", "s0.2", "s1.0", "s1.1", "s1.2"])
        self.assertIn("cluster 'a\\nb';", self.refused(manager.register(0, 0, cluster="a\nb")))
        # Numbers that no entry could hold.
        self.assertIn("no partition", self.refused(manager.register(0, 0, partition=2**63 - 1)))
        self.assertIn("no replica", self.refused(manager.register(0, 0, replica=2**63 - 1)))

    def test_the_declared_command_is_this_one(self) -> None:
        manager = Manager().found()
        manager.register_all(0)
        values = {
            "cluster": b"", "partition": 0, "replica": 0, "disk": b"%016d" % 0, "api_port": 3777, "p2p_port": 3700,
            "peers": b"127.0.0.1:3701,127.0.0.1:3702", "rf": 3, "has_vote": True,
        }  # fmt: skip
        strings = commands.Register.makeArguments(values, None)
        fields = b"".join(field(name, value) for name, value in strings.items())
        box = manager.client.call(codec.REGISTER, fields)
        answer = commands.Register.parseResponse(box, None)
        self.assertEqual(answer["epoch"], 1)
        self.assertEqual(Configuration.decode(answer["first"]), manager.machine.firsts[0])


class OtherCallsTest(SynchronousTestCase):
    def call(self, manager: Manager, command: bytes, fields: bytes = b"") -> tuple[bytes, str]:
        box = manager.client.call(command, fields)
        return box.get(b"_error_code", b""), box.get(b"_error_description", b"").decode()

    def replace(self, manager: Manager, node: str) -> tuple[bytes, str]:
        return self.call(manager, codec.REPLACE_DISK, field(b"node", node.encode(errors="surrogateescape")))

    def test_hello(self) -> None:
        manager = Manager()
        hello = codec.integer(b"version", codec.PROTOCOL_VERSION)
        box = manager.client.call(codec.HELLO, hello)
        self.assertEqual((box[b"node"], box[b"boot"], box[b"role"], box[b"cluster"]), (b"m.0", b"", b"manager", b""))
        manager.found()
        cluster = manager.client.call(codec.HELLO, hello)[b"cluster"]
        self.assertEqual(cluster.decode(), cluster_id(MANAGERS_OF_THREE))
        code, _ = self.call(manager, codec.HELLO, codec.integer(b"version", 99))
        self.assertEqual(code, b"VERSION_MISMATCH")

    def test_the_map(self) -> None:
        manager = Manager()
        self.assertEqual(self.call(manager, codec.GET_MAP), (b"BUSY", "the managers are about to found the cluster"))
        manager.found()
        manager.register_all(0)
        manager.register(1, 1)
        self.assertEqual(self.call(manager, codec.GET_MAP), (b"BUSY", "waiting for s1.0, s1.2 (4 of 6 registered)"))
        manager.register_all(1)
        box = manager.client.call(codec.GET_MAP)
        found = PartitionMap.decode(join_blob(box, b"map") or b"")
        self.assertEqual(found, manager.machine.partition_map())
        self.assertEqual(found.replicas[1][2], ("127.0.0.1", 3782))

    def test_before_the_managers_have_found_each_other(self) -> None:
        manager = Manager()
        manager.factory.registrar = None
        for command, fields in (
            (codec.GET_MAP, b""),
            (codec.REGISTER, register_fields(SETTINGS, 0, 0)),
            (codec.REPLACE_DISK, field(b"node", b"s0.1")),
        ):
            self.assertEqual(self.call(manager, command, fields), (b"BUSY", "this manager waits for the others"))

    def test_replacing_a_disk(self) -> None:
        manager = Manager().found()
        manager.register_all(0)
        self.assertEqual(self.replace(manager, "s0.1"), (b"", ""))
        self.assertEqual(self.replace(manager, "s0.2"), (b"REFUSED", "one disk at a time: that of s0.1 is vacant"))
        self.assertNotIn(b"_error", manager.register(0, 1, disk=b"x" * 16))
        self.assertTrue(manager.machine.slots[0, 1].is_catching_up)
        self.assertNotIn(b"_error", manager.register(0, 1, disk=b"x" * 16, has_vote="True"))
        self.assertFalse(manager.machine.slots[0, 1].is_catching_up)
        self.assertEqual(self.replace(manager, "m.2"), (b"", ""))

    def test_with_tls_some_calls_are_for_operators(self) -> None:
        lines: list[str] = []
        manager = Manager().found()
        manager.register_all(0, 1)
        self.patch(manager.factory.refusals, "say", lambda what, line: lines.append(f"{what}: {line}"))

        async def transfer(replica: int) -> int:
            return 7

        manager.factory.transfer_leader = transfer
        is_vacant = dict.fromkeys(manager.machine.slots, False)
        for names, shown in (
            (["madkv://client/alice"], "client alice"),
            (["madkv://client/operator"], "client operator"),
            (["madkv://server/s0.1"], "server s0.1"),
            (["madkv://manager/m.0", "madkv://client/bob"], "client bob and manager m.0"),
        ):
            other: Any = Client(manager.factory, *names)  # type: ignore[arg-type]
            for command, name, fields in (
                (codec.REPLACE_DISK, "ReplaceDisk", field(b"node", b"s0.1")),
                (codec.TRANSFER_LEADER, "TransferLeader", codec.integer(b"replica", 1)),
            ):
                box = other.call(command, fields)
                line = f"{name} is for operators: the certificate is of {shown}; see docs/tls.md"
                self.assertEqual((box[b"_error_code"], box[b"_error_description"].decode()), (b"REFUSED", line))
                self.assertIn(f"{line}: refused a call of ", lines.pop())
            for command in (codec.STATUS, codec.GET_MAP):
                self.assertNotIn(b"_error", other.call(command))
        self.assertEqual(lines, [])
        self.assertEqual({place: slot.is_vacant for place, slot in manager.machine.slots.items()}, is_vacant)
        operator: Any = Client(manager.factory, "madkv://operator/alice")  # type: ignore[arg-type]
        self.assertEqual(operator.call(codec.TRANSFER_LEADER, codec.integer(b"replica", 1))[b"term"], b"7")
        self.assertNotIn(b"_error", operator.call(codec.REPLACE_DISK, field(b"node", b"s0.1")))
        self.assertTrue(manager.machine.slots[0, 1].is_vacant)

    def test_nodes_that_are_none(self) -> None:
        manager = Manager().found()
        for node, code in (("x", b"INVALID_ARGUMENT"), ("\udcff", b"INVALID_ARGUMENT"), ("s7.0", b"REFUSED")):
            self.assertEqual(self.replace(manager, node)[0], code)
        for node in ("s0", "m"):
            self.assertEqual(
                self.replace(manager, node),
                (b"INVALID_ARGUMENT", f"{node} has 3 replicas; say which, such as {node}.1"),
            )
        self.assertEqual(
            self.call(manager, codec.REPLACE_DISK), (b"INVALID_ARGUMENT", "the argument 'node' is missing")
        )

    def test_status(self) -> None:
        box = Manager().client.call(codec.STATUS)
        facts = json.loads(join_blob(box, b"status") or b"")
        self.assertEqual((facts["node"], facts["term"]), ("m.0", 1))

    def test_what_is_no_call(self) -> None:
        manager = Manager()
        for command in (b"StartTLS", b"Get", codec.INTRODUCE):
            self.assertEqual(self.call(manager, command)[0], b"UNHANDLED")
        manager.client.protocol.dataReceived(field(b"x", b"y") + b"\0\0")
        self.assertTrue(manager.client.transport.disconnecting)


class FollowerReplica:
    """One that does not lead."""

    def propose(self, operation: Operation, answered: Answered) -> None:
        answered(NotLeader("this replica does not lead its group; leader: 2", 2))

    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        released(NotLeader("this replica does not lead its group; leader: 2", 2))


class SilentReplica:
    """One that does not come to an answer, and then to this one."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[Any], None]] = []

    def propose(self, operation: Operation, answered: Answered) -> None:
        self.waiting.append(answered)

    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        self.waiting.append(released)


class BrokenReplica(FollowerReplica):
    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        raise RuntimeError("the replica is broken")


class OtherReplicasTest(SynchronousTestCase):
    def manager(self, replica: Any) -> Manager:
        manager = Manager().found()
        manager.register_all(0, 1)
        manager.factory.registrar = Registrar(replica, manager.machine, ME, SETTINGS, PORTS, lambda: MANAGERS_OF_THREE)
        return manager

    def test_a_follower_says_who_leads(self) -> None:
        manager = self.manager(FollowerReplica())
        for box in (
            manager.register(0, 1),
            manager.register(0, 1, disk=b"x" * 16),  # also what it would have to refuse: its state may be old
            manager.client.call(codec.REPLACE_DISK, field(b"node", b"s0.1")),
        ):
            self.assertEqual((box[b"_error_code"], box[b"leader"]), (b"NOT_LEADER", b"2"))
        self.assertIn(b"map", manager.client.call(codec.GET_MAP))

    def test_a_failure_is_one_call_s(self) -> None:
        manager = self.manager(BrokenReplica())
        self.assertEqual(manager.register(0, 1)[b"_error_code"], b"INTERNAL_ERROR")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertIn(b"map", manager.client.call(codec.GET_MAP))

    def test_calls_in_flight_are_bounded(self) -> None:
        replica = SilentReplica()
        manager = self.manager(replica)
        fields = register_fields(SETTINGS, 0, 1)
        for _ in range(CALLS_PER_CONNECTION_MAX + 5):
            manager.client.send(codec.REGISTER, fields)
        self.assertEqual(len(replica.waiting), CALLS_PER_CONNECTION_MAX)
        self.assertEqual(manager.client.transport.producerState, "paused")
        for released in list(replica.waiting):
            released(None)
        self.assertEqual(manager.client.transport.producerState, "producing")
        self.assertEqual(len(manager.client.answers()), CALLS_PER_CONNECTION_MAX)

    def test_a_client_that_has_gone_is_no_matter(self) -> None:
        replica = SilentReplica()
        manager = self.manager(replica)
        manager.client.send(codec.REGISTER, register_fields(SETTINGS, 0, 1))
        manager.client.protocol.connectionLost()
        self.assertEqual(manager.factory.connections, set())
        replica.waiting[0](None)


class IntroduceTest(SynchronousTestCase):
    """What a manager that has a group says to one on an empty directory."""

    def introduce(self, manager: Manager, member: Member, **other: Any) -> Introduced | MadKVError:
        registrar, settings = other.get("registrar", manager.registrar), other.get("settings", SETTINGS)
        claim = Introducing(member, other.get("ports", PORTS), 0, settings)
        done: Deferred[Introduced] = Deferred.fromCoroutine(registrar.introduce(claim))
        results: list[Any] = []
        done.addBoth(results.append)
        (result,) = results
        if isinstance(result, Introduced):
            return result
        error = result.value
        assert isinstance(error, MadKVError), result
        return error

    def assert_taken(self, answer: Introduced | MadKVError) -> None:
        self.assertEqual(answer, Introduced(ME, Configuration(frozenset()), MANAGERS_OF_THREE))

    def test_one_of_the_first(self) -> None:
        """It was away when the others decided; before the founding too."""
        manager = Manager()
        self.assert_taken(self.introduce(manager, Member(2, b"o" * 16)))
        self.assert_taken(self.introduce(manager.found(), Member(2, b"o" * 16)))

    def test_another_disk_without_a_vacancy(self) -> None:
        manager = Manager()
        blank = Member(2, b"x" * 16)
        self.assertEqual(str(self.introduce(manager, blank)), "m.0 is about to found the cluster")
        refusal = self.introduce(manager.found(), blank)
        self.assertEqual(
            (getattr(refusal, "code", None), str(refusal)),
            (
                b"REFUSED",
                "m.2 is registered on another disk. If that disk is lost for good: "
                "`madkv replace-disk m.2 --managers …`, then start this again",
            ),
        )

    def test_another_disk_for_a_vacancy(self) -> None:
        manager = Manager().found()
        manager.client.call(codec.REPLACE_DISK, field(b"node", b"m.2"))
        follower = Registrar(FollowerReplica(), manager.machine, ME, SETTINGS, PORTS, lambda: MANAGERS_OF_THREE)
        blank = Member(2, b"x" * 16)
        self.assertIsInstance(self.introduce(manager, blank, registrar=follower), NotLeader)
        self.assertIn("given up", str(self.introduce(manager, Member(2, b"o" * 16))))
        self.assert_taken(self.introduce(manager, blank))
        self.assertTrue(manager.machine.slots[MANAGERS, 2].is_catching_up)
        # From now on every manager knows it, also when it asks again.
        self.assert_taken(self.introduce(manager, blank, registrar=follower))
        self.assertIsNone(manager.apply(FillManager(2, b"x" * 16, has_vote=True)))
        self.assert_taken(self.introduce(manager, blank, registrar=follower))

    def test_what_does_not_fit(self) -> None:
        manager = Manager().found()
        member = Member(2, b"o" * 16)
        for other, line in (
            ({"ports": (*PORTS, 4, 5)}, "m.2 has --peers for 5 managers, m.0 for 3"),
            (
                {"ports": (1, 9, 3)},
                "m.2 and m.0 do not agree about the p2p port of m.1: 9 and 2; see their --p2p-port and --peers",
            ),
            ({"settings": ALONE}, "m.2 was started with --server-rf 1, not 3 as on m.0"),
        ):
            self.assertEqual(str(self.introduce(manager, member, **other)), line)
        self.assertEqual(
            str(self.introduce(manager, Member(7, b"o" * 16))), "m.7 is none of 3 managers: they count from 0"
        )
