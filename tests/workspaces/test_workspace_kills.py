"""kill -9 at every step that changes a file: of a snapshot, of a rollback, and of its finishing."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workspace_folders import git, head_of, plain, repository, state

from mesh.errors import StoreError
from mesh.workspaces.base import TRIES_MAX, Base, sweep
from mesh.workspaces.files import Tree
from mesh.workspaces.job import Job

#: What changes the disk, and the start of a command that does.
STEPS = ("replace", "rename", "unlink", "rmdir", "mkdir", "symlink", "chmod", "write", "fsync")
BOUND = 2_000

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _count_down(left: int) -> Callable[[], None]:
    steps = [left]

    def step() -> None:
        steps[0] -= 1
        if steps[0] == 0:
            _die()

    return step


def _arm(at: int) -> None:
    """Make this process kill itself before its step number ``at``, and a command just begun with it."""
    step = _count_down(at)
    for name in STEPS:
        real = getattr(os, name)

        def stepping(*args: Any, _real: Any = real, **options: Any) -> Any:
            step()
            return _real(*args, **options)

        setattr(os, name, stepping)
    start = subprocess.Popen.__init__

    def starting(self: Any, *args: Any, **options: Any) -> None:
        step()
        start(self, *args, **options)
        step()

    subprocess.Popen.__init__ = starting  # type: ignore[method-assign]


def _child(work: Callable[[], None]) -> bool:
    """Do it in a copy of this process. Whether it came to its end; else it was killed, with its commands."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


class Scene:
    """A dirty workspace, and a run with rollback in it."""

    def __init__(self, folder: Path, strategy: str) -> None:
        self.base = Base(folder / "base", 1_000, 10**7)
        self.folder = repository(folder / "w") if strategy == "git" else plain(folder / "w")
        (self.folder / "file.txt").write_text("dirty\n" * 1_000)
        (self.folder / "more").write_text("untracked\n")
        (self.folder / "hollow").mkdir()
        self.exact = state(self.folder)
        self.head = head_of(self.folder) if strategy == "git" else None
        self.job = Job(self.base, "run_1", 1, {
            "path": str(self.folder), "strategy": strategy, "rollback_on_failure": True,
        })

    def begin(self) -> None:
        assert self.job.take()
        self.job.open()

    def mess(self) -> None:
        (self.folder / "file.txt").write_text("by the run\n" * 1_000)
        (self.folder / "more").unlink()
        (self.folder / "hollow").rmdir()
        (self.folder / "new" / "deep").mkdir(parents=True)
        (self.folder / "new" / "deep" / "x").write_text("x")
        (self.folder / "sub" / "deep.bin").unlink()
        (self.folder / "sub").rmdir()
        (self.folder / "sub").symlink_to("/etc")
        (self.folder / "link").unlink()

    def finish(self) -> None:
        self.job.close(completed=False)

    def no_half_file(self) -> None:
        """Each file has its old contents or the run's, whenever it is looked at."""
        for path in (self.folder / "file.txt", self.folder / "more", self.folder / "sub" / "deep.bin"):
            name = str(path.relative_to(self.folder))
            if path.is_file() and not path.parent.is_symlink():
                known = self.exact[name]
                assert isinstance(known, tuple)
                assert path.read_bytes() in (known[-1], b"by the run\n" * 1_000), name

    def whole_again(self) -> None:
        assert state(self.folder) == self.exact
        if self.head is not None:
            assert head_of(self.folder) == self.head
            assert git(self.folder, "for-each-ref", "refs/mesh") == ""
        assert [p for p in (self.base.folder / "runs").glob("*") if not p.name.startswith("making-")] == []


def _every_step(strategy: str) -> range:
    """All steps of a folder; of a repository, whose steps are slow commands, every third."""
    return range(1, BOUND, 1 if strategy == "hash" else 3)


@pytest.mark.parametrize("strategy", ["hash", "git"])
def test_a_kill_at_any_step_of_a_snapshot_changes_no_file(tmp_path: Path, strategy: str) -> None:
    """If the runner dies while the state before a run is taken, then all files are as before."""
    for at in _every_step(strategy):
        scene = Scene(tmp_path / f"s{at}", strategy)

        def work(scene: Scene = scene, at: int = at) -> None:
            _arm(at)
            scene.begin()

        over = _child(work)
        sweep(scene.base)
        scene.whole_again()
        if over:
            assert at > 5
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("strategy", ["hash", "git"])
def test_a_kill_at_any_step_of_a_rollback_is_mended_by_the_next_start(tmp_path: Path, strategy: str) -> None:
    """If the runner dies while it looks or goes back, then no file is half; the next start does the rest."""
    for at in _every_step(strategy):
        scene = Scene(tmp_path / f"s{at}", strategy)

        def work(scene: Scene = scene, at: int = at) -> None:
            scene.begin()
            scene.mess()
            _arm(at)
            scene.finish()

        over = _child(work)
        scene.no_half_file()
        sweep(scene.base)
        scene.whole_again()
        if over:
            assert at > 10
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("strategy", ["hash", "git"])
def test_a_kill_at_any_step_of_the_mending_is_mended_too(tmp_path: Path, strategy: str) -> None:
    """If the start that finishes a rollback dies in it, then the one after it goes all the way."""
    for at in _every_step(strategy):
        scene = Scene(tmp_path / f"s{at}", strategy)

        def dies(scene: Scene = scene) -> None:
            scene.begin()
            scene.mess()
            _die()

        def mends(scene: Scene = scene, at: int = at) -> None:
            _arm(at)
            sweep(scene.base)

        assert not _child(dies)
        over = _child(mends)
        scene.no_half_file()
        sweep(scene.base)
        scene.whole_again()
        if over:
            assert at > 10
            return
    raise AssertionError("it never ends")


def test_a_run_that_is_alive_is_left_alone_by_a_sweep(tmp_path: Path) -> None:
    """If another runner starts while a run works, then it undoes nothing of it."""
    scene = Scene(tmp_path, "hash")
    scene.begin()
    scene.mess()
    messed = state(scene.folder)
    assert _child(lambda: sweep(scene.base))
    assert state(scene.folder) == messed
    scene.finish()
    scene.whole_again()


def test_a_rollback_that_cannot_be_done_is_tried_again_and_then_put_aside(tmp_path: Path) -> None:
    """If the repository itself is gone, then runs are refused a few times; then the record is put aside."""
    said: list[str] = []
    scene = Scene(tmp_path, "git")
    scene.base = scene.base._replace(tell=lambda what, path: said.append(what))

    def dies() -> None:
        scene.begin()
        scene.mess()
        _die()

    assert not _child(dies)
    (scene.folder / ".git").rename(tmp_path / "away")
    sweep(scene.base)
    after = Job(scene.base, "run_2", 1, {"path": str(scene.folder), "strategy": "hash"})
    for _ in range(TRIES_MAX - 1):
        with pytest.raises(StoreError, match="rollback is not possible") as caught:
            after.take()
    assert caught.value.code == "storage_error"
    kept = list((scene.base.folder / "runs").glob("failed-*"))
    assert len(kept) == 1 and (kept[0] / "index.before").exists() and str(kept[0]) in said[-1]
    assert after.take()


def test_a_rollback_that_failed_is_done_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk refuses while a run goes back, then the record stays, and the next run begins with it."""
    scene = Scene(tmp_path, "hash")
    scene.begin()
    scene.mess()
    with monkeypatch.context() as patch:
        patch.setattr(Tree, "write", _refused)
        scene.finish()
    assert scene.job.facts["rollback"]["done"] is False and state(scene.folder) != scene.exact
    after = Job(scene.base, "run_2", 1, {"path": str(scene.folder), "strategy": "hash"})
    assert not after.take()
    assert state(scene.folder) == scene.exact and after.take()
    scene.whole_again()


def _refused(*_args: Any) -> None:
    raise OSError(28, "No space left on device")
