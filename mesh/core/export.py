"""A session as JSON lines: the header with the session, its runs, its events in order of seq, the end.

    {"mesh_export": 1, "session": {...}}
    {"run": {...}}  ...
    {"event": {...}}  ...
    {"end": {"runs": 1, "events": 7, "seq": 7}}

JSON has no bytes, no numbers that are none and no keys but texts. They are written as maps of one key that
begins with ``$``: ``{"$bytes": base64}``, ``{"$float": "nan"}``, ``{"$pairs": [[key, value], ...]}``; a map
with such a key of its own is written as pairs too. So what is read back equals what was written.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

from mesh.errors import InvalidArgument, shown

VERSION = 1
HEADER, RUN, EVENT, END = "session", "run", "event", "end"
#: What a session is to one node only.
_LOCAL = frozenset(("row", "handle", "deleted_at"))


def header(session: dict[str, Any]) -> dict[str, Any]:
    """The session's map as it stands in the first line."""
    return {name: value for name, value in session.items() if name not in _LOCAL}


def row(run: dict[str, Any]) -> dict[str, Any]:
    """A run's map as it stands in its line."""
    return {name: value for name, value in run.items() if name != "row"}


def encode_line(kind: str, value: Any) -> str:
    """One line, without its end."""
    line = {"mesh_export": VERSION, HEADER: _plain(value)} if kind == HEADER else {kind: _plain(value)}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def decode_line(line: str, number: int) -> tuple[str, dict[str, Any]]:
    """(kind, map) of a line.

    Raises:
        InvalidArgument: names the line.
    """
    try:
        found = json.loads(line)
        if type(found) is dict and "mesh_export" in found:
            if found["mesh_export"] != VERSION:
                theirs = shown(found["mesh_export"], 20)
                raise InvalidArgument(f"line {number}: an export of version {theirs}; this is {VERSION}")
            return HEADER, _map(found[HEADER])
        [(kind, value)] = found.items()
        if kind not in (RUN, EVENT, END):
            raise ValueError(kind)
        return kind, _map(value)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as exc:
        raise InvalidArgument(f"line {number} is no line of an export: {shown(line, 60)}") from exc


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _plain(item) for key, item in value.items()}
        return {"$pairs": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _map(value: Any) -> dict[str, Any]:
    found = _value(value)
    if type(found) is not dict:
        raise TypeError(type(found).__name__)
    return found


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(key, item)] = value.items()
        if key == "$bytes":
            return base64.b64decode(item, validate=True)
        if key == "$float":
            return float(item)
        if key == "$pairs":
            return {_value(one): _value(other) for one, other in item}
    return {key: _value(item) for key, item in value.items()}


__all__ = ["END", "EVENT", "HEADER", "RUN", "VERSION", "decode_line", "encode_line"]
