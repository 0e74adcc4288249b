"""What must be true after a storm. Each function returns what it found wrong, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from storm_ears import CLOSING, Ear
from storm_history import History, Story, status_problems
from storm_service import AGENTS

import mesh

#: What a process writes only when something in it went wrong.
BUGS = ("Traceback", "could not be", "makes no sense", "refused", "a call failed", "Error")
TERMINAL = {"run_completed": "completed", "run_failed": "failed", "run_cancelled": "cancelled",
            "run_timeout": "timeout"}
#: status -> {event: the next status}
STEPS = {
    "": {"session_created": "pending"},
    "pending": {"session_started": "active", "session_cancelled": "cancelled", "session_failed": "failed"},
    "active": {"session_paused": "paused", "session_completed": "completed",
               "session_cancelled": "cancelled", "session_failed": "failed"},
    "paused": {"session_resumed": "active", "session_completed": "completed",
               "session_cancelled": "cancelled", "session_failed": "failed"},
}
#: event -> verbs that leave it, the first of them always
LEAVES = {"session_paused": ("pause", "stop"), "session_resumed": ("resume",)}
RUN_ERRORS = frozenset(("outcome_unknown", "restart_exhausted", "cancelled"))


@dataclass
class Stored:
    """What the node has when everything is quiet."""

    sessions: dict[str, mesh.Session]
    runs: dict[str, dict[str, mesh.Run]]
    events: dict[str, list[mesh.Event]]

    @classmethod
    def read(cls, client: mesh.Client) -> Stored:
        """Ask for everything."""
        sessions = all_sessions(client)
        return cls(
            sessions,
            {sid: {run.id: run for run in client.sessions.runs(sid)} for sid in sessions},
            {sid: list(client.sessions.events(sid)) for sid in sessions},
        )


def all_sessions(client: mesh.Client) -> dict[str, mesh.Session]:
    """Every stored session by its id."""
    found: dict[str, mesh.Session] = {}
    cursor = None
    while True:
        page = client.sessions.list(limit=500, cursor=cursor)
        assert not page.missing
        found.update((session.id, session) for session in page)
        cursor = page.cursor
        if cursor is None:
            return found


def unfinished(client: mesh.Client, sids: Iterable[str]) -> dict[str, list[str]]:
    """Sessions with runs that are not over, and the logs that these have so far. In a paused session what is
    queued waits for its resume."""
    left: dict[str, list[str]] = {}
    for sid in sids:
        waits = ("pending", "queued") if client.sessions.get(sid).status == "paused" else ("pending",)
        for run in client.sessions.runs(sid):
            if not run.terminal and run.status not in waits:
                log = [event.type for event in client.sessions.events(sid, run_id=run.id)]
                told = f"run {run.id} of {sid} is {run.status}, attempt {run.attempt}: {log}"
                left.setdefault(sid, []).append(told)
    return left


def routes(history: History) -> list[str]:
    """Every read is explained by an order of the writes in which no acknowledged one is lost."""
    return [text for key, register in history.registers.items() for text in register.problems(key)]


def sessions(stored: Stored, history: History) -> list[str]:
    """No acknowledged session, verb or run is lost or doubled; each log is contiguous and makes sense."""
    told = {sid for sid, story in history.stories.items() if story.created}
    problems = [f"session {sid} was acknowledged and is lost" for sid in told - stored.sessions.keys()]
    strange = stored.sessions.keys() - history.stories.keys()
    problems += [f"session {sid} was never asked for" for sid in strange]
    for sid in stored.sessions.keys() - strange:
        story, events = history.stories[sid], stored.events[sid]
        problems += status_problems(story, stored.sessions[sid])
        problems += _log(stored.sessions[sid], events)
        problems += _verbs(story, events)
        problems += _runs(story, history, stored.runs[sid], events)
    return problems


def _log(session: mesh.Session, events: Sequence[mesh.Event]) -> list[str]:
    """Seqs without holes; steps that the state machine allows; nothing behind the last."""
    problems = []
    if [event.seq for event in events] != list(range(1, session.seq + 1)):
        seqs = [event.seq for event in events]
        problems.append(f"the log of {session.id} ends at {session.seq} and has the seqs {seqs}")
    if len({event.id for event in events}) != len(events):
        problems.append(f"event ids of {session.id} repeat")
    status = ""
    for event in events:
        if event.type.startswith("session_"):
            following = STEPS.get(status, {}).get(event.type)
            if following is None:
                problems.append(f"{session.id} has {event.type} at {event.seq} while it was {status!r}")
            status = following or status
        elif status in ("", "completed", "cancelled", "failed"):
            problems.append(f"{session.id} has {event.type} at {event.seq} while it was {status!r}")
    if status != session.status:
        problems.append(f"{session.id} is {session.status}, and by its log {status}")
    return problems


def _verbs(story: Story, events: Sequence[mesh.Event]) -> list[str]:
    """Each acknowledged verb left its event once."""
    counts = Counter(event.type for event in events)
    problems = []
    for kind, verbs in LEAVES.items():
        least = story.done[verbs[0]]
        most = sum(story.done[verb] + story.maybe[verb] for verb in verbs)
        if not least <= counts[kind] <= most:
            problems.append(f"{story.id} has {counts[kind]} {kind}; asked for: {least} to {most}")
    return problems


def _runs(
    story: Story, history: History, runs: dict[str, mesh.Run], events: Sequence[mesh.Event]
) -> list[str]:
    """No run lost or doubled, one end each, and the end that somebody was told."""
    sid = story.id
    problems = [f"run {run_id} of {sid} was acknowledged and is lost" for run_id in story.runs - runs.keys()]
    if len(runs) > len(story.runs) + len(story.maybe_runs):
        problems.append(f"{sid} has {len(runs)} runs: {len(story.runs)} acknowledged and "
                        f"{len(story.maybe_runs)} unanswered ones were asked for")
    logs: dict[str | None, list[mesh.Event]] = {run_id: [] for run_id in runs}
    for event in events:
        logs.setdefault(event.run_id, []).append(event)
    strange = logs.keys() - runs.keys() - {None}
    problems += [f"the log of {sid} has events of a run {run_id}" for run_id in strange]
    for run_id, run in runs.items():
        log = [event.type for event in logs[run_id]]
        log = log[log[:1] == ["prompt_queued"]:]  # one that had to wait says so first
        steered = steered_into(run)
        if steered is not None:
            whole = log == ["run_completed"] and steered in runs
            found = [] if whole else [f"it was steered into {steered}"]
        else:
            inside = sum(1 for other in runs.values() if steered_into(other) == run_id)
            found = _run(run, log, inside) + _pieces(run, logs[run_id])
        who = f"run {run_id} of {sid} ({story.agent}, {run.status}, attempt {run.attempt})"
        problems += [f"{who}: {text}: {log}" for text in found]
        fate = history.fates.get(run_id, run.status)
        if fate != run.status or (run_id in history.over and not run.terminal):
            problems.append(f"run {run_id} of {sid} was said to be {fate} or over, and is {run.status}")
        own = run.status == "completed" and steered is None
        if own and run.output["content"] != history.outputs[story.agent]:
            problems.append(f"run {run_id} of {sid} ({story.agent}) gave {run.output}")
    return problems


def steered_into(run: mesh.Run) -> str | None:
    """The run that a steering prompt went into."""
    into = (run.output or {}).get("steered_into")
    return None if into is None else str(into)


def _run(run: mesh.Run, log: list[str], inside: int = 0) -> list[str]:
    """``inside``: how many prompts steered it; each is a message of its own, or a part of its first one."""
    problems = []
    ends = [kind for kind in log if kind in TERMINAL]
    if len(ends) != int(run.terminal) or (ends and TERMINAL[ends[0]] != run.status):
        problems.append(f"its terminal events are {ends}")
    if ends and log[-1] != ends[0]:
        problems.append("something follows its end")
    if "prompt_queued" in log:
        problems.append("it was queued twice, or behind its beginning")
    never = run.status == "pending" or log == ["run_cancelled"]
    least = 0 if never or run.status == "queued" else 1
    if not least <= log.count("message_sent") <= (0 if never else 1 + inside):
        problems.append(f"{log.count('message_sent')} messages were sent")
    if log.count("run_started") > max(run.attempt, 1):
        problems.append("it was started more often than attempted")
    if run.status == "completed" and "run_started" not in log:
        problems.append("it was never started")
    if run.error and run.error["code"] not in RUN_ERRORS:
        problems.append(f"it failed: {run.error}")
    return problems


def _pieces(run: mesh.Run, log: list[mesh.Event]) -> list[str]:
    """What was streamed since the last start is the output, or nothing was."""
    pieces = ""
    for event in log:
        if event.type == "run_started":
            pieces = ""
        elif event.type == "message_streamed":
            pieces += event.data["content"]
    fine = run.status != "completed" or pieces in ("", run.output["content"])
    return [] if fine else [f"{pieces!r} was streamed, and {run.output} given"]


def executions(witness: Path, stored: Stored) -> list[str]:
    """Each attempt was executed at most once, a completed one exactly once, and only a safe agent's again."""
    counts = Counter(tuple(line.split()) for line in witness.read_text().splitlines())
    problems = [f"attempt {attempt} of run {run_id} was executed {count} times"
                for (run_id, attempt), count in counts.items() if count > 1]
    attempts = Counter(run_id for run_id, _ in counts)
    agents = {run_id: (stored.sessions[sid].agent, run)
              for sid, runs in stored.runs.items() for run_id, run in runs.items()}
    problems += [f"run {run_id} was executed and is not stored" for run_id in attempts.keys() - agents.keys()]
    for run_id, (agent, run) in agents.items():
        if attempts[run_id] > 1 and not AGENTS.get(agent):
            problems.append(f"run {run_id} of {agent} was executed in {attempts[run_id]} attempts")
        own = run.status == "completed" and steered_into(run) is None
        if own and agent in AGENTS and not counts[run_id, str(run.attempt)]:
            problems.append(f"run {run_id} of {agent} is completed and was not executed: {counts}")
    return problems


def missed_by(stored: Stored, ear: Ear, sids: Iterable[str], former: Mapping[str, int]) -> list[str]:
    """Sessions of which the listener has not heard the last event yet; ``former``: their ends before that."""
    last = dict(former)
    for notification in list(ear.seen):
        last[notification.data["session_id"]] = notification.data["seq"]
    return [sid for sid in sids if last.get(sid, 0) < stored.sessions[sid].seq]


def session_feed(stored: Stored, ear: Ear, former: Iterable[str]) -> list[str]:
    """The listener heard each event of each session once and in order (of a former one: since it listens)."""
    heard: dict[str, list[tuple[int, str, str]]] = {}
    for notification in ear.seen:
        event = notification.data
        heard.setdefault(event["session_id"], []).append((event["seq"], event["type"], event["id"]))
    problems = []
    for sid, seen in heard.items():
        log = [(event.seq, event.type, event.id) for event in stored.events.get(sid, ())]
        if seen != log[seen[0][0] - 1:] or (sid not in former and seen[0][0] != 1):
            problems.append(f"{ear.name} heard of {sid}: {[row[:2] for row in seen]}, but the log is "
                            f"{[row[:2] for row in log]}")
    return problems


def unfinished_lifecycle(stored: Stored, ear: Ear) -> list[str]:
    """Sessions whose last word on the lifecycle feed is not what they are."""
    live: dict[str, bool] = {}
    for topic, data, _ in list(ear.seen):
        what = topic.split(".")[1]
        if what in ("started", "stopped"):
            live[data["session_id"]] = what == "started"
    lives = {sid: session.handle is not None for sid, session in stored.sessions.items()}
    return [sid for sid, is_live in lives.items() if live.get(sid, False) != is_live]


def lifecycle_feed(stored: Stored, ear: Ear, former: Iterable[str]) -> list[str]:
    """lseq is contiguous per partition; started and stopped of a session alternate, to its present state."""
    problems = []
    lseqs: dict[int, list[int]] = {}
    live = dict.fromkeys(former, True)
    incarnations: dict[str, int] = {}
    for topic, data, _ in ear.seen:
        lseqs.setdefault(data["partition"], []).append(data["lseq"])
        what, sid = topic.split(".")[1], data["session_id"]
        if what in ("started", "stopped"):
            if live.get(sid, False) == (what == "started"):
                problems.append(f"{ear.name}: {sid}: {what} twice in a row")
            live[sid] = what == "started"
        elif what == "restarted" and not live.get(sid, False):
            problems.append(f"{ear.name}: {sid}: restarted while it was not live")
        if what in ("started", "restarted"):
            now = data["handle"]["incarnation"]
            if now != incarnations.get(sid, now - 1) + 1:
                problems.append(f"{ear.name}: {sid}: incarnation {now} follows {incarnations[sid]}")
            incarnations[sid] = now
    for partition, numbers in lseqs.items():
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            problems.append(f"{ear.name}: the lseqs of partition {partition} are {numbers}")
    problems += [f"{ear.name}: {sid} is live, or not, and the feed says otherwise"
                 for sid in unfinished_lifecycle(stored, ear)]
    return problems


def logs(folder: Path, *more: Path) -> list[str]:
    """No process wrote of a bug of its own."""
    return [
        f"{path.name}: {line}"
        for path in (*folder.glob("*.log*"), *more)
        for line in path.read_text(errors="replace").splitlines()
        if any(word in line for word in BUGS)
    ]


def settled(client: mesh.Client) -> dict[str, object] | None:
    """The node's status when every child is ready, else None."""
    try:
        status = client.status(timeout_s=1.0)
    except mesh.MeshError:
        return None
    return status if all(child["state"] == "ready" for child in status["children"]) else None


__all__ = [
    "CLOSING", "Stored", "all_sessions", "executions", "lifecycle_feed", "logs", "missed_by", "routes",
    "session_feed", "sessions", "settled", "unfinished", "unfinished_lifecycle",
]
