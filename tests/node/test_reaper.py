"""Finding and killing processes for sure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conditions import wait_for

from mesh.node import reaper
from mesh.node.fork import LogFile, cause_of, signal_name
from mesh.node.reaper import Proc
from mesh.proc import boot_id, read_stat, start_time

pytestmark = pytest.mark.e2e
WAIT_S = 10.0
MARK = "MESH_TEST_MARK"
#: A shell that has a child, which has a child; all print their pid and sleep.
TREE = "echo $$; sh -c 'echo $$; sh -c \"echo \\$\\$; exec sleep 1000\"; :'; :"
#: Wait for a condition, with this file's patience.
until = partial(wait_for, patience_s=WAIT_S)


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start commands in groups of their own; whoever is left is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, **options
        ))
        return started[-1]

    yield start
    for process in started:
        reaper.kill_group(process.pid)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def pids(process: subprocess.Popen[str], count: int) -> list[Proc]:
    assert process.stdout is not None
    found = [reaper.proc_of(int(process.stdout.readline())) for _ in range(count)]
    return [proc for proc in found if proc is not None]


def test_descendants_are_found_at_every_depth(run: Any) -> None:
    """If a process has children and grandchildren, then all are found, parents first, without itself."""
    process = run(["sh", "-c", TREE])
    tree = pids(process, 3)
    assert reaper.descendants(process.pid) == tree[1:]


def test_kill_tree_leaves_nobody_below_and_spares_those_to_keep(run: Any) -> None:
    """If everything below a process is killed, then its kept children and theirs live on."""
    process = run(["sh", "-c", TREE])
    root, child, grandchild = pids(process, 3)
    assert reaper.kill_tree(root.pid, keep=[child.pid]) == []
    assert reaper.alive(grandchild)
    assert reaper.kill_tree(root.pid) == []
    assert not reaper.alive(child)
    assert not reaper.alive(grandchild)


def test_kill_all_takes_descendants_and_groups_along(run: Any) -> None:
    """If a group leader is killed, then its descendants and its group die too."""
    tree = pids(run(["sh", "-c", TREE]), 3)
    assert reaper.kill_all(tree[:1]) == []
    assert not any(reaper.alive(proc) for proc in tree)


def test_signal_to_another_start_time_is_not_sent(run: Any) -> None:
    """If a pid was given to a stranger, then the stranger is not hit."""
    process = run(["sh", "-c", "echo $$; exec sleep 1000"])
    proc, = pids(process, 1)
    stranger = Proc(proc.pid, proc.start_time + 1)
    assert reaper.send_signal(stranger) is False
    assert reaper.kill_all([stranger]) == []
    assert reaper.alive(proc)


def test_dead_process_is_neither_alive_nor_signalled(run: Any) -> None:
    """If a process is dead but not collected, then it counts as dead."""
    process = run(["sh", "-c", "echo $$; exec sleep 1000"])
    proc, = pids(process, 1)
    assert reaper.kill_all([proc]) == []
    assert start_time(proc.pid) is None
    assert reaper.send_signal(proc) is False
    assert reaper.proc_of(proc.pid) is None


def test_mark_is_found_after_the_process_left_its_family(run: Any) -> None:
    """If a command leaves session and parent, then its mark still proves whose it is."""
    value = f"run-{os.getpid()}-{time.monotonic_ns()}"
    environ = reaper.mark_env(MARK, value)
    process = run(["sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000' &"], env=environ)
    daemon, = pids(process, 1)
    process.wait()
    assert reaper.marked(MARK, value) == [daemon]
    assert reaper.marked(MARK, value + "0") == []
    assert reaper.environ_mark(daemon.pid, MARK) == value
    assert reaper.kill_all([daemon]) == []
    assert reaper.marked(MARK, value) == []


def test_mark_of_another_life_is_told_from_our_own(run: Any) -> None:
    """If two lives marked processes, then only the other life's are leftovers."""
    prefix = f"{time.monotonic_ns():x}:"
    old = run(["sh", "-c", "echo $$; exec sleep 1000"], env=reaper.mark_env(MARK, prefix + "old"))
    own = run(["sh", "-c", "echo $$; exec sleep 1000"], env=reaper.mark_env(MARK, prefix + "own"))
    left, = pids(old, 1)
    pids(own, 1)
    assert reaper.marked_elsewhere(MARK, prefix, prefix + "own") == [left]


def test_ancestor_is_never_a_leftover(tmp_path: Path) -> None:
    """If our own parent carries an old mark, then it is spared."""
    script = (
        "import os, subprocess, sys\n"
        "if os.fork() == 0:\n"
        "    from mesh.node.reaper import marked_elsewhere\n"
        f"    os._exit(len(marked_elsewhere({MARK!r}, 'anc:', 'anc:new')))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    environ = reaper.mark_env(MARK, "anc:old") | {"PYTHONPATH": str(Path(reaper.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", script], env=environ, check=False).returncode == 0


def test_unreadable_environment_has_no_mark() -> None:
    """If a process does not exist, then it has no mark and no start time."""
    assert reaper.environ_mark(2**22 + 1, MARK) is None
    assert read_stat(2**22 + 1) is None
    assert reaper.send_signal(Proc(2**22 + 1, 1)) is False


def test_own_group_and_init_are_never_killed() -> None:
    """If somebody asks for our own group, or for pid 1's, then nothing is sent."""
    assert reaper.kill_group(os.getpgrp()) is False
    assert reaper.kill_group(1) is False
    assert reaper.kill_group(0) is False


def test_children_lists_zombies_too(run: Any) -> None:
    """If a child is dead and not collected, then it is still among the children."""
    process = run(["true"])
    until(lambda: (stat := read_stat(process.pid)) and stat.state == "Z", "zombie")
    assert process.pid in reaper.children(os.getpid())
    reaper.reap_unknown([process.pid])
    assert process.wait() == 0


def test_linux_is_not_weaker() -> None:
    """If this is Linux with pidfds, then the promise has no exception."""
    if sys.platform.startswith("linux") and hasattr(os, "pidfd_open"):
        assert reaper.weaker() == []
        assert boot_id()


def test_log_over_its_limit_moves_to_the_older_file(tmp_path: Path) -> None:
    """If a log grows over its limit, then its contents are kept once, and writers go on at the beginning."""
    log = LogFile(tmp_path / "a.log", 100)
    fd = log.open()
    os.write(fd, b"x" * 200)
    log.bound()
    os.write(fd, b"after\n")
    os.close(fd)
    assert (tmp_path / "a.log").read_bytes() == b"after\n"
    assert (tmp_path / "a.log.1").read_bytes() == b"x" * 200
    assert log.last_lines() == "after"


def test_cause_names_status_or_signal(tmp_path: Path) -> None:
    """If a child exits or is killed, then its cause has the one and not the other."""
    log = LogFile(tmp_path / "none.log", 100)
    assert [cause_of(3 << 8, log)[key] for key in ("exit_status", "signal")] == [3, None]
    assert [cause_of(9, log)[key] for key in ("exit_status", "signal")] == [None, "SIGKILL"]
    assert signal_name(40) == "SIG40"
