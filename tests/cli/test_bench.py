"""``mesh bench --peers``: what it makes of figures, and how it deals with peers that are missing or fail."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conditions import wait_for

from mesh.cli import bench_goals, bench_lab, bench_own, bench_peers, bench_plot, bench_report, bench_rivals
from mesh.cli.bench_lab import Absent, Pair
from mesh.cli.measure import Figure
from mesh.errors import MeshError

Cli = Callable[..., Result]


def _pair(peer: str, figure: str, mesh: float, theirs: float) -> Pair:
    measured, unit = bench_rivals.MEASURED[figure]
    ratio = mesh / theirs
    return Pair(peer, figure, measured, unit, mesh, theirs, ratio, ratio * 0.9, ratio * 1.1, 3, {})


PAIRS = [
    _pair("redis.asyncio", "concurrent", 160_000.0, 10_000.0),
    _pair("redis.asyncio", "durable", 60_000.0, 10_000.0),
    _pair("redis.asyncio (uvloop)", "concurrent", 200_000.0, 20_000.0),
    _pair("redis-py", "list_of_100", 500_000.0, 600_000.0),
    _pair("redis-py", "pipeline_of_256", 500_000.0, 200_000.0),
    _pair("pyzmq", "one", 300.0, 200.0),
    _pair("pyzmq", "one_blocking", 220.0, 200.0),
]
#: A peer whose server outlives it, and that answers one request and then breaks.
BROKEN = """
import json, subprocess, sys
server = subprocess.Popen(["sleep", "300"])
open(sys.argv[2], "w").write(str(server.pid))
print(json.dumps({"figures": ["concurrent"]}), flush=True)
sys.stdin.readline()
print(json.dumps({"value": 1000.0, "details": {}}), flush=True)
sys.stdin.readline()
raise SystemExit("the peer broke")
"""


def test_figures_of_several_rounds_become_their_median() -> None:
    """If a figure was measured three times, then the middle one counts and the range is told."""
    rounds = [Figure("x", value, "/s", {"calls": 1}) for value in (30.0, 10.0, 20.0)]
    (only,) = bench_lab.merged(rounds)
    assert only.value == 20 and only.details == {"calls": 1, "low": 10, "high": 30, "rounds": 3}
    assert bench_lab.merged(rounds[:1]) == rounds[:1]


def test_goals_take_the_best_source_and_say_what_was_not_measured() -> None:
    """If a goal has two sources, then the better one is compared; without any it is neither yes nor no."""
    figures = [
        Figure("routes.get, concurrent", 240_000.0, "/s", {}),
        Figure("routes.get, concurrent (uvloop)", 260_000.0, "/s", {}),
        Figure("routes.get, one by one, p50", 100.0, "us", {"p99_over_p50": 3.5}),
        Figure("memory per route", 500.0, "bytes", {}),
    ]
    found = {(row.figure, row.goal): row for row in bench_goals.results(figures, PAIRS)}
    gets = "concurrent routes.get, one AsyncClient, 256 coroutines"
    assert found[gets, ">= 250,000/s"].here == "260,000/s (with uvloop)"
    assert found[gets, ">= 250,000/s"].reached is True
    assert found[gets, ">= 15x redis.asyncio"].value == 16
    assert found[gets, ">= 25x xoscar"].reached is None
    assert found["memory per route", "<= 450 bytes"].reached is False
    one = "one call at a time through the router"
    assert found[f"{one}, p50", "<= 1.15x raw pyzmq"].here == "1.1x raw pyzmq (blocking client)"
    assert found[f"{one}, p99", "<= 3x p50"].reached is False


def test_every_goal_names_figures_that_exist() -> None:
    """If a figure of a peer is renamed, then no goal asks for the old name."""
    for goal in bench_goals.GOALS:
        for source in goal.sources:
            if " / " in source:
                assert source.split(" / ")[1] in bench_rivals.MEASURED


def test_markdown_has_a_row_for_each_goal_and_pair() -> None:
    """If a README is filled in, then each goal and each pair is one row, and absent peers are named."""
    report = {"machine": bench_report.machine()}
    goals = bench_goals.results([], PAIRS)
    absent = [Absent("NATS", "not installed: nats-server", "apt install nats-server")]
    text = bench_report.markdown(report, PAIRS, absent, goals)
    assert "| 256 reads in flight, one client | redis.asyncio | 160,000 | 10,000 | /s | 16.00x |" in text
    assert text.count("\n| ") == len(goals) + len(PAIRS) + 2 * 2  # two tables, each with a head of two lines
    assert "NATS (not installed: nats-server)" in text


def test_bars_put_the_best_first_and_mesh_once_per_loop() -> None:
    """If peers were measured on two loops, then each has a bar, and mesh one for each of them."""
    panel = next(panel for panel in bench_plot.PANELS if "concurrent" in panel.figures)
    assert bench_plot.bars(panel, PAIRS) == [
        ("mesh (uvloop)", 200_000, True),
        ("mesh", 160_000, True),
        ("redis.asyncio (uvloop)", 20_000, False),
        ("redis.asyncio", 10_000, False),
    ]


def test_the_plot_is_a_small_png(tmp_path: Path) -> None:
    """If matplotlib is here, then one small PNG is written."""
    pytest.importorskip("matplotlib")
    (path,) = bench_plot.draw(PAIRS, tmp_path / "new")
    data = Path(path).read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 150_000


def test_peers_that_are_not_installed_are_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a peer is missing, then it is told how to have it, and that is no failure."""
    monkeypatch.setenv("PATH", "")
    missing = {entry.name: entry.missing for entry in bench_rivals.entries()}
    assert "redis-server" in missing["redis-py"] and "nats-server" in missing["NATS"]
    done = cli("bench", "--only", "peers", "--peer", "nats", "--peer", "redis-py")
    assert done.exit_code == 0, done.stderr
    assert "NATS: not installed:" in done.stdout and "apt install nats-server" in done.stdout
    assert "redis-py: not installed:" in done.stdout


def test_an_unknown_peer_is_refused_with_the_known_ones(cli: Cli) -> None:
    """If a peer is misspelt, then those that there are are listed."""
    done = cli("bench", "--peer", "radis")
    assert done.exit_code == 2 and "no peer is called 'radis'" in done.stderr and "redis-py" in done.stderr


def test_without_a_checkout_it_says_where_the_peers_are(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """If only the package is installed, then --peers is refused clearly."""
    monkeypatch.setattr(bench_rivals, "SCRIPT", Path("/nowhere/tests/bench/peers.py"))
    done = cli("bench", "--peers")
    assert done.exit_code == 2 and "/nowhere/tests/bench/peers.py is not there" in done.stderr
    assert "checkout" in done.stderr


def test_peers_are_not_measured_at_another_node(cli: Cli) -> None:
    """If --address names a node, then --peers is refused: the durable part needs nodes of its own."""
    done = cli("bench", "--peers", "--address", "127.0.0.1:1")
    assert done.exit_code == 2 and "--address" in done.stderr


def test_a_peer_that_breaks_is_told_and_its_server_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a peer ends in the middle, then its last words are the reason and its servers are gone."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    monkeypatch.setattr(bench_rivals, "SCRIPT", script)
    pid_file = tmp_path / "pid"
    with bench_rivals.peer_process(str(pid_file), fast=False) as peer:
        assert peer.figures == ["concurrent"] and peer.measure("concurrent", 1).value == 1000
        with pytest.raises(bench_rivals.PeerFailed, match="the peer broke"):
            peer.measure("concurrent", 1)
    pid = int(pid_file.read_text())
    wait_for(lambda: not _alive(pid), "the peer's server is gone")


def test_a_peer_that_does_not_start_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a peer fails at its start in two stages, then the run goes on and the reason is told once."""
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no luck')")
    monkeypatch.setattr(bench_rivals, "SCRIPT", script)
    lab = bench_lab.Lab({}, rounds=1)
    contest = bench_peers.Contest(bench_rivals.PeerEntry("X", [], "pip install x", False), 0.1, fast=False)
    contest.routes(lab, "127.0.0.1:1")
    contest.durable(lab, "127.0.0.1:1")
    assert lab.absent == [Absent("X", "failed: no luck", "")] and not lab.pairs


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_stages_follow_what_was_chosen() -> None:
    """If only a group is chosen, then nothing else is measured; a foreign node is never killed."""
    assert bench_own.stages(("peers",), remote=False) == []
    everything = bench_own.stages(("routes", "sessions", "node"), remote=False)
    assert {"a killed partition", "memory", "runs"} <= {stage.title for stage in everything}
    remote = bench_own.stages(("routes", "sessions", "node"), remote=True)
    assert {stage.node for stage in remote} == {"process"} and len(remote) < len(everything)


def test_the_memory_of_a_process_is_some() -> None:
    """If a process is asked for its memory, then it is more than nothing."""
    from mesh.cli import measure_node

    assert measure_node.resident_bytes(os.getpid()) > 1_000_000


def test_a_broken_list_of_peers_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the list of peers cannot be read, then its last line says why."""
    script = tmp_path / "list.py"
    script.write_text("raise SystemExit('no list today')")
    monkeypatch.setattr(bench_rivals, "SCRIPT", script)
    with pytest.raises(MeshError, match="no list today"):
        bench_rivals.entries()


def _of_this_run(word: str) -> list[int]:
    """Processes of this test run whose command has that word."""
    ours = f"MESH_RUNTIME_DIR={os.environ['MESH_RUNTIME_DIR']}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found += [int(entry.name)] if ours in (entry / "environ").read_bytes().split(b"\0") else []
        except OSError:
            continue
    return found


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_one_peer_is_measured_in_turns_with_mesh(cli: Cli, tmp_path: Path) -> None:
    """If pyzmq is the peer, then each figure has a ratio, the JSON is whole and no process is left."""
    file = tmp_path / "report.json"
    done = cli("bench", "--quick", "--only", "peers", "--peer", "pyzmq", "--save", str(file))
    assert done.exit_code == 0, done.stderr
    assert "one read at a time, p50\tpyzmq\t" in done.stdout and "256 reads in flight" in done.stdout
    report: dict[str, Any] = json.loads(file.read_text())
    assert {pair["figure"] for pair in report["peers"]} == {"one", "one_blocking", "concurrent"}
    assert all(pair["ratio"] > 0 and pair["mesh"] > 0 and pair["theirs"] > 0 for pair in report["peers"])
    assert not report["absent"] and not report["plots"]
    assert any(goal["reached"] is not None for goal in report["goals"])
    wait_for(lambda: not _of_this_run("tests/bench/peer"), "no process of the peer is left")
