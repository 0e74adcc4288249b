"""Who did what: control calls leave an entry, written in the transaction of what they did.

An entry has the time, the client's id, the op, its target and the outcome (``ok`` or the error's code). What
carries the work itself leaves none: routes, prompts, runs and their events have their own log, or none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mesh.core import wire
from mesh.core.access import unwrapped

AUDITED = frozenset((
    "session.create", "session.start", "session.start_or_get", "session.activate", "session.pause",
    "session.resume", "session.complete", "session.cancel", "session.fail", "session.stop", "session.abort",
    "session.interrupt", "session.recall", "session.clear", "session.delete", "session.undelete",
    "session.import", "session.compact", "session.pin", "session.claim", "session.release",
    "session.set_token", "run.cancel", "run.cancel_for_approval", "run.decide", "run.interrupt",
    "run.pause", "run.resume", "agent.reload", "partition.backup", "maintenance.run",
))
#: Ops that make a session, of fields that stand third.
_MAKING = frozenset(("session.create", "session.start", "session.start_or_get"))
TARGET_CHARS_MAX = 200

#: (time, client or None when the node did it by itself, op, target, outcome)
Entry = tuple[float, bytes | None, str, str, str]


def entries(
    client: bytes, calls: Iterable[tuple[str, list[Any]]], answers: Iterable[bytes | None], now: float
) -> list[Entry]:
    """What an answered payload leaves."""
    return [
        (now, client, *_named(op, args), _outcome(answer))
        for (op, args), answer in zip((unwrapped(*call) for call in calls), answers, strict=True)
        if op in AUDITED and answer is not None and not _middle(op, args)
    ]


def own_entry(op: str, target: str, now: float) -> Entry:
    """What the node leaves when it does something by itself."""
    return now, None, op, target[:TARGET_CHARS_MAX], "ok"


def _middle(op: str, args: list[Any]) -> bool:
    """A piece of an import that neither begins nor ends it."""
    last = args[-1] if args else None
    return op == "session.import" and type(last) is dict and bool({"runs", "events"} & set(last))


def _named(op: str, args: list[Any]) -> tuple[str, str]:
    """The op and its target. A fork is a create by its arguments, but not to who reads what was done."""
    fields = args[2] if len(args) > 2 and op in _MAKING else None
    if type(fields) is dict and fields.get("fork_seq") is not None:
        origin = f"{fields.get('parent_session_id')}@{fields['fork_seq']}"
        return "session.fork", f"{_target(args)} of {origin}"[:TARGET_CHARS_MAX]
    return op, _target(args)


def _target(args: list[Any]) -> str:
    return args[0][:TARGET_CHARS_MAX] if args and type(args[0]) is str else ""


def _outcome(answer: bytes) -> str:
    if answer.startswith(wire.OK):
        return "ok"
    _, error = wire.unpack(answer)
    return str(error.get("code", "unknown_error"))


__all__ = ["AUDITED", "TARGET_CHARS_MAX", "Entry", "entries", "own_entry"]
