"""The node's own small database."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from mesh.core.slots import even_map, moved_map
from mesh.errors import StoreError
from mesh.store.node_db import NodeDb


def test_every_life_has_its_own_number(tmp_path: Path) -> None:
    """If the node starts again, then its boot number grows."""
    for expected in (1, 2, 3):
        with NodeDb(tmp_path / "node.db") as db:
            assert db.boot() == expected


def test_first_map_is_even_and_stays(tmp_path: Path) -> None:
    """If another number of partitions is asked for later, then the stored map is not touched."""
    with NodeDb(tmp_path / "node.db") as db:
        db.ensure_map(3)
        db.ensure_map(5)
        assert db.slot_map() == (even_map(3), 1, 3)


def test_flip_of_the_map_is_durable_and_numbered(tmp_path: Path) -> None:
    """If slots moved, then the next life reads the new map under the next version."""
    target = moved_map(even_map(2), 4)
    with NodeDb(tmp_path / "node.db") as db:
        db.ensure_map(2)
        db.set_pending(target)
        assert db.pending_map() == target
        assert db.set_map(target) == 2
        db.set_pending(None)
    with NodeDb(tmp_path / "node.db") as db:
        assert db.slot_map() == (target, 2, 4)
        assert db.pending_map() is None


def test_file_of_a_newer_mesh_is_refused(tmp_path: Path) -> None:
    """If a newer mesh wrote the file, then this one does not touch it."""
    NodeDb(tmp_path / "node.db").close()
    connection = apsw.Connection(str(tmp_path / "node.db"))
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(StoreError) as refused:
        NodeDb(tmp_path / "node.db")
    assert refused.value.code == "migration_required"


def test_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    """If the file is not a database, then the error names it."""
    (tmp_path / "node.db").write_text("not a database at all, but text" * 100)
    with pytest.raises(StoreError, match=r"node\.db"):
        NodeDb(tmp_path / "node.db")
