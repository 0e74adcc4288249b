"""Both clients have the same methods, with the same arguments; every public name is documented."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

import mesh
from mesh.client import (
    _aio_approvals,
    _aio_attach,
    _aio_queries,
    _aio_routes,
    _aio_runs,
    _aio_sessions,
    _aio_transcripts,
    _blocking_approvals,
    _blocking_attach,
    _blocking_queries,
    _blocking_routes,
    _blocking_runs,
    _blocking_sessions,
    _blocking_transcripts,
)
from mesh.client.aio import AsyncClient
from mesh.client.blocking import Client

PAIRS: list[tuple[type[Any], type[Any]]] = [
    (AsyncClient, Client),
    (_aio_routes.AsyncRoutes, _blocking_routes.Routes),
    (_aio_routes.AsyncPartitions, _blocking_routes.Partitions),
    (_aio_routes.AsyncAgents, _blocking_routes.Agents),
    (_aio_sessions.AsyncSessions, _blocking_sessions.Sessions),
    (_aio_transcripts.AsyncTranscripts, _blocking_transcripts.Transcripts),
    (_aio_runs.AsyncRuns, _blocking_runs.Runs),
    (_aio_queries.AsyncStoredSessions, _blocking_queries.StoredSessions),
    (_aio_queries.AsyncStoredRuns, _blocking_queries.StoredRuns),
    (_aio_queries.AsyncEvents, _blocking_queries.Events),
    (_aio_queries.AsyncUsage, _blocking_queries.Usage),
    (_aio_approvals.AsyncApprovals, _blocking_approvals.Approvals),
    (_aio_attach.AsyncAttaching, _blocking_attach.Attaching),
    (_aio_attach.AsyncAttachment, _blocking_attach.Attachment),
    (_aio_queries.AsyncAudit, _blocking_queries.Audit),
    (_aio_queries.AsyncMaintenance, _blocking_queries.Maintenance),
]
#: design 5, row by row.
CONTRACT = {
    "routes": "set get resolve delete list prune config set_many get_many resolve_many",
    "partitions": "count of pid info list restart prune",
    "sessions": "create start start_or_get activate pause resume complete cancel fail stop abort prompt get "
    "list handle id_of stop_by_handle runs events stream transcript fork compact pin "
    "attach claim renew release set_token",
    "runs": "create execute submit wait get cancel cancel_for_approval approve deny",
    "approvals": "list approve deny",
    "agents": "list reload",
    "events": "search count",
    "usage": "summary",
    "audit": "list",
    "maintenance": "run check",
}


def public(cls: type[Any]) -> dict[str, Any]:
    """The public methods of a class."""
    return {
        name: member for name, member in vars(cls).items() if not name.startswith("_") and callable(member)
    }


@pytest.mark.parametrize(("other", "blocking"), PAIRS, ids=lambda cls: cls.__name__)
def test_methods_and_their_arguments_are_the_same(other: type[Any], blocking: type[Any]) -> None:
    """If a method is in one client, then it is in the other, with the same arguments and defaults."""
    assert public(other).keys() == public(blocking).keys()
    for name, method in public(other).items():
        twin = inspect.signature(public(blocking)[name])
        assert inspect.signature(method).parameters == twin.parameters, name


@pytest.mark.parametrize(("other", "blocking"), PAIRS, ids=lambda cls: cls.__name__)
def test_asyncio_methods_are_coroutines_and_streams_are_async_iterators(
    other: type[Any], blocking: type[Any]
) -> None:
    """If a method waits, then it is a coroutine function in one client and a plain one in the other."""
    for name, method in public(other).items():
        assert (
            inspect.isasyncgenfunction(method)
            if name in ("stream", "export")
            else inspect.iscoroutinefunction(method)
        ), name
        assert not inspect.iscoroutinefunction(public(blocking)[name])


@pytest.mark.parametrize(("other", "blocking"), PAIRS, ids=lambda cls: cls.__name__)
def test_every_method_is_documented_and_takes_a_limit(other: type[Any], blocking: type[Any]) -> None:
    """If a method is public, then it says what it promises and takes timeout_s=None."""
    for cls in (other, blocking):
        for name, method in public(cls).items():
            assert method.__doc__, (cls, name)
            if name != "close":
                assert inspect.signature(method).parameters["timeout_s"].default is None, (cls, name)


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_groups_hold_the_methods_of_the_contract(make: Any) -> None:
    """If the contract names a method, then its group has it."""
    client = make("tcp://127.0.0.1:1")
    for group, names in CONTRACT.items():
        assert set(names.split()) <= set(dir(getattr(client, group))), group
    assert {"run_once", "listen", "status", "ping", "close"} <= set(dir(client))


def test_public_names_exist_and_are_documented() -> None:
    """If a name is exported, then it can be imported and has a docstring."""
    for name in mesh.__all__:
        value = getattr(mesh, name)
        assert name == "__version__" or value.__doc__, name
    assert mesh.__all__ == sorted(mesh.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mesh.no_such_name


def test_importing_mesh_loads_neither_zmq_nor_asyncio() -> None:
    """If a program imports mesh, then the heavy modules wait for the first use."""
    code = (
        "import sys, mesh; print([m for m in ('zmq', 'asyncio', 'msgspec', 'msgpack') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
