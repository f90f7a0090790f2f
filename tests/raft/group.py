"""A group of cores on disks and a network that do what a test tells them to.

Whatever a core sends, and whatever a leader believes, is held against the disks: `Node.check_sent`, `Node.check`.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import attrs

from madkv.raft.bounds import ELECTION_TICKS, HEARTBEAT_TICKS, USUAL
from madkv.raft.configuration import Configuration, Member
from madkv.raft.core import Persist, RaftCore, Ready, ReleasedRead, Role
from madkv.raft.invariants import GroupHistory, Seen, check_state, check_step
from madkv.raft.messages import (
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Message,
    SnapshotPiece,
    SnapshotReply,
    VoteReply,
)

PIECE_BYTES = 16
"""A snapshot's data is the 32-byte digest of everything applied: two pieces."""
BOUNDS = USUAL
PATIENCE = 4 * HEARTBEAT_TICKS
"""Ticks after which a stream of a snapshot that does not move is given up."""


def member(number: int, disk: int = 0) -> Member:
    """Replica `number` on its first disk, or on a later one."""
    return Member(number, bytes([number, disk]) * 8)


def members(*numbers: int) -> frozenset[Member]:
    """These replicas, each on its first disk."""
    return frozenset(member(number) for number in numbers)


def said(kind: type[Message], sender: int, to: int, **fields: Any) -> Message:
    """A message made by hand."""
    return kind(sender=member(sender), to=member(to), **fields)


def entry(index: int, term: int) -> Entry:
    """The entry that a leader of this term put there."""
    return Entry(index, term, EntryKind.OPERATION, b"%d of term %d" % (index, term))


class Disk:
    """What a persist leaves behind; a LogReader. The state machine is on it as of `snapshot_index`."""

    def __init__(self, configuration: Configuration) -> None:
        self.hard_state = HardState()
        self.log: list[Entry] = []
        self.snapshot_index = 0
        self.snapshot_term = 0
        self.base = configuration
        self.state = bytes(32)

    @property
    def last_index(self) -> int:
        """Index of the last entry."""
        return self.snapshot_index + len(self.log)

    def term_of(self, index: int) -> int | None:
        """Term of an entry."""
        if index == self.snapshot_index:
            return self.snapshot_term
        at = index - self.snapshot_index - 1
        return self.log[at].term if 0 <= at < len(self.log) else None

    def entries(self, first: int, last: int, bytes_max: int) -> list[Entry]:
        """Entries, at least one, up to a number of bytes."""
        assert self.snapshot_index < first <= last <= self.last_index
        chosen: list[Entry] = []
        size = 0
        for entry in self.log[first - self.snapshot_index - 1 : last - self.snapshot_index]:
            chosen.append(entry)
            size += entry.size_bytes
            if size >= bytes_max:
                break
        return chosen

    def write(self, persist: Persist) -> None:
        """One commit."""
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.entries:
            at = persist.entries[0].index - self.snapshot_index - 1
            assert at >= 0
            del self.log[at:]
            assert persist.entries[0].index == self.last_index + 1
            self.log += persist.entries

    def compact(self, index: int, state: bytes) -> None:
        """Make a snapshot up to `index` and drop the log so far."""
        term = self.term_of(index)
        assert term is not None
        self.base = [each for at, each in self.configurations() if at <= index][-1]
        del self.log[: index - self.snapshot_index]
        self.snapshot_index, self.snapshot_term, self.state = index, term, state

    def install(self, piece: SnapshotPiece, state: bytes) -> None:
        """Switch to a snapshot. The log after it stays if it holds the snapshot's last entry (section 7)."""
        if self.term_of(piece.last_index) == piece.last_term:
            del self.log[: piece.last_index - self.snapshot_index]
        else:
            self.log.clear()
        self.snapshot_index, self.snapshot_term = piece.last_index, piece.last_term
        self.base, self.state = piece.configuration, state

    def configurations(self) -> list[tuple[int, Configuration]]:
        """Those in the log, after the one it starts from."""
        in_log = [
            (entry.index, Configuration.decode(entry.payload))
            for entry in self.log
            if entry.kind is EntryKind.CONFIGURATION
        ]
        return [(self.snapshot_index, self.base), *in_log]


@attrs.define
class Stream:
    """A snapshot on its way to a peer: what a leader's driver remembers."""

    number: int
    last_index: int
    last_term: int
    configuration: Configuration
    state: bytes
    offset: int = 0
    silent_ticks: int = 0


class Node:
    """One core with its disk, what came out of it, and what a driver does about snapshots."""

    def __init__(self, group: "Group", who: Member, disk: Disk) -> None:
        self.group = group
        self.disk = disk
        self.core = RaftCore(who, disk, disk.hard_state, disk.configurations(), disk.snapshot_index, group.draw, BOUNDS)
        self.state = disk.state
        self.states = {disk.snapshot_index: disk.state}
        self.writing: Persist | None = None
        self.applied: list[Entry] = []
        self.reads: list[ReleasedRead] = []
        self.refused: list[Any] = []
        self.streams: dict[Member, Stream] = {}
        self.staged = b""
        self.started = 0
        self.staging: tuple[int, int] = (0, 0)
        self.installing: SnapshotPiece | None = None
        self.is_switching = False
        self._seen = Seen.of(self.core)

    def check(self) -> None:
        """Hold the invariants against its state before, and what it believes of others against their disks."""
        core = self.core
        check_state(core)
        before, self._seen = self._seen, check_step(self._seen, core)
        if core.role is Role.LEADER:
            on_disk = {who: self.matched_on_disk(node) for who, node in self.group.nodes.items()}
            for who, progress in core.progress.items():
                peer = self.group.nodes.get(who)
                if peer is not None and peer.core.term == core.term:
                    assert progress.match_index <= on_disk[who], f"{core.member} believes too much of {who}"
            if core.commit_index > before.commit_index and before.role is Role.LEADER:
                assert core.log.term_of(core.commit_index) == core.term, "an entry of an old term committed by counting"
                holders = [who for who, index in on_disk.items() if index >= core.commit_index]
                assert core.configuration.is_quorum(holders), "committed without a majority of disks"
        self.group.commit_index_max = max(self.group.commit_index_max, core.commit_index)

    def matched_on_disk(self, peer: "Node") -> int:
        """The last entry of this leader's that a disk holds (everything that a snapshot covers is the same)."""
        disk, log = peer.disk, self.core.log
        index = min(disk.last_index, log.last_index)
        while index > disk.snapshot_index:
            # What the leader has compacted away was committed.
            term = log.term_of(index) if index >= log.first_index else self.group.history.committed[index].term
            if disk.term_of(index) == term:
                break
            index -= 1
        return max(index, disk.snapshot_index)

    def check_sent(self, message: Message) -> None:
        """Figure 2: nothing is said that depends on what the disk does not hold."""
        disk = self.disk
        assert message.term <= disk.hard_state.term, f"{message} before its term is on disk"
        if isinstance(message, VoteReply) and message.granted and message.term == disk.hard_state.term:
            assert disk.hard_state.voted_for == message.to, f"{message} before the vote is on disk"
        if isinstance(message, AppendReply) and message.term == disk.hard_state.term:
            assert message.match_index <= disk.last_index, f"{message} before the entries are on disk"

    def drain(self) -> list[Message]:
        """Take every Ready there is; what is to be sent. A persist begins and stays under way until `write`."""
        sent: list[Message] = []
        while ready := self.core.ready():
            self.take(ready, sent)
            self.check()
        for message in sent:
            self.check_sent(message)
        return sent

    def take(self, ready: Ready, sent: list[Message]) -> None:
        """Note what one Ready says."""
        sent += ready.messages
        if ready.persist is not None:
            assert self.writing is None and not self.is_switching
            self.writing = ready.persist
        for entry in ready.committed:
            assert not self.is_switching
            self.state = sha256(self.state + repr(entry).encode()).digest()
            self.states[entry.index] = self.state
        self.applied += ready.committed
        self.group.history.check_committed(ready.committed)
        self.group.check_state_machine(self.core.applied_index, self.state)
        for read in ready.reads:
            newest = self.group.read_floors.get(read.request, 0)
            assert read.index >= newest, f"a stale read: {read}, but {newest} was committed before"
        self.reads += ready.reads
        self.refused += ready.refused_reads
        for to in ready.snapshots_wanted:
            disk = self.disk
            self.started += 1
            self.streams[to] = Stream(self.started, disk.snapshot_index, disk.snapshot_term, disk.base, disk.state)
            self.core.snapshot_started(to, disk.snapshot_index)
            sent.append(self.piece(to))
        for piece in ready.pieces:
            self.stage(piece)

    def step(self, message: Message) -> None:
        """What the driver does with a message: the core sees all, replies about snapshots go to their streams, too."""
        self.core.step(message)
        self.check()
        if isinstance(message, SnapshotReply) and message.term == self.core.term and message.sender in self.streams:
            stream = self.streams[message.sender]
            if stream.number == message.stream and stream.offset < message.offset < len(stream.state):
                stream.offset, stream.silent_ticks = message.offset, 0
                self.group.network.append(self.piece(message.sender))

    def tick(self) -> None:
        """Time passes; pieces that got no answer are sent again, and at last given up."""
        self.core.tick()
        self.check()
        for to, stream in list(self.streams.items()):
            progress = self.core.progress.get(to)
            if progress is None or progress.snapshot_index != stream.last_index:
                del self.streams[to]
                continue
            stream.silent_ticks += 1
            if stream.silent_ticks >= PATIENCE:
                del self.streams[to]
                self.core.snapshot_given_up(to)
            elif stream.silent_ticks % HEARTBEAT_TICKS == 0:
                self.group.network.append(self.piece(to))

    def piece(self, to: Member) -> SnapshotPiece:
        """The piece of a stream that is to go now."""
        stream = self.streams[to]
        data = stream.state[stream.offset : stream.offset + PIECE_BYTES]
        return SnapshotPiece(
            sender=self.core.member,
            to=to,
            term=self.core.term,
            stream=stream.number,
            last_index=stream.last_index,
            last_term=stream.last_term,
            configuration=stream.configuration,
            offset=stream.offset,
            data=data,
            done=stream.offset + len(data) == len(stream.state),
        )

    def stage(self, piece: SnapshotPiece) -> None:
        """Take in a piece of a snapshot, in order."""
        if self.installing is not None or (piece.term, piece.stream) < self.staging:
            return
        if self.staging != (piece.term, piece.stream):
            self.staging, self.staged = (piece.term, piece.stream), b""
        if piece.offset == len(self.staged):
            self.staged += piece.data
            if piece.done:
                self.installing = piece
        self.core.snapshot_staged(piece, len(self.staged))

    def write(self) -> None:
        """The persist under way is done, or the switch to a snapshot is, or one begins."""
        if self.writing is not None:
            persist, self.writing = self.writing, None
            self.disk.write(persist)
            self.core.persisted(persist)
            self.check()
            self.begin_switch()
        elif self.is_switching:
            piece, state = self.installing, self.staged
            assert piece is not None
            self.disk.install(piece, state)
            self.state = state
            self.states[piece.last_index] = state
            self.core.snapshot_installed(piece.last_index, piece.configuration)
            self.installing, self.is_switching, self.staged, self.staging = None, False, b"", (0, 0)
            self.group.check_state_machine(piece.last_index, state)
            self.check()
        else:
            self.begin_switch()

    def begin_switch(self) -> None:
        """Between two persists a snapshot that is staged to its end may be installed."""
        if self.installing is not None:
            self.is_switching = self.core.snapshot_install(self.installing.last_index, self.installing.last_term)
            if not self.is_switching:
                self.installing, self.staged, self.staging = None, b"", (0, 0)

    @property
    def is_busy(self) -> bool:
        """Whether the disk has something to do."""
        return self.writing is not None or self.installing is not None

    def compact(self, index: int | None = None) -> None:
        """Drop the log up to `index`, or as far as it is applied and on this disk."""
        index = min(self.core.applied_index, self.core.log.stable_index) if index is None else index
        if index > self.disk.snapshot_index and not self.is_switching:
            self.disk.compact(index, self.states[index])
            self.check()

    @property
    def payloads(self) -> list[bytes]:
        """The operations that were applied."""
        return [entry.payload for entry in self.applied if entry.kind is EntryKind.OPERATION]


class Group:
    """Members 1 to n. Messages stay in `network` until a test delivers or drops them."""

    def __init__(
        self,
        size: int,
        draw: Callable[[int], int] = lambda n: 0,
        learners: Iterable[int] = (),
        absent: Iterable[int] = (),
    ) -> None:
        everybody = [member(number) for number in range(1, size + 1)]
        learning, unlisted = members(*learners), members(*absent)
        self.configuration = Configuration(frozenset(everybody) - learning - unlisted, learning)
        self.history = GroupHistory()
        self.draw = draw
        self.network: list[Message] = []
        self.nodes: dict[Member, Node] = {}
        self.commit_index_max = 0
        self.read_floors: dict[Any, int] = {}
        self._states: dict[int, bytes] = {}
        for who in everybody:
            self.add(who)

    def __getitem__(self, number: int) -> Node:
        return self.nodes[member(number)]

    def add(self, who: Member) -> Node:
        """A new member on a blank disk, which knows the group's first configuration."""
        node = self.nodes[who] = Node(self, who, Disk(self.configuration))
        return node

    @property
    def leaders(self) -> list[Node]:
        """Those who lead, in whatever term."""
        return [node for node in self.nodes.values() if node.core.role is Role.LEADER]

    @property
    def leader(self) -> Node:
        """The leader of the newest term."""
        return max(self.leaders, key=lambda node: node.core.term)

    def restart(self, number: int) -> Node:
        """The process dies with everything that was not written, and starts again."""
        node = self.nodes[member(number)] = Node(self, member(number), self[number].disk)
        return node

    def load(self, number: int, terms: Iterable[int], term: int = 0, voted_for: Member | None = None) -> Node:
        """Start a node on a disk whose log has entries of these terms, as the figures of the paper draw them."""
        disk = self[number].disk
        disk.log = [entry(index, each) for index, each in enumerate(terms, 1)]
        disk.hard_state = HardState(max([term, *(each.term for each in disk.log)]), voted_for)
        return self.restart(number)

    def read(self, number: int, request: Any) -> None:
        """Ask one node for a read; it must see whatever is committed by now."""
        self.read_floors[request] = self.commit_index_max
        self[number].core.read(request)

    def check_state_machine(self, index: int, state: bytes) -> None:
        """Everybody has the same state at the same index."""
        assert self._states.setdefault(index, state) == state, f"another state at {index}"

    def collect(self) -> None:
        """Move what all nodes want to send into the network."""
        for node in list(self.nodes.values()):
            self.network += node.drain()
        self.history.check(node.core for node in self.nodes.values())

    def deliver(self, message: Message) -> None:
        """Hand one message over; what its receiver sends goes into the network."""
        node = self.nodes.get(message.to)
        if node is not None:
            node.step(message)
            self.network += node.drain()
            self.history.check([node.core])

    def write(self) -> None:
        """Everybody's disk finishes what it is at."""
        for node in self.nodes.values():
            node.write()
        self.collect()

    def settle(self, reaches: Callable[[Message], bool] = lambda message: True) -> None:
        """Write every disk and deliver every message that `reaches` lets through, until nothing is left to do."""
        self.collect()
        while self.network or any(node.is_busy for node in self.nodes.values()):
            self.write()
            batch, self.network = self.network, []
            for message in batch:
                if reaches(message):
                    self.deliver(message)

    def elect(self, number: int, reaches: Callable[[Message], bool] = lambda message: True) -> Node:
        """Let one member's time-out pass (and the others' memory of a leader)."""
        for node in self.nodes.values():
            if node is not self[number] and node.core.role is not Role.LEADER:
                node.core.leader = None
        self[number].core.campaign()
        self.settle(reaches)
        assert self[number].core.role is Role.LEADER
        return self[number]

    def tick(self, times: int = 1, only: Iterable[int] | None = None) -> None:
        """Time passes for all, or for some."""
        for _ in range(times):
            for node in list(self.nodes.values()) if only is None else [self[number] for number in only]:
                node.tick()
            self.collect()

    def run(self, times: int, reaches: Callable[[Message], bool] = lambda message: True) -> None:
        """Time passes for all, and between two ticks everything arrives that `reaches` lets through."""
        for _ in range(times):
            self.tick()
            self.settle(reaches)

    def sent(self, kind: type[Message], to: int | None = None) -> list[Any]:
        """What of one kind is in the network, to one member or to all."""
        return [
            message
            for message in self.network
            if isinstance(message, kind) and (to is None or message.to.replica == to)
        ]


def without(*cut_off: int) -> Callable[[Message], bool]:
    """A network in which these members hear nothing and are not heard."""
    return lambda message: message.sender.replica not in cut_off and message.to.replica not in cut_off


ELECTION = 2 * ELECTION_TICKS
"""Enough ticks for any time-out to pass."""
