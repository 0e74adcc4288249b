"""What a node shows on the terminal that started it: the banner at READY, one status line after that.

Pure text from plain maps; whoever prints decides where and how often.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TextIO

#: The status line is cut to this, or to the terminal when that is narrower, so that it stays ONE line.
LINE_COLUMNS = 79
#: Begin the terminal's line anew.
CLEAR = "\r\x1b[2K"


def banner(info: Mapping[str, Any], program: str = "mesh") -> str:
    """Where the node is, where its data are, and the next three commands to try.

    ``info`` is the node's address map: name, pid, address, feed, data_dir, and when known ipc,
    partitions, runners, version.
    """
    pairs = [
        ("requests", info.get("address")),
        ("feed", info.get("feed")),
        ("local", info.get("ipc")),
        ("data", info.get("data_dir")),
        ("partitions", info.get("partitions")),
        ("runners", info.get("runners")),
    ]
    shown = "\n".join(f"  {name:<11}{value}" for name, value in pairs if value not in (None, ""))
    prefix = program if info.get("name", "mesh") == "mesh" else f"{program} --address {info.get('address')}"
    version = f" {info['version']}" if info.get("version") else ""
    return (
        f"mesh{version}: node {info.get('name', 'mesh')!r} is up (pid {info.get('pid')})\n\n{shown}\n\n"
        "Try in another terminal:\n"
        f'  {prefix} run shell "echo hello"\n'
        f"  {prefix} session start echo\n"
        f"  {prefix} status\n"
    )


def status_line(status: Mapping[str, Any]) -> str:
    """One line about a running node, at most ``LINE_COLUMNS`` wide.

    ``status`` holds ``uptime_s`` and ``children`` (roster entries); counters ``sessions``, ``routes`` and
    ``runs`` are shown when they are there.
    """
    children = list(status.get("children") or ())
    parts = [f"up {_duration(float(status.get('uptime_s') or 0))}"]
    for kind, plural in (("partition", "partitions"), ("runner", "runners")):
        ones = [child for child in children if child.get("kind") == kind]
        if ones:
            ready = sum(child.get("state") == "ready" for child in ones)
            parts.append(f"{plural} {ready}/{len(ones)}")
    parts += [
        f"{name} {status[name]}" for name in ("sessions", "runs", "routes") if status.get(name) is not None
    ]
    parts.append(f"restarts {sum(int(child.get('restarts') or 0) for child in children)}")
    unwell = [
        f"{child.get('name')} {child.get('state')}" for child in children if child.get("state") != "ready"
    ]
    return " | ".join([*parts, *unwell, "Ctrl-C stops"])[:LINE_COLUMNS]


class Screen:
    """What the terminal of a foreground node shows: the banner once, when it serves, then the status line.

    Without a terminal (``line`` False) the banner alone is written, so that a log stays readable.
    """

    def __init__(self, out: TextIO, *, line: bool, facts: Mapping[str, Any], program: str = "mesh") -> None:
        self._out = out
        self._line = line
        self._facts = facts
        self._program = program
        self._served = False

    def show(self, status: Mapping[str, Any]) -> None:
        """Take the supervisor's state (address map, ``serving``, ``uptime_s``, ``children``, ``note``)."""
        text = ""
        if status.get("serving") and not self._served:
            self._served = True
            text = CLEAR * self._line + banner({**self._facts, **status}, self._program) + "\n" * self._line
        if self._line:
            waits = f"starting ... {status.get('note') or ''}".rstrip()
            # A line that is broken in two could not be begun anew: one would be left each second.
            wide = min(LINE_COLUMNS, _columns(self._out) - 1)
            text += CLEAR + (status_line(status) if self._served else waits)[:wide]
        if text:
            self._out.write(text)
            self._out.flush()


def _columns(out: TextIO) -> int:
    """How wide the terminal is now; as wide as the line may be where nobody knows."""
    try:
        return os.get_terminal_size(out.fileno()).columns or LINE_COLUMNS + 1
    except (OSError, ValueError):
        return LINE_COLUMNS + 1


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours >= 24:
        return f"{hours // 24}d{hours % 24}h"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{whole % 60:02}s"


__all__ = ["CLEAR", "LINE_COLUMNS", "Screen", "banner", "status_line"]
