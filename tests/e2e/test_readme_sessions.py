"""The examples of the README's chapters about sessions, runs and continuation, word for word."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mesh

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(chapter: str, language: str = "python") -> list[str]:
    """The examples of a chapter."""
    text = README.partition(f"\n## {chapter}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def promised(block: str) -> list[str]:
    """What an example says in comments that its prints print, line by line."""
    printing = [line for line in block.splitlines() if line.startswith((" ", "print", "for", "# "))]
    return [said for line in printing if (said := line.partition("# ")[2].strip().removesuffix(" ..."))]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.Client]:
    """A node with the chapters' agents and prices."""
    folder: Path = tmp_path_factory.mktemp("readme")
    helper, coder = blocks("Continuation")[0], blocks("Continuation")[2]
    writer = blocks("Sessions and prompts")[0]
    (folder / "agents.py").write_text(writer + helper + coder + blocks("Runs")[0])
    columns = re.findall(r"  # (\[agents\.writer\]|\w+ = .+)$", writer, re.MULTILINE)
    writers = tomllib.loads("\n".join(columns))["agents"]["writer"]
    names = ("helper", "coder", "counted")
    agents = {name: {"provider": "python", "target": f"{folder}/agents.py:{name}"} for name in names}
    agents["writer"] = writers | {"target": f"{folder}/{writers['target']}"}
    agents["coder"]["capabilities"] = ["session_resume"]  # type: ignore[assignment]
    prices = tomllib.loads(blocks("Runs", "toml")[0])["prices"]
    with mesh.LocalNode(config={"agents": agents, "prices": prices}) as node, node.client() as opened:
        yield opened


def test_the_examples_about_sessions_do_what_they_say(
    client: mesh.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a reader types the chapter about sessions, then each line does what its comment says."""
    example = blocks("Sessions and prompts")[1]
    names: dict[str, Any] = {"client": client}
    for statement in example.splitlines():
        if "client.sessions.complete" in statement:
            with pytest.raises(mesh.InvalidState) as refused:
                exec(statement, names)
            assert refused.value.code == "version_conflict" and "version 3" in str(refused.value)
            break
        exec(statement, names)
        if "runs.pause" in statement:
            assert client.runs.get(names["run"]).status == "paused"
        if "drain" in statement:
            runs = {run.input["prompt"]: run.status for run in client.sessions.runs("essay")}
            assert runs["about rain"] == "cancelled"  # the other one, too, when it had begun by then
            assert runs["about snow"] in ("cancelled", "completed")
    else:
        raise AssertionError("the last line completes by version")
    assert capsys.readouterr().out.splitlines() == [
        "[('steering', 'shorter, please'), ('follow_up', 'and a title')]"]


def test_the_example_about_runs_prints_what_it_says(
    client: mesh.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a reader types the chapter about runs, then usage, cost and metadata are the ones shown."""
    _, example = blocks("Runs")
    exec(example, {"client": client})
    *told, used, cost = capsys.readouterr().out.splitlines()
    assert told[0] == "session_created" and told[-1] == "session_completed"
    assert [used, cost] == promised(example)


def test_the_examples_about_continuation_print_what_they_say(
    client: mesh.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a reader types the chapter about continuation, then he sees what stands in its comments."""
    _, first, _, last = blocks("Continuation")
    names: dict[str, Any] = {"client": client}
    exec(first, names)
    assert capsys.readouterr().out.splitlines()[:2] == promised(first)
    exec(last, names)
    assert capsys.readouterr().out.splitlines() == [
        said for said in promised(last) if said.startswith("[")]
    assert [m.content for m in client.sessions.transcript(names["fork"].id)] == ["I am Ann", "1: I am Ann"]
    sid = client.sessions.start("coder").id
    said = [client.runs.wait(client.runs.submit(sid, "go", continuation="auto").id).output["content"]
            for _ in range(2)]
    assert said == ["new", "thread-1 resumed"]
