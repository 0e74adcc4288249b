"""The log of sessions whose end somebody waits for, kept while it grows: no look at the disk is needed then.

Rules of this file: a tail begins with its session's first event, or not at all; it is bounded by itself and
together with all others; whoever has none is answered from the store.
"""

from __future__ import annotations

from mesh.core.state import EventRow
from mesh.core.waiting import Waiter

#: Of one session; a longer log is read from the store.
TAIL_BYTES_MAX = 32 * 1024
#: Of all tails of a partition.
TAILS_BYTES_MAX = 16 * 1024 * 1024
#: What a row takes beside its fragment.
_ROW_BYTES = 200


class _Tail:
    __slots__ = ("bytes", "rows", "waiter")

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.rows: list[EventRow] = []
        self.bytes = 0


class Tails:
    """One tail at most for each session; a second caller that waits for it is answered from the store."""

    def __init__(self) -> None:
        self._tails: dict[str, _Tail] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._tails)

    def begin(self, session_id: str, waiter: Waiter) -> None:
        """Keep what is appended from now on."""
        self._tails.setdefault(session_id, _Tail(waiter))

    def extend(self, session_id: str, rows: list[EventRow]) -> None:
        """Committed events of a session, in order."""
        tail = self._tails.get(session_id)
        if tail is None:
            return
        size = sum(len(row.fragment) for row in rows) + _ROW_BYTES * len(rows)
        whole = rows[0].seq == len(tail.rows) + 1
        if not whole or tail.bytes + size > TAIL_BYTES_MAX or self._bytes + size > TAILS_BYTES_MAX:
            self.end(session_id, tail.waiter)
            return
        tail.rows += rows
        tail.bytes += size
        self._bytes += size

    def end(self, session_id: str, waiter: Waiter) -> list[EventRow] | None:
        """Forget the tail of a waiter and return its rows, from the first event on; None: no tail."""
        tail = self._tails.get(session_id)
        if tail is None or tail.waiter is not waiter:
            return None
        del self._tails[session_id]
        self._bytes -= tail.bytes
        return tail.rows


__all__ = ["TAILS_BYTES_MAX", "TAIL_BYTES_MAX", "Tails"]
