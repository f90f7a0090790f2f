"""What goes wrong as a replica takes in what its leader sends."""

MUTATIONS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "follower acks before its fsync",
        "following.py",
        [
            (
                "state.send(AppendReply(sender=state.member, to=leader, term=state.term, match_index=match_index))",
                "state.send_now(AppendReply(sender=state.member, to=leader, term=state.term, match_index=match_index))",
            ),
        ],
    ),
    (
        "follower commits beyond what was confirmed",
        "following.py",
        [
            (
                "state.commit_to(min(message.commit_index, confirmed))",
                "state.commit_to(min(message.commit_index, log.last_index))",
            ),
        ],
    ),
    (
        "truncation without conflict",
        "following.py",
        [
            (
                "if entry.index <= state.commit_index or log.holds(entry.index, entry.term):",
                "if entry.index <= state.commit_index:",
            ),
        ],
    ),
    (
        "truncation of what follows an Append",
        "following.py",
        [
            (
                ("        for entry in message.entries:\n            if entry.index <= state"),
                (
                    "        if confirmed >= state.commit_index and confirmed < log.last_index:\n"
                    "            state.truncate(confirmed + 1)\n"
                    "        for entry in message.entries:\n"
                    "            if entry.index <= state"
                ),
            ),
        ],
    ),
    (
        "no truncation on a conflict",
        "following.py",
        [
            (
                ("                state.truncate(entry.index)\n            state.append(entry)"),
                ("                continue\n            state.append(entry)"),
            ),
        ],
    ),
    (
        "snapshot drops a log suffix it should keep",
        "following.py",
        [
            ("self._keeps_suffix = self._state.log.holds(last_index, last_term)", "self._keeps_suffix = False"),
        ],
    ),
    (
        "snapshot keeps a log suffix it should drop",
        "following.py",
        [
            ("self._keeps_suffix = self._state.log.holds(last_index, last_term)", "self._keeps_suffix = True"),
        ],
    ),
    (
        "snapshot: Appends taken while the disk switches",
        "following.py",
        [
            (
                "if self.switching_to is not None or not _follow_each_other(message):",
                "if not _follow_each_other(message):",
            ),
        ],
    ),
    (
        "snapshot: configuration not taken over",
        "following.py",
        [
            ("state.configurations = [(last_index, configuration), *later]", "pass"),
        ],
    ),
    (
        "appends accepted without the previous entry",
        "following.py",
        [
            ("        elif not log.holds(previous, message.previous_term):", "        elif previous > log.last_index:"),
        ],
    ),
    (
        "Append with a gap taken",
        "following.py",
        [
            (
                "if self.switching_to is not None or not _follow_each_other(message):",
                "if self.switching_to is not None:",
            ),
        ],
    ),
    (
        "held acknowledgements pile up",
        "following.py",
        [
            ("            if isinstance(held, AppendReply) and", "            if False and"),
        ],
    ),
]
