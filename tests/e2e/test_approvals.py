"""Approvals on real runs: who waits, who answers, and what a kill at any step leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

ASK: dict[str, Any] = {"name": "careful", "tool_rules": [["ask", ["write"]]]}
MESH = (sys.executable, "-m", "mesh")
ENDS = ("run_completed", "run_failed", "run_cancelled", "run_timeout")
NAMES = ("writer", "twice", "reporter", "spender", "impatient", "crowd")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    source = Path(__file__).with_name("approval_agents.py")
    agents: dict[str, Any] = {n: {"provider": "python", "target": f"{source}:{n}"} for n in NAMES}
    agents["again"] = {**agents["writer"], "idempotent": True}
    with mesh.LocalNode(tmp_path_factory.mktemp("approvals") / "data", config={"agents": agents}) as made:
        yield made


@pytest.fixture
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client(timeout_s=20.0) as made:
        yield made


def asked(client: mesh.Client, session_id: str | None = None) -> mesh.Approval:
    [found] = wait_for(lambda: list(client.approvals.list(session_id)), "a question")
    approval: mesh.Approval = found
    return approval


def begin(
    client: mesh.Client, agent: str, prompt: Any, policy: Any = ASK, **options: Any
) -> tuple[mesh.Run, mesh.Approval]:
    """A run that waits for a human."""
    session = client.sessions.start(agent)
    run = client.runs.submit(session.id, str(prompt), policy=policy, **options)
    return run, asked(client, session.id)


def log(client: mesh.Client, run: mesh.Run) -> list[str]:
    return [event.type for event in client.sessions.events(run.session_id, run_id=run.id)]


def is_whole(client: mesh.Client, run: mesh.Run) -> None:
    """Each question has one answer, nothing is open, and the terminal event is one and the last."""
    types = log(client, run)
    answers = types.count("tool_approval_granted") + types.count("tool_approval_denied")
    assert types.count("tool_approval_requested") == answers
    assert [t for t in types if t in ENDS] == [types[-1]]
    assert list(client.approvals.list(run.session_id)) == []


def failure(client: mesh.Client, run: mesh.Run) -> mesh.MeshError:
    with pytest.raises(mesh.MeshError) as caught:
        client.runs.wait(run.id, timeout_s=20)
    return caught.value


def test_approved_run_goes_on_and_not_before(client: mesh.Client, tmp_path: Path) -> None:
    """If a policy asks about a tool, then the run waits, and uses it once it is approved."""
    run, question = begin(client, "writer", tmp_path / "file")
    assert client.runs.get(run.id).status == "waiting_approval" and not (tmp_path / "file").exists()
    assert (question.tool_call_id, question.tool_name) == ("t1", "write")
    assert question.tool_input == {"path": str(tmp_path / "file")}
    decided = client.approvals.approve(run.id, "t1", by="ann")
    assert (decided.approved, decided.by) == (True, "ann")
    assert client.runs.wait(run.id).output == {"content": "done"}
    is_whole(client, run)
    assert "policy_violation" not in log(client, run)


def test_denied_tool_is_not_used_and_its_agent_learns_who_said_so(
    client: mesh.Client, tmp_path: Path
) -> None:
    """If a human denies, then permit raises tool_permission_denied with name and reason."""
    run, _ = begin(client, "writer", tmp_path / "file")
    client.runs.deny(run.id, "t1", "not today", by="bob")
    error = failure(client, run)
    assert error.code == "tool_permission_denied" and "by bob: not today" in error.message
    assert not (tmp_path / "file").exists()
    is_whole(client, run)


@pytest.mark.parametrize(("default", "outcome"), [("approve", "completed"), ("deny", "failed")])
def test_question_that_nobody_answers_is_decided_by_its_policy(
    client: mesh.Client, tmp_path: Path, default: str, outcome: str
) -> None:
    """If the time of a question is over, then its default holds, decided by the node."""
    policy = {**ASK, "approval_s": 0.1, "approval_default": default}
    run = client.runs.submit(client.sessions.start("writer").id, str(tmp_path / "file"), policy=policy)
    wait_for(lambda: client.runs.get(run.id).status == outcome, "the default")
    [answer] = client.sessions.events(run.session_id, type=["tool_approval_granted", "tool_approval_denied"])
    assert answer.data["by"] == "node"
    is_whole(client, run)


def test_killed_partition_still_knows_the_question_and_passes_the_answer_on(
    client: mesh.Client, tmp_path: Path
) -> None:
    """If the partition dies while a run waits, then the next one has the question, once."""
    run, question = begin(client, "writer", tmp_path / "file")
    former = client.partitions.pid(run.session_id)
    assert former is not None
    os.kill(former, signal.SIGKILL)
    wait_for(lambda: client.partitions.pid(run.session_id) not in (None, former), "the next incarnation")
    assert asked(client, run.session_id) == question
    client.approvals.approve(run.id, "t1")
    client.runs.wait(run.id)
    is_whole(client, run)


def test_answer_reaches_the_run_although_the_partition_dies_behind_it(
    client: mesh.Client, tmp_path: Path
) -> None:
    """If the partition is killed right after an answer, again and again, then each run goes on, once."""
    for n in range(5):
        run, _ = begin(client, "writer", tmp_path / f"file{n}")
        pid = client.partitions.pid(run.session_id)
        assert pid is not None
        client.approvals.approve(run.id, "t1")
        os.kill(pid, signal.SIGKILL)
        client.runs.wait(run.id, timeout_s=20)
        assert (tmp_path / f"file{n}").read_text() == "written\n"
        is_whole(client, run)


def test_killed_runner_leaves_nothing_undecided(client: mesh.Client, tmp_path: Path) -> None:
    """If the runner dies while a run waits, then the question is closed before the run's end."""
    run, _ = begin(client, "writer", tmp_path / "file")
    pid = client.sessions.handle(run.session_id).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert failure(client, run).code == "outcome_unknown"
    is_whole(client, run)
    with pytest.raises(mesh.InvalidState) as caught:
        client.approvals.approve(run.id, "t1")
    assert caught.value.code == "invalid_transition" and caught.value.details["by"] == "node"


def test_question_of_an_idempotent_run_outlives_its_runner(client: mesh.Client, tmp_path: Path) -> None:
    """If an idempotent run that waits is executed again, then it is the same question, asked once."""
    run, question = begin(client, "again", tmp_path / "file")
    pid = client.sessions.handle(run.session_id).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    waiting = ("waiting_approval", 2)
    wait_for(lambda: (r := client.runs.get(run.id)) and (r.status, r.attempt) == waiting, "the next attempt")
    assert asked(client, run.session_id) == question and not (tmp_path / "file").exists()
    client.approvals.approve(run.id, "t1")
    client.runs.wait(run.id, timeout_s=20)
    assert (tmp_path / "file").read_text() == "written\n"
    assert log(client, run).count("tool_approval_requested") == 1
    is_whole(client, run)


@pytest.mark.parametrize(("killed", "agent"), [(True, "again"), (False, "again"), (False, "routed")])
def test_question_survives_the_restart_of_everything(tmp_path: Path, killed: bool, agent: str) -> None:
    """If the whole node is killed, or stopped, and started again, then the inbox has the question, and the
    answer that is given holds for the run's next attempt; so it is where a router found the agent."""
    source = Path(__file__).with_name("approval_agents.py")
    table = {"provider": "python", "target": f"{source}:writer", "idempotent": True}
    router = {"provider": "router", "agents": ["again"], "idempotent": True}
    config = {"agents": {"again": table, "routed": router}}
    node = mesh.LocalNode(tmp_path / "data", config=config)
    with node, node.client(timeout_s=20.0) as client:
        run, question = begin(client, agent, tmp_path / "file")
        if killed:
            os.kill(client.status()["pid"], signal.SIGKILL)
    with (
        mesh.LocalNode(tmp_path / "data", config=config) as node,
        node.client(timeout_s=20.0) as client,
    ):
        assert asked(client, run.session_id) == question
        client.approvals.approve(run.id, "t1", by="ann")
        assert client.runs.wait(run.id, timeout_s=20).output == {"content": "done"}
        assert client.runs.get(run.id).attempt == 2 and (tmp_path / "file").read_text() == "written\n"
        is_whole(client, run)


@pytest.mark.parametrize("victim", ["runner", "partition"])
@pytest.mark.parametrize("step", ["asking", "asked", "answering", "answered", "used"])
def test_kill_at_any_step_of_an_approval_leaves_nothing_undecided(
    node: mesh.LocalNode, client: mesh.Client, tmp_path: Path, step: str, victim: str
) -> None:
    """If runner or partition are killed at any step, then each question has one answer before the run's end,
    and the tool was used once, or, by a run whose outcome is unknown, at most once."""
    session = client.sessions.start("writer")
    handle = client.sessions.handle(session.id)
    pid = client.partitions.pid(session.id) if victim == "partition" else handle.pid
    assert pid is not None
    file = tmp_path / "file"
    run = client.runs.submit(session.id, str(file), policy=ASK)
    if step != "asking":
        asked(client, session.id)
    people = threading.Thread(target=_approve, args=(node, run.id))
    if step in ("answering", "answered", "used"):
        people.start()
    if step in ("answered", "used"):
        people.join()
    if step == "used":
        wait_for(file.exists, "the tool to be used")
    os.kill(pid, signal.SIGKILL)
    if people.ident is None:
        people.start()
    people.join()
    ended = wait_for(lambda: (r := client.runs.get(run.id)).terminal and r, "the run's end")
    assert ended.status == "completed" or ended.error["code"] == "outcome_unknown"
    assert ended.status == "completed" or victim == "runner"
    written = file.read_text() if file.exists() else ""
    assert written == "written\n" or (written == "" and ended.status == "failed")
    is_whole(client, run)


def _approve(node: mesh.LocalNode, run_id: str) -> None:
    """A person who goes on trying until the question is decided, or its run is over."""
    with node.client(timeout_s=20.0) as client:
        while not client.runs.get(run_id).terminal:
            try:
                client.approvals.approve(run_id, "t1")
                return
            except mesh.NotFound:
                continue  # not asked yet
            except mesh.InvalidState:
                return  # closed with its run


def test_killed_router_delays_the_answer_at_most(client: mesh.Client, tmp_path: Path) -> None:
    """If the router dies while a run waits, then the answer goes through the next one."""
    run, _ = begin(client, "writer", tmp_path / "file")
    os.kill(client.status()["router"]["pid"], signal.SIGKILL)
    client.approvals.approve(run.id, "t1")
    client.runs.wait(run.id, timeout_s=20)
    is_whole(client, run)


def test_the_same_answer_again_is_the_stored_one_and_another_is_refused(
    client: mesh.Client, tmp_path: Path
) -> None:
    """If a question is answered twice, then the first answer holds, and the second learns who gave it."""
    run, _ = begin(client, "writer", tmp_path / "file")
    first = client.approvals.approve(run.id, "t1", by="ann")
    assert client.approvals.approve(run.id, "t1", by="bob") == first
    client.runs.wait(run.id)
    with pytest.raises(mesh.InvalidState) as caught:
        client.approvals.deny(run.id, "t1", by="bob")
    assert caught.value.code == "invalid_transition" and caught.value.details["by"] == "ann"
    with pytest.raises(mesh.NotFound) as missing:
        client.approvals.deny(run.id, "t2")
    assert missing.value.code == "approval_not_found"
    is_whole(client, run)


def test_of_two_people_at_once_one_decides(node: mesh.LocalNode, client: mesh.Client, tmp_path: Path) -> None:
    """If two answer at the same moment, one yes and one no, then one of them is told that he is late."""
    for n in range(5):
        run, _ = begin(client, "writer", tmp_path / f"file{n}")
        outcomes: list[str] = []

        def say(yes: bool, run_id: str = run.id, outcomes: list[str] = outcomes) -> None:
            with node.client() as other:
                try:
                    (other.approvals.approve if yes else other.approvals.deny)(run_id, "t1")
                    outcomes.append("yes" if yes else "no")
                except mesh.InvalidState as error:
                    outcomes.append(error.code)

        people = [threading.Thread(target=say, args=(yes,)) for yes in (True, False)]
        for person in people:
            person.start()
        for person in people:
            person.join()
        assert "invalid_transition" in outcomes and len(outcomes) == 2
        wait_for(lambda run=run: client.runs.get(run.id).status in ("completed", "failed"), "the end")
        assert (tmp_path / f"file{n}").exists() == ("yes" in outcomes)
        is_whole(client, run)


def test_cancelled_run_closes_what_it_asked(client: mesh.Client, tmp_path: Path) -> None:
    """If a waiting run is cancelled, then its question is denied before its end, and an approval too late."""
    run, _ = begin(client, "writer", tmp_path / "file")
    client.runs.cancel(run.id)
    is_whole(client, run)
    with pytest.raises(mesh.InvalidState):
        client.approvals.approve(run.id, "t1")


@pytest.mark.parametrize(("scope", "questions"), [("once", 2), ("turn", 1)])
def test_scope_of_an_approval_within_its_run(client: mesh.Client, scope: str, questions: int) -> None:
    """If a tool is approved for the turn, then the run is not asked about it again; once, then it is."""
    run, _ = begin(client, "twice", "x")
    for _ in range(questions):
        question = asked(client, run.session_id)
        client.approvals.approve(run.id, question.tool_call_id, scope=scope)
    client.runs.wait(run.id, timeout_s=20)
    assert log(client, run).count("tool_approval_requested") == questions
    is_whole(client, run)


def test_tool_approved_for_the_session_is_not_asked_about_again(client: mesh.Client) -> None:
    """If a tool is approved for the session, then its later runs do not ask about it; those of a fork do."""
    run, question = begin(client, "twice", "x")
    client.approvals.approve(run.id, question.tool_call_id, scope="session")
    client.runs.wait(run.id, timeout_s=20)
    assert client.sessions.get(run.session_id).metadata["approved_tools"] == ["write"]
    later = client.runs.submit(run.session_id, "x", policy=ASK)
    client.runs.wait(later.id, timeout_s=20)
    assert "tool_approval_requested" not in log(client, later)
    assert "approved_tools" not in client.sessions.fork(run.session_id).metadata


@pytest.mark.parametrize("yes", [True, False])
def test_reported_call_holds_the_run_until_somebody_decides(
    client: mesh.Client, tmp_path: Path, yes: bool
) -> None:
    """If an agent only reports a call that a rule asks about, then it does not go on before the answer."""
    run, question = begin(client, "reporter", tmp_path / "file")
    assert question.violation_kind == "approval_required" and not (tmp_path / "file").exists()
    if yes:
        client.approvals.approve(run.id, question.tool_call_id, scope="turn")
        client.runs.wait(run.id, timeout_s=20)
    else:
        client.approvals.deny(run.id, question.tool_call_id)
        assert failure(client, run).code == "policy_violation"
    assert (tmp_path / "file").exists() == yes
    is_whole(client, run)


@pytest.mark.parametrize("yes", [True, False])
def test_used_up_budget_asks_instead_of_killing(client: mesh.Client, tmp_path: Path, yes: bool) -> None:
    """If a budget is broken under pause, then the agent is not pulled until a human decides."""
    policy = {"limits": {"max_total_tokens": 150}, "on_violation": "pause"}
    run, question = begin(client, "spender", tmp_path / "file", policy)
    assert (question.tool_name, question.violation_kind) == (None, "budget_exceeded")
    assert (tmp_path / "file").read_text() == "xx"
    with pytest.raises(mesh.InvalidArgument):
        client.approvals.approve(run.id, question.tool_call_id, scope="turn")
    if yes:
        client.approvals.approve(run.id, question.tool_call_id)
        assert client.runs.wait(run.id, timeout_s=20).output == {"content": "spent"}
    else:
        client.approvals.deny(run.id, question.tool_call_id, by="ann")
        assert "by ann" in failure(client, run).message
    assert (tmp_path / "file").read_text() == ("xxx" if yes else "xx")
    is_whole(client, run)


def test_waiting_for_a_human_uses_up_no_limit(client: mesh.Client, tmp_path: Path) -> None:
    """If a run waits longer for a human than its limits allow, then they do not end it."""
    policy = {**ASK, "limits": {"max_duration_ms": 1000}}
    run, _ = begin(client, "writer", tmp_path / "file", policy, idle_s=0.3)
    asked_at = asked(client, run.session_id).asked_at
    wait_for(lambda: time.time() > asked_at + 1.5, "more time to pass than either limit gives")
    assert client.runs.get(run.id).status == "waiting_approval"
    client.approvals.approve(run.id, "t1")
    assert client.runs.wait(run.id, timeout_s=20).output == {"content": "done"}


def test_questions_of_one_session_are_asked_where_it_lives(client: mesh.Client) -> None:
    """If one session's questions are listed, then its partition alone is asked, and what it says is said:
    that there is no such session, or that it is protected."""
    token = mesh.new_token()
    ids = [client.sessions.create("writer").id for _ in range(8)]
    hidden = client.sessions.create("writer", token=token).id
    for session_id in ids:
        page = client.approvals.list(session_id)
        assert (list(page), page.missing, page.cursor) == ([], (), None)
    with pytest.raises(mesh.NotFound) as unknown:
        client.approvals.list("no-such-session")
    assert unknown.value.code == "session_not_found"
    with pytest.raises(mesh.NotAllowed):
        client.approvals.list(hidden)
    for session_id in ids:
        client.sessions.delete(session_id, hard=True)


def test_agent_that_does_not_wait_takes_its_question_back(client: mesh.Client) -> None:
    """If an agent gives up waiting, then nobody is asked any more, and the run goes on."""
    run = client.runs.submit(client.sessions.start("impatient").id, "x", policy=ASK)
    assert client.runs.wait(run.id, timeout_s=20).output == {"content": "went on without"}
    wait_for(lambda: not client.approvals.list(), "an empty inbox")
    is_whole(client, run)


def test_questions_under_one_id_are_told_apart_and_bounded(client: mesh.Client) -> None:
    """If an agent asks 103 things under one id, then 100 wait, each by a name, and 3 are denied at once."""
    run = client.runs.submit(client.sessions.start("crowd").id, "103", policy=ASK)
    page = wait_for(lambda: len(p := client.approvals.list(limit=1000)) == 100 and p, "all questions")
    first = client.approvals.list(limit=60)
    rest = client.approvals.list(limit=60, cursor=first.cursor)
    assert [*first, *rest] == list(page) and rest.cursor is None
    assert len({a.tool_call_id for a in page}) == 100
    for question in page:
        client.approvals.approve(run.id, question.tool_call_id)
    assert client.runs.wait(run.id, timeout_s=20).output == {"content": "100"}
    is_whole(client, run)


def test_cancel_for_approval_says_what_was_asked_before_the_end(client: mesh.Client, tmp_path: Path) -> None:
    """If a run is cancelled for an approval, then its log has the request, then its end with that reason."""
    run, question = begin(client, "writer", tmp_path / "file")
    assert client.runs.cancel_for_approval(run.id, question) == run.id
    events = list(client.sessions.events(run.session_id, run_id=run.id))
    assert events[-1].type == "run_cancelled" and events[-1].data == {"reason": "approval_requested"}
    assert [e.data["tool_name"] for e in events if e.type == "tool_approval_requested"] == ["write"] * 2
    with pytest.raises(mesh.InvalidState) as caught:
        client.runs.cancel_for_approval(run.id, {"tool_name": "write"})
    assert caught.value.code == "invalid_transition"


def test_shell_asks_before_it_starts_a_command(client: mesh.Client, tmp_path: Path) -> None:
    """If a rule asks about some commands, then those wait and others do not."""
    rule = ["ask", [{"tool": "bash", "args": {"command": ["touch *"]}}]]
    policy = {"tool_rules": [rule]}
    assert client.run_once("shell", "echo hi", policy=policy).output["content"] == "hi\n"
    run, question = begin(client, "shell", f"touch {tmp_path}/file", policy)
    assert question.tool_input["command"] == f"touch {tmp_path}/file"
    assert not (tmp_path / "file").exists()
    client.approvals.approve(run.id, question.tool_call_id)
    client.runs.wait(run.id, timeout_s=20)
    assert (tmp_path / "file").exists()


def test_command_line_says_what_a_run_waits_for_and_answers_it(
    node: mesh.LocalNode, client: mesh.Client, tmp_path: Path
) -> None:
    """If mesh run meets a rule that asks, then it prints the command that answers, and that one works."""
    policy = Path(__file__).parents[2] / "configs" / "policies" / "ask.toml"
    there = ("--address", node.address)
    with subprocess.Popen(
        [*MESH, "run", *there, "shell", f"touch {tmp_path}/file", "--policy", str(policy)],
        stderr=subprocess.PIPE, text=True,
    ) as run:
        assert run.stderr is not None
        said, command = run.stderr.readline(), run.stderr.readline()
        assert "bash" in said and "mesh approval approve" in command
        run_id, name = command.split()[3:5]
        listed = subprocess.run(
            [*MESH, "approval", "list", *there], capture_output=True, text=True, check=True)
        assert run_id in listed.stdout and name in listed.stdout
        wrong = subprocess.run([*MESH, "approval", "deny", run_id, "other", *there], capture_output=True)
        assert wrong.returncode == 4
        subprocess.run([*MESH, "approval", "approve", run_id, name, *there, "--by", "ann"], check=True)
        assert run.wait(timeout=20) == 0
    assert (tmp_path / "file").exists()


def test_secrets_are_not_shown_to_whoever_decides(client: mesh.Client, tmp_path: Path) -> None:
    """If a command or a reason holds a key, then neither the inbox nor the log shows it."""
    key = "sk-ant-api03-" + "a1B2" * 20
    policy = {"tool_rules": [["ask", ["bash"]]]}
    run, question = begin(client, "shell", f"echo {key} > {tmp_path}/file", policy)
    events = client.sessions.events(run.session_id, type="tool_approval_requested")
    assert key not in str(question) and key not in str(list(events))
    client.approvals.deny(run.id, question.tool_call_id, f"no {key}")
    assert failure(client, run).code == "tool_permission_denied"
    assert key not in str(list(client.sessions.events(run.session_id)))
    is_whole(client, run)


def test_killed_node_leaves_nothing_undecided(tmp_path: Path) -> None:
    """If everything is killed while a run waits, then the next start closes its question, then the run."""
    with mesh.LocalNode(tmp_path / "data") as node, node.client() as client:
        run, _ = begin(client, "shell", "true", {"tool_rules": [["ask", ["bash"]]]})
        os.kill(client.status()["pid"], signal.SIGKILL)
    with mesh.LocalNode(tmp_path / "data") as node, node.client() as client:
        assert client.runs.get(run.id).error["code"] == "outcome_unknown"
        is_whole(client, run)
