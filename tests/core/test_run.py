"""The run's status machine, its options, its messages, and results made of anything."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import account
from mesh.core import run as runs
from mesh.core.prices import Prices
from mesh.core.records import TERMINAL, RunStatus
from mesh.core.run import RunState
from mesh.errors import InvalidArgument, InvalidState, MeshError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)
LEGAL = {
    ("pending", "queued"),
    ("pending", "cancelled"),
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "waiting_approval"),
    ("running", "queued"),
    ("waiting_approval", "running"),
    ("running", "paused"),
    ("paused", "running"),
    ("queued", "completed"),
    *((a, b.value) for a in ("running", "waiting_approval", "paused") for b in TERMINAL),
}


def made(**changes: Any) -> RunState:
    return RunState(
        **{
            "n": 1,
            "id": "r",
            "session_id": "s",
            "status": RunStatus.PENDING,
            "input": "x",
            "options": {},
            "created_at": 0.0,
            **changes,
        }
    )


@pytest.mark.parametrize("a", list(RunStatus))
@pytest.mark.parametrize("b", list(RunStatus))
def test_a_step_is_legal_or_refused(a: RunStatus, b: RunStatus) -> None:
    """If the table of the design has the step, then it is taken; any other is invalid_transition."""
    if (a.value, b.value) in LEGAL:
        assert runs.step(made(status=a), b).status == b
        return
    with pytest.raises(InvalidState) as refused:
        runs.step(made(status=a), b)
    assert refused.value.code == "invalid_transition"


def test_codes_below_terminal_are_not_terminal() -> None:
    """If a query asks for what is over by code, then the enumeration's order must say the same."""
    for status, code in runs.STATUS_CODE.items():
        assert (code >= runs.TERMINAL_CODE) == (status in TERMINAL)


@pytest.mark.parametrize(
    "options",
    [
        5,
        [],
        {"nope": 1},
        {"deadline_s": 0},
        {"deadline_s": -1},
        {"deadline_s": float("nan")},
        {"deadline_s": "1"},
        {"deadline_s": float("inf")},
        {"deadline_s": True},
        {"required_capabilities": "tool"},
        {"required_capabilities": [1]},
        {"required_capabilities": ["teleport"]},
        {"optional_capabilities": {"a": 1}},
    ],
)
def test_a_wrong_option_is_refused(options: Any) -> None:
    """If an option is wrong, then the run is refused, not started without it."""
    with pytest.raises(InvalidArgument):
        runs.checked_options(options)


def test_good_options_are_kept_and_empty_ones_left_out() -> None:
    """If options are right, then they are what was said without the Nones."""
    given_options = {"deadline_s": 2, "required_capabilities": ["tool"], "provider_opts": {"a": [1]}}
    assert runs.checked_options({**given_options, "optional_capabilities": None}) == given_options
    assert runs.checked_options(None) == {}


@pytest.mark.parametrize(
    ("run_input", "expected"),
    [
        ("hi", [("user", "hi")]),
        ({"prompt": "hi"}, [("user", "hi")]),
        ("", []),
        ({"prompt": ""}, []),
        ({"prompt": 5}, []),
        (5, []),
        (None, []),
        (
            {"messages": [{"role": "System", "content": "a"}, {"content": "b"}]},
            [("system", "a"), ("user", "b")],
        ),
        ({"messages": [{"content": ""}, "x", {"content": [1]}]}, [("user", "[1]")]),
    ],
)
def test_messages_of_an_input(run_input: Any, expected: list[tuple[str, str]]) -> None:
    """If an input holds messages or a prompt, then each becomes one message_sent."""
    assert [(m["role"], m["content"]) for m in runs.messages(run_input)] == expected


@given(options=JSON)
def test_options_of_anything_are_storable_or_refused(options: Any) -> None:
    """If options are anything that msgpack carries, then they can be stored or are a typed refusal."""
    try:
        checked = runs.checked_options(options)
    except MeshError:
        return
    run = made(options=checked)
    assert repr(runs.decode(runs.encode(run))) == repr(run)


@given(
    settle=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("output", "error", "token_usage", "cost_usd", "provider_metadata"), JSON)
    )
)
def test_a_result_of_anything_can_be_read_back(settle: dict[str, Any]) -> None:
    """If an agent's result is anything that msgpack carries, then the settled run can be read back."""
    run = msgspec.structs.replace(made(status=RunStatus.RUNNING), **account.settled(made(), settle, Prices()))
    runs.decode(runs.encode(run))


@given(run_input=JSON)
def test_messages_of_anything_are_texts(run_input: Any) -> None:
    """If an input is anything, then its messages are texts or there are none."""
    assert all(type(m["content"]) is str and type(m["role"]) is str for m in runs.messages(run_input))
