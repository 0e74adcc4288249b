"""What ``mesh run`` takes and says about the folder that a run works in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli import render
from mesh.cli.app import group, shell
from mesh.errors import NotFound

if TYPE_CHECKING:
    import mesh

F = TypeVar("F", bound=Callable[..., Any])


def workspace_options(function: F) -> F:
    """``--workspace``, ``--rollback`` and ``--worktree``."""
    for option in (
        click.option(
            "--worktree", is_flag=True, help="Work in a git worktree of the run's own; its result gets a ref."
        ),
        click.option("--rollback", is_flag=True, help="Put the workspace back unless the run completes."),
        click.option(
            "--workspace", metavar="PATH",
            help="The folder to work in, alone; what changed there is told at the end, on stderr.",
        ),
    ):
        function = option(function)
    return function


def workspace_of(workspace: str | None, *, rollback: bool, worktree: bool) -> dict[str, Any] | None:
    """The run's option.

    Raises:
        UsageError: a flag without a folder.
    """
    if workspace is None:
        if rollback or worktree:
            raise click.UsageError("--rollback and --worktree need --workspace PATH")
        return None
    option: dict[str, Any] = {"path": workspace}
    if rollback:
        option["rollback_on_failure"] = True
    if worktree:
        option["worktree"] = True
    return option


def say_workspace(client: mesh.Client, run_id: str) -> None:
    """One line on stderr: what changed, what was undone, where the result is."""
    facts = client.runs.get(run_id).metadata.get("workspace")
    if facts and not shell().json:
        click.echo(f"workspace: {summary(facts)}", err=True)


def summary(facts: dict[str, Any]) -> str:
    """What a run did to its folder, in words."""
    diff = facts.get("diff")
    if diff is None:
        words = ["what changed is not known"]
    elif not diff["files_changed"]:
        words = ["nothing changed"]
    else:
        count = diff["files_changed"]
        counts = f" (+{diff['insertions']} -{diff['deletions']})" if facts["backend"] == "git" else ""
        words = [f"{count} file{'' if count == 1 else 's'} changed{counts}"]
        words += ["the patch was too large to keep"] if diff["patch_truncated"] else []
    if "rollback" in facts:
        words.append("rolled back" if facts["rollback"]["done"] else "NOT rolled back")
    if "worktree_ref" in facts:
        words.append(f"git merge {facts['worktree_ref']}")
    return "; ".join(words)


@group()
def workspace() -> None:
    """See what runs did to their folders.

    \b
    Example:
      mesh workspace show RUN
      mesh workspace patch RUN | git apply --reverse
    """


@workspace.command("show")
@click.argument("run_id", metavar="RUN")
def show(run_id: str) -> None:
    """Snapshots, changed files and rollback of one run.

    Example: mesh workspace show $run -o json
    """
    with shell().client() as client:
        facts = client.runs.get(run_id).workspace
    if facts is None:
        raise NotFound(f"run {run_id} has no workspace, or is not over", code="not_found")
    if shell().json:
        render.emit_json(facts)
        return
    click.echo(f"{facts['path']}: {summary(facts)}")
    click.echo(f"{facts['backend']} {facts['before_ref']} -> {facts['after_ref'] or '?'}")
    for path in (facts.get("diff") or {}).get("changed_paths", ()):
        click.echo(f"  {path}")


@workspace.command("patch")
@click.argument("run_id", metavar="RUN")
def patch(run_id: str) -> None:
    """The patch of one run, byte for byte as it was kept.

    Example: mesh workspace patch $run > change.patch
    """
    with shell().client() as client:
        found = client.runs.patch(run_id)
    if found is None:
        raise NotFound(f"no patch was kept of run {run_id}", code="not_found")
    if shell().json:
        render.emit_json({"run_id": run_id, "patch": found.decode(errors="replace")})
    else:
        sys.stdout.buffer.write(found)


__all__ = ["say_workspace", "summary", "workspace", "workspace_of", "workspace_options"]
