"""Events: types with codes that never change, and fragments that become whole maps by splicing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.events import (
    AGENT_EVENTS,
    EVENT_TYPES,
    EVENTS,
    FRAGMENT_PAIRS,
    RUN_TERMINAL_EVENT,
    SCANNED,
    TYPE_CODE,
    WARNINGS,
    EventType,
    FragmentEncoder,
    encode_fragment,
    encode_published,
    encode_stored,
    event_id,
    masked,
    shape_warnings,
    type_code,
)
from mesh.errors import InvalidArgument

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
maps = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])), scalars | st.lists(scalars), max_size=5
)


def test_the_codes_in_the_store_never_change() -> None:
    """If a type's code moved, then stored logs would tell another story."""
    assert len(EVENT_TYPES) == len(TYPE_CODE) == 33
    assert [
        TYPE_CODE[name]
        for name in ("session_created", "run_started", "message_sent", "tool_approval_denied")
    ] + [
        TYPE_CODE[name] for name in ("message_pinned", "driver_changed", "access_changed", "prompt_queued")
    ] == [0, 7, 12, 27, 29, 30, 31, 32]
    assert set(RUN_TERMINAL_EVENT.values()) <= set(EVENT_TYPES)
    assert [type_code(name) for name in EVENT_TYPES] == list(range(33))


@pytest.mark.parametrize("name", [None, 7, "", "run_begun", ["run_started"], b"run_started", "x" * 10_000])
def test_an_unknown_type_is_refused(name: Any) -> None:
    """If a type is not in the table, then invalid_event_type."""
    with pytest.raises(InvalidArgument) as caught:
        type_code(name)
    assert caught.value.code == "invalid_event_type"
    assert len(caught.value.message) < 200


def test_an_unknown_type_is_refused_with_the_one_that_was_meant() -> None:
    """If a type is a slip of the finger, then the error names the nearest; far from all it names none."""
    with pytest.raises(InvalidArgument, match=r"'run_faild' \(did you mean 'run_failed'\?\)"):
        type_code("run_faild")
    with pytest.raises(InvalidArgument, match=r"unknown event type 'zzz'\Z"):
        type_code("zzz")


def test_event_ids_are_the_known_ones() -> None:
    """If the id of an event changed, then a reader's memory of it would be worthless."""
    assert event_id("s1", 1) == "evt_f1a4b4b4d3b756eb12b24d8b9cc5718b"
    assert len({event_id("s1", seq) for seq in range(1_000)} | {event_id("s11", 1)}) == 1_001


@given(
    st.sampled_from(EVENT_TYPES), maps, maps, st.none() | st.text(st.characters(exclude_categories=["Cs"]))
)
def test_a_fragment_becomes_the_stored_and_the_published_map(
    event_type: str, data: dict[str, Any], metadata: dict[str, Any], text: str | None
) -> None:
    """If a fragment gets its header and tail, then it is one msgpack map with every field in it."""
    fragment = encode_fragment(
        event_type, "s1", text, data, ts=1.5, provider=text, metadata=metadata, correlation_id=text
    )
    warnings = shape_warnings(event_type, data)
    stored = wire.unpack(encode_stored(fragment, "s1", 7))
    assert stored == {
        "ts": 1.5,
        "type": event_type,
        "session_id": "s1",
        "run_id": text,
        "data": data,
        "metadata": {**metadata, WARNINGS: warnings} if warnings else metadata,
        "provider": text,
        "correlation_id": text,
        "schema_version": 1,
        "id": event_id("s1", 7),
        "seq": 7,
    }
    stamp = (
        wire.pack("partition")
        + wire.pack(3)
        + wire.pack("epoch")
        + wire.pack(9)
        + wire.pack("node")
        + wire.pack("n")
    )
    published = wire.unpack(encode_published(fragment, "s1", 7, 70_000, stamp, 3))
    assert published == stored | {"pos": 70_000, "partition": 3, "epoch": 9, "node": "n"}
    assert len(wire.unpack(wire.map_header(FRAGMENT_PAIRS) + fragment)) == FRAGMENT_PAIRS


def test_a_masked_event_says_that_it_happened_alone() -> None:
    """If a session does not open, then data, metadata and the correlation id of its events are left out."""
    fragment = encode_fragment("run_started", "s", "r", {"secret": 1}, ts=1.0, provider="echo",
                               metadata={"secret": 2}, correlation_id="secret")
    told = wire.unpack(encode_stored(masked(fragment), "s", 7))
    assert "secret" not in repr(told) and told["correlation_id"] is None
    assert (told["type"], told["ts"], told["run_id"], told["seq"]) == ("run_started", 1.0, "r", 7)


def test_missing_parts_of_a_fragment_have_defaults() -> None:
    """If an author gives only what is required, then metadata is an empty map and the rest is nil."""
    stored = wire.unpack(encode_stored(encode_fragment("run_started", "s", None, {}, ts=0.0), "s", 1))
    assert (stored["metadata"], stored["provider"], stored["correlation_id"], stored["run_id"]) == (
        {},
        None,
        None,
        None,
    )


GOOD: dict[str, dict[str, Any]] = {
    "message_received": {"content": "hi", "role": "assistant"},
    "message_streamed": {"content": "hi"},
    "tool_call_started": {"tool_name": "grep"},
    "tool_call_completed": {"tool_name": "grep"},
    "tool_call_failed": {"tool_name": "grep"},
    "token_usage_updated": {"input_tokens": 1, "output_tokens": 2},
    "run_completed": {"stop_reason": "end_turn"},
    "error_occurred": {"error_message": "m"},
    "policy_violation": {"policy": "p", "kind": "tool_denied"},
    "tool_approval_requested": {"tool_name": "bash", "policy_name": "p"},
    "tool_approval_granted": {"tool_name": "bash"},
    "tool_approval_denied": {"tool_name": "bash"},
    "transcript_compacted": {"summary": "s", "up_to": 3},
    "message_pinned": {"seq": 3},
    "driver_changed": {"reason": "claimed"},
    "prompt_queued": {"content": "hi", "queue": "steering"},
}


@pytest.mark.parametrize("row", EVENTS, ids=lambda row: row.name)
def test_the_shapes_are_the_promised_ones(row: EventType) -> None:
    """If an event holds what its type promises, then there is no warning; else one for each field."""
    good = GOOD.get(row.name, {})
    assert set(row.shape) == set(good)
    assert shape_warnings(row.name, {**good, "more": object()}) == []
    assert shape_warnings(row.name, {}) == [f"{key} is missing" for key in good]
    wrong = shape_warnings(row.name, dict.fromkeys(good, True))
    assert wrong == [f"{key} must be {type(value).__name__}, not bool" for key, value in good.items()]


def test_the_groups_hold_as_many_types_as_promised() -> None:
    """If a type changed its group, then who reads by group reads something else."""
    groups = Counter(row.group for row in EVENTS)
    assert groups == {
        "session": 9, "run": 5, "message": 4, "tool": 3, "error": 2, "usage": 2, "workspace": 2, "policy": 1,
        "approval": 3, "transcript": 2,
    }  # fmt: skip


def test_what_an_agent_writes_is_searched_for_secrets() -> None:
    """If an agent's events could pass unsearched, then a secret would leave through them."""
    assert AGENT_EVENTS <= SCANNED
    assert not AGENT_EVENTS & {"session_created", "run_started", "run_completed", "message_sent"}


@given(st.sampled_from(EVENT_TYPES), maps, maps)
def test_the_encoder_of_a_run_writes_the_same_as_the_plain_one(
    event_type: str, data: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """If the faster encoder wrote other bytes, then an event would depend on who wrote it."""
    faster = FragmentEncoder("s1", "run_1", "python", "corr").encode(event_type, data, 1.5, metadata)
    assert faster == encode_fragment(
        event_type, "s1", "run_1", data, ts=1.5, provider="python", metadata=metadata, correlation_id="corr"
    )


@pytest.mark.parametrize("correlation_id", [None, "corr"])
def test_a_piece_of_text_is_the_event_that_the_plain_encoder_writes(correlation_id: str | None) -> None:
    """If a piece is of any length, in bytes or in letters, then it reads as the event it stands for."""
    encoder = FragmentEncoder("s1", "run_1", "python", correlation_id)
    edge = 65_536 - len(encoder.piece("", 1.5))
    for size in (0, 1, 31, 32, 255, 256, *range(edge - 8, edge + 16), 70_000):
        for letter in ("a", "\u00e4", "\u20ac", "\U0001f600"):
            text = letter * (size // len(letter.encode()))
            fragment = encoder.encode("message_streamed", {"content": text}, 1.5)
            assert wire.unpack(encoder.piece(text, 1.5)) == [TYPE_CODE["message_streamed"], 1.5, fragment]
