"""Events: 28 types with codes that never change, and fragments that become whole maps by splicing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.events import (
    EVENT_TYPES,
    FRAGMENT_PAIRS,
    RUN_TERMINAL_EVENT,
    TYPE_CODE,
    encode_fragment,
    encode_published,
    encode_stored,
    event_id,
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
    assert len(EVENT_TYPES) == len(TYPE_CODE) == 28
    assert [
        TYPE_CODE[name] for name in ("session_created", "run_started", "message_sent", "tool_approval_denied")
    ] == [
        0,
        7,
        12,
        27,
    ]
    assert set(RUN_TERMINAL_EVENT.values()) <= set(EVENT_TYPES)
    assert [type_code(name) for name in EVENT_TYPES] == list(range(28))


@pytest.mark.parametrize("name", [None, 7, "", "run_begun", ["run_started"], b"run_started", "x" * 10_000])
def test_an_unknown_type_is_refused(name: Any) -> None:
    """If a type is not one of the 28, then invalid_event_type."""
    with pytest.raises(InvalidArgument) as caught:
        type_code(name)
    assert caught.value.code == "invalid_event_type"
    assert len(caught.value.message) < 200


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
    stored = wire.unpack(encode_stored(fragment, "s1", 7))
    assert stored == {
        "ts": 1.5,
        "type": event_type,
        "session_id": "s1",
        "run_id": text,
        "data": data,
        "metadata": metadata,
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


def test_missing_parts_of_a_fragment_have_defaults() -> None:
    """If an author gives only what is required, then metadata is an empty map and the rest is nil."""
    stored = wire.unpack(encode_stored(encode_fragment("run_started", "s", None, {}, ts=0.0), "s", 1))
    assert (stored["metadata"], stored["provider"], stored["correlation_id"], stored["run_id"]) == (
        {},
        None,
        None,
        None,
    )
