"""Lines of an export: what is written is read back, and what is no line is refused with its number."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.export import EVENT, HEADER, decode_line, encode_line
from mesh.errors import InvalidArgument

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text() | st.integers() | st.sampled_from(["$bytes", "$float", "$pairs"]), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text() | st.just("$bytes"), PLAIN, max_size=4), st.sampled_from([HEADER, EVENT]))
def test_what_is_written_is_read_back(value: dict[str, Any], kind: str) -> None:
    """If any plain data is written as a line, then it is one line of JSON and reads back equal."""
    line = encode_line(kind, value)
    assert "\n" not in line and json.loads(line)
    assert decode_line(line, 1) == (kind, value)


@pytest.mark.parametrize("line", [
    "", "{", "[]", "5", '{"event": 5}', '{"other": {}}', '{"event": {}, "run": {}}',
    '{"mesh_export": 2, "session": {}}',
    '{"mesh_export": 1}', '{"event": {"a": {"$bytes": "?"}}}', '{"event": {"a": {"$pairs": 5}}}',
    '{"event": {"a": {"$float": "x"}}}', "[" * 10_000,
])
def test_what_is_no_line_is_refused_with_its_number(line: str) -> None:
    """If a line is broken, of another version or of an unknown kind, then the error names it."""
    with pytest.raises(InvalidArgument, match="line 7"):
        decode_line(line, 7)
