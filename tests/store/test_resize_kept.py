"""Another number of partitions: what is deleted softly moves along, what is forgotten does not."""

from __future__ import annotations

from pathlib import Path

import msgspec
from test_sqlite import commit, fill, opened, state_of

from mesh.core.session import ERASED, IMPORTING
from mesh.store.node_db import NodeDb
from mesh.store.resize import resize


def test_deleted_sessions_move_and_forgotten_ones_do_not(tmp_path: Path) -> None:
    """If slots move, then hidden and shortened sessions are as before, and halves and remains are gone."""
    with NodeDb(tmp_path / "node.db") as node:
        node.ensure_map(1)
    store = opened(tmp_path / "partition-0.db")
    state = state_of(store)
    for n in range(40):
        fill(state, f"s{n}", events=2)
        deleted = (None, 5.0, ERASED, IMPORTING)[n % 4]
        changes = {"deleted_at": deleted, "pruned": 3, "pruned_to": 4, "seq": 9}
        state.put_session(msgspec.structs.replace(state.sessions[f"s{n}"], **changes))
    commit(store, state)
    store.close()
    resize(tmp_path, 3)
    found = {}
    for index in range(3):
        store = opened(tmp_path / f"partition-{index}.db")
        for (sid,) in store.connection.execute("SELECT id FROM session WHERE ifnull(deleted, 1) > 0"):
            session = store.session(sid)
            assert session is not None and sid not in found and (session.pruned_to, session.seq) == (4, 9)
            found[sid] = session.deleted_at
        columns = set(store.connection.execute("SELECT updated IS NULL, created IS NULL FROM session"))
        assert columns <= {(0, 0)}
        store.close()
    assert found == {f"s{n}": (None, 5.0)[n % 4] for n in range(40) if n % 4 < 2}
