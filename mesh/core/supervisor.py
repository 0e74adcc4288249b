"""Decides what happens to the children of a node: OTP's ``one_for_one``, as data.

The shell tells what happened (a child was spawned, is ready, beat, died) and what time it is; each method
returns the actions that follow. Nothing here waits, forks or reads a clock.

Rules of this file:

1. A child is replaced only after its death is known: a frozen writer would still hold its database.
2. A child that is silent for ``hang_timeout_s`` is killed. While it starts or recovers, only progress
   counts, against ``start_timeout_s``. If our own tick came late, we were asleep, not they: all
   silence timers start anew.
3. A death before READY, or within ``settle_s`` of it, doubles the delay before the next start; a child
   that served longer starts again at once.
4. More than ``intensity`` deaths of one child within ``period_s`` and it is DOWN, until somebody
   restarts it by hand, which also forgets the old deaths. The others serve on. A child that says itself
   that another start cannot help is DOWN at its first death.
5. All start at once, the last stage first: it has the most to load. Stages stop one after the other, the last
   first: a stage is told to stop when the one above it is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mesh.core.mailbox import ChildState

#: How late our own tick may come before we distrust every silence timer.
LATE_S = 1.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child, as data. ``order`` is its stage: 0 stops last."""

    name: str
    kind: str
    index: int
    order: int
    agent: str | None = None  #: of a runner: whose alone it is


class RestartPolicy(NamedTuple):
    """The settings of ``[supervision]``, in seconds."""

    intensity: int = 15
    period_s: float = 60.0
    backoff_s: float = 0.010
    backoff_max_s: float = 1.0
    hang_timeout_s: float = 10.0
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 5.0
    agent_block_timeout_s: float = 60.0
    settle_s: float = 1.0
    tick_s: float = 0.25  #: how often the shell calls ``tick``

    def delay_s(self, early_deaths: int) -> float:
        """The wait before the next start, after so many early deaths in a row."""
        if early_deaths <= 0:
            return 0.0
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** min(early_deaths - 1, 30))


class Spawn(NamedTuple):
    """Start the child now, then report ``started``."""

    name: str


class Stop(NamedTuple):
    """Ask the child to drain and exit; ``again``: it is started again, the node goes on."""

    name: str
    again: bool = False


class Kill(NamedTuple):
    """SIGKILL the child and its group, and keep waiting for its death."""

    name: str
    reason: str


class Announce(NamedTuple):
    """The child's state changed: log it, and publish the roster."""

    name: str
    state: ChildState


Action = Spawn | Stop | Kill | Announce


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    state: ChildState = ChildState.STARTING
    pid: int | None = None
    incarnation: int = 0
    epoch: int | None = None
    restarts: int = 0
    cause: dict[str, Any] | None = None
    ready_s: float | None = None  #: since when it serves; None while it starts
    heard_s: float = 0.0  #: last sign of life that counts
    early_deaths: int = 0
    deaths_s: deque[float] = field(default_factory=deque)
    spawn_at_s: float | None = None
    stop_until_s: float | None = None
    kill_reason: str | None = None
    hopeless: str | None = None  #: why another start cannot help


class Supervision:
    """The state of all children. The shell performs the returned actions in their order."""

    def __init__(self, specs: Iterable[ChildSpec], policy: RestartPolicy) -> None:
        ordered = sorted(specs, key=lambda spec: spec.order)
        self._children = {spec.name: _Child(spec) for spec in ordered}
        assert len(self._children) == len(ordered), "two children of one name"
        self._policy = policy
        self._stopping = False
        self._ticked_s: float | None = None

    # --- what the shell tells ---

    def start(self, now_s: float) -> list[Action]:
        """Begin: all children, without waiting for one another."""
        self._ticked_s = now_s
        last = max((child.spec.order for child in self._children.values()), default=0)
        ordered = sorted(self._children.values(), key=lambda child: child.spec.order != last)
        return [Spawn(child.spec.name) for child in ordered]

    def started(self, name: str, pid: int, incarnation: int, now_s: float) -> list[Action]:
        """A spawned child has a pid now."""
        child = self._children[name]
        child.pid, child.incarnation, child.epoch = pid, incarnation, None
        child.ready_s, child.heard_s = None, now_s
        child.spawn_at_s = child.stop_until_s = child.kill_reason = None
        return self._enter(child, ChildState.STARTING)

    def ready(self, name: str, epoch: int | None, now_s: float) -> list[Action]:
        """A child serves. Repeated or late ones change nothing."""
        child = self._children[name]
        child.heard_s = now_s
        if child.pid is None or child.state is not ChildState.STARTING:
            return []
        child.ready_s, child.epoch = now_s, epoch
        return self._enter(child, ChildState.READY)

    def beat(self, name: str, now_s: float, lag_ms: float = 0.0) -> list[Action]:
        """A child's heartbeat. A runner whose loop an agent blocks beats on, and reports its lag."""
        child = self._children[name]
        if child.ready_s is not None:
            child.heard_s = now_s
        limit_s = self._policy.agent_block_timeout_s
        if child.spec.kind == "runner" and lag_ms > limit_s * 1000:
            return self._kill(child, f"its loop was blocked for more than {limit_s:g} s")
        return []

    def progress(self, name: str, now_s: float) -> None:
        """A child is still recovering, and gets on."""
        self._children[name].heard_s = now_s

    def give_up(self, name: str, why: str) -> None:
        """A child knows that it cannot start before somebody mends something: its next death is its last."""
        self._children[name].hopeless = why

    def exited(self, name: str, cause: dict[str, Any], now_s: float) -> list[Action]:
        """A child's death is known: decide whether and when it comes back."""
        child = self._children[name]
        served_s = None if child.ready_s is None else now_s - child.ready_s
        by_hand = child.stop_until_s is not None
        reason = child.kill_reason or child.hopeless or ("stopped by hand" if by_hand else None)
        hopeless = child.hopeless is not None
        child.cause = {**cause, "reason": reason}
        child.pid = child.epoch = child.ready_s = child.stop_until_s = None
        child.kill_reason = child.hopeless = None
        if self._stopping:
            return [*self._enter(child, ChildState.STOPPED, again=True), *self._stop_stage(now_s)]
        if not by_hand:
            early = served_s is None or served_s < self._policy.settle_s
            child.early_deaths = child.early_deaths + 1 if early else 0
            if self._charge(child, now_s) or hopeless:
                return self._enter(child, ChildState.DOWN)
        return self._respawn(child, self._policy.delay_s(child.early_deaths), now_s)

    def tick(self, now_s: float) -> list[Action]:
        """Time passed: start who is due, kill who is silent or will not stop."""
        late = self._ticked_s is not None and now_s - self._ticked_s > self._policy.tick_s + LATE_S
        self._ticked_s = now_s
        actions: list[Action] = []
        for child in self._children.values():
            if late:
                self._forgive(child, now_s)
            if child.spawn_at_s is not None and child.spawn_at_s <= now_s:
                child.spawn_at_s = None
                actions.append(Spawn(child.spec.name))
            elif child.pid is not None and child.kill_reason is None:
                actions += self._check(child, now_s)
        return actions

    def restart(self, name: str, now_s: float) -> list[Action]:
        """Somebody asked for a restart by hand: old deaths are forgotten, and DOWN ends.

        An unknown name, or a node that is stopping: nothing happens.
        """
        child = self._children.get(name)
        if child is None or self._stopping:
            return []
        child.deaths_s.clear()
        child.early_deaths = 0
        if child.spawn_at_s is not None:
            child.spawn_at_s = None
            return [Spawn(name)]
        if child.pid is None:
            return self._respawn(child, 0.0, now_s)
        if child.stop_until_s is not None:
            return []
        child.stop_until_s = now_s + self._policy.stop_timeout_s
        return [*self._enter(child, ChildState.RESTARTING), Stop(name, again=True)]

    def shutdown(self, now_s: float) -> list[Action]:
        """Stop everything, the last stage first. Repeating it changes nothing."""
        if self._stopping:
            return []
        self._stopping = True
        for child in self._children.values():
            child.spawn_at_s = None
        return self._stop_stage(now_s)

    # --- what the shell asks ---

    @property
    def finished(self) -> bool:
        """Whether a shutdown is complete."""
        return self._stopping and all(child.pid is None for child in self._children.values())

    @property
    def stopping(self) -> bool:
        """Whether a shutdown was begun."""
        return self._stopping

    def states(self) -> dict[str, ChildState]:
        """The state of each child, by name, in the order of their stages."""
        return {name: child.state for name, child in self._children.items()}

    def pids(self) -> dict[str, int]:
        """The children that have a process."""
        return {name: child.pid for name, child in self._children.items() if child.pid is not None}

    def wait_s(self, now_s: float) -> float:
        """How long the shell may sleep: until the next tick, or until a start is due."""
        due = [child.spawn_at_s - now_s for child in self._children.values() if child.spawn_at_s is not None]
        return max(0.0, min([self._policy.tick_s, *due]))

    def roster(self) -> list[dict[str, Any]]:
        """All children as the router and its clients see them (``core/mailbox.py``)."""
        return [
            {
                "name": child.spec.name, "kind": child.spec.kind, "index": child.spec.index,
                "agent": child.spec.agent,
                "state": str(child.state), "pid": child.pid, "incarnation": child.incarnation,
                "epoch": child.epoch, "restarts": child.restarts, "cause": child.cause,
            }
            for child in self._children.values()
        ]

    # --- decisions ---

    def _check(self, child: _Child, now_s: float) -> list[Action]:
        if child.stop_until_s is not None:
            over = now_s > child.stop_until_s
            return self._kill(child, f"did not stop within {self._policy.stop_timeout_s:g} s") if over else []
        silent_s = now_s - child.heard_s
        if child.ready_s is not None and silent_s > self._policy.hang_timeout_s:
            return self._kill(child, f"silent for more than {self._policy.hang_timeout_s:g} s")
        if child.ready_s is None and silent_s > self._policy.start_timeout_s:
            return self._kill(child, f"starting, and no progress for {self._policy.start_timeout_s:g} s")
        return []

    def _kill(self, child: _Child, reason: str) -> list[Action]:
        if child.pid is None or child.kill_reason is not None:
            return []
        child.kill_reason = reason
        return [Kill(child.spec.name, reason)]

    def _forgive(self, child: _Child, now_s: float) -> None:
        child.heard_s = now_s
        if child.stop_until_s is not None:
            child.stop_until_s = now_s + self._policy.stop_timeout_s

    def _charge(self, child: _Child, now_s: float) -> bool:
        """Count a death; True when there were too many."""
        child.deaths_s.append(now_s)
        while now_s - child.deaths_s[0] > self._policy.period_s:
            child.deaths_s.popleft()
        return len(child.deaths_s) > self._policy.intensity

    def _respawn(self, child: _Child, delay_s: float, now_s: float) -> list[Action]:
        child.restarts += 1
        child.spawn_at_s = now_s + delay_s if delay_s else None
        announced = self._enter(child, ChildState.RESTARTING, again=True)
        return announced if delay_s else [*announced, Spawn(child.spec.name)]

    def _stop_stage(self, now_s: float) -> list[Action]:
        """Tell the highest stage that still has processes to stop; the others wait for their turn."""
        living = [child for child in self._children.values() if child.pid is not None]
        stage = max((child.spec.order for child in living), default=0)
        actions: list[Action] = []
        for child in self._children.values():
            if child.pid is None and child.spec.order >= stage:
                actions += self._enter(child, ChildState.STOPPED)
            elif child.spec.order == stage and child.state is not ChildState.STOPPED:
                child.stop_until_s = now_s + self._policy.stop_timeout_s
                actions += [*self._enter(child, ChildState.STOPPED), Stop(child.spec.name)]
        return actions

    def _enter(self, child: _Child, state: ChildState, *, again: bool = False) -> list[Action]:
        if child.state is state and not again and state is not ChildState.STARTING:
            return []
        child.state = state
        return [Announce(child.spec.name, state)]


__all__ = [
    "LATE_S", "Action", "Announce", "ChildSpec", "Kill", "RestartPolicy", "Spawn", "Stop", "Supervision",
]
