"""Mistakes to be put into the Raft core by hand, each as text to be replaced in one of its files."""

MUTATIONS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "old-term entry committed by counting",
        "core.py",
        [
            (" and self.log.term_of(index) == self.term:", ":"),
        ],
    ),
    (
        "scan for commit stopped at an old-term entry",
        "core.py",
        [
            (
                (
                    "        index = quorum_value(matched)\n"
                    "        if index > self.commit_index and self.log.term_of(index) == self.term:\n"
                    "            self._commit_to(index)"
                ),
                (
                    "        reached = quorum_value(matched)\n"
                    "        index = self.commit_index\n"
                    "        while index < reached and self.log.term_of(index + 1) == self.term:\n"
                    "            index += 1\n"
                    "        self._commit_to(index)"
                ),
            ),
        ],
    ),
    (
        "vote not persisted",
        "core.py",
        [
            (
                "self._persisting = Persist(hard_state, ",
                "self._persisting = Persist(hard_state and HardState(hard_state.term, None), ",
            ),
            (
                "self._saved_hard_state = persist.hard_state",
                "self._saved_hard_state = HardState(persist.hard_state.term, self.hard_state.voted_for)",
            ),
        ],
    ),
    (
        "vote not persisted (unless the term changed)",
        "core.py",
        [
            (
                ("if self.hard_state != self._saved_hard_state else None\n        if hard_state is None"),
                ("if self.hard_state.term != self._saved_hard_state.term else None\n        if hard_state is None"),
            ),
        ],
    ),
    (
        "term not persisted",
        "core.py",
        [
            (
                "hard_state = self.hard_state if self.hard_state != self._saved_hard_state else None\n",
                ("hard_state = None\n        self._saved_hard_state = self.hard_state\n"),
            ),
        ],
    ),
    (
        "vote reply before persist",
        "core.py",
        [
            (
                "self._send(VoteReply(sender=self.member, to=message.sender, term=self.term, granted=granted))",
                "self._now.append(VoteReply(sender=self.member, to=message.sender, term=self.term, granted=granted))",
            ),
        ],
    ),
    (
        "own vote counted before persist",
        "core.py",
        [
            (
                "self._send(VoteReply(sender=self.member, to=self.member, term=self.term, granted=True))",
                "self._votes[self.member] = True",
            ),
        ],
    ),
    (
        "follower acks before its fsync",
        "core.py",
        [
            (
                "self._send(AppendReply(sender=self.member, to=leader, term=self.term, match_index=match_index))",
                "self._send_now(AppendReply(sender=self.member, to=leader, term=self.term, match_index=match_index))",
            ),
        ],
    ),
    (
        "follower acks with the write under way",
        "core.py",
        [
            (
                ("        if not may_take:\n            return None\n"),
                ("        self._deliver(self._held)\n        if not may_take:\n            return None\n"),
            ),
        ],
    ),
    (
        "leader counts itself before its fsync",
        "core.py",
        [
            ("matched.append(self.log.stable_index)", "matched.append(self.log.last_index)"),
            (
                ("        self._append(entry)\n        return entry.index"),
                (
                    "        self._append(entry)\n"
                    "        if self.role is Role.LEADER:\n"
                    "            self._count_acknowledgements()\n"
                    "        return entry.index"
                ),
            ),
        ],
    ),
    (
        "leader of one counts itself before its fsync",
        "core.py",
        [
            (
                "matched.append(self.log.stable_index)",
                "matched.append(self.log.last_index if not self.progress else self.log.stable_index)",
            ),
            (
                ("        self._append(entry)\n        return entry.index"),
                (
                    "        self._append(entry)\n"
                    "        if self.role is Role.LEADER:\n"
                    "            self._count_acknowledgements()\n"
                    "        return entry.index"
                ),
            ),
        ],
    ),
    (
        "commit index goes back",
        "core.py",
        [
            (
                (
                    "        if index <= self.commit_index:\n"
                    "            return\n"
                    "        assert index <= self.log.last_index"
                ),
                "        assert index <= self.log.last_index",
            ),
            ("if index > self.commit_index and self.log", "if self.log"),
        ],
    ),
    (
        "match index goes back",
        "progress.py",
        [
            (
                ("            return False\n        self.match_index = match_index"),
                ("            pass\n        self.match_index = match_index"),
            ),
        ],
    ),
    (
        "follower commits beyond what was confirmed",
        "core.py",
        [
            (
                "self._commit_to(min(message.commit_index, confirmed))",
                "self._commit_to(min(message.commit_index, self.log.last_index))",
            ),
        ],
    ),
    (
        "heartbeat commits beyond the match index",
        "core.py",
        [
            ("commit_index = min(self.commit_index, progress.match_index)", "commit_index = self.commit_index"),
        ],
    ),
    (
        "truncation without conflict",
        "core.py",
        [
            (
                "if entry.index <= self.commit_index or log.holds(entry.index, entry.term):",
                "if entry.index <= self.commit_index:",
            ),
        ],
    ),
    (
        "truncation of what follows an Append",
        "core.py",
        [
            (
                ("        for entry in message.entries:\n            if entry.index <= self"),
                (
                    "        if confirmed >= self.commit_index and confirmed < log.last_index:\n"
                    "            self._truncate(confirmed + 1)\n"
                    "        for entry in message.entries:\n"
                    "            if entry.index <= self"
                ),
            ),
        ],
    ),
    (
        "no truncation on a conflict",
        "core.py",
        [
            (
                ("                self._truncate(entry.index)\n            self._append(entry)"),
                ("                continue\n            self._append(entry)"),
            ),
        ],
    ),
    (
        "no no-op before ReadIndex (not waited for)",
        "core.py",
        [
            (
                (" or self.commit_index < self._term_start_index:\n            return\n        self._round"),
                (":\n            return\n        self._round"),
            ),
        ],
    ),
    (
        "no no-op at election",
        "core.py",
        [
            (
                "self._term_start_index = self._append_own(EntryKind.NOOP)",
                "self._term_start_index = self.log.last_index",
            ),
        ],
    ),
    (
        "ReadIndex round id reused",
        "core.py",
        [
            ("        self._round += 1\n", "        self._round = self._round or 1\n"),
        ],
    ),
    (
        "ReadIndex rounds count from 1 in each leadership, replies of any term",
        "core.py",
        [
            (
                "elif message.term < self.term and not isinstance(message, PreVoteReply):",
                "elif message.term < self.term and not isinstance(message, (PreVoteReply, HeartbeatReply)):",
            ),
        ],
    ),
    (
        "read joined to a round already sent",
        "core.py",
        [
            (
                (
                    "        self._round += 1\n"
                    "        self._rounds.append((self._round, self.commit_index, self._reads_waiting))"
                ),
                (
                    "        if self._rounds:\n"
                    "            self._rounds[-1][2].extend(self._reads_waiting)\n"
                    "            self._reads_waiting = []\n"
                    "            return\n"
                    "        self._round += 1\n"
                    "        self._rounds.append((self._round, self.commit_index, self._reads_waiting))"
                ),
            ),
        ],
    ),
    (
        "pending reads kept over a term change",
        "core.py",
        [
            (("        self._votes.clear()\n        self._drop_reads()"), "        self._votes.clear()"),
        ],
    ),
    (
        "read released at once",
        "core.py",
        [
            (
                ("        self._send_heartbeats()\n        self._release_rounds()\n"),
                (
                    "        self._send_heartbeats()\n"
                    "        for p in self.progress.values():\n"
                    "            p.acked_round = self._round\n"
                    "        self._release_rounds()\n"
                ),
            ),
        ],
    ),
    (
        "reads without asking the other voters",
        "core.py",
        [
            (
                "or self._voting or self.commit_index < self._term_start_index:\n            return None\n        return self.",
                "or self.commit_index < self._term_start_index:\n            return None\n        return self.",
            )
        ],
    ),
    (
        "the only voter reads before its no-op is committed",
        "core.py",
        [
            (
                "or self._voting or self.commit_index < self._term_start_index:\n            return None\n        return self.",
                "or self._voting:\n            return None\n        return self.",
            )
        ],
    ),
    (
        "snapshot drops a log suffix it should keep",
        "core.py",
        [
            ("self._keeps_suffix = self.log.holds(last_index, last_term)", "self._keeps_suffix = False"),
        ],
    ),
    (
        "snapshot keeps a log suffix it should drop",
        "core.py",
        [
            ("self._keeps_suffix = self.log.holds(last_index, last_term)", "self._keeps_suffix = True"),
        ],
    ),
    (
        "snapshot: suffix on its way taken for written",
        "log.py",
        [
            ("if not keeps_suffix or self.taken_index < snapshot_index:", "if not keeps_suffix:"),
        ],
    ),
    (
        "snapshot: Appends taken while the disk switches",
        "core.py",
        [
            (
                "if self._installing is not None or not _follow_each_other(message):",
                "if not _follow_each_other(message):",
            ),
        ],
    ),
    (
        "snapshot: writes while the disk switches",
        "core.py",
        [
            ("if self._persisting is not None or self._installing is not None:", "if self._persisting is not None:"),
        ],
    ),
    (
        "snapshot: applies while the disk switches",
        "core.py",
        [
            (
                "if self.applied_index >= self.commit_index or self._installing is not None:",
                "if self.applied_index >= self.commit_index:",
            ),
        ],
    ),
    (
        "snapshot: configuration not taken over",
        "core.py",
        [
            ("self._configurations = [(last_index, configuration), *later]", "pass"),
        ],
    ),
    (
        "persist completion by index without term",
        "log.py",
        [
            (" and self.holds(last_index, term):", ":"),
        ],
    ),
    (
        "persist completion by index without term or taken index",
        "log.py",
        [
            (
                "if self.stable_index < last_index <= self.taken_index and self.holds(last_index, term):",
                "if self.stable_index < last_index:",
            ),
        ],
    ),
    (
        "taken index not lowered by a truncation",
        "log.py",
        [
            (
                ("            self.taken_index = first - 1\n            self.stable_index = min"),
                "            self.stable_index = min",
            ),
        ],
    ),
    (
        "stable index not lowered by a truncation",
        "log.py",
        [
            ("            self.stable_index = min(self.stable_index, first - 1)\n", ""),
        ],
    ),
    (
        "amnesiac member votes",
        "core.py",
        [
            (
                ("if message.to != self.member:\n            return"),
                ("if message.to.replica != self.member.replica:\n            return"),
            ),
        ],
    ),
    (
        "amnesiac member counts",
        "configuration.py",
        [
            (
                "return 2 * len(self.voters.intersection(members)) > len(self.voters)",
                (
                    "numbers = {voter.replica for voter in self.voters}\n"
                    "        return 2 * len(numbers & {member.replica for member in members}) > len(numbers)"
                ),
            ),
        ],
    ),
    (
        "learners count",
        "configuration.py",
        [
            (
                "return 2 * len(self.voters.intersection(members)) > len(self.voters)",
                "return 2 * len(self.members.intersection(members)) > len(self.voters)",
            ),
        ],
    ),
    (
        "learners count for commitment",
        "core.py",
        [("for peer in peers & self.configuration.voters]", "for peer in peers]")],
    ),
    (
        "PreVote ignores lower terms silently",
        "core.py",
        [
            (
                (
                    "        elif isinstance(message, PreVote):\n"
                    "            self._reply_pre_vote(message, granted=False)\n"
                ),
                "",
            ),
        ],
    ),
    (
        "messages of an old leader ignored silently",
        "core.py",
        [
            (
                ("if isinstance(message, (Append, Heartbeat, SnapshotPiece)):\n            self._send_now"),
                ("if isinstance(message, ()):\n            self._send_now"),
            ),
        ],
    ),
    (
        "leader cut off never steps down",
        "core.py",
        [
            ("if not self.configuration.is_quorum({*self._active_peers(), self.member}):", "if False:"),
        ],
    ),
    (
        "PreVote granted while the leader is heard",
        "core.py",
        [
            (("            and not self._hears_leader()\n            and self.log"), "            and self.log"),
        ],
    ),
    (
        "Vote taken while the leader is heard",
        "core.py",
        [
            (("        return self._hears_leader()\n\n    def _hears"), ("        return False\n\n    def _hears")),
        ],
    ),
    (
        "PreVote raises the term",
        "core.py",
        [
            ("if not isinstance(message, (PreVote, PreVoteReply)):", "if not isinstance(message, PreVoteReply):"),
        ],
    ),
    (
        "two votes in a term",
        "core.py",
        [
            ("            and self.hard_state.voted_for in (None, message.sender)\n", ""),
            ("assert hard_state.term > self.term or", "assert True or"),
        ],
    ),
    (
        "vote for a shorter log",
        "log.py",
        [
            (
                "return (last_term, last_index) >= (self.last_term, self.last_index)",
                "return last_term >= self.last_term",
            ),
        ],
    ),
    (
        "vote for an older log that is longer",
        "log.py",
        [
            (
                "return (last_term, last_index) >= (self.last_term, self.last_index)",
                "return last_index >= self.last_index",
            ),
        ],
    ),
    (
        "vote replies of any term counted",
        "core.py",
        [
            (
                "elif message.term < self.term and not isinstance(message, PreVoteReply):",
                "elif message.term < self.term and not isinstance(message, (PreVoteReply, VoteReply)):",
            ),
        ],
    ),
    (
        "append replies of any term counted",
        "core.py",
        [
            (
                "elif message.term < self.term and not isinstance(message, PreVoteReply):",
                "elif message.term < self.term and not isinstance(message, (PreVoteReply, AppendReply)):",
            ),
        ],
    ),
    (
        "configuration change before an entry of the term",
        "core.py",
        [
            (
                ("            or self.commit_index < self._term_start_index\n            or self._conf"),
                "            or self._conf",
            ),
        ],
    ),
    (
        "two configuration changes at once",
        "core.py",
        [
            ("            or self._configurations[-1][0] > self.commit_index\n", ""),
        ],
    ),
    (
        "configuration change by two voters",
        "configuration.py",
        [
            ("return len(self.voters ^ other.voters) <= 1", "return True"),
        ],
    ),
    (
        "configuration in effect when committed",
        "core.py",
        [
            (
                "    def _note_configuration(self) -> None:\n        self.configuration = self._configurations[-1][1]\n",
                "    @property\n"
                "    def configuration(self):\n"
                "        return next(c for i, c in reversed(self._configurations) if i <= self.commit_index)\n\n"
                "    def _note_configuration(self) -> None:\n",
            ),
        ],
    ),
    (
        "configuration not reverted on truncation",
        "core.py",
        [
            (("        while self._configurations[-1][0] >= first:\n            self._configurations.pop()\n"), ""),
        ],
    ),
    (
        "removed leader never steps down",
        "core.py",
        [
            ("if self.role is Role.LEADER and not self.is_voter and self", "if False and self"),
        ],
    ),
    (
        "removed leader steps down at once",
        "core.py",
        [
            ("not self.is_voter and self._configurations[-1][0] <= index:", "not self.is_voter:"),
            (
                "        self._release_rounds()  # Of",
                (
                    "        if not self.is_voter:\n"
                    "            self._become_follower(self.term, None)\n"
                    "        self._release_rounds()  # Of"
                ),
            ),
        ],
    ),
    (
        "removed leader counts itself",
        "core.py",
        [
            (
                "        if self.is_voter:\n            matched.append(",
                "        if not self.is_voter and matched:\n            matched.pop()\n        if True:\n            matched.append(",
            ),
        ],
    ),
    (
        "removed leader does not campaign before that is committed",
        "core.py",
        [
            (
                (
                    "        for index, configuration in reversed(self._configurations):\n"
                    "            if self.member in configuration.voters:\n"
                    "                return True\n"
                    "            if index <= self.commit_index:\n"
                    "                return False\n"
                    "        return False"
                ),
                "        return self.is_voter",
            ),
        ],
    ),
    (
        "a learner does not vote",
        "core.py",
        [
            (
                ("        granted = (\n            message.campaign_term > self.term"),
                ("        granted = (\n            self.is_voter and message.campaign_term > self.term"),
            ),
        ],
    ),
    (
        "a learner hears its leader for ever",
        "core.py",
        [
            ("            self._become_follower(self.term, None)  # It waits", "            pass  # It waits"),
        ],
    ),
    (
        "lost append not sent again",
        "core.py",
        [
            ("            self._send_append(to, progress, with_entries=False)", "            pass"),
        ],
    ),
    (
        "lost probe not sent again",
        "core.py",
        [
            (("            progress.is_waiting = False\n        elif"), ("            pass\n        elif")),
        ],
    ),
    (
        "probes to the dead",
        "core.py",
        [
            (
                ("                if self._is_active(progress):\n                    self._ask"),
                ("                if True:\n                    self._ask"),
            ),
        ],
    ),
    (
        "snapshots to the dead",
        "core.py",
        [
            (
                ("            if self._is_active(progress):\n                progress.snapshot()"),
                ("            if True:\n                progress.snapshot()"),
            ),
        ],
    ),
    (
        "in flight without bound",
        "core.py",
        [
            (
                "while not progress.is_waiting and progress.in_flight_bytes < self._bounds.in_flight_bytes:",
                "while not progress.is_waiting:",
            ),
        ],
    ),
    (
        "refused index tried again",
        "progress.py",
        [
            (
                "self.probe(max(self.match_index + 1, min(next_index, previous_index)))",
                "self.probe(max(self.match_index + 1, next_index))",
            ),
        ],
    ),
    (
        "old refusal believed",
        "progress.py",
        [
            ("if previous_index <= self.match_index or self.flow is Flow.SNAPSHOT:", "if self.flow is Flow.SNAPSHOT:"),
            ("max(self.match_index + 1, min", "max(1, min"),
        ],
    ),
    (
        "proposals during a transfer",
        "core.py",
        [
            (
                (
                    "if self.role is not Role.LEADER or self._transfer_to is not None:\n"
                    "            return None\n"
                    "        index = self.log.last_index + 1\n"
                ),
                (
                    "if self.role is not Role.LEADER:\n"
                    "            return None\n"
                    "        index = self.log.last_index + 1\n"
                ),
            ),
        ],
    ),
    (
        "TimeoutNow before the log is there",
        "core.py",
        [
            ("if self.progress[to].match_index == self.log.last_index:", "if True:"),
        ],
    ),
    (
        "transfer never given up",
        "core.py",
        [
            ("self._transfer_to = None  # it did", "pass  # it did"),
        ],
    ),
    (
        "transfer to a learner",
        "core.py",
        [
            (
                "not self._is_active(progress) or to not in self.configuration.voters:",
                "not self._is_active(progress):",
            ),
        ],
    ),
    (
        "lost read round not sent again",
        "core.py",
        [
            (
                "commit_index=commit_index, round=self._round)",
                "commit_index=commit_index, round=self._round if self._reads_waiting or to == sorted(self.progress)[0] else 0)",
            ),
        ],
    ),
    (
        "time-outs not drawn",
        "core.py",
        [
            ("return ELECTION_TICKS + self._draw(ELECTION_TICKS)", "return ELECTION_TICKS"),
        ],
    ),
    (
        "refused vote resets the time-out",
        "core.py",
        [
            (
                (
                    "            self._set_hard_state(HardState(self.term, message.sender))\n"
                    "            self._elapsed = 0"
                ),
                ("            self._set_hard_state(HardState(self.term, message.sender))\n        self._elapsed = 0"),
            ),
        ],
    ),
    (
        "granted vote does not reset the time-out",
        "core.py",
        [
            (
                (
                    "            self._set_hard_state(HardState(self.term, message.sender))\n"
                    "            self._elapsed = 0"
                ),
                "            self._set_hard_state(HardState(self.term, message.sender))",
            ),
        ],
    ),
    (
        "appends accepted without the previous entry",
        "core.py",
        [
            ("        elif not log.holds(previous, message.previous_term):", "        elif previous > log.last_index:"),
        ],
    ),
    (
        "held messages leave with the write under way",
        "core.py",
        [
            ("        self._under_way, self._held = self._held, []", "        pass"),
            ("        self._deliver(self._under_way)\n", "        self._deliver(self._held)\n"),
        ],
    ),
    (
        "transfer to the dead",
        "core.py",
        [
            (
                "progress is None or not self._is_active(progress) or to not in",
                "progress is None or to not in",
            ),
        ],
    ),
    (
        "leader whose disk hangs leads on",
        "core.py",
        [
            (
                "        if self._stalled_ticks >= STALLED_TICKS:\n            self._let_another_lead()\n",
                "",
            ),
        ],
    ),
    (
        "leader whose disk hangs only tries to hand over",
        "core.py",
        [("        if self._stalled_ticks >= STALLED_TICKS + ELECTION_TICKS:\n", "        if False:\n")],
    ),
    (
        "leader whose disk hangs goes although it is needed",
        "core.py",
        [("if not self.configuration.is_quorum(self._active_peers()):", "if False:")],
    ),
    (
        "campaign with a disk that hangs",
        "core.py",
        [("            return False  # Its vote could not be saved.\n", "            pass\n")],
    ),
    (
        "what the disk is doing taken for hanging",
        "core.py",
        [("        self._persisting = None\n        self._stalled_ticks = 0\n", "        self._persisting = None\n")],
    ),
    (
        "all peers at once without bound",
        "core.py",
        [
            (
                "            if self._entries_left <= 0 or self._bytes_left <= 0:\n                return\n        ",
                "        ",
            ),
        ],
    ),
    (
        "who came short is not the next",
        "core.py",
        [("            if self._served_next in self.progress:\n", "            if False:\n")],
    ),
    (
        "Append of any number of entries",
        "core.py",
        [("last = min(log.last_index, previous + self._bounds.append_entries)", "last = log.last_index")],
    ),
    (
        "Append with a gap taken",
        "core.py",
        [("if self._installing is not None or not _follow_each_other(message):", "if self._installing is not None:")],
    ),
    (
        "held answers pile up",
        "core.py",
        [("            if type(other) is type(message) and", "            if False and")],
    ),
    (
        "held acknowledgements pile up",
        "core.py",
        [("            if isinstance(held, AppendReply) and", "            if False and")],
    ),
    (
        "a snapshot waited for that is not needed any more",
        "core.py",
        [
            (
                "            if progress.flow is Flow.SNAPSHOT and message.match_index + 1 >= self.log.first_index:\n",
                "            if False:\n",
            )
        ],
    ),
]
