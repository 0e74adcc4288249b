"""What every test gets: runtime files in a short temporary folder, and no process left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast the machine is must not decide whether a test passes.
settings.register_profile("mesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mesh")

#: A process that was told to end may need this long to be gone; one that is still there after it is a leak.
END_WAIT_S = 5.0
#: Files of tests run in at most so many processes at a time: each of them starts nodes of some six processes.
WORKERS_MAX = 4
#: Never handed down on purpose: a test that wants one sets it itself.
FOREIGN = ("MESH_ADDRESS", "MESH_CONFIG", "MESH_MARK", "MESH_NODE_NAME", "MESH_RUN")


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a runtime folder of its own: short, since a socket's path has at most 107 bytes."""
    for name in FOREIGN:
        os.environ.pop(name, None)
    folder = tempfile.mkdtemp(prefix="mt-", dir="/tmp")
    config.stash[_FOLDER] = folder
    os.environ["MESH_RUNTIME_DIR"] = folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a process of a node or of an agent outlives it, and name it."""
    folder = session.config.stash[_FOLDER]
    until_s = time.monotonic() + END_WAIT_S
    while (left := marked_processes(folder)) and time.monotonic() < until_s:
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    lines = [f"LEFT BEHIND: pid {pid}: {text}" for pid, text in left.items()]
    of_worker = getattr(session.config, "workeroutput", None)
    if of_worker is not None:  # one process of several: the one that reports says it, and fails
        of_worker["left"] = lines
        return
    lines += session.config.stash.get(_LEFT, [])
    report = session.config.pluginmanager.get_plugin("terminalreporter")
    for line in lines:
        if report is not None:
            report.write_line(line, red=True)
    if lines:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Keep what a worker of pytest-xdist says that it left behind."""
    output = getattr(node, "workeroutput", {})
    config: pytest.Config = node.config  # type: ignore[attr-defined]
    config.stash.setdefault(_LEFT, []).extend(output.get("left", []))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use one process where somebody wants to see, or to stop at, what a test does, or runs one file."""
    seen = config.option.usepdb or config.option.capture == "no"
    one = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if seen or one else min(os.cpu_count() or 1, WORKERS_MAX)


def marked_processes(folder: str) -> dict[int, str]:
    """pid -> mark and command of every process that a node of this run started: it knows our folder."""
    found = {}
    ours = f"MESH_RUNTIME_DIR={folder}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            mark = next((item for item in environ if item.startswith(b"MESH_MARK=")), None)
            if mark is None or ours not in environ:
                continue
            stat = (entry / "stat").read_text()
            if stat[stat.rindex(")") + 2] in "ZX":
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        found[int(entry.name)] = f"{mark.decode(errors='replace')} {command or stat.split(' ', 2)[1]}"
    return found


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment without any setting of mesh except the runtime folder."""
    for name in list(os.environ):
        if name.startswith("MESH_") and name != "MESH_RUNTIME_DIR":
            monkeypatch.delenv(name)
    yield monkeypatch


_FOLDER = pytest.StashKey[str]()
_LEFT = pytest.StashKey[list[str]]()
