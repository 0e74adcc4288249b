"""A stranger adds a limit to mesh: one row in one file, and all of it is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mesh

ROW = '    "max_turns": LimitKind("turns", event="turn_completed"),\n'
SCRIPT = '''
import json, sys
import mesh

AGENTS = """
async def turner(run):
    for _ in range(3):
        yield {"type": "turn_completed", "data": {}}
"""
folder = sys.argv[1]
open(f"{folder}/agents.py", "w").write(AGENTS)
table = {"provider": "python", "target": f"{folder}/agents.py:turner"}
found = {"file": mesh.__file__}
with mesh.LocalNode(config={"agents": {"turner": table}}) as node, node.client(timeout_s=20) as client:
    session = client.sessions.start("turner", tags=["t"]).id
    client.runs.wait(client.runs.submit(session, "x").id)
    for scope, most in (("run", 2), ("session", 8), ("tag:t", 12)):
        policy = {"limits": [{"kind": "max_turns", "most": most, "scope": scope}]}
        try:
            client.runs.wait(client.runs.submit(session, "x", policy=policy).id)
        except mesh.RunError as error:
            found[scope] = [v["details"]["actual"] for v in error.details["violations"]]
    found["spent"] = client.usage.spent(tag="t")["turns"]
    try:
        client.runs.submit(session, "x", policy={"limits": {"max_turns": -1}})
    except mesh.InvalidArgument as error:
        found["refused"] = error.message
print(json.dumps(found))
'''


def test_a_new_limit_is_one_row(tmp_path: Path) -> None:
    """If a row is added to LIMITS, then it is checked, counted, enforced and summed like the others."""
    source = Path(mesh.__file__).parent
    copy = tmp_path / "mesh"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    policy = copy / "core" / "policy.py"
    text = policy.read_text()
    mark = '    "max_cost_usd"'
    assert text.count(mark) == 1
    policy.write_text(text.replace(mark, ROW + mark))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).parent == copy
    assert (found["run"], found["session"], found["spent"]) == ([3], [9], 12) and "tag:t" not in found
    assert "max_turns" in found["refused"]
