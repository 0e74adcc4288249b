"""What must be true after a storm. Each function returns what it found wrong, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from storm import History
from storm_ears import Ear

import mesh

BUGS = ("Traceback", "could not be", "makes no sense", "refused", "a call failed", "Error")
TERMINAL = frozenset(("run_completed", "run_failed", "run_cancelled", "run_timeout"))


def routes(client: mesh.Client, history: History) -> list[str]:
    """No acknowledged write is lost, and no number is there that was not sent, or was given up."""
    before = len(history.problems)
    for key in history.acked:
        try:
            history.read_route(key, client.routes.get(key).route["n"], "the last get")
        except mesh.NotFound:
            history.problems.append(f"{key} was acknowledged and is lost")
    found, history.problems[before:] = history.problems[before:], []
    return found


def all_sessions(client: mesh.Client) -> dict[str, mesh.Session]:
    """Every stored session by its id."""
    found: dict[str, mesh.Session] = {}
    cursor = None
    while True:
        page = client.sessions.list(limit=500, cursor=cursor)
        found.update((session.id, session) for session in page)
        cursor = page.cursor
        if cursor is None:
            return found


def unfinished(client: mesh.Client) -> list[str]:
    """Runs that are not over, with the log that they have so far."""
    left = []
    for session in all_sessions(client).values():
        for run in client.sessions.runs(session.id):
            if not run.terminal and run.status != "pending":
                log = [event.type for event in client.sessions.events(session.id, run_id=run.id)]
                left.append(f"{run.id} of {session.id} ({session.status}, {session.handle}, agent "
                            f"{session.agent}) is {run.status}, attempt {run.attempt}: {log}")
    return left


def sessions(client: mesh.Client, history: History) -> list[str]:
    """No acknowledged session or run is lost or doubled; logs have no hole and one end per run."""
    problems = []
    stored = all_sessions(client)
    problems += [f"session {sid} was acknowledged and is lost" for sid in history.sessions - stored.keys()]
    strange = stored.keys() - history.sessions - history.maybe_sessions
    problems += [f"session {sid} was never asked for" for sid in strange]
    for sid in stored:
        problems += _session(client, history, sid)
    return problems


def _session(client: mesh.Client, history: History, sid: str) -> list[str]:
    problems = []
    runs = {run.id: run for run in client.sessions.runs(sid)}
    events = client.sessions.events(sid)
    acked = history.runs.get(sid, set())
    problems += [f"run {run_id} of {sid} was acknowledged and is lost" for run_id in acked - runs.keys()]
    if len(runs) > len(acked) + history.maybe_runs[sid]:
        open_ = history.maybe_runs[sid]
        problems.append(f"{sid} has {len(runs)} runs: {len(acked)} acknowledged, {open_} unanswered")
    seqs = [event.seq for event in events]
    if seqs != list(range(1, len(seqs) + 1)):
        problems.append(f"the log of {sid} has the seqs {seqs}")
    ends = Counter(event.run_id for event in events if event.type in TERMINAL)
    for run_id, run in runs.items():
        if run.terminal and ends[run_id] != 1:
            problems.append(f"run {run_id} of {sid} ({run.status}) has {ends[run_id]} terminal events")
        if run_id in history.completed and run.status != "completed":
            problems.append(f"run {run_id} of {sid} was said to be completed and is {run.status}")
        if run.error and run.error["code"] not in ("outcome_unknown", "restart_exhausted", "cancelled"):
            problems.append(f"run {run_id} of {sid} failed: {run.error}")
        started = sum(event.run_id == run_id and event.type == "run_started" for event in events)
        if started > max(run.attempt, 1):
            problems.append(f"run {run_id} of {sid} was started {started} times in {run.attempt} attempts")
    return problems


def missed_by(client: mesh.Client, ear: Ear, sids: Iterable[str]) -> list[str]:
    """Sessions of which the listener has not heard the last event yet."""
    last: dict[str, int] = {}
    for notification in list(ear.seen):
        last[notification.data["session_id"]] = notification.data["seq"]
    return [sid for sid in sids if last.get(sid, 0) < client.sessions.get(sid).seq]


def session_feed(client: mesh.Client, ear: Ear, former: Iterable[str]) -> list[str]:
    """The listener heard each event of each session once and in order (of a former one: since it listens)."""
    seen: dict[str, list[tuple[int, str]]] = {}
    for notification in ear.seen:
        event = notification.data
        seen.setdefault(event["session_id"], []).append((event["seq"], event["type"]))
    problems = []
    for sid, heard in seen.items():
        log = [(event.seq, event.type) for event in client.sessions.events(sid)]
        if heard != log[heard[0][0] - 1 :] or (sid not in former and heard[0][0] != 1):
            problems.append(f"{ear.topic} heard of {sid}: {heard}, but the log is {log}")
    return problems


def lifecycle_feed(ear: Ear, lives: dict[str, bool], former: Iterable[str]) -> list[str]:
    """lseq is contiguous per partition; started and stopped of each session alternate."""
    problems = []
    lseqs: dict[int, list[int]] = {}
    live = dict.fromkeys(former, True)
    for topic, data, _ in ear.seen:
        lseqs.setdefault(data["partition"], []).append(data["lseq"])
        what, sid = topic.split(".")[1], data["session_id"]
        if what in ("started", "stopped"):
            if live.get(sid, False) == (what == "started"):
                problems.append(f"{sid}: {what} twice in a row")
            live[sid] = what == "started"
        elif what == "restarted" and not live.get(sid, False):
            problems.append(f"{sid}: restarted while it was not live")
    for partition, numbers in lseqs.items():
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            problems.append(f"the lseqs of partition {partition} are {numbers}")
    problems += [
        f"{sid} is {'live' if is_live else 'not live'} and the feed says otherwise"
        for sid, is_live in lives.items() if live.get(sid, False) != is_live
    ]
    return problems


def logs(folder: Path) -> list[str]:
    """No process wrote of a bug of its own."""
    return [
        f"{path.name}: {line}"
        for path in folder.glob("*.log*")
        for line in path.read_text(errors="replace").splitlines()
        if any(word in line for word in BUGS)
    ]


def settled(client: mesh.Client) -> dict[str, Any] | None:
    """The node's status when every child is ready, else None."""
    try:
        status = client.status(timeout_s=1.0)
    except mesh.MeshError:
        return None
    return status if all(child["state"] == "ready" for child in status["children"]) else None
