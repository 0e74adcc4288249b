"""What ``mesh doctor`` finds in a file, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_damage import build, flipped, killed, page_of, without_checksums

from mesh.errors import StoreError
from mesh.store.examine import examine
from mesh.store.sqlite import Store


def test_a_sound_file_is_left_byte_for_byte_as_it_was(tmp_path: Path) -> None:
    """If nothing is wrong, then nothing is found or changed, the log of a killed node included."""
    killed(tmp_path / "p.db", 5)
    path, log = tmp_path / "p.db.killed", tmp_path / "p.db.killed-wal"
    before = path.read_bytes(), log.read_bytes()
    assert examine(path) == []
    assert (path.read_bytes(), log.read_bytes()) == before
    without_checksums(tmp_path / "p.db", tmp_path / "old.db")
    assert examine(tmp_path / "old.db") == []


@pytest.mark.parametrize("place", ["route", "event", "session", "log", "meta"])
def test_a_flipped_byte_is_found_in_tables_and_indexes(tmp_path: Path, place: str) -> None:
    """If a page is damaged, then the findings say so, each in one line."""
    build(tmp_path / "p.db")
    found = examine(flipped(tmp_path / "p.db", tmp_path / "f.db", page_of(tmp_path / "p.db", place) + 900, 2))
    assert any("checksum is wrong" in line for line in found)
    assert not any("\n" in line for line in found)


@pytest.mark.parametrize("at", [3, 20, 70])
def test_a_damaged_header_is_a_finding(tmp_path: Path, at: int) -> None:
    """If the header is damaged, then that is what is found."""
    build(tmp_path / "p.db")
    assert len(examine(flipped(tmp_path / "p.db", tmp_path / "f.db", at, 3))) == 1


def test_a_row_whose_own_checksum_is_wrong_is_named(tmp_path: Path) -> None:
    """If a row's content changed below its checksum, then table and key are named."""
    build(tmp_path / "p.db")
    store = Store(tmp_path / "p.db")
    store.connection.execute("UPDATE route SET record = zeroblob(40) WHERE key = 'a:b:room7'")
    store.connection.close()
    assert examine(tmp_path / "p.db") == ["route a:b:room7: its checksum is wrong"]


def test_a_log_that_lost_commits_is_a_finding(tmp_path: Path) -> None:
    """If commits behind a damaged place of the log are lost, then that is said."""
    killed(tmp_path / "p.db", 9)
    log = tmp_path / "p.db.killed-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    assert "lost" in examine(tmp_path / "p.db.killed")[0]


def test_a_file_in_use_is_no_finding_but_an_error(tmp_path: Path) -> None:
    """If a partition has the file open, then it is not called damaged."""
    store = Store(tmp_path / "p.db")
    store.acquire(boot_id="boot", offset_ms=0)
    with pytest.raises(StoreError) as refused:
        examine(tmp_path / "p.db")
    assert refused.value.code == "store_unavailable"
    store.close()
