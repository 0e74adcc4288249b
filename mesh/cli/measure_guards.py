"""The measurements of guards for ``mesh bench``: a policy for each event of its run, and the state of a large
folder before and after a run. CPU time, so that a busy machine does not decide."""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from mesh.cli.measure import Figure

#: As a careful user would write it: all limits, an allow list with arguments, denials, a question.
POLICY: dict[str, Any] = {
    "limits": {"max_total_tokens": 10**12, "max_cost_usd": 10**6, "max_tool_calls": 10**9,
               "max_duration_ms": 10**9},
    "tool_rules": [
        ["allow", ["read", "write", "mcp__*", {"tool": "bash", "args": {"command": ["git *", "ls*"]}}]],
        ["deny", ["delete", "mcp__mail__*"]], ["ask", [{"tool": "bash", "args": {"command": ["git push*"]}}]],
    ],
    "on_violation": "pause",
}
FILES, CHANGES, ROUNDS = 10_000, 10, 5


def policy(count: int) -> Figure:
    """What a policy adds to an event that its agent writes; a text that it yields is none of its business.

    The best of some rounds: what else the machine does only adds to CPU time.
    """
    spent_us = min(asyncio.run(_policy(count // ROUNDS)) for _ in range(ROUNDS))
    details = {"events": count, "limits": len(POLICY["limits"]), "rules": len(POLICY["tool_rules"])}
    return Figure("a policy, for each event of its run", spent_us, "us", details)


async def _policy(count: int) -> float:
    from mesh.core.policy import Policy
    from mesh.core.prices import Prices
    from mesh.node.by_hand import Questions
    from mesh.node.guard import Guard

    broken: list[Any] = []
    guard = Guard(Policy.from_map(POLICY), Prices(), Questions(lambda *_: None),
                  emit=lambda *said: broken.append(said), stop=broken.append)
    await guard.begin()
    used: dict[str, int | float]
    calls = [{"tool_call_id": str(n), "tool_name": "bash", "tool_input": {"command": "git status"}}
             for n in range(count // 4)]
    began_s = time.process_time()
    for number, call in enumerate(calls, 1):
        used = {"input_tokens": 9 * number, "output_tokens": number, "total_tokens": 10 * number}
        guard.on_event("tool_call_started", call)
        guard.on_event("tool_call_completed", call)
        guard.on_event("token_usage_updated", used)
        guard.on_usage(used, "anthropic", "claude-sonnet-4-5")
        guard.on_event("turn_completed", used)
    spent_us = (time.process_time() - began_s) * 1e6 / (4 * len(calls))
    guard.end()
    assert not broken, "the policy was kept"
    return spent_us


def workspace(rounds: int = ROUNDS, files: int = FILES) -> Figure:
    """Snapshot and diff of a folder with some changes, against git's own two commands on it, in turns."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "repo").resolve()
        _make(folder, files)
        found = [_round(Path(place), folder, salt) for salt in range(rounds)]
    ours, before, theirs = (statistics.median(part) for part in zip(*found, strict=True))
    details = {"files": files, "changes": CHANGES, "git_ms": round(theirs * 1000, 1),
               "snapshot_before_ms": round(before * 1000, 1), "rounds": rounds}
    name = "snapshot and diff of a workspace, CPU"
    return Figure(name, ours / theirs, "x git status + git diff", details)


def _git(folder: Path, *args: str) -> None:
    subprocess.run(["git", *args], cwd=folder, capture_output=True, check=True)


def _make(folder: Path, files: int) -> None:
    for n in range(files):
        path = folder / f"dir{n // 100:03}" / f"file{n:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {n}\n" * 40)
    _git(folder, "init", "-q")
    _git(folder, "add", "-A")
    _git(folder, "-c", "user.name=b", "-c", "user.email=b@b", "commit", "-q", "-m", "all")


def _round(base: Path, folder: Path, salt: int) -> tuple[float, float, float]:
    """CPU seconds of snapshot and diff behind the changes, of the snapshot before, of git's commands."""
    from mesh.workspaces.base import Base
    from mesh.workspaces.files import Stop

    _git(folder, "checkout", "-q", "--", ".")
    _git(folder, "status", "--porcelain")
    scratch = base / f"scratch{salt}"
    scratch.mkdir()
    work = Base(base, 10**6, 10**9).backend(str(folder), "git", scratch, Stop())
    marks = [_cpu_s()]
    before = work.snapshot("before")
    marks.append(_cpu_s())
    for n in range(CHANGES):
        path = folder / f"dir{n:03}" / f"file{n * 101:05}.txt"
        path.write_text(f"changed {salt} {n}\n" * 40)
    marks.append(_cpu_s())
    _git(folder, "--no-optional-locks", "status", "--porcelain")
    _git(folder, "--no-optional-locks", "diff")
    marks.append(_cpu_s())
    diff, _ = work.diff(before, work.snapshot("after"), patch_bytes=1 << 20)
    marks.append(_cpu_s())
    assert len(diff.changed_paths) == CHANGES
    return marks[4] - marks[3], marks[1] - marks[0], marks[3] - marks[2]


def _cpu_s() -> float:
    """What we and the commands that we waited for have computed."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


__all__ = ["CHANGES", "FILES", "POLICY", "ROUNDS", "policy", "workspace"]
