"""An older file becomes one of our schema: nothing is lost, and what searches need is filled in steps."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from test_sqlite import commit, fill, opened, state_of

from mesh.core.records import RunStatus
from mesh.core.slots import run_key
from mesh.log import Log
from mesh.node.health import Health
from mesh.store import file, migrate
from mesh.store.schema import ADDED, SCHEMA_VERSION
from mesh.store.sqlite import Store


def older(path: Path, sessions: int) -> None:
    """A file as schema 2 left it."""
    store = opened(path)
    state = state_of(store)
    for n in range(sessions):
        fill(state, f"s{n}", events=1)
    for run_id, run in list(state.runs.items()):
        state.runs[run_id] = msgspec.structs.replace(
            run, status=RunStatus.COMPLETED, started_at=5.0, ended_at=6.0, provider="echo", cost_usd=0.5,
            provider_metadata={"model": "m1"}, token_usage={"input_tokens": 3, "output_tokens": 4},
        )
    commit(store, state)
    db = store.connection
    for index in ("session_updated", "session_created", "session_deleted", "run_started"):
        db.execute(f"DROP INDEX {index}")
    for table, columns in ADDED.items():
        for name, _ in columns:
            db.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
    db.execute("DROP TABLE audit")
    db.execute("UPDATE meta SET value = 2 WHERE name = 'schema'")
    store.close()


def filled(store: Store) -> None:
    for table in list(store.unfilled):
        while table in store.unfilled:
            store.fill()


def test_an_older_file_gets_columns_at_once_and_values_in_steps(tmp_path: Path) -> None:
    """If a file of schema 2 is opened, then it is readable at once, and searchable after some steps."""
    path = tmp_path / "p.db"
    older(path, migrate.ROWS_PER_STEP + 1)
    store = opened(path)
    assert store.meta("schema") == SCHEMA_VERSION and sorted(store.unfilled) == ["run", "session"]
    assert store.session("s7") is not None and store.run("run-s7") is not None
    db = store.connection
    assert not migrate.fill_step(db, "session") and migrate.fill_step(db, "session")
    store.close()
    store = opened(path)  # a kill in the middle: the rest is done by the next life
    assert store.unfilled == ["run"]
    filled(store)
    db = store.connection
    assert migrate.unfilled(db) == []
    assert set(db.execute("SELECT created, updated, deleted FROM session")) == {(1.0, 1.0, None)}
    columns = "started, provider, model, tokens, cost"
    assert set(db.execute(f"SELECT {columns} FROM run")) == {(5.0, "echo", "m1", 7, 0.5)}
    store.close()


def test_runs_of_schema_3_are_found_by_their_ids(tmp_path: Path) -> None:
    """If a file has the ids of its runs where ours has their keys, then each is found, and is not new."""
    path = tmp_path / "p.db"
    store = opened(path)
    state = state_of(store)
    state.next_run, run_id = 1, "run_abc" + "0123456789" * 2 + "012345678"
    fill(state, "s0", events=1)
    [run] = state.runs.values()
    state.runs = type(state.runs)({run_id: msgspec.structs.replace(run, id=run_id)})
    state.dirty_runs = {run_id: True}
    commit(store, state)
    store.connection.execute("UPDATE run SET id = ?", (run_id,))
    store.connection.execute("UPDATE meta SET value = 3 WHERE name = 'schema'")
    store.close()
    store = opened(path)
    found = store.run(run_id)
    assert found is not None and found.id == run_id and store.has_run(run_id) and store.unfilled == []
    assert store.newest_run("") == run_key(run_id) and not store.has_run(run_key(run_id))
    store.close()


def test_a_damaged_row_does_not_stop_the_filling(tmp_path: Path) -> None:
    """If a row's record is damaged, then it gets empty values and the others theirs."""
    path = tmp_path / "p.db"
    older(path, 3)
    store = opened(path)
    store.connection.execute("UPDATE session SET record = x'00' WHERE id = 's1'")
    filled(store)
    rows = store.connection.execute("SELECT id, created FROM session ORDER BY n").fetchall()
    assert rows == [("s0", 1.0), ("s1", 0.0), ("s2", 1.0)]
    store.close()


def test_a_new_file_has_nothing_to_fill(tmp_path: Path) -> None:
    """If a file is new, then no search waits."""
    store = opened(tmp_path / "p.db")
    assert store.unfilled == []
    store.close()


def test_a_migration_that_takes_long_is_told_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an older file takes longer than a moment, then whoever waits is told, with what and for how long; of
    one that is ours already there is nothing to say."""
    path = tmp_path / "p.db"
    older(path, 50)
    told: list[str] = []
    health_log = Log("partition-0")
    monkeypatch.setattr(health_log, "write", lambda note, **_: told.append(note))

    def acquired() -> None:
        store = Store(path)
        Health(store, health_log, boot_id="b", offset_ms=0, starts=1, progress=told.append).acquire()
        store.close()

    monkeypatch.setattr(file, "TELL_S", 0.0)
    monkeypatch.setattr(file, "_LOOK_STEPS", 10)
    acquired()
    assert len(told) >= 4 and told[0] == told[1] == f"p.db of schema 2 is rewritten to {SCHEMA_VERSION}: 0 s"
    told.clear()
    acquired()
    assert told == []
