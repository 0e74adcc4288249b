"""The agents of a node: loading, problems, reloading."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from driving import Bench, drive, python_agent

from mesh.config import load_agents
from mesh.node.processes import RunProcesses
from mesh.providers.registry import Registry


def catalogue(agents: dict[str, Any]) -> dict[str, dict[str, Any]]:
    async def play(bench: Bench) -> Any:
        return {entry["name"]: entry for entry in bench.registry.catalogue()}

    found: dict[str, dict[str, Any]] = drive(agents, play)
    return found


def test_unknown_provider_is_named_with_the_nearest() -> None:
    """If a provider's name is misspelled, then the problem suggests the right one."""
    assert "did you mean 'shell'" in catalogue({"a": {"provider": "shel"}})["a"]["problem"]


def test_broken_import_is_a_problem_with_its_traceback(tmp_path: Path) -> None:
    """If an agent's file raises while it is imported, then the problem is the traceback, its own lines
    only."""
    table = python_agent(tmp_path, "def agent(run):\n    pass\n1 / 0\n")
    problem = catalogue({"bad": table, "echo": {"provider": "echo"}})["bad"]["problem"]
    assert "ZeroDivisionError" in problem
    assert "line 3" in problem
    assert "importlib" not in problem
    assert "registry.py" not in problem


@pytest.mark.parametrize(
    ("source", "function", "said"),
    [
        ("def agent():\n    pass", "agent", "one argument"),
        ("x = 1", "agent", "no function"),
        ("x = 1", "x", "no function"),
        ("def agent(run:", "agent", "SyntaxError"),
        ("import sys; sys.exit(3)", "agent", "SystemExit"),
        ("import no_such_module_x", "agent", "ModuleNotFoundError"),
    ],
)
def test_agent_that_cannot_be_loaded_says_why(tmp_path: Path, source: str, function: str, said: str) -> None:
    """If the target is not a function of one argument, then the problem says what it is."""
    assert said in catalogue({"a": python_agent(tmp_path, source, function)})["a"]["problem"]


@pytest.mark.parametrize("target", ["", "x", "x.py", ":f", "/no/such/file.py:f", "no_such_module_x:f"])
def test_wrong_target_is_a_problem(target: str) -> None:
    """If the target names nothing, then the agent has a problem and the node starts."""
    assert catalogue({"a": {"provider": "python", "target": target}})["a"]["problem"]


def test_module_and_nested_targets_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the target is a module's function or a method of an object in it, then it is loaded."""
    (tmp_path / "agents_of_test.py").write_text(
        "class Team:\n    async def one(self, run):\n        yield 'team'\nteam = Team()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = catalogue({"a": {"provider": "python", "target": "agents_of_test:team.one"}})["a"]
    assert (entry["problem"], entry["capabilities"][0]["name"]) == (None, "streaming")
    del sys.modules["agents_of_test"]


def test_agent_may_import_its_neighbour(tmp_path: Path) -> None:
    """If an agent's file imports a file beside it, then that is found."""
    (tmp_path / "neighbour_of_test.py").write_text("WORD = 'next door'\n")
    source = "from neighbour_of_test import WORD\ndef agent(run):\n    return WORD"

    async def play(bench: Bench) -> Any:
        return (await bench.result(bench.begin("agent", "x"))).output

    path = list(sys.path)
    try:
        assert drive({"agent": python_agent(tmp_path, source)}, play) == {"content": "next door"}
    finally:
        sys.path[:] = path
        del sys.modules["neighbour_of_test"]


def test_reload_reads_the_file_anew_and_mends_or_breaks(tmp_path: Path) -> None:
    """If a file changes, then reload takes the new one; a broken one is a problem until it is mended."""
    table = python_agent(tmp_path, "def agent(run):\n    return 1")
    file = Path(table["target"].rpartition(":")[0])

    async def play(bench: Bench) -> list[Any]:
        said = []
        for source in (
            None,
            "def agent(run):\n    return 2",
            "def agent(run:",
            "def agent(run):\n    return 3",
        ):
            if source is not None:
                file.write_text(source)
                await bench.registry.reload()
            result = await bench.result(bench.begin("agent", "x"))
            said.append(result.output["content"] if result.output else result.error["code"])
        return said

    assert drive({"agent": table}, play) == [1, 2, "provider_error", 3]


def test_run_that_comes_early_waits_for_the_import(tmp_path: Path) -> None:
    """If a run arrives while its agent is imported, then it waits; meanwhile the catalogue says loading."""
    table = python_agent(tmp_path, "import time\ntime.sleep(0.2)\ndef agent(run):\n    return 'late'")

    async def play(bench: Bench) -> Any:
        problem = bench.registry.catalogue()[0]["problem"]
        return problem, (await bench.result(bench.begin("agent", "x"))).output["content"]

    async def without_waiting(bench: Bench) -> Any:
        fresh = Bench({"agent": table | {"target": table["target"]}})
        return await play(fresh)

    file = table["target"]
    table = {"provider": "python", "target": file}
    for name in [name for name in sys.modules if name.startswith("mesh_agent_")]:
        del sys.modules[name]
    assert drive({}, without_waiting) == ("loading", "late")


def test_unknown_agent_fails_its_run() -> None:
    """If a run names an agent that is not there, then it fails with unknown_agent."""

    async def play(bench: Bench) -> Any:
        return (await bench.result(bench.begin("shel", "x"))).error

    error = drive({"shell": {"provider": "shell"}}, play)
    assert error["code"] == "unknown_agent"
    assert "did you mean 'shell'" in error["message"]


def test_capabilities_and_idempotence_come_from_the_table() -> None:
    """If an agent's table states capabilities and idempotence, then the catalogue repeats them."""
    entry = catalogue(
        {
            "a": {
                "provider": "shell",
                "idempotent": True,
                "capabilities": ["bash", {"name": "read", "type": "file_access"}],
            }
        }
    )["a"]
    assert entry["idempotent"] is True
    assert [(c["name"], c["type"]) for c in entry["capabilities"]] == [
        ("bash", "tool"),
        ("read", "file_access"),
    ]


def test_reload_takes_the_agents_of_a_changed_config_file(tmp_path: Path) -> None:
    """If the config file changes, then reload adds and removes agents; a broken file changes none."""
    file = tmp_path / "mesh.toml"
    file.write_text('[agents.first]\nprovider = "echo"\n')

    async def play() -> list[dict[str, str | None]]:
        registry = Registry(load_agents(str(file))[0], processes=RunProcesses(), source=str(file))
        registry.start()
        seen = []
        for text in ('[agents.second]\nprovider = "echo"\n', "[agents.second\n"):
            file.write_text(text)
            await registry.reload()
            seen.append({entry["name"]: entry["problem"] for entry in registry.catalogue()})
        return seen

    changed, broken = asyncio.run(play())
    assert changed == {"echo": None, "second": None, "shell": None}
    assert broken.keys() == {*changed, str(file)}
    assert "not valid TOML" in str(broken[str(file)])


def test_runner_that_starts_reads_the_config_file_as_it_is_now(tmp_path: Path) -> None:
    """If a runner is replaced after a reload, then its successor has the reloaded agents too."""
    file = tmp_path / "mesh.toml"
    file.write_text('[agents.first]\nprovider = "echo"\n')
    tables, _ = load_agents(str(file))
    file.write_text('[agents.second]\nprovider = "echo"\n')

    async def play() -> list[str]:
        registry = Registry(tables, processes=RunProcesses(), source=str(file))
        registry.start()
        return [entry["name"] for entry in registry.catalogue()]

    assert asyncio.run(play()) == ["echo", "second", "shell"]


def test_agents_of_one_file_never_see_it_half_executed(tmp_path: Path) -> None:
    """If several agents live in one file that loads slowly, then each of them is found in it."""
    table = python_agent(tmp_path, "import time\ntime.sleep(0.05)\ndef agent(run):\n    pass\n")
    found = catalogue({"a": table, "b": dict(table), "c": dict(table)})
    assert [entry["problem"] for entry in found.values()] == [None] * 3


def test_agent_that_is_still_loading_is_known_to_be_idempotent(tmp_path: Path) -> None:
    """If an agent is not loaded yet, then what the config declares counts already."""
    source = "import time\ntime.sleep(0.05)\ndef agent(run):\n    pass\n"
    table = python_agent(tmp_path, source, idempotent=True)

    async def early() -> Any:
        registry = Registry({"a": table}, processes=RunProcesses())
        registry.start()
        try:
            return registry.catalogue()[0]
        finally:
            await registry.loaded()

    entry = asyncio.run(early())
    assert (entry["problem"], entry["idempotent"]) == ("loading", True)
