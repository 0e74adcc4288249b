"""Deleting, taking back, forgetting and retention on a real node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh


def test_delete_hides_undelete_brings_back_hard_forgets(client: mesh.Client) -> None:
    """If a session is deleted, then lists leave it out until it is undeleted; hard, then it never was."""
    client.run_once("echo", "hello", id="a")
    with client.listen("lifecycle.deleted.", "lifecycle.undeleted.") as feed:
        assert client.sessions.delete("a") is True
        assert client.sessions.list()[:] == client.sessions.search()[:] == ()
        hidden = client.sessions.search(include_deleted=True)
        assert [s.id for s in hidden] == ["a"] and hidden[0].deleted_at is not None
        assert client.events.count() == 0 < client.events.count(session_ids=["a"])
        assert client.sessions.undelete("a").deleted_at is None
        assert [s.id for s in client.sessions.list()] == ["a"]
        assert client.sessions.delete("a", hard=True) is True
        seen = [next(feed) for _ in range(3)]
    assert [n.topic for n in seen] == ["lifecycle.deleted.a", "lifecycle.undeleted.a", "lifecycle.deleted.a"]
    assert [n.data.get("hard") for n in seen] == [False, None, True]
    assert client.sessions.delete("a") is False
    with pytest.raises(mesh.NotFound):
        client.sessions.get("a")
    wait_for(lambda: client.usage.summary().totals.run_count == 0, "the runs are gone")
    assert client.run_once("echo", "again", id="a").events[0].seq == 1


def test_retention_prunes_and_followers_are_told(tmp_path: Path, node_config: dict[str, Any]) -> None:
    """If a log was shortened, then a follower from the start is told once, and loses nothing else."""
    config = {**node_config, "retention": {"max_events_per_session": 10, "max_tag_age_days": 1e-9}}
    with mesh.LocalNode(tmp_path / "d", config=config) as node, node.client(timeout_s=20.0) as client:
        client.sessions.start("counter", id="s")
        client.runs.wait(client.runs.submit("s", "50").id)
        assert client.maintenance.run().events_pruned > 40
        session, stats = client.sessions.get("s"), client.sessions.stats("s")
        assert stats.event_count == len(client.sessions.events("s")) == 10
        assert session.pruned == stats.last_seq - 10 and session.pruned_to == stats.pruned_to > 40
        seen = list(client.sessions.stream("s", stop_when=lambda e: e.type == "run_completed"))
        assert seen[0].type == "log_pruned" and seen[0].data["pruned_to"] == session.pruned_to
        assert [e.seq for e in seen[1:]] == [e.seq for e in client.sessions.events("s")]
        after = client.sessions.stream("s", after=session.pruned_to, stop_when=lambda e: True)
        assert next(after).type != "log_pruned"
        client.sessions.stop("s")
        client.sessions.delete("s", hard=True)
        client.maintenance.run()
        assert client.events.count() == 0
        ids = [next(f"t{n}" for n in range(99) if client.partitions.of(f"t{n}") == of) for of in (0, 1)]
        for sid in ids:
            client.run_once("counter", "3", id=sid, tags=["acme"])
        assert client.usage.spent(tag="acme")["duration_ms"] > 0
        client.maintenance.run()  # each partition hears of the other that the tag is old there, too
        assert not any(client.usage.spent(tag="acme").values())


def test_a_live_session_is_not_deleted(client: mesh.Client) -> None:
    """If a session is live, then delete is session_busy."""
    client.sessions.start("echo", id="s")
    with pytest.raises(mesh.MeshError) as refused:
        client.sessions.delete("s", hard=True)
    assert refused.value.code == "session_busy"


def test_the_audit_log_tells_who_did_what(client: mesh.Client, node: mesh.LocalNode) -> None:
    """If sessions are controlled, then each call is listed with its outcome, newest first."""
    for n in range(6):
        client.sessions.create("echo", id=f"s{n}")
    with node.client() as other, pytest.raises(mesh.MeshError):
        other.sessions.complete("s3")
    client.run_once("echo", "no entry")
    entries = client.audit.list()
    assert [e.op for e in entries] == ["session.complete", *["session.create"] * 6]
    assert entries[0].outcome == "invalid_transition" and entries[0].client != entries[1].client
    assert [e.target for e in entries[1:]] == [f"s{n}" for n in range(5, -1, -1)]
    assert [e.op for e in client.audit.list(target="s3")] == ["session.complete", "session.create"]
    assert len(client.audit.list(client=entries[1].client, outcome="ok", op="session.create")) == 6
    page = client.audit.list(limit=4)
    assert page[:] + client.audit.list(cursor=page.cursor)[:] == entries[:]


def test_a_check_finds_nothing_on_a_sound_node_and_names_what_is_wrong(
    tmp_path: Path, node_config: dict[str, Any]
) -> None:
    """If rows are missing, then a check of the running node says which; on a sound node it finds nothing."""
    import apsw

    from mesh.store.file import connect

    with mesh.LocalNode(tmp_path / "d", partitions=1, config=node_config) as node, node.client() as client:
        client.run_once("counter", "20", id="a")
        client.run_once("echo", "x", id="b")
        client.sessions.start("sleeper", id="busy")
        client.runs.submit("busy", "60")
        client.routes.set("a:b:c", {"external_room_id": "1"})
        report = client.maintenance.check()
        assert (report.problems, report.complete, report.missing) == ((), True, ())
    db: apsw.Connection = connect(tmp_path / "d" / "partition-0.db")
    session = "SELECT n FROM session WHERE id = 'a'"
    db.execute(f"DELETE FROM event WHERE seq BETWEEN 4 AND 6 AND session = ({session})")
    db.execute("DELETE FROM session WHERE id = 'b'")
    db.close()
    with mesh.LocalNode(tmp_path / "d", partitions=1, config=node_config) as node, node.client() as client:
        report = client.maintenance.check()
        assert sorted(p.kind for p in report.problems) == ["hole", "orphan_event", "orphan_run"]
        assert "events 4 to 6" in next(p.text for p in report.problems if p.kind == "hole")
