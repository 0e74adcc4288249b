"""Recordings: what agents said in runs, as JSON lines that can be said again.

A recording is what ``mesh session export`` writes, or what ``provider = "record"`` appends while runs go on:

    {"mesh_recording": 1}
    {"run": {"id", "session_id", "agent", "input", "status": "running"}}      at its beginning
    {"event": {"run_id", "type", "ts", "data", "metadata"}}  ...              as they come
    {"run": {"id", ..., "status", "output", "error", "token_usage"}}          at its end, instead of that

Rules of this file:

1. A reader takes runs and events, in any order and mixed, and knows them by run id; the later line of a run
   stands for the earlier. Lines of the session and of the end are read over.
2. Only what an agent may write is said again. The node's own events it writes itself, in the replay as then.
3. Nothing is guessed about a run that was cut off: it fails where its recording ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mesh.core import export, usage
from mesh.core.events import AGENT_EVENTS
from mesh.core.run import messages
from mesh.errors import InvalidArgument, shown

VERSION = 1
MARK = "mesh_recording"
#: How runs of a replay find theirs.
BY_INPUT, BY_ORDER = "input", "order"
_SKIPPED = frozenset(("policy_violation", "tool_approval_requested", "workspace_snapshot_taken",
                      "workspace_diff_computed"))
_ENDS = frozenset(("run_completed", "run_failed", "run_cancelled", "run_timeout"))


class Recorded(msgspec.Struct, kw_only=True):
    """One run as it was recorded."""

    id: str
    run: dict[str, Any]
    began_s: float = 0.0
    #: (seconds since the run began, the event as an agent yields it)
    pieces: list[tuple[float, dict[str, Any]]] = []
    model: str | None = None
    completion: dict[str, Any] = {}
    ended_s: float | None = None  #: None: the recording was cut off

    @property
    def output(self) -> dict[str, Any]:
        """What the run gave; of one that only spoke, its text."""
        said = self.run.get("output")
        if said:
            return dict(said)
        texts = (piece["data"].get("content") for _, piece in self.pieces
                 if piece["type"] == "message_streamed" and piece["data"].get("stream") != "stderr")
        return {"content": "".join(text for text in texts if isinstance(text, str))}

    @property
    def usage_mode(self) -> str:
        """How its ``token_usage_updated`` count, told from what they add up to."""
        total: usage.Counts = {}
        for _, piece in self.pieces:
            if piece["type"] == "token_usage_updated":
                total = usage.folded(total, piece["data"], usage.UsageMode.TOTAL)
        final = usage.counts(self.run.get("token_usage") or {})
        bigger = any(final.get(name, 0) > count for name, count in total.items())
        return usage.UsageMode.DELTA if bigger else usage.UsageMode.TOTAL


def read(lines: Iterable[str]) -> list[Recorded]:
    """The runs of a recording, in the order in which they began.

    Raises:
        InvalidArgument: names the line that is none of a recording.
    """
    runs: dict[str, dict[str, Any]] = {}
    events: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        kind, value = _decoded(line, number)
        if kind == export.RUN:
            runs[_text(value.get("id"), number)] = value
        elif kind == export.EVENT and value.get("run_id") is not None:
            if not (isinstance(value.get("type"), str) and isinstance(value.get("ts"), int | float)):
                raise InvalidArgument(f"line {number}: an event needs a type and a ts")
            events.setdefault(_text(value["run_id"], number), []).append(value)
    found = [_recorded(run, events[run_id]) for run_id, run in runs.items() if run_id in events]
    return sorted(found, key=lambda recorded: recorded.began_s)


def _decoded(line: str, number: int) -> tuple[str, dict[str, Any]]:
    if f'"{MARK}"' in line[:40]:
        try:
            version = json.loads(line)[MARK]
        except (ValueError, KeyError, TypeError) as exc:
            raise InvalidArgument(f"line {number} is no line of a recording: {shown(line, 60)}") from exc
        if version != VERSION:
            raise InvalidArgument(
                f"line {number}: a recording of version {shown(version, 20)}; this is {VERSION}"
            )
        return MARK, {}
    return export.decode_line(line, number)


def _text(value: Any, number: int) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"line {number}: a run has an id")
    return value


def _recorded(run: dict[str, Any], events: list[dict[str, Any]]) -> Recorded:
    """A run with its last attempt."""
    begins = [i for i, event in enumerate(events) if event["type"] == "run_started"]
    if begins:
        events = events[begins[-1]:]
    recorded = Recorded(id=run["id"], run=run, began_s=float(events[0]["ts"]))
    for event in events:
        kind, data, at_s = event["type"], event.get("data") or {}, event["ts"] - recorded.began_s
        if kind == "run_started":
            recorded.model = data.get("model")
        elif kind in _ENDS:
            recorded.ended_s = max(0.0, at_s)
            recorded.completion = data if kind == "run_completed" else {}
        elif _is_said(kind, data, event.get("metadata") or {}):
            recorded.pieces.append((max(0.0, at_s), _piece(event)))
    return recorded


def _is_said(kind: str, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether an agent wrote it; the ends of what was broken off are the node's."""
    if kind not in AGENT_EVENTS or kind in _SKIPPED:
        return False
    if kind == "tool_call_failed" and data.get("error") == "aborted":
        return False
    return not (kind == "message_received" and metadata.get("partial"))


def _piece(event: dict[str, Any]) -> dict[str, Any]:
    piece = {"type": event["type"], "data": event.get("data") or {}}
    metadata = {key: value for key, value in (event.get("metadata") or {}).items() if key[:1] != "_"}
    return piece | {"metadata": metadata} if metadata else piece


def asked(run_input: Any) -> str:
    """What an input asks, comparable: ``"hi"``, ``{"prompt": "hi"}`` and its message are the same."""
    said = messages(run_input)
    return json.dumps([[m["role"], m["content"]] for m in said] if said else run_input,
                      sort_keys=True, default=str)


def chosen(
    runs: list[Recorded], run_input: Any, played: Mapping[str, int], how: str
) -> tuple[Recorded, str] | None:
    """The recorded run that answers, and under which name that is counted in ``played``; None: there is none.

    By input: a question that is asked again gets the next answer to it, in the end the last one again. By
    order: the session's n-th run gets the n-th.
    """
    name = "" if how == BY_ORDER else asked(run_input)
    fits = runs if how == BY_ORDER else [run for run in runs if asked(run.run.get("input")) == name]
    at = played.get(name, 0)
    if not fits or (how == BY_ORDER and at >= len(fits)):
        return None
    return fits[min(at, len(fits) - 1)], name


__all__ = [
    "BY_INPUT", "BY_ORDER", "MARK", "VERSION", "Recorded", "asked", "chosen", "read",
]
