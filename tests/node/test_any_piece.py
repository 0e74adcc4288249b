"""Whatever an agent yields: an event, or a typed error; the run ends once, with a log that can be read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.events import EVENT_TYPES, RUN_TERMINAL_EVENT, TYPE_CODE
from mesh.core.redact import Redactor
from mesh.core.runner import Outbox, RunLog
from mesh.errors import CODES, MeshError
from mesh.node.ending import failure
from mesh.node.pieces import Pieces
from mesh.node.speech import Shows
from mesh.providers.base import Output, SessionInfo


class Hostile:
    """An object that answers no question about itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Registry:
    """Knows one provider."""

    def provider_name(self, agent: str) -> str:
        return "python"


class Sink:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.outbox = Outbox(10**9)
        self.registry: Any = Registry()
        self.redactor = Redactor()
        self.output_bytes_max = self.event_bytes_max = 1_000_000

    def changed(self, log: RunLog) -> None:
        """Nobody waits."""

    def holds(self, run: Shows) -> None:
        """Nobody reads."""


class Named(dict[str, Any]):
    """A map of the agent's own."""


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.datetimes()
    | st.builds(Hostile)
    | st.sampled_from([object(), Exception, 1j, "\ud800", NotImplemented, range(3), {1, "a"}])
)
NAMES = ["content", "role", "tool_name", "input_tokens", "token_usage", "x", "\ud800", 1, None, (1,)]
keys = st.sampled_from(NAMES)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
maps = st.dictionaries(keys, anything, max_size=4) | st.builds(Named) | anything
events = st.fixed_dictionaries(
    {"type": st.sampled_from([*EVENT_TYPES, "output", "no_such", 7, None])},
    optional={
        "data": maps,
        "metadata": maps,
        "correlation_id": anything,
        "ts": anything | st.just(datetime(2026, 1, 1, tzinfo=UTC)),
        "token_usage": maps,
        "strange": anything,
    },
)
outputs = st.builds(
    Output, data=maps, token_usage=maps, cost_usd=anything, provider_metadata=maps, completion=maps
)
pieces = events | outputs | anything | st.text()


class Chunk(str):
    """A text of a library's own class."""


def test_text_of_a_class_of_its_own_is_a_text() -> None:
    """If an agent yields a subclass of str, then it is said like any other text."""
    written = Pieces(Sink(), ("run_" + "0" * 32, 1), 0, SessionInfo(id="ses_1", agent="agent"))
    written.begin(None, {})
    for piece in ("Good. ", Chunk("Very good. "), Chunk("Sch\u00f6n. "), Chunk("")):
        written.take(piece)
    ending = written.completed()
    assert ending.output is not None and ending.output.data == {"content": "Good. Very good. Sch\u00f6n. "}
    [batch] = written.log.close(0.0)
    assert [row[0] for row in wire.unpack(batch.message)[4]].count(TYPE_CODE["message_streamed"]) == 3


def test_output_beyond_a_frame_fails_the_run_however_large_outputs_may_be() -> None:
    """If the settings allow a result that could not travel, then its run fails instead of never ending."""
    sink = Sink()
    sink.output_bytes_max = wire.FRAME_BYTES_MAX
    written = Pieces(sink, ("run_" + "0" * 32, 1), 0, SessionInfo(id="ses_1", agent="agent"))
    written.begin(None, {})
    written.take(Output(data={"content": "x", "raw": bytes(wire.FRAME_BYTES_MAX)}))
    written.settle(written.completed())
    [batch] = written.log.close(0.0)
    settlement = wire.unpack(batch.message)[5]
    assert (settlement["status"], settlement["error"]["code"]) == ("failed", "limit_exceeded")


@given(st.lists(pieces, max_size=4), maps)
def test_whatever_is_yielded_the_run_ends_once_and_is_readable(given_pieces: list[Any], begun: Any) -> None:
    """If pieces are of any kind, then each is taken or refused by a code; the log has one end, the last."""
    written = Pieces(Sink(), ("run_" + "0" * 32, 1), 0, SessionInfo(id="ses_1", agent="agent"))
    ending = None
    try:
        written.begin(None, begun if isinstance(begun, dict) else {})
        for piece in given_pieces:
            written.take(piece)
        ending = written.completed()
    except MeshError as error:
        assert error.code in CODES
        ending = failure(error)
    written.settle(ending)
    messages = [wire.unpack(batch.message) for batch in written.log.close(0.0)]
    rows = [row for message in messages for row in message[4]]
    types = [wire.unpack(wire.map_header(9) + fragment)["type"] for _, _, fragment in rows]
    assert [name for name in types if name in RUN_TERMINAL_EVENT.values()] == types[-1:]
    assert types[0] == "run_started"
    assert messages[-1][5]["status"] in RUN_TERMINAL_EVENT
