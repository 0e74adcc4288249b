"""Attaching on a real node: seats, claims, takeovers and tokens, through kills of everything."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

ROOT = Path(__file__).resolve().parents[2]
NEW = itertools.count(1)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    folder = Path(__file__).parent
    agents = {
        "writer": {"provider": "python", "target": f"{folder / 'approval_agents.py'}:writer"},
        "parrot": {"provider": "python", "target": f"{folder / 'continuing_agents.py'}:parrot"},
    }
    with mesh.LocalNode(tmp_path_factory.mktemp("attach") / "data", config={"agents": agents}) as made:
        yield made


@pytest.fixture(scope="module")
def ann(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client(timeout_s=20.0) as made:
        yield made


@pytest.fixture(scope="module")
def bob(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client(timeout_s=20.0) as made:
        yield made


@pytest.fixture
def sid(ann: mesh.Client) -> str:
    return ann.sessions.start("echo", id=f"s{next(NEW)}").id


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(mesh.MeshError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def until(seat: Any, wanted: str) -> list[mesh.Event]:
    return list(seat.stream(stop_when=lambda event: event.type == wanted, timeout_s=20))


def kill_partition(client: mesh.Client, session_id: str) -> None:
    former = client.partitions.pid(session_id)
    assert former is not None
    os.kill(former, signal.SIGKILL)
    wait_for(lambda: client.partitions.pid(session_id) not in (None, former), "the next incarnation")


def test_a_seat_is_a_snapshot_and_all_that_follows(ann: mesh.Client, bob: mesh.Client, sid: str) -> None:
    """If a viewer attaches, then he knows how it stands, and hears each later event once, through a kill."""
    ann.runs.wait(ann.sessions.prompt(sid, "before").run_id)
    with bob.sessions.attach(sid) as seat:
        assert seat.role == "viewer" and seat.seq == seat.snapshot.session.seq
        assert not seat.snapshot.runs and not seat.snapshot.queued and not seat.snapshot.approvals
        heard = [e.seq for e in until_after(ann, seat, sid, "one")]
        kill_partition(ann, sid)
        heard += [e.seq for e in until_after(ann, seat, sid, "two")]
        assert heard == list(range(seat.snapshot.session.seq + 1, seat.seq + 1))
    with bob.sessions.attach(sid, after=0) as seat:
        assert [e.seq for e in until(seat, "run_completed")][:2] == [1, 2]


def until_after(client: mesh.Client, seat: Any, session_id: str, text: str) -> list[mesh.Event]:
    client.sessions.prompt(session_id, text)
    return until(seat, "run_completed")


def test_the_snapshot_has_what_runs_waits_and_asks(
    ann: mesh.Client, bob: mesh.Client, tmp_path: Path
) -> None:
    """If a run waits for a human and a prompt behind it, then whoever attaches sees both at once."""
    session_id = ann.sessions.start("writer").id
    policy = {"name": "careful", "tool_rules": [["ask", ["write"]]]}
    run = ann.runs.submit(session_id, str(tmp_path / "file"), policy=policy)
    ann.sessions.prompt(session_id, str(tmp_path / "later"))
    wait_for(lambda: list(ann.approvals.list(session_id)), "the question")
    with bob.sessions.attach(session_id, role="driver", by="bob") as seat:
        [found], [question], [waiting] = seat.snapshot.runs, seat.snapshot.approvals, seat.snapshot.queued
        assert (found.id, found.status, question.run_id) == (run.id, "waiting_approval", run.id)
        assert waiting.text == str(tmp_path / "later") and seat.snapshot.omitted == 0
        assert refused(ann.approvals.approve, run.id, question.tool_call_id) == "not_driver"
        assert refused(ann.sessions.abort, session_id) == "not_driver"
        assert seat.approve(run.id, question.tool_call_id).by == "bob"
        assert seat.runs.wait(run.id).output == {"content": "done"}
        seat.sessions.drain(session_id)


def test_a_viewer_does_not_drive_and_a_claim_is_one(ann: mesh.Client, bob: mesh.Client, sid: str) -> None:
    """If Ann drives, then others are not_driver and driver_taken; a viewer is so even where nobody drives."""
    with bob.sessions.attach(sid) as viewer:
        assert refused(viewer.prompt, "x") == "not_driver"
        with ann.sessions.attach(sid, role="driver", by="ann") as driver:
            assert refused(viewer.prompt, "x") == refused(bob.sessions.prompt, sid, "x") == "not_driver"
            assert refused(bob.sessions.attach, sid, role="driver") == "driver_taken"
            assert refused(viewer.claim) == "driver_taken"
            run = driver.prompt("mine")
            assert driver.runs.wait(run.run_id).output == {"content": "mine"}
            assert bob.sessions.get(sid).driver["by"] == "ann"  # type: ignore[index]
        viewer.claim()
        assert viewer.role == "driver"
        viewer.prompt("now it is mine")
        assert viewer.release() and viewer.role == "viewer"
    assert bob.sessions.prompt(sid, "everybody's").run_id


def test_whoever_is_taken_over_learns_it(ann: mesh.Client, bob: mesh.Client, sid: str) -> None:
    """If Bob takes over, then Ann's seat hears who, becomes a viewer, and her next call is refused."""
    former = ann.sessions.attach(sid, role="driver", by="ann")
    with bob.sessions.attach(sid, role="driver", by="bob", takeover=True) as present:
        assert former.role == "driver" and refused(former.prompt, "x") == "not_driver"
        [event] = until(former, "driver_changed")
        told = event.data
        assert (told["driver"], told["former"], told["reason"]) == ("bob", "ann", "takeover")
        assert former.role == "viewer" and present.role == "driver"
        former.detach()  # takes nothing from Bob
        assert bob.sessions.get(sid).driver["by"] == "bob"  # type: ignore[index]


@pytest.mark.parametrize("wrong", [{"role": "owner"}, {"after": -1}, {"after": "x"}, {"after": 10**6},
                                   {"token": "short"}, {"ttl_s": 0, "role": "driver"}])
def test_a_wrong_seat_is_refused_and_leaves_nothing(
    ann: mesh.Client, sid: str, wrong: dict[str, Any]
) -> None:
    """If role, cursor, token or time are nonsense, then a typed error says so and nobody drives."""
    codes = {"role": "invalid_role", "after": "invalid_cursor"}
    code = refused(ann.sessions.attach, sid, **wrong)
    assert code == ("validation_error" if {"token", "ttl_s"} & set(wrong) else codes[next(iter(wrong))])
    assert refused(ann.sessions.attach, sid, role="driver", after=10**6) == "invalid_cursor"
    assert ann.sessions.get(sid).driver is None


def test_a_driver_survives_a_killed_partition(ann: mesh.Client, bob: mesh.Client, sid: str) -> None:
    """If the partition dies, then its successor knows the driver, and nobody else becomes one."""
    with ann.sessions.attach(sid, role="driver", by="ann", ttl_s=3) as seat:
        kill_partition(ann, sid)
        assert refused(bob.sessions.claim, sid) == "driver_taken"
        assert refused(bob.sessions.prompt, sid, "x") == "not_driver"
        assert seat.runs.wait(seat.prompt("still").run_id).output == {"content": "still"}


def test_a_killed_driver_loses_his_right_when_its_time_is_over(
    node: mesh.LocalNode, ann: mesh.Client, sid: str
) -> None:
    """If the driver's process is killed, then the vacancy is announced, and another may claim; not before."""
    program = (
        "import sys, mesh\n"
        f"client = mesh.Client({node.address!r})\n"
        f"seat = client.sessions.attach({sid!r}, role='driver', ttl_s=1.5)\n"
        "print('drives', flush=True)\n"
        "sys.stdin.read()\n"
    )
    doomed = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=ROOT)
    with doomed, ann.sessions.attach(sid) as seat:
        assert doomed.stdout is not None and doomed.stdout.readline() == b"drives\n"
        assert refused(ann.sessions.prompt, sid, "x") == "not_driver"
        [_] = until(seat, "driver_changed")
        doomed.kill()
        [event] = until(seat, "driver_changed")
        assert (event.data["driver"], event.data["reason"]) == (None, "expired")
        seat.claim()
        assert seat.role == "driver"


def test_a_lease_is_renewed_while_its_driver_lives(ann: mesh.Client, bob: mesh.Client, sid: str) -> None:
    """If the driver does nothing for several of his times, then he still drives; the blocking one, too."""
    with ann.sessions.attach(sid, role="driver", ttl_s=1) as seat, bob.sessions.attach(sid) as other:
        until_lapses(other, 3)
        assert seat.role == "driver" and refused(bob.sessions.claim, sid) == "driver_taken"


def until_lapses(seat: Any, seconds: float) -> None:
    """Hear nothing for so long: no vacancy."""
    with contextlib.suppress(mesh.DeadlineExceeded):
        raise AssertionError(next(seat.stream(timeout_s=seconds)))


def test_a_protected_session_is_seen_by_its_token_alone(
    node: mesh.LocalNode, ann: mesh.Client, bob: mesh.Client
) -> None:
    """If a session has a token, then without it, or with that of another session, nothing of it is seen."""
    token, other = mesh.new_token(), mesh.new_token()
    session_id = ann.sessions.start("echo", token=token, context={"who": "ann"}, tags=["kept"]).id
    ann.sessions.start("echo", token=other)
    with node.client(token=token) as inside, node.client(token=other) as outside:
        run = inside.sessions.prompt(session_id, "our secret word")
        assert inside.runs.wait(run.run_id).output == {"content": "our secret word"}
        for client in (bob, outside):
            sessions, runs = client.sessions, client.runs
            for call in (sessions.get, sessions.events, sessions.runs, sessions.transcript, sessions.queued,
                         sessions.stats, sessions.attach, sessions.stop, sessions.claim, sessions.fork):
                assert refused(call, session_id) == "unauthorized", call
            assert refused(sessions.prompt, session_id, "x") == "unauthorized"
            assert refused(sessions.delete, session_id) == "unauthorized"
            assert refused(sessions.set_token, session_id, None) == "unauthorized"
            assert refused(next, sessions.stream(session_id)) == "unauthorized"
            for call in (runs.get, runs.wait, runs.cancel):
                assert refused(call, run.run_id) == "unauthorized", call
            seen = [*sessions.search(tags=["kept"]), *sessions.list(tags=["kept"]), *runs.search(),
                    *client.events.search(limit=500)]
            assert "secret" not in repr(seen) and "'who'" not in repr(seen)
            assert session_id in repr(seen)
        with inside.sessions.attach(session_id, role="driver", after=0) as seat:
            assert "secret" in repr(until(seat, "run_completed"))
            assert refused(bob.sessions.attach, session_id) == "unauthorized"
            renewed = mesh.new_token()
            seat.set_token(renewed)
            assert refused(inside.sessions.get, session_id) == "unauthorized"
            assert seat.sessions.get(session_id).protected
    kill_partition(ann, session_id)
    with node.client(token=renewed) as inside:
        assert "secret" in repr(inside.sessions.transcript(session_id))
        inside.sessions.set_token(session_id, None)
    assert "secret" in repr(bob.sessions.events(session_id))


def test_a_fork_sees_of_a_protected_session_what_its_maker_could(
    node: mesh.LocalNode, ann: mesh.Client, bob: mesh.Client
) -> None:
    """If who forks has the token, then runs of the fork know the original; a fork made otherwise does not."""
    token = mesh.new_token()
    sid = ann.sessions.start("parrot", token=token).id
    with node.client(token=token) as inside:
        inside.runs.wait(inside.sessions.prompt(sid, "our secret word").run_id)
        fork = inside.sessions.fork(sid)
        run = bob.runs.submit(fork.id, "and?", continuation="replay")
        assert "secret" in repr(bob.runs.wait(run.id).output["seen"])
        assert refused(bob.sessions.transcript, fork.id) == "unauthorized"
        inside.sessions.set_token(sid, mesh.new_token())
    made = bob.sessions.start("parrot", id=f"{fork.id}-2")
    call = ("session.start", (f"{made.id}-3", "parrot", {"parent_session_id": sid, "fork_seq": 3}))
    from mesh.core.slots import session_slot

    assert bob._link.call(2, session_slot(f"{made.id}-3"), call)[0] == 0  # as a client without manners
    run = bob.runs.submit(f"{made.id}-3", "and?", continuation="replay")
    assert refused(bob.runs.wait, run.id) == "unauthorized"


def test_who_waits_when_the_token_changes_has_to_show_the_new_one(
    node: mesh.LocalNode, ann: mesh.Client
) -> None:
    """If the token changes while somebody follows, then he hears nothing of what is said after it."""
    token, renewed = mesh.new_token(), mesh.new_token()
    sid = ann.sessions.start("echo", token=token).id
    threads = concurrent.futures.ThreadPoolExecutor(2)
    with node.client(token=token) as inside, node.client(token=renewed) as later, threads as pool:
        seq = inside.sessions.get(sid).seq
        heard: list[mesh.Event] = []
        waits = [pool.submit(lambda **f: heard.extend(inside.sessions.stream(sid, after=seq, **f)), **filters)
                 for filters in ({}, {"type": ["message_sent"]})]
        wait_for(lambda: waiters(ann) >= 2, "both to be parked")
        inside.sessions.set_token(sid, renewed)
        later.sessions.prompt(sid, "our secret word")
        for wait in waits:
            assert refused(wait.result, 20) == "unauthorized"
        assert "secret" not in repr(heard)


def waiters(client: mesh.Client) -> int:
    """How many reads are parked on the node."""
    return sum(int(row.get("waiters", 0)) for row in client.status()["partitions"])


def test_the_feed_tells_of_a_protected_session_that_something_happened_alone(
    node: mesh.LocalNode, ann: mesh.Client
) -> None:
    """If anybody listens to everything, then a protected session's events come without what was said."""
    token = mesh.new_token()
    session_id = ann.sessions.start("echo", token=token).id
    with node.client(token=token) as inside, ann.listen("session.") as feed:
        inside.sessions.prompt(session_id, "our secret word")
        notes = []
        for note in feed:
            notes.append(note)
            if note.data["session_id"] == session_id and note.data["type"] == "run_completed":
                break
    mine = [note for note in notes if note.data["session_id"] == session_id]
    assert len(mine) >= 4 and "secret" not in repr(mine)
    assert all(note.data["metadata"] == {"protected": True} for note in mine)


def test_both_seats_and_many_on_asyncio(node: mesh.LocalNode) -> None:
    """If forty ask for the wheel at once, then one has it, and all hear what he says."""

    async def scene() -> None:
        async with node.async_client(timeout_s=20.0) as client:
            session = await client.sessions.start("echo")
            tries = await asyncio.gather(
                *(client.sessions.attach(session.id, role="driver", by=f"n{n}") for n in range(40)),
                return_exceptions=True,
            )
            [driver] = [seat for seat in tries if isinstance(seat, mesh.AsyncAttachment)]
            assert {e.code for e in tries if isinstance(e, mesh.MeshError)} == {"driver_taken"}
            viewers = [await client.sessions.attach(session.id) for _ in range(5)]
            await driver.prompt("to all")
            for seat in (driver, *viewers):
                types = [event.type async for event in seat.stream(
                    stop_when=lambda event: event.type == "run_completed", timeout_s=20)]
                assert types[-1] == "run_completed"
            async with await client.sessions.attach(session.id, role="driver", takeover=True) as thief:
                async for event in driver.stream(timeout_s=20):
                    assert event.data["claim"] == thief.claimed.claim
                    break
                assert (driver.role, thief.role) == ("viewer", "driver")
                assert await thief.interrupt() == []
                with pytest.raises(mesh.NotAllowed):
                    await driver.abort()
            for seat in (driver, *viewers):
                await seat.detach()
            assert (await client.sessions.get(session.id)).driver is None

    asyncio.run(scene())


def test_the_command_line_drives_and_protects(node: mesh.LocalNode, ann: mesh.Client) -> None:
    """If a key or token is in the environment, then commands act with it; without it they are refused."""

    def run(*args: str, code: int = 0, text: str | None = None, **more: str) -> str:
        environ = {**os.environ, "MESH_ADDRESS": node.address, **more}
        done = subprocess.run([sys.executable, "-m", "mesh", "session", *args], env=environ, cwd=ROOT,
                              capture_output=True, text=True, timeout=60, input=text)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    made = json.loads(run("start", "echo", "--protect", "-o", "json"))
    session_id, token = made["id"], made["token"]
    assert "unauthorized" in run("show", session_id, code=1)
    key = run("claim", session_id, "--by", "ann", MESH_TOKEN=token).strip()
    assert "not_driver" in run("prompt", session_id, "x", code=1, MESH_TOKEN=token)
    assert run("prompt", session_id, "hi", "--wait", MESH_TOKEN=token, MESH_DRIVER=key) == "hi"
    run("release", session_id, MESH_TOKEN=token, MESH_DRIVER=key)
    run("unprotect", session_id, MESH_TOKEN=token)
    with ann.sessions.attach(session_id) as seat:
        lent = ann.sessions.claim(session_id, by="ann")
        with node.client(driver=lent.key) as mine, mine.sessions.attach(session_id, role="driver") as own:
            assert own.role == "driver" and own.claimed.since == lent.since
            own.prompt("mine")
        until(seat, "run_completed")
        assert ann.sessions.renew(session_id, lent.key).claim == lent.claim  # not given back with the seat
        ann.sessions.release(session_id, lent.key)
        until(seat, "driver_changed")
        process = subprocess.Popen(
            [sys.executable, "-m", "mesh", "session", "attach", session_id, "--drive"], cwd=ROOT,
            env={**os.environ, "MESH_ADDRESS": node.address}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with process:
            [event] = until(seat, "driver_changed")
            assert event.data["reason"] == "claimed" and process.stdin is not None
            process.stdin.write(b"typed\n")
            process.stdin.flush()
            assert "typed" in repr(until(seat, "run_completed"))
            process.send_signal(signal.SIGINT)
            [event] = until(seat, "driver_changed")
            assert event.data["reason"] == "released"
            process.wait(20)
