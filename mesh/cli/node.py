"""``mesh up``, ``mesh down``, ``mesh status``: the node as a whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import render
from mesh.cli.app import command, shell
from mesh.cli.calling import program
from mesh.cli.settings import config_option, load
from mesh.errors import ConfigError, MeshError, NodeUnreachable

if TYPE_CHECKING:
    from mesh.config import NodeConfig


@command(local=True)
@config_option
@click.option("--name", help="The node's name; clients find it by this. Default: mesh.")
@click.option(
    "--port", type=click.IntRange(0, 65534), help="Requests; the feed is on the next one. 0 picks free ones."
)
@click.option(
    "--data-dir", type=click.Path(file_okay=False), help="Where sessions, routes and logs are kept."
)
@click.option("--partitions", type=click.IntRange(1, 255), help="Single writers; default 2.")
@click.option("--runners", type=click.IntRange(1, 64), help="Processes that host agents; default 1.")
@click.option("--detach", is_flag=True, help="Start in the background and return when it serves.")
def up(config_file: str | None, detach: bool, **options: Any) -> None:
    """Start a node, in the foreground: Ctrl-C stops it.

    Example: mesh up --port 7400 --data-dir ./mesh-data --detach
    """
    from mesh.config import data_dir

    given = {key: value for key, value in options.items() if value is not None}
    settings = load(config_file, {"node": given} if given else None)
    folder = data_dir(settings)
    _check_folder(folder)
    _check_not_running(settings, folder)
    _check_ports(settings)
    if detach:
        _start_detached(settings, folder)
    else:
        from mesh.launch import exec_foreground

        exec_foreground(settings, folder, by_name=True)


@command(local=True)
@click.option("--name", help="The node's name; default: $MESH_NODE_NAME, else mesh.")
def down(name: str | None) -> None:
    """Stop the local node.

    Runs are cancelled, state is flushed, all its processes end.

    Example: mesh down
    """
    from mesh.launch import stop_node

    found = local_node(name)
    if found is None:
        raise NodeUnreachable(f"no mesh node named {wanted_name(name)!r} runs here")
    orderly = stop_node(found)
    if shell().json:
        return render.emit_json({"name": found.get("name"), "pid": found["pid"], "orderly": orderly})
    if not orderly:
        click.echo("warning: it did not stop by itself and was killed", err=True)
    return render.say(f"stopped (pid {found['pid']})")


@command()
def status() -> None:
    """Show the node's processes.

    Its router, partitions and runners, and the cause of each one's last death.

    Example: mesh status -o json
    """
    with shell().client() as client:
        state = client.status()
    state = state if isinstance(state, dict) else state.to_map()
    if shell().json:
        return render.emit_json(state)
    if sys.stdout.isatty():
        up_for = render.duration(state.get("uptime_s") or 0)
        click.echo(f"node {state.get('node')!r}, pid {state.get('pid')}, up {up_for}")
        click.echo(f"  {'data':<10} {state.get('data_dir')}")
        for name, address in (state.get("endpoints") or {}).items():
            click.echo(f"  {name:<10} {address}")
    return render.table(STATUS_COLUMNS, status_rows(state))


STATUS_COLUMNS = (
    "process", "state", "pid", "epoch", "restarts", "routes", "sessions", "live", "runs", "waiting",
    "last death",
)


def status_rows(state: dict[str, Any]) -> list[tuple[Any, ...]]:
    """One row per process: the roster's word on life and death, joined with what each one counts."""
    counted = {f"partition-{p.get('index')}": p for p in state.get("partitions") or ()}
    counted |= {f"runner-{r.get('index')}": r for r in state.get("runners") or ()}
    rows = []
    for child in state.get("children") or ():
        own = counted.pop(f"{child.get('kind')}-{child.get('index')}", {})
        name = str(child.get("name")) + (f" (agent {child['agent']})" if child.get("agent") else "")
        rows.append(_status_row(name, {**child, **{k: v for k, v in own.items() if v is not None}}))
    return rows + [_status_row(name, own) for name, own in counted.items()]


def _status_row(name: str, child: dict[str, Any]) -> tuple[Any, ...]:
    epoch = child.get("epoch", child.get("incarnation"))
    return (
        name,
        render.state(child),
        child.get("pid"),
        epoch,
        child.get("restarts", 0),
        child.get("routes"),
        child.get("sessions"),
        child.get("live"),
        child.get("executing", child.get("runs_active")),
        child.get("waiting", child.get("queue_depth")),
        render.cause(child.get("cause")),
    )


def wanted_name(name: str | None) -> str:
    """The name of the node that commands without an address mean."""
    return name or os.environ.get("MESH_NODE_NAME") or "mesh"


def local_node(name: str | None = None) -> dict[str, Any] | None:
    """The address map of the local node, None when it does not run."""
    from mesh.launch import find_node

    return find_node(wanted_name(name))


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"node.data_dir: cannot make {folder}: {exc.strerror}",
            details={"hint": "choose another: --data-dir FOLDER"},
        ) from exc
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"node.data_dir: {folder} is not writable", details={"hint": "choose another: --data-dir FOLDER"}
        )


def _check_not_running(settings: NodeConfig, folder: Path) -> None:
    from mesh.launch import find_node, runtime_dir

    for where in (settings.node.name, runtime_dir(folder)):
        found = find_node(where)
        if found is not None:
            raise MeshError(
                f"node {found.get('name')!r} is already running (pid {found['pid']}, {found.get('address')}, "
                f"data in {found.get('data_dir')})",
                code="already_exists",
                details={
                    "hint": "stop it: mesh down; or start another: --name NAME --port 0 --data-dir FOLDER"
                },
            )


def _check_ports(settings: NodeConfig) -> None:
    """A port in use, said before anything is started (the node itself checks again when it binds)."""
    if settings.node.port == 0:
        return
    for port in (settings.node.port, settings.node.port + 1):
        problem = port_problem(settings.node.host, port)
        if problem:
            raise ConfigError(
                f"node.port: {settings.node.host}:{port}: {problem}",
                details={
                    "hint": "choose another: --port N (it takes N and N + 1), or --port 0 for free ones"
                },
            )


def port_problem(host: str, port: int) -> str | None:
    """Why a port cannot be bound now; None when it can."""
    import socket

    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as exc:
        return str(exc.strerror or exc)
    return None


def _start_detached(settings: NodeConfig, folder: Path) -> None:
    from mesh.launch import spawn_node, wait_ready
    from mesh.launch_view import banner

    spawned = spawn_node(settings, folder, by_name=True, detach=True)
    try:
        info = wait_ready(spawned)
    except MeshError as exc:
        exc.details.setdefault("hint", f"its log: {spawned.log}")
        raise
    info = {"partitions": settings.node.partitions, "runners": settings.hosting().count} | info
    if shell().json:
        return render.emit_json(info)
    return click.echo(banner(info, program()), nl=False)


__all__ = [
    "STATUS_COLUMNS",
    "down",
    "local_node",
    "port_problem",
    "status",
    "status_rows",
    "up",
    "wanted_name",
]
