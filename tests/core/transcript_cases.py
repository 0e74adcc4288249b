"""Logs made together with the transcript they must give: what was really said is known before it is told."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import strategies as st

#: What a message must be, without where it comes from: role, content, call id, tool's output.
Said = tuple[str, str | None, str | None, Any]
ORPHAN = object()


def event(seq: int, kind: str, run_id: str | None, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An event as a reader of the log gets it."""
    return {
        "id": f"evt_{seq}", "type": kind, "session_id": "s", "run_id": run_id, "seq": seq, "ts": float(seq),
        "data": data, "metadata": {}, "provider": "python", "correlation_id": None, "schema_version": 1,
    } | more


class Step(NamedTuple):
    """One event of a run, and what it puts into the transcript: whole messages, in order."""

    kind: str
    data: dict[str, Any]
    places: tuple[Said, ...] = ()


def log(*steps: tuple[str, str | None, dict[str, Any]]) -> list[dict[str, Any]]:
    """Events of (type, run, data), numbered from 1."""
    return [event(seq, kind, run_id, data) for seq, (kind, run_id, data) in enumerate(steps, 1)]


def said(messages: Any) -> list[Said]:
    """What a transcript's messages say."""
    return [
        (m.role.value, m.content, m.tool_call_id, ORPHAN if m.metadata.get("marker") else m.tool_output)
        for m in messages
    ]


_WORDS = st.text("abc ", min_size=1, max_size=4)
_SEGMENT = st.tuples(st.just("say"), st.lists(_WORDS, min_size=1, max_size=3), st.booleans())
_CALLS = st.tuples(
    st.just("call"), st.lists(st.sampled_from(["result", "failed", "nothing"]), min_size=1, max_size=3)
)
_END = st.sampled_from(["completed", "completed", "failed", "cancelled", "timeout", "rollback", "queued"])


class RunPlan(NamedTuple):
    """What one run does."""

    parts: list[Any]
    end: str
    whole: bool  #: the node repeats, at the end, all that was streamed


PLANS = st.lists(
    st.builds(RunPlan, st.lists(st.one_of(_SEGMENT, _CALLS), max_size=5), _END, st.booleans()), max_size=5
)


def steps(run_id: str, plan: RunPlan) -> list[Step]:
    """The events of a run. Text that is streamed becomes a message when something else follows it."""
    prompt: Said = ("user", f"prompt {run_id}", None, None)
    made = [Step("message_sent", {"role": "user", "content": prompt[1]})]
    if plan.end == "queued":
        return [*made, Step("run_cancelled", {"reason": "cancel"})]
    made.append(Step("run_started", {"agent": "a"}, (prompt,)))
    streamed, open_text, calls, unanswered = "", "", 0, False
    for kind, *rest in plan.parts:
        if kind == "say":
            pieces, received = rest
            unanswered = False
            made += [Step("message_streamed", {"content": piece}) for piece in pieces]
            open_text += "".join(pieces)
            streamed += "".join(pieces)
            if received and not plan.whole:
                made.append(Step("message_received", {"content": open_text}, _text(open_text)))
                open_text = ""
            continue
        if unanswered and not open_text:
            continue  # without a result in between, nothing would tell these calls from those before
        unanswered = all(end == "nothing" for end in rest[0])
        names = [f"{run_id}.{calls + n}" for n in range(len(rest[0]))]
        calls += len(names)
        ends = dict(zip(names, rest[0], strict=True))
        places: tuple[Said, ...] = (
            *_text(open_text), *(("assistant", None, name, None) for name in names),
            *(("tool", None, name, _OUTPUT[end]) for name, end in ends.items()),
        )
        open_text = ""
        for n, name in enumerate(names):
            data = {"tool_call_id": name, "tool_name": "t", "tool_input": {}}
            made.append(Step("tool_call_started", data, () if n else places))
        for name, end in reversed(ends.items()):
            if end != "nothing":
                kind = "tool_call_completed" if end == "result" else "tool_call_failed"
                data = {"tool_call_id": name, "tool_name": "t", "tool_output": end}
                made.append(Step(kind, data))
    if plan.whole and plan.end == "completed" and streamed:
        made.append(Step("message_received", {"role": "assistant", "content": streamed}, _text(open_text)))
        open_text = ""
    status, data = (("cancelled", {"reason": "rollback"}) if plan.end == "rollback" else (plan.end, {}))
    made.append(Step(f"run_{status}", data, _text(open_text)))
    return [step._replace(places=()) for step in made] if plan.end == "rollback" else made


_OUTPUT = {"result": "result", "failed": "failed", "nothing": ORPHAN}


def _text(text: str) -> tuple[Said, ...]:
    return (("assistant", text, None, None),) if text else ()


@st.composite
def told(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Said]]:
    """(a log in which the runs are mixed as they come, what its transcript must say)."""
    runs = [(f"run_{n}", steps(f"run_{n}", plan)) for n, plan in enumerate(draw(PLANS))]
    events: list[dict[str, Any]] = []
    expected: list[Said] = []
    while runs:
        which = draw(st.integers(0, len(runs) - 1))
        run_id, left = runs[which]
        for step in left[: draw(st.integers(1, 6))]:
            events.append(event(len(events) + 1, step.kind, run_id, step.data))
            expected += step.places
            left = left[1:]
        runs[which] = (run_id, left)
        if not left:
            del runs[which]
    return events, expected


__all__ = ["ORPHAN", "PLANS", "Said", "event", "log", "said", "told"]
