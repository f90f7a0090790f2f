"""What a replica has whatever its role: term and vote, log, commit index, members, and messages on their way out."""

from collections.abc import Sequence

from madkv.raft.bounds import Bounds
from madkv.raft.configuration import Configuration, Member
from madkv.raft.log import LogReader, RaftLog
from madkv.raft.messages import Entry, EntryKind, HardState, Message


class ReplicaState:
    """The state that every role reads and changes, each part by one method only.

    `hard_state` changes through `set_hard_state`; `commit_index` through `commit_to` and an installed snapshot, and it
    never goes back; `configuration` follows the log, the latest one in it counts whether committed or not (Ongaro's
    dissertation, section 4.1).
    """

    def __init__(
        self,
        member: Member,
        reader: LogReader,
        hard_state: HardState,
        configurations: Sequence[tuple[int, Configuration]],
        applied_index: int,
        bounds: Bounds,
    ) -> None:
        self.member = member
        self.log = RaftLog(reader)
        self.hard_state = hard_state
        self.term = hard_state.term
        """The current term."""
        self.commit_index = max(applied_index, reader.snapshot_index)
        assert self.commit_index <= self.log.last_index, "a disk that has applied what its log does not hold"
        self.applied_index = self.commit_index
        """Up to there entries have been handed out in a Ready."""
        self.configurations = list(configurations)
        """Those in the log and, first, the one that held at the snapshot or at the start, with their indexes."""
        self.note_configuration()
        self.bounds = bounds
        self.ticks = 0
        """Since the start."""
        self.elapsed = 0
        """Ticks since a leader was heard or a vote given; of a leader, since it looked last for its majority."""
        self.stalled_ticks = 0
        """Ticks since the disk last did something, while it has something to do."""
        # Going out.
        self.saved_hard_state = hard_state
        self.now: list[Message] = []
        """These leave with the next Ready."""
        self.held: list[Message] = []
        """These wait for the next persist to be taken, and then for it to be done."""

    # --- Term and vote ----------------------------------------------------------------------------------------------

    def set_hard_state(self, hard_state: HardState) -> None:
        """Vote, or go on to a newer term."""
        assert hard_state.term >= self.term
        assert hard_state.term > self.term or self.hard_state.voted_for in (None, hard_state.voted_for)
        self.hard_state = hard_state
        self.term = hard_state.term

    # --- Log and members --------------------------------------------------------------------------------------------

    @property
    def last_configuration_index(self) -> int:
        """Where the latest configuration stands in the log, or where the log begins."""
        return self.configurations[-1][0]

    def append(self, entry: Entry) -> None:
        """Add an entry to the log; whoever leads then follows the configuration that it may be."""
        self.log.append(entry)
        if entry.kind is EntryKind.CONFIGURATION:
            self.configurations.append((entry.index, Configuration.decode(entry.payload)))
            self.note_configuration()

    def append_own(self, kind: EntryKind, payload: bytes = b"") -> int:
        """As the leader: add an entry of the current term; its index."""
        entry = Entry(self.log.last_index + 1, self.term, kind, payload)
        self.append(entry)
        return entry.index

    def truncate(self, first: int) -> None:
        """Drop the log's entries from `first` on: another leader's."""
        assert first > self.commit_index, "a committed entry would be lost"
        self.log.truncate(first)
        while self.configurations[-1][0] >= first:
            self.configurations.pop()
        self.note_configuration()

    def note_configuration(self) -> None:
        """To be called after `configurations` has changed."""
        self.configuration = self.configurations[-1][1]
        """The latest configuration in the log."""
        self.is_voter = self.member in self.configuration.voters
        """Whether this very member, on this very disk, has a vote."""

    def commit_to(self, index: int) -> None:
        """Everything up to there is committed, if it was not known to be."""
        if index > self.commit_index:
            assert index <= self.log.last_index
            self.commit_index = index

    # --- Messages ---------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send when everything that this replica has come to so far is on disk."""
        self.held.append(message)

    def send_now(self, message: Message) -> None:
        """Send without waiting for the disk, once the term is on it: what a leader says, and what binds nobody."""
        if self.hard_state == self.saved_hard_state:
            self.now.append(message)
            return
        # While a disk hangs, the same questions come again and again: of the answers the latest will do.
        for at, other in enumerate(self.held):
            if type(other) is type(message) and other.to == message.to and other.term == message.term:
                del self.held[at]
                break
        self.held.append(message)
