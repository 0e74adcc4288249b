"""Which runner hosts whose sessions: never a stranger's on an isolated runner, always its own there."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from bench import AGENTS, Bench, new_run_id
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.hosting import Hosting, check_apart, check_word, executed_by
from mesh.core.live import no_runner
from mesh.errors import ConfigError, InvalidArgument

WORDS = st.sampled_from([None, "shared", "process"])
NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f"])


def table(isolation: str | None, provider: str, names: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {"provider": provider}
    if isolation is not None:
        made["isolation"] = isolation
    return made | ({"agents": names} if provider == "router" else {"agent": names[0] if names else "a"})


TABLES = st.dictionaries(NAMES, st.builds(
    table, WORDS, st.sampled_from(["echo", "python", "router", "record"]), st.lists(NAMES, max_size=3)))


def isolated(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"provider": "echo", "isolation": "process"} for name in names}


# --- the places ---


@given(st.integers(1, 64), TABLES)
def test_each_runner_hosts_one_isolated_agent_or_all_that_share(shared: int, tables: dict[str, Any]) -> None:
    """If agents are isolated, then each has one runner, nobody else may live there, and all others share."""
    hosting = Hosting(shared, tables)
    everywhere = range(hosting.count)
    for name, its in tables.items():
        places = hosting.among(everywhere, name)
        if its.get("isolation") == "process":
            assert [hosting.agent_of(place) for place in places] == [name]
        else:
            assert places == list(range(shared))
    assert hosting.count == shared + sum(its.get("isolation") == "process" for its in tables.values())
    assert hosting.among(everywhere, "nobody knows it") == list(range(shared))


@given(st.integers(1, 4), TABLES)
def test_each_agent_is_told_of_by_exactly_those_who_host_it(shared: int, tables: dict[str, Any]) -> None:
    """If runners tell what they host, then each agent is listed where its sessions may live, nowhere else."""
    hosting = Hosting(shared, tables)
    for runner in range(hosting.count):
        listed = hosting.listed(runner, tables)
        assert listed == [name for name in sorted(tables) if runner in hosting.among([runner], name)]
        assert set(listed) <= hosting.loaded(runner, tables) <= set(tables)


@given(st.integers(1, 4), TABLES)
def test_code_of_an_isolated_agent_is_loaded_in_its_own_runner_only(
    shared: int, tables: dict[str, Any]
) -> None:
    """If an agent is isolated, then no other runner loads it; it brings along what it executes itself."""
    hosting = Hosting(shared, tables)
    for runner in range(hosting.count):
        loaded, own = hosting.loaded(runner, tables), hosting.agent_of(runner)
        assert not {name for name in loaded if name in hosting.own and name != own}
        for name in loaded if own is not None else ():
            wanted = {other for other in executed_by(tables[name]) if other in tables}
            assert wanted - set(hosting.own) <= loaded


def test_places_follow_the_names_and_not_the_order_of_the_file() -> None:
    """If the tables stand in another order, then each agent has the same runner."""
    one, other = Hosting(2, isolated("x", "b")), Hosting(2, isolated("b", "x"))
    assert one.own == other.own == {"b": 2, "x": 3}


# --- what is refused ---


@pytest.mark.parametrize("word", ["own", "", "Process", 1, None, ["process"], [10**5000]])
def test_another_word_is_refused_and_the_two_are_named(word: Any) -> None:
    """If isolation is neither shared nor process, then the error names both."""
    with pytest.raises(ConfigError, match=r'isolation = .*"shared".*"process"'):
        check_word({"isolation": word})
    for right in ({}, {"isolation": "shared"}, {"isolation": "process"}):
        check_word(right)


@pytest.mark.parametrize("executor", [
    {"provider": "router", "agents": ["b", "a"]}, {"provider": "record", "agent": "a"},
    {"provider": "router", "agents": ["a"], "isolation": "process"},
])
def test_whoever_would_execute_an_isolated_agent_elsewhere_is_refused(executor: dict[str, Any]) -> None:
    """If a router or a recorder names an isolated agent, then the error says who is to be isolated."""
    tables = {**isolated("a"), "b": {"provider": "echo"}, "r": executor}
    with pytest.raises(ConfigError, match=r"'a' has isolation = \"process\".*\[agents.r\]"):
        check_apart("r", tables)
    check_apart("a", tables)
    check_apart("r", {**tables, "a": {"provider": "echo"}})


@pytest.mark.parametrize("named", [None, "a", {"a": 1}, [1, None], 5])
def test_nonsense_in_place_of_names_is_left_to_the_provider(named: Any) -> None:
    """If a table names its agents in a wrong way, then this check does not fall over it."""
    check_apart("r", {**isolated("a"), "r": {"provider": "router", "agents": named}})
    if named != "a":
        check_apart("r", {**isolated("a"), "r": {"provider": "record", "agent": named}})


def test_a_changed_isolation_is_refused_until_a_restart_and_the_rest_is_not() -> None:
    """If a reload changes an agent's isolation, then that agent says so; the others are as they were."""
    hosting = Hosting(1, {**isolated("a"), "b": {"provider": "echo"}})
    now = {"a": {"provider": "echo"}, "b": {"provider": "echo"}, **isolated("new"), "c": {"provider": "echo"}}
    for name in ("a", "new"):
        with pytest.raises(ConfigError, match="after a restart of the node"):
            hosting.check_unchanged(name, now)
    for name in ("b", "c"):
        hosting.check_unchanged(name, now)
    assert hosting.listed(0, now) == ["b", "c", "new"] and hosting.listed(1, now) == ["a"]
    assert hosting.listed(1, {"b": {"provider": "echo"}}) == []


@pytest.mark.parametrize(("session", "run"), [("a", "b"), ("b", "a"), ("a", "x")])
def test_a_run_of_another_agent_is_refused_where_one_is_isolated(session: str, run: str) -> None:
    """If a run names an agent that lives elsewhere than its session, then it is refused with both names."""
    with pytest.raises(InvalidArgument, match=f"session of '{session}'.*runs of '{run}'"):
        Hosting(1, isolated("a", "x")).check_together(session, run)
    Hosting(1, isolated("x")).check_together("a", "b")


# --- a partition places ---


def test_an_isolated_agent_waits_for_its_own_runner_and_the_others_do_not(tmp_path: Path) -> None:
    """If only the shared runner is there, then an isolated agent's prompt waits, and another one's runs."""
    bench = Bench(tmp_path, isolated=["again"])
    bench.crash_runner(1)
    bench.roster()
    for sid, agent in (("mine", "again"), ("other", "echo")):
        prompt = ["session.prompt", [sid, new_run_id(sid, 1), "x", "follow_up"]]
        bench.post(["session.start", [sid, agent, None]], prompt)
    assert bench.status(new_run_id("other", 1)) == "running"
    assert "mine" not in bench.state.live
    bench.spawn(1)
    bench.roster()
    assert bench.state.run(new_run_id("mine", 1)).runner == 1


def test_who_is_down_is_said_in_plain_words(tmp_path: Path) -> None:
    """If runners are down, then the message names them, one or several."""
    bench = Bench(tmp_path, isolated=["again"])
    for index in (0, 1):
        bench.crash_runner(index, "down")
    bench.roster()
    again = "bring {} back with: mesh runner restart"
    one, every = str(no_runner(bench.state, "again")), str(no_runner(bench.state))
    assert f"runner 1 of agent 'again' is down, it died too often; {again.format('it')} 1" in one
    assert f"runners 0, 1 are down, they died too often; {again.format('one')} 0" in every


def test_calls_on_an_agent_whose_runner_is_down_are_answered_at_once(tmp_path: Path) -> None:
    """If an isolated agent's runner is down, then its calls, waiting ones too, are told what to do, and
    nothing is stored; other agents' calls go on, and so do its own once somebody restarts it."""
    bench = Bench(tmp_path, isolated=["again"])
    bench.call("session.start", "mine", "again", None)
    bench.call("session.create", "new", "again", None)
    bench.call("session.start", "other", "echo", None)
    bench.crash_runner(1)
    bench.roster()
    waits = bench.post(["session.activate", ["new"]])
    assert waits not in bench.replies
    bench.crash_runner(1, "down")
    bench.roster()
    [[status, error]] = bench.replies[waits]
    assert status and error["code"] == "session_unavailable" and "mesh runner restart 1" in error["message"]
    runs = [new_run_id(sid, n) for n, sid in enumerate(("mine", "other", "late"))]
    assert bench.code("session.prompt", "mine", runs[0], "x", "follow_up") == "session_unavailable"
    assert not bench.state.has_run(runs[0])
    assert bench.code("session.start", "late", "again", None) == "session_unavailable"
    assert bench.code("session.prompt", "other", runs[1], "x", "follow_up") == "ok"
    bench.states[1] = (bench.states[1][0], "restarting")
    bench.roster()
    waits = bench.post(["session.prompt", ["mine", runs[0], "x", "follow_up"]])
    bench.spawn(1)
    bench.roster()
    bench.catalogue()
    assert bench.replies[waits][0][0] == 0 and bench.status(runs[0]) == "running"
    for index in (0, 1):
        bench.crash_runner(index, "down")
    bench.roster()
    assert bench.code("session.start", "late", "echo", None) == "session_unavailable"
    assert bench.code("agent.reload") == "session_unavailable"


def test_run_of_another_agent_is_refused_when_it_is_made_and_when_it_is_executed(tmp_path: Path) -> None:
    """If one of the two is isolated, then neither create nor execute takes the run, and nothing is left."""
    bench = Bench(tmp_path, isolated=["again"])
    bench.call("session.start", "s", "echo", None)
    run = new_run_id("s", 1)
    assert bench.code("run.create", run, "s", "x", {"agent": "again"}) == "validation_error"
    bench.call("run.create", run, "s", "x", None)
    assert bench.code("run.execute", run, {"agent": "again"}) == "validation_error"
    assert bench.status(run) == "pending" and bench.state.run(run).options == {}


def test_what_runners_tell_of_their_agents_adds_up(tmp_path: Path) -> None:
    """If each runner tells what it hosts, then the list has all, each as its host says; the others wait."""
    bench = Bench(tmp_path, isolated=["again"])
    assert [row["problem"] for row in bench.ops.agents.rows()] == [None, None]
    assert bench.ops.runners.idempotent == {"again"}
    for runner, left in zip(bench.runners.values(), ("again", "echo"), strict=True):
        assert runner is not None
        bench.say(runner, ["catalogue", None, []])  # its agents were removed from the config
        assert [row["name"] for row in bench.ops.agents.rows()] == [left]
        bench.catalogue()
    agents = bench.ops.agents
    agents.catalogue.clear()
    agents.on_catalogue(1, None, [{**agents.configured["again"], "name": "again", "problem": None}])
    assert {row["name"]: row["problem"] for row in agents.rows()} == {"again": None, "echo": "loading"}


STEPS = st.lists(st.tuples(
    st.sampled_from(
        ["start", "prompt", "prompt", "end", "crash", "spawn", "down", "kill", "kill_node", "tick"]),
    st.integers(0, 5)), max_size=30)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.sets(st.sampled_from(sorted(AGENTS))), STEPS)
def test_whatever_happens_nobody_lives_or_runs_where_he_does_not_belong(
    shared: int, apart: set[str], steps: list[tuple[str, int]]
) -> None:
    """If runners, partition and node die in any order, then each session is where it belongs, or waits; and
    where its runner is ready, what waits runs."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), runners=shared, isolated=apart)
        numbers = itertools.count(1)
        for what, n in [*steps, *(("spawn", i) for i in range(bench.hosting.count)), ("tick", 0)]:
            _step(bench, what, n, numbers)
            _check_places(bench)
        waiting = [sid for sid, work in bench.state.work.items() if work.queue and not work.running]
        assert not waiting
        bench.store.connection.close()


def _step(bench: Bench, what: str, n: int, numbers: Any) -> None:
    index = n % bench.hosting.count
    sid = f"s{n}"
    match what:
        case "start":
            bench.post(["session.start_or_get", [sid, sorted(AGENTS)[n % len(AGENTS)], None]])
        case "prompt":
            bench.post(["session.prompt", [sid, new_run_id(sid, next(numbers)), "x", "follow_up"]])
        case "end":
            runner = bench.runners[index]
            for run_id in list(runner.runs) if runner is not None else ():
                bench.progress(runner, run_id, "completed")
        case "crash" | "down":
            bench.crash_runner(index, "restarting" if what == "crash" else "down")
            bench.roster()
        case "spawn":
            if bench.runners[index] is None:
                bench.spawn(index)
                bench.roster()
                bench.catalogue()
        case "kill":
            bench.kill()
        case "kill_node":
            bench.kill_node()
        case "tick":
            bench.tick(1.0)
    bench.deliver()


def _check_places(bench: Bench) -> None:
    state, hosting = bench.state, bench.hosting
    for sid in state.live:
        session = state.session(sid)
        assert session.runner in hosting.among(range(hosting.count), session.agent)
    for sid, work in state.work.items():
        for run in map(state.run, work.running):
            assert run.runner in hosting.among(range(hosting.count), state.session(sid).agent)
    for index, runner in bench.runners.items():
        for run_id in runner.runs if runner is not None else ():
            assert index in hosting.among([index], state.session(state.run(run_id).session_id).agent)
