"""``python -m mesh.node [FILE | fd:N | begun:N]``: be the supervisor of one node.

The launch document (``mesh/launch.py``) comes from the file, the descriptor, or stdin; ``begun`` waits for a
word on stdin before it looks at the descriptor.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import msgspec

from mesh.config import NodeConfig
from mesh.errors import ConfigError, MeshError
from mesh.launch import BEGUN, GO, MARK, data_hash, exec_again
from mesh.launch_view import CLEAR, Screen
from mesh.log import Log
from mesh.node.supervisor import run


def main(arguments: list[str]) -> int:
    """Read the document, make sure that the environment mark was there at exec, and run."""
    if arguments and arguments[0].startswith(BEGUN):
        if os.read(0, 1) != GO:
            for folder in arguments[1:]:  # there will be no node, or nobody is left who wanted it
                rmtree(folder, ignore_errors=True)
            return 1
        arguments = [f"fd:{arguments[0].removeprefix(BEGUN)}"]
    try:
        launch = _read(arguments)
        config = msgspec.convert(launch["config"], NodeConfig)
        data_dir = Path(launch["data_dir"])
    except (ValueError, KeyError, TypeError, OSError) as exc:
        return _complain(ConfigError(f"not a launch document: {exc}"))
    if not os.environ.get(MARK, "").startswith(data_hash(data_dir) + ":"):
        exec_again(launch, data_dir)
    sys.path += [path for path in launch.get("sys_path", ()) if path not in sys.path]
    return _foreground(launch, config, data_dir) if launch.get("foreground") else run(
        config,
        data_dir=data_dir,
        by_name=bool(launch.get("by_name")),
        parent_fd=launch.get("parent_fd"),
        ready_fd=launch.get("ready_fd"),
    )


def _foreground(launch: dict[str, Any], config: NodeConfig, data_dir: Path) -> int:
    """On a terminal the status line has the screen, and the log goes to its file."""
    terminal = sys.stdout.isatty()
    facts = {"partitions": config.node.partitions, "runners": config.hosting().count}
    program = shlex.quote(os.environ.get("_MESH_PROGRAM") or "mesh")
    screen = Screen(sys.stdout, line=terminal, facts=facts, program=program)
    status = run(
        config,
        data_dir=data_dir,
        by_name=bool(launch.get("by_name")),
        status=screen.show,
        log=_file_log(data_dir) if terminal else None,
        complain=_complain if terminal else None,
    )
    if terminal and status == 0:
        with suppress(OSError):  # it may have been closed: that is how many nodes are stopped
            sys.stdout.write("\n")
            sys.stdout.flush()
    return status


def _read(arguments: list[str]) -> dict[str, Any]:
    source = arguments[0] if arguments else "fd:0"
    if source.startswith("fd:"):
        with os.fdopen(int(source[3:]), "rb", closefd=source != "fd:0") as file:
            launch: dict[str, Any] = json.load(file)
        return launch
    read: dict[str, Any] = json.loads(Path(source).read_bytes())
    return read


def _complain(error: MeshError) -> int:
    clear = CLEAR if sys.stderr.isatty() else ""
    sys.stderr.write(f"{clear}mesh: {error.message}\n")
    sys.stderr.flush()
    return 1


def _file_log(data_dir: Path) -> Log | None:
    path = data_dir / "logs" / "supervisor.log"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    return Log("supervisor", fd=fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
