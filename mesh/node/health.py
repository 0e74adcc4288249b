"""Whether a partition's store takes writes: why not, since when, and when it does again.

Three cases, in order of gravity:

- The store refuses writes (full disk, read-only, IO error): reads go on, a small write is tried each second,
  and the first that succeeds ends it.
- Something stored is damaged: what reads it is told, everything else goes on. It stays in the status.
- A write met damage: nothing is written any more until the partition is started again. Writing around a
  damaged page could carry the damage further.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mesh.errors import StoreError
from mesh.log import Log
from mesh.node.child import Child
from mesh.store.file import DAMAGED
from mesh.store.schema import SCHEMA_VERSION
from mesh.store.sqlite import Store

#: What the disk says when only a person can mend it.
HOPELESS = frozenset(("FullError", "CantOpenError", "ReadOnlyError", "PermissionsError"))
REMEDY = "mend it (mesh doctor says what is wrong), then: mesh partition restart"


class Health:
    """Of one partition's store."""

    def __init__(
        self, store: Store, log: Log, *, boot_id: str, offset_ms: int, starts: int,
        progress: Callable[[str], object] = str,
    ) -> None:
        self._store = store
        self._log = log
        self._progress = progress
        store.on_migration = self._migrates
        self._boot = {"boot_id": boot_id, "offset_ms": offset_ms}
        self._starts = starts
        self._said: str | None = None
        self.reason: str | None = None  #: why nothing can be written now

    @property
    def state(self) -> str | None:
        """What the status says: why nothing can be written, or what is damaged; None when all is well."""
        return self.reason or self._store.damage

    def acquire(self) -> int:
        """Take the lease and return the epoch. On a disk that refuses, serve reads under a borrowed one.

        Raises:
            StoreError: not even reading is possible.
        """
        try:
            return self._store.acquire(**self._boot)  # type: ignore[arg-type]
        except StoreError as error:
            if error.code != "store_unavailable" or error.details.get("reason") == "BusyError":
                raise
            try:
                epoch = self._store.borrow(self._starts)
            except StoreError:
                raise error from None
            self.failed(error)
            return epoch

    def _migrates(self, version: int, seconds: float) -> None:
        """An older file takes long to become ours: who waits for this start is told, and goes on waiting."""
        name = self._store.path.name
        note = f"{name} of schema {version} is rewritten to {SCHEMA_VERSION}: {seconds:.0f} s"
        self._log.write(note)
        self._progress(note)

    def failed(self, error: StoreError) -> None:
        """A write was refused."""
        if self.reason is None:
            self._log.write("degraded: reads go on, writes are refused", why=error.message)
        self._store.sealed = self._store.sealed or error.code == DAMAGED
        self.reason = (self._store.damage if self._store.sealed else None) or error.message

    def unless_refused(self, work: Callable[[], object]) -> None:
        """Do upkeep that writes, while writes are taken."""
        if self.reason is None:
            try:
                work()
            except StoreError as error:
                self.failed(error)

    def unless_damaged(self, work: Callable[[], object]) -> None:
        """Do upkeep that only reads; damage that it meets is in the status."""
        with suppress(StoreError):
            work()

    def probe(self) -> bool:
        """Try whether the store takes a write again; True when it just did."""
        if self._store.sealed:
            return False
        try:
            if not self._store.leased:
                self._store.acquire(**self._boot)  # type: ignore[arg-type]
            self._store.probe()
        except StoreError as error:
            self.failed(error)
            return False
        self.reason = None
        self._log.write("the store can be written again")
        return True

    def tell(self, publish: Callable[..., Any]) -> None:
        """Announce what changed since the last time, on ``node.partition_degraded`` or ``_recovered``."""
        now, before = self.state, self._said
        if now == before:
            return
        self._said = now
        if now is None:
            publish("partition_recovered", reason=before)
            return
        if self.reason is None:
            self._log.write("damage was found: what reads it is refused", why=now)
        publish("partition_degraded", reason=now, writable=self.reason is None)


def cannot_start(child: Child, error: StoreError) -> int:
    """Say so in one line; and to the supervisor, when trying again cannot help."""
    what = f"{child.data_dir / f'partition-{child.index}.db'}: {error.message}"
    if error.code != "store_unavailable" or error.details.get("reason") in HOPELESS:
        child.control.send("hopeless", message=f"{what}; {REMEDY}")
    Log(child.name).write("cannot start", why=what)
    return 1


__all__ = ["Health", "cannot_start"]
