"""``anthropic`` and ``openai``: what is asked and heard, retries, failures. A scripted server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driving import Bench, Result, drive, run
from scripted import (
    STREAMS,
    Script,
    Step,
    Threaded,
    call,
    cut,
    end,
    hang,
    raw,
    status,
    text,
    think,
    use,
)

from mesh.core.message import Message, Role
from mesh.providers import api

pytest.importorskip("anthropic")
pytest.importorskip("openai")

KEY = "a-key-of-no-known-form-123"
#: provider, its own settings, where its server begins
APIS: dict[str, tuple[dict[str, Any], str]] = {
    "anthropic": ({"provider": "anthropic"}, ""),
    "chat": ({"provider": "openai"}, "/v1"),
    "responses": ({"provider": "openai", "api": "responses"}, "/v1"),
}
TOOLS = '''
def add(a: int, b: int) -> int:
    """Add."""
    return a + b

def broken() -> str:
    raise ValueError("broken on purpose")
'''


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(api, "BACKOFF_S", 0.01)


@pytest.fixture(params=APIS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Played:
    """A run of one API on one script."""

    def __init__(self, name: str, script: Script, folder: Path | None = None) -> None:
        self.name, self.script, self.folder = name, script, folder
        self.requests: list[dict[str, Any]] = []

    def run(self, given: Any = "hello there", options: dict[str, Any] | None = None, **table: Any) -> Result:
        settings, base = APIS[self.name]
        with Threaded({"m": self.script}) as server:
            table = {**settings, "model": "m", "base_url": server.url + base, **table}
            if self.folder is not None:
                (self.folder / "tools_of_models.py").write_text(TOOLS)
                tools = [f"{self.folder}/tools_of_models.py:{name}" for name in ("add", "broken")]
                table = {"tools": tools, **table}
            result = run(table, given, **(options or {}))
            self.requests = [request.body for request in server.requests]
            self.headers = [request.headers for request in server.requests]
        return result


GOOD: list[Step] = [text("hel"), text("lo"), end()]


def then(*scripts: list[Step]) -> Script:
    """The first request gets the first script, and so on; the last one again and again."""
    left = list(scripts)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


# --- what is asked ---


def test_key_model_and_limits_are_sent(name: str) -> None:
    """If an agent's table says model, limits and temperature, then the request has them, and the key."""
    played = Played(name, GOOD)
    more = {} if name == "anthropic" else {"temperature": 0.5}
    played.run(max_tokens=50, system_prompt="be brief", **more)
    [asked], [headers] = played.requests, played.headers
    assert (asked["model"], asked["stream"]) == ("m", True)
    assert asked.items() >= more.items()
    assert asked.get("max_tokens", asked.get("max_output_tokens")) == 50
    assert "be brief" in json.dumps(asked)
    assert KEY in (headers.get("x-api-key"), headers.get("authorization", "")[7:])


def test_a_call_may_say_its_own_settings(name: str) -> None:
    """If provider_opts and the session's context say model and system prompt, then these hold."""
    with Threaded({"other": GOOD}) as server:
        settings, base = APIS[name]
        table = {**settings, "model": "m", "base_url": server.url + base, "system_prompt": "of the table"}
        opts = {"model": "other"}
        result = run(table, "hi", provider_opts=opts, context={"system_prompt": "of the session"})
        asked = json.dumps(server.requests[0].body)
    assert result.data("run_started")[0]["model"] == "other"
    assert result.settle["status"] == "completed"
    assert "of the session" in asked and "of the table" not in asked


IMAGE = {"type": "image", "media_type": "image/png", "data": "aGVsbG8="}


@pytest.mark.parametrize(
    "block",
    [
        IMAGE,
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
        {"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8="},
    ],
    ids=["neutral", "anthropic", "chat", "responses"],
)
def test_images_are_blocks_of_the_api(name: str, block: dict[str, Any]) -> None:
    """If a message holds an image, in the form of any API, then it is sent in the form of this one."""
    played = Played(name, GOOD)
    content = [{"type": "text", "text": "what is this?"}, block]
    result = played.run({"messages": [{"role": "user", "content": content}]})
    assert result.settle["status"] == "completed"
    [message] = played.requests[0].get("messages") or played.requests[0]["input"]
    expected = {
        "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                                  "data": "aGVsbG8="}},
        "chat": {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
        "responses": {"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8=",
                      "detail": "auto"},
    }[name]
    sent = {key: value for key, value in message["content"][1].items() if key != "cache_control"}
    assert sent == expected


def test_what_stays_the_same_is_marked_for_the_cache() -> None:
    """If caching is not switched off, then tools, system prompt and conversation end with a mark."""
    mark = {"type": "ephemeral"}
    played = Played("anthropic", GOOD)
    played.run(system_prompt="be brief")
    asked = played.requests[0]
    assert asked["system"][-1]["cache_control"] == mark
    assert asked["messages"][-1]["content"][-1]["cache_control"] == mark
    played.run(system_prompt="be brief", cache=False)
    assert "cache_control" not in json.dumps(played.requests)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (2_000, {"type": "enabled", "budget_tokens": 2_000}),
        ("adaptive", {"type": "adaptive", "display": "summarized"}),
    ],
)
def test_thinking_is_asked_for_shown_and_given_back(given: Any, sent: Any, tmp_path: Path) -> None:
    """If a model thinks before it calls a tool, then that is streamed, and given back with its signature."""
    script = then([think("let me see"), call("c1", "add", '{"a": 1, "b": 2}'), end("tool_use")], GOOD)
    played = Played("anthropic", script, tmp_path)
    result = played.run(thinking=given)
    assert played.requests[0]["thinking"] == sent
    assert [d["thinking"] for d in result.data("message_streamed") if "thinking" in d] == ["let me see"]
    assert result.output["content"] == "hello"
    block = played.requests[1]["messages"][-2]["content"][0]
    assert block == {"type": "thinking", "thinking": "let me see", "signature": "sig"}


# --- tools ---


def test_a_failing_tool_is_told_to_the_model(name: str, tmp_path: Path) -> None:
    """If a tool raises, then the model is told, and the run goes on."""
    played = Played(name, then([call("c1", "broken", "{}"), end("tool_use")], GOOD), tmp_path)
    result = played.run()
    assert result.output["content"] == "hello"
    assert result.types.count("tool_call_failed") == 1
    assert "ValueError: broken on purpose" in json.dumps(played.requests[1])


@pytest.mark.parametrize("arguments", ['{"a": 1,', "[1]", '"x"'])
def test_arguments_that_are_no_object_are_told_to_the_model(
    name: str, arguments: str, tmp_path: Path
) -> None:
    """If a model writes arguments that are no JSON object, then no tool runs, and the model is told."""
    played = Played(name, then([call("c1", "add", arguments), end("tool_use")], GOOD), tmp_path)
    result = played.run()
    assert result.output["content"] == "hello"
    assert result.data("tool_call_failed")[0]["tool_output"] == "the tool's input is no JSON object"
    assert "no JSON object" in json.dumps(played.requests[1])


def test_several_calls_are_answered_together(name: str, tmp_path: Path) -> None:
    """If a model makes two calls in one answer, then both are answered, in order, in one request."""
    calls = [call("c1", "add", '{"a": 1,', '"b": 2}'), call("c2", "add", '{"a": 3, "b": 4}')]
    played = Played(name, then([text("so: "), *calls, end("tool_use")], GOOD), tmp_path)
    result = played.run()
    assert [d["tool_output"] for d in result.data("tool_call_completed")] == ["3", "7"]
    assert [d["content"] for d in result.data("message_received")] == ["so: ", "hello"]
    assert result.settle["turn_count"] == 2
    assert len(played.requests) == 2


def test_a_model_that_calls_for_ever_is_stopped(name: str, tmp_path: Path) -> None:
    """If a model never ends its calls, then max_turns ends the run with its name."""
    played = Played(name, [call("c1", "add", '{"a": 1, "b": 2}'), end("tool_use")], tmp_path)
    result = played.run(max_turns=3)
    assert (result.error["code"], result.error["details"]) == ("limit_exceeded", {"max_turns": 3})
    assert len(played.requests) == 3


def test_a_cut_off_call_is_not_made(name: str, tmp_path: Path) -> None:
    """If an answer ends at max_tokens in the middle of a call, then the tool does not run."""
    played = Played(name, [text("x"), call("c1", "add", '{"a": 1'), end("max_tokens")], tmp_path)
    result = played.run()
    assert "tool_call_started" not in result.types
    assert result.data("run_completed")[0]["stop_reason"] == "max_tokens"


# --- budgets ---


@pytest.mark.parametrize(("action", "asked"), [("cancel", [60, 30]), ("warn", [200, 200])])
def test_answers_are_as_long_as_the_budget_leaves(
    name: str, tmp_path: Path, action: str, asked: list[int]
) -> None:
    """If tokens are limited, then an answer may have what is left of them, unless that is only warned of."""
    first = [call("c1", "add", '{"a": 1, "b": 2}'), use(20, 10), end("tool_use")]
    played = Played(name, then(first, [text("hello"), use(10, 5), end()]), tmp_path)
    policy = {"name": "p", "limits": {"max_total_tokens": 60}, "on_violation": action}
    result = played.run(options={"policies": [policy]}, max_tokens=200)
    assert result.settle["status"] == "completed"
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    assert [next(r[key] for key in limits if key in r) for r in played.requests] == asked


def test_a_used_up_budget_asks_no_model(name: str, tmp_path: Path) -> None:
    """If an answer used all that the budget has, then no further one is asked for."""
    played = Played(name, [call("c1", "add", '{"a": 1, "b": 2}'), use(50, 10), end("tool_use")], tmp_path)
    result = played.run(options={"policies": [{"name": "p", "limits": {"max_total_tokens": 60}}]})
    assert result.error["code"] == "policy_violation"
    assert len(played.requests) == 1


def test_a_budget_below_the_thinking_asks_without_it() -> None:
    """If a budget leaves less than a model is to think, then it answers without."""
    played = Played("anthropic", GOOD)
    policy = {"name": "p", "limits": {"max_total_tokens": 1_000}}
    played.run(options={"policies": [policy]}, max_tokens=4_000, thinking=2_000)
    assert played.requests[0]["max_tokens"] == 1_000 and "thinking" not in played.requests[0]


# --- usage ---


def test_usage_counts_what_the_cache_gave_apart(name: str) -> None:
    """If some of the request came from the cache, then it is counted apart from the rest."""
    used = Played(name, [text("x"), use(10, 4, cached=6), end()]).run().settle["token_usage"]
    assert used.items() >= {"input_tokens": 10, "output_tokens": 4, "cache_read_tokens": 6}.items()


@pytest.mark.parametrize("name", ["chat", "responses"])
def test_usage_that_is_missing_is_estimated_and_says_so(name: str) -> None:
    """If a server tells no usage, then pieces are counted, the request is estimated, and both are marked."""
    result = Played(name, [text("a "), text("b "), text("c"), use(None), end()]).run()
    assert result.settle["token_usage"]["output_tokens"] == 3
    assert result.settle["token_usage"]["input_tokens"] > 0
    assert result.data("token_usage_updated")[0]["estimated"] is True
    assert result.output["usage_estimated"] is True


# --- failures ---


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (401, {"type": "authentication_error", "message": f"invalid key {KEY}"},
         "provider_authentication_failed"),
        (403, {"type": "permission_error", "message": "no"}, "provider_authentication_failed"),
        (404, {"type": "not_found_error", "message": "no model m"}, "validation_error"),
        (400, {"type": "invalid_request_error", "message": "too long"}, "validation_error"),
        (402, {"type": "billing_error", "message": "pay"}, "provider_quota_exceeded"),
        (429, {"code": "insufficient_quota", "message": "pay"}, "provider_quota_exceeded"),
        (429, {"type": "rate_limit_error", "message": "slower"}, "provider_rate_limited"),
        (500, {"type": "api_error", "message": "oops"}, "provider_unavailable"),
        (529, {"type": "overloaded_error", "message": "busy"}, "provider_unavailable"),
        (504, {"message": "late"}, "provider_timeout"),
    ],
)
def test_refusals_have_codes_and_no_secret(name: str, code: int, body: dict[str, Any], expected: str) -> None:
    """If a server refuses, then the run fails with the code for it, its words, and without the key."""
    result = Played(name, [status(code, {"error": body})]).run(retries=0)
    assert result.error["code"] == expected
    assert result.error["details"]["status"] == code
    assert result.error["provider_error"]["provider"] == APIS[name][0]["provider"]
    assert KEY not in str(result)
    if KEY not in body["message"]:
        assert body["message"] in result.error["message"]


@pytest.mark.parametrize("code", [429, 500, 529])
def test_a_refused_request_is_sent_again(name: str, code: int) -> None:
    """If a server is busy for two requests, then the third is answered, and events tell of it."""
    busy = [status(code, {"error": {"message": "busy"}})]
    result = Played(name, then(busy, busy, GOOD)).run()
    assert result.output["content"] == "hello"
    assert [data["attempt"] for data in result.data("error_occurred")] == [1, 2]
    assert result.data("error_recovered") == [{"recovered_by": "retry", "attempts": 3}]


def test_retry_after_is_honoured_under_the_deadline(name: str) -> None:
    """If a server asks for more time than the run has, then the run fails at once and says for how long."""
    busy = [status(429, {"error": {"message": "busy"}}, {"retry-after": "60"})]
    played = Played(name, busy)
    result = played.run(options={"deadline_s": 30.0})
    assert (result.error["code"], result.error["details"]["retry_after_s"]) == ("provider_rate_limited", 60.0)
    assert len(played.requests) == 1


def test_retry_after_is_the_pause(name: str) -> None:
    """If a server asks for 20 ms, then that is the pause."""
    busy = [status(429, {"error": {"message": "busy"}}, {"retry-after-ms": "20"})]
    result = Played(name, then(busy, GOOD)).run()
    assert [data["retry_in_s"] for data in result.data("error_occurred")] == [0.02]


def test_a_connection_that_breaks_before_a_word_is_tried_again(name: str) -> None:
    """If the connection breaks before anything was shown, then the request is sent again."""
    result = Played(name, then([cut()], GOOD)).run()
    assert result.output["content"] == "hello"
    assert result.types.count("error_occurred") == 1


def test_a_connection_that_breaks_in_the_middle_fails_the_run(name: str) -> None:
    """If the connection breaks after some words, then they are kept, and nothing is asked twice."""
    played = Played(name, [text("some "), text("words"), cut()])
    result = played.run()
    assert result.error["code"] == "provider_unavailable"
    assert result.error["message"].partition(": ")[0].endswith("broke off in the middle of an answer")
    assert result.data("message_received") == [{"role": "assistant", "content": "some words"}]
    assert len(played.requests) == 1


def test_an_end_without_its_last_event_is_no_answer(name: str) -> None:
    """If a stream ends well but its answer does not, then the run does not look well."""
    result = Played(name, [text("some")]).run()
    assert result.error["code"] == "provider_unavailable"


@pytest.mark.parametrize("junk", [b"data: {\n\n", b"event: message_start\ndata: nope\n\n", b"\xff\xfe\n\n"])
def test_malformed_events_fail_the_run_with_a_parse_error(name: str, junk: bytes) -> None:
    """If a server sends what is no JSON, then the run fails and says so, or the junk is no event at all."""
    result = Played(name, [text("some "), raw(junk), text("more"), end()]).run()
    if result.settle["status"] == "completed":
        assert result.output["content"] == "some more"
    else:
        assert result.error["code"] == "provider_error"
        assert result.error["provider_error"]["kind"] == "parse_error"


def test_an_error_in_the_middle_of_a_stream_is_the_run_s(name: str) -> None:
    """If the API says in the middle of an answer that it failed, then its code and words are the run's."""
    error = {"type": "overloaded_error", "code": "server_error", "message": "too many"}
    event = b"event: error\ndata: " + json.dumps(
        {"type": "error", "error": error, "code": "server_error", "message": "too many",
         "sequence_number": 9, "param": None}).encode() + b"\n\n"
    result = Played(name, [text("some"), raw(event), end()]).run()
    assert result.error["code"] == "provider_unavailable"
    assert "too many" in result.error["message"]


def test_a_silent_server_is_a_timeout(name: str) -> None:
    """If a server says nothing for timeout_s, then the run fails with provider_timeout."""
    result = Played(name, [text("a"), hang()]).run(timeout_s=0.1)
    assert result.error["code"] in ("provider_timeout", "provider_unavailable")
    result = Played(name, [hang()]).run(timeout_s=0.1, retries=0)
    assert result.error["code"] == "provider_timeout"


def test_an_unreachable_server_is_named(name: str) -> None:
    """If nobody listens at base_url, then the run fails with provider_unavailable and names it."""
    settings, _ = APIS[name]
    result = run({**settings, "model": "m", "base_url": "http://127.0.0.1:9", "retries": 1}, "hi")
    assert result.error["code"] == "provider_unavailable"
    assert "http://127.0.0.1:9 cannot be reached" in result.error["message"]


# --- bad tables ---


def problem(table: dict[str, Any]) -> tuple[str, Result]:
    async def play(bench: Bench) -> Any:
        result = await bench.result(bench.begin("agent", "hi"))
        return bench.registry.catalogue()[0]["problem"], result

    found: tuple[str, Result] = drive({"agent": table}, play)
    return found


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_a_missing_key_says_which_variable(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no key is there, then the agent's problem and its runs' error say which variable to set."""
    variable = f"{provider.upper()}_API_KEY"
    monkeypatch.delenv(variable)
    text_, result = problem({"provider": provider, "model": "m"})
    assert f"set {variable}" in text_
    assert result.error["code"] == "provider_authentication_failed"
    text_, _ = problem({"provider": provider, "model": "m", "api_key_env": "MY_OWN"})
    assert "set MY_OWN" in text_


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, 'needs model = "..."'),
        ({"modell": "x", "model": "m"}, "unknown key 'modell' (did you mean 'model'?)"),
        ({"api_key": KEY, "model": "m"}, "unknown key 'api_key' (did you mean 'api_key_env'?)"),
        ({"model": 3}, "model = 3: expected str"),
        ({"model": "m", "max_tokens": 0}, "max_tokens = 0: expected a number from 1"),
        ({"model": "m", "max_turns": True}, "max_turns = True: expected int"),
        ({"model": "m", "retries": -1}, "retries = -1: expected a number from 0"),
        ({"model": "m", "tools": ["nothing.py:here"]}, "no such file"),
        ({"model": "m", "mcp": ["files"]}, "no [mcp.files] in the config"),
        ({"provider": "anthropic", "model": "m", "thinking": 5}, "thinking = 5: expected false"),
        ({"provider": "anthropic", "model": "m", "thinking": 9_000}, "must be less than max_tokens"),
        ({"provider": "openai", "model": "m", "api": "chats"}, "expected chat or responses (did you mean"),
        ({"provider": "openais", "model": "m"}, "(did you mean 'openai'?)"),
    ],
)
def test_a_wrong_table_is_a_problem_with_its_name(table: dict[str, Any], said: str) -> None:
    """If a setting is wrong, then the agent's problem names it, and no secret."""
    found, result = problem({"provider": "openai", **table})
    assert said in found
    assert KEY not in str(found) + str(result)


def test_wrong_options_of_a_call_fail_the_run(name: str) -> None:
    """If provider_opts holds what the provider does not know, then the run fails and the nearest is named."""
    result = Played(name, GOOD).run(options={"provider_opts": {"modle": "x"}})
    assert result.error["code"] == "validation_error"
    assert "did you mean 'model'?" in result.error["message"]


@pytest.mark.parametrize("given", [{}, {"messages": []}, "", {"messages": [{"content": [{"type": "pdf"}]}]}])
def test_an_input_that_says_nothing_fails_the_run(name: str, given: Any) -> None:
    """If an input has neither prompt nor messages, or a block nobody knows, then nothing is asked."""
    played = Played(name, GOOD)
    assert played.run(given).error["code"] == "validation_error"
    assert played.requests == []


# --- streams cut and slow ---


def _whole(name: str) -> bytes:
    path = {"anthropic": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}[name]
    steps = [text("hé"), call("c1", "add", '{"a": 1, ', '"b": 2}'), end("tool_use")]
    return b"".join(part for part in STREAMS[path](steps, "m") if isinstance(part, bytes))


class Torn:
    """Answers with a stream that is torn at every byte (0), or lost at the byte that the prompt says; to what
    its tool gave it says ``hello``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def server(self) -> Threaded:
        threaded = Threaded({})
        threaded.server.scripts = {"m": self.script}
        return threaded

    def script(self, body: dict[str, Any]) -> list[Step]:
        said = json.dumps(body)
        if "tool_result" in said or '"tool"' in said or "function_call_output" in said:
            return [text("hello"), end()]
        place, whole = int(said.partition("byte ")[2].partition('"')[0]), _whole(self.name)
        if place:
            return [("alone",), raw(whole[:place]), cut()]
        return [("alone",), *(raw(whole[n:n + 1]) for n in range(len(whole)))]


def torn(name: str, places: list[int], folder: Path) -> list[Result]:
    settings, base = APIS[name]
    (folder / "torn_tools.py").write_text(TOOLS)

    async def play(bench: Bench) -> list[Result]:
        running = [bench.begin("agent", f"byte {place}") for place in places]
        return [await bench.result(one) for one in running]

    with Torn(name).server() as server:
        table = {**settings, "model": "m", "base_url": server.url + base, "retries": 0,
                 "tools": [f"{folder}/torn_tools.py:add"]}
        results: list[Result] = drive({"agent": table}, play)
    return results


def test_a_stream_torn_at_every_byte_is_heard_whole(name: str, tmp_path: Path) -> None:
    """If a stream arrives byte by byte, then the answer is the same."""
    [result] = torn(name, [0], tmp_path)
    assert result.settle["status"] == "completed", result.error
    assert [d["tool_output"] for d in result.data("tool_call_completed")] == ["3"]
    assert result.data("message_received")[0]["content"] == "hé"


def test_a_stream_lost_at_any_byte_never_looks_well(name: str, tmp_path: Path) -> None:
    """If a connection is lost at any byte of an answer, then the run fails, or all of it was there."""
    for result in torn(name, list(range(1, len(_whole(name)), 43)), tmp_path):
        if result.settle["status"] == "completed":
            assert result.output["content"] == "hello"
            assert [d["tool_output"] for d in result.data("tool_call_completed")] == ["3"]
        else:
            assert result.error["code"] in ("provider_unavailable", "provider_error")
            assert "tool_call_started" not in result.types


# --- from one provider to another ---


@pytest.fixture
def spoken() -> Iterator[tuple[Message, ...]]:
    yield (
        Message(Role.USER, "add one and two"),
        Message(Role.ASSISTANT, None, "call_Z", "add", {"a": 1, "b": 2}),
        Message(Role.ASSISTANT, None, "call_Y", "add", {"a": 3, "b": 4}),
        Message(Role.TOOL, None, "call_Z", "add", None, "3"),
        Message(Role.TOOL, None, "call_Y", "add", None, {"error": "late"}, {"failed": True}),
        Message(Role.ASSISTANT, "it is three"),
    )


def test_a_past_with_tools_is_told_as_the_api_wants_it(
    name: str, spoken: tuple[Message, ...], tmp_path: Path
) -> None:
    """If a session called tools with another provider, then calls and results stand together, by id."""
    played = Played(name, GOOD, tmp_path)
    assert played.run("thanks", {"past": spoken}).settle["status"] == "completed"
    asked = played.requests[0]
    said = json.dumps(asked.get("messages") or asked["input"])
    for word in ("add one and two", "call_Z", "call_Y", "it is three", "thanks"):
        assert word in said
    if name == "anthropic":
        roles = [message["role"] for message in asked["messages"]]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
        assert asked["messages"][2]["content"][1]["is_error"] is True
    elif name == "chat":
        assert [m["role"] for m in asked["messages"]] == [
            "user", "assistant", "tool", "tool", "assistant", "user"]


def test_a_past_with_tools_is_text_for_an_agent_without(name: str, spoken: tuple[Message, ...]) -> None:
    """If the agent that goes on has no tools, then it is told old calls as text."""
    played = Played(name, GOOD)
    assert played.run("thanks", {"past": spoken}).settle["status"] == "completed"
    said = json.dumps(played.requests[0])
    assert "tool_use" not in said and "tool_calls" not in said and "function_call" not in said
    assert "[add gave: 3]" in said
