"""Workspaces of runs, on a real node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import pids, wait_for
from workspace_folders import git, head_of, plain, repository, state

import mesh

MESS = "echo changed > file.txt; mkdir -p new/deep; echo n > new/deep/x; rm -r sub; ln -s /etc sub; "


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


def _types(client: mesh.Client, session_id: str) -> list[str]:
    return [event.type for event in client.sessions.events(session_id)]


def _nothing_left(tmp_path: Path) -> bool:
    base = tmp_path / "data" / "workspaces"
    return not any((base / name).is_dir() and list((base / name).iterdir()) for name in ("runs", "trees"))


def test_j01_run_in_a_repository_tells_what_it_changed(
    client: mesh.Client, repo: Path, tmp_path: Path
) -> None:
    """If a run edits a file, then two snapshots, one diff and the patch stand in events and record."""
    head = head_of(repo)
    result = client.run_once("shell", "pwd; echo three >> file.txt", workspace=repo)
    assert result.output["content"].strip() == os.path.realpath(repo)
    told = [event for event in result.events if event.type.startswith("workspace_")]
    assert [event.data.get("label") for event in told] == ["before", "after", None]
    assert told[2].data == {"files_changed": 1, "insertions": 1, "deletions": 0, "has_patch": True}
    assert result.workspace is not None and result.workspace["diff"]["changed_paths"] == ["file.txt"]
    assert "+three" in result.workspace["diff"]["patch"] and result.workspace["backend"] == "git"
    run = client.runs.get(result.run_id)
    assert run.metadata["workspace"] == run.workspace == result.workspace and run.policy is None
    assert run.metadata["workspace"]["before_ref"] == git(repo, "rev-parse", "HEAD")
    assert head_of(repo) == head and _nothing_left(tmp_path)


@pytest.mark.parametrize("strategy", ["git", "hash"])
def test_j03_failing_run_is_undone_exactly(client: mesh.Client, tmp_path: Path, strategy: str) -> None:
    """If a run with rollback fails on a dirty tree, then files are back, new ones gone, HEAD as it was."""
    folder = repository(tmp_path / "w") if strategy == "git" else plain(tmp_path / "w")
    (folder / "file.txt").write_text("dirty\n")
    (folder / "untracked").write_text("u")
    exact, head = state(folder), head_of(folder) if strategy == "git" else None
    option = {"path": folder, "strategy": strategy, "rollback_on_failure": True}
    session = client.sessions.start("shell")
    run = client.runs.submit(session.id, MESS + "exit 3", workspace=option)
    with pytest.raises(mesh.RunError) as caught:
        client.runs.wait(run.id)
    assert caught.value.code == "command_failed" and state(folder) == exact
    assert head is None or head_of(folder) == head
    facts = client.runs.get(run.id).metadata["workspace"]
    assert facts["rollback"]["done"] and facts["after_snapshot"]["label"] == "after_failure"
    assert "new/deep/x" in facts["diff"]["changed_paths"] and _nothing_left(tmp_path)


def test_a_failing_run_without_rollback_keeps_its_changes(client: mesh.Client, repo: Path) -> None:
    """If nobody asked for a rollback, then a failure changes nothing in the folder."""
    with pytest.raises(mesh.RunError):
        client.run_once("shell", "echo x > kept; exit 1", workspace=repo)
    assert (repo / "kept").exists()


def test_a_cancelled_run_is_undone(client: mesh.Client, repo: Path) -> None:
    """If a run is cancelled, then its rollback happens before cancel returns."""
    exact = state(repo)
    session = client.sessions.start("shell")
    run = client.runs.submit(
        session.id, MESS + "echo ready; sleep 60", workspace={"path": repo, "rollback_on_failure": True}
    )
    wait_for(lambda: "message_streamed" in _types(client, session.id), "the mess is made")
    client.runs.cancel(run.id)
    assert state(repo) == exact and client.runs.get(run.id).metadata["workspace"]["rollback"]["done"]


def test_j05_patch_over_the_cap_and_one_in_the_store(client: mesh.Client, repo: Path, tmp_path: Path) -> None:
    """If a patch is too large, it is dropped with its size; an artifact store takes it out of the record."""
    option: dict[str, Any] = {"path": repo, "max_patch_bytes": 100}
    result = client.run_once("shell", "seq 1000 > big", workspace=option)
    assert result.workspace is not None
    diff = result.workspace["diff"]
    assert diff["patch"] is None and diff["patch_truncated"] and diff["patch_bytes"] > 3_000
    option = {"path": repo, "artifact_store": str(tmp_path / "artifacts")}
    result = client.run_once("shell", "seq 1000 > bigger", workspace=option)
    assert result.workspace is not None
    diff = result.workspace["diff"]
    assert diff["patch"] is None and not diff["patch_truncated"]
    patch = mesh.workspaces.FileStore(tmp_path / "artifacts").get(diff["patch_ref"])
    assert len(patch) == diff["patch_bytes"] and b"+1000\n" in patch


@pytest.mark.parametrize("store", [None, True, "own"])
def test_a_patch_is_read_from_wherever_it_is_and_undoes_the_run(
    client: mesh.Client, repo: Path, tmp_path: Path, store: Any
) -> None:
    """If a run changed something, then its patch is what git needs to take it back, of any store."""
    exact = state(repo)
    place = {} if store is None else {"artifact_store": str(tmp_path / "own") if store == "own" else True}
    result = client.run_once("shell", "seq 9 > more; echo x >> file.txt", workspace={"path": repo, **place})
    patch = client.runs.patch(result.run_id)
    assert patch is not None and state(repo) != exact
    subprocess.run(["git", "apply", "--reverse"], cwd=repo, input=patch, check=True)
    assert state(repo) == exact
    if store == "own":
        shutil.rmtree(tmp_path / "own")
        with pytest.raises(mesh.NotFound) as caught:
            client.runs.patch(result.run_id)
        assert caught.value.code == "not_found" and not (tmp_path / "own").exists()
    assert client.runs.patch(client.run_once("echo", "x").run_id) is None


def test_patches_in_the_node_s_store_go_with_their_session(
    client: mesh.Client, repo: Path, tmp_path: Path
) -> None:
    """If a session is forgotten, then so are its patches in the node's store; those of others stay, also when
    an imported copy of one is forgotten."""
    artifacts = tmp_path / "data" / "workspaces" / "artifacts"
    option: dict[str, Any] = {"path": repo, "artifact_store": True}
    kept = client.run_once("shell", "echo a >> file.txt", workspace=option)
    gone = client.run_once("shell", "echo b >> file.txt", workspace=option)
    own = client.run_once("shell", "echo c >> file.txt", id="own",
                          workspace={"path": repo, "artifact_store": str(tmp_path / "mine")})
    assert len(list(artifacts.iterdir())) == 2
    client.sessions.delete(gone.session_id, hard=True)
    client.sessions.delete(own.session_id, hard=True)
    copy = client.sessions.import_(client.sessions.export(kept.session_id), new_id="copy")
    assert client.sessions.delete(copy.id, hard=True)
    client.maintenance.run(timeout_s=20)
    assert len(list(artifacts.iterdir())) == len(list((tmp_path / "mine").iterdir())) == 1
    assert client.runs.patch(kept.run_id)


def test_two_runs_in_one_folder_do_not_see_each_other(client: mesh.Client, repo: Path) -> None:
    """If two runs want one folder, or one inside it, then the second begins when the first is done."""
    ids = []
    for i, path in enumerate((repo, repo / "sub", repo)):
        session = client.sessions.start("shell", id=f"s{i}")
        command = f"touch {repo}/busy-{i}; sleep 0.3; echo {i} > {repo}/sub/w{i}; rm {repo}/busy-{i}"
        ids.append(client.runs.submit(session.id, command, workspace=path).id)
    results = [client.runs.wait(run_id) for run_id in ids]
    paths = [result.workspace["diff"]["changed_paths"] for result in results if result.workspace]
    assert sorted(paths) == sorted([["sub/w0"], ["w1"], ["sub/w2"]])


def test_waiting_for_a_folder_is_bounded_and_typed(client: mesh.Client, repo: Path) -> None:
    """If somebody has the folder for longer than the run may wait, then the code is workspace_busy."""
    holder = client.sessions.start("shell", id="holder")
    client.runs.submit(holder.id, "echo ready; sleep 60", workspace=repo)
    wait_for(lambda: "message_streamed" in _types(client, "holder"), "the folder is taken")
    with pytest.raises(mesh.RunError) as caught:
        client.run_once("shell", "true", workspace={"path": repo, "lock_wait_s": 0.1}, id="late")
    assert caught.value.code == "workspace_busy" and caught.value.retryable
    client.sessions.abort("holder")
    assert client.run_once("shell", "true", workspace=repo).workspace is not None


def test_runs_in_worktrees_work_at_the_same_time_and_leave_the_folder_alone(
    client: mesh.Client, repo: Path, tmp_path: Path
) -> None:
    """If runs have worktrees, then each begins with the dirty files, and its work stays under a ref."""
    (repo / "file.txt").write_text("dirty\n")
    exact, head = state(repo), head_of(repo)
    sessions = [client.sessions.start("shell", id=f"w{i}").id for i in range(2)]
    barrier = f"touch {tmp_path}/$0; while [ ! -e {tmp_path}/b0 -o ! -e {tmp_path}/b1 ]; do sleep 0.02; done"
    runs = [
        client.runs.submit(
            session_id, f"{barrier.replace('$0', f'b{i}')}; cat file.txt; echo {i} > mine",
            workspace={"path": repo, "worktree": True},
        )
        for i, session_id in enumerate(sessions)
    ]
    for i, run in enumerate(runs):
        result = client.runs.wait(run.id)
        assert result.output["content"] == "dirty\n" and result.workspace is not None
        assert result.workspace["diff"]["changed_paths"] == ["mine"]
        assert git(repo, "show", f"{result.workspace['worktree_ref']}:mine") == str(i)
    assert state(repo) == exact and head_of(repo) == head
    assert git(repo, "worktree", "list").count("\n") == 0 and _nothing_left(tmp_path)


@pytest.mark.parametrize(("make", "option", "code"), [
    (lambda path: None, {}, "validation_error"),
    (lambda path: path.write_text("a file"), {}, "validation_error"),
    (lambda path: path.mkdir(), {"strategy": "git"}, "storage_error"),
    (lambda path: path.mkdir(), {"worktree": True}, "storage_error"),
    (lambda path: (path.mkdir(), git(path, "init", "-q")), {}, "storage_error"),
])
def test_a_workspace_that_cannot_be_is_refused_before_the_provider(
    client: mesh.Client, tmp_path: Path, make: Any, option: dict[str, Any], code: str
) -> None:
    """If there is no folder, repository or commit, then the code says so, nothing ran"""
    make(tmp_path / "w")
    with pytest.raises(mesh.MeshError) as caught:
        client.run_once("shell", f"touch {tmp_path}/ran", workspace={"path": tmp_path / "w", **option})
    assert caught.value.code == code and not (tmp_path / "ran").exists()


def test_a_wrong_option_is_refused_and_nothing_is_stored(client: mesh.Client, tmp_path: Path) -> None:
    """If a key or value of the option is wrong, then the call is refused and there is no run."""
    session = client.sessions.start("shell")
    for option in ({"paht": "/x"}, {"path": 5}, {"path": tmp_path, "strategy": "svn"}, 5, ["x"]):
        with pytest.raises(mesh.InvalidArgument):
            client.runs.submit(session.id, "true", workspace=option)  # type: ignore[arg-type]
    assert len(client.sessions.runs(session.id)) == 0


def test_a_workspace_that_vanishes_fails_the_run(client: mesh.Client, tmp_path: Path) -> None:
    """If a run removes its own folder, then a run that completed has failed with storage_error."""
    folder = plain(tmp_path / "w")
    exact = state(folder)
    with pytest.raises(mesh.MeshError) as caught:
        client.run_once("shell", f"rm -r {folder}", workspace=folder)
    assert caught.value.code == "storage_error"
    plain(folder)
    option = {"path": folder, "rollback_on_failure": True}
    with pytest.raises(mesh.MeshError):
        client.run_once("shell", f"rm -r {folder}", workspace=option)
    assert state(folder) == exact


@pytest.mark.parametrize("strategy", ["git", "hash"])
def test_a_killed_runner_leaves_no_half_undone_folder(
    client: mesh.Client, tmp_path: Path, strategy: str
) -> None:
    """If the runner is killed while a run with rollback works, then its successor puts the folder back."""
    folder = repository(tmp_path / "w") if strategy == "git" else plain(tmp_path / "w")
    exact = state(folder)
    session = client.sessions.start("shell")
    option = {"path": folder, "strategy": strategy, "rollback_on_failure": True}
    run = client.runs.submit(session.id, MESS + "echo ready; sleep 60", workspace=option)
    wait_for(lambda: "message_streamed" in _types(client, session.id), "the mess is made")
    os.kill(pids(client, "runner")[0], signal.SIGKILL)
    with pytest.raises(mesh.RunError) as caught:
        client.runs.wait(run.id)
    assert caught.value.code == "outcome_unknown"
    wait_for(lambda: _nothing_left(tmp_path), "the journal is empty")
    assert state(folder) == exact
    assert client.run_once("shell", "cat file.txt", workspace=folder).output["content"] == "one\ntwo\n"


def test_the_next_run_in_a_folder_undoes_first_what_a_dead_one_left(
    client: mesh.Client, tmp_path: Path
) -> None:
    """If the runner was killed and another run comes at once, then it never sees the dead run's changes."""
    folder = plain(tmp_path / "w")
    exact = state(folder)
    session = client.sessions.start("shell")
    option = {"path": folder, "rollback_on_failure": True}
    client.runs.submit(session.id, MESS + "echo ready; sleep 60", workspace=option)
    wait_for(lambda: "message_streamed" in _types(client, session.id), "the mess is made")
    os.kill(pids(client, "runner")[0], signal.SIGKILL)
    result = None
    while result is None:
        try:
            result = client.run_once("shell", "cat file.txt; ls", workspace=folder)
        except mesh.MeshError as exc:  # it was given to the dying one
            assert exc.code == "outcome_unknown"
    assert result.output["content"].startswith("one\ntwo\n") and "new" not in result.output["content"]
    assert state(folder) == exact


def test_secrets_in_a_patch_are_redacted_like_those_in_the_output(client: mesh.Client, repo: Path) -> None:
    """If a run writes a secret into a file and says it, then neither record nor events show it."""
    secret = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
    result = client.run_once("shell", f"echo {secret} | tee -a file.txt", workspace=repo)
    assert (repo / "file.txt").read_text().endswith(f"{secret}\n") and result.workspace is not None
    assert "[REDACTED" in result.workspace["diff"]["patch"] and secret not in str(result.to_map())


@pytest.mark.parametrize("step", ["beginning", "working", "rolling back"])
def test_a_killed_partition_does_not_disturb_a_rollback(
    client: mesh.Client, repo: Path, tmp_path: Path, step: str
) -> None:
    """If the partition of a run is killed at any step, then the run goes on, and its failure is undone."""
    exact = state(repo)
    session = client.sessions.start("shell")
    command = f"{MESS} echo ready; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 3"
    run = client.runs.submit(session.id, command, workspace={"path": repo, "rollback_on_failure": True})
    pid = pids(client, "partition")[client.partitions.of(session.id)]
    if step != "beginning":
        wait_for(lambda: "message_streamed" in _types(client, session.id), "the mess is made")
    if step == "rolling back":
        (tmp_path / "go").touch()
        wait_for(lambda: (repo / "sub").is_dir(), "the rollback has begun")
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    with pytest.raises(mesh.RunError) as caught:
        client.runs.wait(run.id)
    assert caught.value.code == "command_failed" and state(repo) == exact
    assert client.runs.get(run.id).metadata["workspace"]["rollback"]["done"]
    told = [t for t in _types(client, session.id) if t.startswith("workspace_")]
    assert told == ["workspace_snapshot_taken", "workspace_snapshot_taken", "workspace_diff_computed"]


def test_a_stopped_node_has_undone_its_runs(tmp_path: Path, node_config: dict[str, Any], repo: Path) -> None:
    """If a node is stopped while a run with rollback works, then the folder is as before when it is down."""
    exact = state(repo)
    with mesh.LocalNode(tmp_path / "data", config=node_config) as node, node.client(timeout_s=20) as client:
        session = client.sessions.start("shell")
        option = {"path": repo, "rollback_on_failure": True}
        client.runs.submit(session.id, MESS + "echo ready; sleep 60", workspace=option)
        wait_for(lambda: "message_streamed" in _types(client, session.id), "the mess is made")
    assert state(repo) == exact and _nothing_left(tmp_path)
