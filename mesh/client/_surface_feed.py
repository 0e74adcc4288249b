"""Plans of a listener: become live in every partition, fetch what is missing (decided in ``_cursor``)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from mesh.client._answers import plain_of
from mesh.client._cursor import CURSOR, FETCH_ROWS, FeedCursor, Hole, is_message
from mesh.client._protocol import READ, Facts
from mesh.client._surface import EVERY_S, Ask, NeedFacts, Pause, Plan, decode_cursor, encode_place, value_of
from mesh.client._surface_sessions import session_call
from mesh.core import wire
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError

#: How often partitions are asked for our echo: at first, and at most.
ECHO_S = 0.005
ECHO_MAX_S = 0.03
#: Messages taken from the socket before the caller gets his turn; one may hold some dozen events.
DRAIN_MAX = 100
#: The pause before a hole that could not be fetched is looked for again.
HOLE_RETRY_S = 0.1

Drain = Callable[[], Iterable[tuple[str, dict[str, Any]]]]


def begin(topics: Sequence[str], after: str | None, timeout_s: float | None) -> Plan:
    """The machine of a new listener, and its echo's token."""
    position = None if after is None else decode_cursor(after, CURSOR)
    FeedCursor(topics, bytes(4096), 1, encode_place)  # refuses a wrong topic before anything is asked
    facts: Facts = yield NeedFacts(timeout_s)
    machine = FeedCursor(
        topics, facts.slot_map, facts.partitions, encode_place, position, facts.map_version
    )
    return machine, secrets.token_hex(8), facts.values


def go_live(machine: FeedCursor, token: str, drain: Drain, limit_s: float) -> Plan:
    """Wait until each partition's echo came through the feed, then find where the sessions stand.

    Raises:
        DeadlineExceeded: the feed of some partition stayed silent.
        InvalidArgument: ``invalid_cursor``.
    """
    deadline_s, pause_s = monotonic() + limit_s, ECHO_S
    while True:
        _hear(machine, token, drain)
        silent = machine.missing()
        if not silent:
            break
        left_s = deadline_s - monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(
                f"the feed of partitions {silent} did not become live within {limit_s:.3g} s",
                details={"partitions": silent},
            )
        ask_s = min(EVERY_S, left_s)
        heads = yield [Ask(READ, ~p, ("feed.echo", (token,)), ask_s) for p in silent]
        for partition, head in zip(silent, heads, strict=True):
            _check_head(machine, partition, head)
        _hear(machine, token, drain)
        if machine.missing():
            yield Pause(pause_s)
            pause_s = min(2 * pause_s, ECHO_MAX_S)
    yield from _find_sessions(machine)


def _hear(machine: FeedCursor, token: str, drain: Drain) -> None:
    for topic, data in drain():
        machine.on_opening(topic, data, token)


def _check_head(machine: FeedCursor, partition: int, head: Any) -> None:
    if not isinstance(head, MeshError):
        machine.check_history(head)
    elif head.details.get("down"):
        machine.absent(partition)
    elif head.code not in ("timeout", "overloaded", "partition_unavailable", "node_unreachable"):
        raise head


def _find_sessions(machine: FeedCursor) -> Plan:
    ids = list(machine.sessions)
    if not ids:
        return
    asks = []
    for session_id in ids:
        slot, call = session_call("session.get", session_id)
        asks.append(Ask(READ, slot, call))
    answers = yield asks
    for session_id, answer in zip(ids, answers, strict=True):
        if isinstance(answer, MeshError) and answer.code == "session_not_found":
            machine.session_at(session_id, 0)
        else:
            machine.session_at(session_id, value_of(answer)["seq"])


def fetch(machine: FeedCursor, hole: Hole) -> Plan:
    """One page of a hole: the notifications in it, in order."""
    if hole.unit == "events":
        filters = {"after": hole.after, "limit": FETCH_ROWS}
        ask = Ask(READ, ~hole.partition, ("session.events", (hole.session_id, filters)))
    else:
        op = "feed.lifecycle" if hole.unit == "lifecycle" else "feed.session"
        ask = Ask(READ, ~hole.partition, (op, (hole.after, FETCH_ROWS)))
    [answer] = yield [ask]
    facts: Facts = yield NeedFacts(None)
    machine.check_map(facts.map_version)  # it may be the answer of another one's log
    if isinstance(answer, InvalidArgument):
        raise answer
    if isinstance(answer, MeshError):
        if answer.code == "session_not_found":
            return machine.fetched(hole, ())
        machine.unfetched(hole)
        yield Pause(HOLE_RETRY_S)
        return []
    if hole.unit == "events":
        rows, complete, *_ = plain_of(answer)
        return machine.fetched(hole, rows, complete)
    return machine.fetched(hole, answer)


def decode_message(frames: Sequence[bytes]) -> tuple[str, dict[str, Any]] | None:
    """(topic, payload) of a feed message; None for what is not one."""
    try:
        topic, payload = frames
        data = wire.unpack_own(payload)
        name = topic.decode()
        return (name, data) if type(data) is dict and is_message(name, data) else None
    except (MeshError, ValueError):
        return None


__all__ = ["DRAIN_MAX", "begin", "decode_message", "fetch", "go_live"]
