"""``python -m mesh.node [FILE | fd:N]``: be the supervisor of one node.

The launch document (``mesh/launch.py``) comes from the file, the descriptor, or stdin.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from mesh.config import NodeConfig
from mesh.errors import ConfigError, MeshError
from mesh.launch import MARK, data_hash, exec_again
from mesh.log import Log
from mesh.node.supervisor import Status, run

_CLEAR = "\r\x1b[2K"


def main(arguments: list[str]) -> int:
    """Read the document, make sure that the environment mark was there at exec, and run."""
    try:
        launch = _read(arguments)
        config = msgspec.convert(launch["config"], NodeConfig)
        data_dir = Path(launch["data_dir"])
    except (ValueError, KeyError, TypeError, OSError) as exc:
        return _complain(ConfigError(f"not a launch document: {exc}"))
    if not os.environ.get(MARK, "").startswith(data_hash(data_dir) + ":"):
        exec_again(launch, data_dir)
    sys.path += [path for path in launch.get("sys_path", ()) if path not in sys.path]
    foreground = bool(launch.get("foreground"))
    terminal = foreground and sys.stderr.isatty()
    return run(
        config,
        data_dir=data_dir,
        by_name=bool(launch.get("by_name")),
        parent_fd=launch.get("parent_fd"),
        ready_fd=launch.get("ready_fd"),
        status=_status_line() if terminal else None,
        log=_file_log(data_dir) if terminal else None,
        complain=_complain if terminal else None,
    )


def _read(arguments: list[str]) -> dict[str, Any]:
    source = arguments[0] if arguments else "fd:0"
    if source.startswith("fd:"):
        with os.fdopen(int(source[3:]), "rb", closefd=source != "fd:0") as file:
            launch: dict[str, Any] = json.load(file)
        return launch
    read: dict[str, Any] = json.loads(Path(source).read_bytes())
    return read


def _complain(error: MeshError) -> int:
    clear = _CLEAR if sys.stderr.isatty() else ""
    sys.stderr.write(f"{clear}mesh: {error.message}\n")
    sys.stderr.flush()
    return 1


def _file_log(data_dir: Path) -> Log | None:
    """On a terminal the status line has the screen, and the log goes to its file."""
    path = data_dir / "logs" / "supervisor.log"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Log("supervisor", fd=os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError:
        return None


def _status_line() -> Status:
    def show(now: dict[str, Any]) -> None:
        children = now["children"]
        parts = [f"mesh {now['name']}", now["address"] or "starting"]
        for kind in ("partition", "runner"):
            states = [child["state"] for child in children if child["kind"] == kind]
            parts.append(f"{kind}s {states.count('ready')}/{len(states)}")
        parts.append(f"restarts {sum(child['restarts'] for child in children)}")
        parts += [f"{child['name']} DOWN" for child in children if child["state"] == "down"]
        parts.append(f"up {int(now['uptime_s'])} s, Ctrl-C stops")
        line = "  ".join(parts)[: _columns() - 1]
        sys.stderr.write(_CLEAR + line)
        sys.stderr.flush()

    return show


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns
    except OSError:
        return 80


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
