"""A stranger adds an event type: one row in one file, and the whole mesh knows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mesh

ROW = '    EventType("coffee_brewed", "message", "agent", True, {"cups": int}),\n'
AGENT = """
async def barista(run):
    yield {"type": "coffee_brewed", "data": {"cups": 2}}
    yield {"type": "coffee_brewed", "data": {"cups": "many"}}
"""
PLAY = """
import io, json, sys
import mesh
from mesh.rendering import JsonLinesSink, TerminalSink, render, renderer

agents = {"barista": {"provider": "python", "target": sys.argv[1] + ":barista"}}
with mesh.LocalNode(config={"agents": agents}) as node, node.client(timeout_s=20.0) as client:
    with client.listen("session.bar.coffee_brewed") as listener:
        result = client.run_once("barista", "go", id="bar")
        heard = [next(listener).data["data"]["cups"] for _ in range(2)]
    found = client.sessions.events("bar", type="coffee_brewed")
    shown = {}
    for name in ("compact", "studio", "verbose"):
        told, lines = io.StringIO(), io.StringIO()
        assert not render(result.events, renderer(name), [TerminalSink(told), JsonLinesSink(lines)]).broken
        shown[name] = told.getvalue()
    client.sessions.import_(list(client.sessions.export("bar")), new_id="copy")
    print(json.dumps({
        "status": client.runs.get(result.run_id).status,
        "heard": heard,
        "found": [event.data for event in found],
        "warnings": [event.metadata.get("_validation_warnings") for event in found],
        "read": mesh.Event.from_map(found[0].to_map()) == found[0],
        "count": client.events.count(types="coffee_brewed"),
        "copied": [event.data for event in client.sessions.events("copy", type="coffee_brewed")],
        "shown": [name for name, text in shown.items() if "coffee_brewed" in text],
        "lines": lines.getvalue().count("coffee_brewed"),
    }))
"""


def test_one_more_row_is_a_new_event_type(tmp_path: Path) -> None:
    """If a row is added to the table, then agents write the type, its shape is checked, logs keep it, filters
    and feed know it, renderers show it by its name, exports and imports carry it."""
    package = Path(mesh.__file__).parent
    copy = shutil.copytree(package, tmp_path / "mesh", ignore=shutil.ignore_patterns("__pycache__"))
    table = copy / "core" / "events.py"
    source = table.read_text()
    last = '    EventType("tool_approval_denied", "approval", "human", True, _TOOL),\n'
    assert source.count(last) == 1
    table.write_text(source.replace(last, last + ROW))
    (tmp_path / "agents.py").write_text(AGENT)
    (tmp_path / "play.py").write_text(PLAY)
    said = subprocess.run(
        [sys.executable, str(tmp_path / "play.py"), str(tmp_path / "agents.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == {
        "status": "completed",
        "heard": [2, "many"],
        "found": [{"cups": 2}, {"cups": "many"}],
        "warnings": [None, ["cups must be int, not str"]],
        "read": True,
        "count": 4,  # of the session and of its imported copy
        "copied": [{"cups": 2}, {"cups": "many"}],
        "shown": ["compact", "studio", "verbose"],
        "lines": 2,
    }
