"""How a run looks, and what holds for any events: no exception, no control, each piece of text once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.events import EVENT_TYPES
from mesh.core.records import Event
from mesh.errors import InvalidArgument
from mesh.rendering import RENDERERS, Renderer, StudioRenderer, TextRenderer, renderer
from mesh.rendering.base import OPEN_MAX

Make = Callable[..., Event]
COLOR = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

TEXT = """\
I'll look at the tests first.
Then red.
Not streamed: 漢字
"""
STUDIO = """\
  › fix the tests, please
  ● claude-sonnet-4-5-20250929 run started

  I'll look at the tests first.
  Then red.

  ◐ Reading a.py
  ✓ Read a.py (3 lines)
  ◐ Running: pytest -q
  ✗ Bash failed: pytest -q (exit 1, 11 chars, 5.0s)

  Not streamed: 漢字

  ◆ Waiting for an approval: bash: git push
  ✓ Approved: bash by ann
  ● 3 files changed (+10 -2)
  ● Run complete (end_turn) — 847/312 tokens, 2 tools, $0.0123
  ● session completed
  ? of_tomorrow
"""
COMPACT = """\
?session_created << fix the tests, please r+ sonnet-4-5 >> I'll look at the tests first.
Then red.
t+Read t-Read tr:a b c t+Bash t-Bash ! no 1 failed tk:847/312 $0.0123 msg >> Not streamed: 漢字
msg ! approval bash ?tool_approval_granted ?workspace_diff_computed r-:end ?session_completed ?of_tomorrow
19 events, 2 tools
"""
VERBOSE = """\
[session_created] seq=1
[message_sent] content="fix the tests, please" role=user seq=2
[run_started] model=claude-sonnet-4-5-20250929 session_id=s.1 seq=3
I'll look at the tests first.
Then red.
[tool_call_started] name=Read id=t1 input={"path": "a.py"} seq=7
[tool_call_completed] name=Read id=t1 output="a b c" seq=8
[tool_call_started] name=Bash id=t2 input={"command": "pytest -q"} seq=9
[tool_call_failed] name=Bash id=t2 output="no 1 failed" seq=10
[token_usage_updated] input=847 output=312 cost=$0.0123 seq=11
[message_received] role=assistant chars=39 seq=12
Not streamed: 漢字
[message_received] role=assistant chars=17 seq=13
[tool_approval_requested] tool_name=bash tool_input={"command": "git push"} policy_name=p \
violation_kind=asked seq=14
[tool_approval_granted] tool_name=bash by=ann seq=15
[workspace_diff_computed] files_changed=3 insertions=10 deletions=2 seq=16
[run_completed] stop_reason=end_turn seq=17
[session_completed] seq=18
[of_tomorrow] what="" seq=19
--- 19 events, 2 tools ---
"""
GOLDEN = {"text": TEXT, "studio": STUDIO, "compact": COMPACT, "verbose": VERBOSE, "passthrough": ""}


def rendered(made: Renderer, events: list[Event]) -> str:
    """All of it."""
    return "".join(map(made.event, events)) + made.finish()


@pytest.mark.parametrize("name", RENDERERS)
def test_a_run_looks_as_it_always_did(name: str, story: list[Event]) -> None:
    """If a run with words, tools and decisions is rendered, then it looks like this."""
    assert rendered(renderer(name, color=False), story) == GOLDEN[name]


@pytest.mark.parametrize("name", RENDERERS)
def test_colours_change_nothing_but_colours(name: str, story: list[Event]) -> None:
    """If there are colours, then the text between them is the same."""
    colored = rendered(renderer(name, color=True), story)
    assert COLOR.sub("", colored) == GOLDEN[name]
    assert (colored != GOLDEN[name]) == (name in ("studio", "compact", "verbose"))


@pytest.mark.parametrize(
    ("mode", "shown"),
    [("preview", ["    │ c", "    │ d", "    │ e"]), ("full", [f"    ┊ {line}" for line in "abcde"])],
)
def test_studio_shows_output_of_tools_when_asked(mode: str, shown: list[str], event: Make) -> None:
    """If tool_output is preview or full, then the last three or all lines stand below the summary."""
    made = StudioRenderer(color=False, tool_output=mode)
    made.event(event(1, "tool_call_started", tool_name="grep", tool_input={"pattern": "x"}))
    text = made.event(event(2, "tool_call_completed", tool_name="grep", tool_output="a\nb\n\nc\nd\ne\n"))
    assert text.splitlines() == ['  ✓ Found 5 matches for "x"', *shown]


def test_studio_counts_each_run_for_itself(event: Make) -> None:
    """If a session has several runs, then the end of each says its own tokens and tools."""
    made = StudioRenderer(color=False)
    for kind, data in [
        ("run_started", {}), ("tool_call_started", {"tool_name": "x"}), ("tool_call_completed", {}),
        ("token_usage_updated", {"input_tokens": 5, "cost_usd": 1}),
        ("token_usage_updated", {"input_tokens": 7, "cost_usd": 1}),
    ]:
        made.event(event(1, kind, **data))
    total = {"input_tokens": 12, "output_tokens": 0}
    assert "12/0 tokens, 1 tool, $1\n" in made.event(event(6, "run_completed", token_usage=total))
    made.event(event(7, "run_started", run_id="run_2"))
    assert made.event(event(8, "run_completed", run_id="run_2")).endswith("● Run complete\n")


def test_studio_on_a_terminal_has_a_status_instead_of_lines(event: Make) -> None:
    """If it is live, then what goes on is the status, the latest of several, and nothing at the end."""
    made = StudioRenderer(color=False, live=True)
    first = event(1, "tool_call_started", tool_name="Read", tool_call_id="a", tool_input={"path": "x"})
    assert made.event(first) == "" and made.status == "  ◐ Reading x"
    made.event(event(2, "tool_call_started", tool_name="Bash", tool_call_id="b"))
    assert made.status == "  ◐ Running bash"
    assert made.event(event(3, "tool_call_completed", tool_call_id="b")) == "  ✓ Ran: bash (exit 0)\n"
    assert made.status == "  ◐ Reading x"
    made.event(event(4, "run_cancelled", reason="abort"))
    assert made.status == ""


@pytest.mark.parametrize(
    ("name", "given_", "more", "summary"),
    [
        ("write", {"file_path": "a", "content": "x\ny"}, {}, "✓ Wrote a (2 lines)"),
        ("Edit", {"path": "/home/ann/" + "d/" * 40 + "e/f.py"}, {}, "✓ Edited /home/.../e/f.py"),
        ("Glob", {"pattern": "*.py"}, {"tool_output": "a.py"}, "✓ Found 1 file matching *.py"),
        ("Task", {"description": "look"}, {"duration_ms": 2500}, "✓ Task complete: look (2.5s)"),
        ("WebFetch", {"url": "https://a.b/c?d"}, {"tool_output": "x" * 1500}, "✓ Fetched a.b (1.5k chars)"),
        ("mcp__files__read", {}, {"tool_output": {"a": 1}}, "✓ files: read complete (8 chars)"),
        ("shell", {"command": ["ls", "-l"]}, {"exit_code": 2}, "✗ Bash failed: ls -l (exit 2)"),
        ("read", None, {"tool_output": ""}, "✓ Read file (0 lines)"),
    ],
)
def test_studio_says_what_tools_did(
    name: str, given_: Any, more: dict[str, Any], summary: str, event: Make
) -> None:
    """If a tool ends, then one line says in words what it did."""
    made = StudioRenderer(color=False, live=True)
    made.event(event(1, "tool_call_started", tool_name=name, tool_call_id="1", tool_input=given_))
    text = made.event(event(1, "tool_call_completed", tool_name=name, tool_call_id="1", **more))
    assert text == f"  {summary}\n"


def test_two_runs_at_once_do_not_share_a_line(event: Make) -> None:
    """If the pieces of two runs alternate, then each speaker begins a line of his own."""
    made = TextRenderer(color=False)
    pieces = [event(i, "message_streamed", run_id=f"run_{i % 2}", content=f"p{i}") for i in range(4)]
    assert rendered(made, pieces) == "p0\np1\np2\np3\n"


def test_exact_text_is_byte_for_byte(event: Make) -> None:
    """If the output is a pipe, then it gets the agent's words, control and all, and no line of ours."""
    words = ["\x1b[31m a\r", "b\x00", "c"]
    pieces = [event(i, "message_streamed", content=word) for i, word in enumerate(words)]
    assert rendered(TextRenderer(exact=True), [*pieces, event(9, "message_received", content="x")]) == (
        "".join(words)
    )


@pytest.mark.parametrize("options", [{"tool_output": "most"}, {"indent": -1}, {"indent": True}])
def test_a_wrong_option_of_studio_is_refused(options: dict[str, Any]) -> None:
    """If an option is none of those it may be, then the refusal names them."""
    with pytest.raises(InvalidArgument):
        StudioRenderer(**options)


def test_an_unknown_renderer_is_refused() -> None:
    """If there is no such renderer, then the refusal names those there are."""
    with pytest.raises(InvalidArgument, match="studio"):
        renderer("fancy")


def test_a_stream_without_end_needs_no_more_memory(event: Make) -> None:
    """If runs and tools begin and never end, then what is remembered of them is bounded."""
    made = StudioRenderer(color=False)
    for i in range(OPEN_MAX + 50):
        made.event(event(i, "message_streamed", run_id=f"run_{i}", content="x"))
        made.event(event(i, "tool_call_started", run_id=f"run_{i}", tool_name="x", tool_call_id=str(i)))
    assert len(made._streamed) == OPEN_MAX and len(made._open) == OPEN_MAX


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["content", "delta", "stream", "role", "tool_name", "tool_call_id", "tool_input", "tool_output",
     "exit_code", "duration_ms", "model", "status", "error", "error_message", "stop_reason", "input_tokens",
     "output_tokens", "cost_usd", "token_usage", "reason", "by", "kind", "files_changed", "insertions"]
)
DATA = st.dictionaries(KEYS, VALUES, max_size=6)
ANY = st.lists(
    st.tuples(
        st.sampled_from([*EVENT_TYPES, "log_pruned", "\x1b[2J"]), st.sampled_from(["r1", "r2", None]), DATA
    ),
    max_size=20,
)


@settings(max_examples=60)
@given(rows=ANY)
def test_any_events_are_rendered_without_control(rows: list[Any]) -> None:
    """If events have any type, order and data, then there is text without control, and no exception."""
    events = [
        Event(f"e{seq}", kind, "s", run_id, seq, 1.0, data)
        for seq, (kind, run_id, data) in enumerate(rows, 1)
    ]
    for name in RENDERERS:
        made = renderer(name, color=False)
        assert not CONTROL.search(rendered(made, events)), name
        assert made.events == len(rows)


WORDS = st.sampled_from(["", "ab", "ç漢 ", "\n", "\r", "\x1b[31mx", "\x1b]0;t\x07", "\x00", "a\n\nb\n"])


@settings(max_examples=60)
@given(messages=st.lists(st.tuples(st.lists(WORDS, max_size=4), st.booleans(), st.booleans()), max_size=6))
def test_each_piece_of_text_is_shown_once(messages: list[Any]) -> None:
    """If messages are streamed, received, or both, then each marked piece is in the text exactly once."""
    events: list[tuple[str, str]] = []
    marks: list[str] = []
    for number, (pieces, streamed, received) in enumerate(messages):
        marked = []
        for place, piece in enumerate(pieces):
            mark = f"<{number}.{place}>"
            marked.append(mark + piece)
            if streamed or received:
                marks.append(mark)
        if streamed:
            events += [("message_streamed", piece) for piece in marked]
        if received or streamed:
            events.append(("message_received", "".join(marked)))
        events.append(("tool_call_started", ""))
    said = [
        Event(f"e{i}", kind, "s", "r", i, 1.0, {"content": text}) for i, (kind, text) in enumerate(events, 1)
    ]
    for name in ("text", "studio", "compact", "verbose"):
        assert re.findall(r"<\d+\.\d+>", rendered(renderer(name, color=False), said)) == marks, name
