"""What goes wrong in the rules: terms, votes, what is on disk before it is said, what is given out."""

MUTATIONS: list[tuple[str, str, list[tuple[str, str]]]] = [
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
        "snapshot: writes while the disk switches",
        "core.py",
        [
            (
                "if self._persisting is not None or self._following.switching_to is not None:",
                "if self._persisting is not None:",
            ),
        ],
    ),
    (
        "snapshot: applies while the disk switches",
        "core.py",
        [
            (
                "if self.applied_index >= self.commit_index or self._following.switching_to is not None:",
                "if self.applied_index >= self.commit_index:",
            ),
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
        "held messages leave with the write under way",
        "core.py",
        [
            ("        self._under_way, self.held = self.held, []", "        pass"),
            ("        self._deliver(self._under_way)\n", "        self._deliver(self.held)\n"),
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
]
