"""What stands in for Linux's own calls elsewhere: driven here with the answers that macOS gives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mesh import proc
from mesh.net import sockets
from mesh.node import reaper
from mesh.store import file
from mesh.store.node_db import NodeDb
from mesh.store.sqlite import Store

PS = """    1     0     1 Ss   Sun Nov 22 02:15:08 2026
 4711     1  4711 S+   Sun Nov 22 02:15:09 2026
 4712  4711  4711 Z    Sun Nov 22 02:15:10 2026
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A machine without /proc; the commands that were run there."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        if command[0].endswith("sysctl"):
            return SimpleNamespace(stdout="8C5F-11\n")
        rows = [row for row in PS.splitlines(True) if "-ax" in command or row.split()[0] == command[2]]
        return SimpleNamespace(stdout="".join(rows))

    monkeypatch.setattr(proc, "_HAS_PROC", False)
    monkeypatch.setattr(proc, "_PROC", tmp_path)
    monkeypatch.setattr(proc, "subprocess", SimpleNamespace(run=run))
    proc._boot_session.cache_clear()
    return commands


def test_processes_are_read_from_ps_where_there_is_no_proc(asked: list[list[str]]) -> None:
    """If there is no /proc, then ps says who is there, whose child, and since when; a zombie is dead."""
    stat = proc.read_stat(4711)
    assert stat is not None and stat[:4] == (4711, 1, 4711, "S")
    assert proc.start_time(4711) == stat.start_time and proc.start_time(4712) is None
    assert proc.read_stat(99) is None
    assert [(p.pid, p.ppid) for p in proc.process_table()] == [(1, 0), (4711, 1), (4712, 4711)]
    assert all(command[0] == "/bin/ps" for command in asked)


def test_a_boot_has_a_name_on_macos_too(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no /proc, then the kernel is asked for its boot session, once; else there is none."""
    assert [proc.boot_id(), proc.boot_id()] == ["8C5F-11"] * 2 and len(asked) == 1

    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(proc, "subprocess", SimpleNamespace(run=missing))
    proc._boot_session.cache_clear()
    assert proc.boot_id() == ""
    proc._boot_session.cache_clear()


def test_what_linux_alone_can_do_is_left_out_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this is no Linux, then its calls are not made, and what is weaker is said."""
    monkeypatch.setattr("sys.platform", "darwin")
    assert not reaper.become_subreaper() and not reaper.set_death_signal(9)
    assert len(reaper.weaker()) == 3
    for name in ("SCHED_BATCH", "sched_setscheduler", "sched_getscheduler"):
        monkeypatch.delattr(os, name, raising=False)
    sockets.context(patient=True).term()


def test_power_means_the_disk_itself_on_macos_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If fsync leaves data in the disk's own cache, then databases and archives ask for more."""
    with NodeDb(tmp_path / "node.db") as db:
        assert db._db.pragma("fullfsync") == 1
    store = Store(tmp_path / "p.db")
    assert store.connection.pragma("fullfsync") == 1
    store.connection.close()
    done: list[Any] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda *args: done.append(args))
    monkeypatch.setattr(os, "fsync", done.append)
    file.sync(7)
    assert done == [(7, 51)]

    def none(*_: Any) -> None:
        raise OSError(45, "not supported")

    monkeypatch.setattr(fcntl, "fcntl", none)
    file.sync(8)
    assert done == [(7, 51), 8]
