"""Server-sent events: however the bytes arrive, the events are the same; junk is an error."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.providers import sse
from mesh.providers.sse import Events

MAPS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=8)


def heard(chunks: list[bytes]) -> list[dict[str, Any]]:
    events = Events()
    return [event for chunk in chunks for event in events.feed(chunk)]


@given(MAPS, st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_events_do_not_depend_on_how_their_bytes_arrive(
    maps: list[dict[str, str]], line: str, cuts: list[int], named: bool
) -> None:
    """If a stream is cut anywhere, with either kind of line ends, then its events are the same."""
    head = f"event: x{line}: a comment{line}" if named else ""
    raw = "".join(f"{head}data: {json.dumps(m, ensure_ascii=False)}{line}{line}" for m in maps).encode()
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    assert heard([raw[a:b] for a, b in itertools.pairwise(edges)]) == maps
    assert heard([raw[n:n + 1] for n in range(len(raw))]) == maps


def test_data_of_several_lines_is_joined_and_the_end_is_no_event() -> None:
    """If an event has two data lines, then they are one; [DONE], pings and half an event are none."""
    raw = b'data: {"a":\ndata: 1}\n\n: ping\n\ndata: [DONE]\n\ndata:{"b": 2}\n\ndata: {"c"'
    assert heard([raw]) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("junk", [b"data: {\n\n", b"data: [1]\n\n", b"data: \xff\n\n", b"data: 1\n\n"])
def test_what_is_no_json_object_is_an_error(junk: bytes) -> None:
    """If data is no JSON object, then the stream is refused with its beginning."""
    with pytest.raises(ValueError, match="no JSON"):
        heard([junk])


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an event never ends, then it is refused at its bound."""
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        heard([b"data: " + b"x" * 60, b"x" * 60])
