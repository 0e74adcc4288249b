"""The session's status machine, and what may be said when one is created."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import session as sessions
from mesh.core.records import SessionStatus
from mesh.core.session import CLOSED, VERBS, SessionState
from mesh.errors import InvalidArgument, InvalidState, MeshError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = {
    "agent_id": "a",
    "context": {"x": 1},
    "metadata": {"y": [1]},
    "tags": ["t"],
    "parent_session_id": "p",
}


def new(**fields: Any) -> SessionState:
    return sessions.new_session(1, "s1", "echo", fields, 5.0)


@pytest.mark.parametrize("status", list(SessionStatus))
@pytest.mark.parametrize("verb", list(VERBS))
def test_a_step_goes_where_the_table_says_or_is_refused(status: SessionStatus, verb: str) -> None:
    """If the status allows the verb, then it leads to its target; else nothing is made and the code says
    why."""
    allowed, target, _ = VERBS[verb]
    state = sessions.new_session(1, "s1", "echo", None, 5.0)
    state = SessionState(
        *(status if f == "status" else getattr(state, f) for f in SessionState.__struct_fields__)
    )
    if status in allowed:
        after = sessions.step(state, verb, 9.0)
        assert (after.status, after.updated_at, after.created_at) == (target, 9.0, 5.0)
        return
    with pytest.raises(InvalidState) as refused:
        sessions.step(state, verb, 9.0)
    assert refused.value.code == "invalid_transition"
    assert refused.value.details == {"status": status.value, "verb": verb, "session_id": "s1"}


def test_nothing_leads_out_of_a_closed_status() -> None:
    """If a session is closed, then no verb is allowed."""
    assert all(not allowed & CLOSED for allowed, _, _ in VERBS.values())


@pytest.mark.parametrize(
    ("status", "code"),
    [("pending", "session_not_active"), ("paused", "session_paused"), ("completed", "session_closed"),
     ("cancelled", "session_closed"), ("failed", "session_closed"), ("active", None)],
)
def test_work_needs_an_active_session(status: str, code: str | None) -> None:
    """If the session is not active, then the refusal says what to do about it."""
    state = new()
    state = sessions.decode(
        sessions.encode(
            SessionState(
                n=1,
                id="s1",
                agent="echo",
                agent_id="echo",
                status=SessionStatus(status),
                created_at=state.created_at,
                updated_at=0.0,
            )
        )
    )
    if code is None:
        sessions.require_active(state)
        return
    with pytest.raises(InvalidState) as refused:
        sessions.require_active(state)
    assert refused.value.code == code


def test_all_fields_are_kept() -> None:
    """If every field is given, then the session carries it, also through the store."""
    state = new(**FIELDS)
    assert sessions.decode(sessions.encode(state)) == state
    said = sessions.to_wire(state, None)
    assert {k: said[k] for k in FIELDS} == {**FIELDS, "tags": ("t",)} and said["handle"] is None


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tags": "abc"}, "tags"),
        ({"tags": ["a"] * 65}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"context": []}, "context"),
        ({"context": {1: 2}}, "context"),
        ({"metadata": "x"}, "metadata"),
        ({"agent_id": ""}, "agent_id"),
        ({"agent_id": 5}, "agent_id"),
        ({"nope": 1}, "nope"),
        ({"parent_session_id": ".."}, "parent_session_id"),
        ({"parent_session_id": "a/b"}, "parent_session_id"),
        ({"parent_session_id": 7}, "parent_session_id"),
        ({3: 1}, "3"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[Any, Any], word: str) -> None:
    """If a field is wrong, then the refusal names it."""
    with pytest.raises(InvalidArgument) as refused:
        sessions.new_session(1, "s1", "echo", fields, 5.0)
    assert word in refused.value.message


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "a/b", "a b", "a\n", "a\0", "é", "x" * 129, 5, None, b"a", ["a"], {}]
)
def test_a_session_id_is_a_plain_word(bad: Any) -> None:
    """If an id could be a path or a topic of its own, then it is refused as invalid_id."""
    with pytest.raises(InvalidArgument) as refused:
        sessions.new_session(1, bad, "echo", None, 5.0)
    assert refused.value.code == "invalid_id"


def test_data_nested_too_deeply_is_refused() -> None:
    """If a field is nested deeper than the wire's limit, then it is limit_exceeded."""
    deep: Any = {}
    for _ in range(100):
        deep = {"d": deep}
    with pytest.raises(InvalidArgument) as refused:
        new(context=deep)
    assert refused.value.code == "limit_exceeded"


@given(agent=JSON, fields=JSON)
def test_whatever_is_said_gives_a_session_that_can_be_read_back_or_a_mesh_error(
    agent: Any, fields: Any
) -> None:
    """If the arguments are anything that msgpack carries, then the result is storable or a typed refusal."""
    try:
        state = sessions.new_session(1, "s1", agent, fields, 5.0)
    except MeshError:
        return
    assert repr(sessions.decode(sessions.encode(state))) == repr(state)


@given(context=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_context_survives_the_store(context: dict[str, Any]) -> None:
    """If a context is accepted, then what is read back is the same."""
    state = new(context=context)
    assert repr(sessions.decode(sessions.encode(state)).context) == repr(context)


def test_a_handle_names_the_incarnation() -> None:
    """If a session is live, then its handle holds place, pid and incarnation; else there is none."""
    state = SessionState(
        n=1, id="s", agent="a", agent_id="a", status=SessionStatus.ACTIVE, created_at=0, updated_at=0
    )
    assert sessions.handle_map(state, 5) is None
    live = SessionState(
        n=1,
        id="s",
        agent="a",
        agent_id="a",
        status=SessionStatus.ACTIVE,
        created_at=0,
        updated_at=0,
        incarnation=3,
        runner=0,
        runner_incarnation=9,
    )
    assert sessions.handle_map(live, 5) == {"session_id": "s", "runner": 0, "pid": 5, "incarnation": 3}
