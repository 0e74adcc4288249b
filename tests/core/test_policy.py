"""Policies: how they are read, merged, checked before a run, and asked about a call."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.judging import judge
from mesh.core.policy import LIMITS, Action, Policy, merged, preflight, provider_options
from mesh.errors import InvalidArgument, RunError

TOOLS = ("bash", "read", "write")
RULES = st.tuples(st.sampled_from(("allow", "deny", "ask")), st.lists(st.sampled_from(TOOLS), max_size=3))
POLICIES = st.fixed_dictionaries({
    "limits": st.dictionaries(st.sampled_from(sorted(LIMITS)), st.integers(0, 9), max_size=3),
    "tool_rules": st.lists(RULES, max_size=3),
    "on_violation": st.sampled_from([None, *Action]),
}).map(Policy.from_map)
RANK = {"allow": 0, "ask": 1, "deny": 2}


def policy(**fields: Any) -> Policy:
    return Policy.from_map(fields)


@pytest.mark.parametrize("fields", [
    {"name": ""}, {"name": 3}, {"limit": {}}, {"limits": 3}, {"limits": {"max_tokens": 1}},
    {"limits": {"max_total_tokens": -1}}, {"limits": {"max_total_tokens": 1.5}},
    {"limits": {"max_total_tokens": True}}, {"limits": {"max_cost_usd": float("nan")}},
    {"limits": {"max_cost_usd": float("inf")}}, {"limits": [["max_tool_calls"]]},
    {"limits": [{"kind": "max_tool_calls", "most": 1, "scope": "tag:"}]}, {"tool_rules": "bash"},
    {"tool_rules": [["permit", ["bash"]]]}, {"tool_rules": [["deny", "bash"]]},
    {"tool_rules": [["deny", [{"tool": ""}]]]},
    {"tool_rules": [["deny", [{"tool": "x", "args": {"a": 1}}]]]},
    {"on_violation": "explode"}, {"metadata": []},
])
def test_policy_with_a_wrong_field_is_refused(fields: dict[str, Any]) -> None:
    """If a field has a wrong value, then ``validation_error`` names it and there is no policy."""
    with pytest.raises(InvalidArgument) as caught:
        Policy.from_map(fields)
    assert caught.value.code == "validation_error"


def test_policy_survives_a_round_trip_through_its_map() -> None:
    """If a policy is written as a map and read again, then it is equal."""
    written = policy(
        name="p", limits=[["max_cost_usd", 1], {"kind": "max_tool_calls", "most": 3, "scope": "session"}],
        tool_rules=[["allow", ["read", {"tool": "bash", "args": {"command": ["git *"]}}]]],
        on_violation="pause",
    )
    assert Policy.from_map(written.to_map()) == written


def test_tools_that_are_no_texts_or_empty_are_dropped_and_doubles_too() -> None:
    """If a list of tools holds other things, then only its names are kept, each once."""
    assert policy(tool_rules=[["deny", ["a", "", None, 3, "a"]]]).rules[0].plain == ("a",)


@given(st.lists(POLICIES, min_size=1, max_size=4), st.sampled_from(TOOLS))
def test_no_layer_loosens_what_another_forbids(layers: list[Policy], tool: str) -> None:
    """If policies are merged, then a call is judged at least as strictly as by each of them, limits too."""
    whole = merged(layers)
    for layer in layers:
        assert RANK[judge(whole, tool, {}).effect] >= RANK[judge(layer, tool, {}).effect]
        for limit in layer.limits:
            assert min(x.most for x in whole.limits if x.kind == limit.kind) <= limit.most
        assert list(Action).index(whole.action) >= list(Action).index(layer.action)


def test_merge_joins_names_once_and_metadata() -> None:
    """If layers have names and metadata, then the merged policy shows them, each name once."""
    layers = [policy(name="a", metadata={"x": 1}), policy(name="b", metadata={"y": 2}), policy(name="a")]
    found = merged(layers)
    assert (found.name, found.metadata) == ("a + b", {"x": 1, "y": 2})


def test_empty_stack_is_the_default_policy() -> None:
    """If there is no layer, then nothing is limited."""
    assert merged([]) == Policy()


@pytest.mark.parametrize(("fields", "check"), [
    ({"tool_rules": [["allow", []]]}, "empty_allow_list"),
    ({"limits": {"max_total_tokens": 0}}, "zero_budget"),
    ({"limits": {"max_tool_calls": 0}}, "zero_budget"),
    ({"tool_rules": [["allow", ["Bash", "read"]], ["deny", ["bash"]]]}, "contradictory_rules"),
])
def test_policy_under_which_nothing_can_run_is_refused_before(fields: dict[str, Any], check: str) -> None:
    """If a policy leaves nothing to do, then ``policy_violation`` says which check failed."""
    with pytest.raises(RunError) as caught:
        preflight(policy(**fields))
    assert (caught.value.code, caught.value.details["check"]) == ("policy_violation", check)


@pytest.mark.parametrize("kind", ["max_duration_ms", "max_cost_usd"])
def test_zero_of_what_may_be_free_passes(kind: str) -> None:
    """If no time or no money is allowed, then the run may start: it may need none."""
    preflight(policy(limits={kind: 0}))


@pytest.mark.parametrize(("rules", "options"), [
    ([["allow", ["a", "b", "c"]], ["allow", ["a", "b"]], ["deny", ["b"]]], {"allowed_tools": ["a"]}),
    ([["deny", ["x"]]], {"denied_tools": ["x"]}),
    ([], {}),
])
def test_e09_rules_are_told_to_a_provider_that_can_enforce_them(rules: Any, options: dict[str, Any]) -> None:
    """If a provider enforces rules itself, then it is told the intersection of what is allowed."""
    assert provider_options(policy(tool_rules=rules)) == options


def test_e09_tokens_of_the_run_are_told_to_the_provider() -> None:
    """If tokens are limited, then the provider is told the limit of the run."""
    assert provider_options(policy(limits={"max_total_tokens": 4000})) == {"max_tokens": 4000}


GIT = {"tool": "bash", "args": {"command": ["git *", "ls"]}}


@pytest.mark.parametrize(("rules", "tool", "args", "effect"), [
    ([["deny", ["bash"]]], "BASH", {}, "deny"),
    ([["allow", ["read"]]], "bash", {}, "deny"),
    ([["allow", ["mcp:*"]]], "mcp:files", {}, "allow"),
    ([["ask", ["bash"]]], "bash", {}, "ask"),
    ([["ask", ["bash"]], ["deny", ["bash"]]], "bash", {}, "deny"),
    ([["allow", [GIT]]], "bash", {"command": "git status"}, "allow"),
    ([["allow", [GIT]]], "bash", {"command": "rm -rf /"}, "deny"),
    ([["allow", [GIT]]], "bash", {"command": ["git", "status"]}, "deny"),
    ([["allow", [GIT]]], "bash", None, "deny"),
    ([["deny", [GIT]]], "bash", {"command": 7}, "deny"),
    ([["ask", [GIT]]], "bash", "git", "ask"),
    ([["deny", [GIT]]], "bash", {"command": "rm"}, "allow"),
    ([["allow", [GIT]], ["allow", ["bash"]]], "bash", {"command": "rm"}, "deny"),
])
def test_call_is_judged_by_all_rules_and_in_doubt_no(rules: Any, tool: str, args: Any, effect: str) -> None:
    """If rules are about a call, then the strictest holds, and arguments of a wrong shape loosen nothing."""
    assert judge(policy(tool_rules=rules), tool, args).effect == effect


EXAMPLES = Path(__file__).parents[2] / "configs" / "policies"


@pytest.mark.parametrize(("command", "effect"), [
    ("git log -3", "allow"), ("cat README.md", "allow"), ("rm -rf x", "deny"), ("ls; rm x", "deny"),
    ("cat x > y", "deny"), ("ls `touch x`", "deny"), ("git log && touch x", "deny"), ("ls\ntouch x", "deny"),
])
def test_example_of_a_read_only_policy_allows_looking_alone(command: str, effect: str) -> None:
    """If the example is used as it stands, then commands that look are allowed and others are not."""
    example = Policy.from_map(tomllib.loads((EXAMPLES / "readonly.toml").read_text()))
    preflight(example)
    assert judge(example, "bash", {"command": command}).effect == effect


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.stem)
def test_example_of_a_policy_can_be_kept(file: Path) -> None:
    """If a file of configs/policies is given to a run, then it is accepted, and lets something happen."""
    example = Policy.from_map(tomllib.loads(file.read_text()))
    preflight(example)
    assert example.name == file.stem


def test_example_that_asks_is_about_tools_of_servers_too() -> None:
    """If a tool of an MCP server is called under ask.toml, then a human is asked: it is mcp__SERVER__TOOL."""
    example = Policy.from_map(tomllib.loads((EXAMPLES / "ask.toml").read_text()))
    assert judge(example, "mcp__mail__send", {"to": "x"}).effect == "ask"
