"""A child program that speaks JSON lines: one object per line of its stdout, and of its stdin where it
listens.

Rules of this file:

1. It leads a process group of its own and carries the run's mark, so that nothing of it outlives the run,
   the runner or the node: what it forks or detaches goes with it (``execution``).
2. Everything it says is bounded: a line, what is no JSON among its lines, its stderr, the wait for its first
   word. What passes a bound fails the run, and says which.
3. Its failure becomes one of the codes of ``mesh.errors``: who is logged out reads how to log in.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from typing import Any, NamedTuple

import msgspec

from mesh.core.provider_error import STDERR_BYTES_MAX, cut_stderr
from mesh.providers.base import ProviderFailure, provider_error
from mesh.providers.execution import Command, Execution, Processes

#: The longest line; an image travels in one.
LINE_BYTES_MAX = 16 * 1024 * 1024
#: Of what is no JSON: more of it, and it is another program than we think.
NOISE_BYTES_MAX = 1024 * 1024
#: How long SIGTERM gets before SIGKILL. A cancelled run is promised to be over within a second.
TERM_S = 0.5
#: From its last word until its exit: time to write its own session to the disk.
EXIT_S = 5.0
#: How long a program may be silent once it spoke: as long as the run's own limits allow.
_EVER_S = 10.0**9
_LAST_CHARS_MAX = 500
#: What is told of a failure whose own words are not.
_SAYS = {"provider_authentication_failed": "not logged in"}
_AUTH = re.compile(
    r"(status|error|http)\W{0,3}(code )?401\b|unauthorized|not logged in|(start\w*|begin) log ?in"
    r"|re-?authenticate|please (run|log|sign)[^\n]{0,20}(log|sign)[ -]?in"
    r"|authentication[ _](failed|required|error)"
    r"|(no|invalid|incorrect|expired|missing) (x-)?(api[ _-]?key|credentials|access token)"
    r"|(access|auth\w*|refresh) token [^\n]{0,12}(could not|expired|invalid)",
    re.IGNORECASE,
)
_LINK = re.compile(r"https?://\S+")  #: one to log in by is a secret
_ERROR = re.compile(r"\s*(error|fatal|panic)\b", re.IGNORECASE)
_RATE = re.compile(r"(status|error|http)\W{0,3}(429|529)\b|rate.?limit|overloaded|too many requests", re.I)
_QUOTA = re.compile(r"usage limit|quota|credit balance|out of credits|billing|insufficient_", re.IGNORECASE)


class Facts(NamedTuple):
    """What people must know about a program that a provider starts."""

    name: str  #: as it is found on PATH
    install: str
    login: str
    status: tuple[str, ...] = ()  #: arguments with which it says, by its exit code, whether it is logged in


class Program:
    """One run of a program: ``start``, then ``messages`` to the end, then ``end`` in any case."""

    def __init__(self, processes: Processes, run_id: str, provider: str, facts: Facts) -> None:
        self._execution = Execution(
            processes, run_id, STDERR_BYTES_MAX, provider=provider, term_s=TERM_S
        )
        self._provider = provider
        self._facts = facts
        self._stderr = _Kept(STDERR_BYTES_MAX)
        self._noise = _Kept(STDERR_BYTES_MAX)
        self._spoke = False
        self._left = False
        self._over = False

    async def start(self, command: Command, said: bytes | None = None) -> None:
        """Start it. ``said`` is all that its stdin will hold; without it the stdin stays open for ``write``.

        Raises:
            ProviderFailure: it cannot be started.
        """
        await self._execution.start(command)
        if said is not None:
            self._execution.close_stdin(said)

    async def write(self, message: Any) -> bool:
        """Say one object; False when the program does not listen any more."""
        return await self._execution.write(msgspec.json.encode(message) + b"\n")

    async def write_text(self, text: str) -> bool:
        """Say what is encoded already."""
        return await self._execution.write(text.encode(errors="replace"))

    def close_stdin(self) -> None:
        """It hears nothing more."""
        self._execution.close_stdin()

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield every object it says, until it and all its processes are gone.

        Raises:
            ProviderFailure: too long a line, too much that is no JSON, no word within the time, logged out.
        """
        lines = _Lines()
        async for fd, chunk in self._execution.chunks(idle=True):
            if fd == 2:
                self._hear(chunk)
                continue
            for line in lines.feed(chunk):
                if (message := self._read(line)) is not None:
                    yield message
            if lines.waiting > LINE_BYTES_MAX:
                raise self.failure(f"a line of more than {LINE_BYTES_MAX} bytes", kind="parse_error")
        if (message := self._read(lines.rest())) is not None:
            yield message
        self._over = True
        if self._execution.timed_out and not self._left:
            limit_s = self._execution.command.timeout_s
            raise self.failure(f"nothing to read for {limit_s:g} s", kind="timeout")

    def _read(self, line: bytes) -> dict[str, Any] | None:
        if not line or line.isspace():
            return None
        try:
            message = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            message = None
        if type(message) is dict:
            if not self._spoke:
                self._spoke = True  # from here on the run's own limits hold
                self._execution.command = self._execution.command._replace(timeout_s=_EVER_S)
            return message
        self._noise.add(line + b"\n")
        self._logged_out(line)
        if self._noise.count > NOISE_BYTES_MAX:
            why = f"more than {NOISE_BYTES_MAX} bytes that are no JSON lines"
            raise self.failure(why, kind="parse_error")
        return None

    def _hear(self, chunk: bytes) -> None:
        """Keep stderr's beginning and its last line."""
        self._stderr.add(chunk)
        self._logged_out(self._stderr.tail)

    def _logged_out(self, said: bytes) -> None:
        """One that asks for a login before its first word would wait for it for ever."""
        if self._facts.login and not self._spoke and _AUTH.search(said[:4_096].decode(errors="replace")):
            raise self.failure("", code="provider_authentication_failed")

    def leave(self) -> None:
        """It said its last word: ``messages`` ends ``EXIT_S`` later at the latest."""
        self._left = True
        self.close_stdin()
        self._execution.command = self._execution.command._replace(timeout_s=EXIT_S)

    @property
    def exit_code(self) -> int | None:
        """As a shell would say it; None while it lives."""
        return self._execution.exit_code if self._over else None

    async def end(self) -> None:
        """Leave nothing of it, whatever happened before."""
        await self._execution.end()

    def failure(self, why: str, *, code: str | None = None, kind: str | None = None) -> ProviderFailure:
        """What its end means for the run. ``why`` is what it said itself, or "" when it said nothing."""
        stderr, noise = self._stderr.text, self._noise.text
        exit_code = self.exit_code
        told = why or self._stderr.word or ("" if code else self._noise.word) or _SAYS.get(code or "")
        message = f"{self._facts.name}: {told}" if told else f"{self._facts.name} said nothing"
        if exit_code is not None and not why:
            message += f" (exit code {exit_code})"
        if code is None:
            code = "provider_timeout" if kind == "timeout" else classify(why or stderr)
        if code == "provider_authentication_failed" and self._facts.login:
            message, stderr = (_LINK.sub("[link]", text) for text in (message, stderr))
            message = f"{message.rstrip('.')}. Log in: {self._facts.login}"
        details: dict[str, Any] = {"program": self._facts.name}
        if self._noise.count and code != "provider_authentication_failed":  # it may hold a link to log in by
            details["no_json"] = noise[:_LAST_CHARS_MAX]
        kind = kind or ("transport_exit" if exit_code is not None else "protocol_error")
        return ProviderFailure(message, code=code, details=details, provider_error=provider_error(
            self._provider, kind, message, exit_code=exit_code, stderr=cut_stderr(stderr) or None,
        ))


class _Lines:
    """Whole lines out of chunks that end anywhere."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.waiting = 0  #: bytes of the line that is not whole yet

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that this chunk completes."""
        if b"\n" not in chunk:
            self._parts.append(chunk)
            self.waiting += len(chunk)
            return
        *whole, rest = b"".join((*self._parts, chunk)).split(b"\n")
        self._parts, self.waiting = [rest], len(rest)
        yield from whole

    def rest(self) -> bytes:
        """What came without a newline at the end."""
        return b"".join(self._parts)


class _Kept:
    """The beginning of a text and its last line, whatever its length."""

    def __init__(self, bytes_max: int) -> None:
        self.count = 0  #: bytes in all
        self._left = bytes_max
        self._head: list[bytes] = []
        self.tail = b""

    def add(self, chunk: bytes) -> None:
        self.count += len(chunk)
        kept = chunk[: self._left]
        self._left -= len(kept)
        if kept:
            self._head.append(kept)
        self.tail = (self.tail + chunk)[-4 * _LAST_CHARS_MAX :]

    @property
    def text(self) -> str:
        return b"".join(self._head).decode(errors="replace")

    @property
    def word(self) -> str:
        """The line that calls itself an error, else the last one that says something."""
        lines = [line.strip() for line in self.tail.decode(errors="replace").splitlines() if line.strip()]
        named = (line for line in (*self.text.splitlines(), *lines) if _ERROR.match(line))
        return (next(named, None) or (lines[-1] if lines else ""))[:_LAST_CHARS_MAX]


def classify(text: str) -> str:
    """The error code of what a program says about its failure."""
    if _AUTH.search(text):
        return "provider_authentication_failed"
    if _QUOTA.search(text):
        return "provider_quota_exceeded"
    return "provider_rate_limited" if _RATE.search(text) else "provider_error"


__all__ = ["EXIT_S", "LINE_BYTES_MAX", "NOISE_BYTES_MAX", "TERM_S", "Facts", "Program", "classify"]
