"""What goes wrong as a leader: commitment, sending, members, handing over, reads."""

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
        "heartbeat commits beyond the match index",
        "leadership.py",
        [
            ("commit_index = min(state.commit_index, progress.match_index)", "commit_index = state.commit_index"),
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
        "learners count for commitment",
        "leadership.py",
        [
            ("for peer in peers & state.configuration.voters]", "for peer in peers]"),
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
