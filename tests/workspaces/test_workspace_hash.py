"""Snapshots and rollbacks of plain folders."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workspace_folders import backend, git, head_of, plain, repository, state

from mesh.core.workspace import Snapshot
from mesh.errors import MeshError
from mesh.workspaces.content import Content
from mesh.workspaces.files import Stop
from mesh.workspaces.folder import FolderBackend


def hashes(work: FolderBackend, snapshot: Snapshot) -> dict[str, str]:
    """Path to digest of each file and link of a snapshot."""
    return {path: entry.digest for path, entry in work._seen[snapshot.ref].items() if entry.digest}


def test_the_ref_is_the_digest_of_sorted_paths_and_hashes(tmp_path: Path) -> None:
    """If a folder holds two files, then anybody can compute its ref with a hash function."""
    folder = tmp_path / "w"
    (folder / "sub").mkdir(parents=True)
    (folder / "b").write_text("b")
    (folder / "sub" / "a").write_text("a")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "x").write_text("skipped")
    digests = {"b": hashlib.sha256(b"b").hexdigest(), "sub/a": hashlib.sha256(b"a").hexdigest()}
    lines = "\n".join(f"{path}:{digests[path]}" for path in sorted(digests))
    work = backend(tmp_path / "b", folder, "hash")
    snapshot = work.snapshot("before")
    assert isinstance(work, FolderBackend) and hashes(work, snapshot) == digests
    assert snapshot.ref == hashlib.sha256(lines.encode()).hexdigest()


def test_the_diff_names_what_changed_and_nothing_else(tmp_path: Path) -> None:
    """If files are edited in place with the same size, added and removed, then those are the paths."""
    folder = plain(tmp_path / "w")
    work = backend(tmp_path / "b", folder, "hash", ignore={"globs": ["*.tmp", "sub/**/x"], "paths": ["skip"]})
    before = work.snapshot("before")
    (folder / "file.txt").write_text("ONE\ntwo\n")
    (folder / "sub" / "deep.bin").unlink()
    (folder / "new").write_text("n")
    (folder / "a.tmp").write_text("ignored")
    (folder / "sub" / "q").mkdir()
    (folder / "sub" / "q" / "x").write_text("ignored")
    (folder / "skip").mkdir()
    (folder / "skip" / "y").write_text("ignored")
    diff, patch = work.diff(before, work.snapshot("after"), patch_bytes=1)
    assert diff.changed_paths == ("file.txt", "new", "sub/deep.bin") and patch == b"" and diff.patch is None


NAMES = st.sampled_from(["a", "b", "d", "d/a", "d/e", "d/e/f", "link", "ü\udcff"])
DEEDS = st.tuples(
    st.sampled_from(["write", "remove", "folder", "link", "fifo", "mode"]), NAMES, st.binary(max_size=4)
)


def _do(folder: Path, deed: str, name: str, data: bytes) -> None:
    path = folder / name
    try:
        if deed == "remove" or (deed != "mode" and path.is_symlink()):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        elif deed == "mode":
            path.chmod(0o755 if data else 0o600, follow_symlinks=True) if not path.is_symlink() else None
        elif deed == "write":
            path.write_bytes(data) if not path.is_fifo() else None
        elif deed == "folder":
            path.mkdir()
        elif deed == "link":
            path.symlink_to("/etc" if data else "a")
        else:
            os.mkfifo(path)
    except OSError:
        return


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(DEEDS, max_size=12), during=st.lists(DEEDS, max_size=12))
def test_whatever_a_run_does_a_rollback_undoes(tmp_path: Path, before: list, during: list) -> None:
    """If files, folders, links, modes and FIFOs change in any way, then going back gives the exact tree."""
    base = tmp_path / os.urandom(6).hex()
    folder = base / "w"
    folder.mkdir(parents=True)
    for deed in before:
        _do(folder, *deed)
    exact = state(folder)
    work = backend(base / "b", folder, "hash")
    snapshot = work.snapshot("before", keep=True)
    for deed in during:
        _do(folder, *deed)
    done = work.rollback(snapshot)
    assert state(folder) == exact
    assert work.rollback(snapshot)["restored"] == 0 and done["restored"] <= len(exact)


def test_links_and_special_files_are_neither_followed_nor_opened(tmp_path: Path) -> None:
    """If a folder holds a FIFO and links out of itself, then nothing hangs or leaks."""
    folder = plain(tmp_path / "w")
    outside = plain(tmp_path / "outside")
    os.mkfifo(folder / "fifo")
    (folder / "out").symlink_to(outside)
    work = backend(tmp_path / "b", folder, "hash")
    before = work.snapshot("before", keep=True)
    assert before.metadata["special"] == 1 and before.metadata["links"] == 2
    exact = state(outside)
    (folder / "sub" / "deep.bin").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(outside)
    os.mkfifo(folder / "another")
    work.rollback(before)
    assert state(outside) == exact and not (folder / "another").exists()
    assert (folder / "sub" / "deep.bin").read_bytes() == bytes(range(256))


def test_a_workspace_that_vanished_is_made_again(tmp_path: Path) -> None:
    """If a run removes its whole folder, then a rollback brings all of it back."""
    folder = plain(tmp_path / "w")
    exact = state(folder)
    work = backend(tmp_path / "b", folder, "hash")
    before = work.snapshot("before", keep=True)
    folder.rename(tmp_path / "gone")
    with pytest.raises(MeshError) as caught:
        work.snapshot("after")
    work.rollback(before)
    assert caught.value.code == "storage_error" and state(folder) == exact


def test_more_than_may_be_kept_is_refused_at_the_start(tmp_path: Path) -> None:
    """If a rollback would need more than the store may hold, then nothing is kept and the code says so."""
    folder = plain(tmp_path / "w")
    work = FolderBackend(
        str(folder), tmp_path, Stop(), content=Content(tmp_path / "c", 100), files_max=100
    )
    with pytest.raises(MeshError, match="rollback is not possible") as caught:
        work.snapshot("before", keep=True)
    assert caught.value.code == "limit_exceeded" and not list((tmp_path / "c").rglob("*"))
    small = FolderBackend(str(folder), tmp_path, Stop(), content=Content(tmp_path / "c", 100), files_max=2)
    with pytest.raises(MeshError, match="more than 2 files"):
        small.snapshot("before")


def test_old_contents_make_room_and_needed_ones_do_not(tmp_path: Path) -> None:
    """If the store is full, then what no run needs goes, and what one needs does not."""
    content = Content(tmp_path / "c", 600)
    first, second = plain(tmp_path / "w1"), plain(tmp_path / "w2")
    (second / "sub" / "deep.bin").write_bytes(b"2" * 500)
    needed: set[str] = set()

    def keep(folder: Path) -> FolderBackend:
        work = FolderBackend(
            str(folder), tmp_path, Stop(), content=content, files_max=99, in_use=lambda: needed
        )
        needed.update(hashes(work, work.snapshot("before", keep=True)).values())
        return work

    keep(first)
    with pytest.raises(MeshError, match="rollback is not possible"):
        keep(second)
    needed.clear()
    keep(second)
    assert sum(path.stat().st_size for path in (tmp_path / "c").rglob("*") if path.is_file()) <= 600


def test_a_damaged_content_is_an_error_and_the_file_stays(tmp_path: Path) -> None:
    """If a kept content was damaged, then the rollback says so and puts nothing wrong in place."""
    folder = plain(tmp_path / "w")
    work = backend(tmp_path / "b", folder, "hash")
    before = work.snapshot("before", keep=True)
    digest = hashlib.sha256(bytes(range(256))).hexdigest()
    (tmp_path / "b" / "content" / digest[:2] / digest).write_bytes(b"damaged")
    (folder / "sub" / "deep.bin").write_bytes(b"by the run")
    with pytest.raises(MeshError, match="damaged") as caught:
        work.rollback(before)
    assert caught.value.code == "storage_error"
    assert (folder / "sub" / "deep.bin").read_bytes() == b"by the run"


def test_what_a_run_closed_is_opened_again(tmp_path: Path) -> None:
    """If a run takes away permissions, then the rollback gives them back, and no others."""
    folder = plain(tmp_path / "w")
    (folder / "sub").chmod(0o555)
    work = backend(tmp_path / "b", folder, "hash")
    before = work.snapshot("before", keep=True)
    (folder / "file.txt").chmod(0)
    (folder / "sub").chmod(0)
    (folder / "new").mkdir()
    (folder / "new" / "x").write_text("x")
    (folder / "new").chmod(0)
    work.rollback(before)
    assert (folder / "sub").stat().st_mode & 0o777 == 0o555 and not (folder / "new").exists()
    assert (folder / "file.txt").read_text() == "one\ntwo\n"


def _known_to_git(folder: Path) -> dict[str, object]:
    """What a rollback by git promises: files with their exec bit, links, folders; no FIFOs."""
    return {name: value for name, value in state(folder).items() if value[0] != 0o010000}  # type: ignore[index]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(DEEDS, max_size=8), staged=st.booleans(),
    during=st.lists(DEEDS.filter(lambda deed: deed[0] != "fifo"), max_size=10),
)
def test_whatever_a_run_does_in_a_repository_a_rollback_undoes(
    tmp_path: Path, before: list, staged: bool, during: list
) -> None:
    """If files, folders, links and exec bits change in any way, then going back gives tree and HEAD."""
    base = tmp_path / os.urandom(6).hex()
    folder = repository(base / "w")
    for deed in before:
        _do(folder, *deed)
    if staged:
        git(folder, "add", "-A")
    exact, head = _known_to_git(folder), head_of(folder)
    work = backend(base / "b", folder, "git")
    snapshot = work.snapshot("before", keep=True)
    for deed in during:
        _do(folder, *deed)
    work.rollback(snapshot)
    assert _known_to_git(folder) == exact and head_of(folder) == head
