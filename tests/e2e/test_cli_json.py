"""Every command answers a program: with ``-o json`` its output is JSON, one document or one per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import mesh
from mesh.cli import app

pytestmark = pytest.mark.e2e
HERE = Path(__file__).parent
AGENTS = {
    name: {"provider": "python", "target": f"{HERE}/stream_agents.py:{name}"}
    for name in ("silent", "asking")
}
#: Not tried here: they start, stop or rewrite a node; their own tests read their JSON.
ELSEWHERE = {"up", "down", "repair", "bench", "doctor", "logs"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    """A node with agents that wait, and a folder."""
    folder = tmp_path_factory.mktemp("data")
    with mesh.LocalNode(folder / "node", partitions=1, config={"agents": AGENTS}) as started:
        yield started


@pytest.fixture
def facts(node: mesh.LocalNode, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the commands are about: sessions and runs in the states that they need."""
    (tmp_path / "backup").mkdir()
    with node.client() as client:
        made = {
            "done": client.run_once("echo", "hello").session_id,
            "open": client.sessions.start("echo").id,
            "new": client.sessions.create("echo").id,
            "busy": client.sessions.start("silent").id,
            "asks": client.sessions.start("asking").id,
            "tmp": str(tmp_path),
        }
        client.runs.wait(client.runs.submit(made["open"], "hello").id)
        made["run"] = client.runs.submit(made["busy"], "x").id
        client.sessions.prompt(made["busy"], "later")
        policy = {"tool_rules": [["ask", ["write"]]]}
        made["asked"] = client.runs.submit(made["asks"], "x", policy=policy).id
        for event in client.sessions.stream(made["asks"]):
            if event.type == "tool_approval_requested":
                break
        client.routes.set("a:b:c", {"external_room_id": "r"})
        yield made
        for name in ("busy", "asks"):
            client.sessions.abort(made[name])


#: command -> its arguments; {name} is a fact.
TRIED: dict[str, str] = {
    "agent list": "",
    "agent reload": "",
    "approval approve": "{asked} w1",
    "approval deny": "{asked} w1 no",
    "approval list": "",
    "audit": "--limit 5",
    "backup": "{tmp}/backup",
    "config check": "",
    "config show": "",
    "control cancel": "{run}",
    "control interrupt": "{run}",
    "control show": "{run}",
    "listen": "node. -n 1",
    "maintenance check": "",
    "maintenance run": "",
    "partition list": "",
    "partition of": "a:b:c",
    "partition restart": "0",
    "route delete": "a:b:c",
    "route get": "a:b:c",
    "route list": "",
    "route prune": "",
    "route resolve": "a:b:c",
    "route set": "a:b:d room",
    "run": "echo hello",
    "runner list": "",
    "runner restart": "0",
    "search events": "--limit 3",
    "search runs": "",
    "search sessions": "",
    "session abort": "{busy}",
    "session activate": "{new}",
    "session attach": "{done} --after 0",
    "session cancel": "{open}",
    "session claim": "{open}",
    "session clear": "{busy}",
    "session compact": "{open} --summary short",
    "session complete": "{open}",
    "session create": "echo",
    "session delete": "{done}",
    "session drain": "{open}",
    "session events": "{done} --since 2026-01-31T12:00 --until 9e9 --type run_started --type run_completed",
    "session export": "{done}",
    "session fail": "{open} why",
    "session fork": "{done}",
    "session import": "{tmp}/export --id new",
    "session interrupt": "{busy}",
    "session list": "",
    "session pause": "{open} --if-version 2",
    "session pin": "{open} 3",
    "session prompt": "{open} hello --wait",
    "session protect": "{open}",
    "session queued": "{busy}",
    "session recall": "{busy}",
    "session release": "{open} --key {key}",
    "session resume": "{paused}",
    "session run": "{open} hello --wait",
    "session show": "{done}",
    "session start": "echo",
    "session stats": "{done}",
    "session stop": "{open}",
    "session transcript": "{done}",
    "session undelete": "{hidden}",
    "session unprotect": "{open}",
    "status": "",
    "usage": "",
}
#: These refuse here, and say so in JSON on stderr.
REFUSED = {
    "control pause": "{run}",
    "control resume": "{run}",
    "workspace patch": "{run}",
    "workspace show": "{run}",
}


def leaves(command: click.Command = app.root, name: str = "") -> Iterator[str]:
    """The full name of every command that is no group."""
    if not isinstance(command, click.Group):
        yield name
        return
    ctx = click.Context(command)
    for sub in command.list_commands(ctx):
        found = command.get_command(ctx, sub)
        assert found is not None
        yield from leaves(found, f"{name} {sub}".strip())


def test_every_command_is_tried() -> None:
    """If a command is added, then it is tried here, or named with the reason why not."""
    assert set(leaves()) == {*TRIED, *REFUSED, *ELSEWHERE}


def _prepared(name: str, client: mesh.Client, facts: dict[str, str]) -> None:
    """What only one command needs."""
    if "{paused}" in TRIED[name]:
        client.sessions.stop(facts["open"])
        facts["paused"] = facts["open"]
    if "{hidden}" in TRIED[name]:
        client.sessions.delete(facts["done"])
        facts["hidden"] = facts["done"]
    if "{key}" in TRIED[name]:
        facts["key"] = client.sessions.claim(facts["open"]).key
    if name == "session import":
        Path(facts["tmp"], "export").write_text("\n".join(client.sessions.export(facts["done"])))


@pytest.mark.parametrize("name", sorted(TRIED))
def test_each_command_answers_in_json(name: str, node: mesh.LocalNode, facts: dict[str, str]) -> None:
    """If -o json is wanted, then what a command prints is JSON to the last line."""
    with node.client() as client:
        _prepared(name, client, facts)
    words = [*name.split(), *(word.format(**facts) for word in TRIED[name].split())]
    done = CliRunner().invoke(app.root, [*words, "-o", "json"], env={"MESH_ADDRESS": node.address})
    assert done.exit_code == 0, done.output
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert documents, "a program is told what was done"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_each_refusal_is_json_too(name: str, node: mesh.LocalNode, facts: dict[str, str]) -> None:
    """If a command is refused, then stderr has the error as JSON and stdout nothing."""
    words = [*name.split(), *(word.format(**facts) for word in REFUSED[name].split())]
    done = CliRunner().invoke(app.root, [*words, "-o", "json"], env={"MESH_ADDRESS": node.address})
    assert done.exit_code != 0 and done.stdout == "" and json.loads(done.stderr)["error"]["code"]


@pytest.mark.parametrize(("words", "code", "end"), [
    (("exit 3",), 1, "run_failed"), (("true",), 0, None),
    (("sleep 60", "--deadline", "0.2"), 5, "run_timeout"),
])
def test_a_run_is_json_lines_on_both_streams(
    words: tuple[str, ...], code: int, end: str | None, node: mesh.LocalNode, tmp_path: Path
) -> None:
    """If a run fails, then stdout has its events, the terminal one last, and stderr its error, once; each
    line of both is JSON, so a program may read them together, too."""
    given = ["run", "shell", *words, "--usage", "--record", str(tmp_path / "r.jsonl"), "-o", "json"]
    done = CliRunner().invoke(app.root, given, env={"MESH_ADDRESS": node.address})
    events = [json.loads(line) for line in done.stdout.splitlines()]
    beside = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.exit_code == code and events == sorted(events, key=lambda event: event["seq"])
    assert events[-1]["type"] == (end or "run_completed")
    assert {event["run_id"] for event in events} == {events[0]["run_id"]}
    kinds = [next(iter(line)) for line in beside]
    assert kinds == [*(["error"] if end else []), "token_usage", "recorded"]
