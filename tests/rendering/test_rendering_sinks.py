"""Each sink gets what is its own; one that breaks is reported, and nobody else notices."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from conditions import wait_for

from mesh.core.records import Event
from mesh.errors import InvalidArgument, MeshError, Overloaded
from mesh.rendering import (
    CallbackSink,
    CompactRenderer,
    FeedSink,
    FileSink,
    JsonLinesSink,
    PassthroughRenderer,
    Queued,
    Rendering,
    Sink,
    StudioRenderer,
    TerminalSink,
    TextRenderer,
    VerboseRenderer,
    arender,
    render,
)

Make = Callable[..., Event]


class Broken(Sink):
    """A sink that fails when it is asked to do this."""

    def __init__(self, at: str, after: int = 0) -> None:
        self.at, self.left, self.closed = at, after, 0

    def _do(self, what: str) -> None:
        if what == self.at:
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")

    def open(self) -> None:
        self._do("open")

    def write(self, event: Event, text: str) -> None:
        self._do("write")

    def remark(self, text: str) -> None:
        self._do("remark")

    def flush(self) -> None:
        self._do("flush")

    def close(self) -> None:
        self.closed += 1
        self._do("close")


def test_terminal_and_file_get_the_same_words(story: list[Event], tmp_path: Path) -> None:
    """If a terminal has colours and a file not, then both have the same text, whatever was there before."""
    terminal, path = io.StringIO(), tmp_path / "log.txt"
    path.write_text("old" * 1000)
    report = render(story, CompactRenderer(color=True), [TerminalSink(terminal, color=True), FileSink(path)])
    plain = io.StringIO()
    render(story, CompactRenderer(color=False), [FileSink(plain)])
    assert path.read_text() == plain.getvalue() and "\x1b[" in terminal.getvalue()
    assert report.events == len(story) and not report.broken


@pytest.mark.parametrize(
    ("terminal", "environ", "colored"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them_here_too(
    terminal: bool, environ: dict[str, str], colored: bool, story: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a renderer has colours and the stream is no terminal, or its owner wants none, then none come."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    render(story, StudioRenderer(), [TerminalSink(out)])
    assert ("\x1b[" in out.getvalue()) == colored


def test_a_status_is_taken_away_before_anything_is_written(event: Make) -> None:
    """If a tool works, then a terminal shows so on a line that fits, and replaces it by its outcome."""
    out = io.StringIO()
    rendering = Rendering(StudioRenderer(color=False, live=True), [TerminalSink(out, width=20)])
    begun = event(1, "tool_call_started", tool_name="bash", tool_input={"command": "sleep 100; echo x"})
    rendering.show(begun)
    assert out.getvalue() == "  ◐ Running: sleep…"
    rendering.show(event(2, "token_usage_updated", input_tokens=1))
    rendering.show(event(3, "tool_call_completed", tool_name="bash"))
    rendering.finish()
    assert out.getvalue() == "  ◐ Running: sleep…\r\x1b[2K  ✓ Ran: sleep 100; echo x (exit 0)\n"


def test_a_terminal_of_another_encoding_gets_other_signs(story: list[Event]) -> None:
    """If a terminal knows no unicode, then it gets what it can show, and no exception."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    assert not render(story, StudioRenderer(color=False), [TerminalSink(out)]).broken
    assert b"  + Read a.py (3 lines)\n" in raw.getvalue() and b"Not streamed: ??" in raw.getvalue()


def test_stderr_of_a_command_goes_to_stderr(event: Make) -> None:
    """If a piece was written to stderr, then so it is here, and the rest is not."""
    out, err = io.StringIO(), io.StringIO()
    pieces = [event(1, "message_streamed", content="a", stream="stdout"),
              event(2, "message_streamed", content="b", stream="stderr")]
    render(pieces, TextRenderer(exact=True), [TerminalSink(out, err=err)])
    assert (out.getvalue(), err.getvalue()) == ("a", "b")


def test_json_lines_say_what_happened(story: list[Event], tmp_path: Path) -> None:
    """If events go to JSON lines, then each is a line in the form that was asked for."""
    full, compact, whole = tmp_path / "full", tmp_path / "compact", io.StringIO()
    sinks = [JsonLinesSink(full), JsonLinesSink(compact, mode="compact"), JsonLinesSink(whole, mode="event")]
    assert not render(story, PassthroughRenderer(), sinks).broken
    lines = [json.loads(line) for line in full.read_text().splitlines()]
    assert lines[2] == {
        "ts": "1970-01-01T00:00:03+00:00", "type": "run_started", "session_id": "s.1", "run_id": "run_1",
        "data": {"model": "claude-sonnet-4-5-20250929"},
    }
    assert "run_id" not in lines[0]
    short = [json.loads(line) for line in compact.read_text().splitlines()]
    assert short[2] == {"t": 3000, "e": {"t": "rs", "m": "sonnet-4-5"}}
    assert short[3] == {"t": 4000, "e": {"t": "ms", "l": 17}}
    assert short[7]["e"] == {"t": "tc", "n": "Read", "l": 5}
    assert short[10]["e"] == {"t": "tu", "i": 847, "o": 312, "$": 0.0123}
    assert short[16]["e"] == {"t": "rc", "sr": "end"} and short[0]["e"] == {"t": "session_created"}
    assert [json.loads(line)["seq"] for line in whole.getvalue().splitlines()] == list(range(1, 20))


@pytest.mark.parametrize("at", ["write", "remark", "flush", "close"])
def test_a_broken_sink_stops_nobody(at: str, story: list[Event]) -> None:
    """If a sink fails at any moment, then it is reported and closed once, and the others have everything."""
    broken, out, told = Broken(at), io.StringIO(), []
    report = render(
        story, VerboseRenderer(color=False), [broken, TerminalSink(out)],
        on_broken=lambda sink, error: told.append((sink, str(error))),
    )
    assert told == [(broken, "[Errno 28] No space left on device")] and report.broken[0].sink is broken
    assert broken.closed == 1 and len(report.broken) == 1
    assert out.getvalue().endswith("--- 19 events, 2 tools ---\n")


def test_without_any_sink_left_nothing_more_is_read(story: list[Event]) -> None:
    """If the last sink broke, then reading on would be for nobody."""
    events = iter(story)
    assert render(events, VerboseRenderer(), [Broken("write", after=3)]).events == 4
    assert next(events).seq == 5


def test_a_sink_that_cannot_be_opened_is_refused_before_anything(story: list[Event], tmp_path: Path) -> None:
    """If one sink cannot be opened, then the error is raised, the others are closed and nothing was read."""
    events, other = iter(story), Broken("never")
    with pytest.raises(FileNotFoundError):
        render(events, VerboseRenderer(), [other, FileSink(tmp_path / "no" / "where")])
    assert other.closed == 1 and next(events).seq == 1


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    """If a file is a FIFO without a reader, then it is refused instead of waited for."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        FileSink(tmp_path / "fifo").open()


def test_what_the_events_raise_is_raised_behind_the_last_words(story: list[Event]) -> None:
    """If the stream of events fails, then the sinks are finished, and its error is the caller's."""

    def failing() -> Iterator[Event]:
        yield story[3]
        raise RuntimeError("gone")

    out = io.StringIO()
    with pytest.raises(RuntimeError, match="gone"):
        render(failing(), VerboseRenderer(color=False), [TerminalSink(out)])
    assert out.getvalue() == "I'll look at the \n--- 1 events, 0 tools ---\n"


def test_a_callback_gets_event_and_text(story: list[Event]) -> None:
    """If a function is a sink, then it gets each event with its text; what it raises is its own end."""
    got: list[tuple[int, str]] = []
    render(story, CompactRenderer(color=False), [CallbackSink(lambda e, text: got.append((e.seq, text)))])
    assert [seq for seq, _ in got] == list(range(1, 20)) and got[6] == (7, "\nt+Read")
    with pytest.raises(InvalidArgument):
        CallbackSink("print")  # type: ignore[arg-type]


def test_asyncio_awaits_what_a_callback_gives(story: list[Event]) -> None:
    """If a sink's function is a coroutine function, then arender awaits it, and render refuses it."""
    got: list[int] = []

    async def slow(event: Event, text: str) -> None:
        await asyncio.sleep(0)
        got.append(event.seq)
        if event.seq == 3:
            raise ValueError("enough")

    async def events() -> AsyncIterator[Event]:
        for one in story:
            yield one

    out = io.StringIO()
    report = asyncio.run(arender(events(), TextRenderer(), [CallbackSink(slow), TerminalSink(out)]))
    assert got == [1, 2, 3] and [str(one.error) for one in report.broken] == ["enough"]
    assert report.events == len(story) and out.getvalue().startswith("I'll look")
    refused = render(story, TextRenderer(), [CallbackSink(slow)])
    assert got == [1, 2, 3] and "arender" in str(refused.broken[0].error)


def test_a_sink_that_hangs_is_given_up_and_nobody_waits(story: list[Event]) -> None:
    """If a queued sink does not return, then it is given up when its queue is full; the others go on."""
    gate, out = threading.Event(), io.StringIO()
    hanging = Queued(CallbackSink(lambda *_: gate.wait()), events_max=5)
    try:
        report = render(story, VerboseRenderer(color=False), [hanging, TerminalSink(out)])
    finally:
        gate.set()
    [(sink, error)] = report.broken
    assert sink is hanging and isinstance(error, Overloaded) and error.code == "queue_full"
    assert out.getvalue().endswith("--- 19 events, 2 tools ---\n")
    thread = hanging._thread
    assert thread is not None
    wait_for(lambda: not thread.is_alive(), "the thread's end")


def test_a_queued_sink_has_everything_at_the_end(story: list[Event], tmp_path: Path) -> None:
    """If a sink works in a thread, then it has every event in order when the rendering is finished."""
    path = tmp_path / "log"
    assert not render(story, CompactRenderer(color=False), [Queued(FileSink(path))]).broken
    assert path.read_text().endswith("19 events, 2 tools\n")


def test_a_queued_sink_that_is_waited_for_gets_a_long_log_whole(story: list[Event]) -> None:
    """If events come faster than a sink takes them, then none is lost while it goes on."""
    slow: list[Event] = []

    def take(event: Event, _text: str) -> None:
        threading.Event().wait(0.001)
        slow.append(event)

    report = render(story * 5, CompactRenderer(), [Queued(CallbackSink(take), events_max=2, wait_s=60.0)])
    assert not report.broken and slow == story * 5


def test_a_full_queue_is_flushed_in_its_time(story: list[Event]) -> None:
    """If a queue is full when all is over, then what waits is written all the same."""
    gate = threading.Event()
    taken: list[Event] = []

    def take(event: Event, _text: str) -> None:
        gate.wait()
        taken.append(event)

    queued = Queued(CallbackSink(take), events_max=1)
    queued.open()
    queued.write(story[0], "")
    wait_for(lambda: queued._queue.empty(), "the first one's turn")
    queued.write(story[1], "")
    threading.Timer(0.05, gate.set).start()
    queued.flush()
    queued.close()
    assert taken == story[:2]


def test_a_queued_sink_that_fails_is_reported(story: list[Event]) -> None:
    """If a sink fails in its thread, then that is heard at the latest when all is flushed."""
    sink = Broken("write", after=2)
    report = render(story, CompactRenderer(), [Queued(sink)])
    assert [str(one.error) for one in report.broken] == ["[Errno 28] No space left on device"]
    assert sink.left == -1, "it was given nothing more"


@pytest.mark.parametrize(
    ("options", "topics"),
    [
        ({}, ["mesh.session.s%2E1"] * 2),
        ({"scope": "run", "prefix": "x"}, ["x.session.s%2E1.run.-", "x.session.s%2E1.run.run_1"]),
        ({"scope": "type", "prefix": "x"}, ["x.session.s%2E1.type.session_created",
                                           "x.session.s%2E1.type.run_started"]),
        ({"topic": "all"}, ["all", "all"]),
        ({"topic_of": lambda event: ["a", "b"]}, ["a", "b"] * 2),
    ],
)
def test_a_feed_has_the_topics_it_was_told(
    options: dict[str, Any], topics: list[str], story: list[Event]
) -> None:
    """If a feed has a scope, a topic or a function, then each event is published under just that."""
    sent: list[tuple[str, dict[str, Any]]] = []
    sink = FeedSink(lambda topic, message: sent.append((topic, message)), include_text=True, **options)
    render([story[0], story[2]], VerboseRenderer(color=False), [sink])
    assert [topic for topic, _ in sent] == topics and sink.published == len(topics)
    assert sent[0][1]["type"] == "session_created" and sent[0][1]["text"] == "[session_created] seq=1\n"


def test_a_feed_that_fails_counts_and_goes_on(story: list[Event]) -> None:
    """If a bus refuses a message, then it is counted; the sink is not broken by it."""

    def refuse(topic: str, message: dict[str, Any]) -> None:
        if message["seq"] % 2:
            raise ConnectionError

    sink = FeedSink(refuse)
    assert not render(story, PassthroughRenderer(), [sink]).broken
    assert (sink.published, sink.errors) == (9, 10)


@pytest.mark.parametrize("options", [{"scope": "all"}, {"topic": "a", "topic_of": str}, {"target": 5}])
def test_a_feed_refuses_what_it_cannot_do(options: dict[str, Any]) -> None:
    """If a feed is told two topics, no known scope or no target, then it is refused."""
    with pytest.raises(InvalidArgument):
        FeedSink(**{"target": "tcp://127.0.0.1:0", **options})


def test_a_feed_is_heard_at_its_endpoint(story: list[Event]) -> None:
    """If somebody subscribed at the endpoint, then he gets topic and event; a used endpoint is refused."""
    sink = FeedSink("tcp://127.0.0.1:0", scope="type")
    sink.open()
    assert sink.endpoint is not None
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe("mesh.session.s%2E1.type.run")
        socket.connect(sink.endpoint)

        def heard() -> bool:
            sink.write(story[2], "")
            return bool(socket.poll(20))

        wait_for(heard, "a message of the feed")
        topic, body = socket.recv_multipart()
        assert topic == b"mesh.session.s%2E1.type.run_started" and msgpack.unpackb(body)["seq"] == 3
        with pytest.raises(InvalidArgument, match="cannot publish"):
            FeedSink(sink.endpoint).open()
    sink.close()


def test_a_file_that_is_closed_takes_nothing_and_says_so(story: list[Event], tmp_path: Path) -> None:
    """If a sink on a path is written to behind its end, then that is a typed error."""
    sink = FileSink(tmp_path / "log")
    sink.open()
    sink.close()
    with pytest.raises(MeshError) as raised:
        sink.write(story[0], "late")
    assert raised.value.code == "stream_closed" and not (tmp_path / "log").read_text()
