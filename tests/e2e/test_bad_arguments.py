"""Bad input through the SDK: every public method, every argument, every kind of nonsense; both clients.

A call either succeeds or raises a ``MeshError``; nothing else comes out, nothing strange is stored, and the
client's next call works.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

import mesh
from mesh.core.slots import RUN_ID

#: Some five thousand calls, one after another, beside whatever else the machine does.
pytestmark = pytest.mark.timeout(300)

GROUPS = ("routes", "partitions", "sessions", "runs", "agents", "events", "usage", "audit", "approvals", "")
#: They take no argument that could be wrong, or are about the client's own life.
SKIPPED = frozenset(("close",))
LIMIT_S = 3.0
#: Calls of the asyncio client in flight.
AT_ONCE = 16
KEY = "bad:arguments:room"
SESSION = "bad-arguments"


def deep(levels: int, kind: type = list) -> Any:
    """Containers in each other."""
    value: Any = kind()
    for _ in range(levels):
        value = [value] if kind is list else {"d": value}
    return value


def cyclic() -> list[Any]:
    """A list that holds itself, twice."""
    own: list[Any] = []
    own.extend((own, own))
    return own


class Hostile:
    """An object that answers no question about itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


BAD: dict[str, Any] = {
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "2^63": 2**63,
    "2^64": 2**64,
    "10^5000": 10**5000,
    "1.5": 1.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "empty text": "",
    "path": "../x",
    "dots": "..",
    "control": "a\0b\x1f",
    "surrogate": "a\ud800b",
    "a megabyte": "x" * 2**20,
    "key with control": "a:b\n:c",
    "run id": "run_" + "0" * 32,
    "bytes": b"\xff",
    "empty list": [],
    "list": [1, None, {}],
    "deep list": deep(10_000),
    "deep map": deep(10_000, dict),
    "cyclic": cyclic(),
    "empty map": {},
    "map": {"external_room_id": None, "x": 1},
    "int keys": {1: 2},
    "tuple keys": {(1, 2): 3},
    "object": object(),
    "objects in a map": {"external_room_id": object()},
    "set": {1, 2},
    "class": Exception,
    "hostile": Hostile(),
    "huge map": {"external_room_id": "1", "x": "y" * (17 * 2**20)},
    "huge number in a map": {"external_room_id": 10**5000},
    "cyclic map": {"external_room_id": "1", "c": cyclic()},
}

#: An argument that is right, by the name of its parameter; methods of runs and sessions differ in ``id``.
GOOD: dict[str, Any] = {
    "key": KEY,
    "route": {"external_room_id": "1"},
    "keys": [KEY],
    "ids": ["run_" + "f" * 32],
    "pairs": [(KEY, {"external_room_id": "1"})],
    "fallbacks": (),
    "key_or_session_id": KEY,
    "key_or_index": 0,
    "index": 99,
    "agent": "echo",
    "input": "hi",
    "text": "hi",
    "session_id": SESSION,
    "run_id": "run_" + "f" * 32,
    "error": "why",
    "queue": "follow_up",
    "handle": {"session_id": SESSION, "runner": 0, "pid": 1, "incarnation": 1},
    "folder": "relative",
    "seq": 1,
    "lines": ["{}"],
    "tool_call_id": "t1",
    "token": None,
}


def methods(client: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(name, bound method) of everything public."""
    for group in GROUPS:
        owner = getattr(client, group) if group else client
        for name, method in inspect.getmembers(owner, callable):
            if not name.startswith("_") and name not in SKIPPED:
                yield f"{group}.{name}".lstrip("."), method


def calls(client: Any) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """Each method with one of its arguments replaced by each value."""
    for name, method in methods(client):
        parameters = inspect.signature(method).parameters.values()
        positional = [p for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
        good = {**GOOD, "key": "ab" * 16} if name.startswith("sessions.") else GOOD
        base = {p.name: SESSION if p.name == "id" else good[p.name] for p in positional}
        limit_s = 0.1 if name.startswith(PATIENT) else LIMIT_S
        limit = {"timeout_s": limit_s} if "timeout_s" in inspect.signature(method).parameters else {}
        for parameter in parameters:
            for label, value in BAD.items():
                told = f"{name}({parameter.name}={label})"
                if parameter.kind == parameter.VAR_POSITIONAL:
                    yield told, method, (value,), limit
                else:
                    yield told, method, (), {**limit, **base, parameter.name: value}


#: These wait for what never comes, by design, when nothing is wrong with them.
PATIENT = ("sessions.stream", "listen", "runs.wait", "runs.execute", "run_once")


FOR_EVER = tuple(f"timeout_s={label})" for label in ("None", "infinity", "2^63", "2^64", "10^5000"))


def left_out(told: str) -> bool:
    """Whether the call is right after all: it restarts a process, closes the session to all others that are
    tried on it, or would wait for ever."""
    patient = told.startswith(PATIENT) and told.endswith(FOR_EVER)
    right = ("partitions.restart(index=0)", "restart_runner(index=0)", "sessions.set_token(token=run id)")
    return patient or told in right


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    """One node for the whole sweep."""
    with mesh.LocalNode(tmp_path_factory.mktemp("bad") / "data") as started:
        with started.client(timeout_s=20.0) as client:
            client.sessions.start("echo", id=SESSION)
        yield started


def nothing_strange(node: mesh.LocalNode, before: dict[str, Any]) -> None:
    """The node is as it was: same processes, sane names, no bug in any log."""
    with node.client(timeout_s=20.0) as client:
        assert {c["name"]: c["pid"] for c in client.status()["children"]} == before
        assert client.routes.get(KEY).route == {"external_room_id": "1"}
        for entry in client.routes.list(limit=1000):
            assert str(mesh.SessionKey.parse(entry.session_key)) == entry.session_key
        assert all(
            s.id == SESSION or s.id.startswith("ses_") or s.id in ("run_" + "0" * 32,)
            for s in client.sessions.list(limit=1000)
        )
        assert all(RUN_ID.match(run.id) for run in client.sessions.runs(SESSION))


def pids(node: mesh.LocalNode) -> dict[str, int]:
    """name -> pid of every child."""
    with node.client(timeout_s=20.0) as client:
        client.routes.set(KEY, {"external_room_id": "1"})
        return {child["name"]: child["pid"] for child in client.status()["children"]}


def test_blocking_client_raises_nothing_but_mesh_errors(node: mesh.LocalNode) -> None:
    """If any argument of any method of ``Client`` is nonsense, then it succeeds or raises a MeshError."""
    before, wrong, count = pids(node), [], 0
    with node.client(timeout_s=LIMIT_S) as client:
        for told, method, args, kwargs in calls(client):
            if left_out(told):
                continue
            count += 1
            try:
                made = method(*args, **kwargs)
                if inspect.isgenerator(made) or "stream" in told:
                    next(made, None)
                if hasattr(made, "close"):
                    made.close()
                if isinstance(made, mesh.Claim):
                    client.sessions.release(made.session_id, made.key)
            except mesh.MeshError:
                pass
            except BaseException as error:
                wrong.append(f"{told}: {type(error).__name__} {str(error)[:100]}")
        assert client.routes.get(KEY).route == {"external_room_id": "1"} or wrong
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)
    assert count > 3000
    nothing_strange(node, before)


def test_asyncio_client_raises_nothing_but_mesh_errors(node: mesh.LocalNode) -> None:
    """If any argument of a method of ``AsyncClient`` is nonsense, then it succeeds or raises a MeshError."""
    before, wrong = pids(node), []

    async def one(client: Any, told: str, method: Any, args: Any, kwargs: Any) -> None:
        try:
            made = method(*args, **kwargs)
            if inspect.isawaitable(made):
                made = await made
            if hasattr(made, "__anext__") and "stream" in told:
                await anext(made, None)
            closing = getattr(made, "aclose", None) or getattr(made, "close", None)
            if closing is not None:
                closed = closing()
                if inspect.isawaitable(closed):
                    await closed
            if isinstance(made, mesh.Claim):
                await client.sessions.release(made.session_id, made.key)
        except mesh.MeshError:
            pass
        except BaseException as error:
            wrong.append(f"{told}: {type(error).__name__} {str(error)[:100]}")

    async def sweep() -> None:
        async with node.async_client(timeout_s=LIMIT_S) as client:
            found = (call for call in calls(client) if not left_out(call[0]))
            while several := list(islice(found, AT_ONCE)):
                await asyncio.gather(*(one(client, *call) for call in several))

    asyncio.run(sweep())
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    nothing_strange(node, before)
