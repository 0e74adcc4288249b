"""The asyncio shell against a scripted node."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_node import SILENCE, FakeNode

import mesh
from mesh.core import wire
from mesh.core.wire import Flag, Header, Kind
from mesh.errors import ClientExpired, Unavailable

KEY = ("t", "b", "r", None)
ROUTE = {"external_room_id": "1"}
DEAD = "tcp://127.0.0.1:9"


def test_calls_of_concurrent_tasks_are_coalesced(fake: FakeNode) -> None:
    """If 200 tasks call in one loop turn, then few payloads carry them all, and each gets its answer."""

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            await client.routes.set(KEY, ROUTE)
            before = len(fake.received)
            found = await asyncio.gather(*(client.routes.get(KEY) for _ in range(200)))
            assert [record.route for record in found] == [ROUTE] * 200
            assert len(fake.received) - before == 1

    asyncio.run(scenario())


def test_no_node_is_a_clear_error_within_the_limit() -> None:
    """If nothing listens, then node_unreachable names the address and `mesh up`."""

    async def scenario() -> None:
        async with mesh.AsyncClient(DEAD, timeout_s=0.2) as client:
            with pytest.raises(mesh.NodeUnreachable, match="mesh up") as raised:
                await client.routes.get(KEY)
            assert DEAD in raised.value.message

    asyncio.run(scenario())


def test_node_that_comes_later_is_found() -> None:
    """If the node starts after the first call, then that call is answered."""

    async def scenario() -> None:
        first = FakeNode()
        address = first.address
        first._thread.start()
        first.close()
        async with mesh.AsyncClient(address, timeout_s=10.0) as client:
            call = asyncio.create_task(client.partitions.count())
            await asyncio.sleep(0)
            with FakeNode(address):
                assert await call == 2

    asyncio.run(scenario())


def test_other_version_is_a_clear_error(fake: FakeNode) -> None:
    """If the node speaks another version, then the error says which, at once."""
    fake.script = lambda header, calls: b"MH\x02" + bytes(60)

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address, timeout_s=30.0) as client:
            with pytest.raises(mesh.RemoteProtocolError, match="version 2"):
                await client.routes.get(KEY)

    asyncio.run(scenario())


def test_silence_is_timeout_with_op_and_address(fake: FakeNode) -> None:
    """If the node does not answer, then timeout names the op and the address."""
    fake.script = lambda header, calls: SILENCE if calls else None

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            with pytest.raises(mesh.DeadlineExceeded, match=r"route\.get") as raised:
                await client.routes.get(KEY, timeout_s=0.1)
            assert raised.value.code == "timeout" and fake.address in raised.value.message

    asyncio.run(scenario())


def test_closed_client_refuses_calls_and_ends_those_that_wait(fake: FakeNode) -> None:
    """If a client is closed, then waiting calls and new ones end with client_closed."""
    fake.script = lambda header, calls: SILENCE if calls else None

    async def scenario() -> None:
        client = mesh.AsyncClient(fake.address)
        waiting = asyncio.create_task(client.routes.get(KEY))
        await client.partitions.count()
        await client.close()
        await client.close()
        with pytest.raises(mesh.ClientClosed):
            await waiting
        with pytest.raises(mesh.ClientClosed):
            await client.routes.get(KEY)

    asyncio.run(scenario())


def test_cancelled_call_leaves_the_others_alone(fake: FakeNode) -> None:
    """If one of the callers of a payload is cancelled, then the others get their answers."""

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            await client.routes.set(KEY, ROUTE)
            calls = [asyncio.create_task(client.routes.get(KEY)) for _ in range(10)]
            await asyncio.sleep(0)
            calls[3].cancel()
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(done[3], asyncio.CancelledError)
            assert all(record.route == ROUTE for n, record in enumerate(done) if n != 3)

    asyncio.run(scenario())


def test_one_client_in_two_loops_one_after_the_other(fake: FakeNode) -> None:
    """If a client is used again in a new loop after the first has ended, then it connects anew."""
    client = mesh.AsyncClient(fake.address)
    for _ in range(2):
        assert asyncio.run(_count(client)) == 2
    asyncio.run(client.close())
    assert len({peer for peer, _, _ in fake.received}) == 2


async def _count(client: mesh.AsyncClient) -> int:
    return await client.partitions.count()


def test_router_restart_is_survived_by_an_open_write(fake: FakeNode) -> None:
    """If the router vanishes with a write in it, then its successor gets the same number again."""
    fake.script = lambda header, calls: SILENCE if header.kind == Kind.WRITE else None

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address, timeout_s=20.0) as client:
            await client.partitions.count()
            call = asyncio.create_task(client.routes.set(KEY, ROUTE))
            while Kind.WRITE not in fake.kinds():
                await asyncio.sleep(0.001)
            fake.close()
            with FakeNode(fake.address, boot=fake.boot + 1) as successor:
                await call
                headers = [h for _, h, _ in fake.received + successor.received if h.kind == Kind.WRITE]
                assert {(h.number, h.request_id) for h in headers} == {(1, headers[0].request_id)}
                assert successor.routes == {"t:b:r": ROUTE}

    asyncio.run(scenario())


def test_expired_client_goes_on_under_a_new_id(fake: FakeNode) -> None:
    """If the node has forgotten the client, then the write is made once, by a client with another id."""
    first: list[bytes] = []

    def script(header: Header, calls: list[Any]) -> Any:
        if header.kind == Kind.WRITE and not first:
            first.append(fake.received[-1][0])
            return fake.refuse(header, ClientExpired())
        return None

    fake.script = script

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            await client.routes.set(KEY, ROUTE)
            assert (await client.routes.get(KEY)).route == ROUTE

    asyncio.run(scenario())
    assert fake.routes == {"t:b:r": ROUTE}
    assert len({peer for peer, _, _ in fake.received}) == 2


def test_resolve_answers_from_fallbacks_when_the_node_is_silent(fake: FakeNode) -> None:
    """If the partition does not answer in time, then the first usable fallback does, and the node is told."""
    fake.script = lambda header, calls: SILENCE if calls else None
    fallbacks = ["junk", {"external_room_id": None}, {"external_room_id": "f"}, {"external_room_id": "g"}]

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address, timeout_s=30.0) as client:
            index = await client.partitions.of(KEY)
            found = await client.routes.resolve(KEY, fallbacks)  # type: ignore[arg-type]
            assert (
                found.external_room_id,
                found.source,
                found.fallback,
                found.stale,
                found.fallback_reason,
            ) == ("f", "provided_fallback", True, False, "session_unavailable")
            assert (found.partition, found.session_key) == (index, "t:b:r")
            while Kind.NOTE not in fake.kinds():
                await asyncio.sleep(0.001)

    asyncio.run(scenario())


def test_resolve_answers_from_fallbacks_without_any_node() -> None:
    """If there is no node at all, then resolve and resolve_many answer from the fallbacks."""

    async def scenario() -> None:
        async with mesh.AsyncClient(DEAD, timeout_s=30.0) as client:
            found = await client.routes.resolve(KEY, {"external_room_id": "f"})
            many = await client.routes.resolve_many([KEY, "bad"], [{"external_room_id": "f"}])
            assert found.partition == -1 and found.fallback_reason == "session_unavailable"
            assert many[0] == found and isinstance(many[1], mesh.InvalidArgument)

    asyncio.run(scenario())


def test_many_answers_in_order_with_errors_in_place(fake: FakeNode) -> None:
    """If some of many keys fail, then their errors stand in their places."""

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            done = await client.routes.set_many(
                [
                    ("a:b:1", ROUTE),
                    ("a:b", ROUTE),
                    ("a:b:2", {}),
                    ("a:b:3", ROUTE, 0),
                    ("a:b:4", ROUTE, 5),
                    "x",
                ]
            )
            assert [getattr(d, "code", None) for d in done] == [
                None,
                "invalid_format",
                "invalid_route",
                "invalid_ttl",
                None,
                "validation_error",
            ]
            found = await client.routes.get_many(["a:b:1", "", "a:b:2", ["a", "b", "4", None]])
            assert [getattr(f, "code", "ok") for f in found] == ["ok", "invalid_format", "not_found", "ok"]
            assert fake.ops().count("route.get_many") <= 2

    asyncio.run(scenario())


def test_many_with_one_dead_partition_fails_only_its_keys(fake: FakeNode) -> None:
    """If one partition is down, then its keys get its error and the others their routes."""
    keys = [f"a:b:{n}" for n in range(20)]

    def script(header: Header, calls: list[Any]) -> Any:
        if header.kind == Kind.READ and header.address == 0:
            return fake.refuse(header, Unavailable("partition 0 is down", details={"down": True}))
        return None

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            await client.routes.set_many([(key, ROUTE) for key in keys])
            fake.script = script
            homes = [await client.partitions.of(key) for key in keys]
            found = await client.routes.get_many(keys)
            for home, result in zip(homes, found, strict=True):
                assert getattr(result, "code", "ok") == ("ok" if home else "partition_unavailable")

    asyncio.run(scenario())


def test_many_places_its_keys_anew_when_the_map_changes(fake: FakeNode) -> None:
    """If the map is stale under a get_many, then its keys are asked once more and nothing is lost."""
    refused: list[int] = []

    def script(header: Header, calls: list[Any]) -> Any:
        if header.kind == Kind.READ and header.map_version == 1:
            refused.append(header.address)
            fake.map_version = 2
            return fake.refuse(header, Unavailable("stale"), Flag.STALE_MAP | Flag.AGAIN)
        return None

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            await client.routes.set_many([(f"a:b:{n}", ROUTE) for n in range(10)])
            fake.script = script
            found = await client.routes.get_many([f"a:b:{n}" for n in range(10)])
            assert [record.route for record in found if isinstance(record, mesh.RouteRecord)] == [ROUTE] * 10
            assert refused

    asyncio.run(scenario())


def test_bad_arguments_are_refused_before_anything_is_sent(fake: FakeNode) -> None:
    """If an argument is wrong, then the typed error comes without a message to the node."""

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            bad = [
                (client.routes.set(KEY, {}), "invalid_route"),
                (client.routes.set(KEY, ROUTE, ttl_ms=True), "invalid_ttl"),
                (client.routes.get(("a", "b", 3, None)), "invalid_session_key"),  # type: ignore[arg-type]
                (client.routes.get(KEY, timeout_s=0), "invalid_argument"),
                (client.routes.list(limit=0), "invalid_argument"),
                (client.routes.list(cursor="x"), "invalid_cursor"),
                (client.sessions.get("../x"), "invalid_id"),
                (client.sessions.create("echo", tags=[1]), "validation_error"),  # type: ignore[list-item]
                (client.sessions.events("s", type="nonsense"), "invalid_event_type"),
                (client.sessions.list(status="sleepy"), "invalid_status"),
                (client.runs.get("run_1"), "invalid_id"),
                (client.runs.submit("s", 5), "invalid_input"),  # type: ignore[arg-type]
                (client.run_once("echo", "x", workspace=5), "validation_error"),
                (client.run_once("echo", "x", continuation=True), "validation_error"),
            ]
            for call, code in bad:
                with pytest.raises(mesh.MeshError) as refused:
                    await call
                assert refused.value.code == code
            assert set(fake.kinds()) <= {int(Kind.HELLO)}

    asyncio.run(scenario())


def test_pages_of_all_partitions_lose_and_repeat_nothing(fake: FakeNode) -> None:
    """If a list is read page by page over partitions, then each row comes once, and a dead one is missing."""
    rows = {p: [[f"k:{p}:{n:02}", ROUTE, 1, 2, "learned"] for n in range(5)] for p in (0, 1)}

    def script(header: Header, calls: list[Any]) -> Any:
        if not calls or calls[0][0] != "route.list":
            return None
        limit, after = calls[0][1][2:]
        left = [row for row in rows[header.address] if after is None or row[0] > after]
        return [[0, [left[:limit], left[limit - 1][0] if len(left) > limit else None]]]

    fake.script = script

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            found, cursor = [], None
            while True:
                page = await client.routes.list(limit=3, cursor=cursor)
                assert len(page) <= 3 and page.missing == ()
                found += [entry.session_key for entry in page]
                cursor = page.cursor
                if cursor is None:
                    break
            assert found == sorted(row[0] for p in rows for row in rows[p])
            fake.script = lambda header, calls: (
                SILENCE if header.address == 1 and calls else script(header, calls)
            )
            page = await client.routes.list(limit=100, timeout_s=0.2)
            assert (len(page), page.missing, page.cursor) == (5, (1,), None)

    asyncio.run(scenario())


def test_value_that_cannot_travel_fails_alone(fake: FakeNode) -> None:
    """If one of two concurrent writes holds an object, then only that one fails."""

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            good, bad = await asyncio.gather(
                client.routes.set(KEY, ROUTE),
                client.routes.set(KEY, {"external_room_id": object()}),
                return_exceptions=True,
            )
            assert good is None and isinstance(bad, mesh.InvalidArgument)

    asyncio.run(scenario())


def test_raising_callback_of_a_run_is_the_callers_own_error(fake: FakeNode) -> None:
    """If on_event raises, then the caller gets that, and nothing is sent to cancel the run."""
    event = {
        "id": "e",
        "type": "run_started",
        "session_id": "s",
        "run_id": None,
        "seq": 1,
        "ts": 0.0,
        "data": {},
        "metadata": {},
        "provider": None,
        "correlation_id": None,
        "schema_version": 1,
    }

    def script(header: Header, calls: list[Any]) -> Any:
        return [[0, [[event], True]]] if calls and calls[0][0] == "session.wait" else None

    fake.script = script

    def explode(event: mesh.Event) -> None:
        raise ZeroDivisionError(event.type)

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            with pytest.raises(ZeroDivisionError, match="run_started"):
                await client.run_once("echo", "x", id="s", on_event=explode)
            assert set(fake.ops()) == {"run.once", "session.wait"}

    asyncio.run(scenario())


def test_limit_of_a_wait_is_timeout_and_cancels_nothing(fake: FakeNode) -> None:
    """If the caller's limit passes while a run goes on, then it is timeout, and no cancel is sent."""
    fake.script = lambda header, calls: SILENCE if header.kind == Kind.WAIT else None
    run_id = "run_" + "0" * 32

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            with pytest.raises(mesh.DeadlineExceeded) as raised:
                await client.runs.wait(run_id, timeout_s=0.1)
            assert raised.value.details["run_id"] == run_id
            assert "run.cancel" not in fake.ops()

    asyncio.run(scenario())


def test_waiting_reads_are_parked_again_when_answered_empty(fake: FakeNode) -> None:
    """If a parked read is answered empty, then the stream parks it again behind what it has seen."""
    asked: list[int] = []

    def event(seq: int) -> dict[str, Any]:
        return {
            "id": f"e{seq}",
            "type": "turn_completed",
            "session_id": "s",
            "run_id": None,
            "seq": seq,
            "ts": 0.0,
            "data": {},
            "metadata": {},
            "provider": None,
            "correlation_id": None,
            "schema_version": 1,
        }

    def script(header: Header, calls: list[Any]) -> Any:
        if header.kind != Kind.WAIT:
            return None
        asked.append(calls[0][1][1]["after"])
        answers = {1: [event(1), event(2)], 4: [event(3)]}
        return [[0, [answers.get(len(asked), []), True]]]

    fake.script = script

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            stream = client.sessions.stream("s", stop_when=lambda e: e.seq == 3)
            assert [e.seq async for e in stream] == [1, 2, 3]
        assert asked == [0, 2, 2, 2]

    asyncio.run(scenario())


def test_truncated_frames_harm_nobody(fake: FakeNode) -> None:
    """If the node sends cut frames in between, then calls go on being answered."""

    async def scenario() -> None:
        async with mesh.AsyncClient(fake.address) as client:
            await client.routes.set(KEY, ROUTE)
            peer, header, _ = fake.received[-1]
            whole = fake.reply(header, wire.pack([[0, None]]))
            for end in range(0, len(whole), 7):
                fake.push(peer, whole[:end])
            for _ in range(5):
                assert (await client.routes.get(KEY)).route == ROUTE

    asyncio.run(scenario())
