"""A small MCP server on stdin and stdout, without a library: quick to start, and bad when asked to be.

Arguments: ``slow`` never answers the handshake, ``silent`` dies at once with a word on stderr, ``noisy``
prints what is no JSON first; ``child`` starts a grandchild in a session of its own and names it; ``log=FILE``
writes its pid there; ``stubborn`` ends neither at the end of its stdin nor at SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOOLS = [
    {"name": "add", "description": "Add two numbers.", "inputSchema": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}},
    {"name": "die", "inputSchema": {"type": "object"}},
    {"name": "wait", "inputSchema": {"type": "object"}},
    {"name": "fail", "inputSchema": {"type": "object"}},
    {"name": "pids", "inputSchema": {"type": "object"}},
    {"name": "env", "inputSchema": {"type": "object"}},
    {"name": "strange/name with spaces and more than sixty-four characters in it",
     "inputSchema": {"type": "object"}},
]


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(content: Any, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": str(content)}], **more}


def call(name: str, given: dict[str, Any], child: int) -> dict[str, Any]:
    if name == "add":
        return text(given["a"] + given["b"])
    if name == "die":
        sys.stderr.write("I was told to die\n")
        sys.stderr.flush()
        os._exit(3)
    if name == "wait":
        time.sleep(1000)
    if name == "fail":
        return text("it went wrong", isError=True)
    if name == "env":
        return text(json.dumps(dict(os.environ)))
    if name == "pids":
        return text(f"{os.getpid()} {child}")
    return text(name)


def main() -> None:
    words = sys.argv[1:]
    child = 0
    if "silent" in words:
        sys.exit("no such database")
    if "stubborn" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "noisy" in words:
        sys.stdout.write("starting up ...\n")
    if "child" in words:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
    for word in words:
        if word.startswith("log="):
            with Path(word[4:]).open("a") as log:
                log.write(f"{os.getpid()}\n")
    for line in sys.stdin:
        asked = json.loads(line)
        method, number = asked["method"], asked.get("id")
        if number is None or "slow" in words:
            continue
        if method == "initialize":
            say({"id": number, "result": {
                "protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "small", "version": "1"}}})
        elif method == "tools/list":
            half = int((asked.get("params") or {}).get("cursor") or 0)
            more = {} if half else {"nextCursor": "3"}
            say({"id": number, "result": {"tools": TOOLS[half:half + 3] if not half else TOOLS[3:], **more}})
        elif method == "tools/call":
            params = asked["params"]
            say({"id": number, "result": call(params["name"], params.get("arguments") or {}, child)})
        else:
            say({"id": number, "error": {"code": -32601, "message": f"no method {method}"}})
    if "stubborn" in words:
        time.sleep(1000)


if __name__ == "__main__":
    main()
