"""Whether an id was never used, mostly without asking the store: ids that mesh mints grow with the time.

A session's id is looked at as it is, a run's as ``slots.run_key`` turns it.

Rules of this file:

1. An id is new when it is greater than every stored one of its scope that memory does not hold. Scopes are
   the first SCOPE characters: a quarter of an hour of runs, years of sessions. What is not minted by mesh may
   be asked too; it is only less often seen to be new.
2. Memory tells when it lets one go (``left``), so the greatest of those is known; the store says at first.
"""

from __future__ import annotations

from collections.abc import Callable

#: Of a run's key and of ``ses_`` and what follows: the first digits of the time.
SCOPE = 7
#: Scopes that are remembered: callers may invent ids.
SCOPES_MAX = 8_192


class Newest:
    """The greatest id of each scope that is stored and that memory does not hold.

    ``load`` gives the greatest stored one of a scope, "" when there is none.
    """

    def __init__(self, load: Callable[[str], str]) -> None:
        self._load = load
        self._of: dict[str, str] = {}

    def precedes(self, identifier: str) -> bool:
        """Whether everything stored is older, so that an id that memory does not hold was never used."""
        scope = identifier[:SCOPE]
        newest = self._of.get(scope)
        if newest is None:
            if len(self._of) >= SCOPES_MAX:
                self._of.clear()
            newest = self._of[scope] = self._load(scope)
        return identifier > newest

    def left(self, identifier: str) -> None:
        """Memory does not hold it any more. What is not looked at yet will be read with the rest."""
        scope = identifier[:SCOPE]
        if identifier > self._of.get(scope, identifier):
            self._of[scope] = identifier


__all__ = ["SCOPE", "SCOPES_MAX", "Newest"]
