"""Listeners: gapless, in order, each message once, and late joiners that ask for what they missed."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import islice
from typing import Any

import pytest
from helpers import wait_for

import mesh


def take(feed: Any, count: int) -> list[mesh.Notification]:
    """The next messages."""
    return list(islice(feed, count))


@pytest.mark.parametrize(("topic", "sid"), [("session.", "early"), ("session.alone.", "alone")])
def test_late_listener_continues_behind_its_cursor(client: mesh.Client, topic: str, sid: str) -> None:
    """If a listener comes back with a cursor, then it gets exactly what came behind it."""
    with client.listen(topic) as feed:
        client.run_once("counter", "5", id=sid)
        first = take(feed, 3)
        cursor = first[-1].cursor
        rest = []
        for note in feed:
            rest.append((note.topic, note.data["seq"]))
            if note.topic.endswith("session_completed"):
                break
    with client.listen(topic, after=cursor) as late:
        again = [(note.topic, note.data["seq"]) for note in take(late, len(rest))]
    assert again == rest


def test_listener_of_one_session_hears_nothing_of_others(client: mesh.Client) -> None:
    """If a listener subscribes to one session, then it gets its events only, from seq 1 on."""
    with client.listen("session.mine.") as feed:
        client.run_once("counter", "3", id="other")
        client.run_once("counter", "3", id="mine")
        seen = []
        for note in feed:
            seen.append(note.data["seq"])
            assert note.data["session_id"] == "mine"
            if note.topic.endswith("session_completed"):
                break
    assert seen == list(range(1, len(seen) + 1))


def test_topics_of_ids_with_dots_are_escaped(client: mesh.Client) -> None:
    """If an id holds a dot, then its topic writes %2E, and a subscription by that topic works."""
    with client.listen("lifecycle.started.a%2Eb") as feed:
        client.sessions.start("echo", id="a.b")
        assert take(feed, 1)[0].topic == "lifecycle.started.a%2Eb"


def test_route_telemetry_reaches_a_listener(client: mesh.Client) -> None:
    """If somebody listens to route., then the decisions of resolve are told with their fields."""
    with client.listen("route.") as feed:
        wait_for(lambda: client.routes.set("t:b:r", {"external_room_id": "1"}) or True, "a set")
        client.routes.resolve("t:b:r:th")
        told = {}
        for note in feed:
            told[note.topic] = note.data
            if note.topic == "route.resolved":
                break
    assert told["route.fallback"]["reason"] == "thread_scope_miss"
    assert told["route.resolved"]["outcome"] == "fallback"


def test_node_topics_tell_the_cause_of_a_death(client: mesh.Client) -> None:
    """If a partition is killed, then node.partition_restarted tells the signal."""
    with client.listen("node.partition_") as feed:
        os.kill(client.partitions.pid(1), signal.SIGKILL)
        note = next(n for n in feed if n.topic == "node.partition_restarted")
    assert note.data["index"] == 1
    assert note.data["cause"]["signal"] in (9, "SIGKILL")


def test_closing_a_listener_from_another_thread_ends_the_iteration(client: mesh.Client) -> None:
    """If a listener is closed while somebody iterates, then the iteration ends."""
    import threading

    feed = client.listen("lifecycle.")
    threading.Timer(0.1, feed.close).start()
    assert list(feed) == []


def test_many_listeners_each_see_everything_once(node: mesh.LocalNode) -> None:
    """If twenty asyncio listeners follow the feed, then each gets the same messages in the same order."""

    async def scenario() -> list[list[tuple[int, int]]]:
        async with node.async_client(timeout_s=20.0) as client:
            feeds = [await client.listen("session.") for _ in range(20)]
            runs = 20

            async def follow(feed: Any) -> list[tuple[int, int]]:
                seen, ended = [], 0
                async for note in feed:
                    seen.append((note.data["partition"], note.data["pos"]))
                    ended += note.topic.endswith("session_completed")
                    if ended == runs:
                        return seen
                return seen

            followers = [asyncio.create_task(follow(feed)) for feed in feeds]
            await asyncio.gather(*(client.run_once("counter", "10") for _ in range(runs)))
            return await asyncio.gather(*followers)

    everything = asyncio.run(scenario())
    for partition in (0, 1):
        own = [[pos for p, pos in seen if p == partition] for seen in everything]
        assert all(
            positions == list(range(positions[0], positions[0] + len(positions)))
            for positions in own
            if positions
        )
        assert len({len(positions) for positions in own}) == 1


@pytest.mark.parametrize("topics", [(), ("",)])
def test_listening_without_a_topic_is_everything(client: mesh.Client, topics: tuple[str, ...]) -> None:
    """If the topic is empty, then lifecycle and session messages come."""
    with client.listen(*topics) as feed:
        client.run_once("echo", "x", id="all")
        groups = set()
        for note in feed:
            groups.add(note.topic.partition(".")[0])
            if {"lifecycle", "session"} <= groups:
                break


def test_messages_that_nobody_reads_yet_let_the_loop_sleep(
    node: mesh.LocalNode, client: mesh.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a listener's owner is busy elsewhere while messages wait, then the event loop sleeps on."""

    async def turns_while_waiting() -> int:
        selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        selects, select = 0, selector.select

        def counted(timeout: float | None = None) -> Any:
            nonlocal selects
            selects += 1
            return select(timeout)

        async with node.async_client() as asynchronous, await asynchronous.listen("session.") as feed:
            monkeypatch.setattr(selector, "select", counted)
            await asyncio.to_thread(client.sessions.create, "echo", id="s")
            await asyncio.sleep(0.3)
            monkeypatch.undo()
            assert (await anext(feed)).data["session_id"] == "s"
        return selects

    assert asyncio.run(turns_while_waiting()) < 100
