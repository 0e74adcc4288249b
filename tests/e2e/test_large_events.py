"""A tool that gives 10 MB, at default limits: kept whole, and everybody can read it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import mesh

BYTES = 10_000_000
AGENT = f"""
async def agent(run):
    yield {{"type": "tool_call_started", "data": {{"tool_name": "cat", "tool_call_id": "c"}}}}
    output = "line of a log\\n" * ({BYTES} // 14)
    yield {{"type": "tool_call_completed",
           "data": {{"tool_name": "cat", "tool_call_id": "c", "tool_output": output}}}}
    yield "read it"


async def reader(run):
    yield str(max(len(str(call.tool_output)) for call in run.transcript.messages if call.tool_output))
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    file: Path = tmp_path_factory.mktemp("agents") / "large_agents.py"
    file.write_text(AGENT)
    agents = {
        "large": {"provider": "python", "target": f"{file}:agent"},
        "reader": {"provider": "python", "target": f"{file}:reader", "continuation": "replay"},
    }
    with mesh.LocalNode(config={"agents": agents}) as node, node.client(timeout_s=30) as client:
        client.sessions.start("large", id="s")
        with client.listen("session.s.") as listener:
            run = client.runs.submit("s", "go", deadline_s=60)
            for heard in listener:
                if heard.topic.endswith("tool_call_completed"):
                    assert len(heard.data["data"]["tool_output"]) > BYTES - 14
                if heard.topic.endswith("run_completed"):
                    break
        client.runs.wait(run.id, timeout_s=30)
        yield node


def outputs(events: list[mesh.Event]) -> list[int]:
    """The sizes of what tools gave."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [len(event.data["tool_output"]) for event in events if event.type == "tool_call_completed"]


def test_many_readers_at_once_have_it_whole(node: mesh.LocalNode) -> None:
    """If several callers of one client read it at once, though a frame holds it once, then all have it."""

    async def main() -> list[list[mesh.Event]]:
        async with node.async_client(timeout_s=60) as client:
            return await asyncio.gather(*(client.sessions.events("s") for _ in range(4)))

    for events in asyncio.run(main()):
        assert outputs(list(events)) == [BYTES // 14 * 14]


def test_a_stream_brings_it(node: mesh.LocalNode) -> None:
    """If somebody follows the session from its beginning, then the large event is one of the stream's."""
    with node.client(timeout_s=60) as client:
        stream = client.sessions.stream("s", stop_when=lambda e: e.type == "run_completed", timeout_s=60)
        assert outputs(list(stream)) == [BYTES // 14 * 14]


def test_a_run_that_continues_sees_it(node: mesh.LocalNode) -> None:
    """If a run continues the conversation, then its transcript has the whole output."""
    with node.client(timeout_s=60) as client:
        result = client.runs.submit("s", "and?", agent="reader")
        assert client.runs.wait(result.id, timeout_s=60).output["content"] == str(BYTES // 14 * 14)


def test_it_is_exported_and_imported(node: mesh.LocalNode, tmp_path: Path) -> None:
    """If the session is written to a file and read back, then the large event is there."""
    file = tmp_path / "export.jsonl"
    with node.client(timeout_s=60) as client:
        with file.open("w") as out:
            for line in client.sessions.export("s"):
                out.write(line + "\n")
        copy = client.sessions.import_(file, new_id=True)
        found = client.sessions.events(copy.id, type="tool_call_completed")
        assert [len(event.data["tool_output"]) for event in found] == [BYTES // 14 * 14]


def test_large_routes_of_many_callers_come_though_a_frame_does_not_hold_them(node: mesh.LocalNode) -> None:
    """If the routes that callers ask for at once, or one as a list, exceed a frame, then all of them come."""
    keys = [f"tg:b:room{n}" for n in range(500)]
    known = {key: {"external_room_id": key, "text": "x" * 64_000} for key in keys}

    async def main() -> None:
        async with node.async_client(timeout_s=60) as client:
            assert not [e for e in await client.routes.set_many(known.items()) if e is not None]
            assert [r.route for r in await asyncio.gather(*map(client.routes.get, keys))] == [*known.values()]
            found = await asyncio.gather(*map(client.routes.resolve, keys))
            assert [r.external_room_id for r in found] == keys
            listed = await client.routes.get_many([*keys, "tg:b:none"])
            assert [r.route for r in listed[:-1]] == [*known.values()] and listed[-1].code == "not_found"
            assert [r.external_room_id for r in await client.routes.resolve_many(keys)] == keys

    asyncio.run(main())
