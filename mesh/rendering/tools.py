"""Calls of tools in a person's words: what goes on, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mesh.rendering.text import as_text, clean, preview

COMMAND_CHARS, PATH_CHARS, WORDS_CHARS = 60, 60, 80
#: Shorter calls are not worth a number.
SHOWN_DURATION_S = 2.0
#: How tools are called by those who have them -> the family whose words fit.
_FAMILY = {
    "bash": "bash",
    "edit": "edit",
    "edit_file": "edit",
    "exec_command": "bash",
    "glob": "glob",
    "grep": "grep",
    "local_shell": "bash",
    "multiedit": "edit",
    "read": "read",
    "read_file": "read",
    "shell": "bash",
    "task": "task",
    "web_fetch": "fetch",
    "web_search": "search",
    "webfetch": "fetch",
    "websearch": "search",
    "write": "write",
    "write_file": "write",
}


class Call(NamedTuple):
    """One call of a tool, as its events told it."""

    name: str
    input: Any = None
    output: Any = None
    error: Any = None
    failed: bool = False
    exit_code: int | None = None
    duration_s: float = 0.0


def running(call: Call) -> str:
    """What goes on: ``Reading lib/a.py``."""
    make = _RUNNING.get(_family(call.name))
    return f"Using {shown_name(call.name)}" if make is None else make(call)


def wanted(call: Call) -> str:
    """What somebody is asked to allow: ``Bash: git push``."""
    what = _command(call) or preview(call.input, WORDS_CHARS)
    return shown_name(call.name) + (f": {what}" if what else "")


def summary(call: Call) -> str:
    """What became of it: ``Read lib/a.py (72 lines)``."""
    family = _family(call.name)
    if family == "bash":
        return _bash(call)
    if call.failed:
        return f"{running(call)} failed{_more(preview(call.error or call.output, WORDS_CHARS))}"
    make = _DONE.get(family)
    if make is None:
        return f"{shown_name(call.name)} complete{_more(size(call.output), _duration(call))}"
    return make(call)


def output_lines(call: Call) -> list[str]:
    """What the tool gave, clean, line by line, without empty ones."""
    given = call.output if call.output not in (None, "") else call.error
    return [line.rstrip() for line in clean(as_text(given)).splitlines() if line.strip()]


def shown_name(name: str) -> str:
    """``mcp__files__read`` is ``files: read``."""
    parts = name.split("__")
    return f"{parts[1]}: {'__'.join(parts[2:])}" if parts[0] == "mcp" and len(parts) > 2 else name


def size(output: Any) -> str:
    """How long a result is."""
    count = len(as_text(output))
    if not count:
        return ""
    if count < 1000:
        return f"{count} chars"
    return f"{count / 1000:.1f}k chars" if count < 10_000 else f"{count // 1000}k chars"


def short_path(path: str) -> str:
    """A long path by its beginning and its last two parts."""
    parts = [part for part in path.split("/") if part]
    if len(path) <= PATH_CHARS or len(parts) < 4:
        return path
    return "/".join(["/" + parts[0] if path.startswith("/") else parts[0], "...", *parts[-2:]])


def _family(name: str) -> str:
    return _FAMILY.get(name.lower(), "")


def _given(call: Call, *names: str, most: int = WORDS_CHARS) -> str:
    """The first of these that the input has, on one line."""
    values = call.input if isinstance(call.input, dict) else {}
    for name in names:
        value = values.get(name)
        if isinstance(value, list):
            value = " ".join(map(as_text, value))
        if text := preview(value, most):
            return text
    return ""


def _path(call: Call) -> str:
    return short_path(_given(call, "file_path", "path", most=1000)) or "file"


def _command(call: Call) -> str:
    if isinstance(call.input, str):
        return preview(call.input, COMMAND_CHARS)
    return _given(call, "command", "cmd", most=COMMAND_CHARS)


def _lines(value: Any) -> str:
    count = sum(1 for line in as_text(value).splitlines() if line)
    return f"{count} line" if count == 1 else f"{count} lines"


def _count(call: Call, one: str, many: str) -> str:
    count = len(output_lines(call))
    return f"{count} {one if count == 1 else many}"


def _duration(call: Call) -> str:
    return f"{call.duration_s:.1f}s" if call.duration_s > SHOWN_DURATION_S else ""


def _more(*parts: str) -> str:
    told = ", ".join(part for part in parts if part)
    return f" ({told})" if told else ""


def _bash(call: Call) -> str:
    command = _command(call) or "bash"
    code = call.exit_code if call.exit_code is not None else int(call.failed)
    how = "Bash failed" if call.failed else "Ran"
    why = "" if call.output else preview(call.error, WORDS_CHARS)
    return f"{how}: {command}{_more(f'exit {code}', size(call.output), _duration(call), why)}"


def _host(call: Call) -> str:
    try:
        return urlsplit(_given(call, "url", most=1000)).hostname or "web resource"
    except ValueError:
        return "web resource"


def _pattern(call: Call) -> str:
    return _given(call, "pattern") or "pattern"


def _written(call: Call) -> str:
    given = call.input.get("content") if isinstance(call.input, dict) else ""
    return f"Wrote {_path(call)} ({_lines(given)})"


_Words = Callable[[Call], str]
_RUNNING: dict[str, _Words] = {
    "bash": lambda call: f"Running: {_command(call)}" if _command(call) else "Running bash",
    "edit": lambda call: f"Editing {_path(call)}",
    "fetch": lambda call: f"Fetching {_host(call)}",
    "glob": lambda call: f"Searching for {_given(call, 'pattern') or 'files'}",
    "grep": lambda call: f'Searching "{_pattern(call)}" in {_given(call, "path") or "."}',
    "read": lambda call: f"Reading {_path(call)}",
    "search": lambda call: f'Searching: "{_given(call, "query")}"',
    "task": lambda call: f"Running task: {_given(call, 'description') or 'task'}",
    "write": lambda call: f"Writing {_path(call)}",
}
_DONE: dict[str, _Words] = {
    "edit": lambda call: f"Edited {_path(call)}",
    "fetch": lambda call: f"Fetched {_host(call)}{_more(size(call.output), _duration(call))}",
    "glob": lambda call: f"Found {_count(call, 'file', 'files')} matching {_given(call, 'pattern') or '*'}",
    "grep": lambda call: f'Found {_count(call, "match", "matches")} for "{_pattern(call)}"',
    "read": lambda call: f"Read {_path(call)} ({_lines(call.output)})",
    "search": lambda call: f'Searched: "{_given(call, "query")}"{_more(_duration(call))}',
    "task": lambda call: (
        f"Task complete: {_given(call, 'description') or 'task'}{_more(_duration(call))}"
    ),
    "write": _written,
}

__all__ = ["Call", "output_lines", "running", "short_path", "shown_name", "size", "summary", "wanted"]
