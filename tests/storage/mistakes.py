"""Mistakes to be put into the storage by hand, each as text to be replaced in one of its files."""

from tests.mutation import Mistake

COMMITTED = """            self._remove_cut_off(txn, first_kept)
            self._replace_entries(txn, batch.entries)
"""
TABLES = """            self._change(txn, self._pairs_table, batch.pairs)
            self._change(txn, self._sessions_table, batch.sessions)
"""
INSTALLED = """        with self._commit() as txn:
            self._put_meta(txn, self._meta_with(head))
"""

MUTATIONS: list[Mistake] = [
    ("LMDB with sync off", "durable.py", [("                sync=sync,", "                sync=False,")]),
    ("LMDB with metasync off", "durable.py", [("metasync=sync", "metasync=False")]),
    (
        "applied index written without its pairs",
        "durable.py",
        [("            self._change(txn, self._pairs_table, batch.pairs)\n", "")],
    ),
    (
        "applied index written a commit before its pairs",
        "durable.py",
        [
            (COMMITTED, "            self._put_meta(txn, meta)\n        with self._commit() as txn:\n" + COMMITTED),
        ],
    ),
    (
        "pairs written a commit before the applied index",
        "durable.py",
        [(TABLES, TABLES + "        with self._commit() as txn:\n")],
    ),
    (
        "sessions written a commit after the pairs",
        "durable.py",
        [
            (
                "            self._change(txn, self._sessions_table, batch.sessions)\n",
                "        with self._commit() as txn:\n            self._change(txn, self._sessions_table, batch.sessions)\n",
            )
        ],
    ),
    (
        "sessions not written",
        "durable.py",
        [("            self._change(txn, self._sessions_table, batch.sessions)\n", "")],
    ),
    (
        "log written a commit before term and vote",
        "durable.py",
        [
            (
                "            if batch.hard_state is not None:\n",
                "            self._replace_entries(txn, batch.entries)\n"
                "        with self._commit() as txn:\n"
                "            if batch.hard_state is not None:\n",
            ),
        ],
    ),
    ("removed pairs stay", "durable.py", [("                txn.delete(key, db=table)", "                pass")]),
    (
        "a replaced suffix stays behind the new entries",
        "durable.py",
        [("                while cursor.delete():\n                    pass\n", "                cursor.delete()\n")],
    ),
    (
        "sessions missing from a snapshot",
        "snapshot.py",
        [("            ((SESSIONS, key, value) for key, value in source.records(SESSIONS)),\n", "")],
    ),
    (
        "snapshot's index taken from memory",
        "durable.py",
        [
            (
                "        meta = decode_meta(storage._sealed(self._txn, META_KEY))\n        self._t",
                "        meta = storage._meta\n        self._t",
            )
        ],
    ),
    (
        "snapshot's configuration taken from memory",
        "durable.py",
        [
            (
                "SnapshotHead(meta.applied_index, term, meta.applied_configuration)",
                "SnapshotHead(meta.applied_index, term, storage._meta.applied_configuration)",
            )
        ],
    ),
    (
        "snapshot's configuration that of the log's beginning",
        "durable.py",
        [("term, meta.applied_configuration)", "term, meta.configuration)")],
    ),
    (
        "snapshot not read from one state",
        "durable.py",
        [
            (
                "        return self._storage._records(self._txn, self._tables[table])",
                "        yield from self._storage._records(self._storage._env.begin(), self._tables[table])",
            )
        ],
    ),
    (
        "snapshot switched on before log and meta",
        "durable.py",
        [
            (
                INSTALLED,
                "        old, new = self._meta, self._meta_with(head)\n"
                "        half = Meta(old.snapshot_index, old.snapshot_term, old.applied_index, new.generation,\n"
                "            old.log_generation, old.configuration, old.applied_configuration)\n"
                "        with self._commit() as txn:\n"
                "            self._put_meta(txn, half)\n" + INSTALLED,
            )
        ],
    ),
    (
        "log switched before the snapshot's pairs",
        "durable.py",
        [
            (
                INSTALLED,
                "        old, new = self._meta, self._meta_with(head)\n"
                "        half = Meta(new.snapshot_index, new.snapshot_term, new.applied_index, old.generation,\n"
                "            new.log_generation, new.configuration, new.applied_configuration)\n"
                "        with self._commit() as txn:\n"
                "            self._put_meta(txn, half)\n" + INSTALLED,
            )
        ],
    ),
    (
        "installing empties what memory still speaks of",
        "durable.py",
        [(INSTALLED, INSTALLED + "            txn.drop(self._pairs_table, delete=False)\n")],
    ),
    (
        "installing empties the log although it holds the snapshot's last entry",
        "state.py",
        [("return self.term_of(head.last_index) == head.last_term", "return False")],
    ),
    (
        "installing keeps a log that holds another entry there",
        "state.py",
        [
            (
                "return self.term_of(head.last_index) == head.last_term",
                "return self.term_of(head.last_index) is not None",
            )
        ],
    ),
    (
        "half a snapshot survives a start",
        "durable.py",
        [
            (
                "            super().__init__(hard_state, self._meta, index)\n            self._drop_other_generation()\n",
                "            super().__init__(hard_state, self._meta, index)\n",
            )
        ],
    ),
    (
        "half a snapshot survives the next one",
        "durable.py",
        [("            self._drop_other_generation()\n            self._staged_head", "            self._staged_head")],
    ),
    (
        "pieces staged in any order",
        "durable.py",
        [("        if offset == self._staged_bytes:\n", "        if True:\n")],
    ),
    (
        "log cut beyond the durable applied index",
        "state.py",
        [
            ("        target = min(wanted, self.applied_index)", "        target = min(wanted, self.last_index)"),
            ("<= batch.compact_to <= self.applied_index", "<= batch.compact_to <= last_index"),
        ],
    ),
    (
        "entries leave with the commit that cuts them off",
        "durable.py",
        [("first_kept = min(self.snapshot_index + 1,", "first_kept = min(meta.snapshot_index + 1,")],
    ),
    (
        "a cut removes everything with one commit",
        "durable.py",
        [("removed_max = max(REMOVED_ENTRIES_MAX, 2 * len(batch.entries))", "removed_max = 1 << 40")],
    ),
    (
        "terms go back in the log",
        "state.py",
        [('                assert entry.term >= term, "terms never go back in a log"\n', "")],
    ),
    (
        "the overlay being committed skipped by Get",
        "overlay.py",
        [
            (
                "        for overlay in (self._filling, self._frozen):\n            if",
                "        for overlay in (self._filling,):\n            if",
            )
        ],
    ),
    (
        "the overlay being committed skipped by Scan",
        "overlay.py",
        [("return sorted({*newer, *older}) if newer and older else newer or older", "return newer")],
    ),
    (
        "the overlay being committed read before the newer one",
        "overlay.py",
        [
            (
                "        for overlay in (self._filling, self._frozen):\n            if",
                "        for overlay in (self._frozen, self._filling):\n            if",
            )
        ],
    ),
    (
        "a reading goes on after a commit was taken over",
        "durable.py",
        [("        self.end_turn()\n        super().written(batch)", "        super().written(batch)")],
    ),
    (
        "a commit after one that failed",
        "durable.py",
        [("            self._failed = True\n", "")],
    ),
    (
        "a failed commit taken for a good one",
        "durable.py",
        [
            (
                '            raise StoreFailed(f"{self._path}: a commit failed: {error} ({_room(self._path)})") from error\n',
                "",
            )
        ],
    ),
    (
        "checksums not looked at",
        "records.py",
        [("_CHECKSUM.unpack_from(record)[0] != zlib.crc32(data, zlib.crc32(key))", "False")],
    ),
    (
        "checksums without the key",
        "records.py",
        [
            ("zlib.crc32(data, zlib.crc32(key))) + data", "zlib.crc32(data)) + data"),
            ("!= zlib.crc32(data, zlib.crc32(key))", "!= zlib.crc32(data)"),
        ],
    ),
    (
        "LMDB's errors in readings let through",
        "durable.py",
        [
            (
                '        except lmdb.Error as error:\n            raise Damaged(f"{self._path} cannot be read: {error}") from None\n\n    def end',
                "        except ZeroDivisionError:\n            pass\n\n    def end",
            )
        ],
    ),
    (
        "a lost part of a table not noticed",
        "durable.py",
        [('        if count != txn.stat(table)["entries"]:', "        if False:")],
    ),
    (
        "a lost part of the log not noticed",
        "durable.py",
        [
            (
                '        if index.last_index - first_stored + 1 != txn.stat(self._log_table)["entries"]:',
                "        if False:",
            )
        ],
    ),
    (
        "a gap in the log not noticed",
        "durable.py",
        [
            (
                '                if entry.index != index.last_index + 1:\n                    raise Damaged(f"{self._path}: the log jumps from entry {index.last_index} to {entry.index}")\n',
                "",
            )
        ],
    ),
    ("the file's length not looked at", "durable.py", [("            self._check_length()\n", "")]),
    (
        "the file not kept longer than what LMDB uses",
        "durable.py",
        [("            os.truncate(self._path, used + FILE_AHEAD_BYTES)", "            pass")],
    ),
    (
        "an empty data file taken for a new one",
        "durable.py",
        [("if not directory.is_new and not (self._path", "if False and not (self._path")],
    ),
    (
        "no room kept for the table of readers",
        "durable.py",
        [("            os.posix_fallocate(file, 0, size)", "            pass")],
    ),
    ("a full map written to", "durable.py", [("        if used > FULL_FRACTION * MAP_BYTES:", "        if False:")]),
    (
        "the directory not locked",
        "directory.py",
        [("            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "")],
    ),
    (
        "another node's directory taken",
        "directory.py",
        [("        if (self.identity.cluster, self.identity.node) != (cluster, node):", "        if False:")],
    ),
    (
        "identity not held against the data",
        "durable.py",
        [("                if self._sealed(txn, IDENTITY_KEY) != self._identity():", "                if False:")],
    ),
]
