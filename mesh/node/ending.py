"""How a run ends: its status, its error, and what the terminal event says.

The one place where exceptions of agents become errors that people and programs read.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any, NamedTuple

from mesh.core.error_map import failure_data
from mesh.core.plain import plain, plain_map
from mesh.errors import InvalidArgument, LocalProtocolError, MeshError
from mesh.providers.base import Output

TRACEBACK_FRAMES_MAX = 12
MESSAGE_CHARS_MAX = 2_000
#: Frames of these folders tell an agent's author nothing.
_OWN = tuple(f"{Path(__file__).parents[1] / name}/" for name in ("node", "providers"))


class Ending(NamedTuple):
    """How a run ended."""

    status: str
    error: dict[str, Any] | None = None
    output: Output | None = None
    data: dict[str, Any] | None = None  #: of the terminal event, when it is not made from the error


def cancelled(reason: str = "cancel") -> Ending:
    """The ending of a run that somebody ended: ``reason`` is who (cancel, abort, stop, shutdown ...)."""
    message = _CANCELLED.get(reason, f"the run was cancelled: {reason}")
    error = {"code": "cancelled", "message": message, "details": {"reason": reason}}
    return Ending("cancelled", error, data={"reason": reason})


_CANCELLED = {"cancel": "the run was cancelled", "shutdown": "node shutdown"}


def timed_out(what: str, limit: str, limit_s: float) -> Ending:
    """The ending of a run that passed one of its limits (``deadline_s`` or ``idle_s``)."""
    error = {"code": "timeout", "message": f"{what} {limit_s:g} s", "details": {limit: limit_s}}
    return Ending("timeout", error, data={limit: limit_s})


def unstored(limit_s: float) -> Ending:
    """The ending of a run whose events nobody could store for too long."""
    message = f"nothing of the run could be stored for {limit_s:g} s (limits.unstored_s)"
    return Ending("failed", error_map("storage_write_failed", message, {"unstored_s": limit_s}))


def error_map(code: str, message: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
    """The form in which an error travels and is stored."""
    return {"code": code, "message": plain(message[:MESSAGE_CHARS_MAX]), "details": _kept(details or {})}


def _kept(details: Any) -> dict[str, Any]:
    """What cannot be kept of an error's details must not hide the error."""
    try:
        return plain_map(details, "details")
    except InvalidArgument as exc:
        return {"not_kept": exc.message}


def failure(exc: MeshError) -> Ending:
    """The ending of a run whose failure has a code of its own."""
    error = error_map(_code(exc), exc.message, exc.details)
    if exc.provider_error is not None:
        error["provider_error"] = exc.provider_error
    output = getattr(exc, "output", None)
    return Ending("failed", error, None if output is None else Output(data=output))


def _code(exc: MeshError) -> str:
    """What msgpack cannot carry is the agent's mistake, no breach of our protocol."""
    return "provider_error" if exc.code == LocalProtocolError.code else exc.code


def raised(exc: BaseException | None) -> Ending:
    """The ending of a run whose agent raised: the exception's name and text, and where it came from."""
    name = type(exc).__name__
    frames = traceback.extract_tb(exc.__traceback__ if exc is not None else None)
    theirs = [frame for frame in frames if not frame.filename.startswith(_OWN)] or frames
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in theirs[-TRACEBACK_FRAMES_MAX:]]
    text = _text_of(exc)
    return Ending("failed", error_map(
        "provider_error", f"{name}: {text}" if text else name, {"exception": name, "traceback": lines}
    ))


def _text_of(exc: BaseException | None) -> str:
    try:
        return str(exc).encode(errors="replace").decode()
    except Exception:  # noqa: BLE001  an exception whose text raises
        return ""


def terminal_data(ending: Ending) -> dict[str, Any]:
    """The data of the terminal event."""
    if ending.data is not None:
        return ending.data
    return failure_data(ending.error)


__all__ = [
    "Ending", "cancelled", "error_map", "failure", "raised", "terminal_data", "timed_out", "unstored",
]
