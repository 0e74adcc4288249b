"""A session leaves a node as JSON lines and comes back, here or elsewhere, whole or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import mesh


def story(client: mesh.Client, sid: str) -> tuple[Any, ...]:
    """What there is to know of a session."""
    session = client.sessions.get(sid).to_map()
    for name in ("updated_at", "deleted_at", "version"):
        del session[name]
    return session, client.sessions.runs(sid), client.sessions.events(sid)


@pytest.fixture
def told(client: mesh.Client) -> str:
    """A session with runs, and data that JSON does not have."""
    metadata = {"raw": b"\x00\xff", "$bytes": 1, "at": float("inf")}
    client.sessions.start("counter", id="told", tags=["t"], agent_id="a", metadata=metadata)
    for count in ("3", "2500"):
        client.runs.wait(client.runs.submit("told", {"prompt": count, "bytes": b"\x01"}).id)
    client.sessions.stop("told")
    return "told"


def test_an_export_comes_back_as_it_was(client: mesh.Client, told: str, tmp_path: Path) -> None:
    """If a session is exported, forgotten and imported, then it is as before and can go on."""
    before = story(client, told)
    file = tmp_path / "told.jsonl"
    file.write_text("".join(f"{line}\n" for line in client.sessions.export(told)), encoding="utf-8")
    with pytest.raises(mesh.MeshError) as refused:
        client.sessions.import_(file)
    assert refused.value.code == "already_exists"
    client.sessions.delete(told, hard=True)
    client.maintenance.run()
    assert client.sessions.import_(file).id == told
    assert story(client, told) == before
    client.sessions.resume(told)
    assert client.runs.wait(client.runs.submit(told, "2").id).output["content"] == "0 1 "
    assert client.maintenance.run().imports_given_up == 0


def test_an_import_under_a_new_id_has_runs_of_its_own(client: mesh.Client, told: str) -> None:
    """If an export is imported under another id, then both are there, with the same events."""
    lines = list(client.sessions.export(told))
    copy = client.sessions.import_(lines, new_id="copy")
    assert copy.id == "copy" and copy.tags == ("t",)
    one, other = client.sessions.events(told), client.sessions.events("copy")
    assert [(e.seq, e.type, e.ts, e.data) for e in one] == [(e.seq, e.type, e.ts, e.data) for e in other]
    runs = [{run.id for run in client.sessions.runs(sid)} for sid in (told, "copy")]
    assert len(runs[0]) == len(runs[1]) == 2 and not runs[0] & runs[1]
    assert {e.run_id for e in other if e.run_id} == runs[1]
    assert client.sessions.import_(lines, new_id=True).id not in (told, "copy")


def test_half_an_import_is_seen_by_nobody_and_can_be_repeated(client: mesh.Client, told: str) -> None:
    """If lines are missing or wrong, then the session is not there, and the whole export can be imported."""
    lines = list(client.sessions.export(told))
    wrong = [
        lines[:-1], lines[1:], [*lines[:5], "{", *lines[6:]], [*lines[:5], *lines[6:]],
        [*lines[:4], lines[3]],
        [lines[0].replace('"created_at":', '"created":'), *lines[1:]], [], [lines[0], lines[-1]],
        [line.replace('"type":"run_started"', '"type":"nothing"') for line in lines], [5], 5, "/nowhere",
        [*lines[:-1], lines[-1].replace('"lost":[]', '"lost":7')],
        [*lines[:-1], lines[-1].replace('"runs":', '"was":')],
    ]
    for source in wrong:
        with pytest.raises(mesh.MeshError) as refused:
            client.sessions.import_(source, new_id="half")
        assert refused.value.code in ("validation_error", "invalid_argument", "invalid_event_type"), source
        assert [s.id for s in client.sessions.search(include_deleted=True)] == [told]
        assert client.events.count() == client.sessions.stats(told).event_count
        for read in ("get", "events", "runs", "stats"):
            with pytest.raises(mesh.NotFound):
                getattr(client.sessions, read)("half")
    with pytest.raises(mesh.MeshError):
        client.sessions.activate("half")
    assert client.sessions.import_(lines, new_id="half").seq == client.sessions.get(told).seq


def test_a_wrong_value_is_refused_with_its_line(client: mesh.Client, told: str) -> None:
    """If a run or an event of an export is wrong, then the error names its line, and nothing is imported."""
    lines = list(client.sessions.export(told))
    tokens = [line.replace('"token_usage":{}', '"token_usage":{"input_tokens":-5}') for line in lines]
    places = [n for n, (line, wrong) in enumerate(zip(lines, tokens, strict=True), 1) if line != wrong]
    with pytest.raises(mesh.InvalidArgument, match=f"^.validation_error. line {places[0]}: ") as refused:
        client.sessions.import_(tokens, new_id="copy2")
    assert refused.value.details == {"line": places[0]}
    with pytest.raises(mesh.InvalidArgument, match=r"^.invalid_event_type. line 6: "):
        client.sessions.import_([line.replace('"type":"', '"type":"no_') if n == 5 else line
                                 for n, line in enumerate(lines)], new_id="copy2")
    with pytest.raises(mesh.NotFound):
        client.sessions.get("copy2")


def test_a_run_that_executes_is_failed_where_it_is_imported(client: mesh.Client) -> None:
    """If a session is exported while a run executes, then in its copy that run is failed, with its event."""
    client.sessions.start("sleeper", id="busy")
    run = client.runs.submit("busy", "60")
    next(client.sessions.stream("busy", type="message_streamed"))
    copy = client.sessions.import_(client.sessions.export("busy"), new_id="copy")
    [lost] = client.sessions.runs(copy.id)
    assert lost.status == "failed" and lost.error is not None and lost.error["code"] == "outcome_unknown"
    assert client.sessions.events(copy.id)[-1].type == "run_failed"
    client.runs.cancel(run.id)


def test_listeners_hear_of_an_import_and_go_on(client: mesh.Client, told: str) -> None:
    """If a session is imported while somebody listens, then he hears of it and loses nothing."""
    lines = list(client.sessions.export(told))
    with client.listen("session.after.", "lifecycle.imported.") as feed:
        client.sessions.import_(lines, new_id="copy")
        client.run_once("echo", "new", id="after")
        heard = []
        for note in feed:
            heard.append(note.topic)
            if note.topic == "session.after.session_completed":
                break
    assert heard[0] == "lifecycle.imported.copy" and len(heard) == 1 + client.sessions.get("after").seq


def test_who_listens_to_all_sessions_never_meets_an_imported_past(client: mesh.Client) -> None:
    """If a session is imported, then listeners to all, also one that resumes at a cursor from before it, hear
    what is new, in that session too, once and in order, and nothing of its past."""
    client.sessions.start("echo", id="origin")
    client.runs.wait(client.sessions.prompt("origin", "hi").run_id)
    lines = list(client.sessions.export("origin"))
    mine = [n for n in range(40) if client.partitions.of(f"now{n}") == client.partitions.of("past")][:3]
    heard: dict[str, list[tuple[str, int]]] = {"live": [], "resumed": []}
    with client.listen("session.") as feed:
        client.run_once("echo", "x", id=f"now{mine[0]}")
        cursor = next(feed).cursor
        past = client.sessions.import_(lines, new_id="past").seq
        client.run_once("echo", "new", id=f"now{mine[1]}")
        client.runs.wait(client.sessions.prompt("past", "more").run_id)
        client.run_once("echo", "last", id=f"now{mine[2]}")
        with client.listen("session.", after=cursor) as again:
            for name, way in (("live", feed), ("resumed", again)):
                for note in way:
                    heard[name].append((note.data["session_id"], note.data["seq"]))
                    if note.topic == f"session.now{mine[2]}.session_completed":
                        break
    assert heard["live"] == heard["resumed"]
    news = [seq for sid, seq in heard["live"] if sid == "past"]
    assert news == list(range(past + 1, client.sessions.get("past").seq + 1)) and len(news) > 3
    for n in mine[1:]:
        assert [seq for sid, seq in heard["live"] if sid == f"now{n}"] == list(
            range(1, client.sessions.get(f"now{n}").seq + 1))


def test_the_asyncio_client_finds_exports_and_imports_too(client: mesh.Client, node: mesh.LocalNode) -> None:
    """If the asyncio client searches, exports and imports, then it does what the blocking one does."""
    client.run_once("counter", "5", id="a")

    async def story() -> list[Any]:
        async with node.async_client() as other:
            lines = [line async for line in other.sessions.export("a")]
            copy = await other.sessions.import_(lines, new_id="b")
            found = await other.sessions.search(order="created_at_asc")
            await other.sessions.delete("b", hard=True)
            count = await other.events.count(session_ids=["a"])
            return [copy.id, sorted(s.id for s in found), count, len(lines)]

    copied, found, count, lines = asyncio.run(story())
    assert (copied, found) == ("b", ["a", "b"]) and count == client.sessions.get("a").seq == lines - 3
