"""Programs that stand in for those that need an account: they replay what the real ones said, and note what
they were told. Shell scripts, so that a hundred of them start in a second."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> list[dict[str, Any]]:
    """The objects of a recorded stdout."""
    return [json.loads(line) for line in (DATA / name).read_text().splitlines() if line]


class StandIn:
    """One program of a test, in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.path = folder / name

    def plays(self, objects: Iterable[Any] = (), *, before: str = "", after: str = "") -> StandIn:
        """Make it note its arguments and its stdin, then say these objects; the rest is shell."""
        said = self.folder / f"{self.path.name}.said"
        said.write_text("".join(
            (item if isinstance(item, str) else json.dumps(item)) + "\n" for item in objects
        ))
        here = shlex.quote(str(self.folder))
        self.path.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> {here}/args\npwd > {here}/cwd\ncat >> {here}/stdin\n"
            f"{before}\ncat {shlex.quote(str(said))}\n{after}\n"
        )
        self.path.chmod(0o755)
        return self

    def _noted(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    @property
    def args(self) -> list[str]:
        """All arguments of all its runs."""
        return self._noted("args").splitlines()

    @property
    def stdin(self) -> str:
        """All that its runs were told."""
        return self._noted("stdin")


TALKING = '''#!{python} -IS
import json, os, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
def note(name, text):
    with open(os.path.join(folder, name), "a") as file:
        file.write(text)
def say(item):
    sys.stdout.write(json.dumps(item) + "\\n")
    sys.stdout.flush()
def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    note("stdin", line)
    return json.loads(line)
def asked(request):
    say({{"type": "control_request", "request_id": "x", "request": request}})
    return hear()["response"]["response"]
note("args", "\\n".join(sys.argv[1:]) + "\\n")
script = json.load(open(__file__ + ".said"))
hooks = None
while True:
    heard = hear()
    if heard["type"] == "user":
        break
    hooks = heard["request"].get("hooks")
    answer = {{"subtype": "success", "request_id": heard["request_id"], "response": {{"commands": []}}}}
    say({{"type": "control_response", "response": answer}})
for item in script:
    if "tool" in item:
        may = True
        if hooks:
            [matcher] = hooks["PreToolUse"]
            [callback] = matcher["hookCallbackIds"]
            call = {{"tool_use_id": item["id"], "tool_name": item["tool"], "input": item["input"]}}
            given = asked({{"subtype": "hook_callback", "callback_id": callback, "input": {{}}, **call}})
            assert given["hookSpecificOutput"]["permissionDecision"] == "ask"
            may = asked({{"subtype": "can_use_tool", **call}})["behavior"] == "allow"
        if may:
            note("ran", "x")
        result = {{"type": "tool_result", "tool_use_id": item["id"], "is_error": not may}}
        result["content"] = item["output"] if may else "denied"
        say({{"type": "user", "message": {{"role": "user", "content": [result]}}}})
    elif "exit" in item:
        sys.exit(item["exit"])
    elif "sleep" in item:
        time.sleep(item["sleep"])
    else:
        say(item)
'''


class TalkingStandIn(StandIn):
    """One that speaks the control protocol of the claude-agent-sdk: it is told hooks, and asks before tools.

    An item ``{"tool", "id", "input", "output"}`` asks for that call and does it; ``{"sleep"}``, ``{"exit"}``.
    """

    def plays(self, objects: Iterable[Any] = (), **_: Any) -> TalkingStandIn:
        """Make it say these objects when it was told the prompt."""
        self.path.with_name(f"{self.path.name}.said").write_text(json.dumps(list(objects)))
        self.path.write_text(TALKING.format(python=sys.executable))
        self.path.chmod(0o755)
        return self

    @property
    def ran(self) -> int:
        """How many tools it ran."""
        return len(self._noted("ran"))
