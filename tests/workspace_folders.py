"""Folders and repositories to test with, and their exact contents."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from mesh.workspaces.base import Backend, Base
from mesh.workspaces.files import Stop


def git(folder: Path, *args: str) -> str:
    """Run git and give what it says."""
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *args], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(folder: Path) -> Path:
    """A repository with one commit: two files, a folder, a link and an ignore list."""
    folder.mkdir(parents=True, exist_ok=True)
    plain(folder)
    (folder / ".gitignore").write_text("*.log\nbuild/\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def plain(folder: Path) -> Path:
    """A folder with two files, a folder and a link."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file.txt").write_text("one\ntwo\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.bin").write_bytes(bytes(range(256)))
    (folder / "link").symlink_to("file.txt")
    return folder


def state(folder: Path) -> dict[str, object]:
    """Everything below a folder but ``.git``: kind, mode of files, contents, targets."""
    found: dict[str, object] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        for name in (*folders, *files):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            key = str(path.relative_to(folder))
            if stat.S_ISLNK(mode):
                found[key] = ("link", os.readlink(path))
            elif stat.S_ISREG(mode):
                found[key] = ("file", mode & 0o111 != 0, path.read_bytes())
            else:
                found[key] = (stat.S_IFMT(mode),)
    return found


def head_of(folder: Path) -> tuple[str, bytes, str]:
    """What a snapshot and a rollback leave alone: HEAD, the index, the stash."""
    head = (folder / ".git" / "HEAD").read_text() + git(folder, "rev-parse", "HEAD")
    return head, (folder / ".git" / "index").read_bytes(), git(folder, "stash", "list")


def backend(base: Path, folder: Path, strategy: str = "auto", **about: object) -> Backend:
    """A backend with a scratch folder of its own."""
    scratch = base / f"scratch-{os.urandom(4).hex()}"
    scratch.mkdir(parents=True)
    return Base(base, 10_000, 64 << 20).backend(os.path.realpath(folder), strategy, scratch, Stop(), **about)
