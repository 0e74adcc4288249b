"""Lifecycle messages in the store: many in a row, each read by its number."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_sqlite import commit, fill, opened, state_of

from mesh.core import wire
from mesh.core.announced import PACK_MAX
from mesh.errors import StoreError
from mesh.store.sqlite import Store


def announced(store: Store, *batches: int) -> None:
    """Commit so many messages at a time."""
    state = state_of(store)
    session = fill(state)
    for count in batches:
        for _ in range(count):
            state.announce("started", session)
        commit(store, state)


def lseqs(store: Store, after: int, limit: int = 10**6) -> list[int]:
    return [wire.unpack(payload)["lseq"] for _, payload in store.feed_lifecycle(after, limit)]


def test_any_message_of_a_row_is_where_a_reader_goes_on(tmp_path: Path) -> None:
    """If a commit had many messages, then a reader gets those after his number, as many as he asked for."""
    store = opened(tmp_path / "p.db")
    announced(store, 4, 1, PACK_MAX + 3)  # and one before them
    last = 1 + 4 + 1 + PACK_MAX + 3
    for after in (0, 1, 3, 5, 6, 7, PACK_MAX + 5, last - 1, last):
        assert lseqs(store, after) == list(range(after + 1, last + 1))
        assert lseqs(store, after, 3) == list(range(after + 1, last + 1))[:3]
    [(rows,)] = store.connection.execute("SELECT count(*) FROM lifecycle")
    assert rows == 4 and store.lowest_lifecycle() == 1 and store.counters()["lseq"] == last
    store.close()


def test_a_sweep_keeps_the_rows_that_hold_what_is_kept(tmp_path: Path) -> None:
    """If old messages are deleted, then none of those to be kept is, and the lowest is what is there."""
    store = opened(tmp_path / "p.db")
    announced(store, 4, 5, 6)
    store.sweep(silent_before=0, lifecycle_below=8)
    assert store.lowest_lifecycle() == 6 and lseqs(store, 0) == list(range(6, 17))
    store.close()


def test_a_message_of_an_older_mesh_is_read(tmp_path: Path) -> None:
    """If a file has rows of one message each, then they are read as ever, before those of today."""
    store = opened(tmp_path / "p.db")
    payload = wire.pack({"lseq": 1, "session_id": "old"})
    store.connection.execute("INSERT INTO lifecycle VALUES (1, 'lifecycle.started.old', ?)", (payload,))
    state = state_of(store)
    state.lseq = 1
    fill(state)
    commit(store, state)
    topics = ["lifecycle.started.old", "lifecycle.started.s"]
    assert [topic for topic, _ in store.feed_lifecycle(0, 9)] == topics
    assert store.lowest_lifecycle() == 1
    store.close()


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    """If a row holds no messages, then reading it is an error and no answer."""
    store = opened(tmp_path / "p.db")
    store.connection.execute("INSERT INTO lifecycle VALUES (1, '', x'c1')")
    with pytest.raises(StoreError, match="read the feed"):
        store.feed_lifecycle(0, 9)
    with pytest.raises(StoreError, match="read the feed"):
        store.lowest_lifecycle()
    store.close()
