"""What a run says in pieces, on its way past the redactor: a secret that two pieces share is found.

Each stream of a run (an answer, a command's stdout, its stderr) is a text of its own. What is held back of it
leaves with its next piece, before any other event of the provider, at the end of the run, or, when it is only
how a name of a secret begins, after ``HOLD_S``.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from mesh.core.redact import Redactor
from mesh.core.redact_stream import Stream

#: A reader waits at most so long for words that only look like the beginning of a secret.
HOLD_S = 0.1
#: Streams of one run that may hold something at a time; with more of them the oldest text ends.
STREAMS_MAX = 16
#: Where the text of a ``message_streamed`` stands.
TEXT_KEYS = ("content", "delta", "thinking")
STDERR = "stderr"


class Says(Protocol):
    """Who writes what was said."""

    def said(self, text: str, data: dict[str, Any]) -> None:
        """Write a ``message_streamed``; ``text`` is what of it belongs to the answer."""

    def spoke(self, text: str) -> None:
        """Write a ``message_streamed`` that is a piece of the answer and nothing else."""

    def waits(self) -> None:
        """Something is held that ``release`` may show after ``HOLD_S``."""


class _Voice:
    """One stream."""

    __slots__ = ("data", "key", "text")

    def __init__(self, text: Stream, key: str) -> None:
        self.text = text
        self.key = key
        self.data: dict[str, Any] = {}  #: of its last event, beside the text


class Speech:
    """The streams of one run."""

    def __init__(self, redactor: Redactor, says: Says) -> None:
        self._redactor = redactor
        self._says = says
        self._voices: dict[tuple[str, str], _Voice] = {}
        self._answer: Stream | None = None

    def say(self, text: str) -> None:
        """A piece of the answer."""
        answer = self._answer
        if answer is None:
            voice = self._voice("", "content")
            if voice is None:
                self._says.spoke(text)
                return
            answer = self._answer = voice.text
        shown = answer.feed(text)
        if shown:
            self._says.spoke(shown)
        if answer.weak:
            self._says.waits()

    def event(self, data: dict[str, Any]) -> None:
        """A ``message_streamed`` as a provider writes it: with a stream's name, and what else it likes."""
        name = data.get("stream")
        name = name[:80] if isinstance(name, str) else ""
        shown = dict(data)
        empty = False
        for key in TEXT_KEYS:
            text = data.get(key)
            voice = self._voice(name, key) if text and isinstance(text, str) else None
            if voice is not None and isinstance(text, str):
                shown[key] = voice.text.feed(text)
                voice.data = {k: v for k, v in data.items() if k not in TEXT_KEYS}
                empty = empty or not shown[key]
                if voice.text.weak:
                    self._says.waits()
        if not empty or any(shown.get(key) for key in TEXT_KEYS):
            self._says.said(_of_answer(shown), shown)

    def _voice(self, name: str, key: str) -> _Voice | None:
        """The stream of that name; None when nothing is redacted."""
        voice = self._voices.get((name, key))
        if voice is None:
            text = self._redactor.stream()
            if text is None:
                return None
            if len(self._voices) >= STREAMS_MAX:
                self._forget(next(iter(self._voices)))
            voice = self._voices[name, key] = _Voice(text, key)
        return voice

    def _forget(self, place: tuple[str, str]) -> None:
        voice = self._voices.pop(place)
        if voice.text is self._answer:
            self._answer = None
        self._tell(voice, voice.text.end())

    def _tell(self, voice: _Voice, text: str) -> None:
        if text:
            data = {**voice.data, voice.key: text}
            data.setdefault("content", "")
            self._says.said(_of_answer(data), data)

    def end(self, *, cut: bool = False) -> None:
        """The texts are over: what is held is no secret any more, unless they were ``cut`` off."""
        for voice in self._voices.values():
            self._tell(voice, voice.text.cut() if cut else voice.text.end())

    def release(self) -> None:
        """Show what only begins like the name of a secret."""
        for voice in self._voices.values():
            self._tell(voice, voice.text.release())


    def over(self) -> None:
        """Nothing is said any more, and the run is not held in memory by its words."""
        self._says = _NOBODY


class _Nobody:
    def said(self, text: str, data: dict[str, Any]) -> None:
        pass

    def spoke(self, text: str) -> None:
        pass

    def waits(self) -> None:
        pass


_NOBODY = _Nobody()


class Shows(Protocol):
    """Whoever holds words back."""

    def release(self) -> None:
        """Show what only begins like the name of a secret."""


class Held:
    """The runs of one runner that hold words back."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._runs: dict[Shows, None] = {}

    def add(self, run: Shows) -> None:
        """Have its words released within ``HOLD_S``, whatever it says until then."""
        if not self._runs:
            self._loop.call_later(HOLD_S, self._release)
        self._runs[run] = None

    def _release(self) -> None:
        runs, self._runs = self._runs, {}
        for run in runs:
            run.release()


def _of_answer(data: dict[str, Any]) -> str:
    """The text of an event that belongs to the run's answer."""
    text = data.get("content")
    return text if isinstance(text, str) and data.get("stream") != STDERR else ""


__all__ = ["HOLD_S", "STREAMS_MAX", "TEXT_KEYS", "Held", "Says", "Shows", "Speech"]
