"""What a run is given of its session's past: the transcript, read from the log and kept while it lives, and
the provider's own session, when that can be resumed.

Rules of this file:

1. A live session's fold is kept: the next run reads only what is new. All folds together are bounded; the
   one that was used least recently goes first, and is read again when it is needed.
2. A resumed session is believed only when the provider names it in its first word. Else, and when resuming
   fails before anything was said, the run begins anew with the transcript, and an event says so.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from mesh.core.access import AS
from mesh.core.continuation import SESSION_RESUME, checked_budget, resumable, transcript_of
from mesh.core.history import Reading, begin, read_on
from mesh.core.slots import session_slot
from mesh.core.transcript import PROVIDER_SESSION_KEYS, Fold
from mesh.core.wire import check_depth
from mesh.errors import InvalidArgument, MeshError, RunError
from mesh.providers.base import Piece, Provider, RunContext

#: Characters of all folds of a runner together.
CACHE_CHARS_MAX = 64 * 1024 * 1024

Ask = Callable[[int, str, list[Any]], Awaitable[Any]]


class Transcripts:
    """The folds of a runner's live sessions."""

    def __init__(self, ask: Ask, slot_map: Callable[[], bytes], *, chars_max: int = CACHE_CHARS_MAX) -> None:
        self._ask = ask
        self._slot_map = slot_map
        self._chars_max = chars_max
        self._folds: OrderedDict[str, Fold] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._folds)

    async def fold(self, session: Mapping[str, Any]) -> Fold:
        """The session's fold, at least up to the ``seq`` it had when the run was dispatched."""
        session_id, up_to = session["id"], session["seq"]
        lock = self._locks.get(session_id)
        if lock is None:
            lock = self._locks[session_id] = asyncio.Lock()
        async with lock:
            fold = self._folds.pop(session_id, None)
            if fold is None:
                fold = await self._read(session, begin(session_id, session.get("fork")))
            self._folds[session_id] = fold
            await self._read(session, read_on(fold, up_to))
        self._bound(session_id)
        return fold

    async def _read(self, session: Mapping[str, Any], reading: Reading) -> Any:
        """Have every read of a reading answered by the partition that owns what is read."""
        try:
            op, args = next(reading)
            while True:
                partition = self._slot_map()[session_slot(args[0])]
                if args[0] != session["id"]:
                    op, args = AS, [session.get("original"), op, args]
                try:
                    value = await self._ask(partition, op, args)
                except MeshError as exc:
                    op, args = reading.throw(exc)
                else:
                    op, args = reading.send(value)
        except StopIteration as done:
            return done.value

    def _bound(self, but: str) -> None:
        chars = sum(fold.chars for fold in self._folds.values())
        while chars > self._chars_max:
            session_id, fold = self._folds.popitem(last=False)
            chars -= fold.chars
            if session_id == but and not self._folds:
                return

    def forget(self, session_id: str) -> None:
        """The live session ended."""
        self._folds.pop(session_id, None)


class Begun(NamedTuple):
    """A run that has its past, and what it yields."""

    stream: AsyncIterator[Piece]
    first: Piece | None = None  #: its first word, when that was heard already
    said: dict[str, Any] = {}
    why: str | None = None  #: it is a replay although it should be something else


async def begin_run(
    transcripts: Transcripts, context: RunContext, session: Mapping[str, Any], provider: Provider,
    mode: str | None, opts: Mapping[str, Any],
) -> Begun:
    """Give a run the transcript and, where that is possible and wanted, what to resume; then begin it."""
    why = None if mode is None else await _past(transcripts, context, session, provider, mode, opts)
    if not able(provider):
        begun = Begun(provider.run(context), why=why)
    else:
        begun = await _heard(provider, context)
        why = begun.why or why
    if mode is None:
        return begun
    said = {
        "continuation": "replay" if context.resume is None else "native",
        "transcript_messages": len(context.transcript.messages),
    }
    return begun._replace(said=begun.said | said, why=why)


async def _past(
    transcripts: Transcripts, context: RunContext, session: Mapping[str, Any], provider: Provider, mode: str,
    opts: Mapping[str, Any],
) -> str | None:
    """Fill in ``transcript`` and ``resume``; why there is nothing to resume though it was asked for."""
    try:
        fold = await transcripts.fold(session)
    except MeshError as exc:  # it is no fault of the agent
        raise RunError(exc.message, code=exc.code, details=exc.details) from exc
    context.transcript = transcript_of(fold, checked_budget(opts), without_run=context.run_id)
    if mode == "replay":
        return None
    own = context.session.metadata.get("provider_sessions")
    context.resume, why = resumable(fold, own, provider.name, context.session.agent, able=able(provider))
    return why if mode == "native" and not fold.empty else None


def able(provider: Provider) -> bool:
    """Whether the provider can resume a session of its own."""
    for capability in provider.capabilities:
        if capability.get("name") == _RESUME and capability.get("enabled", True):
            return True
    return False


_RESUME = SESSION_RESUME["name"]


async def _heard(provider: Provider, context: RunContext) -> Begun:
    """Begin a run of a provider that can resume, and believe it only when it names what it resumed.

    ``context.resume`` is None afterwards when it did not, and the run began anew.
    """
    resume = context.resume
    if resume is None:
        return await _first_word(provider.run(context))
    try:
        begun = await _first_word(provider.run(context))
        own = own_session(begun.said)
        if own == resume:
            return begun
        named = f"the provider named {own!r:.80}" if own else "the provider named none"
        why = f"{resume!r:.80} was not resumed: {named}"
        await close(begun.stream)
    except Exception as exc:  # noqa: BLE001  whatever is wrong with the old session, there is another way
        why = f"{resume!r:.80} was not resumed: {type(exc).__name__}: {exc}"[:400]
    context.resume = None
    return (await _first_word(provider.run(context)))._replace(why=why)


async def _first_word(stream: AsyncIterator[Piece]) -> Begun:
    """What a provider says about its own start, or the first thing that it says of another kind."""
    try:
        first = await anext(stream, None)
        if not (isinstance(first, dict) and first.get("type") == "run_started"):
            return Begun(stream, first)
        said = first.get("data")
        if said is not None and type(said) is not dict:
            raise InvalidArgument(f"data of an event is a map, not {type(said).__name__}")
        check_depth(said)
    except BaseException:
        await close(stream)
        raise
    return Begun(stream, None, said or {})


async def close(stream: AsyncIterator[Piece]) -> None:
    """End what a provider was doing."""
    end = getattr(stream, "aclose", None)
    if end is not None:
        await end()


def own_session(told: Mapping[str, Any]) -> str | None:
    """The provider's own session, as ``run_started`` names it."""
    own = next((told[key] for key in PROVIDER_SESSION_KEYS if told.get(key)), None)
    return own if isinstance(own, str) else None


__all__ = ["CACHE_CHARS_MAX", "Begun", "Transcripts", "able", "begin_run", "close", "own_session"]
