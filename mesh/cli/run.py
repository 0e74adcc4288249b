"""``mesh run``: one run of an agent, with or without a node, its output as it arrives."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mesh.cli import ahead, render, values
from mesh.cli.app import command, open_client, shell
from mesh.cli.calling import as_called
from mesh.cli.follow import RUN_ENDED, RUN_VIEW, closing_view, open_view, show, view_options
from mesh.cli.recording import check_recording, record_option, save_recording
from mesh.cli.settings import config_option, config_path, load, sections
from mesh.cli.workspace import say_workspace, workspace_of, workspace_options
from mesh.errors import DeadlineExceeded, MeshError, NotFound, RunError, from_wire

if TYPE_CHECKING:
    import mesh
    from mesh.rendering import Rendering

#: How long a cancelled run may take to settle before we leave; the node's own limit is 5 s.
CANCEL_WAIT_S = 8.0
#: How much of an input the question for an approval shows.
ASKED_CHARS = 200
#: Said on a terminal.
ON_ITS_OWN = "running on a node for this command alone (mesh up starts one that stays)"


@command()
@click.argument("agent")
@click.argument("prompt", nargs=-1, required=True)
@click.option(
    "--session", "session_id", metavar="ID", help="Go on in this session (made when it is not there)."
)
@click.option(
    "--deadline",
    "--timeout",
    "deadline_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop the run after this time; exit code 5.",
)
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop the run when its agent says nothing for so long; exit code 5.",
)
@click.option(
    "--usage/--no-usage",
    default=None,
    help="Say on stderr what the run used and cost; on a terminal it is said when there is something to say.",
)
@click.option(
    "--cwd",
    type=click.Path(exists=True, file_okay=False),
    help="Where the command works. For `shell` on this machine the default is here.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    callback=values.toml_files,
    metavar="FILE",
    help="A policy as a TOML file; may be repeated, each one only forbids more.",
)
@click.option(
    "--context",
    multiple=True,
    callback=values.pairs,
    metavar="NAME=VALUE",
    help="What the agent is told; may be repeated.",
)
@click.option(
    "--tag", "tags", multiple=True, metavar="TAG",
    help="Of the session that is made, such as that of a budget; may be repeated.",
)
@record_option
@workspace_options
@view_options
@config_option
def run(
    agent: str,
    prompt: tuple[str, ...],
    session_id: str | None,
    deadline_s: float | None,
    idle_s: float | None,
    usage: bool | None,
    cwd: str | None,
    policies: list[dict[str, Any]],
    context: dict[str, Any],
    tags: tuple[str, ...],
    recording: Path | None,
    workspace: str | None,
    rollback: bool,
    worktree: bool,
    renderer: str | None,
    tool_output: str | None,
    sinks: tuple[str, ...],
    config_file: str | None,
) -> None:
    """Run AGENT once and stream its answer. Uses the node that is up, else one of its own for this run; with
    --config always one of its own.

    PROMPT `-` reads standard input. Ctrl-C cancels the run. With -o json: one event per line, and on stderr
    {"error": ...} when it failed.

    \b
    Example:
      mesh run shell "wc -w README.md"
      mesh run shell "make test" --deadline 600 --idle 60
      mesh run coder "fix the tests" --tag team-a --policy configs/policies/team.toml
      mesh run shell "git log -3" --policy configs/policies/readonly.toml
      mesh run shell "make release" --workspace . --rollback
      mesh run coder "what is 2+3?" --record demo.jsonl
      mesh run coder "fix the tests" --render studio --sink jsonl:events.jsonl
    """
    if config_file and shell().address:
        raise click.UsageError("--config is of a node of this command's own, and goes with no --address")
    words = values.prompt_text(prompt)
    check_recording(recording)
    folder = workspace_of(workspace, rollback=rollback, worktree=worktree)
    view = open_view(RUN_VIEW, renderer, tool_output, sinks)
    named = None if config_file else shell().address or _named_address()
    with closing_view(view), _signals_heard(), _a_client(config_file, named) as (client, address):
        if cwd is None and folder is None and agent == "shell" and named is None:
            cwd = "."
        task = Task(
            agent, words, session_id, deadline_s, str(Path(cwd).resolve()) if cwd else None, context or None,
            idle_s=idle_s, usage=usage, policies=policies, workspace=folder,
            recording=recording, tags=tags,
        )
        raise click.exceptions.Exit(run_task(client, address, task, view))


class Task(NamedTuple):
    """What the command line asked for."""

    agent: str
    prompt: str
    session_id: str | None
    deadline_s: float | None
    cwd: str | None
    context: dict[str, Any] | None
    idle_s: float | None = None
    policies: Sequence[dict[str, Any]] = ()
    workspace: dict[str, Any] | None = None
    usage: bool | None = None  #: None: on a terminal, when there is something to say
    recording: Path | None = None  #: where the session is written at the end
    tags: Sequence[str] = ()  #: of the session, when it is a new one


def run_task(client: mesh.Client, address: str | None, task: Task, view: Rendering) -> int:
    """Start (or find) the session, run, follow; a session made for this run ends with it."""
    if task.session_id is None:
        record = client.sessions.start(task.agent, context=task.context, tags=task.tags)
    else:
        record = client.sessions.start_or_get(
            task.session_id, task.agent, context=task.context, tags=task.tags
        )
    code, recorded = render.FAILED, True
    try:
        given = client.runs.submit(
            record.id,
            {"prompt": task.prompt},
            deadline_s=task.deadline_s,
            idle_s=task.idle_s,
            policies=task.policies,
            workspace=task.workspace,
            provider_opts={"cwd": task.cwd} if task.cwd else None,
        )
        code = follow_run(client, record.id, given.id, view, after=record.seq, address=address)
        if code != render.INTERRUPTED:  # then the client stopped in the middle
            _say_usage(client, given.id, task.usage)
            if task.workspace is not None:
                say_workspace(client, given.id)
    finally:
        if task.session_id is None:
            _end_session(address, record.id, "complete" if code == render.OK else "cancel")
        if task.recording is not None:
            recorded = save_recording(address, record.id, task.recording)
    return code if recorded or code != render.OK else render.FAILED


@contextmanager
def _signals_heard() -> Iterator[None]:
    """A closed terminal or a polite kill cancels the run as Ctrl-C does."""
    import signal

    def interrupted(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupted) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def follow_run(
    client: mesh.Client,
    session_id: str,
    run_id: str,
    view: Rendering | None = None,
    *,
    after: int = 0,
    address: str | None = None,
) -> int:
    """Stream a run's output until its end, cancel it at Ctrl-C; the exit code."""
    with closing_view(view or open_view(RUN_VIEW)) as shown:
        try:
            for event in client.sessions.stream(session_id, after=after, run_id=run_id):
                show(shown, event)
                if event.type == "tool_approval_requested" and event.data.get("tool_call_id"):
                    if not shell().json:
                        shown.interrupt()
                        render.echo(_question(event, address), err=True)
                elif event.type in RUN_ENDED:
                    shown.finish()
                    return _verdict(event, client.runs.get(run_id), shown.last)
        except KeyboardInterrupt:
            shown.interrupt()
            return _cancelled(address or shell().address, run_id)
    raise MeshError("the stream ended before the run did", code="stream_closed")


def _question(event: Any, address: str | None) -> str:
    """What the run waits for, and the command that answers."""
    what = event.data.get("tool_name") or "go on over its budget"
    given = event.data.get("tool_input")
    shown = "" if given is None else f" {render.to_json(given)[:ASKED_CHARS]}"
    place = "" if address is None else f" --address {address}"
    command = f"mesh approval approve {event.run_id} {event.data['tool_call_id']}{place}"
    return as_called(f"waiting for an approval: {what}{shown}\n  {command}    (or deny)")


def _say_usage(client: mesh.Client, run_id: str, wanted: bool | None) -> None:
    """What the run used and cost, on stderr: stdout is the agent's."""
    from mesh.cli.follow import used

    if wanted is False or (wanted is None and (shell().json or not sys.stderr.isatty())):
        return None
    record = client.runs.get(run_id)
    if shell().json:
        names = ("token_usage", "turn_count", "cost_usd", "cost_state")
        return click.echo(render.to_json({name: getattr(record, name) for name in names}), err=True)
    text = used(record)
    if text or wanted:
        click.echo(text or "no usage was reported", err=True)
    return None


def _verdict(event: Any, record: Any, told: str) -> int:
    if event.type == "run_completed":
        return render.OK
    stored = record.error or {}
    message = str(
        stored.get("message") or event.data.get("error_message") or f"the run ended as {record.status}"
    )
    code = str(stored.get("code") or event.data.get("error_code") or "run_failed")
    error: MeshError = from_wire(code, message, stored.get("details"))
    if event.type == "run_timeout":
        option = "--idle" if "idle_s" in error.details else "--deadline"
        error = DeadlineExceeded(message, details=error.details)
        error.details["hint"] = f"allow more time with: {option} SECONDS"
    elif event.type == "run_cancelled":
        error = RunError(message, code="cancelled")
    render.report(error, as_json=shell().json, told=told)
    return render.TIMEOUT if isinstance(error, DeadlineExceeded) else render.FAILED


def _cancelled(address: str | None, run_id: str) -> int:
    """Cancel and wait for the end. On a client of its own: the interrupted one stopped in the middle."""
    if not shell().json:
        click.echo("cancelling ...", err=True)
    with open_client(address, CANCEL_WAIT_S) as client:
        try:
            client.runs.cancel(run_id)
        except MeshError as exc:
            if not client.runs.get(run_id).terminal:
                render.report(exc, as_json=shell().json)
                return render.FAILED
    return render.INTERRUPTED


def _end_session(address: str | None, session_id: str, how: str) -> None:
    """End the session that was made for one run. It may have ended by itself: that is as well."""
    with suppress(MeshError), open_client(address, CANCEL_WAIT_S) as client:
        if how == "complete":
            client.sessions.complete(session_id)
        else:
            client.sessions.abort(session_id)
            client.sessions.cancel(session_id)


@contextmanager
def _a_client(config_file: str | None, address: str | None) -> Iterator[tuple[mesh.Client, str | None]]:
    """A client of the node that is up, else of one that lives as long as this command. A config that was
    given asks for such a one: the node that is up has settings of its own."""
    from mesh.cli.node import local_node

    with ExitStack() as stack:
        if config_file or (address is None and local_node() is None):
            address = stack.enter_context(_embedded(config_file))
        try:
            yield stack.enter_context(open_client(address, max(shell().timeout_s, CANCEL_WAIT_S))), address
        except NotFound as exc:
            if exc.code == "unknown_agent" and not config_file:
                _say_where_it_is(exc)
            raise


def _say_where_it_is(exc: NotFound) -> None:
    """The agent may stand in the config of this folder, of which the node that is up knows nothing."""
    with suppress(MeshError):
        path = config_path(None)
        if path is not None and any(f"no agent {name!r};" in exc.message for name in load(None).agents):
            known = "the node that is up has another config, or read it before"
            exc.details["hint"] = f"{path} has it, but {known}: try --config {path}, or mesh agent reload"


def _named_address() -> str | None:
    import os

    return os.environ.get("MESH_ADDRESS") or None


@contextmanager
def _embedded(config_file: str | None) -> Iterator[str]:
    begun = ahead.take()
    try:
        if sys.stderr.isatty() and not shell().json:
            click.echo(as_called(ON_ITS_OWN), err=True)
        node = own_node(config_file)
    except BaseException:
        begun.drop()
        raise
    try:
        node.start(begun)
    except MeshError as exc:
        exc.details.setdefault("hint", "ask: mesh doctor")
        raise
    with node:
        yield node.address


def own_node(config_file: str | None) -> mesh.LocalNode:
    """A node for one command alone: its settings, in a temporary folder, on sockets of its own."""
    import mesh

    settings = load(config_file)
    overrides = sections(settings)
    for key in ("data_dir", "port", "host", "name"):
        overrides["node"].pop(key, None)
    overrides["node"] |= {"partitions": 1, "runners": 1}
    return mesh.LocalNode(config=overrides)


__all__ = [
    "ASKED_CHARS",
    "CANCEL_WAIT_S",
    "ON_ITS_OWN",
    "Task",
    "follow_run",
    "own_node",
    "run",
    "run_task",
]
