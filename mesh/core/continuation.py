"""How a run continues its session: the options, what fits into a budget, and who may resume by itself.

``replay`` gives the agent the transcript; ``native`` has the provider resume its own session, when that knows
all of the conversation; ``auto`` is native where that is possible, else replay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from mesh.core.message import Message, Transcript
from mesh.core.transcript import Fold
from mesh.core.unit import Unit
from mesh.errors import InvalidArgument, shown

MODES = ("auto", "replay", "native")
CHARS_PER_TOKEN = 4.0
#: What a provider declares that can go on with a session of its own (``run.resume``).
SESSION_RESUME = {"name": "session_resume", "type": "resource"}
_COUNTS = ("max_messages", "max_chars", "max_tokens_approx", "after", "before")
_COUNT_MAX, _NUMBER_MAX = 1 << 62, 10**12
_KNOWN = (*_COUNTS, "chars_per_token", "since", "run_id")


class Budget(NamedTuple):
    """What of a transcript is wanted. Limits keep the newest; pinned messages and the summary always stay."""

    max_messages: int | None = None
    max_chars: int | None = None  #: of text, tool names and tool payloads
    max_tokens_approx: int | None = None  #: characters divided by ``chars_per_token``
    chars_per_token: float = CHARS_PER_TOKEN
    after: int | None = None  #: seqs, exclusive
    before: int | None = None
    since: float | None = None  #: seconds since the epoch
    run_id: str | None = None

    @property
    def chars(self) -> float:
        """The stricter of the two limits of size."""
        tokens = math.inf if self.max_tokens_approx is None else self.max_tokens_approx * self.chars_per_token
        return min(math.inf if self.max_chars is None else self.max_chars, tokens)

    def wants(self, unit: Unit) -> bool:
        """Whether the filters let it pass."""
        return (
            (self.after is None or unit.seq > self.after)
            and (self.before is None or unit.seq < self.before)
            and (self.since is None or unit.ts >= self.since)
            and (self.run_id is None or unit.run_id == self.run_id)
        )


NO_LIMIT = Budget()


def checked_mode(mode: Any) -> str | None:
    """``continuation``: one of ``MODES``; False or None is off.

    Raises:
        InvalidArgument: anything else, True included.
    """
    if mode is None or mode is False:
        return None
    if type(mode) is not str or mode not in MODES:
        known = ", ".join(map(repr, MODES))
        raise InvalidArgument(f"continuation must be False, {known}, not {shown(mode, 60)}")
    return mode


def checked_budget(given: Any) -> Budget:
    """``continuation_opts``, and the options of ``sessions.transcript``.

    Raises:
        InvalidArgument: names the option.
    """
    if given is None:
        return NO_LIMIT
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"continuation_opts must be a map, not {type(given).__name__}")
    for name, value in given.items():
        if name not in _KNOWN:
            raise InvalidArgument(
                f"unknown continuation option {shown(name, 60)}; known: {', '.join(sorted(_KNOWN))}"
            )
        if value is not None:
            _check(name, value)
    return Budget(**{name: value for name, value in given.items() if value is not None})


def _check(name: str, value: Any) -> None:
    if name in _COUNTS:
        if type(value) is not int or not 0 <= value <= _COUNT_MAX:
            code = "invalid_cursor" if name in ("after", "before") else "validation_error"
            raise InvalidArgument(f"{name} must be a whole number from 0, not {shown(value, 40)}", code=code)
    elif name == "run_id":
        if type(value) is not str:
            raise InvalidArgument(f"run_id must be a str, not {shown(value, 40)}", code="invalid_id")
    elif type(value) not in (int, float) or not 0 < value < _NUMBER_MAX:
        raise InvalidArgument(f"{name} must be a number more than 0, not {shown(value, 40)}")


def transcript_of(fold: Fold, budget: Budget = NO_LIMIT, *, without_run: str | None = None) -> Transcript:
    """What the fold holds, as far as it is wanted. The messages are the caller's own copies.

    ``metadata["omitted"]`` counts the messages that a limit left out, and ``metadata["pruned_to"]`` says up
    to which seq retention removed events of the log, when there are any.
    """
    units = [
        unit for unit in (*fold.units(), *fold.under_way())
        if budget.wants(unit) and (without_run is None or unit.run_id != without_run)
    ]
    kept = within(units, budget)
    omitted = fold.omitted + sum(u.count for u in units) - sum(u.count for u in kept)
    about = {"omitted": omitted, "pruned_to": fold.pruned_to}
    return Transcript(
        fold.session_id,
        tuple(_copy(m) for unit in kept for m in unit.messages(over=fold.over(unit.run_id))),
        fold.seq or None, fold.ts, {name: value for name, value in about.items() if value},
    )


def within(units: Iterable[Unit], budget: Budget) -> list[Unit]:
    """The newest units that fit, in their order; what is kept in any case is counted first.

    The first one that does not fit ends it, so there is no hole; the newest alone may be too much.
    """
    units = list(units)
    chars, count = budget.chars, math.inf if budget.max_messages is None else budget.max_messages
    if chars == count == math.inf:
        return units
    for unit in units:
        if unit.kept:
            chars, count = chars - unit.size, count - unit.count
    first = len(units)
    for index in range(len(units) - 1, -1, -1):
        unit = units[index]
        if not unit.kept:
            chars, count = chars - unit.size, count - unit.count
            if chars < 0 or count < 0:
                break
            first = index
    return [unit for index, unit in enumerate(units) if unit.kept or index >= first]


def _copy(message: Message) -> Message:
    """So that an agent that changes what it was given does not change what the next one gets."""
    own = dict(message.metadata)
    if message.tool_input is None and message.tool_output is None:
        return msgspec.structs.replace(message, metadata=own)
    return msgspec.structs.replace(
        message, metadata=own, tool_input=copy.deepcopy(message.tool_input),
        tool_output=copy.deepcopy(message.tool_output),
    )


def resumable(
    fold: Fold, sessions: Any, provider: str, agent: str, *, able: bool
) -> tuple[str | None, str | None]:
    """(the provider's own session to resume, None) or (None, why it must be replayed).

    ``sessions`` is ``session.metadata["provider_sessions"]``.
    """
    stored = sessions.get(provider) if isinstance(sessions, dict) else None
    own = stored.get("provider_session_id") if isinstance(stored, dict) else None
    if not able:
        return None, f"agent {agent!r} does not declare {SESSION_RESUME['name']!r}"
    if type(own) is not str or not own:
        return None, f"no session of {provider!r} is known"
    if fold.known_to != (provider, agent, own):
        return None, f"the session {own!r} of {provider!r} does not know all of the conversation"
    return own, None


__all__ = [
    "CHARS_PER_TOKEN", "MODES", "NO_LIMIT", "SESSION_RESUME", "Budget", "checked_budget", "checked_mode",
    "resumable", "transcript_of", "within",
]
