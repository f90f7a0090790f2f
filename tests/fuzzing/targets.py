"""All targets by name."""

from collections.abc import Callable

from tests.fuzzing import clients, disk, doors, state, wire

Check = Callable[[bytes], None]

TARGETS: dict[str, Check] = {
    check.__name__: check
    for check in (
        *(wire.boxes, wire.arguments, wire.answers, wire.peer_messages, wire.partition_map),
        *(state.operations, state.configurations, state.sessions, state.cluster_rows, state.settings, state.snapshots),
        *(disk.stored_records, disk.identity, disk.pages),
        *(clients.client_connections, clients.statuses, clients.lines, clients.options),
        *(doors.solo_server, doors.clustered_server, doors.manager, doors.peers),
    )
}
