"""The routes of a partition's file: the table, and the log of what is newer (``store/route_log.py``)."""

from __future__ import annotations

from functools import cached_property
from operator import itemgetter
from typing import Any

from mesh.errors import StoreError
from mesh.store.file import DAMAGED, checksum
from mesh.store.reading import StoredRows, checked_record
from mesh.store.route_log import RouteLog

Route = tuple[str, bytes, int, str]


class StoredRoutes(StoredRows):
    """The part of a store that reads routes."""

    @cached_property
    def route_log(self) -> RouteLog:
        """What is not in the table yet."""
        log = RouteLog()
        self.guarded(lambda: log.replay(self._db), "read the log of routes")
        for what in log.damage:
            self.damaged += 1
            self.note_damage(what)
        return log

    def routes(self, after: str, limit: int) -> list[Route]:
        """(key, record, offset_ms, boot id) in key order, after one; a damaged row has an empty record."""
        found: list[Route] = []
        more = True
        while more and len(found) < limit:
            rows = self._table_rows(after, limit)
            more = len(rows) == limit
            upto = rows[-1][0] if more else None
            found += self._put_over(rows, after, upto)
            after = upto or after
        del found[limit:]
        for key in [row[0] for row in found if not row[1]]:
            if self.route_log.get(key) is None:
                self.damaged += 1
                self.note_damage(f"the route of {key} ({_why(lost=self.route_log.lost)})")
        return found

    def _table_rows(self, after: str, limit: int) -> list[Any]:
        return self.guarded(lambda: self._all(
            "SELECT r.key, r.record, b.offset_ms, b.boot_id, r.sum FROM route r JOIN boot b ON b.id = r.boot"
            " WHERE r.key > ? ORDER BY r.key LIMIT ?", after, limit), "read routes")

    def _put_over(self, rows: list[Any], after: str, upto: str | None) -> list[Route]:
        """Rows of the table with what the log has between two keys put over them."""
        logged, lost = self.route_log.between(after, upto), self.route_log.lost
        found: list[Route] = [
            (key, record if checksum(record) == total and not lost else b"", offset_ms, boot_id)
            for key, record, offset_ms, boot_id, total in rows if key not in logged
        ]
        if not logged:
            return found
        boots: dict[int | None, tuple[int, str]] = {}
        for key in sorted(logged):
            record, boot = self.route_log.get(key) or (None, None)
            if record is not None:
                if boot not in boots:
                    boots[boot] = self._boot(boot)
                found.append((key, record, *boots[boot]))
        found.sort(key=itemgetter(0))  # two sorted runs
        return found

    def _boot(self, number: int | None) -> tuple[int, str]:
        """(offset_ms, boot id); the present boot for None."""
        sql = "SELECT offset_ms, boot_id FROM boot WHERE id = ?"
        row = self.guarded(lambda: self._all(sql, number or self.boot), "read a boot")[0]
        return row[0], row[1]

    def route_keys(self, after: str, limit: int) -> list[str]:
        """Keys of routes in order, after one; some may be of routes that were deleted since."""
        sql = "SELECT key FROM route WHERE key > ? ORDER BY key LIMIT ?"
        found = [row[0] for row in self.guarded(lambda: self._all(sql, after, limit), "read keys of routes")]
        logged = self.route_log.between(after, found[-1] if len(found) == limit else None, limit)
        return sorted(logged.union(found))[:limit] if logged else found

    def route(self, key: str) -> tuple[bytes, int, str] | None:
        """(record, offset_ms, boot id) of one key."""
        logged = self.route_log.get(key)
        if logged is not None:
            record, boot = logged
            if record == b"":
                raise self._in_doubt(key)
            return None if record is None else (record, *self._boot(boot))
        if self.route_log.lost:
            raise self._in_doubt(key)
        row = self.guarded(lambda: self._db.execute(
            "SELECT r.record, r.sum, b.offset_ms, b.boot_id FROM route r JOIN boot b ON b.id = r.boot"
            " WHERE r.key = ?", (key,)).fetchone(), "read a route")
        return None if row is None else (checked_record(row, f"the route of {key}"), row[2], row[3])

    def _in_doubt(self, key: str) -> StoreError:
        why = _why(lost=self.route_log.lost)
        return StoreError(f"the route of {key} is damaged on the disk ({why})", code=DAMAGED)


def _why(*, lost: bool) -> str:
    return "a newer one may be lost" if lost else "its checksum is wrong"


__all__ = ["Route", "StoredRoutes"]
