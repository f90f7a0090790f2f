"""Mistakes to be put by hand into what lies around the Raft core, each as text to be replaced in one file of madkv/."""

MUTATIONS: list[tuple[str, str, list[tuple[str, str]]]] = [
    # Waiters are told when the leadership is lost, and answered by index and term: one of the two would do.
    (
        "waiter answered by index without term",
        "server/replica.py",
        [
            ("is_ours = waiter is not None and waiter.term == entry.term", "is_ours = waiter is not None"),
            ("        if self._led_term is not None:\n            self._interrupt_waiters()\n", ""),
            ('        assert index not in self._waiters, "a waiter is told before its index is used again"\n', ""),
            ("if waiter and is_ours else decode(entry.payload)", "if False else decode(entry.payload)"),
        ],
    ),
    (
        "a lost leadership told as not executed",
        "server/replica.py",
        [
            (
                'Interrupted("the leadership was lost before the outcome was known")',
                'NotLeader("the leadership was lost before the outcome was known")',
            )
        ],
    ),
    (
        "read released before apply",
        "server/replica.py",
        [("while self._released and self._released[0].index <= applied:", "while self._released:")],
    ),
    (
        "answered when proposed",
        "server/replica.py",
        [
            (
                "        self._unwritten_bytes += len(payload)\n        self._wake()\n",
                "        self._unwritten_bytes += len(payload)\n"
                "        from madkv.operations import Write\n"
                "        if isinstance(operation, Write):\n"
                "            del self._waiters[index]\n"
                "            answered(False)\n"
                "        self._wake()\n",
            )
        ],
    ),
    (
        "commit that holds what is applied without the entries for it",
        "server/replica.py",
        [
            (
                "        self._use_disk(ready.persist)\n",
                "        self._apply_some()\n"
                "        self._kept = getattr(self, '_kept', None) or ready.persist\n"
                "        if not self._is_disk_busy:\n"
                "            kept, self._kept = self._kept, None\n"
                "            self._use_disk(kept)\n",
            ),
            ("takes_persist=not self._is_disk_busy", "takes_persist=True"),
            # Not what is to be caught here: a snapshot is not installed while a commit is being kept.
            ("if self.core.snapshot_install(", "if not getattr(self, '_kept', None) and self.core.snapshot_install("),
        ],
    ),
    (
        "applied index without data",
        "server/replica.py",
        [("pairs=self._pairs.freeze(),", "pairs={},"), ("            self._pairs.thaw()\n", "")],
    ),
    (
        "sessions not written",
        "server/replica.py",
        [("sessions=self.state_machine.take_changes(),", "")],
    ),
    (
        "log cut as far as it is applied, not as far as the tables go",
        "storage/state.py",
        [
            ("target = min(wanted, self.applied_index)", "target = min(wanted, self.last_index)"),
            ('"the log is cut where data covers it"', '"x"'),
            ("<= batch.compact_to <= self.applied_index", "<= batch.compact_to <= self.last_index"),
        ],
    ),
    (
        "state in memory kept when a snapshot is installed",
        "server/replica.py",
        [("        self._pairs.forget()\n", "")],
    ),
    (
        "sessions in memory kept when a snapshot is installed",
        "server/replica.py",
        [
            (
                "        self.state_machine.restore(decoded, head.last_index)\n",
                "        self.state_machine.last_applied = head.last_index\n",
            )
        ],
    ),
    (
        "entries of before kept when a snapshot is installed",
        "server/replica.py",
        [("        self._to_apply.clear()  # The snapshot", "        # The snapshot")],
    ),
    (
        "sessions missing from a snapshot",
        "storage/twin.py",
        [
            (
                "        return iter(self._tables[table])\n",
                "        return iter(self._tables[table] if not table else ())\n",
            )
        ],
    ),
    (
        "snapshot index taken from memory",
        "storage/twin.py",
        [
            (
                "        self.head = SnapshotHead(meta.applied_index, term, meta.applied_configuration)\n",
                "        import attrs\n"
                "        if disk.log:\n"
                "            meta, term = attrs.evolve(meta, applied_index=disk.log[-1].index), disk.log[-1].term\n"
                "        self.head = SnapshotHead(meta.applied_index, term, meta.applied_configuration)\n",
            )
        ],
    ),
    (
        "overlay being committed skipped in reads",
        "storage/overlay.py",
        [
            (
                "        for overlay in (self._filling, self._frozen):\n            if key in overlay.values:",
                "        for overlay in (self._filling,):\n            if key in overlay.values:",
            )
        ],
    ),
    (
        "overlay being committed skipped in scans",
        "storage/overlay.py",
        [
            ("return sorted({*newer, *older}) if newer and older else newer or older", "return newer"),
        ],
    ),
    (
        "a retry executed again",
        "sessions.py",
        [("        record = session.records.get(write.sequence)\n        if", "        record = None\n        if")],
    ),
    (
        "session check at propose instead of apply",
        "server/replica.py",
        [
            (
                "        time_ms = self._now_ms()\n",
                "        time_ms = self._now_ms()\n"
                "        from madkv.operations import Write\n"
                "        from madkv.sessions import Record\n"
                "        import attrs\n"
                "        if isinstance(operation, Write) and operation.session:\n"
                "            known = self.state_machine._sessions._find(operation.session)[0]\n"
                "            record = known and known.records.get(operation.sequence)\n"
                "            if record is not None:\n"
                "                answered(record.outcome)\n"
                "                return\n",
            ),
            (
                "outcome = machine.apply(entry.index, time_ms, operation)",
                "from madkv.operations import Write\n"
                "                known = machine._sessions._find(getattr(operation, 'session', 0))[0]\n"
                "                if isinstance(operation, Write) and known:\n"
                "                    known.records.pop(operation.sequence, None)\n"
                "                outcome = machine.apply(entry.index, time_ms, operation)",
            ),
        ],
    ),
    (
        "the only voter reads before what is committed is applied",
        "server/replica.py",
        [("if index is not None and index <= self.state_machine.last_applied and", "if index is not None and")],
    ),
    (
        "unknown session executed",
        "state_machine.py",
        [
            (
                "            case refused:\n                return refused\n",
                "            case refused:\n                return self._execute(write)\n",
            )
        ],
    ),
    (
        "number below the floor executed",
        "sessions.py",
        [
            (
                "        if write.sequence < session.floor:\n",
                "        if write.sequence < session.floor:\n            return session\n        if False:\n",
            )
        ],
    ),
    (
        "ownership checked only at propose",
        "state_machine.py",
        [("        if self.ownership is not EVERYTHING and (refusal :=", "        if False and (refusal :=")],
    ),
    (
        "time goes back",
        "state_machine.py",
        [
            (
                "        if time_ms > self.time_ms:\n            self.time_ms = time_ms\n",
                "        if True:\n            self.time_ms = time_ms\n",
            )
        ],
    ),
    (
        "retry given a new sequence number",
        "client/session.py",
        [
            (
                "        call.uncertain = call.sent_in is not None\n",
                "        if call.sent_in is not None:\n"
                "            del self._waiting[call.sequence]\n"
                "            call.sequence = self._next_sequence\n"
                "            self._next_sequence += 1\n"
                "            self._waiting[call.sequence] = call\n"
                "        call.uncertain = call.sent_in is not None\n",
            )
        ],
    ),
    (
        "a refused attempt taken for proof that none was executed",
        "client/session.py",
        [("        if not call.uncertain:\n            call.sent_in = None\n", "        call.sent_in = None\n")],
    ),
    (
        "amnesiac member votes",
        "testing/sim/group.py",
        [("        self.member = Member(self.number, bytes([self.number, generation]) * 8)\n\n", "\n")],
    ),
    (
        "commit told before it is on the disk",
        "server/replica.py",
        [
            (
                "self._run_on_disk(\n"
                "                    lambda: self._storage.write(batch),\n"
                "                    lambda: self._written(batch, persist),\n",
                "if persist is not None:\n"
                "                    self.core.persisted(persist)\n"
                "                    self._unwritten_bytes = 0\n"
                "                self._run_on_disk(\n"
                "                    lambda: self._storage.write(batch),\n"
                "                    lambda: self._written(batch, None),\n",
            )
        ],
    ),
    (
        "pieces of another stream taken",
        "server/snapshots.py",
        [
            ("piece.configuration, (piece.term, piece.stream))", "piece.configuration)"),
            ("        if message.stream != stream.number:\n", "        if False:\n"),
        ],
    ),
    (
        "a late piece ends a newer stream",
        "server/snapshots.py",
        [("        if stream < self._newest or (waiting", "        if (waiting")],
    ),
    (
        "a late piece takes a newer one's place",
        "server/snapshots.py",
        [("and piece.offset < waiting.offset", "and False")],
    ),
    (
        "the last piece of what is installed answered again",
        "server/replica.py",
        [("        self._arriving.forget(head.last_index)\n", "")],
    ),
    (
        "log cut before those who catch up",
        "server/replica.py",
        [("for index in (self.core.index_to_keep, self._streams", "for index in (None, self._streams")],
    ),
    (
        "log held for a stream without bound",
        "server/replica.py",
        [
            (
                "target = max(min(needed), storage.cut(storage.last_index, tuning.log_bytes_held_max))",
                "target = min(needed)",
            )
        ],
    ),
    (
        "a stream goes on although the log after it is cut",
        "server/replica.py",
        [("            self._streams.give_up_before(target)\n", "")],
    ),
    (
        "sessions of one time do not expire together",
        "sessions.py",
        [("or (rows_max <= 0 and session.last_write_ms != last_ms):", "or rows_max <= 0:")],
    ),
    (
        "all sessions may expire at once",
        "sessions.py",
        [("or (rows_max <= 0 and session.last_write_ms != last_ms):", "or False:")],
    ),
    (
        "a caller's failure ends the replica",
        "server/replica.py",
        [("                except Exception:  # as in", "                except ZeroDivisionError:  # as in")],
    ),
    (
        "entries applied after the replica was stopped",
        "server/replica.py",
        [
            (
                "                if not self._is_running:\n                    return\n        self._note",
                "        self._note",
            )
        ],
    ),
    (
        "a backlog applied in one turn",
        "server/replica.py",
        [
            (
                "self.core.applied_index < self.core.commit_index:\n                self._turn_later()",
                "self.core.applied_index < self.core.commit_index:\n                self._wants_turn = True",
            )
        ],
    ),
    (
        "what cannot be sent in one turn waits for a tick",
        "server/replica.py",
        [("        if self.core.has_more_to_send:\n", "        if False:\n")],
    ),
    (
        "tables follow entries alone, however many sessions changed",
        "server/replica.py",
        [("            or self.state_machine.has_changed(tuning.flush_rows, tuning.flush_bytes)\n", "")],
    ),
    (
        "the log on the disk not counted",
        "storage/index.py",
        [("        self._sizes.append(last_index, size + len(entries) * ENTRY_OVERHEAD_BYTES)\n", "")],
    ),
    # Mistakes in what makes a cluster of groups.
    (
        "first configuration fixed anew",
        "manager/placement.py",
        [("if partition not in self.firsts and len(", "if len(")],
    ),
    (
        "a blank disk begins with the members wanted",
        "server/clustered.py",
        [("self._join(place.cluster, place.first)", "self._join(place.cluster, place.wanted)")],
    ),
    (
        "a server starts only once a manager has answered",
        "server/clustered.py",
        [
            (
                "        super().open()\n",
                "        begin, self._start_replica = self._start_replica, lambda first: None\n"
                "        super().open()\n"
                "        self._start_replica = begin\n",
            ),
            (
                "        if directory.is_new and place.first is not None:\n"
                "            self._join(place.cluster, place.first)\n",
                "        if self._host is None and place.first is not None:\n"
                "            directory.join(place.cluster)\n"
                "            self._start_replica(place.first)\n",
            ),
        ],
    ),
    (
        "a replica that is gone is asked again and again",
        "client/router.py",
        [
            ("        following = (replica + 1) % count\n", "        following = replica\n"),
            ("        while replica in self._tried:\n", "        while False:\n"),
            ("all_tried = len(self._tried) >= count", "all_tried = True"),
        ],
    ),
    (
        "a page begins with the last key of the one before",
        "server/service.py",
        [('else cursor + b"\\0"', "else cursor")],
    ),
    (
        "one session for all partitions",
        "client/inflight.py",
        [
            (
                "        partition = self._partitions.get(group)\n        if",
                "        group = 0\n        partition = self._partitions.get(group)\n        if",
            )
        ],
    ),
    (
        "both disks of a slot have votes",
        "raft/replacement.py",
        [
            (
                "        if any(voter.replica == new.replica for voter in voters):\n            continue",
                "        if False:\n            continue",
            ),
            ("    for gone in sorted(voters):\n        if gone", "    for gone in ():\n        if gone"),
        ],
    ),
    (
        "a partition owns its neighbour's ranges",
        "manager/placement.py",
        [("strict=True) if owner == partition\n", "strict=True) if owner in (partition, partition - 1)\n")],
    ),
    (
        "a registration acknowledged before it is committed",
        "manager/registrar.py",
        [
            (
                "            await self._propose(operation)\n\n",
                "            self._replica.propose(operation, lambda outcome: None)\n            self._machine._take(partition, operation.replica, judged)\n\n",
            )
        ],
    ),
    (
        "a group that owns nothing yet takes everything",
        "server/clustered.py",
        [
            ("first_ownership=NOTHING", "first_ownership=EVERYTHING"),
            ("import NOTHING, Ownership", "import EVERYTHING, NOTHING, Ownership"),
        ],
    ),
    (
        "managers decide once they have heard from all",
        "manager/introduction.py",
        [(" and all(answer.seen == seen for answer in self._heard.values()):", ":")],
    ),
]
