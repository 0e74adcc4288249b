"""The catalogue of operations: name, kind, arguments, result. The README's table is made from it.

An op is what a call names; its arguments travel as an array in the order given here. ``?`` marks an
argument that may be nil or missing at the end. Kinds: ``read`` changes nothing that was acknowledged,
``write`` is numbered and answered exactly once, ``wait`` is parked until there is something to say (at
most 25 s; one call per payload). ``any``: of the kind of the op inside. Addressing: by the slot of the key,
session or run named by the first argument, except where ``every`` says that the SDK asks each partition.
"""

from __future__ import annotations

from typing import NamedTuple


class Op(NamedTuple):
    """One row of the catalogue."""

    name: str
    kind: str
    args: str
    result: str
    every: bool = False


CATALOGUE: tuple[Op, ...] = (
    # routes: key is the string form of a SessionKey
    Op("route.set", "write", "key, route map, ttl_ms?", "nil"),
    Op("route.get", "read", "key", "[route, age_ms, ttl_left_ms, provenance]"),
    Op(
        "route.resolve",
        "read",
        "key, fallbacks?",
        "[external_room_id, route, source, fallback, stale, reason]",
    ),
    Op("route.delete", "write", "key", "bool: whether it was there"),
    Op("route.set_many", "write", "[[key, route map, ttl_ms?], ...]", "[[status, value], ...]"),
    Op("route.get_many", "read", "[key, ...]", "[now, [record or nil, ...], [[place, error], ...]]: below"),
    Op("route.resolve_many", "read", "[key, ...], fallbacks?", "[[status, value], ...]"),
    Op(
        "route.list",
        "read",
        "bridge_id?, room_id?, limit, after_key?",
        "[[[key, route, age_ms, ttl_left_ms, provenance], ...], next after_key or nil]",
        True,
    ),
    Op("route.prune", "write", "", "int: entries removed", True),
    Op("route.config", "read", "", "map of the route settings"),
    # sessions: fields is a map with agent_id?, context?, metadata?, tags?, slots?, parent_session_id?,
    # fork_seq?, token?; if_version refuses with version_conflict when the record changed meanwhile
    Op("session.create", "write", "session_id, agent, fields?", "session map"),
    Op("session.start", "write", "session_id, agent, fields?", "session map, active"),
    Op("session.start_or_get", "write", "session_id, agent, fields?", "session map"),
    Op("session.activate", "write", "session_id, if_version?", "session map"),
    Op("session.pause", "write", "session_id, if_version?", "session map"),
    Op("session.resume", "write", "session_id, if_version?", "session map"),
    Op("session.complete", "write", "session_id, if_version?", "session map"),
    Op("session.cancel", "write", "session_id, if_version?", "session map"),
    Op("session.fail", "write", "session_id, error map or text, if_version?", "session map"),
    Op("session.stop", "write", "session_id, handle?, if_version?", "nil"),
    Op("session.abort", "write", "session_id, if_version?", "int: runs that were cancelled"),
    Op(
        "session.prompt", "write", "session_id, run_id, text, queue, on_busy?",
        "[run_id, queued: bool, the queue it waits in or nil]",
    ),
    Op("session.queued", "read", "session_id", "[[run_id, queue, text, queued_at], ...] of waiting prompts"),
    Op("session.recall", "write", "session_id", "the same, and they are cancelled"),
    Op("session.clear", "write", "session_id", "int: waiting prompts that were cancelled"),
    Op("session.interrupt", "write", "session_id, if_version?", "[run_id, ...] that are told to stop"),
    Op("session.delete", "write", "session_id, hard?", "bool: whether it was there"),
    Op(
        "session.import",
        "write",
        "session_id, {session: map} or {runs: [...]} or {events: [...]} or {end: map}",
        "nil; behind the end the session map",
    ),
    Op("session.undelete", "write", "session_id", "session map"),
    Op("session.compact", "write", "session_id, summary, up_to seq?", "int: the seq of the event"),
    Op("session.pin", "write", "session_id, seq, pinned?: bool", "int: the seq of the event"),
    # rights: a protected session, and one that has a driver, ask for credentials
    Op(
        "session.as", "any", "{token?, driver?: key, viewer?: bool}, op, args",
        "the answer of op; travels as op does",
    ),
    Op("session.claim", "write", "session_id, key, {by?, ttl_s?, takeover?}?", "claim map"),
    Op("session.renew", "write", "session_id, key", "claim map"),
    Op("session.release", "write", "session_id, key", "bool: whether the key was the driver's"),
    Op("session.set_token", "write", "session_id, token?", "nil"),
    Op(
        "session.snapshot", "read", "session_id",
        "map: session, runs that execute, approvals, queued, omitted; all of one moment",
    ),
    Op("session.get", "read", "session_id", "session map"),
    Op(
        "session.list",
        "read",
        "status?, agent_id?, tags?, limit, after?",
        "[[session map, ...], next after or nil]",
        True,
    ),
    Op(
        "session.search",
        "read",
        "filters map, order, limit, after?",
        "[[[sort value, row, session map], ...], next after or nil], one step",
        True,
    ),
    Op("session.stats", "read", "session_id", "map: event_count, first_seq, last_seq, pruned_to ..."),
    Op("session.handle", "read", "session_id", "[session_id, runner, pid, incarnation]"),
    Op("session.id_of", "read", "session_id, runner, pid, incarnation", "session_id"),
    Op("session.runs", "read", "session_id, limit, after?", "[[run map, ...], next after or nil]"),
    Op(
        "session.events",
        "read",
        "session_id, filters map?",
        "[[event map, ...], complete: bool]; filters: run_id, type, since, until, after, before, limit",
    ),
    Op("session.wait", "wait", "session_id, filters map", "the same, as soon as it is not empty"),
    Op("session.drain", "wait", "session_id", "[running, waiting], as soon as both are 0"),
    # runs: the run id is minted by the client and carries the slot of its session
    Op("run.create", "write", "run_id, session_id, input, options?", "run map, pending"),
    Op("run.execute", "write", "run_id, options?, if_version?", "run map, queued or running"),
    Op("run.submit", "write", "run_id, session_id, input, options?", "run map, queued or running"),
    Op("run.once", "write", "run_id, session_id, agent, input, fields?, options?",
       "run_id; `run.wait` brings what became of it"),
    Op(
        "run.summarise",
        "write",
        "run_id, session_id, up_to seq?, instructions?, options?",
        "run map; its output becomes the summary when it completes",
    ),
    Op("run.cancel", "write", "run_id, if_version?", "run_id, when the run is settled"),
    Op("run.interrupt", "write", "run_id, if_version?", "run_id, when the run is settled"),
    Op("run.pause", "write", "run_id, if_version?", "run map"),
    Op("run.resume", "write", "run_id, if_version?", "run map"),
    Op("run.cancel_for_approval", "write", "run_id, approval map, if_version?", "run_id, when it is settled"),
    Op("run.decide", "write", "run_id, tool_call_id, approved: bool, scope?, reason?, by?", "approval map"),
    Op(
        "approval.list", "read", "session_id?, limit, after?",
        "[[approval map, ...], next after or nil]: what is open, oldest first", True,
    ),
    Op(
        "budget.used", "read", "session_id?, tags, but run_id?",
        "{session or tag:NAME: {metric: number}} of this partition: what its runs used, and hold", True,
    ),
    Op("run.get", "read", "run_id", "run map"),
    Op("run.patch", "read", "run_id", "bin: what it changed in its workspace; nil where no patch was kept"),
    Op("run.wait", "wait", "run_id, events?",
       "run map, as soon as it is terminal; nil when the time is over; events: 'run' or 'session' adds "
       "those, unless they are many"),
    Op(
        "run.search",
        "read",
        "filters map, order, limit, after?, reached?, worst?",
        "[[[sort value, row, run map], ...], next after, or row reached, or nil], one step",
        True,
    ),
    Op(
        "event.search",
        "read",
        "filters map, order, limit, after?, reached?, worst?",
        "[[[seq, pos or time, pos, event map], ...], seq or pos reached or nil], one step",
        True,
    ),
    Op("event.count", "read", "filters map, reached?", "[count, seq or pos reached or nil], one step", True),
    Op(
        "usage.summary",
        "read",
        "filters map, row reached?",
        "[[[provider, model, status, runs, runs with a cost, cost, {name: sum}], ...], row reached or nil]",
        True,
    ),
    # the feed's holes are fetched here; counters are contiguous per partition
    Op("feed.echo", "read", "token", "head map; publishes node.echo.<token>", True),
    Op("feed.head", "read", "", "head map: lseq, pos, the lowest lseq that is kept, map_version", True),
    Op("feed.lifecycle", "read", "after lseq, limit", "[[topic, payload map], ...]", True),
    Op("feed.session", "read", "after pos, limit",
       '[[topic, payload map], ...]; a last one with the topic "" says only up to which pos to go on', True),
    # agents and the node
    Op("agent.list", "read", "", "[{name, provider, capabilities, problem}, ...]"),
    Op("agent.reload", "write", "", "the same, after every runner loaded them anew"),
    Op("partition.drain", "wait", "", "[running, waiting], as soon as both are 0", True),
    Op("partition.info", "read", "", "map of counters", True),
    Op(
        "audit.search",
        "read",
        "filters map, order, limit, nil, reached?",
        "[[[time, number, entry map], ...], number reached or nil], one step",
        True,
    ),
    Op(
        "maintenance.check", "read", "place?",
        "[[[partition, kind, subject, text], ...], next place or nil], one step", True,
    ),
    Op("maintenance.run", "write", "", "report map, when the whole sweep is done", True),
    Op("partition.backup", "write", "folder on the node's machine", "the file's path", True),
)

OPS: dict[str, Op] = {op.name: op for op in CATALOGUE}

__all__ = ["CATALOGUE", "OPS", "Op"]
