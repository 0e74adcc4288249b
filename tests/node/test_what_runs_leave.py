"""Whatever an agent yields and however it ends: the log of its run has the promised shape."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.events import EVENT_TYPES, RUN_TERMINAL_EVENT
from mesh.core.redact import Redactor
from mesh.core.runner import Outbox, RunLog
from mesh.errors import MeshError
from mesh.node.ending import Ending, cancelled, failure, timed_out, unstored
from mesh.node.pieces import Pieces
from mesh.providers.base import SessionInfo

KEY = ("run_1", 1)
CALLS = st.sampled_from(["1", "2", "3"])
TOOLS = st.sampled_from(["tool_call_started", "tool_call_completed", "tool_call_failed"])
PIECES = st.one_of(
    st.text(max_size=6),
    st.builds(lambda t, c: {"type": t, "data": {"tool_call_id": c, "tool_name": "t"}}, TOOLS, CALLS),
    st.builds(
        lambda n, mode: {"type": "token_usage_updated", "data": {"input_tokens": n, "mode": mode}},
        st.integers(-5, 50), st.sampled_from(["delta", "total"]),
    ),
    st.just({"type": "turn_completed"}),
    st.just({"type": "run_started", "data": {"session_id": "p", "model": "m"}}),
    st.just({"type": "message_received", "data": {"role": "assistant", "content": "own"}}),
    st.sampled_from([None, {}, {"type": "run_failed"}, {"type": "no"}, {"type": "error_recovered", "x": 1}]),
)
ENDS = st.sampled_from(["completed", "cancelled", "timeout", "unstored"])


class Sink:
    """Where a run's events go, without a runner."""

    output_bytes_max = event_bytes_max = 10_000

    class registry:
        """Stands for an object."""

        @staticmethod
        def provider_name(agent: str) -> str:
            return agent

    def __init__(self) -> None:
        self.outbox = Outbox(10**9)
        self.redactor = Redactor()

    def changed(self, log: RunLog) -> None:
        """Nobody waits."""

    def holds(self, pieces: Pieces) -> None:
        """Nobody releases: the end does."""


def played(pieces: list[Any], end: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a run that yields these pieces, up to the first that is refused, and its settlement."""
    sink = Sink()
    said = Pieces(sink, KEY, 0, SessionInfo(id="s", agent="a"))  # type: ignore[arg-type]
    said.begin(None, {})
    ending: Ending | None = None
    try:
        for piece in pieces:
            said.take(piece)
    except MeshError as exc:
        ending = failure(exc)
    if ending is None:
        ends = {"cancelled": cancelled("abort"), "timeout": timed_out("idle", "idle_s", 1.0)}
        ending = said.completed() if end == "completed" else ends.get(end, unstored(1.0))
    said.settle(ending)
    said.settle(cancelled())
    said.emit("message_streamed", {"content": "too late"})
    [message] = sink.outbox.close(said.log, 0.0)
    _, _, _, _, rows, report = wire.unpack(message)
    return [wire.unpack(wire.map_header(9) + row[2]) | {"code": row[0]} for row in rows], report


@given(pieces=st.lists(PIECES, max_size=25), end=ENDS)
def test_any_run_begins_and_ends_once_and_loses_no_word(pieces: list[Any], end: str) -> None:
    """If an agent yields anything and its run ends in any way, then there is one beginning, one end that the
    settlement agrees with, every word is in a message, and no tool call of a broken run is open."""
    events, report = played(pieces, end)
    types = [event["type"] for event in events]
    assert all(event["type"] == EVENT_TYPES[event["code"]] for event in events)
    assert types[0] == "run_started" and types.count("run_started") == 1
    assert types[-1] == RUN_TERMINAL_EVENT[report["status"]]
    assert sum(types.count(terminal) for terminal in RUN_TERMINAL_EVENT.values()) == 1
    words, received = [], []
    for event in events:
        if event["type"] == "message_streamed":
            words.append(event["data"]["content"])
        elif event["type"] == "message_received" and event["data"]["content"] != "own":
            received.append(event["data"]["content"])
            assert event["data"]["content"] == "".join(words)
            assert event["metadata"].get("partial", False) == (report["status"] != "completed")
        if event["type"] == "message_received":
            words = []
    assert not words, "said, and in no message"
    assert len(received) <= 1
    if report["status"] != "completed":
        assert not _open(events)


def _open(events: list[dict[str, Any]]) -> Counter[str]:
    """Tool calls without an end; one that was started twice is one call."""
    open_calls: Counter[str] = Counter()
    for event in events:
        call = event["data"].get("tool_call_id", "")
        if event["type"] == "tool_call_started":
            open_calls[call] = 1
        elif event["type"].startswith("tool_call_"):
            open_calls.pop(call, None)
    return open_calls


@given(pieces=st.lists(PIECES, max_size=25), end=ENDS)
def test_report_counts_what_the_events_say(pieces: list[Any], end: str) -> None:
    """If a run ends in any way, then its report agrees with the events that are in the log."""
    events, report = played(pieces, end)
    tokens = 0
    for event in events:
        if event["type"] == "token_usage_updated" and event["data"]["input_tokens"] >= 0:
            said = event["data"]["input_tokens"]
            tokens = tokens + said if event["data"]["mode"] == "delta" else max(tokens, said)
    assert report["token_usage"].get("input_tokens", 0) == tokens
    assert report["turn_count"] == sum(event["type"] == "turn_completed" for event in events)
