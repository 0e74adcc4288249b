"""The supervisor's decisions, with the clock as an argument."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.core.mailbox import ChildState
from mesh.core.supervisor import Announce, ChildSpec, Kill, RestartPolicy, Spawn, Stop, Supervision

POLICY = RestartPolicy()
KILLED: dict[str, Any] = {"exit_status": None, "signal": "SIGKILL", "stderr": "", "at": 0.0}
SPECS = [
    ChildSpec("runner-0", "runner", 0, 2),
    ChildSpec("router", "router", 0, 0),
    ChildSpec("partition-0", "partition", 0, 1),
    ChildSpec("partition-1", "partition", 1, 1),
]


def supervision(**policy: Any) -> Supervision:
    """All four children started at 0 and ready at 0."""
    core = Supervision(SPECS, POLICY._replace(**policy))
    for pid, action in enumerate(core.start(0.0), start=100):
        assert isinstance(action, Spawn)
        core.started(action.name, pid, pid, 0.0)
        core.ready(action.name, 1, 0.0)
    return core


def entry(core: Supervision, name: str) -> dict[str, Any]:
    return next(child for child in core.roster() if child["name"] == name)


def kinds(actions: list[Any], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def test_start_spawns_runners_first_and_then_the_other_stages() -> None:
    """If a node starts, then all children are spawned at once, first those that have the most to load."""
    core = Supervision(SPECS, POLICY)
    assert [a.name for a in core.start(0.0)] == ["runner-0", "router", "partition-0", "partition-1"]


def test_two_children_of_one_name_are_refused() -> None:
    """If two specs share a name, then it is our bug, and nothing starts."""
    with pytest.raises(AssertionError):
        Supervision([SPECS[0], SPECS[0]], POLICY)


def test_death_after_long_service_restarts_at_once() -> None:
    """If a child served longer than a second, then its successor is spawned without delay."""
    core = supervision()
    actions = core.exited("partition-0", KILLED, 2.0)
    assert actions == [Announce("partition-0", ChildState.RESTARTING), Spawn("partition-0")]


def test_other_children_are_left_alone_by_a_death() -> None:
    """If one child dies, then nobody else is stopped or started: one_for_one."""
    core = supervision()
    core.exited("partition-0", KILLED, 2.0)
    assert core.states()["partition-1"] is ChildState.READY
    assert core.pids().keys() == {"router", "partition-1", "runner-0"}


def test_early_deaths_double_the_delay_up_to_the_limit() -> None:
    """If a child dies again and again within a second of READY, then it waits 10, 20, 40 ... 1000 ms."""
    core = supervision(intensity=100)
    now_s, delays = 0.0, []
    for _ in range(9):
        assert not kinds(core.exited("partition-0", KILLED, now_s), Spawn)
        delays.append(round(core.wait_s(now_s) * 1000) if len(delays) < 5 else None)
        now_s += POLICY.delay_s(len(delays))
        assert kinds(core.tick(now_s), Spawn) == [Spawn("partition-0")]
        core.started("partition-0", 200, 200, now_s)
    assert delays[:5] == [10, 20, 40, 80, 160]
    assert [POLICY.delay_s(n) for n in (0, 7, 8, 9, 500)] == [0.0, 0.64, 1.0, 1.0, 1.0]


def test_long_service_forgets_early_deaths() -> None:
    """If a child that crashed early serves for long, then its next crash costs no delay."""
    core = supervision()
    core.exited("partition-0", KILLED, 0.1)
    core.tick(0.2)
    core.started("partition-0", 200, 200, 0.2)
    core.ready("partition-0", 2, 0.3)
    assert Spawn("partition-0") in core.exited("partition-0", KILLED, 1.4)


def crash_until_down(core: Supervision, name: str, now_s: float, step_s: float) -> int:
    for count in range(1, 100):
        actions = core.exited(name, KILLED, now_s)
        if Announce(name, ChildState.DOWN) in actions:
            return count
        if not kinds(actions, Spawn):
            assert kinds(core.tick(now_s + 1.0), Spawn)
        core.started(name, 200 + count, count, now_s)
        core.ready(name, count, now_s)
        now_s += step_s
    return 0


def test_sixteenth_death_within_a_minute_is_down() -> None:
    """If a child dies more than 15 times in 60 s, then it is down and is not started again."""
    core = supervision()
    assert crash_until_down(core, "partition-0", 2.0, 2.0) == 16
    assert core.tick(1000.0) == []
    assert entry(core, "partition-0")["state"] == "down"


def test_deaths_spread_over_time_never_end_in_down() -> None:
    """If deaths are further apart than the period allows, then the child is always started again."""
    assert crash_until_down(supervision(), "partition-0", 2.0, 5.0) == 0


def test_a_child_that_knows_it_cannot_start_is_down_at_once() -> None:
    """If a child says that another start cannot help, then its death is its last, with its own words as the
    cause; a restart by hand gives it another chance."""
    core = supervision()
    core.give_up("partition-0", "its file is no database")
    assert core.exited("partition-0", KILLED, 3.0) == [Announce("partition-0", ChildState.DOWN)]
    assert core.tick(1000.0) == []
    assert entry(core, "partition-0")["cause"]["reason"] == "its file is no database"
    assert Spawn("partition-0") in core.restart("partition-0", 1001.0)
    core.started("partition-0", 300, 300, 1001.0)
    assert Spawn("partition-0") in core.exited("partition-0", KILLED, 1003.0) or core.tick(1005.0)


def test_restart_by_hand_revives_a_down_child_and_forgets() -> None:
    """If a child that is down is restarted by hand, then it has its whole intensity again."""
    core = supervision()
    crash_until_down(core, "partition-0", 2.0, 2.0)
    assert Spawn("partition-0") in core.restart("partition-0", 40.0)
    core.started("partition-0", 300, 300, 40.0)
    core.ready("partition-0", 1, 40.0)
    assert crash_until_down(core, "partition-0", 42.0, 2.0) == 16


def test_restart_by_hand_of_a_living_child_stops_it_first() -> None:
    """If a living child is restarted by hand, then it is asked to stop, and replaced after its death."""
    core = supervision()
    assert core.restart("partition-0", 5.0) == [
        Announce("partition-0", ChildState.RESTARTING), Stop("partition-0", again=True),
    ]
    assert core.restart("partition-0", 5.1) == []
    ended = {**KILLED, "signal": None, "exit_status": 0}
    assert Spawn("partition-0") in core.exited("partition-0", ended, 5.2)
    assert entry(core, "partition-0")["cause"]["reason"] == "stopped by hand"


def test_restart_by_hand_of_a_child_that_will_not_stop_kills_it() -> None:
    """If a child ignores the polite stop, then it is killed after stop_timeout_s."""
    core = supervision(tick_s=10.0)
    core.restart("partition-0", 5.0)
    assert kinds(core.tick(9.9), Kill) == []
    assert Kill("partition-0", "did not stop within 5 s") in core.tick(10.1)


def test_restart_by_hand_cuts_a_delay_short() -> None:
    """If a child waits for its next start, then a restart by hand starts it now, once."""
    core = supervision()
    core.exited("partition-0", KILLED, 0.1)
    assert core.restart("partition-0", 0.1) == [Spawn("partition-0")]
    assert core.tick(0.2) == []


def test_restart_of_an_unknown_name_does_nothing() -> None:
    """If nobody has that name, then nothing happens."""
    assert supervision().restart("partition-9", 1.0) == []


def silent(core: Supervision, until_s: float, *, heard: tuple[str, ...] = ()) -> list[Kill]:
    """Tick every quarter of a second; those in ``heard`` beat."""
    kills: list[Kill] = []
    for quarter in range(1, int(until_s * 4) + 1):
        for name in heard:
            core.beat(name, quarter / 4)
        kills += kinds(core.tick(quarter / 4), Kill)
    return kills


def test_silent_child_is_killed_once_and_replaced_after_its_death() -> None:
    """If a child is silent for too long, then it is killed, and replaced when it is dead."""
    core = supervision()
    kills = silent(core, 12.0, heard=("router", "partition-1", "runner-0"))
    assert kills == [Kill("partition-0", "silent for more than 10 s")]
    assert "partition-0" in core.pids()
    assert Spawn("partition-0") in core.exited("partition-0", KILLED, 12.1)
    assert entry(core, "partition-0")["cause"]["reason"] == "silent for more than 10 s"


def test_beats_keep_a_child_alive() -> None:
    """If everybody beats, then nobody is killed."""
    assert silent(supervision(), 30.0, heard=tuple(spec.name for spec in SPECS)) == []


def test_late_tick_starts_all_silence_timers_anew() -> None:
    """If we ourselves were asleep, then the children's silence proves nothing."""
    core = supervision()
    assert kinds(core.tick(100.0), Kill) == []
    assert kinds(core.tick(100.25), Kill) == []


def test_late_tick_gives_a_stopping_child_its_time_again() -> None:
    """If we slept while a child was stopping, then it was not late."""
    core = supervision()
    core.restart("partition-0", 1.0)
    assert kinds(core.tick(100.0), Kill) == []


def test_starting_child_has_the_start_limit_and_beats_do_not_count() -> None:
    """If a starting child beats but makes no progress for start_timeout_s, then it is killed."""
    core = Supervision(SPECS[1:2], POLICY)
    core.start(0.0)
    core.started("router", 100, 100, 0.0)
    kills = silent(core, 61.0, heard=("router",))
    assert kills == [Kill("router", "starting, and no progress for 60 s")]


def test_progress_keeps_the_start_limit_away() -> None:
    """If a recovering child reports progress, then it may take longer than start_timeout_s."""
    core = Supervision(SPECS[1:2], POLICY)
    core.start(0.0)
    core.started("router", 100, 100, 0.0)
    silent(core, 50.0)
    core.progress("router", 50.0)
    core.tick(100.0 - 0.1)
    assert core.states()["router"] is ChildState.STARTING


@pytest.mark.parametrize(("name", "killed"), [("runner-0", True), ("partition-0", False)])
def test_lag_over_the_limit_replaces_a_runner_only(name: str, killed: bool) -> None:
    """If an agent blocks a runner's loop for longer than agent_block_timeout_s, then it is killed."""
    core = supervision()
    assert core.beat(name, 1.0, 60_000) == []
    actions = core.beat(name, 2.0, 60_001)
    assert [type(a) for a in actions] == ([Kill] if killed else [])
    assert core.beat(name, 3.0, 60_001) == []


def test_shutdown_stops_in_reverse_and_waits_for_each_stage() -> None:
    """If the node stops, then runners go first, then partitions, then the router."""
    core = supervision()
    assert kinds(core.shutdown(1.0), Stop) == [Stop("runner-0")]
    assert core.shutdown(1.0) == []
    assert kinds(core.exited("runner-0", KILLED, 1.1), Stop) == [Stop("partition-0"), Stop("partition-1")]
    assert kinds(core.exited("partition-0", KILLED, 1.2), Stop) == []
    assert kinds(core.exited("partition-1", KILLED, 1.3), Stop) == [Stop("router")]
    assert not core.finished
    core.exited("router", KILLED, 1.4)
    assert core.finished
    assert set(core.states().values()) == {ChildState.STOPPED}


def test_child_that_dies_during_shutdown_is_not_replaced() -> None:
    """If the router dies while the runners are stopping, then it stays dead."""
    core = supervision()
    core.shutdown(1.0)
    assert kinds(core.exited("router", KILLED, 1.1), Spawn) == []
    assert core.restart("router", 1.2) == []


def test_shutdown_cancels_a_start_that_was_waiting() -> None:
    """If a child waits for its next start at shutdown, then it is not started any more."""
    core = supervision()
    core.exited("partition-0", KILLED, 0.1)
    core.shutdown(0.1)
    assert kinds(core.tick(5.0), Spawn) == []


def test_stage_that_does_not_stop_is_killed() -> None:
    """If a child ignores the stop of the node, then it is killed after stop_timeout_s."""
    core = supervision(tick_s=10.0)
    core.shutdown(1.0)
    assert [a.name for a in kinds(core.tick(6.1), Kill)] == ["runner-0"]


def test_shutdown_without_any_process_is_finished() -> None:
    """If nobody lives, then there is nothing to wait for."""
    core = Supervision(SPECS, POLICY)
    core.shutdown(0.0)
    assert core.finished


def test_ready_is_counted_once_and_not_for_the_dead() -> None:
    """If a READY is repeated, or comes from one that is gone, then nothing changes."""
    core = supervision()
    assert core.ready("partition-0", 7, 1.0) == []
    core.exited("partition-0", KILLED, 0.5)
    assert core.ready("partition-0", 7, 0.5) == []
    assert entry(core, "partition-0")["epoch"] is None


def test_roster_tells_restarts_and_cause() -> None:
    """If a child was replaced, then the roster says how often, and why the last one died."""
    core = supervision()
    core.exited("partition-0", {**KILLED, "stderr": "boom"}, 5.0)
    core.started("partition-0", 777, 5_000_009, 5.0)
    found = entry(core, "partition-0")
    assert (found["pid"], found["incarnation"], found["restarts"]) == (777, 5_000_009, 1)
    assert (found["cause"]["signal"], found["cause"]["stderr"]) == ("SIGKILL", "boom")
