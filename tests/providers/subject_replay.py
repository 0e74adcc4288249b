"""``replay``, on recordings written for each scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract import SECRET, Agent, Subject, add

NEVER_S = 100_000.0


class Replay(Subject):
    name = "replay"
    scenes = frozenset(("good", "bad", "slow", "silent", "usage", "secret"))
    code = "provider_rate_limited"

    def agent(self, scene: str, folder: Path) -> Agent:
        file = folder / f"{scene}.jsonl"
        error = {"code": self.code, "message": "too many", "details": {}} if scene == "bad" else None
        run = {"id": "a", "input": "hello", "error": error, "status": "failed" if error else "completed"}
        texts = (SECRET[:7], SECRET[7:]) if scene == "secret" else ("hel", "lo")
        said = [_event("message_streamed", content=text) for text in texts]
        if scene == "usage":
            said.append(_event("token_usage_updated", **self.used))
        if scene in ("slow", "silent"):
            said = [_event("message_streamed", content="a")][scene == "silent":]
            said.append(_event("message_streamed", NEVER_S, content="b"))
        end_s = NEVER_S if scene in ("slow", "silent") else 0.0
        last = _event("run_failed" if error else "run_completed", end_s)
        lines = [{"mesh_recording": 1}, {"run": run}, _event("run_started"), *said, last]
        file.write_text("\n".join(json.dumps(line) for line in lines))
        return Agent({"provider": "replay", "file": str(file)})


def _event(kind: str, at_s: float = 0.0, **data: Any) -> dict[str, Any]:
    return {"event": {"run_id": "a", "type": kind, "ts": 1000.0 + at_s, "data": data}}


add(Replay())
