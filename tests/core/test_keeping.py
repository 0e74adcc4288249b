"""Deleting sessions: what is refused, what is hidden, what is gone, and what an undone batch leaves."""

from __future__ import annotations

from bench import Bench, new_run_id

from mesh.core.audit import AUDITED
from mesh.core.ops import CATALOGUE
from mesh.store.removing import Removing

RUN = new_run_id("s", 1)


def purge(bench: Bench) -> None:
    """Remove the rows of everything that was deleted hard."""
    removing = Removing(bench.store, bench.state)
    while (session := removing.erased()) is not None:
        removing.purge(session, 2)


def rows(bench: Bench, table: str) -> int:
    return int(bench.store.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_a_session_in_use_is_not_deleted(bench: Bench) -> None:
    """If a session is live, or has a run, then delete is session_busy and changes nothing."""
    bench.call("session.start", "s", "echo", None)
    for hard in (None, False, True):
        assert bench.code("session.delete", "s", hard) == "session_busy"
    bench.call("session.stop", "s", None)
    assert bench.call("session.delete", "s") is True


def test_a_hidden_session_is_left_alone_until_it_is_undeleted(bench: Bench) -> None:
    """If a session is deleted softly, then nothing can be done with it; undelete takes it back."""
    bench.call("session.create", "s", "echo", None)
    assert bench.call("session.delete", "s") is True
    at = bench.state.session("s").deleted_at
    bench.tick()
    assert bench.call("session.delete", "s", False) is True and bench.state.session("s").deleted_at == at
    for call in (["session.activate", "s"], ["run.create", RUN, "s", "x", None], ["session.cancel", "s"],
                 ["session.start_or_get", "s", "echo", None]):
        assert bench.code(*call) == "session_closed", call
    assert bench.code("session.create", "s", "echo", None) == "already_exists"
    listed = bench.store.list_sessions(status=None, agent_id=None, after=0, limit=9, bytes_max=999)
    assert listed == ([], None)
    assert bench.call("session.undelete", "s")["deleted_at"] is None
    assert bench.call("session.activate", "s")["status"] == "active"


def test_a_forgotten_session_is_gone_at_once_and_its_id_is_free(bench: Bench) -> None:
    """If a session is deleted hard, then nobody finds it, and a new one of its id has its own log."""
    bench.call("session.create", "s", "echo", {"metadata": {"secret": "x"}})
    bench.call("run.create", RUN, "s", "x", None)
    bench.call("run.cancel", RUN)
    pos, count = bench.state.pos, bench.state.session_count
    assert bench.call("session.delete", "s", True) is True
    assert bench.call("session.delete", "s", True) is False
    assert bench.state.session_count == count - 1
    assert bench.code("session.undelete", "s") == "session_not_found"
    assert bench.code("session.activate", "s") == "session_not_found"
    assert bench.call("session.create", "s", "echo", None)["seq"] == 1
    assert bench.events("s") == ["session_created"]
    bench.kill()  # the rows go in the next life as well
    purge(bench)
    assert rows(bench, "session") == rows(bench, "event") == 1 and rows(bench, "run") == 0
    assert bench.state.pos == pos + 1 and bench.state.session_count == 1
    assert b"secret" not in b"".join(row[0] for row in bench.rows("SELECT record FROM session"))


def test_positions_and_row_numbers_are_never_used_again(bench: Bench) -> None:
    """If the newest session is deleted hard and its rows are removed, then a restart goes on behind it."""
    bench.call("session.create", "s", "echo", None)
    before = bench.state.pos, bench.state.next_session
    bench.call("session.delete", "s", True)
    purge(bench)
    bench.kill()
    assert (bench.state.pos, bench.state.next_session) == before


def test_created_and_deleted_in_one_batch_leaves_nothing(bench: Bench) -> None:
    """If one list creates, deletes and creates again, then the last session is there and the first is not."""
    create, delete = ["session.create", ["s", "echo", None]], ["session.delete", ["s", True]]
    answers = bench.replies[bench.post(create, delete, create)]
    assert [status for status, _ in answers] == [0, 0, 0]
    purge(bench)
    assert rows(bench, "session") == rows(bench, "event") == 1
    assert bench.state.session("s").seq == 1


def test_a_failed_commit_takes_a_delete_back(bench: Bench) -> None:
    """If the transaction of a hard delete fails, then the session is there as before."""
    bench.call("session.create", "s", "echo", None)
    bench.store.fail_next = True
    assert bench.code("session.delete", "s", True) == "store_unavailable"
    assert bench.call("session.activate", "s")["status"] == "active"


def test_deleting_what_is_not_there_is_false(bench: Bench) -> None:
    """If no session has that id, then delete says so and is no error; a wrong argument is one."""
    assert bench.call("session.delete", "nobody") is False
    assert bench.code("session.delete", "nobody", "yes") == "validation_error"
    assert bench.code("session.delete", "~1") == "invalid_id"


def test_control_calls_leave_entries_and_work_leaves_none(bench: Bench) -> None:
    """If a control call is answered, then its entry is in the same commit, with its outcome; once."""
    bench.call("session.start", "s", "echo", None)
    bench.call("run.submit", RUN, "s", "x", None)
    bench.code("session.complete", "s")
    bench.store.fail_next = True
    bench.code("session.pause", "s")
    entries = bench.rows("SELECT client, op, target, outcome FROM audit ORDER BY id")
    assert entries == [
        (bench.client, "session.start", "s", "ok"),
        (bench.client, "session.complete", "s", "invalid_transition"),
    ]


def test_a_call_that_is_answered_later_leaves_its_entry_then(bench: Bench) -> None:
    """If a stop waits for its run, then the entry comes with the answer, in one piece."""
    bench.call("session.start", "s", "echo", None)
    bench.call("run.submit", RUN, "s", "x", None)
    bench.deliver()
    bench.post(["session.stop", ["s", None]])
    assert len(bench.rows("SELECT id FROM audit")) == 1
    runner = bench.runners[0]
    assert runner is not None
    bench.deliver()
    bench.say(runner, runner.batch(RUN, "cancelled"))
    assert bench.rows("SELECT op, outcome FROM audit ORDER BY id DESC LIMIT 1") == [("session.stop", "ok")]


def test_control_calls_without_arguments_leave_entries_too(bench: Bench) -> None:
    """If a control call has nonsense for arguments, then it is refused, and the entry has no target."""
    for args in ([], [None], [[]], [b"x", {}], ["s", 5], ["s", {"session": 5}], ["s", {"end": {}}]):
        for op in ("session.import", "session.delete", "session.undelete"):
            assert bench.code(op, *args) != "ok" or op == "session.delete"
    assert all(outcome != "internal_error" for (outcome,) in bench.rows("SELECT outcome FROM audit"))


def test_a_fork_is_named_in_the_audit_log_with_its_origin(bench: Bench) -> None:
    """If a session is made as a fork, then its entry says so, and of what; a refused one too."""
    bench.call("session.start", "s", "echo", None)
    fork = {"parent_session_id": "s", "fork_seq": 2}
    bench.call("session.create", "f", "echo", fork)
    assert bench.code("session.start", "f", "echo", fork) == "already_exists"
    bench.call("session.create", "child", "echo", {"parent_session_id": "s"})
    rows = bench.rows("SELECT op, target, outcome FROM audit ORDER BY id")
    assert rows[1:] == [
        ("session.fork", "f of s@2", "ok"), ("session.fork", "f of s@2", "already_exists"),
        ("session.create", "child", "ok")]


def test_every_op_of_the_audit_log_is_an_op(bench: Bench) -> None:
    """If an op is renamed, then its entries do not vanish in silence; work itself leaves none."""
    work = {"run.create", "run.execute", "run.once", "run.submit", "session.prompt"}
    writes = {op.name for op in CATALOGUE if op.kind == "write"}
    assert writes >= AUDITED and not AUDITED & work
