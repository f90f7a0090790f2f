"""`/healthz` and `/readyz`: whether a process is well, and whether it serves, with the reasons where not."""

from typing import Any

from madkv.raft.bounds import ELECTION_TICKS, STALLED_TICKS
from madkv.server.parts import TICK_SECONDS
from madkv.server.process import Inside

READY_LAG_ENTRIES_MAX = 10_000
"""Entries that a replica which serves may be behind: more than one under load ever is."""


def unhealthy(inside: Inside | None) -> list[str]:
    """What is wrong with the process itself. That it answers at all says that its reactor does; where a commit has
    failed, there is no process any more."""
    if inside is None or inside.replica is None:
        return []
    ticks = inside.replica.core.stalled_ticks
    return [f"the disk has done nothing for {ticks * TICK_SECONDS:.1f} s"] if ticks >= STALLED_TICKS else []


def not_ready(inside: Inside | None) -> list[str]:
    """Why clients had better not be sent here just now."""
    if inside is None or inside.replica is None:
        return ["it is starting: the other nodes that it needs are not all there yet"]
    core, facts = inside.replica.core, inside.service.status()
    reasons = unhealthy(inside)
    if core.leader is None:
        reasons.append("it knows no leader of its group")
    elif core.led_term is None and core.elapsed >= ELECTION_TICKS:
        reasons.append(f"it has not heard of its leader for {core.elapsed * TICK_SECONDS:.1f} s")
    if not core.is_voter:
        reasons.append("its disk has no vote yet: it is catching up")
    elif (lag := core.lag_entries) > READY_LAG_ENTRIES_MAX:
        reasons.append(f"it is {lag:,} entries behind: it is catching up")
    if "ranges" in facts and not facts["ranges"]:
        reasons.append("its group owns no keys")
    if facts.get("waiting"):
        reasons.append(f"the cluster waits: {facts['waiting']}")
    return reasons


def told(inside: Inside | None, node: str, reasons: list[str]) -> dict[str, Any]:
    """The body of either answer."""
    facts = {} if inside is None else inside.service.status()
    names = ("role", "term", "leader", "commit", "applied")
    return {"node": node, "ok": not reasons, "reasons": reasons, **{name: facts.get(name) for name in names}}
