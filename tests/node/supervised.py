"""A node with tiny children, for tests of the supervisor: ``python supervised.py LAUNCH_DOCUMENT``.

Children are steered by files in ``data_dir``: ``<name>.crash`` makes the child of that name die before it is
ready, ``<name>.stubborn`` makes a runner ignore the end of its supervisor, ``<name>.fatal`` holds the message
of a child that knows it cannot start, ``<name>.slow`` makes one say that it goes on, ``restart`` holds a
name that the router asks to restart.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from mesh.config import NodeConfig
from mesh.node.child import Child
from mesh.node.reaper import kill_tree
from mesh.node.supervisor import run
from mesh.store.node_db import NodeDb

BEAT_S = 0.05


def live(child: Child, *, on_turn: object = None) -> bool:
    """Beat until told to stop; False when the supervisor is gone."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    child.control.send("ready", epoch=child.incarnation, pid=os.getpid(), address="tcp://a:1", feed="tcp://a:2")
    while not stopped:
        select.select([child.control], [], [], BEAT_S)
        child.control.send("beat", lag_ms=0)
        for message in child.control.receive():
            if message["t"] == "roster":
                write(child.data_dir / "roster.json", json.dumps(message["children"]))
            if message["t"] == "stop":
                return True
        if child.control.closed:
            return False
        wish = child.data_dir / "restart"
        if child.kind == "router" and wish.exists():
            name = wish.read_text()
            wish.unlink()
            child.control.send("restart", name=name)
    return True


def write(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


def obey_files(child: Child) -> None:
    fatal = child.data_dir / f"{child.name}.fatal"
    if fatal.exists():
        child.control.send("fatal", message=fatal.read_text(), code="config_error")
        sys.exit(1)
    if (child.data_dir / f"{child.name}.crash").exists():
        raise RuntimeError("told to crash")
    while (child.data_dir / f"{child.name}.slow").exists():
        child.control.send("progress", note="slow")
        time.sleep(BEAT_S)


def simple(child: Child) -> None:
    obey_files(child)
    live(child)


def runner(child: Child) -> None:
    """Start a command that leaves its session and its parent, as a daemon does."""
    obey_files(child)
    script = "echo $$ > daemon.draft; mv daemon.draft daemon.pid; exec sleep 1000"
    subprocess.run(["sh", "-c", f"setsid sh -c '{script}' &"], cwd=child.data_dir, check=True)
    stubborn = child.data_dir / f"{child.name}.stubborn"
    live(child)
    while stubborn.exists():
        time.sleep(0.01)
    kill_tree(reap=True)


def resize(child: Child) -> None:
    from mesh.core.slots import even_map

    while (child.data_dir / "resize.slow").exists():
        time.sleep(0.01)
    with NodeDb(child.data_dir / "node.db") as db:
        db.set_map(even_map(child.config.node.partitions))


MAINS = {"router": simple, "partition": simple, "runner": runner, "resize": resize}

if __name__ == "__main__":
    launch = json.loads(Path(sys.argv[1]).read_bytes())
    sys.exit(run(
        msgspec.convert(launch["config"], NodeConfig),
        data_dir=Path(launch["data_dir"]),
        by_name=launch["by_name"],
        parent_fd=launch["parent_fd"],
        ready_fd=launch["ready_fd"],
        mains=MAINS,
    ))
