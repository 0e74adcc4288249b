"""A real runner process, driven through the router's end of its mailbox and the supervisor's end of its
pipe."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runner_bench import INCARNATION, RunnerBench, decode, gone, types, wait_until

from mesh.core import wire
from mesh.core.frames import LEAST_BYTES
from mesh.core.slots import run_id_for

GOOD = ["run_started", "message_streamed", "message_received", "run_completed"]
AGENTS = """
import asyncio, os, subprocess, sys, threading, time

async def flood(run):
    while True:
        yield "x" * 1000

def blocks(run):
    async def inner():
        time.sleep(1.6)
        await asyncio.sleep(0.5)
        return "done"
    return inner()

def prints(run):
    print("from a thread", end=" ")
    print("and its end")
    sys.stderr.write("no newline")
    return "x"

async def waits(run):
    yield "started"
    await asyncio.sleep(1000)

async def exits_elsewhere(run):
    async def leave():
        sys.exit(3)
    asyncio.create_task(leave())
    await asyncio.sleep(0.05)
    yield "still here"

def popen(run):
    child = subprocess.Popen(["/bin/sh", "-c", "exit 7"], start_new_session=True)
    time.sleep(float(run.prompt))
    return str(child.wait())

async def counts(run):
    run.state["n"] = run.state.get("n", 0) + 1
    yield str(run.state["n"])
"""
NAMES = ("flood", "blocks", "prints", "waits", "exits_elsewhere", "popen", "counts")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: an ipc socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def bench(folder: Path) -> Iterator[RunnerBench]:
    file = folder / "agents.py"
    file.write_text(AGENTS)
    agents = {name: {"provider": "python", "target": f"{file}:{name}"} for name in NAMES}
    with RunnerBench(folder, agents=agents, limits={"runner_unacked_bytes": 200_000}) as running:
        yield running


def test_run_is_executed_and_its_story_stored(bench: RunnerBench) -> None:
    """If a run command arrives, then it is acknowledged, and its events come in order with one settlement."""
    run_id = bench.run("hello")
    assert bench.expect("acks") == ["acks", 1, 1]
    events, settle = bench.follow(run_id)
    assert types(events) == GOOD
    assert {event["run_id"] for event in events} == {run_id}
    assert settle["status"] == "completed"
    assert settle["output"] == {"content": "hello"}
    assert settle["provider_metadata"] == {"provider": "echo"}


def test_ready_names_the_incarnation_and_comes_again(bench: RunnerBench) -> None:
    """If the router listens, then it hears who we are, again and again, and the supervisor hears beats."""
    first = bench.expect("ready", partition=-1)
    assert first[1:5] == ["R", 0, INCARNATION, bench.process.pid]
    assert first[5]["runs"] == 0
    assert bench.heard("ready") == {"t": "ready", "epoch": INCARNATION, "pid": bench.process.pid}
    assert bench.heard("beat")["lag_ms"] < 1000


def test_catalogue_is_told_to_every_partition(bench: RunnerBench) -> None:
    """If the router welcomed us, then each partition learns our agents, and at the end without a loading
    one."""
    for partition in (0, 1):
        message = bench.expect(
            "catalogue", partition=partition, where=lambda m: all(entry["problem"] is None for entry in m[2])
        )
        assert [entry["name"] for entry in message[2]] == sorted([*NAMES, "echo", "shell"])
        assert message[1] is None


def test_batch_is_sent_again_until_it_is_stored(bench: RunnerBench) -> None:
    """If a batch is not confirmed, then the same batch comes again; once it is, it comes no more."""
    run_id = bench.run("hello")
    first = bench.batch(run_id)
    assert bench.batch(run_id) == first
    bench.send(0, ["stored", run_id, 1, 1])
    assert bench.silent("batch")


def test_repeated_command_runs_once(bench: RunnerBench) -> None:
    """If a command is repeated because its acknowledgement was lost, then it is acknowledged, not executed
    again."""
    run_id = bench.run("hello")
    bench.follow(run_id)
    bench.expect("acks")
    bench.numbers[0] = 1
    bench.run("hello", run_id=run_id)
    assert bench.expect("acks") == ["acks", 1, 1]
    assert bench.silent("batch")


def test_command_behind_a_gap_waits(bench: RunnerBench) -> None:
    """If a command was lost, then the next is not executed before it, and both are when it is repeated."""
    bench.numbers[0] = 2
    second = bench.run("two")
    assert bench.expect("acks") == ["acks", 1, 0]
    bench.numbers[0] = 1
    first = bench.run("one")
    assert bench.expect("acks") == ["acks", 1, 1]
    bench.run("two", run_id=second)
    for run_id in (first, second):
        assert bench.follow(run_id)[1]["status"] == "completed"


def test_expected_makes_it_send_from_there(bench: RunnerBench) -> None:
    """If the partition misses a batch, then it gets that one and all behind it, at once."""
    run_id = bench.run("t u v w x y", provider_opts={"delay_s": 0.05})
    bench.batch(run_id, 3)
    bench.inbox.clear()
    bench.send(0, ["expected", run_id, 1, 2])
    assert [bench.batch(run_id)[3] for _ in range(2)] == [2, 3]
    assert types(bench.follow(run_id)[0])[0] == "run_started"


def test_expected_of_what_was_confirmed_is_lost(bench: RunnerBench) -> None:
    """If the partition asks for what it had confirmed, then the run cannot be told whole, and it hears
    lost."""
    run_id = bench.run("t u v w x y c f", provider_opts={"delay_s": 0.2})
    bench.batch(run_id, 1)
    bench.send(0, ["stored", run_id, 1, 1])
    bench.send(0, ["expected", run_id, 1, 1])
    assert bench.expect("lost") == ["lost", [[run_id, 1]]]


def test_new_epoch_of_the_partition_gets_everything_again(bench: RunnerBench) -> None:
    """If the partition was replaced, then what it had not stored comes again, and the run goes on."""
    run_id = bench.run("t u v w x y", provider_opts={"delay_s": 0.05})
    bench.batch(run_id, 2)
    bench.inbox.clear()
    bench.epochs[0], bench.numbers[0] = 2, 1
    bench.command(["known", [[run_id, 1], ["run_" + "0" * 32, 1]]])
    assert bench.expect("lost") == ["lost", [["run_" + "0" * 32, 1]]]
    bench.expect("catalogue")
    events, settle = bench.follow(run_id)
    assert (types(events)[0], types(events)[-1], settle["status"]) == (
        "run_started",
        "run_completed",
        "completed",
    )


def test_word_of_a_dead_epoch_is_ignored(bench: RunnerBench) -> None:
    """If a message of a partition's former self comes late, then it changes nothing."""
    run_id = bench.run("hello")
    bench.batch(run_id)
    bench.epochs[0], bench.numbers[0] = 2, 1
    bench.command(["known", [[run_id, 1]]])
    bench.epochs[0] = 1
    bench.send(0, ["stored", run_id, 1, 1])
    bench.send(0, ["fenced", run_id, 1])
    bench.inbox.clear()
    bench.batch(run_id)
    bench.epochs[0] = 2
    assert bench.follow(run_id)[1]["status"] == "completed"


def test_new_router_hears_us_and_gets_what_is_open(bench: RunnerBench) -> None:
    """If the router was replaced, then it hears ready, and its welcome makes us send again what is
    unconfirmed."""
    run_id = bench.run("hello")
    bench.batch(run_id)
    bench.restart_router()
    bench.welcome(boot=2)
    bench.expect("catalogue", partition=1)
    assert bench.follow(run_id)[1]["status"] == "completed"


def test_fenced_run_is_stopped_and_forgotten(bench: RunnerBench) -> None:
    """If an attempt is fenced, then its command is ended and nothing more is said of it."""
    run_id = bench.run("echo $$; sleep 1000", agent="shell")
    (pid,) = map(int, bench.lines(run_id, 1)[0])
    bench.send(0, ["fenced", run_id, 1])
    wait_until(lambda: gone(pid), "the end of the command")
    assert bench.silent("batch")
    bench.command(["known", [[run_id, 1]]])
    assert bench.expect("lost") == ["lost", [[run_id, 1]]]


def test_cancel_settles_the_run_when_its_command_is_gone(bench: RunnerBench) -> None:
    """If a run is cancelled, then its settlement comes after the end of its processes."""
    run_id = bench.run("setsid sh -c 'echo $$; exec sleep 1000' & wait", agent="shell")
    said, n = bench.lines(run_id, 1)
    (pid,) = map(int, said)
    bench.command(["cancel", run_id, 1])
    _, _, _, _, rows, settle = bench.batch(run_id, n + 1)
    assert gone(pid)
    assert types([decode(row) for row in rows]) == ["message_received", "run_cancelled"]
    assert settle["status"] == "cancelled"


def test_cancel_of_an_unknown_run_is_answered_lost(bench: RunnerBench) -> None:
    """If a run to be cancelled is not here, then the partition hears that, and need not wait."""
    bench.command(["cancel", "run_" + "1" * 32, 1])
    assert bench.expect("lost") == ["lost", [["run_" + "1" * 32, 1]]]


def test_newer_attempt_replaces_the_older(bench: RunnerBench) -> None:
    """If the same run comes with a higher attempt, then the former is dropped and the new one told."""
    run_id = bench.run("x", agent="waits")
    bench.batch(run_id, 1)
    bench.run("hello", run_id=run_id, attempt=2)
    bench.inbox.clear()
    bench.expect("batch", where=lambda m: m[2] == 2 and bench.inbox.append((0, m)) is None)
    events, settle = bench.follow(run_id, attempt=2)
    assert (events[0]["data"]["attempt"], settle["status"]) == (2, "completed")


def test_reload_takes_the_changed_file_and_answers_its_token(bench: RunnerBench, folder: Path) -> None:
    """If an agent's file changed, then reload answers with the token, and the next run is the new code's."""
    (folder / "agents.py").write_text(
        AGENTS.replace('"done"', '"x"') + "\nasync def waits(run):\n    yield 'new'\n"
    )
    bench.command(["reload", "t1"])
    answer = bench.expect("catalogue", where=lambda m: m[1] == "t1")
    assert all(entry["problem"] is None for entry in answer[2])
    assert bench.follow(bench.run("x", agent="waits"))[1]["output"] == {"content": "new"}
    (folder / "agents.py").write_text("1 / 0")
    bench.command(["reload", "t2"])
    answer = bench.expect("catalogue", where=lambda m: m[1] == "t2")
    assert "ZeroDivisionError" in next(entry["problem"] for entry in answer[2] if entry["name"] == "waits")


def test_unconfirmed_bytes_stop_the_provider(bench: RunnerBench) -> None:
    """If nothing is stored, then a flooding agent is not pulled any more, and goes on when something is."""
    run_id = bench.run("x", agent="flood")
    level = bench.expect("ready", partition=-1, where=lambda m: m[5]["unacked_bytes"] > LEAST_BYTES)[5][
        "unacked_bytes"
    ]
    assert level < 400_000
    for n in range(1, 4):
        bench.batch(run_id, n)
        bench.send(0, ["stored", run_id, 1, n])
    bench.batch(run_id, 4)
    bench.command(["cancel", run_id, 1])
    bench.expect("batch", where=lambda m: m[5] is not None)


def test_closed_session_loses_its_state(bench: RunnerBench) -> None:
    """If a session's live actor ended, then the next run of that session begins with an empty state."""
    said = []
    for close in (False, False, True):
        if close:
            bench.command(["close", "ses_1"])
        said.append(bench.follow(bench.run("x", agent="counts"))[1]["output"]["content"])
    assert said == ["1", "2", "1"]


def test_blocking_agent_is_named_in_its_run_and_in_the_log(bench: RunnerBench) -> None:
    """If an agent blocks the loop, then the heart beats on with the lag, and its run and the log name it."""
    run_id = bench.run("x", agent="blocks")
    wait_until(lambda: bench.heard("beat")["lag_ms"] >= 1000, "a late beat")
    events, settle = bench.follow(run_id)
    assert settle["status"] == "completed"
    [event] = [event for event in events if event["type"] == "error_occurred"]
    assert event["data"]["lag_ms"] >= 1000
    assert "agents.py:" in event["data"]["error_message"]
    assert "the loop is blocked" in bench.printed()


def test_printed_lines_name_session_and_run(bench: RunnerBench) -> None:
    """If an agent prints, then each line in the log is marked with its session and run, also from
    a thread."""
    run_id = bench.run("x", agent="prints", session="ses_p")
    bench.follow(run_id)
    wait_until(lambda: "no newline" in bench.printed(), "the unfinished line")
    assert f"[ses_p {run_id}] from a thread and its end\n" in bench.printed()
    assert f"[ses_p {run_id}] no newline\n" in bench.printed()


def test_exit_in_a_background_task_does_not_end_the_runner(bench: RunnerBench) -> None:
    """If a task that an agent made calls sys.exit, then the process and the run go on."""
    run_id = bench.run("x", agent="exits_elsewhere")
    assert bench.follow(run_id)[1]["output"] == {"content": "still here"}


def test_exit_status_of_an_agent_s_own_child_is_not_stolen(bench: RunnerBench) -> None:
    """If an agent waits late for its own subprocess, then its exit status is still there."""
    assert bench.follow(bench.run("1.5", agent="popen"))[1]["output"] == {"content": "7"}


def test_orphans_of_commands_do_not_stay_as_zombies(bench: RunnerBench) -> None:
    """If commands leave daemons that are killed with them, then the runner collects the dead."""
    bench.follow(bench.run("sleep 1000 & setsid sleep 1000 & sleep 0.2", agent="shell"))
    children = Path(f"/proc/{bench.process.pid}/task/{bench.process.pid}/children")
    wait_until(lambda: not children.read_text().split(), "a runner without children")


def test_malformed_message_is_refused_and_the_next_one_taken(bench: RunnerBench) -> None:
    """If a message or a command makes no sense, then it is counted and logged, and the runner serves on."""
    peer = wire.actor_id(b"P", 0, 1)
    for body in (b"\xc1", wire.pack(3), wire.pack([]), wire.pack(["no_such"]), wire.pack(["stored"])):
        bench.router.send(bench.identity, 2)
        bench.router.send(peer + bytes(8) + body)
    bench.command(["no_such"], ["cancel"], ["run", 1])
    assert bench.follow(bench.run("hello"))[1]["status"] == "completed"
    assert "a message was refused" in bench.printed()


def test_stop_cancels_the_runs_and_waits_until_that_is_stored(bench: RunnerBench) -> None:
    """If the runner is told to stop, then its runs end as cancelled, that is stored, and it says bye."""
    echo = bench.run("x", agent="waits")
    shell = bench.run("echo $$; sleep 1000", agent="shell")
    (pid,) = map(int, bench.lines(shell, 1)[0])
    bench.batch(echo, 1)
    bench.inbox.clear()
    bench.control.send("stop")
    for run_id in (echo, shell):
        settle = bench.follow(run_id)[1]
        assert (settle["status"], settle["error"]["message"]) == ("cancelled", "node shutdown")
    bench.expect("bye", partition=-1)
    assert bench.process.wait(20) == 0
    assert gone(pid)


def test_stop_without_anybody_who_stores_ends_too(bench: RunnerBench) -> None:
    """If nobody confirms the last batches, then the runner ends nevertheless, with exit status 0."""
    bench.run("x", agent="waits")
    bench.expect("batch")
    bench.stop()
    assert bench.process.wait(20) == 0


def test_death_of_the_supervisor_takes_all_commands_along(bench: RunnerBench) -> None:
    """If the control pipe ends, then the runner kills what it started, a daemon too, and ends."""
    run_id = bench.run("echo $$; setsid sh -c 'echo $$; exec sleep 1000' & wait", agent="shell")
    pids = [int(line) for line in bench.lines(run_id, 2)[0]]
    bench.control.close()
    assert bench.process.wait(20) == 1
    wait_until(lambda: all(map(gone, pids)), "the end of the commands")


def test_death_of_the_supervisor_is_noticed_while_an_agent_blocks(bench: RunnerBench) -> None:
    """If the supervisor dies while the loop is blocked, then the runner ends without waiting for
    the agent."""
    bench.run("x", agent="blocks")
    bench.expect("acks")
    began_s = time.monotonic()
    bench.control.close()
    assert bench.process.wait(20) == 1
    assert time.monotonic() - began_s < 20


def test_many_runs_at_once_all_end(bench: RunnerBench) -> None:
    """If hundreds of runs arrive in one message, then each gets its whole story."""
    record = {"id": "ses_1", "agent": "echo", "agent_id": "e", "incarnation": 1}
    ids = [run_id_for("ses_1", os.urandom(16).hex()) for _ in range(300)]
    bench.command(*(["run", run_id, 1, record, "a b", {}] for run_id in ids))
    stories: dict[str, Any] = {run_id: bench.follow(run_id) for run_id in ids}
    assert {settle["status"] for _, settle in stories.values()} == {"completed"}
    wait_until(lambda: bench.expect("ready", partition=-1)[5]["unacked_bytes"] == 0, "an empty outbox")


def test_run_of_which_nothing_can_be_stored_is_stopped(tmp_path: Path) -> None:
    """If the events of a run are not stored for limits.unstored_s, then its agent is stopped and it fails
    with a typed error, which is stored when that is possible again."""
    config = {"limits": {"unstored_s": 0.5}, "agents": {"shell": {"provider": "shell"}}}
    with RunnerBench(tmp_path, **config) as bench:
        run_id = bench.run("echo $$; exec sleep 1000", agent="shell")
        (pid,) = map(int, bench.lines(run_id, 1)[0])
        last = bench.expect("batch", where=lambda m: m[1] == run_id and m[5] and "status" in m[5])
        assert gone(pid)
        assert (last[5]["status"], last[5]["error"]["code"]) == ("failed", "storage_write_failed")
        assert types([decode(row) for row in last[4]])[-1] == "run_failed"
        bench.send(0, ["stored", run_id, 1, last[3]])
