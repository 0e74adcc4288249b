"""Records: to_map and from_map are inverse, and what is wrong in a map is refused with its field."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mesh
from mesh.core import wire
from mesh.core.record import Record
from mesh.errors import CODES, InvalidArgument, MeshError, from_wire

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
filled = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts
data = st.recursive(
    leaves | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
maps = st.dictionaries(texts, data, max_size=3)
times = st.floats(0, 1e10)
counts = st.integers(0, 2**40)
handles = st.builds(mesh.Handle, filled, counts, counts, counts)
capabilities = st.builds(
    mesh.Capability,
    name=filled,
    type=st.sampled_from(mesh.CapabilityType),
    enabled=st.booleans(),
    description=st.none() | texts,
    config=maps,
    permissions=st.lists(texts, max_size=3).map(tuple),
)
messages = st.builds(
    mesh.Message,
    role=st.sampled_from(mesh.Role),
    content=st.none() | texts,
    tool_call_id=st.none() | texts,
    tool_name=st.none() | texts,
    tool_input=data,
    tool_output=data,
    metadata=maps,
)
events = st.builds(
    mesh.Event,
    id=filled,
    type=st.sampled_from(["message_sent", "run_failed"]),
    session_id=filled,
    run_id=st.none() | filled,
    seq=st.integers(1, 2**40),
    ts=times,
    data=maps,
    metadata=maps,
    provider=st.none() | texts,
    correlation_id=st.none() | texts,
    schema_version=st.integers(1, 9),
)
RECORDS: dict[str, st.SearchStrategy[Any]] = {
    "Session": st.builds(
        mesh.Session,
        id=filled,
        agent=filled,
        agent_id=filled,
        status=st.sampled_from(mesh.SessionStatus),
        parent_session_id=st.none() | texts,
        metadata=maps,
        context=maps,
        tags=st.lists(filled, max_size=3).map(tuple),
        created_at=times,
        updated_at=times,
        seq=counts,
        error=st.none() | maps,
        handle=st.none() | handles,
    ),
    "Run": st.builds(
        mesh.Run,
        id=filled,
        session_id=filled,
        status=st.sampled_from(mesh.RunStatus),
        input=data,
        output=st.none() | maps,
        error=st.none() | maps,
        metadata=maps,
        token_usage=maps,
        cost_usd=st.none() | times,
        attempt=counts,
        turn_count=counts,
        created_at=times,
        started_at=st.none() | times,
        ended_at=st.none() | times,
        provider=st.none() | texts,
        provider_metadata=maps,
    ),
    "Event": events,
    "Handle": handles,
    "Capability": capabilities,
    "Manifest": st.builds(
        mesh.Manifest,
        name=filled,
        version=filled,
        description=st.none() | texts,
        provider=st.none() | texts,
        capabilities=st.lists(capabilities, max_size=3).map(tuple),
        config=maps,
        metadata=maps,
    ),
    "Message": messages,
    "Transcript": st.builds(
        mesh.Transcript,
        session_id=filled,
        messages=st.lists(messages, max_size=3).map(tuple),
        last_sequence=st.none() | counts,
        last_timestamp=st.none() | times,
        metadata=maps,
    ),
    "ProviderError": st.builds(
        mesh.ProviderError,
        provider=filled,
        kind=filled,
        message=filled,
        exit_code=st.none() | st.integers(-255, 255),
        stderr=st.none() | texts,
        truncated=st.none() | st.just(True),
    ),
}


@pytest.mark.parametrize("name", RECORDS)
@given(drawn=st.data())
def test_a_record_survives_its_map(name: str, drawn: st.DataObject) -> None:
    """If a record becomes a map and travels, then the same record is read from it."""
    record = drawn.draw(RECORDS[name])
    values = record.to_map()
    assert set(values) == set(type(record).__struct_fields__)
    assert type(record).from_map(values) == record
    assert type(record).from_map(wire.unpack(wire.pack(values))) == record
    assert type(record).from_map({**values, "of a newer node": 1}) == record
    json.loads(record.to_json())


#: What no field takes, whatever its type, unless it takes everything.
WRONG = [
    object(),
    {1, 2},
    1j,
    b"\xff",
    ["x", object()],
    {1: object()},
    "",
    -1,
    True,
    3.5,
    "x",
    [1],
    {"a": 1},
    None,
]
ANYTHING = {("Run", "input"), ("Message", "tool_input"), ("Message", "tool_output")}


@pytest.mark.parametrize("name", RECORDS)
@given(drawn=st.data())
def test_wrong_types_in_every_field_are_refused_or_read(name: str, drawn: st.DataObject) -> None:
    """If a field holds anything, then the record is read as it is, or a typed error names the field."""
    record = drawn.draw(RECORDS[name])
    field = drawn.draw(st.sampled_from(type(record).__struct_fields__))
    values = {**record.to_map(), field: drawn.draw(st.sampled_from(WRONG))}
    try:
        read = type(record).from_map(values)
    except InvalidArgument as error:
        assert error.code in {"validation_error", *type(record).REFUSALS.values(), "invalid_event_type"}
        assert field in error.message or error.code == "invalid_event_type"
    else:
        value = getattr(read, field)
        value = list(value) if isinstance(value, tuple) else value
        assert value == values[field] or (name, field) in ANYTHING


@pytest.mark.parametrize("name", RECORDS)
def test_each_required_field_is_required(name: str) -> None:
    """If a required field is missing, then validation_error names it."""
    record: type[Record] = getattr(mesh, name)
    record.from_map(GOOD[name])
    for field in msgspec.structs.fields(record):
        rest = {key: value for key, value in GOOD[name].items() if key != field.name}
        if field.required:
            with pytest.raises(InvalidArgument, match=field.name) as caught:
                record.from_map(rest)
            assert caught.value.code == "validation_error"


GOOD: dict[str, dict[str, Any]] = {
    "Session": {"id": "s", "agent": "a", "agent_id": "a", "status": "active"},
    "Run": {"id": "r", "session_id": "s", "status": "pending"},
    "Event": {
        "id": "e",
        "type": "message_sent",
        "session_id": "s",
        "run_id": None,
        "seq": 1,
        "ts": 1,
        "schema_version": 1,
    },
    "Handle": {"session_id": "s", "runner": 0, "pid": 1, "incarnation": 1},
    "Capability": {"name": "bash", "type": "tool"},
    "Manifest": {"name": "m", "version": "not semver"},
    "Message": {"role": "user"},
    "Transcript": {"session_id": "s"},
    "ProviderError": {"provider": "amp", "kind": "timeout", "message": "m"},
}


@pytest.mark.parametrize(
    ("record", "field", "value", "code"),
    [
        ("Session", "status", "dead", "invalid_status"),
        ("Session", "agent_id", "", "validation_error"),
        ("Session", "tags", "pinned", "validation_error"),
        ("Run", "status", "begun", "invalid_status"),
        ("Run", "turn_count", -1, "validation_error"),
        ("Event", "type", "run_begun", "invalid_event_type"),
        ("Event", "seq", 0, "validation_error"),
        ("Event", "schema_version", 0, "validation_error"),
        ("Event", "schema_version", "1", "validation_error"),
        ("Event", "data", [1], "validation_error"),
        ("Event", "session_id", "", "validation_error"),
        ("Event", "ts", "2026-11-21T12:00:00Z", "validation_error"),
        ("Capability", "type", "magic", "invalid_capability_type"),
        ("Manifest", "capabilities", [{"name": "a", "type": "magic"}], "invalid_capability_type"),
        ("Manifest", "capabilities", [{"name": "a", "type": "tool"}, {}], "validation_error"),
        ("Manifest", "version", None, "validation_error"),
        ("Message", "role", "robot", "validation_error"),
    ],
)
def test_wrong_values_have_their_codes(record: str, field: str, value: Any, code: str) -> None:
    """If a field has a rule, then its violation has that rule's code, and the place is named."""
    with pytest.raises(InvalidArgument) as caught:
        getattr(mesh, record).from_map({**GOOD[record], field: value})
    assert caught.value.code == code


def test_an_event_without_its_schema_is_refused() -> None:
    """If an event does not say by which schema it is to be read, then it is not guessed."""
    with pytest.raises(InvalidArgument, match="schema_version"):
        mesh.Event.from_map({k: v for k, v in GOOD["Event"].items() if k != "schema_version"})


@pytest.mark.parametrize("values", [None, [], "x", 7, [("id", "s")]])
def test_what_is_no_map_is_refused(values: Any) -> None:
    """If something else than a map is read, then validation_error."""
    with pytest.raises(InvalidArgument, match="is read from a map"):
        mesh.Session.from_map(values)


def test_whole_numbers_become_floats_where_floats_belong() -> None:
    """If a cost or a time is a whole number, then it is read as a float."""
    run = mesh.Run.from_map({**GOOD["Run"], "cost_usd": 2, "created_at": 5})
    assert (type(run.cost_usd), type(run.created_at)) == (float, float)


def test_times_are_seen_as_datetimes_too() -> None:
    """If a user wants a datetime, then it is beside the number, aware, in UTC."""
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    ts = noon.timestamp()
    event = mesh.Event.from_map({**GOOD["Event"], "ts": ts})
    session = mesh.Session.from_map({**GOOD["Session"], "created_at": ts, "updated_at": ts})
    run = mesh.Run.from_map({**GOOD["Run"], "created_at": ts, "ended_at": ts})
    assert [event.time, session.created, session.updated, run.created, run.ended] == [noon] * 5
    assert run.started is None


def test_a_datetime_in_a_record_s_data_is_iso_text_in_its_map() -> None:
    """If a user builds a record with values of Python's own, then its map holds their plain form."""
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    event = mesh.Event("e", "message_sent", "s", None, 1, 1.0, {"at": noon, "all": {3}, "of": (b"\xff",)})
    assert event.to_map()["data"] == {"at": "2026-11-21T12:00:00+00:00", "all": [3], "of": [b"\xff"]}
    assert json.loads(event.to_json())["data"]["of"] == ["/w=="]


# --- errors ---


@pytest.mark.parametrize("code", CODES)
def test_an_error_survives_its_map(code: str) -> None:
    """If an error of any code becomes a map, then the same error is read from it, on the wire too."""
    error = from_wire(code, "m", {"a": [1]}, {"provider": "amp", "kind": "timeout", "message": "m"})
    values = error.to_map()
    assert (values["category"], values["retryable"]) == (CODES[code][1], CODES[code][2])
    pickled = pickle.loads(pickle.dumps(error))
    for read in (MeshError.from_map(values), MeshError.from_map(error.to_wire()), pickled):
        assert type(read) is type(error) is CODES[code][0]
        assert read.to_map() == values
    assert str(error) == f"[{code}] m"


@pytest.mark.parametrize(
    "change",
    [
        {"code": None},
        {"code": "no_such_code"},
        {"code": ["timeout"]},
        {"message": None},
        {"message": ""},
        {"message": 7},
        {"details": [1]},
        {"details": ""},
        {"provider_error": "x"},
        {"provider_error": 0},
    ],
)
def test_a_wrong_error_map_is_refused(change: dict[str, Any]) -> None:
    """If an error's map has an unknown code, no message or details that are no map, then validation_error."""
    with pytest.raises(InvalidArgument) as caught:
        MeshError.from_map({"code": "timeout", "message": "m"} | change)
    assert caught.value.code == "validation_error"


SPEC = {
    "validation": "validation_error invalid_input missing_required_field invalid_format",
    "state": "invalid_status invalid_transition invalid_event_type invalid_capability_type "
    "missing_required_capability stream_closed context_mismatch invalid_cursor session_mismatch run_mismatch",
    "resource": "not_found session_not_found run_not_found capability_not_found already_exists "
    "duplicate_capability",
    "provider": "provider_error provider_unavailable provider_rate_limited provider_timeout "
    "provider_authentication_failed provider_quota_exceeded",
    "storage": "storage_error storage_connection_failed dependency_not_available migration_required "
    "storage_write_failed storage_read_failed query_error maintenance_error persistence_error",
    "runtime": "timeout cancelled policy_violation internal_error unknown_error",
    "concurrency": "max_sessions_exceeded max_runs_exceeded capability_not_supported invalid_operation",
    "tool": "tool_error tool_not_found tool_execution_failed tool_permission_denied "
    "command_not_found command_timeout command_failed",
}
RETRYABLE = {"provider_unavailable", "provider_rate_limited", "provider_timeout"}
RETRYABLE |= {"storage_connection_failed", "timeout"}
#: Full here is full for a moment: the error says when to try again.
RETRYABLE_HERE = {"max_sessions_exceeded", "max_runs_exceeded"}


def test_each_code_of_the_taxonomy_is_listed() -> None:
    """If a code of the references, or of their six unlisted ones, were missing, then it could not be read."""
    for category, codes in SPEC.items():
        for code in codes.split():
            error = from_wire(code, "m")
            assert (error.category, error.retryable) == (category, code in RETRYABLE | RETRYABLE_HERE), code
    assert from_wire("of_a_newer_node", "m").category == "unknown"
    assert sum(len(codes.split()) for codes in SPEC.values()) == 51
