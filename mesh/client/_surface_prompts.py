"""Plans of prompts and of control: what is said to a busy session, and how what executes is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from mesh.client._payload import Call
from mesh.client._protocol import WAIT, WRITE, Facts
from mesh.client._surface import FACTS, REPLACE, Ask, Pause, Plan, listed, park_limit, value_of
from mesh.client._surface_routes import Linked
from mesh.client._surface_runs import ROOM_S, wait_run
from mesh.client._surface_sessions import (
    RETRY_S,
    new_run_id,
    run_call,
    session_call,
    settle_limit,
)
from mesh.core.records import Prompted, QueuedPrompt
from mesh.core.slots import check_id, session_slot
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError, shown

#: A drain without a time limit of its own has this one.
DRAIN_S = 60.0
#: A drain outlives these; everything else ends it.
_PASSING = frozenset(("timeout", "overloaded", "partition_unavailable", "node_unreachable"))


def prompt_call(session_id: Any, text: Any, queue: Any, on_busy: Any) -> tuple[int, Call]:
    """(slot, call) of ``sessions.prompt``."""
    sid = check_id(session_id)
    if type(text) is not str or not text:
        raise InvalidArgument(f"a prompt is a non-empty str, not {shown(text, 60)}", code="invalid_input")
    return session_slot(sid), ("session.prompt", (sid, new_run_id(sid), text, queue, on_busy))


def prompted(answer: Any) -> Prompted:
    """Read the answer of ``session.prompt``."""
    run_id, queued, queue = answer
    return Prompted(run_id, queued, queue)


def queued_prompts(rows: Any) -> tuple[QueuedPrompt, ...]:
    """Read the answers of ``session.queued`` and ``session.recall``."""
    return tuple(QueuedPrompt(*row) for row in rows)


def interrupt_session(link: Linked, session_id: Any, if_version: Any, timeout_s: float | None) -> Plan:
    """``sessions.interrupt``: the ids of the runs that were told to stop, when they are settled."""
    limit_s = settle_limit(link, timeout_s)
    deadline_s = monotonic() + limit_s
    slot, call = session_call("session.interrupt", session_id, if_version)
    [answer] = yield [Ask(WRITE, slot, call, limit_s)]
    ids: list[str] = value_of(answer)
    for run_id in ids:
        yield from wait_run(run_id, deadline_s)
    return ids


def cancel_many(link: Linked, ids: Any, timeout_s: float | None) -> Plan:
    """``runs.cancel_many``: run id -> None, or why it could not be cancelled."""
    outcome: dict[Any, MeshError | None] = {}
    asks: dict[Any, Ask] = {}
    for run_id in listed(ids, "ids"):
        try:
            slot, call = run_call("run.cancel", run_id, None)
        except MeshError as error:
            outcome[run_id if isinstance(run_id, str) else shown(run_id)] = error
        else:
            outcome[run_id] = None
            asks[run_id] = Ask(WRITE, slot, call, settle_limit(link, timeout_s))
    answers = (yield list(asks.values())) if asks else []
    for run_id, answer in zip(asks, answers, strict=True):
        outcome[run_id] = answer if isinstance(answer, MeshError) else None
    return outcome


def drain_session(session_id: Any, timeout_s: float | None) -> Plan:
    """``sessions.drain``: return when the session has nothing to do."""
    slot, call = session_call("session.drain", session_id)
    return (yield from _drain([slot], call, timeout_s))


def drain_node(timeout_s: float | None) -> Plan:
    """``client.drain``: return when every partition was seen with nothing to do."""
    facts: Facts = yield FACTS
    places = [~index for index in range(facts.partitions)]
    return (yield from _drain(places, ("partition.drain", ()), timeout_s))


def _drain(places: Sequence[int], call: Call, timeout_s: float | None) -> Plan:
    deadline_s = monotonic() + (DRAIN_S if timeout_s is None else timeout_s)
    left: dict[int, tuple[int, int]] = dict.fromkeys(places, (0, 0))
    while left:
        running, waiting = (sum(counts) for counts in zip(*left.values(), strict=True))
        park_s = park_limit(
            deadline_s, "there was still work; it did not end", {"running": running, "waiting": waiting}
        )
        answers = yield [Ask(WAIT, place, call, park_s) for place in left]
        pause_s = 0.0
        for place, answer in zip(list(left), answers, strict=True):
            if isinstance(answer, MeshError):
                if answer.code not in _PASSING:
                    raise answer
                if not isinstance(answer, DeadlineExceeded):
                    pause_s = max(pause_s, ROOM_S if answer.code == "overloaded" else RETRY_S)
            elif answer is REPLACE:
                pause_s = max(pause_s, RETRY_S)
            elif sum(answer) == 0:
                del left[place]
            else:
                left[place] = tuple(answer)
        if pause_s and left:
            yield Pause(pause_s)
    return None


__all__ = [
    "cancel_many",
    "drain_node",
    "drain_session",
    "interrupt_session",
    "prompt_call",
    "prompted",
    "queued_prompts",
]
