"""What a kill -9 or a SIGSTOP of each process means for the user. Each row of the README's failure table."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from helpers import pids, wait_for

import mesh

ROUTE = {"external_room_id": "ext", "n": 1}


def key_of(client: mesh.Client, partition: int, prefix: str = "room") -> mesh.SessionKey:
    """A key that lives in a partition."""
    keys = (mesh.SessionKey("telegram", "bot", f"{prefix}_{i}") for i in range(1000))
    return next(key for key in keys if client.partitions.of(key) == partition)


def session_of(client: mesh.Client, partition: int, prefix: str = "s") -> str:
    """A session id that lives in a partition."""
    return next(f"{prefix}{i}" for i in range(1000) if client.partitions.of(f"{prefix}{i}") == partition)


def kill_partition(client: mesh.Client, index: int, number: int = signal.SIGKILL) -> int:
    pid: int = wait_for(lambda: client.partitions.pid(index), "a living partition")
    os.kill(pid, number)
    return pid


def replaced(client: mesh.Client, index: int, former: int) -> bool:
    now = client.partitions.pid(index)
    return now is not None and now != former


def test_killed_partition_is_back_with_everything_that_was_acknowledged(client: mesh.Client) -> None:
    """If a partition is killed, then its routes, sessions and logs are what was acknowledged before."""
    keys = [mesh.SessionKey("telegram", "bot", f"room_{i}") for i in range(500)]
    assert not [r for r in client.routes.set_many([(k, {**ROUTE, "n": i}) for i, k in enumerate(keys)]) if r]
    sid = session_of(client, 0)
    client.sessions.create("echo", id=sid)
    before = client.sessions.events(sid)
    former = kill_partition(client, 0)
    assert [record.route["n"] for record in client.routes.get_many(keys)] == list(range(500))
    assert client.sessions.events(sid) == before
    assert replaced(client, 0, former)
    wait_for(lambda: client.partitions.info(0).epoch == 2, "a new epoch in the status")


def test_killing_one_partition_never_disturbs_the_other(client: mesh.Client) -> None:
    """If partition 0 is killed ten times, then partition 1 keeps its process and its routes."""
    other = key_of(client, 1)
    client.routes.set(other, ROUTE)
    pid = client.partitions.pid(1)
    for _ in range(5):
        former = kill_partition(client, 0)
        assert client.routes.get(other).route == ROUTE
        wait_for(lambda former=former: replaced(client, 0, former), "the partition's next incarnation")
    assert client.partitions.pid(1) == pid


def test_writes_under_repeated_kills_are_neither_lost_nor_doubled(client: mesh.Client) -> None:
    """If a partition dies while a client writes, then each acknowledged write is there exactly once."""
    sid = session_of(client, 0)
    client.sessions.start("echo", id=sid)
    stop = threading.Event()
    done: list[str] = []

    def write() -> None:
        while not stop.is_set():
            done.append(client.runs.create(sid, {"n": len(done)}).id)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(4):
            seen = len(done)
            former = kill_partition(client, 0)
            wait_for(lambda former=former: replaced(client, 0, former), "the next incarnation")
            wait_for(lambda seen=seen: len(done) > seen + 20, "writes going on")
    finally:
        stop.set()
        writer.join()
    stored = [run.id for run in client.sessions.runs(sid)]
    assert stored == done


def test_frozen_partition_is_killed_and_replaced(client: mesh.Client) -> None:
    """If a partition is stopped, then it is killed, and its waiting calls are answered by the next one."""
    key = key_of(client, 0)
    client.routes.set(key, ROUTE)
    former = kill_partition(client, 0, signal.SIGSTOP)
    assert client.routes.get(key).route == ROUTE
    assert client.partitions.pid(0) != former
    cause = wait_for(lambda: client.partitions.info(0).cause, "the cause of death")
    assert cause["signal"] in (9, "SIGKILL")


def test_resolve_with_a_fallback_answers_while_the_partition_is_frozen(client: mesh.Client) -> None:
    """If a partition is frozen, then resolve answers session_unavailable with the caller's fallback."""
    key = key_of(client, 0)
    client.routes.set(key, ROUTE)
    former = kill_partition(client, 0, signal.SIGSTOP)
    found = client.routes.resolve(key, fallbacks=[{"external_room_id": "lobby"}])
    assert (found.external_room_id, found.source, found.fallback_reason) == (
        "lobby",
        "provided_fallback",
        "session_unavailable",
    )
    wait_for(lambda: replaced(client, 0, former), "the partition's next incarnation")
    assert client.routes.resolve(key).source == "state_hit"


def test_fallback_of_a_frozen_partition_is_told_on_the_feed(client: mesh.Client) -> None:
    """If the SDK answers session_unavailable itself, then route.unavailable names the partition."""
    key = key_of(client, 1)
    with client.listen("route.unavailable") as feed:
        kill_partition(client, 1, signal.SIGSTOP)
        client.routes.resolve(key, fallbacks=[{"external_room_id": "lobby"}])
        assert next(iter(feed)).data["partition"] == 1


def test_killed_router_is_noticed_as_a_delay_at_most(client: mesh.Client) -> None:
    """If the router is killed, then calls go on with the next one, and nothing is lost."""
    keys = [mesh.SessionKey("telegram", "bot", f"room_{i}") for i in range(50)]
    client.routes.set_many([(k, ROUTE) for k in keys])
    former = client.status()["router"]["pid"]
    os.kill(former, signal.SIGKILL)
    assert all(record.route == ROUTE for record in client.routes.get_many(keys))
    client.routes.set(keys[0], {**ROUTE, "n": 2})
    assert client.routes.get(keys[0]).route["n"] == 2
    assert client.status()["router"]["pid"] != former


def test_run_survives_the_death_of_its_partition(client: mesh.Client) -> None:
    """If the partition dies while a run executes, then the run completes, with one contiguous log."""
    sid = session_of(client, 0)
    client.sessions.start("sleeper", id=sid)
    run = client.runs.submit(sid, "1.0")
    wait_for(lambda: client.sessions.events(sid, type="message_streamed"), "the first piece")
    kill_partition(client, 0)
    result = client.runs.wait(run.id)
    assert result.output["content"] == "starteddone"
    events = client.sessions.events(sid)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events].count("run_completed") == 1


def test_killed_runner_settles_its_runs_and_restarts_its_sessions(client: mesh.Client) -> None:
    """If the runner dies, then its run is outcome_unknown, the session comes back under its id."""
    client.sessions.start("sleeper", id="victim")
    handle = client.sessions.handle("victim")
    with client.listen("lifecycle.") as feed:
        run = client.runs.submit("victim", "60")
        wait_for(lambda: client.sessions.events("victim", type="message_streamed"), "the first piece")
        os.kill(handle.pid, signal.SIGKILL)
        with pytest.raises(mesh.MeshError) as failure:
            client.runs.wait(run.id)
        assert failure.value.code == "outcome_unknown"
        restarted = next(n for n in feed if n.topic == "lifecycle.restarted.victim")
    new = client.sessions.handle("victim")
    assert (new.incarnation, new.pid) == (handle.incarnation + 1, restarted.data["handle"]["pid"])
    assert new.pid != handle.pid
    with pytest.raises(mesh.MeshError) as stale:
        client.sessions.stop_by_handle(handle)
    assert stale.value.code == "not_found"
    terminal = [e.type for e in client.sessions.events("victim", run_id=run.id) if e.type.startswith("run_")]
    assert terminal == ["run_started", "run_failed"]
    again = client.runs.submit("victim", "0")
    assert client.runs.wait(again.id).output["content"] == "starteddone"


def test_idempotent_agent_is_executed_again_after_its_runner_died(client: mesh.Client) -> None:
    """If an agent is declared idempotent, then its run is executed again, once, under a new attempt."""
    client.sessions.start("safe", id="again")
    run = client.runs.submit("again", "60")
    wait_for(lambda: client.sessions.events("again", type="message_streamed"), "the first piece")
    os.kill(client.sessions.handle("again").pid, signal.SIGKILL)
    assert client.runs.wait(run.id).run_id == run.id
    assert client.runs.get(run.id).attempt == 2


def test_frozen_runner_is_replaced_and_its_run_settled(client: mesh.Client) -> None:
    """If the runner is stopped, then it is killed and replaced, and its run is outcome_unknown."""
    client.sessions.start("sleeper", id="frozen")
    run = client.runs.submit("frozen", "60")
    wait_for(lambda: client.sessions.events("frozen", type="message_streamed"), "the first piece")
    os.kill(client.sessions.handle("frozen").pid, signal.SIGSTOP)
    with pytest.raises(mesh.MeshError) as failure:
        client.runs.wait(run.id)
    assert failure.value.code == "outcome_unknown"


def test_listener_misses_and_repeats_nothing_while_everything_is_killed(client: mesh.Client) -> None:
    """If router and partitions die while a run streams, then a listener sees each event once, in order."""
    sid = session_of(client, 0)
    client.sessions.start("sleeper", id=sid)
    feed = client.listen(f"session.{sid}.")
    submitted: list[str] = []

    def drive() -> None:
        for number in range(6):
            submitted.append(client.runs.submit(sid, "0.3").id)
            victim = client.status()["router"]["pid"] if number % 2 else client.partitions.pid(0)
            if victim:
                os.kill(victim, signal.SIGKILL)
            client.runs.wait(submitted[-1])

    driver = threading.Thread(target=drive)
    driver.start()
    seen: list[Any] = []
    try:
        for notification in feed:
            seen.append(notification.data["seq"])
            completed = notification.topic.endswith("run_completed")
            if completed and len(submitted) == 6 and notification.data["run_id"] == submitted[-1]:
                break
    finally:
        driver.join()
        feed.close()
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    assert pids(client, "router")


def test_partition_that_is_down_answers_at_once_until_restarted_by_hand(
    node_config: dict[str, Any],
) -> None:
    """If a partition exhausts its restarts, then it is down: refused at once, the other serves on, and a
    restart by hand brings it back with its routes."""
    config = {**node_config, "supervision": {"intensity": 2, "heartbeat_s": 0.2}}
    with mesh.LocalNode(config=config) as node, node.client(timeout_s=20.0) as client:
        key, other = key_of(client, 0), key_of(client, 1)
        client.routes.set_many([(key, ROUTE), (other, ROUTE)])
        with client.listen("node.partition_down") as feed:
            for _ in range(3):
                former = kill_partition(client, 0)
                wait_for(lambda former=former: client.partitions.pid(0) != former, "the death")
            assert next(iter(feed)).data["index"] == 0
        with pytest.raises(mesh.MeshError) as refused:
            client.routes.get(key)
        assert refused.value.code == "partition_unavailable"
        assert client.routes.resolve(key, [{"external_room_id": "lobby"}]).external_room_id == "lobby"
        assert client.routes.get(other).route == ROUTE
        assert client.partitions.info(0).state == "down"
        client.partitions.restart(0)
        assert wait_for(lambda: client.partitions.pid(0), "the restarted partition")
        assert client.routes.get(key).route == ROUTE


def test_runs_wait_for_a_runner_that_is_being_replaced(client: mesh.Client) -> None:
    """If the only runner just died, then a run that is submitted meanwhile completes with its successor."""
    (runner,) = wait_for(lambda: pids(client, "runner"), "the runner").values()
    os.kill(runner, signal.SIGKILL)
    results = [client.run_once("echo", f"n{i}").output["content"] for i in range(5)]
    assert results == [f"n{i}" for i in range(5)]


def test_everything_killed_at_once_comes_back_with_its_state(client: mesh.Client) -> None:
    """If router, partitions and runner are killed together, then calls go on and nothing is lost."""
    client.routes.set("t:b:r", ROUTE)
    client.sessions.start("echo", id="all")
    status = client.status()
    for child in status["children"]:
        os.kill(child["pid"], signal.SIGKILL)
    assert client.routes.get("t:b:r").route == ROUTE
    assert client.runs.wait(client.sessions.prompt("all", "back").run_id).output["content"] == "back"
    assert client.status()["router"]["pid"] != status["router"]["pid"]


def test_list_right_after_a_restart_is_complete(client: mesh.Client) -> None:
    """If routes are listed while their partition still loads them, then the pages hold every route."""
    keys = [mesh.SessionKey("telegram", "bot", f"room_{i}") for i in range(6000)]
    for start in range(0, len(keys), 2000):
        client.routes.set_many([(key, ROUTE) for key in keys[start : start + 2000]])
    for index in (0, 1):
        kill_partition(client, index)
    found: list[str] = []
    cursor = None
    while True:
        page = client.routes.list(limit=1000, cursor=cursor)
        assert not page.missing
        found += [entry.session_key for entry in page]
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(map(str, keys))


def test_restart_by_hand_leaves_live_sessions_and_runs_alone(client: mesh.Client) -> None:
    """If a partition is restarted by hand, then its live sessions and their runs go on."""
    sid = session_of(client, 0)
    client.sessions.start("sleeper", id=sid)
    handle = client.sessions.handle(sid)
    run = client.runs.submit(sid, "0.7")
    wait_for(lambda: client.sessions.events(sid, type="message_streamed"), "the first piece")
    former = client.partitions.pid(0)
    client.partitions.restart(0)
    wait_for(lambda: replaced(client, 0, former or 0), "the next incarnation")
    assert client.runs.wait(run.id).output["content"] == "starteddone"
    assert client.sessions.handle(sid) == handle
