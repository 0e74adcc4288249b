"""The asyncio half of ``sessions`` that is about transcripts. Every rule is in the plans; see there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mesh.client import _surface_transcripts as plans
from mesh.client._aio_link import AsyncLink
from mesh.client._protocol import WRITE
from mesh.client._surface import failure
from mesh.core.message import Transcript
from mesh.core.records import Event, Session


class AsyncTranscripts:
    """What a session said so far, and how it goes on."""

    _link: AsyncLink

    async def transcript(
        self,
        id: str,
        *,
        max_messages: int | None = None,
        max_chars: int | None = None,
        max_tokens_approx: int | None = None,
        chars_per_token: float | None = None,
        run_id: str | None = None,
        since: float | datetime | None = None,
        after: int | None = None,
        before: int | None = None,
        timeout_s: float | None = None,
    ) -> Transcript:
        """The conversation as messages, rebuilt from the log; what is being streamed is marked ``partial``.

        Limits keep the newest and never part a tool call from its result; pinned messages and the summary of
        a compaction always stay. ``metadata["omitted"]`` counts what was left out. ``timeout_s`` holds for
        each page of the log.
        """
        budget = plans.budget_of(
            max_messages=max_messages, max_chars=max_chars, max_tokens_approx=max_tokens_approx,
            chars_per_token=chars_per_token, run_id=run_id, after=after, before=before,
            since=since.timestamp() if isinstance(since, datetime) else since,
        )
        found: Transcript = await self._link.drive(plans.transcript(id, budget, timeout_s), timeout_s)
        return found

    async def fork(
        self,
        id: str,
        at_seq: int | None = None,
        *,
        new_id: str | None = None,
        agent: str | None = None,
        agent_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Start a new session whose transcript begins with that of this one up to ``at_seq`` (None: now).

        What is not given is taken over. The original may be in any status and does not change; it is read,
        not copied, so deleting it takes the beginning of its forks away.

        Raises:
            InvalidArgument: ``invalid_cursor``, it has no such seq; ``limit_exceeded``, forks of forks.
        """
        plan = plans.fork(
            id, at_seq, new_id=new_id, agent=agent, agent_id=agent_id, context=context, metadata=metadata,
            tags=tags, timeout_s=timeout_s,
        )
        session: Session = await self._link.drive(plan, timeout_s)
        return session

    async def compact(
        self,
        id: str,
        summary: str | None = None,
        *,
        up_to: int | None = None,
        keep_last: int = 0,
        agent: str | None = None,
        instructions: str | None = None,
        timeout_s: float | None = None,
    ) -> Event:
        """Let a summary stand for all messages up to ``up_to`` (None: now) but the pinned ones.

        Without ``summary`` an agent (None: the session's) makes it from those messages, as a run that is not
        part of the conversation. ``keep_last`` leaves so many of the newest messages alone. The log stays as
        it is: the event that is returned says what the transcript shows instead.

        Raises:
            MeshError: the run's error; then nothing was replaced.
        """
        plan = plans.compact(
            id, summary, up_to=up_to, keep_last=keep_last, agent=agent, instructions=instructions,
            timeout_s=timeout_s,
        )
        event: Event = await self._link.drive(plan, timeout_s)
        return event

    async def pin(self, id: str, seq: int, *, pinned: bool = True, timeout_s: float | None = None) -> None:
        """Have a message stay in every transcript, whatever is left out or compacted; False takes it back.

        ``seq`` is its ``metadata["sequence_number"]``.

        Raises:
            NotFound: that event is no message of the session.
        """
        slot, call = plans.pin_call(id, seq, pinned)
        status, value = await self._link.call(WRITE, slot, call, timeout_s)
        if status:
            raise failure(value)


__all__ = ["AsyncTranscripts"]
