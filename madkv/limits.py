"""Every bound in one place, each with its unit, and asserts on how they relate."""

KIB = 1024
MIB = 1024 * KIB

# --- Keys and values -------------------------------------------------------------------------------------------------
KEY_BYTES_MIN = 1
KEY_BYTES_MAX = 511
"""LMDB's own limit for a key, so that a key that one shape of MadKV takes, every shape takes."""
VALUE_BYTES_MAX = 1 * MIB
CLIENT_ID_BYTES = 16

# --- Boxes -----------------------------------------------------------------------------------------------------------
AMP_NAME_BYTES_MAX = 255
AMP_VALUE_BYTES_MAX = 65_535
"""AMP's limit for one value; longer byte strings are split over several fields (`madkv.wire.boxes`)."""
BOX_BYTES_MAX = 2 * MIB
"""One whole box, names and lengths included. A longer one costs the sender the connection."""
BOX_FIELDS_MAX = 128
"""Fields in one box, so that a box of tiny fields cannot cost much more to parse than one of large ones."""
BOX_SECONDS_MAX = 30.0
"""How long a box may stay half received before its connection is closed."""

# --- Connections -----------------------------------------------------------------------------------------------------
CONNECTIONS_MAX = 12_000
"""Connections to a node's port for clients; further ones are closed at once. Fewer where the system does not allow a
process so many files."""
TLS_CONNECTIONS_MAX = 6_000
"""The same with TLS, where each takes ten times the memory while it is idle."""
TLS_CONNECTION_BYTES = 44 * KIB
"""What that is, as measured: OpenSSL's buffers, and the certificate that was shown."""
NODE_MEMORY_BYTES = 512 * MIB
"""What a node takes at most of memory of its own, whatever its connections do: beside the pages of its files, and what
sessions and scans keep by their own bounds."""
FILES_KEPT = 576
"""Of the files that a process may have, what is for everything but those connections: its store, log, libraries, ports,
the connections between replicas, those on which no certificate was shown yet, and those over HTTP."""
CONNECTIONS_MIN = 64
"""With files for fewer connections than this a node does not start."""
HELD_BYTES_MAX = 128 * MIB
"""What all connections to a port may have here that nobody has dealt with: half boxes, boxes that wait, answers that
are not read. Beyond it connections are closed, those first that got on with nothing for longest."""
UNSENT_BYTES_MAX = 16 * MIB
"""Answers that wait for one client to read them; with more its connection is closed."""
HOLDERS_AT_ANY_PACE = 8
LONG_BOX_BYTES_PER_SECOND = 32 * MIB
LONG_BOX_SECONDS_AHEAD = 0.01
"""While more connections than these hold something, what a port reads of boxes that take more than one read, of all of
them together, and how far ahead of that pace. So they take turns, and those whose boxes are short do not wait long."""
LONG_BOX_BYTES = 32 * KIB
"""A box of which so much is there, and not all, is a long one."""
HANDSHAKE_SECONDS_MAX = 30.0
"""How long a connection may stay without saying anything at first."""
IDLE_SECONDS_MAX = 3600.0
"""How long it may say nothing later."""
UNREAD_SECONDS_MAX = 60.0
"""How long a client may read nothing of what waits for it."""
SWEEP_SECONDS = 10.0
"""From one look at all connections to the next: the times above are kept to this."""
SAME_LINE_SECONDS = 1.0
"""A line about a connection that is refused, or closed for want of room, is logged at most so often."""

# --- Peers -----------------------------------------------------------------------------------------------------------
PEER_BOX_BYTES_MAX = 4 * MIB
"""One whole box between replicas: a mebibyte of entries or of a snapshot, and the one that reached it."""
PEER_BUFFER_BYTES_MAX = 16 * MIB
"""What may wait to be sent to one peer; beyond it messages are dropped."""
PEER_CONNECT_SECONDS_MAX = 1.0
PEER_HELLO_SECONDS_MAX = 2.0
"""How long one attempt to connect to a peer may take, and then its answer to PeerHello."""
PEER_UNACKNOWLEDGED_SECONDS_MAX = 2.0
"""What was sent and has not reached the peer's machine in this time ends the connection, and another is tried."""
PEER_REFUSALS_KEPT = 16
"""Lines about peers that were refused that are remembered, so that each is logged once."""
STRANGER_SECONDS_MAX = 10.0
"""How long a connection to a replica may stay without saying who it is."""
STRANGERS_MAX = 64
"""Connections to a replica that have not said yet who they are; one more costs the oldest its place."""
STRANGER_BOX_BYTES_MAX = 256 * KIB
"""One whole box on such a connection: an Introduce with all servers and splits that there may be."""
MEMBER_CONNECTIONS_MAX = 4
"""Connections in the name of one replica, each on another disk; one more costs the oldest its place."""

# --- TLS --------------------------------------------------------------------------------------------------------------
TLS_HANDSHAKE_SECONDS_MAX = 5.0
"""How long a connection may take until the other side's certificate is accepted."""
TLS_STRANGERS_MAX = 128
"""Connections of one port whose certificates are not accepted yet; beyond it the oldest is closed."""
TLS_REFUSALS_KEPT = 64
"""Refusals by a port, each once from a host, that are remembered so that each is logged once."""

# --- Scans -----------------------------------------------------------------------------------------------------------
SCAN_PAGE_BYTES = 256 * KIB
"""A page ends with the pair that reaches this many bytes, so it is at most this plus one pair."""
SCAN_PAGE_PAIRS = 4096
"""A page also ends after this many pairs, so that tiny pairs do not hold up the server."""
SCAN_PAGE_KEYS_WALKED = 16_384
"""Keys that a page may look at, also those that were not there when the cut was taken; it may end empty by that."""
SCAN_CURSORS_PER_CONNECTION_MAX = 64
SCAN_CURSORS_MAX = 1024
SCAN_CURSOR_SECONDS_MAX = 60.0
"""How long a cut is kept for a client that does not ask for its next page."""
SCAN_UNDO_BYTES_MAX = 64 * MIB
"""Old values kept for all open cuts together; beyond it the oldest cut is given up and its scan starts again."""

# --- Backups ---------------------------------------------------------------------------------------------------------
BACKUPS_MAX = 2
"""Of one server at a time. Each holds a state of its store open, and all pages that were in use then."""
BACKUP_SECONDS_MAX = 1800.0
BACKUP_IDLE_SECONDS_MAX = 30.0
"""How long one may take in all, and how long its next page may go unasked for."""

# --- Work in flight --------------------------------------------------------------------------------------------------
CALLS_MAX = 16_384
CALL_BYTES_MAX = 48 * MIB
"""Calls accepted and not yet answered in all, in number and request bytes; beyond it a call is answered Busy."""
CALLS_PER_CONNECTION_MAX = 1024
CALL_BYTES_PER_CONNECTION_MAX = 8 * MIB
"""The same on one connection, which is not read from while it is at the bound. Where there are many, it is less: each
may have a share of what is left, so that there is always something left for one that has nothing."""
CALLS_SHARE = CALLS_MAX // CALLS_PER_CONNECTION_MAX - 1
CALL_BYTES_SHARE = CALL_BYTES_MAX // CALL_BYTES_PER_CONNECTION_MAX - 1
"""A connection may have this part of what is left: alone, that is as much as its bound says."""

LARGE_CALL_BYTES = 64 * KIB
LARGE_RESTS_MAX = 4
LARGE_REST_SECONDS_MAX = 0.5
"""A call with so many bytes is large. While others have calls in flight, large ones go one by one, and after each there
is a rest: for each of those others as long as it took, but no more than so many times, and so many seconds."""

# --- HTTP, where a daemon shows itself --------------------------------------------------------------------------------
HTTP_CONNECTIONS_MAX = 64
HTTP_HEADERS_MAX = 64
HTTP_REQUEST_SECONDS_MAX = 20.0
"""From the beginning of a connection, or the end of the answer before, to the end of a request; and how long an answer
may stay unread. A request's line and headers have at most 16 KiB, as Twisted has it, and no body follows them."""
METRICS_SECONDS = 0.25
"""How old the metrics may be that somebody gets: so long all who ask get the same. To make them takes milliseconds."""

# --- A cluster -------------------------------------------------------------------------------------------------------
REPLICAS_MAX = 9
"""Replicas of one group, managers or servers."""
PARTITIONS_MAX = 50
HOST_CHARACTERS_MAX = 253
"""A host in an address: what the DNS takes."""

TRANSFER_LAG_ENTRIES_MAX = 1000
"""How far behind a replica may be for a leadership to be handed to it: calls are refused until it has what it lacks."""

# --- The replica ------------------------------------------------------------------------------------------------------
UNCOMMITTED_BYTES_MAX = 64 * MIB
"""Proposals of a leader that are not committed yet; beyond it a call is answered Busy."""
FLUSH_BYTES = 4 * MIB
FLUSH_ENTRIES = 4096
FLUSH_ROWS = 20_000
"""What was applied goes to the tables with a commit once it is this much: bytes of pairs or of recorded answers,
entries, or rows of sessions that changed. A restart applies at most that again."""
LOG_BYTES_KEPT = 64 * MIB
LOG_ENTRIES_KEPT = 100_000
"""The log is cut so that about this much stays for followers that are behind."""
LOG_BYTES_HELD_MAX = 1024 * MIB
"""What stays at most for followers that answer and need it: those that are streamed a snapshot or catch up after it. A
stream that would need more is given up: so long it holds the store's pages, too, and most of all its receiver is slower
than calls come."""

# --- Sessions --------------------------------------------------------------------------------------------------------
SESSIONS_MAX = 100_000
"""All sessions. When there are so many, see SESSION_UNUSED_SECONDS."""
SESSION_CALLS_MAX = 1024
"""Calls of one session between its floor and its highest sequence number: what one client may have in flight."""
SESSION_RECORD_BYTES_MAX = 256 * MIB
"""Recorded answers of all sessions together. Beyond it those idle for longest make room, see SESSION_UNUSED_SECONDS; if
there are none, a call that would record more is answered Busy; beyond twice as much, also the oldest call that a
session waits for, which its later calls might otherwise keep out for ever."""
SESSION_OWN_RECORD_BYTES_MAX = 8 * MIB
"""Recorded answers of one session. Beyond it only its oldest call is executed, others are answered Busy."""
SESSIONS_PER_CONNECTION_MAX = 64
"""Clients that one connection may open sessions for: each has one at a time."""
SESSION_ROWS_EXPIRED_MAX = 1000
"""Sessions and records that one entry lets expire, and those whose last write was at the same millisecond as the last
of them: all sessions may have expired when a machine wakes up, and none may wait for that."""
SESSION_SECONDS = 3600.0
"""The life of a session after its last write, in the time that entries carry."""
SESSION_UNUSED_SECONDS = 60.0
"""The life of a session that never made a write; and, while there is no room for more sessions or recorded answers, of
those that have been idle for longest. A client that is cut off for so long at such a time may not learn what became of
the call that it was making."""

# --- Client ----------------------------------------------------------------------------------------------------------
CONNECT_SECONDS_MAX = 2.0
TRY_SECONDS_MAX = 5.0
"""How long an attempt of a call waits for a byte of its answer; then the connection is given up and the same call is
tried again. A large call gets more, by the next bound."""
FIRST_TRY_SECONDS = 1.5
"""The same in a cluster, where another replica may answer, for a first attempt; after a vain one it doubles up to
TRY_SECONDS_MAX, so that a server that is merely slow is not asked for ever."""
SLOWEST_BYTES_PER_SECOND = 64 * KIB
"""A link that carries less than this may see large calls start over and over."""
RETRY_SECONDS_MIN = 0.05
RETRY_SECONDS_MAX = 1.0
ELECTION_RETRY_SECONDS_MAX = 0.2
"""The longest wait while a replica answers that nobody leads, or not it: an election takes about a second, and a client
that looks seldom then adds as much again."""
CLOSE_SECONDS_MAX = 1.0
"""How long closing a session may hold up a client that stops."""
LINE_BYTES_MAX = 2 * MIB
"""One line of the line interface."""

PAIR_OVERHEAD_BYTES = 6
PAGE_BYTES_MAX = SCAN_PAGE_BYTES + SCAN_PAGE_PAIRS * PAIR_OVERHEAD_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX
"""A page as it is encoded: bytes up to the bound, and the pair that reached it."""
BOX_OVERHEAD_BYTES = 4 * KIB
CALL_OVERHEAD_BYTES = KIB
"""What a call takes of the log beside its key and value, generously."""
assert PAGE_BYTES_MAX + BOX_OVERHEAD_BYTES <= BOX_BYTES_MAX
assert PAGE_BYTES_MAX // AMP_VALUE_BYTES_MAX + 8 <= BOX_FIELDS_MAX
assert 2 * KEY_BYTES_MAX + VALUE_BYTES_MAX + BOX_OVERHEAD_BYTES <= LINE_BYTES_MAX
assert CALLS_PER_CONNECTION_MAX <= SESSION_CALLS_MAX <= CALLS_MAX
assert CALLS_PER_CONNECTION_MAX * (CALLS_SHARE + 1) == CALLS_MAX
assert CALL_BYTES_PER_CONNECTION_MAX * (CALL_BYTES_SHARE + 1) == CALL_BYTES_MAX
assert TLS_CONNECTIONS_MAX * TLS_CONNECTION_BYTES + HELD_BYTES_MAX < NODE_MEMORY_BYTES * 4 // 5
assert CONNECTIONS_MIN < TLS_CONNECTIONS_MAX < CONNECTIONS_MAX < CALLS_MAX, "each connection may have a call in flight"
assert (
    STRANGERS_MAX
    + MEMBER_CONNECTIONS_MAX * (REPLICAS_MAX - 1)
    + REPLICAS_MAX
    + 2 * TLS_STRANGERS_MAX  # of either port
    + 2 * HTTP_CONNECTIONS_MAX  # and as many to others, whom it asks how they are
) <= FILES_KEPT - 64, "whoever fills all that is there for strangers leaves files for what a node has itself"
assert VALUE_BYTES_MAX + BOX_OVERHEAD_BYTES <= CALL_BYTES_PER_CONNECTION_MAX
assert LONG_BOX_BYTES < LARGE_CALL_BYTES < VALUE_BYTES_MAX
assert LARGE_REST_SECONDS_MAX < FIRST_TRY_SECONDS
assert CALL_BYTES_MAX + CALLS_MAX * CALL_OVERHEAD_BYTES <= UNCOMMITTED_BYTES_MAX, "calls alone do not fill the log"
assert SESSION_OWN_RECORD_BYTES_MAX + VALUE_BYTES_MAX + PAGE_BYTES_MAX + BOX_OVERHEAD_BYTES <= UNSENT_BYTES_MAX, (
    "one session's answers fit, and one read's"
)
assert UNSENT_BYTES_MAX + BOX_BYTES_MAX <= HELD_BYTES_MAX // 4
assert VALUE_BYTES_MAX / SLOWEST_BYTES_PER_SECOND < BOX_SECONDS_MAX
assert TRY_SECONDS_MAX < SWEEP_SECONDS < HANDSHAKE_SECONDS_MAX < UNREAD_SECONDS_MAX < IDLE_SECONDS_MAX
assert SESSION_SECONDS <= IDLE_SECONDS_MAX, "whoever is so long silent has no session any more"
assert 2 * PARTITIONS_MAX * KEY_BYTES_MAX + PARTITIONS_MAX * REPLICAS_MAX * (HOST_CHARACTERS_MAX + 16) <= (
    STRANGER_BOX_BYTES_MAX - BOX_OVERHEAD_BYTES
)
assert LOG_BYTES_KEPT < LOG_BYTES_HELD_MAX
assert PEER_BOX_BYTES_MAX // AMP_VALUE_BYTES_MAX + 8 <= BOX_FIELDS_MAX
assert PEER_CONNECT_SECONDS_MAX <= RETRY_SECONDS_MAX, "a peer that can be reached again is found within about this"
assert RETRY_SECONDS_MAX < FIRST_TRY_SECONDS <= TRY_SECONDS_MAX < SESSION_UNUSED_SECONDS < SESSION_SECONDS
assert SCAN_PAGE_PAIRS <= SCAN_PAGE_KEYS_WALKED
assert BACKUP_IDLE_SECONDS_MAX < BACKUP_SECONDS_MAX
