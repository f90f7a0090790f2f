"""Mistakes to be put into the Raft core by hand, each as text to be replaced in one of its files."""

MUTATIONS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "old-term entry committed by counting",
        "leadership.py",
        [
            (" and state.log.term_of(index) == state.term:", ":"),
        ],
    ),
    (
        "scan for commit stopped at an old-term entry",
        "leadership.py",
        [
            (
                (
                    "        index = quorum_value(matched)\n"
                    "        if index > state.commit_index and state.log.term_of(index) == state.term:\n"
                    "            state.commit_to(index)"
                ),
                (
                    "        reached = quorum_value(matched)\n"
                    "        index = state.commit_index\n"
                    "        while index < reached and state.log.term_of(index + 1) == state.term:\n"
                    "            index += 1\n"
                    "        if index > state.commit_index:\n"
                    "            state.commit_to(index)"
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
                "self.saved_hard_state = persist.hard_state",
                "self.saved_hard_state = HardState(persist.hard_state.term, self.hard_state.voted_for)",
            ),
        ],
    ),
    (
        "vote not persisted (unless the term changed)",
        "core.py",
        [
            (
                "if self.hard_state != self.saved_hard_state else None\n        last",
                "if self.hard_state.term != self.saved_hard_state.term else None\n        last",
            ),
        ],
    ),
    (
        "term not persisted",
        "core.py",
        [
            (
                "hard_state = self.hard_state if self.hard_state != self.saved_hard_state else None\n",
                ("hard_state = None\n        self.saved_hard_state = self.hard_state\n"),
            ),
        ],
    ),
    (
        "vote reply before persist",
        "core.py",
        [
            (
                "self.send(VoteReply(sender=self.member, to=message.sender, term=self.term, granted=granted))",
                "self.now.append(VoteReply(sender=self.member, to=message.sender, term=self.term, granted=granted))",
            ),
        ],
    ),
    (
        "own vote counted before persist",
        "core.py",
        [
            (
                "self.send(VoteReply(sender=self.member, to=self.member, term=self.term, granted=True))",
                "self._votes[self.member] = True",
            ),
        ],
    ),
    (
        "follower acks before its fsync",
        "core.py",
        [
            (
                "self.send(AppendReply(sender=self.member, to=leader, term=self.term, match_index=match_index))",
                "self.send_now(AppendReply(sender=self.member, to=leader, term=self.term, match_index=match_index))",
            ),
        ],
    ),
    (
        "follower acks with the write under way",
        "core.py",
        [
            (
                ("        if not may_take:\n            return None\n"),
                ("        self._deliver(self.held)\n        if not may_take:\n            return None\n"),
            ),
        ],
    ),
    (
        "leader counts itself before its fsync",
        "leadership.py",
        [
            ("matched.append(state.log.stable_index)", "matched.append(state.log.last_index)"),
            (
                "        self._term_start_index = state.append_own(EntryKind.NOOP)\n",
                (
                    "        self._term_start_index = state.append_own(EntryKind.NOOP)\n"
                    "        self.count_acknowledgements()\n"
                ),
            ),
        ],
    ),
    (
        "leader of one counts itself before its fsync",
        "leadership.py",
        [
            (
                "matched.append(state.log.stable_index)",
                "matched.append(state.log.last_index if not self.progress else state.log.stable_index)",
            ),
            (
                "        self._term_start_index = state.append_own(EntryKind.NOOP)\n",
                (
                    "        self._term_start_index = state.append_own(EntryKind.NOOP)\n"
                    "        self.count_acknowledgements()\n"
                ),
            ),
        ],
    ),
    (
        "commit index goes back",
        "leadership.py",
        [
            ("if index > state.commit_index and state.log", "if state.log"),
            ("            state.commit_to(index)\n", "            state.commit_index = index\n"),
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
                "self.commit_to(min(message.commit_index, confirmed))",
                "self.commit_to(min(message.commit_index, self.log.last_index))",
            ),
        ],
    ),
    (
        "heartbeat commits beyond the match index",
        "leadership.py",
        [
            ("commit_index = min(state.commit_index, progress.match_index)", "commit_index = state.commit_index"),
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
                    "            self.truncate(confirmed + 1)\n"
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
                ("                self.truncate(entry.index)\n            self.append(entry)"),
                ("                continue\n            self.append(entry)"),
            ),
        ],
    ),
    (
        "no no-op before ReadIndex (not waited for)",
        "leadership.py",
        [
            (
                "if not self.reads_waiting or self.rounds or commit_index < self._term_start_index:",
                "if not self.reads_waiting or self.rounds:",
            ),
        ],
    ),
    (
        "no no-op at election",
        "leadership.py",
        [
            (
                "self._term_start_index = state.append_own(EntryKind.NOOP)",
                "self._term_start_index = state.log.last_index",
            ),
        ],
    ),
    (
        "ReadIndex round id reused",
        "leadership.py",
        [
            (
                "        self.round += 1\n        self.rounds",
                "        self.round = self.round or 1\n        self.rounds",
            ),
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
            ("self._step_down, self._release, self._last_round)", "self._step_down, self._release, 0)"),
        ],
    ),
    (
        "read joined to a round already sent",
        "leadership.py",
        [
            (
                "        if not self.reads_waiting or self.rounds or",
                (
                    "        if self.rounds:\n"
                    "            self.rounds[-1][2].extend(self.reads_waiting)\n"
                    "            self.reads_waiting = []\n"
                    "            return\n"
                    "        if not self.reads_waiting or"
                ),
            ),
        ],
    ),
    (
        "a hand-over waits for the batch",
        "leadership.py",
        [
            (
                "if self._state.commit_index >= self.batch_end or self._transfer_to is not None:",
                "if self._state.commit_index >= self.batch_end:",
            ),
        ],
    ),
    (
        "a split vote is waited out",
        "core.py",
        [
            ("        if not message.granted:\n", "        if False:\n"),
        ],
    ),
    (
        "who has asked for PreVotes follows with a short time-out",
        "core.py",
        [
            (
                "        self._timeout = self._draw_timeout()\n        self._votes.clear()\n",
                "        self._votes.clear()\n",
            ),
        ],
    ),
    (
        "who has asked for PreVotes stands with a short time-out",
        "core.py",
        [
            (
                "        self._timeout = self._draw_timeout()\n        self.set_hard_state(",
                "        self.set_hard_state(",
            ),
        ],
    ),
    (
        "fewer voters commit nothing by themselves",
        "leadership.py",
        [
            (
                "        self._release_rounds()\n        self.count_acknowledgements()\n",
                "        self._release_rounds()\n",
            ),
        ],
    ),
    (
        "fewer asked than make a majority",
        "quickest.py",
        [
            (
                "if len(first) + self._state.is_voter == len(voters) // 2 + 1:",
                "if len(first) + self._state.is_voter == len(voters) // 2:",
            ),
        ],
    ),
    (
        "who is not the quickest falls behind for ever",
        "leadership.py",
        [
            (
                "        self._late_end = self._asked_end = self.batch_end\n",
                "        self._asked_end = self.batch_end\n",
            ),
        ],
    ),
    (
        "who was quick to write once is so for ever",
        "leadership.py",
        [
            ("            self._quick_to_write.all_are_asked()\n", "            pass\n"),
        ],
    ),
    (
        "a large batch waits for the quickest alone",
        "leadership.py",
        [
            ("if is_large or not own_disk_is_free", "if not own_disk_is_free"),
        ],
    ),
    (
        "the target of a hand-over lacks the latest entries",
        "leadership.py",
        [
            (" or not own_disk_is_free or self._transfer_to is not None:", " or not own_disk_is_free:"),
        ],
    ),
    (
        "a batch waits for the leader's own disk",
        "leadership.py",
        [
            ("if is_large or not own_disk_is_free or", "if is_large or"),
        ],
    ),
    (
        "who has answered before all were asked is slow",
        "leadership.py",
        [
            (
                "            self._quick_to_write.all_are_asked()\n            self._count_those_who_have_it()\n",
                "            self._quick_to_write.all_are_asked()\n",
            ),
        ],
    ),
    (
        "who answered late is asked for reads for ever",
        "leadership.py",
        [
            ("            self._quick_to_answer.all_are_asked()\n", ""),
        ],
    ),
    (
        "pending reads kept over a term change",
        "core.py",
        [
            ("            self._reads_refused += was_leading.take_reads()\n", "            self._kept = was_leading\n"),
            (
                "        self._leading = Leadership(self, self._step_down, self._release, self._last_round)\n",
                (
                    "        self._leading = Leadership(self, self._step_down, self._release, self._last_round)\n"
                    '        if hasattr(self, "_kept"):\n'
                    "            self._leading.rounds = self._kept.rounds\n"
                    "            self._leading.reads_waiting = self._kept.reads_waiting\n"
                ),
            ),
        ],
    ),
    (
        "read released at once",
        "leadership.py",
        [
            (
                "        self._release_rounds()\n\n    def _release_rounds",
                (
                    "        for p in self.progress.values():\n"
                    "            p.acked_round = self.round\n"
                    "        self._release_rounds()\n\n    def _release_rounds"
                ),
            ),
        ],
    ),
    (
        "reads without asking the other voters",
        "leadership.py",
        [
            ("return None if self.voting or commit_index <", "return None if commit_index <"),
        ],
    ),
    (
        "the only voter reads before its no-op is committed",
        "leadership.py",
        [
            (
                "return None if self.voting or commit_index < self._term_start_index else",
                "return None if self.voting else",
            ),
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
            ("self.configurations = [(last_index, configuration), *later]", "pass"),
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
        "leadership.py",
        [
            ("for peer in peers & state.configuration.voters]", "for peer in peers]"),
        ],
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
                ("if isinstance(message, (Append, Heartbeat, SnapshotPiece)):\n            self.send_now"),
                ("if isinstance(message, ()):\n            self.send_now"),
            ),
        ],
    ),
    (
        "leader cut off never steps down",
        "leadership.py",
        [
            ("if not state.configuration.is_quorum({*self._active_peers(), state.member}):", "if False:"),
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
            (
                "            self.set_hard_state(HardState(self.term, message.sender))",
                "            self.hard_state = HardState(self.term, message.sender)",
            ),
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
        "leadership.py",
        [
            (
                ("            or state.commit_index < self._term_start_index\n            or state.last"),
                "            or state.last",
            ),
        ],
    ),
    (
        "two configuration changes at once",
        "leadership.py",
        [
            ("            or state.last_configuration_index > state.commit_index\n", ""),
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
        "state.py",
        [
            (
                (
                    "    def note_configuration(self) -> None:\n"
                    '        """To be called after `configurations` has changed."""\n'
                    "        self.configuration = self.configurations[-1][1]\n"
                ),
                (
                    "    @property\n"
                    "    def configuration(self):\n"
                    "        return next(c for i, c in reversed(self.configurations) if i <= self.commit_index)\n"
                    "\n"
                    "    def note_configuration(self) -> None:\n"
                ),
            ),
        ],
    ),
    (
        "configuration not reverted on truncation",
        "state.py",
        [
            (("        while self.configurations[-1][0] >= first:\n            self.configurations.pop()\n"), ""),
        ],
    ),
    (
        "removed leader never steps down",
        "leadership.py",
        [
            ("if not state.is_voter and state.last_conf", "if False and state.last_conf"),
        ],
    ),
    (
        "removed leader steps down at once",
        "leadership.py",
        [
            ("not state.is_voter and state.last_configuration_index <= index:", "not state.is_voter:"),
            (
                "        # Of fewer voters",
                ("        if not state.is_voter:\n            self._step_down()\n        # Of fewer voters"),
            ),
        ],
    ),
    (
        "removed leader counts itself",
        "leadership.py",
        [
            (
                ("        if state.is_voter:\n            matched.append("),
                (
                    "        if not state.is_voter and matched:\n"
                    "            matched.pop()\n"
                    "        if True:\n"
                    "            matched.append("
                ),
            ),
        ],
    ),
    (
        "removed leader does not campaign before that is committed",
        "core.py",
        [
            (
                (
                    "        for index, configuration in reversed(self.configurations):\n"
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
        "leadership.py",
        [
            ("            self._send_append(to, progress, with_entries=False)", "            pass"),
        ],
    ),
    (
        "lost probe not sent again",
        "leadership.py",
        [
            (("            progress.is_waiting = False\n        elif"), ("            pass\n        elif")),
        ],
    ),
    (
        "probes to the dead",
        "leadership.py",
        [
            (
                ("                if self._is_active(progress):\n                    self._ask"),
                ("                if True:\n                    self._ask"),
            ),
        ],
    ),
    (
        "snapshots to the dead",
        "leadership.py",
        [
            (
                ("            if self._is_active(progress):\n                progress.snapshot()"),
                ("            if True:\n                progress.snapshot()"),
            ),
        ],
    ),
    (
        "in flight without bound",
        "leadership.py",
        [
            (
                "while not progress.is_waiting and progress.in_flight_bytes < in_flight_max:",
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
        "leadership.py",
        [
            (("        if self._transfer_to is not None:\n            return None\n        log = "), "        log = "),
        ],
    ),
    (
        "TimeoutNow before the log is there",
        "leadership.py",
        [
            ("if self.progress[to].match_index == state.log.last_index:", "if True:"),
        ],
    ),
    (
        "transfer never given up",
        "leadership.py",
        [
            ("self._transfer_to = None  # it did", "pass  # it did"),
        ],
    ),
    (
        "transfer to a learner",
        "leadership.py",
        [
            (
                "not self._is_active(progress) or to not in self._state.configuration.voters:",
                "not self._is_active(progress):",
            ),
        ],
    ),
    (
        "lost read round not sent again",
        "leadership.py",
        [
            (
                "commit_index=commit_index, round=self.round)",
                "commit_index=commit_index, round=self.round if self.reads_waiting or to == sorted(self.progress)[0] else 0)",
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
                ("            self.set_hard_state(HardState(self.term, message.sender))\n            self.elapsed = 0"),
                ("            self.set_hard_state(HardState(self.term, message.sender))\n        self.elapsed = 0"),
            ),
        ],
    ),
    (
        "granted vote does not reset the time-out",
        "core.py",
        [
            (
                ("            self.set_hard_state(HardState(self.term, message.sender))\n            self.elapsed = 0"),
                "            self.set_hard_state(HardState(self.term, message.sender))",
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
            ("        self._under_way, self.held = self.held, []", "        pass"),
            ("        self._deliver(self._under_way)\n", "        self._deliver(self.held)\n"),
        ],
    ),
    (
        "transfer to the dead",
        "leadership.py",
        [
            ("progress is None or not self._is_active(progress) or to not in", "progress is None or to not in"),
        ],
    ),
    (
        "leader whose disk hangs leads on",
        "leadership.py",
        [
            (
                ("        if state.stalled_ticks >= STALLED_TICKS and self._let_another_lead():\n            return\n"),
                "",
            ),
        ],
    ),
    (
        "leader whose disk hangs only tries to hand over",
        "leadership.py",
        [
            ("        if state.stalled_ticks >= STALLED_TICKS + ELECTION_TICKS:\n", "        if False:\n"),
        ],
    ),
    (
        "leader whose disk hangs goes although it is needed",
        "leadership.py",
        [
            ("if not state.configuration.is_quorum(self._active_peers()):", "if False:"),
        ],
    ),
    (
        "campaign with a disk that hangs",
        "core.py",
        [
            ("            return False  # Its vote could not be saved.\n", "            pass\n"),
        ],
    ),
    (
        "what the disk is doing taken for hanging",
        "core.py",
        [
            (
                ("        self._persisting = None\n        self.stalled_ticks = 0\n"),
                "        self._persisting = None\n",
            ),
        ],
    ),
    (
        "all peers at once without bound",
        "leadership.py",
        [
            (
                ("            if self._entries_left <= 0 or self._bytes_left <= 0:\n                return\n        "),
                "        ",
            ),
        ],
    ),
    (
        "who came short is not the next",
        "leadership.py",
        [
            ("            if self._served_next in self.progress:\n", "            if False:\n"),
        ],
    ),
    (
        "Append of any number of entries",
        "leadership.py",
        [
            ("last = min(self._end_for(to), previous + bounds.append_entries)", "last = self._end_for(to)"),
        ],
    ),
    (
        "Append with a gap taken",
        "core.py",
        [
            ("if self._installing is not None or not _follow_each_other(message):", "if self._installing is not None:"),
        ],
    ),
    (
        "held answers pile up",
        "state.py",
        [
            ("            if type(other) is type(message) and", "            if False and"),
        ],
    ),
    (
        "held acknowledgements pile up",
        "core.py",
        [
            ("            if isinstance(held, AppendReply) and", "            if False and"),
        ],
    ),
    (
        "a snapshot waited for that is not needed any more",
        "leadership.py",
        [
            (
                "            if progress.flow is Flow.SNAPSHOT and message.match_index + 1 >= log.first_index:\n",
                "            if False:\n",
            ),
        ],
    ),
]
