"""When a partition counts as degraded, and what ends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.core.state import State
from mesh.errors import StoreError
from mesh.log import Log
from mesh.node.health import Health
from mesh.store import sqlite
from mesh.store.sqlite import Store


def health_of(store: Store, starts: int = 1) -> Health:
    return Health(store, Log("partition-0"), boot_id="boot", offset_ms=0, starts=starts)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "p.db")
    yield made
    made.connection.close()


def refuse(*_: Any, **__: Any) -> None:
    raise StoreError("the disk is full", details={"reason": "FullError"})


def test_a_log_that_cannot_be_copied_into_its_file_stays_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If commits work and the checkpoint does not, then writes stop until it does: the log never grows on."""
    monkeypatch.setattr(sqlite, "WAL_BYTES_MAX", 100_000)
    health = health_of(store)
    state = State(store, partition=0, epoch=health.acquire(), node="mesh")
    while store.wal_bytes_estimate() <= sqlite.WAL_BYTES_MAX:
        store.commit(state, {"a:b:c": bytes(50_000)}, {}, {}, power=False)
    real = store.checkpoint
    monkeypatch.setattr(store, "checkpoint", refuse)
    health.unless_refused(store.checkpoint)
    for _ in range(3):
        assert not health.probe() and "full" in str(health.state)
    monkeypatch.setattr(store, "checkpoint", real)
    assert health.probe() and health.state is None and store.wal_bytes_estimate() == 0


def test_incarnations_without_a_lease_never_share_an_epoch(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the lease cannot be written, then each start serves under an epoch of its own, nothing is written
    under it, and the lease that is taken at last is not below it."""
    assert health_of(store).acquire() == 1
    store.close()
    epochs = []
    for starts in (2, 3, 4):
        other = Store(tmp_path / "p.db")
        monkeypatch.setattr(other, "acquire", refuse)
        health = health_of(other, starts)
        epochs.append(health.acquire())
        assert "full" in str(health.state) and not health.probe()
        with pytest.raises(StoreError) as refused:
            other.save_counters(State(other, partition=0, epoch=epochs[-1], node="mesh"), 1)
        assert refused.value.code == "store_unavailable"
        monkeypatch.undo()
        if starts < 4:
            other.connection.close()
    assert epochs == [3, 4, 5]
    assert health.probe() and other.leased and other.meta("epoch") == other.epoch == 5
    other.close()
    again = Store(tmp_path / "p.db")
    assert health_of(again).acquire() == 6
    again.close()


@pytest.mark.parametrize("error", [
    StoreError("locked", details={"reason": "BusyError"}),
    StoreError("newer", code="migration_required"),
    StoreError("damaged", code="storage_read_failed"),
])
def test_only_a_disk_that_refuses_lets_a_partition_start_without_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    """If the file belongs to somebody else, to a newer mesh, or is damaged, then the start fails."""
    health_of(store).acquire()

    def fail(**_: Any) -> int:
        raise error

    monkeypatch.setattr(store, "acquire", fail)
    with pytest.raises(StoreError) as refused:
        health_of(store).acquire()
    assert refused.value is error


def test_a_new_file_on_a_full_disk_cannot_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is nothing to read yet, then the disk's refusal is the error."""
    monkeypatch.setattr(store, "acquire", refuse)
    with pytest.raises(StoreError) as refused:
        health_of(store).acquire()
    assert refused.value.details["reason"] == "FullError"


def test_a_write_that_met_damage_is_never_tried_again(store: Store) -> None:
    """If a commit needed a damaged page, then no probe ends it."""
    health = health_of(store)
    health.acquire()
    health.failed(StoreError("a page is damaged", code="storage_read_failed"))
    assert not health.probe() and health.state == "a page is damaged"


def test_changes_are_told_once_each(store: Store) -> None:
    """If the state changes, then it is told once; damage that leaves writes alone says so."""
    health = health_of(store)
    health.acquire()
    said: list[tuple[str, dict[str, Any]]] = []

    def publish(what: str, **fields: Any) -> None:
        said.append((what, fields))

    health.tell(publish)
    health.failed(StoreError("full"))
    health.tell(publish)
    health.tell(publish)
    assert health.probe()
    health.tell(publish)
    store.note_damage("a page")
    health.tell(publish)
    assert [(what, fields.get("writable")) for what, fields in said] == [
        ("partition_degraded", False), ("partition_recovered", None), ("partition_degraded", True),
    ]
    assert said[1][1]["reason"] == "full"
