"""One replica at work: the loop that feeds RaftCore and does what its Readies say.

Theory of operation. Whatever happens (a proposal, a read, a message, a tick, the end of a commit) goes into the core,
and a *turn* follows, in which everything that the core has ready is done: messages sent, a commit begun, entries
applied, reads released. Where commits take time, a turn comes at the end of the reactor's, so that all calls of one
network turn share one Ready and one commit; and while a commit is under way, the next one gathers: group commit.

One piece of work is on the disk at a time. A commit holds what Raft must persist and, once that is much, what has been
applied since: pairs and sessions as they are when the commit is put together, with the index that they go up to. A
leader's commits are done on a thread; those of a follower, which has nothing else to do meanwhile, by the reactor, as
long as they are of its log alone and quick (`DiskThread`).

What a caller is told. `propose` ends in the outcome, once the entry at (index, term) is applied; in NotLeader or Busy,
and then it was never in the log; or in Interrupted: it was, and what became of it is not known here. An answer by index
alone would be wrong: a new leader's entry may stand there.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from madkv.errors import Busy, Interrupted, NotLeader
from madkv.operations import Operation, Outcome, decode, encode
from madkv.raft.configuration import Configuration, Member
from madkv.raft.core import Persist, RaftCore, ReleasedRead
from madkv.raft.messages import Entry, EntryKind, Message, SnapshotPiece, SnapshotReply
from madkv.server.disk import Disk
from madkv.server.events import Events
from madkv.server.parts import AppliedPairs, Machine, Storage, Tuning
from madkv.server.snapshots import ArrivingPieces, SnapshotStreams, head_of
from madkv.state_machine import StateMachine
from madkv.storage.batch import Batch
from madkv.storage.snapshot import SnapshotHead

Answered = Callable[[Outcome], None]
Soon = Callable[[Callable[[], None]], Any]


@attrs.define(eq=False)
class _Read:
    """A read that waits for its moment; each is another one, also of the same caller."""

    key: bytes
    released: Callable[[Any], None]


@attrs.define(eq=False)
class _Waiter:
    """Somebody waits for what becomes of a proposal."""

    term: int
    answered: Answered
    size_bytes: int
    time_ms: int
    operation: Operation


class Replica:
    """One replica of a group, on its storage, its disk and its clock. `start` it, and `stop` it once."""

    log = Logger()

    def __init__(
        self,
        member: Member,
        storage: Storage,
        pairs: AppliedPairs,
        disk: Disk,
        clock: IReactorTime,
        send: Callable[[Sequence[Message]], None],
        draw: Callable[[int], int],
        failed: Callable[[Exception], None],
        tuning: Tuning | None = None,
        machine: Machine | None = None,
        leadership_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Take up where the storage left off. Without a `machine`, a StateMachine over the pairs is replicated.

        `clock` calls back, and the group's time is counted on it, so nobody may set it: of a reactor, `seconds` has to
        be the monotonic clock. `send` posts messages to peers, which may never get them. `draw(n)` is a
        random number below n. `failed` is called once when this replica cannot go on: it answers nobody any more, and
        its process should end. `leadership_changed` is called when another member leads, or none any more, or this one.
        """
        self._tuning = Tuning() if tuning is None else tuning
        self.state_machine: Machine = StateMachine(pairs) if machine is None else machine
        self.state_machine.restore(self.state_machine.decode_rows(storage.sessions()), storage.applied_index)
        self.core = RaftCore(
            member,
            storage,
            storage.hard_state,
            storage.configurations,
            storage.applied_index,
            draw,
            self._tuning.bounds,
        )
        self._storage = storage
        self._pairs = pairs
        self._disk = disk
        self._clock = clock
        self._soon: Soon = getattr(clock, "soon", None) or partial(clock.callLater, 0)
        self._send = send
        self._failed = failed
        self._leadership_changed = leadership_changed
        self._leader_seen: tuple[int, Member | None] = 0, None
        self.leader_changes = 0
        """How often another one led, or none any more, or this one."""
        self.events = Events(clock)
        self._streams = SnapshotStreams(
            self.core, lambda: storage.open_snapshot(self._tuning.piece_bytes), send, self.events
        )
        self._is_running = False
        self._has_failed = False
        self._ticker: IDelayedCall | None = None
        self._patience: IDelayedCall | None = None
        # Turns.
        self._is_turn_due = False
        self._is_in_turn = False
        self._wants_turn = False
        # As leader.
        self._led_term: int | None = None
        self._time_base_ms = 0
        self._led_since = 0.0
        self._waiters: dict[int, _Waiter] = {}
        self._waiting_bytes = 0
        self._unwritten_bytes = 0  # a majority without this replica may commit what its own disk does not hold yet
        # Reads.
        self._released: deque[ReleasedRead] = deque()
        # Applying.
        self._to_apply: deque[Entry] = deque()
        # On its way to the disk.
        self._is_disk_busy = False
        self._is_flush_due = False
        self._arriving = ArrivingPieces()
        self._snapshots_installed = 0
        self._staged: SnapshotHead | None = None

    # --- Life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take part. A group of one campaigns at once: there is nobody to wait for."""
        self._is_running = True
        self._ticker = self._clock.callLater(self._tuning.tick_seconds, self._tick)
        if self.core.configuration.voters == {self.core.member}:
            self.core.campaign()
            self._turn()

    def stop(self) -> None:
        """Take no more part; those who wait are told that the outcome is not known."""
        if not self._is_running:
            return
        self.halt()
        self._interrupt_waiters()
        reads = [*self.core.end_reads(), *(each.request for each in self._released)]
        self._released.clear()
        for read in reads:
            assert isinstance(read, _Read)
            self._tell(read.released, Interrupted("the server is ending"))

    def halt(self) -> None:
        """Do and say nothing any more, as when the power fails."""
        self._is_running = False
        for call in (self._ticker, self._patience):
            if call is not None and call.active():
                call.cancel()
        self._streams.close()

    # --- What can be asked of it ------------------------------------------------------------------------------------

    def propose(self, operation: Operation, answered: Answered) -> None:
        """Order and apply `operation`; `answered` gets its outcome or an error, once, maybe before this returns."""
        if not self._is_running:
            answered(Interrupted("the server is ending"))
            return
        bytes_max = self._tuning.uncommitted_bytes_max
        if self._waiting_bytes >= bytes_max or self._unwritten_bytes >= bytes_max:
            answered(Busy("too much waits to be committed, or for this replica's disk"))
            return
        time_ms = self._now_ms()
        payload = encode(time_ms, operation)
        index = self.core.propose(payload)
        if index is None:
            answered(self.not_leader())
            return
        assert index not in self._waiters, "a waiter is told before its index is used again"
        self._waiters[index] = _Waiter(self.core.term, answered, len(payload), time_ms, operation)
        self._waiting_bytes += len(payload)
        self._unwritten_bytes += len(payload)
        self._wake()

    def read(self, key: bytes, released: Callable[[Any], None]) -> None:
        """`released` gets the pairs at a moment when reading `key` is linearizable, or an error, once.

        The pairs are good for the time of that call.
        """
        if not self._is_running:
            released(Interrupted("the server is ending"))
            return
        index = self.core.index_to_read
        if index is not None and index <= self.state_machine.last_applied and not self._is_in_turn:
            self._release_at_once(key, released)
        else:
            self.core.read(_Read(key, released))
            self._wake()

    @property
    def counted(self) -> dict[str, int]:
        """What waits, and what became of snapshots so far, in numbers and bytes."""
        streams = self._streams
        return {
            "proposals_waiting": len(self._waiters),
            "proposal_bytes_waiting": self._waiting_bytes,
            "applied_bytes_waiting": self._pairs.waiting_bytes,
            "snapshots_under_way": len(streams),
            "snapshots_begun": streams.started,
            "snapshots_sent": streams.completed,
            "snapshots_given_up": streams.given_up,
            "snapshot_bytes_sent": streams.sent_bytes,
            "snapshot_bytes_received": self._arriving.received_bytes,
            "snapshots_installed": self._snapshots_installed,
        }

    def change_members(self, configuration: Configuration) -> bool:
        """Begin a change of the members, by one voter at a time; False when it is not possible now, or here."""
        index = self.core.propose_configuration(configuration) if self._is_running else None
        self._wake()
        return index is not None

    @property
    def leads(self) -> bool:
        """Whether it leads its group, as far as it knows."""
        return self.core.led_term is not None

    def hand_over(self) -> bool:
        """Begin to hand the leadership to the voter that has most of the log; False when there is nobody, or not here.

        Proposals are refused from now on, until another leads or it did not come about.
        """
        began = self._is_running and self.core.hand_over()
        self._wake()
        return began

    def transfer_leadership(self, to: Member) -> bool:
        """As `hand_over`, to this voter; False when it does not answer, or this replica does not lead."""
        began = self._is_running and self.core.transfer_leadership(to)
        self._wake()
        return began

    def receive(self, message: Message) -> None:
        """Take in a message from a peer."""
        if not self._is_running:
            return
        self._guarded(self._step, message)

    def _step(self, message: Message) -> None:
        wakes = self.core.step(message)
        if isinstance(message, SnapshotReply):
            self._streams.replied(message)
        self._note_leadership()
        if wakes:
            self._wake()

    def _tick(self) -> None:
        self._ticker = self._clock.callLater(self._tuning.tick_seconds, self._tick)
        self._guarded(self._advance)

    def _advance(self) -> None:
        self.core.tick()
        self._streams.tick()
        self._note_leadership()
        self._wake()

    # --- Turns ------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """See to it that a turn follows."""
        if not self._is_running:
            return
        if self._is_in_turn:
            self._wants_turn = True
        elif self._disk.is_immediate:
            self._turn()
        elif not self._is_turn_due:
            self._is_turn_due = True
            self._soon(self._called)

    def _called(self) -> None:
        self._is_turn_due = False
        if self._is_running:
            self._turn()

    def _turn(self) -> None:
        self._is_in_turn = self._wants_turn = True
        try:
            while self._wants_turn and self._is_running:
                self._wants_turn = False
                self._do_what_is_ready()
        except Exception as error:
            self._fail(error)
        finally:
            self._is_in_turn = False
            if self._is_running:
                self._storage.end_turn()

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Whatever goes wrong in here is this replica's end: it must not answer on a state that is not as it thinks."""
        try:
            work(*arguments)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._is_running:
            self._has_failed = True
            self.halt()
            self._failed(error)

    def _do_what_is_ready(self) -> None:
        ready = self.core.ready(takes_entries=not self._to_apply, takes_persist=not self._is_disk_busy)
        if ready.messages:
            self._send(ready.messages)
            if self._patience is None and self.core.led_term is not None:
                self._watch_batch()
        if self.core.led_term != self._led_term:
            self._note_leadership()
        for piece in ready.pieces:
            self._arriving.add(piece)
        for to in ready.snapshots_wanted:
            self._streams.start(to)
        # Before anything more is applied: a commit that holds what was applied must hold the entries for it, too.
        if ready.committed:
            self._to_apply += ready.committed
        # And before anybody is called, who may have this replica stop: then they are told.
        if ready.reads:
            self._released += ready.reads
        if ready.persist is not None or self._is_flush_due or self._arriving.waiting is not None:
            self._use_disk(ready.persist)
            if self._has_failed:
                return  # Done by the reactor, the work has failed already: nobody may be told anything.
            if ready.persist is not None and not self._is_disk_busy and self._is_running:
                # It is done already: the leader waits for that, and nobody for what is applied here.
                self._send_what_waited()
        if self._to_apply:
            self._apply_some()
            if not self._to_apply and self.core.applied_index < self.core.commit_index:
                self._turn_later()
        if self._released:
            self._release_reads()
        for request in ready.refused_reads:
            assert isinstance(request, _Read)
            self._tell(request.released, self.not_leader())
        if self.core.has_more_to_send:
            self._turn_later()

    def _watch_batch(self) -> None:
        """See to it that the batch on its way, if there is one, does not wait for long for somebody who is gone."""
        batch = self.core.batch_on_its_way
        if batch is not None:
            self._patience = self._clock.callLater(self._tuning.patience_seconds, self._lose_patience, batch)

    def _lose_patience(self, batch: int) -> None:
        self._patience = None
        if self.core.batch_on_its_way == batch:
            self.core.hurry()
            self._wake()
        else:
            self._watch_batch()

    def _send_what_waited(self) -> None:
        messages = self.core.take_messages()
        if messages:
            self._send(messages)

    def _turn_later(self) -> None:
        """There is more to do; others on this reactor have their turn first."""
        if not self._is_turn_due and self._is_running:
            self._is_turn_due = True
            self._soon(self._called)

    def _tell(self, callback: Callable[[Any], None], what: Any) -> None:
        """A caller's failure is its own: this replica goes on."""
        try:
            callback(what)
        except Exception:
            self.log.failure("what waited for a replica's answer has failed")

    # --- As leader --------------------------------------------------------------------------------------------------

    def _note_leadership(self) -> None:
        """To be called after whatever may have changed it, and before anything is proposed."""
        core = self.core
        if core.leader is not self._leader_seen[1] or (core.leader is not None and core.term != self._leader_seen[0]):
            self._leader_seen = core.term, core.leader
            self.leader_changes += 1
            self.events.add("leader", term=core.term, leader=None if core.leader is None else core.leader.replica)
            self._tell(lambda _: self._leadership_changed(), None)
        leads = core.led_term
        if leads == self._led_term:
            return
        if self._led_term is not None:
            self._interrupt_waiters()
        self._led_term = leads
        self._unwritten_bytes = 0
        self._time_base_ms = self.state_machine.time_ms
        self._led_since = self._clock.seconds()

    def _now_ms(self) -> int:
        """The group's time: what it was when this replica became the leader, and what has passed since."""
        return self._time_base_ms + int((self._clock.seconds() - self._led_since) * 1000)

    def _interrupt_waiters(self) -> None:
        waiters, self._waiters, self._waiting_bytes = self._waiters, {}, 0
        for waiter in waiters.values():
            self._tell(waiter.answered, Interrupted("the leadership was lost before the outcome was known"))

    def not_leader(self) -> NotLeader:
        """The refusal of a replica that does not lead."""
        leader = self.core.leader
        if leader is None or leader == self.core.member:
            return NotLeader("this replica does not lead its group; no leader is known")
        return NotLeader(f"this replica does not lead its group; leader: {leader.replica}", leader.replica)

    # --- Applying, and reads ----------------------------------------------------------------------------------------

    def _apply_some(self) -> None:
        machine, entries = self.state_machine, self._to_apply
        for _ in range(min(len(entries), self._tuning.applied_per_slice)):
            entry = entries.popleft()
            waiter = self._waiters.pop(entry.index, None)
            is_ours = waiter is not None and waiter.term == entry.term
            outcome: Outcome = None
            if entry.kind is EntryKind.OPERATION:
                # One index and term are one entry: what was proposed here need not be decoded again.
                time_ms, operation = (waiter.time_ms, waiter.operation) if waiter and is_ours else decode(entry.payload)
                outcome = machine.apply(entry.index, time_ms, operation)
            else:
                machine.skip(entry.index)
            if waiter is not None:
                self._waiting_bytes -= waiter.size_bytes
                try:
                    waiter.answered(outcome if is_ours else Interrupted("another leader's entry took its place"))
                except Exception:  # as in `_tell`, without a call for each
                    self.log.failure("what waited for an outcome has failed")
                if not self._is_running:
                    return
        self._note_flush()
        if entries:
            self._turn_later()

    def _release_reads(self) -> None:
        applied = self.state_machine.last_applied
        while self._released and self._released[0].index <= applied:
            read = self._released.popleft().request
            assert isinstance(read, _Read)
            self._release(read.key, read.released)

    def _release_at_once(self, key: bytes, released: Callable[[Any], None]) -> None:
        """In a turn of its own, so that what the answer leads to comes after it and not within it."""
        self._is_in_turn = True
        try:
            self._release(key, released)
        finally:
            self._is_in_turn = False
            if self._is_running:
                self._storage.end_turn()
        if self._wants_turn:
            self._wants_turn = False
            self._wake()

    def _release(self, key: bytes, released: Callable[[Any], None]) -> None:
        refusal = self.state_machine.misplaced(key)
        try:
            released(self._pairs if refusal is None else refusal)
        except Exception:  # as in `_tell`, without a call for each
            self.log.failure("what waited for a read has failed")

    # --- The disk ---------------------------------------------------------------------------------------------------

    def _use_disk(self, persist: Persist | None) -> None:
        """Give the disk its next work, if it has none."""
        if self._is_disk_busy:
            return
        if persist is not None or self._is_flush_due:
            batch = self._make_batch(persist)
            if self._disk.is_immediate:
                self._storage.write(batch)
                self._written(batch, persist)
                self._to_apply += self.core.take_committed()  # Without waiting for the next turn.
                if batch.hard_state is not None:
                    self._wants_turn = True  # For what an election leads to.
            else:
                if batch.applied_index is not None:
                    self.core.hurry()  # It takes long, and what is sent already need not wait for it.
                    self._wants_turn = True
                # A follower has little else to do meanwhile; a leader takes in the next batch.
                self._run_on_disk(
                    lambda: self._storage.write(batch),
                    lambda: self._written(batch, persist),
                    is_short=batch.applied_index is None and self.core.led_term is None,
                )
        elif self._arriving.waiting is not None:
            piece = self._arriving.take()
            self._run_on_disk(
                lambda: self._storage.stage(head_of(piece), piece.offset, piece.data),
                lambda staged: self._staged_to(piece, staged),
            )

    def _run_on_disk(self, work: Callable[[], Any], then: Callable[..., None], *, is_short: bool = False) -> None:
        self._is_disk_busy = True

        def done(result: Any) -> None:
            self._is_disk_busy = False
            self.core.disk_moved()
            if not self._is_running:
                return
            if isinstance(result, Exception):
                self._fail(result)
            else:
                self._guarded(then, *(() if result is None else (result,)))
                self._wake()

        self._disk.run(work, done, is_short=is_short)

    def _note_flush(self) -> None:
        """To be called after something was applied, or what was applied has reached the tables."""
        tuning = self._tuning
        waits = self.state_machine.last_applied - self._storage.applied_index
        self._is_flush_due = waits > 0 and (
            waits >= tuning.flush_entries
            or self._pairs.waiting_bytes >= tuning.flush_bytes
            or self.state_machine.has_changed(tuning.flush_rows, tuning.flush_bytes)
        )

    def _make_batch(self, persist: Persist | None) -> Batch:
        hard_state = None if persist is None else persist.hard_state
        entries = () if persist is None else persist.entries
        if not self._is_flush_due:
            return Batch(hard_state, entries)
        # The log may be cut only as far as the tables on disk go already: this very commit may never come about.
        return Batch(
            hard_state,
            entries,
            pairs=self._pairs.freeze(),
            sessions=self.state_machine.take_changes(),
            applied_index=self.state_machine.last_applied,
            compact_to=self._compaction_target(),
        )

    def _compaction_target(self) -> int | None:
        """Leave what peers are going to ask for, also after a snapshot, or they would need one after another; but not
        without a bound, since one of them may be slower than calls come."""
        tuning, storage = self._tuning, self._storage
        target = storage.cut(tuning.log_entries_kept, tuning.log_bytes_kept)
        needed = [index for index in (self.core.index_to_keep, self._streams.oldest_index) if index is not None]
        if needed and min(needed) < target:
            target = max(min(needed), storage.cut(storage.last_index, tuning.log_bytes_held_max))
            self._streams.give_up_before(target)
        return storage.compaction_target(target)

    def _written(self, batch: Batch, persist: Persist | None) -> None:
        self._storage.written(batch)
        if batch.applied_index is not None:
            self._pairs.thaw()
            self._note_flush()
        if persist is not None:
            for entry in persist.entries:
                self._unwritten_bytes -= len(entry.payload)
            if self._unwritten_bytes < 0:
                self._unwritten_bytes = 0  # Those of before this leadership were not counted.
            self.core.persisted(persist)
            if self.core.led_term != self._led_term:
                self._note_leadership()
        if self._staged is not None:
            self._try_install(self._staged)

    def _staged_to(self, piece: SnapshotPiece, offset: int) -> None:
        self.core.snapshot_staged(piece, offset)
        if piece.done and offset == piece.offset + len(piece.data):
            self._staged = head_of(piece)
        if self._staged is not None:
            self._try_install(self._staged)

    def _try_install(self, head: SnapshotHead) -> None:
        """Switch to the snapshot that is staged to its end, now that no commit is under way."""
        self._staged = None
        if self.core.snapshot_install(head.last_index, head.last_term):
            machine, storage = self.state_machine, self._storage
            # There may be very many sessions.
            self._run_on_disk(
                lambda: machine.decode_rows(storage.install(head)), lambda decoded: self._installed(head, decoded)
            )

    def _installed(self, head: SnapshotHead, decoded: Any) -> None:
        self._storage.installed(head)
        self._snapshots_installed += 1
        self.events.add("snapshot installed", index=head.last_index)
        self._arriving.forget(head.last_index)
        self._to_apply.clear()  # The snapshot covers what had been handed out: it goes further than that.
        self._pairs.forget()
        self.state_machine.restore(decoded, head.last_index)
        self._note_flush()
        self.core.snapshot_installed(head.last_index, head.configuration)
