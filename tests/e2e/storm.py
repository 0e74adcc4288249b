"""The clients of a storm: each works by chance, by seed, and all keep one history of what they were told."""

from __future__ import annotations

import random
import re
from collections import Counter
from time import monotonic
from typing import Any

from storm_history import PASSING, ROUTE_ERRORS, History, Story

import mesh

ROOM = {"external_room_id": "x"}
LOBBY = {"external_room_id": "lobby"}
ROOMS, SHARED_ROOMS = 6, 3
#: Sessions of all clients. The first is listened to; in the second all of them get in each other's way.
SHARED = ("one", "two")
QUEUES = ("follow_up", "steering", "steering")
ON_BUSY = ("enqueue", "enqueue", "enqueue", "reject", "interrupt", "rollback")
#: agent -> a prompt and what comes of it
PROMPTS = {
    "counter": ("3", "0 1 2 "), "sleeper": ("0.3", "started done"), "safe": ("0.2", "safe"),
    "streamer": ("40", "".join(f"{n} " for n in range(40))), "plain": ("text", "TEXT"),
    "echo": ("word", "word"), "shell": ("echo a; sleep 0.3; echo b", "a\nb\n"),
}
#: The last words of each client, when the storm is over: nothing may be in their way.
LAST_S = 40.0
LAST_RUNS = 3


class Worker:
    """The choices of one client, the same for both kinds of client. Each method is a generator of calls."""

    def __init__(self, name: str, seed: str, history: History) -> None:
        self.name = name
        self.random = random.Random(f"{seed} {name}")
        self.history = history
        self.count = 0
        self.story: Story | None = None

    def step(self) -> Any:
        """A few operations that belong together."""
        chance = self.random.random()
        if chance < 0.4:
            yield from self.routes()
        elif chance < 0.5:
            yield from self.once()
        elif chance < 0.55:
            yield from self.everybodys()
        elif self.story is None:
            yield from self.begin()
        elif chance < 0.82:
            yield from self.run(self.story)
        elif chance < 0.94:
            yield from self.rest(self.story)
        else:
            yield from self.end(self.story)

    def last_words(self) -> Any:
        """What must work when the storm is over: routes at the first attempt. A runner that was frozen may
        yet be replaced for its silence; a run that began in it meanwhile says so, and is tried again."""
        key = f"t:{self.name}:last"
        answers = [
            (yield "routes.set", (key, {**ROOM, "n": "last"}), {"timeout_s": LAST_S}),
            (yield "routes.get", (key,), {"timeout_s": LAST_S}),
        ]
        for _ in range(LAST_RUNS):
            answer = yield from self.once(timeout_s=LAST_S)
            if getattr(answer, "code", None) not in ("outcome_unknown", "restart_exhausted"):
                break
        answers.append(answer)
        self.history.problems += [
            f"after the storm {self.name} got {answer.code}: {answer.message}"
            for answer in answers if isinstance(answer, mesh.MeshError)
        ]

    # --- routes ---

    def routes(self) -> Any:
        """Write one key or several, then read: own ones, and some that all write."""
        self.count += 1
        value = f"{self.name}-{self.count}"
        own = [f"t:{self.name}:room_{n}" for n in range(ROOMS)]
        shared = [f"t:all:room_{n}" for n in range(SHARED_ROOMS)]
        key = self.random.choice(own + shared)
        chance = self.random.random()
        if chance < 0.5:
            yield from self._set([key], value)
        elif chance < 0.7:
            yield from self._set([*own, self.random.choice(shared)], value)
        elif chance < 0.8:
            begin = monotonic()
            outcome = yield "routes.delete", (key,)
            self.history.wrote(key, begin, None, self.name, outcome)
        if self.random.random() < 0.3:
            yield from self._get_many(own + shared)
        else:
            yield from self._get(key)

    def _set(self, keys: list[str], value: str) -> Any:
        begin = monotonic()
        route = {**ROOM, "n": value}
        if len(keys) == 1:
            outcomes = [(yield "routes.set", (keys[0], route))]
        else:
            outcomes = yield "routes.set_many", ([(key, route) for key in keys],)
            if isinstance(outcomes, mesh.MeshError):
                outcomes = [outcomes] * len(keys)
        for key, outcome in zip(keys, outcomes, strict=True):
            self.history.wrote(key, begin, value, self.name, outcome)

    def _get(self, key: str) -> Any:
        begin = monotonic()
        if self.random.random() < 0.5:
            self.history.read(key, begin, (yield "routes.get", (key,)), "get")
        else:
            self.history.read(key, begin, (yield "routes.resolve", (key, [LOBBY])), "resolve")

    def _get_many(self, keys: list[str]) -> Any:
        begin = monotonic()
        found = yield "routes.get_many", (keys,)
        if isinstance(found, mesh.MeshError):
            return
        for key, one in zip(keys, found, strict=True):
            self.history.read(key, begin, one, "get_many")

    # --- sessions ---

    def begin(self) -> Any:
        """Another session, in one of three ways."""
        self.count += 1
        agent = self.random.choice(list(PROMPTS))
        story = self.history.story(f"{self.name}-{self.count}", agent)
        chance = self.random.random()
        if chance < 0.5:
            outcome = yield "sessions.start", (agent,), {"id": story.id}
            story.begun(outcome)
        elif chance < 0.7:
            story.begun((yield "sessions.start_or_get", (story.id, agent)))
            outcome = yield "sessions.start_or_get", (story.id, agent)
            story.begun(outcome)
        else:
            story.begun((yield "sessions.create", (agent,), {"id": story.id}), active=False)
            outcome = yield from self.verb(story, "activate")
        if not isinstance(outcome, mesh.MeshError):
            self.story = story

    def verb(self, story: Story, verb: str, *args: Any) -> Any:
        """One verb of a session."""
        outcome = yield f"sessions.{verb}", (story.id, *args)
        story.told(verb, outcome)
        if isinstance(outcome, mesh.MeshError) and outcome.code not in PASSING and story is self.story:
            self.story = None  # ended, or not in the state we think
        return outcome

    def rest(self, story: Story) -> Any:
        """Stop or pause it, look at it, and go on with it."""
        if self.random.random() < 0.2:
            self.history.looked(story, (yield "sessions.get", (story.id,)))
            return
        yield from self.verb(story, self.random.choice(("stop", "pause")))
        if self.random.random() < 0.3:
            self.history.looked(story, (yield "sessions.get", (story.id,)))
        yield from self.verb(story, "resume")

    def end(self, story: Story) -> Any:
        """Complete, cancel, fail or abort it."""
        verb = self.random.choice(("complete", "cancel", "fail", "abort"))
        yield from self.verb(story, verb, *(("tired",) if verb == "fail" else ()))
        if verb != "abort":
            self.story = None

    # --- runs ---

    def run(self, story: Story) -> Any:
        """A run, begun in one of three ways; then wait for it, cancel it, or go on."""
        text = PROMPTS[story.agent][0]
        how = self.random.choice(("sessions.prompt", "runs.submit", "runs.create"))
        outcome = yield how, (story.id, text)
        run_id = story.submitted(outcome)
        if run_id is None:
            if outcome.code not in PASSING | {"max_runs_exceeded"}:
                self.story = None
            return
        chance = self.random.random()
        if how == "runs.create":
            self.history.ended(story, run_id, (yield "runs.execute", (run_id,)))
        elif chance < 0.2:
            self.history.cancelled(run_id, (yield "runs.cancel", (run_id,)))
        elif chance < 0.6:
            self.history.ended(story, run_id, (yield "runs.wait", (run_id,)))

    def once(self, **options: Any) -> Any:
        """A run with a session of its own."""
        self.count += 1
        agent = self.random.choice(list(PROMPTS))
        story = self.history.story(f"{self.name}-once-{self.count}", agent)
        outcome = yield "run_once", (agent, PROMPTS[agent][0]), {"id": story.id, **options}
        self.history.ended_once(story, outcome)
        return outcome

    def everybodys(self) -> Any:
        """Prompt one of the sessions that all share, or bring the second one out of its step."""
        story = self.history.stories[self.random.choice(SHARED)]
        if story.id == SHARED[0] or self.random.random() < 0.5:
            ways: dict[str, str] = {}
            if story.id == SHARED[1]:
                ways = {"queue": self.random.choice(QUEUES), "on_busy": self.random.choice(ON_BUSY)}
            story.submitted((yield "sessions.prompt", (story.id, PROMPTS[story.agent][0]), ways))
        elif self.random.random() < 0.2:
            yield self.random.choice(("sessions.recall", "sessions.clear", "sessions.interrupt")), (story.id,)
        else:
            yield from self.verb(story, self.random.choice(("pause", "resume", "stop", "abort")))


def expected(method: str, code: str) -> bool:
    """Whether a caller may meet this error while processes die. Anything else is a bug."""
    return code in (ROUTE_ERRORS if method.startswith("routes.") else PASSING | SESSION_ERRORS)


SESSION_ERRORS = frozenset((
    "outcome_unknown", "restart_exhausted", "cancelled", "max_runs_exceeded", "queue_full", "session_busy",
    "invalid_transition", "session_paused",
    "session_closed", "session_not_active", "session_not_found", "not_found",
))


def summary(history: History) -> str:
    """What was done and what was met: one line of totals, then the counts."""
    kinds = Counter(re.sub(r"-\d+", "", strike) for strike in history.strikes)
    tables = {"calls": history.done, "errors": history.errors, "strikes": kinds}
    totals = ", ".join(f"{sum(counts.values())} {what}" for what, counts in tables.items())
    return "\n".join((f"storm: {totals}", *(
        f"{what}: " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
        for what, counts in tables.items()
    )))


__all__ = ["LAST_S", "PROMPTS", "SHARED", "Worker", "expected", "summary"]
