"""A run and its workspace: whatever ends the run, the folder is given back, and one ending is written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conditions import wait_for
from driving import Bench, Result, drive
from workspace_folders import plain, state

from mesh.config import LimitsSection
from mesh.log import Log
from mesh.node import drive as drive_module
from mesh.node.ending import cancelled
from mesh.node.ws_drive import Workspaces
from mesh.workspaces.job import Job
from mesh.workspaces.locks import try_lock

SHELL = {"agent": {"provider": "shell"}}
LIMIT_S = 20.0


class Gate:
    """Holds up a method of every job until it is opened; says when somebody came."""

    def __init__(self, patch: pytest.MonkeyPatch, method: str) -> None:
        self.came, self.open = threading.Event(), threading.Event()
        real = getattr(Job, method)

        def held(job: Job, *args: Any) -> Any:
            self.came.set()
            assert self.open.wait(LIMIT_S)
            return real(job, *args)

        patch.setattr(Job, method, held)

    async def passed(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not self.came.is_set():
                await asyncio.sleep(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plain(tmp_path / "w")


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Run a play on a bench whose workspaces have a folder of their own; afterwards nothing is left in it."""

    def start(what: Callable[[Bench], Any]) -> Any:
        async def main(bench: Bench) -> Any:
            bench.workspaces = Workspaces(tmp_path / "data", LimitsSection(), bench.processes, Log("test"))
            return await what(bench)

        return drive(SHELL, main)

    yield start
    runs = tmp_path / "data" / "workspaces" / "runs"
    wait_for(lambda: not runs.is_dir() or not list(runs.iterdir()), "no record is left")


def _free(folder: Path) -> bool:
    lock = try_lock(folder)
    if lock is not None:
        lock.release()
    return lock is not None


def _option(folder: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(folder), "rollback_on_failure": True, **more}


def test_the_events_stand_in_their_order(play: Any, folder: Path) -> None:
    """If a run completes in a workspace, then the snapshots frame what its provider says."""

    async def one(bench: Bench) -> Result:
        return await bench.result(bench.begin("agent", "echo x > new", workspace=_option(folder)))

    result = play(one)
    assert result.types == [
        "run_started", "workspace_snapshot_taken", "message_received", "workspace_snapshot_taken",
        "workspace_diff_computed", "run_completed",
    ]
    assert result.data("run_started")[0]["cwd"] == str(folder.resolve())
    assert result.settle["workspace"]["diff"]["changed_paths"] == ["new"]


def test_a_cancel_while_the_state_before_is_taken_begins_no_provider(
    play: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a run is cancelled before its snapshot is there, then it never ran and its folder is free."""
    gate = Gate(monkeypatch, "open")

    async def one(bench: Bench) -> Result:
        run = bench.begin("agent", "touch ran", workspace=_option(folder))
        await gate.passed()
        run.stop(cancelled())
        gate.open.set()
        return await bench.result(run)

    result = play(one)
    assert result.settle["status"] == "cancelled" and "ran" not in state(folder) and _free(folder)


def test_a_run_that_completed_is_not_cancelled_while_its_folder_is_looked_at(
    play: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a cancel comes when the provider is done, then it is too late: the run keeps its work."""
    gate = Gate(monkeypatch, "close")

    async def one(bench: Bench) -> Result:
        run = bench.begin("agent", "touch ran", workspace=_option(folder))
        await gate.passed()
        run.stop(cancelled())
        assert run.task is not None
        run.task.cancel()
        gate.open.set()
        return await bench.result(run)

    result = play(one)
    assert result.settle["status"] == "completed" and "ran" in state(folder) and _free(folder)


def test_a_cancel_does_not_wait_for_a_long_rollback_which_goes_on(
    play: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If going back takes long, then the run is settled in time; the folder stays taken until it is done."""
    gate = Gate(monkeypatch, "_undo")
    monkeypatch.setattr(drive_module, "CANCEL_S", 0.05)
    exact = state(folder)

    async def one(bench: Bench) -> Result:
        run = bench.begin("agent", "touch ran; echo ready; sleep 60", workspace=_option(folder))
        await bench.until(run, lambda result: "message_streamed" in result.types)
        run.stop(cancelled())
        result = await bench.until(run, lambda result: bool(result.settle))
        await gate.passed()
        assert not _free(folder) and "ran" in state(folder)
        gate.open.set()
        await bench.result(run)
        return result

    result = play(one)
    assert result.settle["status"] == "cancelled"
    assert state(folder) == exact and _free(folder)


def test_a_fenced_run_is_undone_without_a_word(play: Any, folder: Path) -> None:
    """If an attempt is over elsewhere, then its changes go: the next attempt finds the folder as it was."""
    exact = state(folder)

    async def one(bench: Bench) -> None:
        run = bench.begin("agent", "touch ran; echo ready; sleep 60", workspace=_option(folder))
        await bench.until(run, lambda result: "message_streamed" in result.types)
        run.drop()
        await bench.done[run.key[0]].wait()

    play(one)
    assert state(folder) == exact and _free(folder)


def test_waiting_for_a_folder_is_no_silence_of_the_agent(play: Any, folder: Path) -> None:
    """If a run with idle_s waits for its folder for longer than that, then it still runs."""
    lock = try_lock(folder)
    assert lock is not None

    async def one(bench: Bench) -> Result:
        run = bench.begin("agent", "true", workspace=_option(folder), idle_s=10.0)
        run._heard_s -= 100.0
        run._look(10.0)
        assert run.ending is None and not run.settled
        lock.release()
        return await bench.result(run)

    assert play(one).settle["status"] == "completed"


def test_an_error_of_ours_in_a_thread_fails_the_run_and_frees_the_folder(
    play: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If something unforeseen is raised while the state is taken, then the run fails and nothing is held."""

    def broken(job: Job) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(Job, "open", broken)

    async def one(bench: Bench) -> Result:
        return await bench.result(bench.begin("agent", "true", workspace=_option(folder)))

    result = play(one)
    assert result.settle["status"] == "failed" and "unforeseen" in result.error["message"] and _free(folder)


def test_a_folder_too_large_to_keep_is_refused_before_the_provider(
    play: Any, folder: Path, tmp_path: Path
) -> None:
    """If a rollback would need more than limits allow, then the run fails at once and has changed nothing."""
    exact = state(folder)

    async def one(bench: Bench) -> Result:
        limits = LimitsSection(workspace_bytes=10)
        bench.workspaces = Workspaces(tmp_path / "data", limits, bench.processes, Log("test"))
        return await bench.result(bench.begin("agent", "touch ran", workspace=_option(folder)))

    result = play(one)
    assert result.error["code"] == "limit_exceeded" and "rollback is not possible" in result.error["message"]
    assert state(folder) == exact and _free(folder)
