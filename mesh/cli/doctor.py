"""``mesh doctor``: is everything here that a node needs, and what to do when it is not."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from mesh.cli import render
from mesh.cli.app import command, shell
from mesh.cli.calling import as_called
from mesh.cli.settings import config_option, config_path, load
from mesh.errors import MeshError, StoreError

if TYPE_CHECKING:
    import mesh
    from mesh.config import NodeConfig

PYTHON_MIN = (3, 11)
#: The oldest one these sockets were tried with; the wheels of pyzmq 27 ship a newer one.
LIBZMQ_MIN = (4, 3, 4)
#: The WAL-reset corruption bug is fixed here.
SQLITE_MIN = (3, 51, 3)
#: With less free space a node would soon refuse writes.
FREE_BYTES_MIN = 256 * 1024 * 1024
FILES_MIN = 1024
#: How long the agents may take to be loaded, and how often that is looked at.
AGENTS_S = 30.0
LOOK_S = 0.1
#: Whose round trip and agents they are.
UP = "the node that is up"
#: A socket path has at most 107 bytes; the longest name below the runtime folder is "/xxxxxxxx/front".
RUNTIME_PATH_MAX = 107 - len("/xxxxxxxx/front")
RESTORE = "restore it from a backup (mesh backup --help says how)"


class Check(NamedTuple):
    """One finding. ``state`` is ok, warn or fail; ``fix`` says what to do."""

    name: str
    state: str
    text: str
    fix: str = ""


@command()
@config_option
def doctor(config_file: str | None) -> None:
    """Check what a node needs, and say what to do.

    Loads the agents, too, on the node that is up or on one for this command. Exit code 1 when
    something fails.

    Example: mesh doctor -o json
    """
    found = []
    for check in checks(config_file):
        found.append(check)
        if not shell().json:
            _show(check)
    failed = sum(check.state == "fail" for check in found)
    if shell().json:
        render.emit_json({"ok": not failed, "checks": [check._asdict() for check in found]})
    elif failed:
        click.echo(f"{failed} of {len(found)} checks failed", err=True)
    elif warned := sum(check.state == "warn" for check in found):
        render.say(f"{warned} of {len(found)} checks warn; a node starts all the same")
    else:
        render.say("all is well")
    if failed:
        raise click.exceptions.Exit(render.FAILED)


def _show(check: Check) -> None:
    mark = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}[check.state]
    click.echo(f"{mark}  {check.name:<15} {check.text}")
    if check.fix:
        click.echo(as_called(f"      -> {check.fix}"))


def checks(config_file: str | None) -> Iterator[Check]:
    """All findings, in an order in which the first failure usually explains the later ones."""
    yield python_version(sys.version_info[:3])
    yield _guarded("libzmq", _libzmq)
    yield _guarded("sqlite", _sqlite)
    try:
        settings = load(config_file)
    except MeshError as exc:
        yield Check("config", "fail", exc.message, "mend it; mesh config check says when it is right")
        return
    yield Check("config", "ok", str(config_path(config_file) or "defaults and environment"))
    from mesh.cli.doctor_programs import programs
    from mesh.config import data_dir
    from mesh.launch import runtime_root

    yield data_folder(data_dir(settings))
    yield _guarded("databases", lambda: databases(data_dir(settings)))
    yield runtime_folder(runtime_root())
    yield _open_files()
    yield _guarded("ports", lambda: _ports(settings))
    yield _guarded("runners", lambda: _runners(settings))
    yield from programs(settings.agents)
    yield from _on_a_node(config_file)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that breaks is a finding, not the end of the examination."""
    try:
        return check()
    except (MeshError, ImportError, OSError) as exc:
        return _failed(name, exc)


def _failed(name: str, exc: Exception) -> Check:
    if not isinstance(exc, MeshError):
        return Check(name, "fail", f"{type(exc).__name__}: {exc}", "install mesh anew (bin/mesh does it)")
    return Check(name, "fail", f"{exc.message} ({exc.code})", render.HINTS.get(exc.code, "see: mesh logs"))


def python_version(found: tuple[int, ...]) -> Check:
    """Python is new enough."""
    text = ".".join(map(str, found))
    if found[:2] < PYTHON_MIN:
        return Check("python", "fail", text, "install Python 3.11 or newer, and remove .venv")
    return Check("python", "ok", f"{text} ({sys.executable})")


def _libzmq() -> Check:
    from mesh.net.sockets import version

    return at_least("libzmq", version()[0], LIBZMQ_MIN, "pip install --upgrade pyzmq")


def _sqlite() -> Check:
    from mesh.store.file import page_checksums
    from mesh.store.version import sqlite_version

    found = at_least("sqlite", sqlite_version(), SQLITE_MIN, "pip install --upgrade apsw")
    if found.state == "ok" and not page_checksums():
        fix = "install apsw's own wheel: pip install --force-reinstall --only-binary apsw apsw"
        return Check("sqlite", "warn", f"{found.text}, without cksumvfs: pages have no checksums", fix)
    return found


def at_least(name: str, found: str, wanted: tuple[int, ...], fix: str) -> Check:
    """A library is new enough."""
    if tuple(int(part) for part in found.split(".")[:3]) < wanted:
        return Check(name, "fail", f"{found}, older than {'.'.join(map(str, wanted))}", fix)
    return Check(name, "ok", found)


def data_folder(folder: Path) -> Check:
    """The data folder exists or can be made, can be written, has room."""
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        who = f"{parent} is not writable" if parent.is_dir() else f"{parent} is not a folder"
        return Check(
            "data folder", "fail", who, "choose another: mesh up --data-dir FOLDER, or [node] data_dir"
        )
    free = shutil.disk_usage(parent).free
    text = f"{folder} ({free // 2**20} MiB free)"
    if free < FREE_BYTES_MIN:
        return Check("data folder", "warn", text, "free some space: a full disk makes the node refuse writes")
    return Check("data folder", "ok", text)


def databases(folder: Path) -> Check:
    """The files of a node that is down are sound: every page, every index, the log beside them."""
    from mesh.launch import find_node, runtime_dir
    from mesh.store.examine import examine

    files = sorted(folder.glob("*.db"))
    if find_node(runtime_dir(folder)) is not None:
        return Check("databases", "ok", "in use by the node that is up: mesh status tells of damage")
    for file in files:
        try:
            found = examine(file)
        except StoreError as exc:
            return Check("databases", "warn", exc.message, "free some space, or stop who uses it; ask again")
        if found:
            fix = f"{RESTORE}; or save what can be read: mesh repair"
            return Check("databases", "fail", f"{file}: {'; '.join(found[:3])}", fix)
    kept = [file.name for file in sorted(folder.glob("*.damaged"))]
    if kept:
        return Check("databases", "warn", f"commits were lost from {', '.join(kept)}", "delete it when done")
    return Check("databases", "ok", f"{len(files)} files, each page read")


def runtime_folder(folder: Path) -> Check:
    """The folder of the sockets is ours alone, and its path is short enough."""
    if len(os.fsencode(folder)) > RUNTIME_PATH_MAX:
        return Check(
            "runtime folder",
            "fail",
            f"{folder}: too long for a socket",
            "set MESH_RUNTIME_DIR to a short path",
        )
    if folder.exists():
        facts = folder.stat()
        if facts.st_uid != os.getuid():
            return Check(
                "runtime folder",
                "fail",
                f"{folder} belongs to uid {facts.st_uid}",
                "set MESH_RUNTIME_DIR to a folder of your own",
            )
        if facts.st_mode & 0o022:
            return Check(
                "runtime folder", "warn", f"{folder} can be written by others", f"chmod 700 {folder}"
            )
    elif not os.access(next(path for path in folder.parents if path.exists()), os.W_OK):
        return Check(
            "runtime folder",
            "fail",
            f"{folder} cannot be made",
            "set MESH_RUNTIME_DIR to a folder of your own",
        )
    return Check("runtime folder", "ok", str(folder))


def _runners(settings: NodeConfig) -> Check:
    """The processes that host agents, and whose they are."""
    from mesh.core.hosting import check_apart

    hosting = settings.hosting()
    for name in settings.agents:
        check_apart(name, settings.agents)
    own = "".join(f"; one of {agent} alone" for agent in hosting.own)
    return Check("runners", "ok", f"{hosting.shared} shared{own}")


def _open_files() -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_MIN:
        return Check("open files", "warn", f"limit {soft}", f"ulimit -n {min(hard, 65536)}")
    return Check("open files", "ok", f"limit {soft}")


def _ports(settings: NodeConfig) -> Check:
    from mesh.cli.node import local_node, port_problem

    host, port = settings.node.host, settings.node.port
    found = local_node(settings.node.name)
    if found is not None:
        return Check(
            "ports",
            "ok",
            f"{found.get('address')}, {found.get('feed')}: the node that is up (pid {found['pid']})",
        )
    if port == 0:
        return Check("ports", "ok", "free ones are picked at start")
    for one in (port, port + 1):
        problem = port_problem(host, one)
        if problem:
            return Check(
                "ports",
                "fail",
                f"{host}:{one}: {problem}",
                "mesh up --port 0 picks free ones; or [node] port",
            )
    return Check("ports", "ok", f"{host}:{port} and {port + 1} are free")


def _on_a_node(config_file: str | None) -> Iterator[Check]:
    """One ping, and what its agents say: of the node that is up, else of one started for it."""
    from contextlib import ExitStack

    from mesh.cli.app import open_client
    from mesh.cli.node import local_node
    from mesh.cli.run import own_node

    def round_trip() -> Check:
        client.ping()  # the first one says hello, too
        return Check("round trip", "ok", f"{client.ping() * 1e6:.0f} us to {whose}")

    options = shell()
    with ExitStack() as stack:
        address, whose = options.address or os.environ.get("MESH_ADDRESS"), UP
        try:
            if not address and local_node() is None:
                address, whose = stack.enter_context(own_node(config_file)).address, "a node of its own"
            client = stack.enter_context(open_client(address or None, options.timeout_s))
        except (MeshError, OSError) as exc:  # the latter: no room for a node of its own
            yield _failed("round trip", exc)
            return
        yield (tripped := _guarded("round trip", round_trip))
        if tripped.state == "ok":
            yield _guarded("agents", lambda: _agents(client, whose))


def _agents(client: mesh.Client, whose: str) -> Check:
    """Every agent is loaded, or its own last word says why it is not."""
    from mesh.core.hosting import LOADING

    until_s = time.monotonic() + AGENTS_S
    while True:
        known = client.agents.list()
        if all(agent["problem"] != LOADING for agent in known) or time.monotonic() > until_s:
            break
        time.sleep(LOOK_S)
    broken = [f"{a['name']}: {str(a['problem']).strip().splitlines()[-1]}" for a in known if a["problem"]]
    if broken:
        then = "mesh agent reload" if whose == UP else "mesh doctor"
        return Check("agents", "warn", "; ".join(broken), f"mend it, then: {then}")
    return Check("agents", "ok", f"{len(known)} loaded by {whose}")


__all__ = [
    "Check", "at_least", "checks", "data_folder", "databases", "doctor", "python_version", "runtime_folder",
]
