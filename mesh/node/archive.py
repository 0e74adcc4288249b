"""What retention removes, as files: JSON lines, written and on the disk before anything is removed.

Rules of this file:

1. A session that is forgotten becomes ``<id>-<created>.jsonl``, an export that ``mesh session import`` reads.
   It has its name when it is whole: a kill leaves at most a ``.part``.
2. Events that are pruned are appended to ``<id>-<created>.pruned.jsonl``. After a kill or on a full disk some
   may stand there twice, their seq says so; half a line stays a line of its own.
3. What cannot be archived is not removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from mesh.core import events as ev
from mesh.core import export, wire
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.session import SessionState
from mesh.core.state import State
from mesh.errors import MeshError
from mesh.store.file import sync
from mesh.store.reading import StoredEvent
from mesh.store.sqlite import Store

#: Of one step, beside the number of rows that retention gives.
STEP_BYTES = 256 * 1024


class Archive:
    """The archive of one partition, in a folder that all of the node share."""

    def __init__(self, folder: Path, store: Store, state: State, *, rows: int) -> None:
        self.folder = folder
        self._store = store
        self._state = state
        self._rows = rows

    def session(self, session: SessionState) -> Iterator[None]:
        """Write a whole session, some rows at a step. Who gives up in between leaves nothing.

        Raises:
            MeshError: ``storage_write_failed``; there is no file of that name.
            StoreError: its rows cannot be read.
        """
        part = self._path(session, ".jsonl.part")
        try:
            yield from self._session(session, part)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def take_back(self, session: SessionState) -> None:
        """What was written of a session that is not forgotten now, or was by somebody else."""
        with suppress(OSError):
            self._path(session, ".jsonl").unlink(missing_ok=True)

    def _session(self, session: SessionState, part: Path) -> Iterator[None]:
        first = export.header(sessions.to_wire(session, None))
        self._write(part, [export.encode_line(export.HEADER, first)], "w")
        counts = {"runs": 0, "events": 0}
        for kind, lines in self._lines(session):
            counts[kind] += len(lines)
            self._write(part, lines, "a")
            yield
        end = {**counts, "seq": session.seq, "lost": []}
        self._write(part, [export.encode_line(export.END, end)], "a", last=True)
        try:
            part.replace(part.with_suffix(""))
            _sync(self.folder)
        except OSError as exc:
            raise _refused(part, exc) from exc

    def _lines(self, session: SessionState) -> Iterator[tuple[str, list[str]]]:
        after, more = 0, True
        while more:
            found, more = self._store.list_runs(
                session.n, after=after, limit=self._rows, bytes_max=STEP_BYTES)
            after = found[-1].n if found else after
            rows = [runs.to_wire(run, self._state.redactor) for run in found]
            yield "runs", [export.encode_line(export.RUN, export.row(row)) for row in rows]
        seq, complete = 0, False
        while not complete:
            events, complete = self._store.events(
                session.n, after=seq, limit=self._rows, bytes_max=STEP_BYTES)
            seq = events[-1].seq if events else seq
            yield "events", _event_lines(session.id, events)

    def events(self, session: SessionState, positions: Iterable[int]) -> None:
        """Append events of a session that are about to be pruned.

        Raises:
            MeshError: ``storage_write_failed``.
            StoreError: they cannot be read.
        """
        found = self._store.events_at(positions)
        self._write(self._path(session, ".pruned.jsonl"), _event_lines(session.id, found), "a", last=True)

    def _path(self, session: SessionState, ending: str) -> Path:
        # Ids are free again after a hard delete; the time tells the sessions of one id apart.
        return self.folder / f"{session.id}-{int(session.created_at * 1000)}{ending}"

    def _write(self, path: Path, lines: list[str], mode: str, *, last: bool = False) -> None:
        """Write lines, in a folder that is made at first use; ``last``: now they must be on the disk."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            before = "\n" if mode == "a" and _ends_within_a_line(path) else ""
            with path.open(mode, encoding="utf-8") as file:
                file.write(before)
                file.writelines(f"{line}\n" for line in lines)
                if last:
                    file.flush()
                    sync(file.fileno())
            if last:
                _sync(self.folder)
        except OSError as exc:
            raise _refused(path, exc) from exc


def _event_lines(session_id: str, events: list[StoredEvent]) -> list[str]:
    return [
        export.encode_line(export.EVENT, wire.unpack(ev.encode_stored(one.fragment, session_id, one.seq)))
        for one in events
    ]


def _ends_within_a_line(path: Path) -> bool:
    """Whether the last write to a file broke off."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _sync(folder: Path) -> None:
    """Have the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, exc: OSError) -> MeshError:
    return MeshError(f"cannot archive to {path}: {exc.strerror or exc}", code="storage_write_failed")


__all__ = ["STEP_BYTES", "Archive"]
