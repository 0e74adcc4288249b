"""What the memory of a partition asks of its store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from mesh.core.run import RunState
from mesh.core.session import SessionState


class Loader(Protocol):
    """What the state asks of the store: committed rows only."""

    def session(self, session_id: str) -> SessionState | None:
        """The stored session, with its highest seq, or None."""

    def run(self, run_id: str) -> RunState | None:
        """The stored run, or None."""

    def event_type(self, session: int, seq: int) -> int | None:
        """The type's code of a stored event, or None."""

    def has_session(self, session_id: str) -> bool:
        """Whether it is stored."""

    def has_run(self, run_id: str) -> bool:
        """Whether it is stored."""

    def runs_of(self, session: int) -> Iterable[RunState]:
        """All stored runs of a session, by its row number."""

    def spent_by_tag(self, tag: str) -> list[dict[str, float]]:
        """The sums of a tag: one per slot."""

    def newest_session(self, scope: str) -> str:
        """The greatest stored id that begins so, "" when there is none."""

    def newest_run(self, scope: str) -> str:
        """The greatest stored key (``run_key``) that begins so, "" when there is none."""

    def is_left_over(self, run_id: str) -> bool:
        """Whether it is stored, of a session that is being removed."""


__all__ = ["Loader"]
