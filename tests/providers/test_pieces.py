"""What agents may yield and return, and what becomes of it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from driving import Bench, Result, cancelled, drive, python_agent, run

from mesh.core.provider_error import cut_stderr
from mesh.providers.base import RunContext, SessionInfo
from mesh.providers.python import HANDOVER_MAX


def run_source(folder: Path, source: str, run_input: Any = "go", **more: Any) -> Result:
    return run(python_agent(folder, source), run_input, **more)


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        ('"text"', {"content": "text"}),
        ('{"a": 1}', {"a": 1}),
        ("None", {"content": ""}),
        ("[1, 2]", {"content": [1, 2]}),
        ('{"content": "c", "n": 1}', {"content": "c", "n": 1}),
        ("3", {"content": 3}),
    ],
)
@pytest.mark.parametrize("prefix", ["async ", ""])
def test_returned_value_becomes_the_output(tmp_path: Path, prefix: str, returned: str, output: Any) -> None:
    """If a function returns a value, then text is the content, a map is the output, and None the joined
    text."""
    result = run_source(tmp_path, f"{prefix}def agent(run):\n    return {returned}")
    assert result.output == output
    assert result.types[-1] == "run_completed"


def test_generator_may_return_its_output(tmp_path: Path) -> None:
    """If a generator yields pieces and returns a text, then the returned text is the content."""
    result = run_source(tmp_path, "def agent(run):\n    yield 'x'\n    yield 'y'\n    return 'whole'")
    assert result.output == {"content": "whole"}
    assert [data["content"] for data in result.data("message_streamed")] == ["x", "y"]
    assert result.data("message_received")[0]["content"] == "whole"


def test_output_map_wins_over_the_joined_text(tmp_path: Path) -> None:
    """If an agent yields a map of type output, then that is the output."""
    result = run_source(
        tmp_path, "async def agent(run):\n    yield 'a'\n    yield {'type': 'output', 'data': {'x': 1}}"
    )
    assert result.output == {"x": 1}
    assert result.data("message_received")[0]["content"] == "a"


def test_own_events_are_written_with_their_metadata(tmp_path: Path) -> None:
    """If an agent yields maps, then each is an event; the totals of token_usage_updated reach the
    settlement."""
    source = """
async def agent(run):
    about = {"metadata": {"m": 1}, "correlation_id": "c"}
    yield {"type": "tool_call_started", "data": {"tool_name": "t"}, **about}
    yield {"type": "token_usage_updated", "data": {"input_tokens": 1, "output_tokens": 2, "model": "x"}}
    yield {"type": "message_received", "data": {"role": "assistant", "content": "mine"}}
"""
    result = run_source(tmp_path, source)
    assert result.types == [
        "run_started",
        "tool_call_started",
        "token_usage_updated",
        "message_received",
        "run_completed",
    ]
    assert (result.events[1]["metadata"], result.events[1]["correlation_id"]) == ({"m": 1}, "c")
    assert result.settle["token_usage"] == {"input_tokens": 1, "output_tokens": 2}


@pytest.mark.parametrize(
    ("piece", "code"),
    [
        ('{"type": "no_such"}', "invalid_event_type"),
        ('{"type": "run_failed"}', "invalid_event_type"),
        ('{"type": "token_usage_updated", "data": {"mode": "sum"}}', "validation_error"),
        ('{"type": 7}', "invalid_event_type"),
        ('{"type": ["turn_completed"]}', "invalid_event_type"),
        ("3", "validation_error"),
        ("b'x'", "validation_error"),
        ("{}", "validation_error"),
        ('{"type": "turn_completed", "data": 3}', "validation_error"),
        ('{"type": "turn_completed", "dta": {}}', "validation_error"),
        ('{"type": "turn_completed", "data": {"x": object()}}', "validation_error"),
        ('{"type": "turn_completed", "data": {"x": 1 << 70}}', "validation_error"),
        ('{"type": "turn_completed", "metadata": [1]}', "validation_error"),
        ('{"type": "turn_completed", "correlation_id": 7}', "validation_error"),
        ('{"type": "turn_completed", "ts": "today"}', "validation_error"),
        ('{"type": "turn_completed", "ts": -1}', "validation_error"),
        ('{"type": "turn_completed", "ts": float("nan")}', "validation_error"),
        ('{"type": "turn_completed", "data": {"x": [[]]}, 5: 1}', "validation_error"),
        ('{"type": "turn_completed", "data": {"x": "y" * 50_000_000}}', "limit_exceeded"),
        ('{"type": "output", "data": {"x": "y" * 10_000_000}}', "limit_exceeded"),
        ('{"type": "output", "data": {"x": object()}}', "validation_error"),
        ('{"type": "output", "data": 7}', "validation_error"),
    ],
)
def test_wrong_piece_fails_the_run_and_closes_the_agent(tmp_path: Path, piece: str, code: str) -> None:
    """If an agent yields what cannot be an event, then its run fails with the reason, and its
    cleanup runs."""
    file = tmp_path / "closed"
    source = f"""
async def agent(run):
    try:
        yield "before"
        yield {piece}
    finally:
        open({str(file)!r}, "w").close()
"""
    result = run_source(tmp_path, source)
    assert (result.settle["status"], result.error["code"]) == ("failed", code)
    assert result.types[:2] == ["run_started", "message_streamed"]
    assert file.exists()


def test_text_is_made_fit_to_travel(tmp_path: Path) -> None:
    """If a piece is empty, huge or holds half a surrogate, then it is skipped, cut, or mended."""
    source = "async def agent(run):\n    yield ''\n    yield 'a\\ud800c'\n    yield 'x' * 600_000"
    result = run_source(tmp_path, source)
    assert [len(data["content"]) for data in result.data("message_streamed")] == [3, 262144, 262144, 75712]
    assert result.output["content"].startswith("a?c")


def test_joined_text_is_bounded_and_events_go_on(tmp_path: Path) -> None:
    """If an agent says more than output_bytes, then the output says truncated, and every piece is
    an event."""
    source = "async def agent(run):\n    for _ in range(10):\n        yield 'ä' * 100"
    result = run_source(tmp_path, source, settings={"output_bytes": 501})
    assert result.output == {"content": "ä" * 250, "truncated": True}
    assert len(result.data("message_streamed")) == 10


KINDS = (
    "async def agent(run):\n    yield 'a'",
    "async def agent(run):\n    pass",
    "def agent(run):\n    pass",
)
RAISED = (
    "raise SystemExit(3)",
    "raise KeyboardInterrupt",
    "raise BaseException('x')",
    "raise GeneratorExit",
    "1 / 0",
    "import asyncio; raise asyncio.CancelledError",
    "raise StopIteration",
)
#: Python itself swallows a GeneratorExit that an async generator raises, so it ends like a return.
WHATEVER = [(kind, raised) for kind in KINDS for raised in RAISED if (kind, raised) != (KINDS[0], RAISED[3])]


@pytest.mark.parametrize(("kind", "raised"), WHATEVER)
def test_whatever_an_agent_raises_is_its_run_s_failure(tmp_path: Path, kind: str, raised: str) -> None:
    """If an agent raises anything at all, then its run fails and the process goes on."""
    result = run_source(tmp_path, f"{kind}\n    {raised}")
    assert (result.settle["status"], result.error["code"]) == ("failed", "provider_error")


def test_exception_is_described_without_data(tmp_path: Path) -> None:
    """If an agent raises, then the error holds the exception's name and text, and the lines it came
    through."""
    result = run_source(
        tmp_path, "def agent(run):\n    secret = 'hunter2'\n    raise ValueError('bad ' + run.prompt)"
    )
    assert result.error["message"] == "ValueError: bad go"
    details = result.error["details"]
    assert details["exception"] == "ValueError"
    assert details["traceback"][-1].endswith(":3 in agent")
    assert "hunter2" not in str(result.settle)


def test_run_error_of_an_agent_keeps_its_code(tmp_path: Path) -> None:
    """If an agent raises mesh's RunError with a code, then the run fails with that code."""
    source = """
from mesh.errors import RunError
async def agent(run):
    raise RunError('later', code='provider_rate_limited')
"""
    assert run_source(tmp_path, source).error["code"] == "provider_rate_limited"


def test_context_holds_what_the_contract_names(tmp_path: Path) -> None:
    """If an agent looks at its run, then it finds input, prompt, session, context, transcript and options."""
    source = """
def agent(run):
    return {"input": run.input, "prompt": run.prompt, "id": run.session.id, "agent": run.session.agent,
            "incarnation": run.session.incarnation, "tags": list(run.session.tags), "context": run.context,
            "transcript": run.messages, "cancelled": bool(run.cancelled), "options": run.options,
            "attempt": run.attempt}
"""
    given = {
        "messages": [{"role": "System", "content": "s"}, {"content": "u"}, {"role": "user", "content": ""}]
    }
    result = run(
        python_agent(tmp_path, source, options={"a": 1, "b": 1}), given, provider_opts={"b": 2}, attempt=2
    )
    assert result.output == {
        "input": given,
        "prompt": "u",
        "id": "ses_1",
        "agent": "agent",
        "incarnation": 3,
        "tags": ["t"],
        "context": {"k": "v"},
        "cancelled": False,
        "options": {"a": 1, "b": 2},
        "attempt": 2,
        "transcript": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    }


@pytest.mark.parametrize(
    ("given", "prompt", "count"),
    [
        ("hi", "hi", 1),
        ({"prompt": "p"}, "p", 1),
        ({"x": 1}, "", 0),
        (None, "", 0),
        ("", "", 0),
        ([1], "", 0),
    ],
)
def test_prompt_of_every_input_shape(given: Any, prompt: str, count: int) -> None:
    """If the input has any of the known shapes, then the prompt is its text; else it is empty."""
    context = RunContext("run_1", SessionInfo("ses_1"), given)
    assert (context.prompt, len(context.messages)) == (prompt, count)


def test_state_lives_from_run_to_run_of_a_session(tmp_path: Path) -> None:
    """If an agent keeps something in run.state, then the session's next run finds it, and no other
    session."""
    source = "def agent(run):\n    run.state['n'] = run.state.get('n', 0) + 1\n    return run.state"

    async def play(bench: Bench) -> list[Any]:
        return [
            (await bench.result(bench.begin("agent", "x", session=s))).output["n"] for s in ("a", "a", "b")
        ]

    assert drive({"agent": python_agent(tmp_path, source)}, play) == [1, 2, 1]


def test_deaf_thread_is_abandoned_and_its_late_word_refused(tmp_path: Path) -> None:
    """If a plain function does not look at cancelled, then its run is settled at once, and nothing
    follows."""
    source = """
import threading
let_go = threading.Event()
def agent(run):
    let_go.wait(20)
    return 'late'
"""

    async def play(bench: Bench) -> Result:
        import sys

        running = bench.begin("agent", "x")
        await bench.until(running, lambda result: bool(result.events))
        result = await cancelled(bench, running)
        [module] = [
            m for name, m in sys.modules.items() if name.startswith("mesh_agent_") and hasattr(m, "let_go")
        ]
        threads = [t for t in threading.enumerate() if t.name.startswith("run run_")]
        module.let_go.set()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
        assert bench.so_far(running) == result
        del sys.modules[module.__name__]
        return result

    assert drive({"agent": python_agent(tmp_path, source)}, play).types == ["run_started", "run_cancelled"]


def test_agent_that_swallows_its_cancellation_is_settled_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a coroutine goes on after CancelledError, then the run is settled without it when its time is
    over."""
    monkeypatch.setattr("mesh.node.drive.CANCEL_S", 0.1)
    source = """
import asyncio
async def agent(run):
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        pass
    await run.cancelled.wait()
    await asyncio.sleep(0.5)
    yield "late"
"""

    async def play(bench: Bench) -> Result:
        running = bench.begin("agent", "x")
        await bench.until(running, lambda result: bool(result.events))
        return await cancelled(bench, running)

    result = drive({"agent": python_agent(tmp_path, source)}, play)
    assert result.types == ["run_started", "run_cancelled"]


def test_fast_generator_thread_waits_for_the_run(tmp_path: Path) -> None:
    """If a generator's thread is faster than the run, then it is held back, and no piece is lost."""
    source = f"def agent(run):\n    for i in range({HANDOVER_MAX * 5}):\n        yield f'{{i}} '"
    result = run_source(tmp_path, source)
    assert result.output["content"].split() == [str(i) for i in range(HANDOVER_MAX * 5)]


def test_busy_generator_lets_others_run(tmp_path: Path) -> None:
    """If an agent yields without ever waiting, then other runs of the loop still get their turn."""
    source = "async def agent(run):\n    while True:\n        yield 'x'"

    async def play(bench: Bench) -> list[str]:
        busy = bench.begin("agent", "x")
        other = await bench.result(bench.begin("echo", "hello"))
        return [other.settle["status"], (await cancelled(bench, busy)).settle["status"]]

    assert drive({"agent": python_agent(tmp_path, source), "echo": {"provider": "echo"}}, play) == [
        "completed",
        "cancelled",
    ]


def test_dropped_run_says_nothing_more(tmp_path: Path) -> None:
    """If an attempt is fenced, then its provider is stopped, and nothing of it is kept."""

    async def play(bench: Bench) -> Any:
        running = bench.begin("agent", "a b", provider_opts={"delay_s": 1000})
        await bench.until(running, lambda result: bool(result.events))
        running.drop()
        result = await bench.result(running)
        return result.types, bench.outbox.logs, bench.outbox.bytes

    assert drive({"agent": {"provider": "echo"}}, play) == (["run_started"], {}, 0)


def test_echo_says_exactly_as_many_pieces_as_asked() -> None:
    """If echo is asked for n pieces, then it says n, also of a short prompt; a wrong script is refused."""
    for count in (0, 1, 3, 50):
        result = run({"provider": "echo"}, "hello", provider_opts={"pieces": count})
        assert len(result.data("message_streamed")) == count
    assert run({"provider": "echo"}, "a", provider_opts={"pieces": "x"}).error["code"] == "validation_error"
    assert run({"provider": "echo"}, " a  b ").output["content"] == " a  b "


def test_stderr_is_cut_on_a_character() -> None:
    """If stderr is cut by its bytes, then no half character stays."""
    assert cut_stderr("ä" * 10_000) == "ä" * 8_192
    assert cut_stderr("short\n") == "short\n"


@pytest.mark.parametrize(
    "body",
    [
        "return {(1, 2): 3}",
        "return {'a': [{(1, 2): 3}]}",
        "return collections.OrderedDict({(1, 2): 3})",
        "raise mesh.RunError('x', details={(1, 2): 3})",
    ],
)
def test_result_that_nobody_could_read_fails_the_run(tmp_path: Path, body: str) -> None:
    """If an agent gives what msgpack writes but no reader takes, then its run fails: it would never be
    stored, nor anything that travels with it."""
    source = f"import collections, mesh\nasync def agent(run):\n    {body}"
    assert run_source(tmp_path, source).types[-1] == "run_failed"


@pytest.mark.parametrize(
    "piece",
    [
        "{'type': 'token_usage_updated', 'data': {'n': 2**70}}",
        "{'type': 'token_usage_updated', 'data': {(1, 2): 1}}",
        "{'type': 'tool_call_started', 'metadata': {(1, 2): 1}}",
        "{'type': 'tool_call_started', 'correlation_id': {(1, 2): 1}}",
    ],
)
def test_event_that_nobody_could_read_fails_the_run(tmp_path: Path, piece: str) -> None:
    """If an event cannot travel, then the run fails, and is settled without that event."""
    result = run_source(tmp_path, f"async def agent(run):\n    yield {piece}")
    assert result.types[-1] == "run_failed"
    assert not {"token_usage_updated", "tool_call_started"} & set(result.types)
