"""The measurements of guards for ``mesh bench``: a policy for each event of its run, and the state of a large
folder before and after a run. CPU time, so that a busy machine does not decide."""

from __future__ import annotations

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
CHANGES, ROUNDS = 10, 5


def policy(count: int) -> Figure:
    """What a policy adds to an event that its agent writes; a text that it yields is none of its business.

    The best of some rounds: what else the machine does only adds to CPU time.
    """
    spent_us = min(_policy(count // ROUNDS) for _ in range(ROUNDS))
    details = {"events": count, "limits": len(POLICY["limits"]), "rules": len(POLICY["tool_rules"])}
    return Figure("a policy, for each event of its run", spent_us, "us", details)


def _policy(count: int) -> float:
    from mesh.core.policy import Policy
    from mesh.core.policy_monitor import Monitor
    from mesh.core.prices import Prices

    watch, prices = Monitor(Policy.from_map(POLICY)), Prices()
    calls = [{"tool_call_id": str(n), "tool_name": "bash", "tool_input": {"command": "git status"}}
             for n in range(count // 4)]
    used: dict[str, int | float]
    broken = []
    began_s = time.process_time()
    for number, call in enumerate(calls, 1):
        used = {"input_tokens": 9 * number, "output_tokens": number, "total_tokens": 10 * number}
        broken += watch.on_event("tool_call_started", call)
        broken += watch.on_event("tool_call_completed", call)
        broken += watch.on_event("token_usage_updated", used)
        broken += watch.on_usage(10 * number, prices.cost("anthropic", "claude-sonnet-4-5", used).usd)
        broken += watch.on_event("turn_completed", used)
    spent_us = (time.process_time() - began_s) * 1e6 / (4 * len(calls))
    assert not broken, "the policy was kept"
    return spent_us


def workspace(files: int, rounds: int = ROUNDS) -> Figure:
    """Snapshot and diff of a folder with some changes, against git's own two commands on it, in turns."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "repo").resolve()
        _make(folder, files)
        found = [_round(folder, salt) for salt in range(rounds)]
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


def _round(folder: Path, salt: int) -> tuple[float, float, float]:
    """CPU seconds of snapshot and diff behind the changes, of the snapshot before, of git's commands."""
    from mesh.workspaces import open_workspace

    _git(folder, "checkout", "-q", "--", ".")
    _git(folder, "status", "--porcelain")
    with open_workspace(folder, strategy="git") as work:
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
        diff = work.diff(before, work.snapshot("after"))
        marks.append(_cpu_s())
    assert len(diff.changed_paths) == CHANGES
    return marks[4] - marks[3], marks[1] - marks[0], marks[3] - marks[2]


def _cpu_s() -> float:
    """What we and the commands that we waited for have computed."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


__all__ = ["CHANGES", "POLICY", "ROUNDS", "policy", "workspace"]
