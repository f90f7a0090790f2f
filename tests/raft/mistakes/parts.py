"""What goes wrong in what the rules are made of: the log, what is known of a peer, the members, the state."""

MUTATIONS: list[tuple[str, str, list[tuple[str, str]]]] = [
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
        "snapshot: suffix on its way taken for written",
        "log.py",
        [
            ("if not keeps_suffix or self.taken_index < snapshot_index:", "if not keeps_suffix:"),
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
        "held answers pile up",
        "state.py",
        [
            ("            if type(other) is type(message) and", "            if False and"),
        ],
    ),
]
