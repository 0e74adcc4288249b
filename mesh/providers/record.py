"""``record``: another agent, and a file to which all it says is appended, without its secrets.

Keys of the agent's table: ``agent`` (the name of the other one), ``file``. A run of it is a run of the other
agent in all but this: capabilities, provider, prices, tools and failures are the other's.
``core/recording.py`` says what stands in the file; ``provider = "replay"`` says it again.

Lines are written as they come, each by one write at the file's end, so runs and runners share a file and a
kill costs the last word at most. A file that cannot be written does not fail the run: it says so, once
(``error_occurred``), and goes on unrecorded.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.core import export, recording
from mesh.core.plain import plain
from mesh.core.redact import Redactor
from mesh.core.redact_stream import Stream
from mesh.errors import ConfigError, InvalidArgument, MeshError
from mesh.providers.base import OUTPUT, Output, Piece, Provider, RunContext, check_keys, checked

if TYPE_CHECKING:
    from mesh.providers.kinds import Place

_TEXTS = ("content", "delta")
#: Streams of one run whose words may be held back at a time.
STREAMS_MAX = 16


class RecordProvider:
    """Another agent, recorded."""

    CAPABILITIES: tuple[dict[str, Any], ...] = ()
    tested = "every other provider"

    def __init__(self, table: Mapping[str, Any], place: Place) -> None:
        """Prove the file; the other agent is looked for when it is asked.

        Raises:
            ConfigError: a wrong setting, or a file that cannot be written.
        """
        check_keys(table, ("agent", "file"))
        self._agent: str = checked(table, "agent", (str,), "")
        if not self._agent:
            raise ConfigError("agent: the name of the agent to record is needed")
        if self._agent == place.agent:
            raise ConfigError(f"agent = {self._agent!r:.80}: an agent does not record itself")
        self._ready, self._find, self._redactor = place.ready, place.find, place.redactor
        self._path = _writable(checked(table, "file", (str,), ""))

    @property
    def name(self) -> str:
        """The other's: prices and records go by it."""
        other = self._ready(self._agent)
        return "record" if other is None else other.name

    @property
    def capabilities(self) -> list[dict[str, Any]]:
        """The other's."""
        other = self._ready(self._agent)
        return [] if other is None else other.capabilities

    @property
    def enforces(self) -> frozenset[str]:
        """The other's."""
        other = self._ready(self._agent)
        return frozenset() if other is None else other.enforces

    @property
    def idempotent(self) -> bool:
        """The other's."""
        other = self._ready(self._agent)
        return other is not None and other.idempotent

    @property
    def usage_mode(self) -> str:
        """The other's."""
        other = self._ready(self._agent)
        return "total" if other is None else other.usage_mode

    def started(self, run: RunContext) -> dict[str, Any]:
        """What the other says, when it is there. That it refuses the run is recorded too."""
        other = self._ready(self._agent)
        if other is None:
            return {}
        try:
            return other.started(run)
        except Exception as exc:
            tape = _Tape(self._path, run, other, self._redactor)
            tape.begin(self._agent, {})
            tape.end(exc)
            raise

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Hand on what the other says, and write it down."""
        late = self._ready(self._agent) is None
        other = await self._find(self._agent)
        about = other.started(run)
        if late:
            yield {"type": "run_started", "data": about}
        tape = _Tape(self._path, run, other, self._redactor)
        tape.begin(self._agent, about)
        stream = other.run(run)
        error: BaseException | None = None
        try:
            async for piece in stream:
                tape.take(piece)
                if tape.failed and not tape.told:
                    tape.told = True
                    yield {"type": "error_occurred", "data": {
                        "error_code": "storage_write_failed",
                        "error_message": f"the run is not recorded any more: {tape.failed}",
                    }}
                yield piece
        except BaseException as exc:
            error = exc
            raise
        finally:
            tape.end(error)
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()


class _Tape:
    """One run's lines."""

    def __init__(self, path: Path, run: RunContext, provider: Provider, redactor: Redactor) -> None:
        self.failed = ""
        self.told = False
        self._path, self._redactor = path, redactor
        self._provider, self._mode = provider.name, provider.usage_mode
        self._run = run
        self._fd = -1
        self._voices: dict[tuple[str, str], tuple[Stream, dict[str, Any]]] = {}
        self._output: Output | None = None
        self._completion: dict[str, Any] = {}
        self._record: dict[str, Any] = {}

    def begin(self, agent: str, about: dict[str, Any]) -> None:
        """The run starts; ``about`` is what its provider says of itself."""
        run = self._run
        self._record = {
            "id": run.run_id, "session_id": run.session.id, "agent": agent, "provider": self._provider,
            "input": self._kept(run.input), "status": "running", "attempt": run.attempt,
        }
        self._write(export.RUN, self._record)
        self._event("run_started", {**about, "agent": agent, "provider": self._provider})

    def take(self, piece: Any) -> None:
        """Write a piece down; what can be no piece fails the run elsewhere."""
        if isinstance(piece, str):
            self._say({"content": piece})
        elif isinstance(piece, Output):
            self._output = piece
        elif isinstance(piece, dict):
            self._map(piece)

    def _map(self, piece: dict[str, Any]) -> None:
        kind, data = piece.get("type"), piece.get("data")
        data = data if isinstance(data, dict) else {}
        if kind == OUTPUT:
            usage = piece.get("token_usage")
            self._output = Output(data=data, token_usage=usage if isinstance(usage, dict) else {})
        elif kind == "run_completed":
            self._completion = data
        elif kind == "message_streamed":
            self._say(data)
        else:
            self._flush()
            if kind == "token_usage_updated":  # how its provider counts, which the file's reader cannot ask
                data = {"mode": self._mode, **data}
            self._event(str(kind), data, piece.get("metadata"))

    def _say(self, data: dict[str, Any]) -> None:
        """A piece of a text: a secret may be cut over several."""
        shown = dict(data)
        for key in _TEXTS:
            text = data.get(key)
            if isinstance(text, str) and text:
                stream = self._voice(str(data.get("stream", "")), key, data)
                shown[key] = text if stream is None else stream.feed(text)
        if any(shown.get(key) for key in _TEXTS):
            self._event("message_streamed", shown, clean=len(shown) == 1)

    def _voice(self, name: str, key: str, data: dict[str, Any]) -> Stream | None:
        found = self._voices.pop((name, key), None)
        stream = self._redactor.stream() if found is None else found[0]
        if stream is not None:
            if len(self._voices) >= STREAMS_MAX:
                self._flush()
            self._voices[name, key] = (stream, {k: v for k, v in data.items() if k not in _TEXTS})
        return stream

    def _flush(self, *, cut: bool = False) -> None:
        voices, self._voices = self._voices, {}
        for (_, key), (stream, data) in voices.items():
            text = stream.cut() if cut else stream.end()
            if text:
                self._event("message_streamed", {**data, key: text})

    def end(self, error: BaseException | None) -> None:
        """The run is over."""
        self._flush(cut=error is not None)
        status, failure = _ended(error)
        if self._run.cancelled:
            status = "cancelled"
        output = self._output or Output(data={})
        usage = self._completion.get("token_usage")
        record = {
            **self._record, "status": status, "error": self._kept(failure),
            "output": self._kept(getattr(error, "output", None) or output.data) or None,
            "token_usage": self._kept({**(usage if isinstance(usage, dict) else {}), **output.token_usage}),
            "cost_usd": output.cost_usd,
        }
        said = {"stop_reason": "end_turn", **self._completion, **output.completion}
        self._event(f"run_{status}", said if status == "completed" else {})
        self._write(export.RUN, record)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _event(
        self, kind: str, data: dict[str, Any], metadata: Any = None, *, clean: bool = False
    ) -> None:
        kept, about = data if clean else self._kept(data), self._kept(metadata) if metadata else None
        event = {
            "run_id": self._run.run_id, "session_id": self._run.session.id, "type": kind,
            "ts": round(time.time(), 6), "data": kept,
        }
        self._write(export.EVENT, event | {"metadata": about} if about else event)

    def _kept(self, value: Any) -> Any:
        """The value as it may be written: plain, without secrets."""
        try:
            return self._redactor.data(plain(value))
        except InvalidArgument as exc:
            return {"not_kept": exc.message}

    def _write(self, kind: str, value: dict[str, Any]) -> None:
        if self.failed:
            return
        try:
            if self._fd < 0:
                self._fd = _opened(self._path)
            line = export.encode_line(kind, value).encode() + b"\n"
            if os.write(self._fd, line) < len(line):
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError as exc:
            self.failed = f"{self._path}: {exc.strerror}"


def _ended(error: BaseException | None) -> tuple[str, dict[str, Any] | None]:
    if error is None:
        return "completed", None
    if isinstance(error, MeshError):
        failure = {"code": error.code, "message": error.message, "details": error.details}
        extra = {"provider_error": error.provider_error} if error.provider_error else {}
        return "failed", failure | extra
    if isinstance(error, Exception):
        return "failed", {"code": "provider_error", "message": f"{type(error).__name__}: {error}"}
    return "cancelled", {"code": "cancelled", "message": "the run was cancelled"}


def _opened(path: Path) -> int:
    """The file, to add whole lines at its end; a new one begins with its mark."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.fstat(fd).st_size == 0:
            os.write(fd, json.dumps({recording.MARK: recording.VERSION}).encode() + b"\n")
    except OSError:
        os.close(fd)
        raise
    return fd


def _writable(file: str) -> Path:
    if not file:
        raise ConfigError("file: where to record is needed")
    path = Path(file).expanduser().absolute()
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"file: {path} cannot be written (its folder must exist)")
    return path


__all__ = ["STREAMS_MAX", "RecordProvider"]
