"""The client's side of exactly-once: the rules one by one, then against the real server side in any interleaving."""

from collections import Counter
from itertools import pairwise
from typing import Any

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from madkv.client.router import Backoff, Router
from madkv.client.session import Call, Session
from madkv.errors import Busy, MadKVError, OutcomeUnknown, UnknownSession
from madkv.limits import RETRY_SECONDS_MAX, RETRY_SECONDS_MIN, SESSION_CALLS_MAX
from madkv.operations import OpenSession, Outcome, Write, WriteKind
from madkv.sessions import Sessions
from madkv.state_machine import StateMachine

CLIENT_ID = bytes(range(16))


def opened_session(index: int = 7, boot: bytes = b"boot 1") -> Session:
    session = Session(CLIENT_ID)
    session.connected(boot)
    session.opened(index)
    return session


class NumbersTests(SynchronousTestCase):
    """Sequence numbers, the floor, the window."""

    def test_numbers_count_from_one_and_are_never_used_again(self) -> None:
        session = opened_session()
        calls = [session.begin() for _ in range(3)]
        for call in calls:
            session.end(call)
        self.assertEqual([call.sequence for call in [*calls, session.begin()]], [1, 2, 3, 4])

    def test_a_retry_keeps_its_number(self) -> None:
        session = opened_session()
        call = session.begin()
        for _ in range(3):
            session.sending(call)
        self.assertEqual(call.sequence, 1)
        self.assertEqual(session.begin().sequence, 2)

    def test_the_floor_is_the_lowest_number_that_waits(self) -> None:
        session = opened_session()
        self.assertEqual(session.floor, 1)
        first, second, third = session.begin(), session.begin(), session.begin()
        session.end(second)
        self.assertEqual(session.floor, 1)
        session.end(first)
        self.assertEqual(session.floor, 3)
        session.end(third)
        self.assertEqual(session.floor, 4)

    def test_the_window_counts_from_the_floor(self) -> None:
        """One old call that waits keeps the window where it is, however many later ones have ended."""
        session = opened_session()
        oldest = session.begin()
        for _ in range(SESSION_CALLS_MAX - 1):
            self.assertFalse(session.full)
            session.end(session.begin())
        self.assertTrue(session.full)
        session.end(oldest)
        self.assertFalse(session.full)

    def test_a_full_window_takes_no_call(self) -> None:
        session = opened_session()
        for _ in range(SESSION_CALLS_MAX):
            session.begin()
        self.assertRaises(AssertionError, session.begin)


class LostSessionTests(SynchronousTestCase):
    """What a client may conclude from the refusals of a server that does not know its session."""

    def test_refused_at_the_first_attempt_a_call_is_made_in_a_new_session(self) -> None:
        session = opened_session(7)
        call = session.begin()
        session.sending(call)
        session.lost(call, 7)
        self.assertIsNone(session.index)
        session.opened(8)
        session.sending(call)
        self.assertEqual(call.sequence, 1)

    def test_after_an_uncertain_attempt_nobody_can_know(self) -> None:
        session = opened_session(7)
        call = session.begin()
        session.sending(call)  # its answer is lost
        session.sending(call)
        self.assertRaises(OutcomeUnknown, session.lost, call, 7)
        self.assertIsNone(session.index, "the next call opens a new session")

    def test_a_session_lost_by_one_call_is_lost_for_those_that_are_uncertain(self) -> None:
        """Sent anew in the new session, a call that was executed in the old one would take effect twice."""
        session = opened_session(7)
        uncertain, certain = session.begin(), session.begin()
        session.sending(uncertain)  # its answer is lost
        session.sending(certain)
        session.lost(certain, 7)
        session.opened(8)
        self.assertRaises(OutcomeUnknown, session.sending, uncertain)
        session.sending(certain)

    def test_many_calls_refused_together_lose_one_session_only(self) -> None:
        session = opened_session(7)
        first, second = session.begin(), session.begin()
        session.sending(first)
        session.sending(second)
        session.lost(first, 7)
        session.opened(8)
        session.sending(first)
        session.lost(second, 7)  # it was sent before the new one was opened
        self.assertEqual(session.index, 8)
        session.sending(second)

    def test_outcome_unknown_is_for_one_call(self) -> None:
        session = opened_session(7)
        call = session.begin()
        session.sending(call)
        session.sending(call)
        self.assertRaises(OutcomeUnknown, session.lost, call, 7)
        session.end(call)
        session.opened(8)
        following = session.begin()
        session.sending(following)
        self.assertEqual((following.sequence, session.floor), (2, 2))


class BootTests(SynchronousTestCase):
    """A server that starts anew is empty by contract."""

    def test_all_that_wait_are_made_anew(self) -> None:
        session = opened_session(7, b"boot 1")
        calls = [session.begin() for _ in range(3)]
        for call in calls:
            session.sending(call)
        session.sending(calls[0])
        session.connected(b"boot 2")
        self.assertIsNone(session.index)
        session.opened(7)  # the same index again: it is another session nevertheless
        for call in calls:
            session.sending(call)
        session.lost(calls[0], 7)  # nothing is uncertain here: no attempt was lost in this boot
        self.assertEqual([call.sequence for call in calls], [1, 2, 3])

    def test_the_same_boot_keeps_the_session(self) -> None:
        session = opened_session(7, b"boot 1")
        call = session.begin()
        session.sending(call)
        session.connected(b"boot 1")
        self.assertEqual(session.index, 7)
        session.sending(call)
        self.assertRaises(OutcomeUnknown, session.lost, call, 7)

    def test_a_server_that_keeps_sessions_has_no_boot(self) -> None:
        session = opened_session(7, b"")
        session.connected(b"")
        self.assertEqual(session.index, 7)


class BusyTests(SynchronousTestCase):
    """Busy says that this attempt was not executed, and nothing about those before."""

    def test_busy_at_the_first_attempt_leaves_nothing_uncertain(self) -> None:
        session = opened_session(7)
        call = session.begin()
        for _ in range(3):
            session.sending(call)
            session.not_executed(call)
        session.sending(call)
        session.lost(call, 7)

    def test_busy_after_a_lost_answer_leaves_it_uncertain(self) -> None:
        session = opened_session(7)
        call = session.begin()
        session.sending(call)  # its answer is lost
        session.sending(call)
        session.not_executed(call)
        session.sending(call)
        self.assertRaises(OutcomeUnknown, session.lost, call, 7)


class MovedTests(SynchronousTestCase):
    """The group refused the call, since the key is another group's by now."""

    def test_a_call_that_was_never_executed_may_be_made_elsewhere(self) -> None:
        session = opened_session(7, b"")
        call = session.begin()
        for _ in range(3):
            session.sending(call)
            session.not_executed(call)
        session.moved(call)

    def test_after_a_lost_answer_nobody_can_know(self) -> None:
        session = opened_session(7, b"")
        call = session.begin()
        session.sending(call)  # its answer is lost
        session.sending(call)
        session.not_executed(call)
        self.assertRaises(OutcomeUnknown, session.moved, call)


class RouterTests(SynchronousTestCase):
    """What stands beside the session: where to, and when again."""

    def test_one_server_owns_every_key(self) -> None:
        router = Router(("127.0.0.1", 3777), None)
        self.assertEqual({router.group_of(key) for key in (b"", b"a", b"\xff")}, {0})
        self.assertEqual(router.addresses(0), [("127.0.0.1", 3777)])

    def test_waits_double_up_to_a_bound(self) -> None:
        backoff = Backoff()
        waits = [backoff.next_seconds() for _ in range(10)]
        self.assertEqual(waits[0], RETRY_SECONDS_MIN)
        self.assertEqual(waits[-1], RETRY_SECONDS_MAX)
        self.assertTrue(all(b == min(2 * a, RETRY_SECONDS_MAX) for a, b in pairwise(waits)))


# --- Both sides together ----------------------------------------------------------------------------------------------

LIFE_SECONDS = 10.0


class Store(dict[bytes, bytes]):
    """Pairs that note what each write really did."""

    def __init__(self) -> None:
        super().__init__()
        self.executed: Counter[bytes] = Counter()
        self.replaced: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes) -> bytes | None:
        old = self.get(key)
        self[key] = value
        self.executed[value] += 1
        self.replaced[value] = old
        return old

    def delete(self, key: bytes) -> bytes | None:
        raise AssertionError("the model only swaps")


class Server:
    """One life of a server: the real state machine and the real sessions, with a table that is easily full."""

    def __init__(self, number: int) -> None:
        self.boot = b"boot %d" % number
        self.store = Store()
        sessions = Sessions(sessions_max=2, record_bytes_max=900, life_seconds=LIFE_SECONDS)
        self.machine = StateMachine(self.store, sessions)

    def apply(self, operation: Write | OpenSession, now_ms: int) -> Outcome:
        return self.machine.apply(self.machine.last_applied + 1, now_ms, operation)


@attrs.define(eq=False)
class Caller:
    """A call, and what the test knows of it that the client cannot."""

    call: Call
    key: bytes
    value: bytes  # unique: it names the call in the store
    attempt: "Message | None" = None
    lost_attempts: int = 0  # in this boot


@attrs.define(eq=False)
class Message:
    """A request under way. It may arrive late, or twice, until the server that it is meant for ends."""

    caller: Caller
    write: Write
    outcome: Outcome = None
    arrived: bool = False


class Exactly(RuleBasedStateMachine):
    """Many calls of one client, and a network and a server that do what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(CLIENT_ID)
        self.boots = 1
        self.server = Server(1)
        self.now_ms = 0
        self.values = 0
        self.waiting: list[Caller] = []
        self.given_up: list[Caller] = []
        self.network: list[Message] = []
        self.session.connected(self.server.boot)

    def _end(self, caller: Caller) -> None:
        self.session.end(caller.call)
        self.waiting.remove(caller)

    def _end_unknown(self, caller: Caller) -> None:
        assert caller.lost_attempts, "no answer was lost, and yet the outcome is said to be unknown"
        self._end(caller)

    @rule(key=st.sampled_from([b"a", b"b"]))
    def begin(self, key: bytes) -> None:
        self.values += 1
        self.waiting.append(Caller(self.session.begin(), key, b"%d" % self.values))

    @precondition(lambda self: any(not caller.attempt for caller in self.waiting))
    @rule(data=st.data(), open_is_lost=st.booleans())
    def send(self, data: st.DataObject, open_is_lost: bool) -> None:
        caller = data.draw(st.sampled_from([caller for caller in self.waiting if not caller.attempt]))
        self._send(caller, open_is_lost)

    def _send(self, caller: Caller, open_is_lost: bool = False) -> None:
        session = self.session
        if session.index is None:
            index = self.server.apply(OpenSession(CLIENT_ID), self.now_ms)
            if open_is_lost or isinstance(index, MadKVError):
                return
            assert isinstance(index, int)
            session.opened(index)
        assert session.index is not None
        try:
            session.sending(caller.call)
        except OutcomeUnknown:
            self._end_unknown(caller)
            return
        caller.attempt = Message(
            caller,
            Write(WriteKind.SWAP, caller.key, caller.value, session.index, caller.call.sequence, session.floor),
        )
        self.network.append(caller.attempt)

    @precondition(lambda self: self.network)
    @rule(data=st.data(), again_later=st.booleans(), busy=st.integers(0, 9).map(lambda number: number == 9))
    def arrive(self, data: st.DataObject, again_later: bool, busy: bool) -> None:
        message = data.draw(st.sampled_from(self.network))
        self._arrive(message, busy)
        if not again_later:
            self.network.remove(message)

    def _arrive(self, message: Message, busy: bool = False) -> None:
        outcome = Busy("no room") if busy else self.server.apply(message.write, self.now_ms)
        if not message.arrived:
            message.arrived, message.outcome = True, outcome

    @precondition(lambda self: any(caller.attempt and caller.attempt.arrived for caller in self.waiting))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        answered = [caller for caller in self.waiting if caller.attempt and caller.attempt.arrived]
        self._answer(data.draw(st.sampled_from(answered)))

    def _answer(self, caller: Caller) -> None:
        message, caller.attempt = caller.attempt, None
        assert message is not None
        outcome = message.outcome
        if isinstance(outcome, UnknownSession):
            try:
                self.session.lost(caller.call, message.write.session)
            except OutcomeUnknown:
                self._end_unknown(caller)
        elif isinstance(outcome, Busy):
            self.session.not_executed(caller.call)
        else:
            assert not isinstance(outcome, MadKVError), f"a refusal that no client should ever meet: {outcome!r}"
            assert self.server.store.executed[caller.value] == 1
            assert outcome == self.server.store.replaced[caller.value]
            self._end(caller)

    @rule()
    def lose_connection(self) -> None:
        """What was sent may still arrive; its answers will not."""
        for caller in self.waiting:
            if caller.attempt:
                caller.attempt = None
                caller.lost_attempts += 1
        self.session.connected(self.server.boot)

    @rule()
    def restart_server(self) -> None:
        self.boots += 1
        self.network.clear()
        self.server = Server(self.boots)
        self.lose_connection()
        for caller in self.waiting:
            caller.lost_attempts = 0

    @rule(other=st.sampled_from([b"other client....", b"yet another....."]))
    def another_client(self, other: bytes) -> None:
        self.server.apply(OpenSession(other), self.now_ms)

    @rule(seconds=st.sampled_from([1, 6, 11]))
    def time_passes(self, seconds: int) -> None:
        self.now_ms += seconds * 1000

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.waiting))
        self._end(caller)

    @invariant()
    def never_twice(self) -> None:
        assert all(count == 1 for count in self.server.store.executed.values())

    def teardown(self) -> None:
        """Once everything works, every call comes to its end, and what still arrives late changes nothing."""
        self.lose_connection()
        self.now_ms += int(LIFE_SECONDS * 1000) + 1  # the other clients' sessions expire, and make room
        for _ in range(5):
            for caller in list(self.waiting):
                self._send(caller)
                if caller.attempt:
                    self._arrive(caller.attempt)
                    self._answer(caller)
        assert not self.waiting
        before = dict(self.server.store)
        for message in self.network:
            if message.arrived:
                self._arrive(message)
        assert self.server.store == before
        self.never_twice()


class ModelTests(SynchronousTestCase):
    """Client and server together, in interleavings that nobody would think of."""

    def test_exactly_once_or_outcome_unknown(self) -> None:
        options: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
        run_state_machine_as_test(
            Exactly, settings=settings(max_examples=100, stateful_step_count=40, derandomize=True, **options)
        )
