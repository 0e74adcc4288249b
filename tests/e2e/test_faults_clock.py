"""The wall clock jumps by a day, both ways, under a node that runs: only timestamps follow it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import pids, wait_for

import mesh

DAY_S = 86_400
HOUR_MS = 3_600_000
ROUTE = {"external_room_id": "x"}
PLACES = ("/usr/lib", "/usr/local/lib", "/opt/homebrew/lib")


def faketime() -> Path:
    """The library that shifts a process's wall clock; installed on a build machine, else a reason to skip."""

    def installed() -> Path | None:
        return next((path for root in PLACES for path in Path(root).glob("**/libfaketime.so.1")), None)

    build_machine = os.environ.get("CI") == "true" and os.getuid() == 0
    if installed() is None and build_machine and shutil.which("apt-get"):
        for step in (["update"], ["install", "-y", "--no-install-recommends", "libfaketime"]):
            subprocess.run(["apt-get", "-q", *step], check=False, capture_output=True, timeout=100)
    found = installed()
    if found is None:
        pytest.skip("needs libfaketime: apt install libfaketime")
    return found


@pytest.fixture
def wall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Shifts the wall clock of every process of the nodes of this test; monotonic clocks stay true."""
    library, file = faketime(), tmp_path / "offset"

    def shift(seconds: int) -> None:
        draft = file.with_suffix(".draft")
        draft.write_text(f"{seconds:+d}")
        draft.replace(file)

    shift(0)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
    for name in ("FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"):
        monkeypatch.setenv(name, "1")
    return shift


def key(n: int) -> mesh.SessionKey:
    return mesh.SessionKey("telegram", "bot", f"room_{n}")


def check_lifetimes(client: mesh.Client, count: int) -> None:
    """Nothing lives shorter or longer than it was given."""
    for n in range(count):
        record = client.routes.get(key(n))
        assert 0 <= record.age_ms < 60_000 and HOUR_MS - 60_000 < record.ttl_left_ms <= HOUR_MS


def heads(client: mesh.Client, epoch: int, count: int) -> None:
    """Wait for some seconds of a partition's life: a head each, with its sweeps."""
    with client.listen("node.head") as news:
        for note in news:
            count -= note.data["epoch"] == epoch
            if not count:
                return


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_clock_jump_moves_timestamps_and_nothing_else(
    tmp_path: Path, node_config: dict[str, Any], wall: Callable[[int], None], jump_s: int
) -> None:
    """If the clock jumps by a day, then lifetimes, running work, order, restarts and receipts go on as if
    nothing had happened, also for a partition and a node that start after it."""
    config = {**node_config, "sessions": {"idle_timeout_s": 120.0}}
    with (
        mesh.LocalNode(tmp_path / "data", partitions=1, config=config) as node,
        node.client(timeout_s=20.0) as client,
    ):
        client.routes.set_many([(key(n), ROUTE, HOUR_MS) for n in range(50)])
        session = client.sessions.start("sleeper", id="s")
        run = client.runs.submit("s", "2.5", deadline_s=60.0)
        wait_for(lambda: client.sessions.events("s", type="message_streamed"), "it runs")
        before = (pids(client, "partition"), pids(client, "runner"))
        first = client.sessions.events("s")[0].ts

        wall(jump_s)
        result = client.runs.wait(run.id)
        assert result.output["content"] == "starteddone"
        assert abs(result.events[-1].ts - first - jump_s) < 60
        check_lifetimes(client, 50)
        assert client.sessions.handle("s").session_id == session.id
        log = client.sessions.events("s")
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        assert client.sessions.events("s", after=log[2].seq) == log[3:]
        since = client.sessions.events("s", since=first + DAY_S / 2)
        assert since == [event for event in log if event.ts >= first + DAY_S / 2]
        heads(client, client.partitions.info(0).epoch, 2)
        assert (pids(client, "partition"), pids(client, "runner")) == before
        assert all(child["restarts"] == 0 for child in client.status()["children"])

        former = client.partitions.pid(0)
        os.kill(former, signal.SIGKILL)
        wait_for(lambda: client.partitions.pid(0) not in (None, former), "the next incarnation")
        heads(client, 2, 2)  # its sweeps ran
        client.routes.set(key(50), ROUTE, ttl_ms=HOUR_MS)
        check_lifetimes(client, 51)
    with (
        mesh.LocalNode(tmp_path / "data", partitions=1, config=config) as node,
        node.client(timeout_s=20.0) as client,
    ):
        check_lifetimes(client, 51)
        assert client.run_once("echo", "hi").output["content"] == "hi"
